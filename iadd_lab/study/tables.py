"""Tables of results, in which every number says what stands behind it: as Markdown, LaTeX, CSV or a frame."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import mean, stdev
from string import ascii_lowercase

import pandas as pd

from iadd_lab.errors import check_whole, require
from iadd_lab.evaluation.protocol import Evaluation, spread
from iadd_lab.store.artefacts import save_text

_FRAME = ("row", "mean", "std", "measured", "origin")  # the frame's columns besides the headings


@dataclass(frozen=True)
class Value:
    """One number of a table.

    Args:
        row: the name of its row.
        column: the headings of its column from top to bottom, as in ("measured here", "Digits", "IPC 1").
        mean: in the unit that the table's title names.
        std: standard deviation in the same unit; None where there is none.
        origin: what stands behind it, as in "quick profile, 2 distillation seeds × 3 networks", or a
            publication.
        measured: here; False for a published number.
        competes: whether it may be the best of its column; the whole set does not.
        digits: after the decimal point.
        higher: whether higher is better; None where nothing is best.
    """

    row: str
    column: tuple[str, ...]
    mean: float
    std: float | None
    origin: str
    measured: bool
    competes: bool = True
    digits: int = 1
    higher: bool | None = True

    def __post_init__(self):
        require(isinstance(self.column, tuple), f"column is {self.column!r}; it must be a tuple of headings.")
        where = f"{self.row} in {self.column}"
        require(math.isfinite(self.mean), f"the mean of {where} is {self.mean}; it must be a finite number.")
        require(
            self.std is None or 0 <= self.std < math.inf,
            f"the standard deviation of {where} is {self.std}; it must be at least 0 and finite, or None.",
        )
        require(bool(self.origin.strip()), f"the origin of {where} is empty: say what stands behind it.")
        check_whole("digits", self.digits, minimum=0)

    @property
    def shown(self) -> float:
        """The mean as it is printed: what is told apart in print is what competes."""
        return round(self.mean, self.digits)


def measured(
    evaluation: Evaluation,
    *,
    row: str,
    column: tuple[str, ...],
    origin: str,
    balanced: bool = False,
    competes: bool = True,
) -> Value:
    """The accuracy that was measured here, in per cent: mean and sample standard deviation over the networks.

    Args:
        evaluation: of one method; a single network has no standard deviation.
        row: as of `Value`; so are `column`, `origin` and `competes`.
        balanced: takes the mean of the classes' recalls.
    """
    accuracies = 100 * (evaluation.balanced_accuracies if balanced else evaluation.accuracies)
    return Value(
        row=row,
        column=column,
        mean=accuracies.mean().item(),
        std=spread(accuracies) if len(accuracies) > 1 else None,
        origin=origin,
        measured=True,
        competes=competes,
    )


def averaged(
    numbers: Sequence[float],
    *,
    row: str,
    column: tuple[str, ...],
    origin: str,
    digits: int = 1,
    higher: bool | None = None,
) -> Value:
    """The mean and sample standard deviation of numbers that were measured here, one for each run.

    Args:
        numbers: at least one; a single one has no standard deviation.
        row: as of `Value`; so are `column`, `origin`, `digits` and `higher`.
    """
    return Value(
        row=row,
        column=column,
        mean=mean(numbers),
        std=stdev(numbers) if len(numbers) > 1 else None,
        origin=origin,
        measured=True,
        digits=digits,
        higher=higher,
    )


def grouped(values: Iterable[Value]) -> dict[str, dict[str, tuple[float, float]]]:
    """{row: {column: (mean, standard deviation)}}, as `plots.accuracy_groups` takes it.

    A column's name leaves out "measured here"; a missing deviation is 0.
    """
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    for value in values:
        name = ", ".join(heading for heading in value.column if heading != "measured here")
        rows.setdefault(value.row, {})[name] = (value.mean, value.std or 0.0)
    return rows


@dataclass(frozen=True)
class Table:
    """Values in rows and columns, in the order of their first appearance; measured columns come first.

    The best mean of each column is bold, and so are others that print alike. A letter behind each number
    leads to its origin below the table.

    Args:
        title: what is shown, and its unit.
        values: at most one for each row and column; a missing one is shown as a dash.
        notes: sentences below the origins.
        headings: what the columns' headings are, from top to bottom; the names of the frame's columns.

    Raises:
        InputError: there is no value, two stand in one place, headings differ in number or are named like
            another column of the frame, or a column mixes measured with published values or values of which
            higher ones are better with others.
    """

    title: str
    values: tuple[Value, ...]
    notes: tuple[str, ...] = ()
    headings: tuple[str, ...] = ("kind", "data", "IPC")

    def __post_init__(self):
        require(bool(self.values), "a table needs a value at least: pass one.")
        names = (*_FRAME, *self.headings)
        require(
            len(set(names)) == len(names),
            f"headings are {self.headings}; they must differ from one another and from {', '.join(_FRAME)}.",
        )
        for value in self.values:
            require(
                len(value.column) == len(self.headings),
                f"column {value.column} has {len(value.column)} headings, but the table names "
                f"{len(self.headings)} ({', '.join(self.headings)}): give every column as many.",
            )
        for column in self.columns:
            _check_column(column, [value for value in self.values if value.column == column])

    @property
    def rows(self) -> tuple[str, ...]:
        """Their names, from top to bottom: bounds, of which no value competes, stand last."""
        names = dict.fromkeys(value.row for value in self.values)
        competing = {value.row for value in self.values if value.competes}
        return tuple(sorted(names, key=lambda name: name not in competing))

    @property
    def columns(self) -> tuple[tuple[str, ...], ...]:
        """Their headings, from left to right."""
        return tuple(dict.fromkeys(value.column for value in self._measured_first()))

    @property
    def markers(self) -> dict[str, str]:
        """Every origin, as it is printed below the table, and the letter that leads to it."""
        origins = dict.fromkeys(_origin(value) for value in self._measured_first())
        return {origin: _letters(index) for index, origin in enumerate(origins)}

    def is_best(self, value: Value) -> bool:
        """Whether no competitor in its column prints a better mean than this competitor's."""
        rivals = [other.shown for other in self.values if other.column == value.column and other.competes]
        if value.higher is None or not value.competes:
            return False
        return value.shown == (max(rivals) if value.higher else min(rivals))

    def frame(self) -> pd.DataFrame:
        """One row per value, unrounded; `std` is NaN where there is none."""
        records = [
            {
                "row": value.row,
                **dict(zip(self.headings, value.column, strict=True)),
                "mean": value.mean,
                "std": value.std,
                "measured": value.measured,
                "origin": value.origin,
            }
            for value in self.values
        ]
        return pd.DataFrame(records).astype({"mean": float, "std": float})

    def csv(self) -> str:
        """The frame as comma-separated values."""
        return as_csv(self.frame())

    def markdown(self) -> str:
        """As GitHub and notebooks render it; the headings of a column share the one line that there is."""
        headings = ["<br>".join(map(_MARKDOWN.escape, column)) for column in self.columns]
        lines = [["", *headings], ["---", *["---:"] * len(headings)], *self._body(_MARKDOWN)]
        return "\n".join(
            [
                f"**{_MARKDOWN.escape(self.title)}**",
                "",
                *(f"| {' | '.join(cells)} |" for cells in lines),
                "",
                "<br>".join(self._below(_MARKDOWN)),  # in one line, where no note can begin a list or heading
                "",
            ]
        )

    _repr_markdown_ = markdown

    def latex(self) -> str:
        r"""A `table` environment; the document needs \usepackage{booktabs} and nothing else."""
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_LATEX.escape(self.title)}}}",
                rf"\begin{{tabular}}{{l{'c' * len(self.columns)}}}",
                r"\toprule",
                *_latex_headings(self.columns),
                r"\midrule",
                *(rf"{' & '.join(cells)} \\" for cells in self._body(_LATEX)),
                r"\bottomrule",
                r"\end{tabular}",
                r"\par\smallskip\raggedright\footnotesize",
                "\\\\\n".join(self._below(_LATEX)),
                r"\end{table}",
                "",
            ]
        )

    def _measured_first(self) -> list[Value]:
        return sorted(self.values, key=lambda value: not value.measured)

    def _body(self, markup: _Markup) -> list[list[str]]:
        """The cells of each row, its name first."""
        found = {(value.row, value.column): value for value in self.values}
        return [
            [markup.escape(row), *(self._cell(found.get((row, column)), markup) for column in self.columns)]
            for row in self.rows
        ]

    def _cell(self, value: Value | None, markup: _Markup) -> str:
        if value is None:
            return markup.escape("–")
        mean = markup.escape(_number(value.mean, value.digits))
        std = "" if value.std is None else f" {markup.escape('±')} {_number(value.std, value.digits)}"
        marker = markup.raised.format(self.markers[_origin(value)])
        return (markup.bold.format(mean) if self.is_best(value) else mean) + std + marker

    def _below(self, markup: _Markup) -> list[str]:
        origins = (f"{marker}: {origin}" for origin, marker in self.markers.items())
        return [markup.escape(sentence) for sentence in (*origins, *self.notes)]


def save_table(table: Table, folder: Path | str, name: str, *, records: pd.DataFrame | None = None) -> Table:
    """Write `table` to `folder`/`name`.csv, .md and .tex, atomically, and return it for the notebook to show.

    Args:
        table: to write.
        folder: to write to; empty writes nothing.
        name: of the files, without their endings.
        records: rows for the CSV in place of the table's own, as those of `measurement_frame`.
    """
    if folder:
        save_frame(table.frame() if records is None else records, folder, name)
        for suffix, text in ((".md", table.markdown()), (".tex", table.latex())):
            save_text(Path(folder) / f"{name}{suffix}", text)
    return table


def save_frame(frame: pd.DataFrame, folder: Path | str, name: str) -> pd.DataFrame:
    """Write `frame` to `folder`/`name`.csv, atomically, and return it; an empty `folder` writes nothing."""
    if folder:
        save_text(Path(folder) / f"{name}.csv", as_csv(frame))
    return frame


def as_csv(frame: pd.DataFrame) -> str:
    """Comma-separated values, the same bytes on every system."""
    return frame.to_csv(index=False, lineterminator="\n")


def _check_column(column: tuple[str, ...], values: list[Value]) -> None:
    where = f"column {column}"
    require(
        len({value.measured for value in values}) == 1,
        f"{where} mixes measured and published values: give each kind a column of its own.",
    )
    require(
        len({value.higher for value in values}) == 1,
        f"{where} mixes values of different `higher`, so that none is best: give each a column of its own.",
    )
    rows = [value.row for value in values]
    twice = next((row for row in rows if rows.count(row) > 1), None)
    require(twice is None, f"row {twice!r} has more than one value in {where}: keep one of them.")


def _origin(value: Value) -> str:
    return f"{'measured here' if value.measured else 'published'}: {value.origin}"


def _letters(index: int) -> str:
    """a, b, …, z, aa, ab, …"""
    return (_letters(index // 26 - 1) if index >= 26 else "") + ascii_lowercase[index % 26]


def _number(number: float, digits: int) -> str:
    return f"{number:z.{digits}f}".replace("-", "−")  # z: no minus sign where nothing but zeros is left


@dataclass(frozen=True)
class _Markup:
    """How a language writes what a cell is made of."""

    escape: Callable[[str], str]  # plain text on one line, special characters as themselves
    bold: str  # templates for str.format
    raised: str


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~$#&])", r"\\\1", " ".join(text.split()))


def _escape_latex(text: str) -> str:
    return " ".join(text.split()).translate(_LATEX_CHARACTERS)


def _latex_headings(columns: tuple[tuple[str, ...], ...]) -> list[str]:
    """A line for each level, neighbours with equal headings under one; a rule below each but the lowest."""
    lines = []
    for level in range(1, len(columns[0]) + 1):
        cells, rules, first = [""], "", 2  # the first column is the rows' names
        for headings, group in groupby(columns, key=itemgetter(slice(level))):
            width = len(list(group))
            cells.append(rf"\multicolumn{{{width}}}{{c}}{{{_LATEX.escape(headings[-1])}}}")
            rules += rf"\cmidrule(lr){{{first}-{first + width - 1}}}"
            first += width
        lines += [rf"{' & '.join(cells)} \\", rules]
    return lines[:-1]


_MATH = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta",
    "θ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi",
    "ρ": "rho", "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega",
    "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma",
    "Υ": "Upsilon", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
    "±": "pm", "×": "times", "·": "cdot", "→": "to", "≈": "approx", "≤": "leq", "≥": "geq", "⊙": "odot",
    "∇": "nabla", "∞": "infty",
}  # fmt: skip
_LATEX_CHARACTERS = str.maketrans({
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: rf"$\{name}$" for character, name in _MATH.items()},
    "[": "{[}", "*": "{*}",  # at the start of a row they would be arguments of the \\ before it
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", '"': "''",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "−": "$-$", "–": "--", "—": "---", "…": r"\ldots{}",
})  # fmt: skip
_MARKDOWN = _Markup(_escape_markdown, "**{}**", "<sup>{}</sup>")
_LATEX = _Markup(_escape_latex, r"\textbf{{{}}}", r"\textsuperscript{{{}}}")
