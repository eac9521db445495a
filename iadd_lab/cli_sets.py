"""Commands on distilled sets for, and from, other programs: `iadd-lab export | import-set`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.mtt_format import FITS, RATES, has_companion, import_mtt, reread_mtt
from iadd_lab.data.sets import DATASETS, DataConfig, load_data
from iadd_lab.errors import require
from iadd_lab.evaluation.export import CARD, EXPORTS, export_set
from iadd_lab.evaluation.training_set import FILE
from iadd_lab.store.artefacts import check_folder


def export(
    distilled: Annotated[Path, typer.Argument(help="A distilled.safetensors, or the folder that holds it.")],
    to: Annotated[str, typer.Option(help=f"{', '.join(EXPORTS)}.")],
    out: Annotated[Path, typer.Option(help="Folder of the export; empty, or not there yet.")],
) -> None:
    """Write a distilled set for other programs, with a data card, and say what the format loses."""
    typer.echo(export_set(distilled, to, out))
    typer.echo(f"in {out}, described in {out / CARD}")


def import_set(
    folder: Annotated[
        Path, typer.Argument(help="Folder of images_best.pt and labels_best.pt (MTT's format).")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the distilled.safetensors to make.")],
    data: Annotated[
        str | None, typer.Option(help=f"Real set that it was made from: {', '.join(DATASETS)}.")
    ] = None,
    preprocess: Annotated[
        str | None, typer.Option(help=f"How its makers preprocessed images: {', '.join(FITS)}.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help=f"Learning rate to train with ({' or '.join(RATES)}, else 0.01).")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels (the set's own).")] = None,
    data_seed: Annotated[int, typer.Option(help="Of the validation split.")] = DataConfig.seed,
    method: Annotated[str, typer.Option(help="Its name in tables.")] = "imported",
    data_root: Annotated[
        Path | None, typer.Option(help="Where the data lies; $IADD_DATA if not given.")
    ] = None,
) -> None:
    """Make a released set of MTT or a successor one of our own, for `iadd-lab evaluate`.

    A set that `iadd-lab export --to mtt` wrote knows its data and preprocessing: neither is to be given then.
    """
    check_folder(out)
    require(not (out / FILE).exists(), f"{out / FILE} is there already: choose another folder.")
    if has_companion(folder):
        given = {"--data": data, "--preprocess": preprocess, "--alpha": alpha, "--size": size}
        named = " and ".join(name for name, value in given.items() if value is not None)
        require(not named, f"{named} was given, but {folder} says that itself: leave it out.")
        made = reread_mtt(folder)
    else:
        made = _import(folder, data, preprocess, alpha, size, data_seed, method, data_root)
    made.save(out / FILE, more_metadata={"source": f"{folder.resolve().name}, in the format of MTT"})
    typer.echo(
        f"{len(made.images)} images of {len(made.classes)} classes, preprocessing {made.preprocess.kind}, "
        f"α {made.alpha:.4g}; in {out / FILE}"
    )


def _import(
    folder: Path,
    data: str | None,
    preprocess: str | None,
    alpha: float | None,
    size: int | None,
    seed: int,
    method: str,
    root: Path | None,
) -> DistilledSet:
    require(
        data is not None and preprocess is not None,
        f"--data is {data!r} and --preprocess {preprocess!r}, but {folder} does not say what it was made "
        "from: give both.",
    )
    images = load_data(DataConfig(name=data, size=size, seed=seed), root=root)
    return import_mtt(folder, images, preprocess=preprocess, alpha=alpha, method=method)


# The commands by their names, for the command line.
COMMANDS = {"export": export, "import-set": import_set}
