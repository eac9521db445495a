"""The API reference: `python docs/render.py build/docs` renders the docstrings of `MODULES` with pdoc."""

import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import iadd_lab
import iadd_lab.notebooks

# What notebooks and programs import; the other modules are the library's own business.
MODULES = (
    "iadd_lab",
    "iadd_lab.device",
    "iadd_lab.errors",
    *(f"iadd_lab.store{name}" for name in ("", ".artefacts", ".resumable")),
    *(f"iadd_lab.data{name}" for name in ("", ".preprocess", ".readers", ".sets", ".splits")),
    *(f"iadd_lab.training{name}" for name in ("", ".networks")),
    *(f"iadd_lab.distillation{name}" for name in ("", ".matching", ".unroll")),
    *(f"iadd_lab.baselines{name}" for name in ("", ".real_images")),
    "iadd_lab.evaluation",
    *(
        f"iadd_lab.study{name}"
        for name in ("", ".comparisons", ".luck", ".methods", ".neighbours", ".replay")
    ),
    *(f"iadd_lab.study{name}" for name in (".settings", ".study", ".tables", ".views")),
    *(f"iadd_lab.plots{name}" for name in ("", ".explore")),
    *(f"iadd_lab.notebooks{name}" for name in ("", ".batch", ".page", ".profiles")),
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
    for module in (iadd_lab, iadd_lab.notebooks):
        for name in module.__all__:  # they come when they are asked for, and pdoc looks at what is there
            setattr(module, name, getattr(module, name))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_INHERITED)
        # A room without a list of its names brings its modules; those that are not meant are left out.
        listing = ("iadd_lab.notebooks.", "iadd_lab.plots.")
        named = [name for name in MODULES if name.count(".") < 2 or name.startswith(listing)]
        pdoc.pdoc(*named, f"!(?!({'|'.join(MODULES)})$)", output_directory=folder)


if __name__ == "__main__":
    render(Path(sys.argv[1]))
