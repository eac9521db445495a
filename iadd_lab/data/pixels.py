"""Images, from a file or an array each, as uint8 planes (channels, size, size)."""

import contextlib

import numpy as np
from PIL import Image, ImageOps

from iadd_lab.errors import InputError, require

# Only these parsers ever see a file: Pillow's full list holds ones that start other programs (EPS).
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
LARGEST_PIXELS = 2**26  # 8192 × 8192: far above what is kept, far below what fills a memory
LARGEST_SIZE = 224  # side in pixels, of any data set or network
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")


def decode_file(path: str, size: int, channels: int) -> np.ndarray:
    """The image file as (channels, size, size) uint8; InputError if Pillow can't make sense of it."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:  # reads the header, but no pixels yet
            # A file of a few bytes may unpack to an image that fills the memory, and several are at once.
            (width, height), most = image.size, f"at most {LARGEST_PIXELS} are decoded"
            few = width * height <= LARGEST_PIXELS
            require(few, f"{path} has {width}×{height} pixels, but {most}: scale it down.")
            if min(image.size) >= 4 * size:
                # A large JPEG is decoded at a half to an eighth: faster, and still twice what is kept.
                image.draft(None, (2 * size, 2 * size))
            image.load()
            return _planes(image, size, channels)
    except InputError:
        raise
    except Exception as error:  # whatever a parser met; Pillow promises no common class
        reason = " ".join(str(error).split())
        raise InputError(f"{path} can't be decoded ({reason}): remove or replace it.") from error


def planes_of(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """An open image as `decode_file` would read it from its file, (channels, size, size) uint8."""
    return _planes(image.copy(), size, channels)


def _planes(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """`image`, turned upright, as (channels, size, size) uint8: opaque, covering the square and cropped."""
    with contextlib.suppress(Exception):  # damaged EXIF says nothing against the pixels
        ImageOps.exif_transpose(image, in_place=True)
    image = _eight_bits(image)
    if {"A", "a"} & set(image.getbands()) or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")  # what lies under transparent pixels is arbitrary
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of more than 8 bits scaled by their full 16-bit range; Pillow alone would clip them."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    sixteen = image.mode != "F" and values.min() >= 0 and values.max() <= 65_535
    name = getattr(image, "filename", "an image")
    require(bool(sixteen), f"{name} has pixels beyond 16 bits: save it with 8 or 16 bits, or remove it.")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def resize_arrays(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Images (count, height, width) or (count, height, width, 3) uint8 as (count, channels, size, size)."""
    native = images.reshape(*images.shape[:3], -1)  # (count, height, width, channels)
    if native.shape[1:] == (size, size, channels):
        return np.ascontiguousarray(native.transpose(0, 3, 1, 2))
    resized = np.empty((len(images), channels, size, size), dtype=np.uint8)
    for planes, image in zip(resized, images, strict=True):
        planes[:] = _planes(Image.fromarray(image), size, channels)
    return resized


def is_grey(path: str) -> bool:
    """Whether the image file is grey, or can't be opened: decoding meets it again, and names it."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            return image.mode in GREY_MODES
    except Exception:
        return True
