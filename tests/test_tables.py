"""Tables: the right number in the right cell, bold where it is best, and with its origin."""

import itertools
import re
import shutil
import subprocess

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iadd_lab.study.settings import Setting
from iadd_lab.study.tables import Table, Value, accuracies, averaged, grouped, notes, save_table
from tests.samples import assert_refused, make_cell

SPECIAL = 'a & b_c % 5 # {x} [y] *z* \\ ~^ <b> |p| `q` "r" $2$ α×W ± − – — … ≤ é'


def value(row, column, mean, **more):
    """A published value, unless `more` says otherwise."""
    given = {"std": 0.5, "origin": "somewhere", "measured": False}
    return Value(row, column if isinstance(column, tuple) else (column,), mean, **given | more)


def flat(*values, **more):
    """A table with one heading above each column."""
    return Table("title", values, **more)


@pytest.fixture
def example():
    """Three rows and four columns, two of them measured, given in another order than they are shown in."""
    here, there = ("measured here", "Digits"), ("published", "CIFAR-10")
    quick = {"measured": True, "origin": "quick profile, 2 seeds × 3 networks"}
    ftd, datm = {"origin": "FTD (CVPR 2023)"}, {"origin": "DATM (ICLR 2024)"}
    values = (
        value("MTT", (*there, "IPC 1"), 46.2, std=0.8, **ftd),
        value("MTT", (*there, "IPC 10"), 65.4, std=0.7, **ftd),
        value("MTT", (*here, "IPC 1"), 90.04, std=None, **quick),
        value("MTT", (*here, "IPC 10"), 95.0, std=1.0, **quick),
        value("DATM", (*there, "IPC 1"), 46.9, **datm),
        value("DATM", (*there, "IPC 10"), 66.8, std=0.2, **datm),
        value("DATM", (*here, "IPC 1"), 89.96, std=1.25, **quick),
        value("Whole", (*there, "IPC 1"), 84.8, std=0.1, competes=False, **ftd),
        value("Whole", (*there, "IPC 10"), 84.8, std=0.1, competes=False, **ftd),
    )
    return Table("Test accuracy (%)", values, notes=("The data are stored with losses.",))


def test_markdown_is_what_a_reader_should_see(example):
    assert example.markdown() == (
        "**Test accuracy (%)**\n"
        "\n"
        "|  | measured here<br>Digits<br>IPC 1 | measured here<br>Digits<br>IPC 10 "
        "| published<br>CIFAR-10<br>IPC 1 | published<br>CIFAR-10<br>IPC 10 |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| MTT | **90.0**<sup>a</sup> | **95.0** ± 1.0<sup>a</sup> "
        "| 46.2 ± 0.8<sup>b</sup> | 65.4 ± 0.7<sup>b</sup> |\n"
        "| DATM | **90.0** ± 1.2<sup>a</sup> | – "
        "| **46.9** ± 0.5<sup>c</sup> | **66.8** ± 0.2<sup>c</sup> |\n"
        "| Whole | – | – | 84.8 ± 0.1<sup>b</sup> | 84.8 ± 0.1<sup>b</sup> |\n"
        "\n"
        "a: measured here: quick profile, 2 seeds × 3 networks<br>b: published: FTD (CVPR 2023)"
        "<br>c: published: DATM (ICLR 2024)<br>The data are stored with losses.\n"
    )
    assert example._repr_markdown_() == example.markdown()


def test_latex_is_what_a_typesetter_should_see(example):
    expected = r"""\begin{table}
\centering
\caption{Test accuracy (\%)}
\begin{tabular}{lcccc}
\toprule
 & \multicolumn{2}{c}{measured here} & \multicolumn{2}{c}{published} \\
 & \multicolumn{2}{c}{Digits} & \multicolumn{2}{c}{CIFAR-10} \\
 & IPC 1 & IPC 10 & IPC 1 & IPC 10 \\
\midrule
MTT & \textbf{90.0}\textsuperscript{a} & \textbf{95.0} \ensuremath{\pm} 1.0\textsuperscript{a} & 46.2 \ensuremath{\pm} 0.8\textsuperscript{b} & 65.4 \ensuremath{\pm} 0.7\textsuperscript{b} \\
DATM & \textbf{90.0} \ensuremath{\pm} 1.2\textsuperscript{a} & {\textendash} & \textbf{46.9} \ensuremath{\pm} 0.5\textsuperscript{c} & \textbf{66.8} \ensuremath{\pm} 0.2\textsuperscript{c} \\
Whole & {\textendash} & {\textendash} & 84.8 \ensuremath{\pm} 0.1\textsuperscript{b} & 84.8 \ensuremath{\pm} 0.1\textsuperscript{b} \\
\bottomrule
\end{tabular}
\par\smallskip\raggedright\footnotesize
a: measured here: quick profile, 2 seeds {\texttimes} 3 networks\\
b: published: FTD (CVPR 2023)\\
c: published: DATM (ICLR 2024)\\
The data are stored with losses.
\end{table}
"""  # noqa: E501 (a row is a line)
    assert example.latex() == expected


# --- properties of random tables ---

WORDS = st.text(st.sampled_from(SPECIAL), min_size=1, max_size=6).map(str.strip).filter(bool)


@st.composite
def tables(draw):
    """Up to 5 × 5 cells, some of them missing; few different means, so that some of them tie."""
    columns = draw(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5, unique=True))
    rows = draw(st.lists(WORDS, min_size=1, max_size=5, unique=True))
    kinds = {column: (draw(st.booleans()), draw(st.sampled_from([True, False, None]))) for column in columns}
    cells = st.tuples(st.sampled_from(rows), st.sampled_from(columns))
    places = draw(st.lists(cells, min_size=1, unique=True))
    values = []
    for row, column in places:
        mean = draw(st.floats(-1, 100) | st.sampled_from([37.2, 37.24, 37.25, 37.3]))
        std = draw(st.none() | st.floats(0, 10))
        origin = draw(st.sampled_from(["here", "there & then"]) | WORDS)
        kind = {"measured": kinds[column][0], "higher": kinds[column][1], "competes": draw(st.booleans())}
        values.append(Value(row, column, mean, std, origin, **kind))
    return Table(draw(WORDS), tuple(values), tuple(draw(st.lists(WORDS, max_size=2))))


def markdown_cells(table):
    """The cells of the rows, without the rows' names: split at the pipes that no backslash precedes."""
    lines = table.markdown().split("\n")[2 : 4 + len(table.rows)]
    split = [re.split(r"(?<!\\)(?:\\\\)*\|", line) for line in lines]
    assert {len(cells) for cells in split} == {len(table.columns) + 3}
    return [cell.strip() for cells in split[2:] for cell in cells[2:-1]]


def best_by_brute_force(table, one):
    """Whether no other competitor of the column is printed with a better mean."""
    rivals = [other for other in table.values if other.column == one.column and other.competes]
    sign = {True: 1, False: -1, None: 0}[one.higher]
    beaten = any(sign * float(f"{other.mean:.1f}") > sign * float(f"{one.mean:.1f}") for other in rivals)
    return one.competes and one.higher is not None and not beaten


@given(table=tables())
def test_every_cell_has_its_number_bold_if_best_and_its_origin(table):
    places = itertools.product(table.rows, table.columns)
    shown = dict(zip(places, markdown_cells(table), strict=True))
    for one in table.values:
        pattern = r"(\*\*)?(−?[\d.]+)(?(1)\*\*)(?: ± ([\d.]+))?<sup>([a-z]+)</sup>"
        bold, mean, std, marker = re.fullmatch(pattern, shown.pop((one.row, one.column))).groups()
        assert float(mean.replace("−", "-")) == float(f"{one.mean:.1f}")
        assert mean != "−0.0"
        assert std == (None if one.std is None else f"{one.std:.1f}")
        assert bool(bold) == best_by_brute_force(table, one) == table.is_best(one)
        kind = "measured here" if one.measured else "published"
        assert table.markers[f"{kind}: {one.origin}"] == marker
    assert {*shown.values()} <= {"–"}


@given(table=tables())
def test_latex_rows_are_equally_wide_and_braces_balanced(table):
    text = table.latex()
    assert re.findall(r"\\(?:top|mid|bottom)rule\b", text) == [r"\toprule", r"\midrule", r"\bottomrule"]
    bare = re.sub(r"\\[{}]", "", text)
    depths = list(itertools.accumulate((character == "{") - (character == "}") for character in bare))
    assert (min(depths), depths[-1]) == (0, 0)
    assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0
    inside = text.split("\\toprule\n")[1].split("\\bottomrule")[0].split("\n")
    lines = [line for line in inside if line.endswith(r" \\")]
    assert len(lines) == 2 + len(table.rows)
    assert text.count(r"\textbf") == sum(best_by_brute_force(table, one) for one in table.values)
    for line in lines:
        widths = [re.match(r" \\multicolumn\{(\d+)\}", cell) for cell in re.split(r"(?<!\\)&", line)]
        assert sum(int(width[1]) if width else 1 for width in widths) == 1 + len(table.columns)
        assert not line.startswith(("[", "*"))


@given(table=tables())
def test_measured_columns_come_first_and_the_order_is_kept_otherwise(table):
    kind = {one.column: one.measured for one in table.values}
    order = [one.column for one in table.values]
    assert list(table.columns) == sorted(kind, key=lambda column: (not kind[column], order.index(column)))
    rows, competing = [one.row for one in table.values], {one.row for one in table.values if one.competes}
    assert list(table.rows) == sorted({*rows}, key=lambda row: (row not in competing, rows.index(row)))


# --- single features ---


def test_special_characters_stand_for_themselves():
    table = flat(value(SPECIAL, "x", 1.0))
    assert (
        r"| a \& b\_c % 5 \# {x} \[y\] \*z\* \\ \~^ \<b\> \|p\| \`q\` "
        '"r" \\$2\\$ α×W ± − – — … ≤ é |' in table.markdown()
    )
    assert (
        r"a \& b\_c \% 5 \# \{x\} {[}y] {*}z{*} {\textbackslash} {\textasciitilde}{\textasciicircum} "
        r"\ensuremath{<}b\ensuremath{>} |p| `q` ''r'' \$2\$ \ensuremath{\alpha}{\texttimes}W "
        r"\ensuremath{\pm} \ensuremath{-} {\textendash} {\textemdash} {\textellipsis} "
        r"\ensuremath{\leq} \'e &" in table.latex()
    )
    broken = flat(value("two\nlines", "x", 1.0))
    assert "| two lines |" in broken.markdown()
    assert "two lines &" in broken.latex()


def test_negative_means_and_digits():
    table = flat(value("a", "gain", -1.234, digits=2), value("b", "gain", -0.001, std=None, digits=2))
    assert markdown_cells(table) == ["−1.23 ± 0.50<sup>a</sup>", "**0.00**<sup>a</sup>"]
    assert r"a & \ensuremath{-}1.23 \ensuremath{\pm} 0.50" in table.latex()
    # Lower may be better, and nothing best.
    lower = flat(value("a", "loss", 0.3, higher=False), value("b", "loss", 0.2, higher=False))
    size = flat(value("a", "size", 3, higher=None))
    assert [table.is_best(one) for table in (lower, size) for one in table.values] == [False, True, False]


def test_many_origins_go_on_with_two_letters():
    table = flat(*(value(f"row {n}", "x", n, origin=f"paper {n}") for n in range(54)))
    letters = list(table.markers.values())
    assert letters[:2] + letters[25:28] + letters[51:] == ["a", "b", "z", "aa", "ab", "az", "ba", "bb"]


def cell(method="iadd", *confusion, diverged="", losses=None, **setting):
    """A cell of a setting on digits, with the counts of each of its networks."""
    counts = confusion or [((9, 1), (2, 2))]
    return make_cell(method, counts, Setting("digits", width=8, **setting), losses=losses, diverged=diverged)


def test_accuracies_are_per_cent_over_the_networks():
    two = cell("whole", ((9, 1), (2, 2)), ((8, 2), (0, 4)))  # 11 and 12 of 14 right
    (one,) = accuracies([two, cell(diverged="too fast")], profile="quick")
    assert (one.row, one.column) == ("Whole", ("measured here", "Digits", "IPC 1"))
    assert (one.measured, one.competes) == (True, False)
    assert one.mean == pytest.approx(100 * 11.5 / 14)
    assert one.std == pytest.approx(100 / 14 / 2**0.5)
    assert one.origin == "quick profile, 5 networks, own number of epochs"
    (balanced,) = accuracies([two], profile="q", balanced=True, column=lambda cell: (cell.network.name,))
    assert (balanced.mean, balanced.column) == (pytest.approx((70 + 90) / 2), ("convnet",))
    (single,) = accuracies([cell()], profile="q")
    assert (single.std, single.competes) == (None, True)


def test_notes_say_what_a_reader_must_know():
    slow = torch.tensor([0.6], dtype=torch.float64)  # guessing costs ln 2 = 0.69
    cells = [
        cell(evaluation_epochs=9, distribution_matching_iterations=None),
        cell("mtt", losses=slow, evaluation_epochs=9, evaluation_rate=0.1),
        cell("ddpp", diverged="alpha fell", evaluation_epochs=30),
        cell("whole", losses=slow),
    ]
    _, training, unlearned, *rest = notes(cells)
    assert training.startswith("Networks train for 9 or 30 or 1000 epochs: at the learned α on sets of MTT")
    assert training.endswith("on the others or at 0.1.")
    assert unlearned.endswith("luck: Digits, IPC 1, ConvNet: MTT 1 of 1.")
    diverged = "DDPP diverged (Digits, IPC 1, ConvNet): alpha fell"
    assert rest == ["lossy", "Left out of Digits, IPC 1: DM.", diverged]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: flat(), "a table needs a value at least"),
        (lambda: flat(value("a", "x", 1), value("b", "x", 2, measured=True)), "different `measured`"),
        (lambda: flat(value("a", "x", 1), value("b", "x", 2, higher=False)), "of different `higher`"),
        (lambda: flat(value("a", "x", 1), value("a", "x", 2)), "row 'a' has more than one value in column"),
        (lambda: flat(value("a", "x", 1), value("a", ("x", "y"), 2)), r"columns have \{1, 2\} headings"),
        (lambda: Value("a", "x", 1.0, None, "o", True), "column is 'x'; it must be a tuple"),
        (lambda: value("a", "x", float("nan")), "the mean of a in .* is nan; it must be a finite number"),
        (lambda: value("a", "x", 1, std=-1), "standard deviation of a in .* is -1; it must be a finite"),
        (lambda: value("a", "x", 1, origin=" "), "the origin of a in .* is empty"),
        (lambda: value("a", "x", 1, digits=-1), "digits is -1; it must be a whole number"),
    ],
)  # fmt: skip
def test_what_would_mislead_is_refused(make, sentence):
    assert_refused(sentence, make)


def test_saving_writes_three_formats_or_nothing(tmp_path, example):
    records = pd.DataFrame({"mean": [0.1, 1 / 3]})
    assert save_table(example, tmp_path / "new", "table1", records=records) is example
    csv = "mean\n0.1\n0.3333333333333333\n"
    for suffix, text in (("csv", csv), ("md", example.markdown()), ("tex", example.latex())):
        assert (tmp_path / "new" / f"table1.{suffix}").read_text(encoding="utf-8") == text
    assert save_table(example, "", "table1", records=records) is example
    assert {path.name for path in tmp_path.iterdir()} == {"new"}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_with_booktabs_alone(tmp_path, example):
    special = flat(value(SPECIAL, SPECIAL, -1.0, origin=SPECIAL), notes=(SPECIAL, "[1] first", "* second"))
    head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}"
    document = f"{head}\n{example.latex()}\n{special.latex()}\n\\end{{document}}"
    (tmp_path / "document.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:]


def test_averaged_takes_the_numbers_of_the_runs():
    found = averaged([1.0, 2.0, 6.0], row="a", column=("x",), origin="o", digits=3)
    assert (found.mean, found.digits, found.higher, found.measured) == (3.0, 3, None, True)
    assert found.std == pytest.approx(7**0.5)
    assert averaged([4.0], row="a", column=("x",), origin="o", digits=1).std is None


def test_grouped_is_keyed_by_row_and_what_tells_columns_apart(example):
    groups = grouped(example.values)
    assert groups["MTT"]["Digits, IPC 1"] == (90.04, 0.0)  # a single network: no bar of error
    assert groups["DATM"]["published, CIFAR-10, IPC 10"] == (66.8, 0.2)
    assert sum(map(len, groups.values())) == len(example.values)
