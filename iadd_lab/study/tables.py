"""Tables of results, in which every number says what stands behind it: as Markdown, LaTeX and CSV."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from string import ascii_lowercase

import pandas as pd
from pylatexenc.latexencode import unicode_to_latex

from iadd_lab.errors import check_number, check_whole, require
from iadd_lab.evaluation.protocol import UNLEARNED
from iadd_lab.store.artefacts import save_text
from iadd_lab.study.methods import METHODS
from iadd_lab.study.study import Cell

MEASURED = "measured here"
Column = tuple[str, ...]  # its headings, from top to bottom


@dataclass(frozen=True)
class Value:
    """One number of a table.

    Args:
        row: the name of its row.
        column: the headings of its column from top to bottom, as in ("measured here", "Digits", "IPC 1").
        mean: in the unit that the table's title names.
        std: standard deviation in the same unit; None where there is none.
        origin: what stands behind it, as in "quick profile, 2 sets × 3 networks", or a publication.
        measured: here; False for a published number.
        competes: whether it may be the best of its column; the whole set does not.
        digits: after the decimal point.
        higher: whether higher is better; None where nothing is best.
    """

    row: str
    column: Column
    mean: float
    std: float | None
    origin: str
    measured: bool = True
    competes: bool = True
    digits: int = 1
    higher: bool | None = True

    def __post_init__(self):
        require(isinstance(self.column, tuple), f"column is {self.column!r}; it must be a tuple of headings.")
        where = f"{self.row} in {self.column}"
        require(math.isfinite(self.mean), f"the mean of {where} is {self.mean}; it must be a finite number.")
        check_number(f"the standard deviation of {where}", self.std or 0.0)
        require(bool(self.origin.strip()), f"the origin of {where} is empty: say what stands behind it.")
        check_whole("digits", self.digits, minimum=0)

    @property
    def source(self) -> str:
        """The origin, as it is printed below a table."""
        return f"{MEASURED if self.measured else 'published'}: {self.origin}"


def by_setting(cell: Cell) -> Column:
    """The headings of a column that stands for a setting."""
    return MEASURED, cell.setting.data_title, f"IPC {cell.setting.ipc}"


def by_network(cell: Cell) -> Column:
    """The headings of a column that stands for a network."""
    return MEASURED, cell.network.title


def accuracies(
    cells: Iterable[Cell],
    *,
    profile: str,
    column: Callable[[Cell], Column] | Column = by_setting,
    balanced: bool = False,
) -> list[Value]:
    """What was measured, in per cent: mean and sample standard deviation over the networks of each cell.

    Args:
        cells: those without an evaluation are left out; a single network has no standard deviation.
        profile: that they were measured on.
        column: the headings of each cell's column, or of one for all of them.
        balanced: takes the mean of the classes' recalls.
    """
    values, measure = [], "balanced " if balanced else ""
    for cell in [cell for cell in cells if cell.evaluation]:
        where, row = column(cell) if callable(column) else column, cell.evaluation.summary()
        std = row[f"{measure}std"] if len(cell.evaluation.confusion) > 1 else None
        shown = row[f"{measure}accuracy"], std, cell.origin(profile)
        values.append(Value(cell.title, where, *shown, competes=cell.competes))
    return values


def averaged(numbers: Sequence[float], *, row: str, column: Column, origin: str, digits: int) -> Value:
    """The mean and sample standard deviation of numbers that were measured here; none of them is best."""
    std = stdev(numbers) if len(numbers) > 1 else None
    return Value(row, column, mean(numbers), std, origin, digits=digits, higher=None)


def grouped(values: Iterable[Value]) -> dict[str, dict[str, tuple[float, float]]]:
    """{row: {column: (mean, standard deviation)}}, as `plots.accuracy_groups` takes it.

    A column's name leaves out "measured here"; a missing deviation is 0.
    """
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    for value in values:
        name = ", ".join(heading for heading in value.column if heading != MEASURED)
        rows.setdefault(value.row, {})[name] = (value.mean, value.std or 0.0)
    return rows


def notes(cells: Sequence[Cell]) -> tuple[str, ...]:
    """What must be said below a table of these cells: its ±, how networks train, what is missing."""
    settings = tuple(dict.fromkeys(cell.setting for cell in cells))
    epochs = " or ".join(dict.fromkeys(str(setting.evaluation_epochs) for setting in settings))
    given = [setting.evaluation_rate for setting in settings]
    rates = " or ".join(dict.fromkeys(f"at {rate:g}" if rate else _OWN_RATES for rate in given))
    missing = {s: [method.title for method in METHODS.values() if method.left_out(s)] for s in settings}
    lost = [cell for cell in cells if cell.diverged]
    return (
        "± is the sample standard deviation over all networks of all sets; the sets of a column share "
        "their teachers. Methods compare in pairs, seed by seed, not by it.",
        f"Networks train for {epochs} epochs: {rates}.",
        *_unlearned(cells),
        *dict.fromkeys(note for cell in cells for note in cell.notes),
        *(f"Left out of {setting.title}: {', '.join(names)}." for setting, names in missing.items() if names),
        *(f"{c.title} diverged ({c.setting.title}, {c.network.title}): {c.diverged}" for c in lost),
    )


_OWN_RATES = "at the learned α on sets of MTT, DDPP and IADD, at 0.01 on the others"


def _unlearned(cells: Sequence[Cell]) -> list[str]:
    """At most one note: which networks had not learned their sets, by place. Few epochs on all are meant."""
    places: dict[tuple, list[str]] = {}
    for cell in cells:
        if cell.competes and cell.evaluation and cell.evaluation.unfitted:
            share = f"{cell.title} {cell.evaluation.unfitted} of {len(cell.evaluation.confusion)}"
            places.setdefault((cell.setting, cell.network), []).append(share)
    named = [f"{setting.title}, {network.title}: {', '.join(s)}" for (setting, network), s in places.items()]
    told = f"Networks that {UNLEARNED}, so that their numbers tell of speed and luck"
    return [f"{told}: {'; '.join(named)}."] if places else []


@dataclass(frozen=True)
class Table:
    """Values in rows and columns, in the order of their first appearance; measured columns come first.

    The best mean of each column is bold, and so are others that print alike. A letter behind each number
    leads to its origin below the table.

    Args:
        title: what is shown, and its unit.
        values: at most one for each row and column; a missing one is shown as a dash.
        notes: sentences below the origins.

    Raises:
        InputError: there is no value, two stand in one place, columns differ in their number of headings, or
            a column mixes measured with published values or values of which higher ones are better with
            others.
    """

    title: str
    values: tuple[Value, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        require(bool(self.values), "a table needs a value at least: pass one.")
        levels = {len(value.column) for value in self.values}
        require(len(levels) == 1, f"columns have {levels} headings: give every column as many.")
        for column, field in product(self.columns, ("measured", "higher")):
            kinds = {getattr(value, field) for value in self.values if value.column == column}
            sentence = f"column {column} mixes values of different `{field}`: give each its own column."
            require(len(kinds) == 1, sentence)
        (row, column), count = Counter((value.row, value.column) for value in self.values).most_common(1)[0]
        require(count == 1, f"row {row!r} has more than one value in column {column}: keep one of them.")

    @property
    def rows(self) -> tuple[str, ...]:
        """Their names, from top to bottom: bounds, of which no value competes, stand last."""
        names = dict.fromkeys(value.row for value in self.values)
        competing = {value.row for value in self.values if value.competes}
        return tuple(sorted(names, key=lambda name: name not in competing))

    @property
    def columns(self) -> tuple[Column, ...]:
        """Their headings, from left to right."""
        return tuple(dict.fromkeys(value.column for value in self._measured_first))

    @property
    def markers(self) -> dict[str, str]:
        """Every origin, as it is printed below the table, and the letter that leads to it."""
        origins = dict.fromkeys(value.source for value in self._measured_first)
        return {origin: _letters(index) for index, origin in enumerate(origins)}

    @property
    def _measured_first(self) -> list[Value]:
        return sorted(self.values, key=lambda value: not value.measured)

    def is_best(self, value: Value) -> bool:
        """Whether no competitor in its column prints a better mean than this competitor's."""
        if value.higher is None or not value.competes:
            return False
        # What is told apart in print is what competes.
        rivals = [other for other in self.values if other.column == value.column and other.competes]
        best = (max if value.higher else min)(round(other.mean, other.digits) for other in rivals)
        return round(value.mean, value.digits) == best

    def markdown(self) -> str:
        """As GitHub and notebooks render it; the headings of a column share the one line that there is."""
        body, below = self._written(_escape_markdown, "**{}**", "<sup>{}</sup>")
        lines = [["", *map("<br>".join, body)], ["---", *["---:"] * len(body.columns)]]
        lines += [[row, *cells] for row, *cells in body.itertuples()]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        # Below it one line, where no note can begin a list or heading.
        return f"**{_escape_markdown(self.title)}**\n\n{table}\n\n{'<br>'.join(below)}\n"

    _repr_markdown_ = markdown

    def latex(self) -> str:
        r"""A `table` environment; the document needs \usepackage{booktabs} and nothing else."""
        body, below = self._written(_escape_latex, r"\textbf{{{}}}", r"\textsuperscript{{{}}}")
        options = {"hrules": True, "multicol_align": "c", "position_float": "centering"}
        options |= {"column_format": "l" + "c" * len(body.columns), "caption": _escape_latex(self.title)}
        end, lines = "\\end{table}", "\\\\\n".join(below)
        lines = f"\\par\\smallskip\\raggedright\\footnotesize\n{lines}\n{end}"
        return body.style.to_latex(**options).replace(end, lines)

    def _written(self, escape: Callable, bold: str, raised: str) -> tuple[pd.DataFrame, list[str]]:
        """All cells in a markup whose templates are `bold` and `raised`, and the lines below the table."""
        markers, shown = self.markers, {}
        for value in self.values:
            number = escape(_number(value.mean, value.digits))
            number = bold.format(number) if self.is_best(value) else number
            std = "" if value.std is None else f" {escape('±')} {_number(value.std, value.digits)}"
            shown[value.row, value.column] = number + std + raised.format(markers[value.source])
        headings = pd.MultiIndex.from_tuples([tuple(map(escape, column)) for column in self.columns])
        cells = [[shown.get((row, column), escape("–")) for column in self.columns] for row in self.rows]
        below = [*(f"{marker}: {origin}" for origin, marker in markers.items()), *self.notes]
        return pd.DataFrame(cells, map(escape, self.rows), headings), list(map(escape, below))


def save_table(table: Table, folder: Path | str, name: str, *, records: pd.DataFrame) -> Table:
    """Write `table` to `folder`/`name`.md and .tex and `records` to .csv, and return the table to show.

    Args:
        table: to write.
        folder: to write to; empty writes nothing.
        name: of the files, without their endings.
        records: rows for the CSV, as those of `measurement_frame`.
    """
    if folder:
        save_frame(records, folder, name)
        for suffix, text in ((".md", table.markdown()), (".tex", table.latex())):
            save_text(Path(folder) / f"{name}{suffix}", text)
    return table


def save_frame(frame: pd.DataFrame, folder: Path | str, name: str) -> pd.DataFrame:
    """Write `frame` to `folder`/`name`.csv, atomically, and return it; an empty `folder` writes nothing."""
    if folder:
        # The same bytes on every system.
        save_text(Path(folder) / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    return frame


def _letters(index: int) -> str:
    """a, b, …, z, aa, ab, …"""
    return (_letters(index // 26 - 1) if index >= 26 else "") + ascii_lowercase[index % 26]


def _number(number: float, digits: int) -> str:
    return f"{number:z.{digits}f}".replace("-", "−")  # z: no minus sign where nothing but zeros is left


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~$#&])", r"\\\1", " ".join(text.split()))


def _escape_latex(text: str) -> str:
    found = unicode_to_latex(" ".join(text.split()), unknown_char_policy="keep", unknown_char_warning=False)
    # At the start of a row they would be arguments of the \\ before it.
    return found.replace("[", "{[}").replace("*", "{*}")
