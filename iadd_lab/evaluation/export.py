"""A distilled set for other programs: MTT's format, a folder of PNGs, or safetensors, with a data card."""

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.mtt_format import COMPANION, IMAGES, LABELS, export_mtt
from iadd_lab.errors import choose, require
from iadd_lab.evaluation.card import data_card
from iadd_lab.evaluation.training_set import FILE, set_file
from iadd_lab.store.artefacts import atomic_path, check_folder, save_text

CARD = "README.md"
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no file names on Windows


def export_set(path: Path, to: str, folder: Path) -> str:
    """Export the distilled set at `path` into `folder`, beside a data card; returns what was lost.

    Args:
        path: a distilled.safetensors, or the folder that holds it.
        to: a key of `EXPORTS`.
        folder: where to; it must be empty, or not there yet.

    Raises:
        InputError: the set can't be read, the format is unknown, or the folder holds something.
    """
    export = choose("format", to, EXPORTS)
    distilled = DistilledSet.load(set_file(path))
    folder = check_folder(folder)
    require(not any(folder.iterdir()), f"{folder} is not empty: choose another folder for the export.")
    loss = export(distilled, folder)
    save_text(folder / CARD, data_card(set_file(path), notes=[loss]))
    return loss


def _mtt(distilled: DistilledSet, folder: Path) -> str:
    export_mtt(distilled, folder)
    tensors = f"{IMAGES} and {LABELS} hold the preprocessed images and their labels"
    return f"Format of MTT: nothing is lost; {tensors}, {COMPANION} the preprocessing and α."


def _safetensors(distilled: DistilledSet, folder: Path) -> str:
    distilled.save(folder / FILE)
    return f"Format safetensors: nothing is lost; {FILE} holds preprocessed images, labels and preprocessing."


def _image_folder(distilled: DistilledSet, folder: Path) -> str:
    """Pixels without preprocessing, clipped to [0, 1] and rounded to 8 bits.

    Distilled ones leave that range, above all those of whitened sets: the sentence says by how much.
    """
    pixels = distilled.preprocess.invert(distilled.images)
    stored = (pixels.clamp(0, 1) * 255).round().byte()  # (count, channels, height, width)
    for label, name in enumerate(folder_names(distilled.classes)):
        for number, planes in enumerate(stored[distilled.labels == label]):
            picture = Image.fromarray(planes.permute(1, 2, 0).squeeze(2).numpy())
            with atomic_path(folder / name / f"{number:04}.png") as temporary:
                picture.save(temporary, format="PNG")
    beyond = ((pixels < 0) | (pixels > 1)).double().mean().item()
    error = (pixels - stored.float() / 255).double().square().mean().sqrt().item()
    change = distilled.preprocess.apply(stored) - distilled.images
    relative = (change.double().square().mean() / distilled.images.double().square().mean()).sqrt().item()
    return (
        f"Format image_folder: {100 * beyond:.1f} % of the values left [0, 1] without preprocessing (from "
        f"{pixels.min():.2f} to {pixels.max():.2f}) and were clipped, all were rounded to 8 bits; root mean "
        f"square error {error:.3f} of the range of pixels, {100 * relative:.1f} % of the preprocessed norm."
    )


def folder_names(classes: Sequence[str]) -> list[str]:
    """A safe folder for each class, alphabetical in the classes' order, as readers of folders number them.

    Names stay as they are where they are safe and in order already; else a number comes first.
    """
    safe = [_safe(name) for name in classes]
    folded = [name.casefold() for name in safe]
    if list(classes) == safe == sorted(safe) and len(set(folded)) == len(folded):
        return safe
    digits = len(str(max(len(safe) - 1, 1)))
    return [f"{number:0{digits}}_{name}" for number, name in enumerate(safe)]


def _safe(name: str) -> str:
    """`name` as every system's files may be called: ASCII letters, digits, space, _ and -, dots inside."""
    plain = re.sub(r"[^A-Za-z0-9 _.-]", "_", name).strip(" .")[:80].rstrip(" .") or "class"
    return f"_{plain}" if _RESERVED.fullmatch(plain) or plain.startswith("-") else plain


# How a set is written into an empty folder; each returns what was lost, in a sentence.
EXPORTS = {"mtt": _mtt, "image_folder": _image_folder, "safetensors": _safetensors}
