"""The API reference: `python docs/render.py build/docs` renders the docstrings of `MODULES` with pdoc."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

# What notebooks and programs import; the other modules are the library's own business.
MODULES = (
    "iadd_lab",
    "iadd_lab.baselines",
    "iadd_lab.comparisons",
    "iadd_lab.data",
    "iadd_lab.errors",
    "iadd_lab.explore",
    "iadd_lab.matching",
    "iadd_lab.neighbours",
    "iadd_lab.networks",
    "iadd_lab.paths",
    "iadd_lab.plots",
    "iadd_lab.preprocess",
    "iadd_lab.readers",
    "iadd_lab.repeats",
    "iadd_lab.reproduce",
    "iadd_lab.settings",
    "iadd_lab.splits",
    "iadd_lab.store",
    "iadd_lab.study",
    "iadd_lab.tables",
    "iadd_lab.views",
)
# Shown as it is written, without a link: a dataclass hands the annotations that it inherits to a module that
# may not have their names.
_INHERITED = r"Error parsing type annotation AugmentConfig \| None for iadd_lab\.\w+Config\.__init__"


def render(folder: Path) -> None:
    """Write the reference into `folder`, as HTML that needs no server."""
    pdoc.render.configure(
        docformat="google",  # its sections are called Args, Returns and Raises
        template_directory=Path(__file__).parent,
        footer_text=f"iadd-lab {pdoc.doc.Module.from_name('iadd_lab').obj.__version__}",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_INHERITED)
        # pdoc adds the modules whose names a package exports, though functions in them are what is meant.
        pdoc.pdoc(*MODULES, f"!(?!({'|'.join(MODULES)})$)", output_directory=folder)


if __name__ == "__main__":
    render(Path(sys.argv[1]))
