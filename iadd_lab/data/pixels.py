"""Images, from a file or an array each, as uint8 planes (channels, size, size)."""

import contextlib
import importlib
import io
import os
import re
from functools import cache

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from iadd_lab.errors import InputError, require

# Parsers that start other programs, open what is inside of a file by any parser, or read no pixels.
_REFUSED = {"EPS", "WMF", "IPTC", "BUFR", "GRIB", "HDF5", "MPEG"}
# Files that are called so are pictures, or bad ones; others are pictures if their content says so.
_TIFF = (".tif", ".tiff")
_USUAL = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jfif", ".heic", ".avif")
# Cameras' raw data: TIFF by their content, but what a parser finds there is a small preview.
_RAW = (".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw")
_HEIF = (b"ftyphei", b"ftyphev", b"ftypmif", b"ftypmsf", b"ftypavi")  # after four bytes, of AVIF too
LARGEST_PIXELS = 2**26  # 8192 × 8192: far above what is kept, far below what fills a memory
LARGEST_SIZE = 224  # side in pixels, of any data set or network
MOST_CHANNELS = 16
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
WHITE = 65_535  # of pictures of more than 8 bits, where nothing else is known


class MoreBits(Exception):
    """A picture of more than 8 bits, with its largest value: which is white depends on the whole set."""


@cache
def _parsers(ending: str) -> list[str]:
    """Pillow's parsers that know their files by the content, and one that knows them by `ending` alone."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    named = Image.registered_extensions().get(ending)
    return [name for name in Image.ID if name not in _REFUSED and (Image.OPEN[name][1] or name == named)]


def open_picture(path: str) -> Image.Image:
    """The image file, opened by its content: its header is read, no pixels yet. Parsers raise any error."""
    if not os.path.isfile(path):  # a pipe would wait for ever
        raise OSError(f"{path} is no regular file")
    return Image.open(path, formats=_parsers(os.path.splitext(path)[1].lower()))


def open_bytes(content: bytes) -> Image.Image:
    """The picture that the bytes of a file hold, decoded.

    Raises:
        InputError: they are no picture that can be decoded, or it is too large.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=_parsers(""))
        few = image.width * image.height <= LARGEST_PIXELS
        require(
            few,
            f"a picture has {image.width}×{image.height} pixels, but at most {LARGEST_PIXELS} are decoded.",
        )
        image.load()
        return image
    except InputError:
        raise
    except Exception as error:  # whatever a parser met; Pillow promises no common class
        reason = " ".join(str(error).split())
        raise InputError(f"a picture of {len(content)} bytes can't be decoded ({reason}).") from error


def is_picture(path: str) -> bool:
    """Whether the file is an image by its content, or says so by its name: reading it meets what is wrong."""
    if path.lower().endswith(_USUAL + _RAW) or not os.path.isfile(path):  # a pipe would wait for ever
        return path.lower().endswith(_USUAL)
    with contextlib.suppress(Exception), open_picture(path):
        return True
    return _is_heif(path)


def _is_heif(path: str) -> bool:
    """Whether it is a picture as telephones write it, though mail programs may call it .jpg."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(11)[4:] in _HEIF
    return False


def decode_file(path: str, size: int, channels: int, white: int | None = WHITE) -> np.ndarray:
    """The image file as (channels, size, size) uint8; InputError if Pillow can't make sense of it.

    `white` is what becomes 255 in a picture of more than 8 bits; None raises `MoreBits` for such a picture.
    Channels beyond grey and colour are those of a TIFF, or all bands of another picture.
    """
    require(os.path.isfile(path), f"{path} is no regular file, or a link to none: remove it.")
    try:
        if (stacked := _stacked(path, channels)) is not None:
            return resize_arrays(_bytes(stacked, white, path)[None], size, channels)[0]
        with open_picture(path) as image:
            _check_area(path, *image.size)
            if min(image.size) >= 4 * size:
                # A large JPEG is decoded at a half to an eighth: faster, and still twice what is kept.
                image.draft(None, (2 * size, 2 * size))
            # Of 16 bits for each of several channels Pillow keeps the upper 8.
            image.info["deep"] = image.mode == "RGB" and ";16" in str(image.tile)
            image.load()
            return _planes(image, size, channels, white)
    except (InputError, MoreBits):
        raise
    except Exception as error:  # whatever a parser met; Pillow promises no common class
        reason = " ".join(str(error).split())
        if _is_heif(path):
            needs = "" if "HEIF" in Image.OPEN else "; install pillow-heif to read it"
            reason = f"it is a HEIC or AVIF picture, whatever its name{needs}: {reason}"
        elif isinstance(error, UnidentifiedImageError) and path.lower().endswith(_TIFF):
            reason += "; if it has more than four channels, install tifffile to read it"
        raise InputError(f"{path} can't be decoded ({reason}): remove or replace it.") from error


def planes_of(image: Image.Image, size: int, channels: int, white: int = WHITE) -> np.ndarray:
    """An open image as `decode_file` would read it from its file, (channels, size, size) uint8."""
    return _planes(image.copy(), size, channels, white)


def _planes(image: Image.Image, size: int, channels: int, white: int | None = WHITE) -> np.ndarray:
    """`image`, turned upright, as (channels, size, size) uint8: opaque, covering the square and cropped."""
    with contextlib.suppress(Exception):  # damaged EXIF says nothing against the pixels
        ImageOps.exif_transpose(image, in_place=True)
    image = _eight_bits(image, white)
    if channels not in (1, 3):
        bands, name = image.getbands(), getattr(image, "filename", "an image")
        require(len(bands) == channels, f"{name} has {len(bands)} channels, not {channels}: give one kind.")
        return np.concatenate([_planes(band, size, 1, white) for band in image.split()])
    if {"A", "a"} & set(image.getbands()) or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")  # what lies under transparent pixels is arbitrary
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


def _eight_bits(image: Image.Image, white: int | None) -> Image.Image:
    """Images of more than 8 bits scaled so that `white` becomes 255; Pillow alone would clip them."""
    colour = image.info.get("deep", False)
    if not (colour or image.mode.startswith(("I", "F"))):
        return image
    values = np.asarray(image) * np.uint16(257 if colour else 1)
    return Image.fromarray(_bytes(values, white, getattr(image, "filename", "an image")))


def _bytes(values: np.ndarray, white: int | None, name: str) -> np.ndarray:
    """Pixels of at most 16 bits as bytes, of which `white` becomes 255; bytes as they are."""
    if values.dtype == np.uint8:
        return values
    sixteen = values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 65_535
    require(bool(sixteen), f"{name} has pixels beyond 16 bits: save it with 8 or 16 bits, or remove it.")
    if white is None:
        raise MoreBits(int(values.max()))
    return np.rint(values * (255 / white)).clip(max=255).astype(np.uint8)


def _many(image: Image.Image, channels: int | None = None) -> int:
    """How many channels a TIFF has, as more samples than Pillow reads or as grey pages; else 0.

    Pages are channels where the file says so (as ImageJ's and OME's do), or as many `channels` are asked for.
    """
    if image.format != "TIFF":
        return 0
    said = re.search(r'(?:^channels=|SizeC=")(\d+)', str(image.tag_v2.get(270, "")), re.MULTILINE)
    pages = image.n_frames if image.mode in GREY_MODES else 0
    samples = image.tag_v2.get(277, 1)
    if samples > len("RGBA"):
        return samples
    return pages if pages > 1 and pages == (int(said[1]) if said else channels) else 0


def _stacked(path: str, channels: int) -> np.ndarray | None:
    """What a TIFF of many channels has, (height, width, channels); None for what Pillow alone reads."""
    if channels == 1 or not path.lower().endswith(_TIFF):
        return None
    with contextlib.suppress(UnidentifiedImageError), open_picture(path) as image:
        many = _many(image, channels if channels != 3 else None)
        if many != channels and (many <= len("RGBA") or channels == 3):
            return None
        if image.n_frames == many:
            _check_area(path, *image.size)
            return np.stack([np.array(page) for page in ImageSequence.Iterator(image)], axis=-1)
    array = _samples(path)
    found = "" if array is None else f"{path} has {array.shape[-1]} channels, not {channels}: give one kind."
    require(array is None or array.shape[-1] == channels, found)
    return array


def _samples(path: str) -> np.ndarray | None:
    """A TIFF of one page with any number of samples, (height, width, samples); None without tifffile."""
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError:
        return None
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        _check_area(path, page.imagewidth, page.imagelength)
        array, axes = page.asarray(), page.axes
    return np.moveaxis(array, axes.index("S"), -1) if "S" in axes else array[..., None]


def _check_area(path: str, width: int, height: int) -> None:
    """A file of a few bytes may unpack to an image that fills the memory, and several are at once."""
    most = f"at most {LARGEST_PIXELS} are decoded"
    few = width * height <= LARGEST_PIXELS
    require(few, f"{path} has {width}×{height} pixels, but {most}: scale it down.")


def resize_arrays(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Images (count, height, width) or (count, height, width, channels) uint8 as planes.

    Colours and grey become one another; other numbers of channels stay what they are.

    Returns:
        (count, channels, size, size).
    """
    native = images.reshape(*images.shape[:3], -1)  # (count, height, width, channels)
    if native.shape[1:] == (size, size, channels):
        return np.ascontiguousarray(native.transpose(0, 3, 1, 2))
    given, usual = native.shape[3], channels in (1, 3)
    fits = given == channels or (usual and given <= 4)
    require(fits, f"images have {given} channels, not {channels}: leave channels out, or give as many.")
    resized = np.empty((len(images), channels, size, size), dtype=np.uint8)
    for planes, image in zip(resized, images if usual else native, strict=True):
        if usual:
            planes[:] = _planes(Image.fromarray(image), size, channels)
        else:
            for plane, band in zip(planes, np.moveaxis(image, 2, 0), strict=True):
                plane[:] = _planes(Image.fromarray(band), size, 1)[0]
    return resized


def channels_of(path: str) -> int:
    """How many channels an image file has: of a TIFF any number, else 1 (grey) or 3.

    1 also where it can't be opened: decoding meets it again, and names it.
    """
    with contextlib.suppress(Exception), open_picture(path) as image:
        return _many(image) or (1 if image.mode in GREY_MODES else 3)
    with contextlib.suppress(Exception):
        return _samples(path).shape[-1] if path.lower().endswith(_TIFF) else 1
    return 1
