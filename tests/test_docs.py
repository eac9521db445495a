"""The API reference: rendered without a warning, without a broken link, with every public name in it."""

import inspect
import re
import runpy
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import iadd_lab

ROOT = Path(__file__).parent.parent
RENDER = runpy.run_path(str(ROOT / "docs" / "render.py"))


class Page(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if given.get("id"):
            self.anchors.add(given["id"])
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Every page of the reference by its path."""
    folder = tmp_path_factory.mktemp("docs")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RENDER["render"](folder)
    return {path.relative_to(folder).as_posix(): Page(path) for path in folder.rglob("*.html")}, folder


def test_every_module_has_a_page_and_no_link_is_broken(pages):
    found, folder = pages
    expected = {f"{name.replace('.', '/')}.html" for name in RENDER["MODULES"]}
    assert found.keys() == expected | {"index.html"}
    for path, page in found.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = link.partition("#")
            other = (folder / path).parent.joinpath(target).resolve() if target else folder / path
            name = other.relative_to(folder.resolve()).as_posix() if target else path
            assert name in found, f"{path} links to {link}"
            assert not anchor or unquote(anchor) in found[name].anchors, f"{path} links to {link}"


def test_the_package_page_leads_everywhere(pages):
    found, _ = pages
    page = found["iadd_lab.html"]
    assert set(iadd_lab.__all__) <= page.anchors
    modules = {f"iadd_lab/{name.split('.')[1]}.html" for name in RENDER["MODULES"][1:]}
    assert modules <= page.links


def test_sections_of_docstrings_are_lists(pages):
    found, folder = pages
    text = (folder / "iadd_lab" / "training" / "networks.html").read_text(encoding="utf-8")
    config = text[text.index('<section id="NetworkConfig">') :]
    assert re.search(r"<h6[^>]*>Arguments:</h6>\s*<ul>\s*<li><strong>name:</strong>", config)
    for path in found:
        text = (folder / path).read_text("utf-8")
        assert not re.search(r"<p>(Args|Raises|Returns|Attributes):", text), path


@pytest.mark.parametrize("name", iadd_lab.__all__)
def test_every_public_name_and_method_says_what_it_is(name):
    value = getattr(iadd_lab, name)
    if isinstance(value, dict):  # a registry, which can hold no docstring
        assert all(isinstance(key, str) for key in value)
        return
    own = value.__doc__ or ""
    assert own.partition("\n")[0].endswith((".", ":"))
    assert not own.startswith(f"{name}(")  # what a dataclass without one is given
    for attribute, method in vars(value).items() if inspect.isclass(value) else ():
        if inspect.isfunction(method) and not attribute.startswith("_"):
            assert inspect.getdoc(getattr(value, attribute)), f"{name}.{attribute}"
