"""Profiles and pages: what a notebook works with, from a table of settings and what the reader changed."""

import json
import math
import re
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import matplotlib.figure
import pandas as pd
import pytest

from iadd_lab.data.augment import AugmentConfig
from iadd_lab.errors import InputError
from iadd_lab.notebooks import PROFILES, Page, read_profile
from iadd_lab.notebooks.profiles import read_value
from iadd_lab.store.configs import fingerprint
from iadd_lab.study.methods import METHODS
from iadd_lab.study.settings import Setting
from tests.samples import assert_refused

GOLDEN = json.loads((Path(__file__).parent / "golden" / "fingerprints.json").read_text())
MINE = """
every: {width: 8, teacher_training_epochs: 4, seeds: 2, threads: 3}
settings:
  small: {data_name: digits, ipc: 1, width: 16, alpha: 1e-2}
  large: {data_name: digits, ipc: 10, iterations: 20, alpha: 1e-2}
  other: {data_name: mnist, ipc: 1, iterations: 30, alpha: 1e-2}
pages:
  both: {rows: [small, large], methods: [mtt, iadd], alpha: [0.03, 0.04], own: {networks: {vgg11: 2}}}
  one: {rows: [large], seeds: 5, threads: 1}
  none: {own: {width: 4}}
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    return path


def parts(setting, method):
    """What `method` is made with in `setting`."""
    if METHODS[method].matching:
        return setting.distillation(METHODS[method].matching(setting))
    return {
        "dc": lambda: setting.gradient_matching(AugmentConfig(operations=())),
        "dsa": lambda: setting.gradient_matching(None, number=1),
        "dm": setting.distribution_matching,
        "whole": lambda: replace(setting.evaluation(), epochs=setting.whole_epochs),
    }[method]()


@pytest.mark.parametrize(("profile", "page"), [(name, page) for name in GOLDEN for page in GOLDEN[name]])
def test_configurations_are_those_that_results_were_stored_under(profile, page):
    settings = read_profile(profile).page(page).settings
    assert len(settings) == len(GOLDEN[profile][page])
    for setting, golden in zip(settings, GOLDEN[profile][page], strict=True):
        plain = {"title": setting.title, "teacher_count": setting.teacher_count, "seeds": setting.seeds}
        found = {"data": setting.data(), "teachers": setting.teachers(), "evaluation": setting.evaluation()}
        found["second evaluation"] = setting.evaluation(split="validation", number=1)
        found |= {name: parts(setting, name) for name in golden if name in METHODS}
        known = plain | {name: fingerprint(part) for name, part in found.items()}
        assert {name: known[name] for name in golden} == golden


def test_all_settings_are_guarded():
    assert GOLDEN.keys() == PROFILES.keys()
    for name in PROFILES:
        pages = {page for page, values in read_profile(name).pages.items() if values.get("rows")}
        assert GOLDEN[name].keys() == pages - {"your_network"}  # of functions, which are known at run time


@pytest.mark.parametrize("name", ["cpu", "paper"])
def test_teachers_are_trained_no_longer_than_any_notebook_uses(name):
    profile, used = read_profile(name), {}
    for page in profile.pages:
        for setting in profile.page(page).settings:
            shared = setting.data(), setting.teachers(), setting.teacher_count
            used.setdefault(shared, set()).add(setting.max_start_epoch - 1 + setting.teacher_epochs)
    assert all(teachers.epochs == max(epochs) for (_, teachers, _), epochs in used.items())


def test_what_design_asks_of_the_paper_profile():
    """Design section 7, as listed by DC-BENCH for MTT."""
    settings = read_profile("paper").page("table1_benchmarks").settings
    shared = "teacher_count teacher_batch width evaluation_networks evaluation_epochs iterations"
    assert set(map(attrgetter(*shared.split()), settings)) == {(100, 256, 128, 5, 1000, 5000)}
    own = "data_name ipc student_steps teacher_epochs max_start_epoch image_rate alpha_rate alpha preprocess"
    assert list(map(attrgetter(*own.split(), "batch"), settings)) == [
        ("cifar10", 1, 50, 2, 2, 100, 1e-7, 0.01, "zca", None),
        ("cifar10", 10, 30, 2, 20, 100, 1e-5, 0.001, "zca", None),
        ("cifar10", 50, 30, 2, 40, 1000, 1e-5, 0.001, "standardise", None),
        ("cifar100", 1, 20, 3, 20, 1000, 1e-5, 0.01, "zca", None),
        ("cifar100", 10, 20, 2, 20, 1000, 1e-5, 0.01, "standardise", None),
        ("cifar100", 50, 80, 2, 40, 1000, 1e-5, 0.01, "zca", 125),
        ("tiny_imagenet", 1, 10, 2, 10, 1e4, 1e-4, 0.01, "standardise", None),
        ("tiny_imagenet", 10, 20, 2, 40, 1e4, 1e-4, 0.01, "standardise", 200),
        ("tiny_imagenet", 50, 20, 2, 40, 1e4, 1e-4, 0.01, "standardise", 300),
    ]  # fmt: skip


def test_what_stands_later_wins(mine):
    """The library's defaults, every, the row, the page, and last what the reader changes."""
    profile = read_profile(str(mine))
    small, large = profile.page("both").settings
    assert (small.width, large.width) == (16, 8)
    assert (small.iterations, large.iterations) == (Setting().iterations, 20)
    assert (small.alpha, large.alpha) == (0.03, 0.04)
    found = profile.page("one", change={"seeds": 7, "precision": "bf16"})
    assert found.settings == (replace(profile.page("one").settings[0], seeds=7),)
    assert profile.page("one").settings[0].seeds == 5
    assert (profile.page("both").how, found.how) == ({"threads": 3}, {"threads": 1, "precision": "bf16"})
    one, many = profile.page("both", change="{iterations: [5, 6], alpha: 1e-3}").settings
    assert (one.iterations, many.iterations, one.alpha, many.alpha) == (5, 6, 1e-3, 1e-3)


@pytest.mark.parametrize(
    ("page", "chosen", "expected"),
    [
        ("both", {"ipc": "10"}, [("digits", 10, 20)]),  # a row of the page
        ("one", {"ipc": 1}, [("digits", 1, 5000)]),  # one of the profile
        ("both", {"data": "mnist"}, [("mnist", 1, 30), ("mnist", 10, 20)]),  # one of it, and one made anew
        ("both", {"ipc": 5}, [("digits", 5, 5000)]),  # not twice
        ("both", {"data": "[digits, mnist]", "ipc": "[10, 1]"}, [("digits", 10, 20), ("mnist", 1, 30)]),
        ("one", {"change": {"data_name": "mnist", "ipc": 1}}, [("mnist", 1, 30)]),
    ],
)
def test_data_and_ipc_choose_rows(mine, page, chosen, expected):
    settings = read_profile(str(mine)).page(page, **chosen).settings
    assert [(each.data_name, each.ipc, each.iterations) for each in settings] == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"profile": "cpuu"}, "did you mean 'cpu'?"),
        ({"profile": "none.yaml"}, "can't be read"),
        ({"name": "tabel1_benchmarks"}, "did you mean 'table1_benchmarks'?"),
        ({"data": "cifar1"}, "did you mean 'cifar10'?"),
        ({"ipc": "ten"}, "ipc is 'ten'"),
        ({"ipc": True}, "ipc is True"),
        ({"ipc": []}, "ipc has 0 values"),
        ({"ipc": [1, 1]}, "two settings are both Digits, IPC 1"),
        ({"iterations": 0}, "iterations is 0"),
        ({"iterations": [1, 2, 3]}, "iterations has 3 values for 2 settings"),
        ({"methods": "mt"}, "did you mean 'mtt'?"),
        ({"methods": 5}, "methods is 5; it must be a list"),
        ({"change": {"thread": 2}}, "did you mean 'threads'?"),
        ({"change": "5"}, "change is 5"),
        ({"change": "{threads: -1}"}, "threads is -1"),
        ({"published_data": None, "unheard_of": None}, "unheard_of is None"),
        ({"name": "your_data", "change": {"alpha": 1}}, "goes by its data"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"change": {"alpha": math.nan}}, "alpha is nan"),
        ({"name": "your_data", "width": "nan"}, "width is 'nan'; it must be a finite number, as 32 is"),
        ({"name": "your_data", "evaluation_networks": True}, "evaluation_networks is True; it must be"),
    ],
)
def test_what_is_impossible_is_refused_in_one_sentence(tmp_path, given, said):
    sentence = rf"^[^\n]*{re.escape(said)}[^\n]*$"
    assert_refused(sentence, Page, **{"name": "table1_benchmarks", "runs_dir": tmp_path} | given)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("settings:", "setings:", "did you mean 'settings'?"),
        ("threads: 1", "treads: 1", "did you mean 'threads'?"),
        ("width: 16", "with: 16", "did you mean 'width'?"),
        ("[large]", "[larg]", "did you mean 'large'?"),
        ("ipc: 10, ", "", "row large of mine.yaml needs data_name and ipc"),
        ("[0.03, 0.04]", "[0.03]", "alpha has 1 values for 2 settings"),
        ("every: {width", "every: {{width", "can't be read as YAML"),
        ("[0.03, 0.04]", "[0.03, .nan]", "alpha is '.nan'; it must be a finite number"),
        ("threads: 1", "threads: yes", "threads is True"),
    ],
)
def test_a_mistake_in_a_profile_is_found(mine, old, new, said):
    mine.write_text(MINE.replace(old, new, 1))
    with pytest.raises(InputError, match=re.escape(said)):
        list(map(read_profile(str(mine)).page, ("both", "one", "none")))


def test_text_is_read_as_it_is_meant():
    texts = ["1e-5", "010", "null", "2024-01-01", "[1, x]", "{a: 1e3}", "", "mtt", "[-2, 0, .5, 1.e2, true]"]
    meant = [1e-5, 10, None, "2024-01-01", [1, "x"], {"a": 1e3}, "", "mtt", [-2, 0, 0.5, 100.0, True]]
    assert [read_value(text) for text in texts] == meant
    for word in ("nan", "-inf", ".nan", "1:30", "0x10"):  # no number in any list or mapping either
        assert [read_value(text) for text in (word, f"[{word}]", f"{{a: {word}}}")] == [
            word,
            [word],
            {"a": word},
        ]
    for text in ("[1", "{1: 2}", "!!set {a}", "1e999", "[!!float .nan]"):
        assert_refused("can't be read", read_value, text)


def test_a_page_says_what_it_came_to(mine, tmp_path, capsys):
    page = Page("one", profile=str(mine), runs_dir=tmp_path, seeds=None, change="{}")
    assert (page.profile, page.title("Digits"), page.setting.seeds) == ("mine", "Digits, mine profile", 5)
    assert capsys.readouterr().out == (
        "mine profile\nDigits, IPC 10: teacher_count 100, iterations 20, student_steps 50, teacher_epochs 2, "
        "image_rate 100, alpha 0.01, seeds 5, evaluation_epochs 1000\n"
    )
    page = Page("one", profile=str(mine), runs_dir=tmp_path, seeds="3", change={"precision": "bf16"})
    assert (page.title(), page.study.how.precision) == ("changed mine profile", "bf16")
    assert capsys.readouterr().out.endswith("\nchanged: seeds = 3, precision = bf16\n")
    page = Page("both", profile=str(mine), runs_dir=tmp_path, ipc=1, networks={"alexnet": 3}, methods="mtt")
    assert page.title() == "mine profile"  # its own row
    assert (page.methods, page.own) == (("mtt",), {"networks": {"vgg11": 2, "alexnet": 3}})
    both = Page("both", profile=str(mine), runs_dir=tmp_path)
    assert_refused("with one setting, not with 2", lambda: both.setting)


def test_a_page_keeps_under_its_name_and_computes_on_the_named_cluster(tmp_path, monkeypatch):
    monkeypatch.setattr("iadd_lab.notebooks.page.named_runner", lambda: "the workers")
    page = Page("your_data", runs_dir=tmp_path, figures_dir=tmp_path, width=None, threads=2)
    assert (page.own, page.study.how.threads, page.study.runner) == ({"width": 32}, 2, "the workers")
    figure, frame = matplotlib.figure.Figure(), pd.DataFrame({"a": [1]})
    assert page.save_figure(figure) is page.save_figure(figure, "later") is figure
    page.save_frame(frame, "more"), page.save_frame(frame, name="other")
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert files >= {"your_data.png", "your_data_later.pdf", "your_data_more.csv", "other.csv"}
