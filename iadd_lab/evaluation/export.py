"""A distilled set for other programs: MTT's format, a folder of PNGs, or safetensors, with a data card."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageSequence

from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.mtt_format import COMPANION, IMAGES, LABELS, export_mtt, has_companion, reread_mtt
from iadd_lab.data.sets import load_data
from iadd_lab.device import DEFAULT, Execution, executes
from iadd_lab.errors import DivergenceError, InputError, choose, require
from iadd_lab.evaluation.card import data_card, evaluations_beside
from iadd_lab.evaluation.protocol import Evaluation, evaluate
from iadd_lab.evaluation.training_set import FILE, TrainingSet, set_file
from iadd_lab.store.artefacts import atomic_path, check_folder, save_text, unpacking

CARD = "README.md"
SCALE = "scale.json"  # beside PNGs: which pixels their lowest and highest value stand for
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no file names on Windows


@executes
def export_set(
    path: Path,
    to: str,
    folder: Path,
    *,
    measure: bool = True,
    root: Path | None = None,
    how: Execution = DEFAULT,
) -> str:
    """Export the distilled set at `path` into `folder`, beside a data card; returns what was lost.

    Args:
        path: a distilled.safetensors, or the folder that holds it.
        to: a key of `EXPORTS`.
        folder: where to; it must be empty, or not there yet.
        measure: whether a set that pictures don't hold exactly is read back and evaluated anew, by the
            protocol of each evaluation that lies beside it.
        root: where the real set lies, to measure on; None for the usual place.
        how: where that is computed.
        options: fields of `Execution` by name, as in `device="cpu"`.

    Raises:
        InputError: the set can't be read, the format is unknown, or the folder holds something.
    """
    export = choose("format", to, EXPORTS)
    stored = DistilledSet.load(set_file(path), root=root)
    distilled = stored if to == KEEPS else stored.decoded
    folder = check_folder(folder)
    require(not any(folder.iterdir()), f"{folder} is not empty: choose another folder for the export.")
    try:
        notes = [export(distilled, folder)]
        if distilled is not stored:
            seen = f"{len(distilled.images)} images are what networks see of {len(stored.images)} stored ones"
            notes += [f"The {seen}: {distilled.storage:,} numbers; the set itself is {stored.storage:,}."]
        if to in PICTURES and distilled.soft_labels is not None:
            notes += ["Of soft labels only the largest is left, as the folder."]
        if measure and to in PICTURES:
            back, beside = read_pictures(distilled, folder), evaluations_beside(set_file(path), stored)
            notes += [_worth(back, measured, root, how) for measured in beside]
        save_text(folder / CARD, data_card(set_file(path), notes=notes))
    except BaseException:  # a part is of no use to anybody, and would keep the next try from the folder
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return "\n".join(notes)


def _worth(back: DistilledSet, measured: Evaluation, root: Path | None, how: Execution) -> str:
    """What networks reach that train on the set read back, by the protocol by which it was measured."""
    own = replace(measured, confusion=measured.confusion[: measured.config.networks], splits=1)
    try:
        again = evaluate(back, load_data(back.data, root=root), measured.config, how=how)
    except (InputError, DivergenceError) as error:
        return f"What the files themselves are worth was not measured: {error}"
    return f"Trained on these files, read back: {again}. Trained on the set itself: {own}."


def _mtt(distilled: DistilledSet, folder: Path) -> str:
    export_mtt(distilled, folder)
    tensors = f"{IMAGES} and {LABELS} hold the preprocessed images and their labels"
    return f"Format of MTT: nothing is lost; {tensors}, {COMPANION} the preprocessing and α."


def _safetensors(distilled: DistilledSet, folder: Path) -> str:
    distilled.save(folder / FILE)
    return f"Format safetensors: nothing is lost; {FILE} holds preprocessed images, labels and preprocessing."


def _image_folder(distilled: DistilledSet, folder: Path) -> str:
    """Pixels without preprocessing, clipped to [0, 1] and rounded to 8 bits.

    Grey and colours are PNGs, other numbers of channels TIFFs with a page for each. Distilled ones
    leave that range, above all those of whitened sets: the sentence says by how much.
    """
    pixels = distilled.preprocess.invert(distilled.images)
    _write_pictures(distilled, folder, 8, (0.0, 1.0))
    beyond = 100 * ((pixels < 0) | (pixels > 1)).double().mean()
    kept = "" if pixels.shape[1] in (1, 3) else f", whose {pixels.shape[1]} channels are pages of a TIFF"
    change = distilled.preprocess.apply((pixels.clamp(0, 1) * 255).round().byte()) - distilled.images
    return (
        f"Format image_folder{kept}: {beyond:.1f} % of the values left [0, 1] without preprocessing (from "
        f"{pixels.min():.2f} to {pixels.max():.2f}) and were clipped, all were rounded to 8 bits; it changed "
        f"preprocessed images by {100 * change.norm() / distilled.images.norm():.1f} % of their norm."
    )


def _png16(distilled: DistilledSet, folder: Path) -> str:
    """Pixels without preprocessing, as 16 bits of the range that they have."""
    _write_pictures(distilled, folder, 16)
    empty = {"images": distilled.images[:0], "labels": distilled.labels[:0], "soft_labels": None}
    replace(distilled, **empty).save(folder / COMPANION)
    formula = f"low + value / 65535 * (high - low), with low and high from {SCALE}, without preprocessing"
    return f"Format png16: all is kept to 16 bits. A pixel is {formula}; {COMPANION} holds that, and α."


def _write_pictures(distilled: DistilledSet, folder: Path, bits: int, ends: Sequence[float] = ()) -> None:
    """A picture for each image, class by class, and beside them which pixels their values stand for.

    Args:
        distilled: the set.
        folder: where to.
        bits: of each value: 8 or 16.
        ends: the pixels that the lowest and the highest value stand for; empty takes those that there are.
    """
    pixels, most = distilled.preprocess.invert(distilled.images), 2**bits - 1
    low, high = ends or torch.stack(pixels.aminmax()).tolist()
    shares = ((pixels.double() - low) / max(high - low, 1e-9)).clamp(0, 1)  # (count, channels, height, width)
    stored = (shares * most).round().numpy().astype(f"uint{bits}")
    for label, name in enumerate(folder_names(distilled.classes)):
        (folder / name).mkdir()  # even without a picture: readers number the folders
        for number, planes in enumerate(stored[(distilled.labels == label).numpy()]):
            # Pillow writes no colours of 16 bits: their planes stand one below the other, in a grey picture.
            pages = [*planes] if bits == 8 and len(planes) not in (1, 3) else []
            grey = bits == 16 or len(planes) == 1
            image = planes.reshape(-1, planes.shape[2]) if grey else planes.transpose(1, 2, 0)
            with atomic_path(folder / name / f"{number:04}.{'tif' if pages else 'png'}") as temporary:
                _save(temporary, pages or [image])
    scale = {"low": low, "high": high, "bits": bits, "pictures": len(stored)}
    save_text(folder / SCALE, json.dumps(scale))


def _save(path: Path, pages: Sequence[np.ndarray]) -> None:
    """A PNG; or a TIFF whose pages are channels, as ImageJ's description says."""
    first, *others = map(Image.fromarray, pages)
    more = {"save_all": True, "append_images": others, "compression": "tiff_adobe_deflate"}
    more["description"] = f"ImageJ=1.11a\nimages={len(pages)}\nchannels={len(pages)}\n"
    first.save(path, **({"format": "TIFF", **more} if others else {"format": "PNG"}))


def read_pictures(distilled: DistilledSet, folder: Path) -> DistilledSet:
    """`distilled` with the images that `export_set` wrote into `folder` as pictures, class by class.

    Raises:
        InputError: pictures are missing or damaged.
    """
    with unpacking(folder):
        scale = json.loads((folder / SCALE).read_text(encoding="utf-8"))
        low, high, most = scale["low"], scale["high"], 2 ** scale["bits"] - 1
        names = folder_names(distilled.classes)
        paths = [sorted([*(folder / name).glob("*.png"), *(folder / name).glob("*.tif")]) for name in names]
        found = [_planes(path) for path in chain(*paths)]
        planes = np.stack(found)
        values = torch.from_numpy(planes).view(-1, *distilled.images.shape[1:])
        pixels = low + values / most * (high - low)
        whole = len(found) == scale["pictures"] and bool(pixels.isfinite().all())
        require(whole, f"it has {len(found)} of {scale['pictures']} pictures, from {low} to {high}")
        labels = torch.arange(len(paths)).repeat_interleave(torch.tensor([*map(len, paths)]))
        images = distilled.preprocess.apply(pixels.float())
        return replace(distilled, images=images, labels=labels, soft_labels=None)


def _planes(path: Path) -> np.ndarray:
    """The values of a picture, channel by channel where it has several: float64."""
    with Image.open(path, formats=["PNG", "TIFF"]) as image:
        pages = [np.array(page, dtype=np.float64) for page in ImageSequence.Iterator(image)]
    return np.moveaxis(pages[0], -1, 0) if pages[0].ndim == 3 else np.concatenate(pages)


def reread(folder: Path) -> DistilledSet:
    """The set that `export_set` wrote into `folder` as MTT's files or as PNGs of 16 bits.

    Raises:
        InputError: a file is missing, damaged or refused, or they do not belong together.
    """
    pictures = (folder / SCALE).is_file()
    return read_pictures(DistilledSet.load(folder / COMPANION), folder) if pictures else reread_mtt(folder)


def load(path: Path | str, *, channels: int | None = None, root: Path | None = None) -> TrainingSet:
    """A distilled set to train on: `load("runs/ipc1")`.

    Args:
        path: a distilled.safetensors, or the folder that holds it, or an export as MTT's files or png16.
        channels: 3 repeats grey images, and real ones in `transform`, for networks that expect colour.
        root: where the real set lies, for a file without its whitening; None for the usual place.

    Raises:
        InputError: the file is missing, damaged or no distilled set, or `channels` does not fit it.
    """
    file, folder = set_file(path), Path(path).expanduser()
    exported = has_companion(folder) and not file.is_file()
    return TrainingSet(reread(folder) if exported else DistilledSet.load(file, root=root), channels=channels)


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
PICTURES = {"image_folder": _image_folder, "png16": _png16}  # which hold no exact values
KEEPS = "safetensors"  # holds images as they are stored
EXPORTS = {"mtt": _mtt, **PICTURES, KEEPS: _safetensors}
