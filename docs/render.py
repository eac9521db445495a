"""The API reference: `python docs/render.py build/docs` renders the docstrings of `MODULES` with pdoc."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import iadd_lab

# What notebooks and programs import; the other modules are the library's own business.
MODULES = (
    "iadd_lab",
    "iadd_lab.baselines.real_images",
    "iadd_lab.study.comparisons",
    "iadd_lab.data.sets",
    "iadd_lab.errors",
    "iadd_lab.plots.explore",
    "iadd_lab.distillation.matching",
    "iadd_lab.study.neighbours",
    "iadd_lab.training.networks",
    "iadd_lab.study.replay",
    "iadd_lab.plots",
    "iadd_lab.data.preprocess",
    "iadd_lab.data.readers",
    "iadd_lab.study.luck",
    "iadd_lab.notebooks.batch",
    "iadd_lab.study.settings",
    "iadd_lab.data.splits",
    "iadd_lab.store.artefacts",
    "iadd_lab.study.study",
    "iadd_lab.study.tables",
    "iadd_lab.study.views",
)
# Shown as it is written, without a link: a dataclass hands the annotations that it inherits to a module that
# may not have their names.
_INHERITED = r"Error parsing type annotation AugmentConfig \| None for iadd_lab\.\w+Config\.__init__"


def render(folder: Path) -> None:
    """Write the reference into `folder`, as HTML that needs no server."""
    pdoc.render.configure(
        docformat="google",  # its sections are called Args, Returns and Raises
        template_directory=Path(__file__).parent,
        footer_text=f"iadd-lab {iadd_lab.__version__}",
    )
    for name in iadd_lab.__all__:  # they come when they are asked for, and pdoc only looks at what is there
        getattr(iadd_lab, name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_INHERITED)
        # pdoc adds the modules whose names a package exports, though functions in them are what is meant.
        pdoc.pdoc(*MODULES, f"!(?!({'|'.join(MODULES)})$)", output_directory=folder)


if __name__ == "__main__":
    render(Path(sys.argv[1]))
