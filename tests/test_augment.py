"""Each augmentation against a slow reference of its own, and its derivatives."""

import math
import re
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from iadd_lab.data.augment import OPERATIONS, Augmentation, AugmentConfig, draw_augmentation
from tests.samples import DEVICES, assert_refused, randn

NAMES = sorted(OPERATIONS)
SHAPES = [(7, 3, 16, 16), (5, 1, 8, 8), (3, 3, 9, 9), (4, 1, 12, 7)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(name: str, shape: tuple[int, ...], *, seed: int = 0, **strengths) -> Augmentation:
    """The augmentation `name` for images of this shape."""
    config = AugmentConfig(operations=(name,), **strengths)
    return draw_augmentation(config, batch=shape[0], height=shape[2], width=shape[3], generator=seeded(seed))


# References: one image (channels, height, width) and its parameters, as Python numbers


def reference_color(image: Tensor, *, brightness: float, saturation: float, contrast: float) -> Tensor:
    image = image + brightness
    grey = sum(image) / len(image)
    image = torch.stack([grey + saturation * (channel - grey) for channel in image])
    level = image.sum() / image.numel()
    return level + contrast * (image - level)


def reference_crop(image: Tensor, *, row_shift: int, column_shift: int) -> Tensor:
    height, width = image.shape[1:]
    padded = F.pad(image, (width, width, height, height))
    top, left = height + row_shift, width + column_shift
    return padded[:, top : top + height, left : left + width]


def reference_cutout(image: Tensor, *, top: int, bottom: int, left: int, right: int) -> Tensor:
    image = image.clone()
    image[:, max(top, 0) : bottom, max(left, 0) : right] = 0.0
    return image


def reference_affine(image: Tensor, a: float, b: float, c: float, d: float) -> Tensor:
    theta = torch.tensor([[[a, b, 0.0], [c, d, 0.0]]], dtype=image.dtype)
    grid = F.affine_grid(theta, [1, *image.shape], align_corners=True)
    return F.grid_sample(image[None], grid, padding_mode="zeros", align_corners=True)[0]


def reference_rotate(image: Tensor, *, angle: float) -> Tensor:
    cosine, sine = math.cos(angle), math.sin(angle)
    return reference_affine(image, cosine, -sine, sine, cosine)


REFERENCES = {
    "color": reference_color,
    "crop": reference_crop,
    "cutout": reference_cutout,
    "flip": lambda image, flipped: image.flip(-1) if flipped else image,
    "scale": lambda image, horizontal, vertical: reference_affine(image, horizontal, 0.0, 0.0, vertical),
    "rotate": reference_rotate,
}


def image_by_image(augmentation: Augmentation, images: Tensor) -> Tensor:
    """What the references make of a batch."""
    names, reference = augmentation.parameters, REFERENCES[augmentation.operation]
    rows = [{name: values[row].item() for name, values in names.items()} for row in range(len(images))]
    return torch.stack([reference(image, **row) for image, row in zip(images, rows, strict=True)])


STRONG = {"crop": 1.0, "cutout": 0.9, "flip": 1.0, "scale": 4.0, "rotate": 180.0}
NONE = {"crop": 0, "cutout": 0, "flip": 0, "scale": 1, "rotate": 0}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_reference(name, shape):
    images = randn(*shape)
    strong = {name: STRONG[name]} if name in STRONG else {}
    drawings = [drawn(name, shape, seed=seed, **options) for seed in range(5) for options in ({}, strong)]
    for augmentation in drawings:
        expected = image_by_image(augmentation, images)
        torch.testing.assert_close(augmentation(images), expected, rtol=1e-10, atol=1e-10)
    if name in NONE:
        unchanged = drawn(name, shape, **{name: NONE[name]})(images)
        torch.testing.assert_close(unchanged, images, rtol=1e-12, atol=1e-12)


def test_cutout_covers_what_dsas_clamped_indices_cover():
    # DSA zeroes the positions clamp(i + centre - side // 2), i = 0 .. side - 1, of each axis.
    length, side = 7, 4
    images = torch.ones(200, 1, length, length)
    cut = drawn("cutout", images.shape)
    top = cut.parameters["top"]
    assert set(top.tolist()) == set(range(-(side // 2), length - side // 2 + 1))
    for image, *firsts in zip(cut(images), top, cut.parameters["left"], strict=True):
        rows, columns = ((first + torch.arange(side)).clamp(0, length - 1) for first in firsts)
        expected = torch.ones(length, length)
        expected[rows[:, None], columns] = 0.0
        assert torch.equal(image[0], expected)


# What is drawn


def test_parameters_stay_in_their_ranges_and_fill_them():
    shape = (2000, 3, 32, 28)
    angle, scale = math.radians(15), 1.2
    ranges = [("brightness", -0.5, 0.5), ("saturation", 0.0, 2.0), ("contrast", 0.5, 1.5)]
    ranges += [("horizontal", 1 / scale, scale), ("vertical", 1 / scale, scale), ("angle", -angle, angle)]
    color, scaled, rotated = (drawn(name, shape).parameters for name in ("color", "scale", "rotate"))
    parameters = color | scaled | rotated
    for name, low, high in ranges:
        values, margin = parameters[name], 0.01 * (high - low)
        assert (values.shape, values.dtype) == ((2000,), torch.float64)
        assert low <= values.min() < low + margin
        assert high - margin < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 3 * margin
    weaker = drawn("color", shape, contrast=0.2).parameters["contrast"]  # 0.5 is also 1 - 0.5
    assert (weaker.min().item(), weaker.max().item()) == pytest.approx((0.2, 1.2), abs=0.01)
    assert abs(drawn("flip", shape, flip=0.2).parameters["flipped"].double().mean() - 0.2) < 0.05


@pytest.mark.parametrize(
    ("operation", "size", "options", "ranges"),
    [
        # 28 px: a shift of up to 3.5, rounded to 4. 20 / 8 = 2.5, which Python's round() would make 2.
        ("crop", (32, 28), {}, {"row_shift": range(-4, 5), "column_shift": range(-4, 5)}),
        ("crop", (20, 20), {}, {"row_shift": range(-3, 4)}),
        # A hole of 16 by 14 px, whose centre is in 0 .. 32 and 0 .. 28.
        ("cutout", (32, 28), {}, {"top": range(-8, 25), "left": range(-7, 22)}),
        # A hole of 5 px, whose centre is in 0 .. 9; an even one has its centre between pixels, in 0 .. 10.
        ("cutout", (10, 10), {}, {"top": range(-2, 8)}),
        ("cutout", (10, 10), {"cutout": 0.4}, {"top": range(-2, 9)}),
        ("flip", (8, 8), {}, {"flipped": (False, True)}),
    ],
)
def test_whole_parameters_take_every_value_of_their_ranges(operation, size, options, ranges):
    augmentation = drawn(operation, (2000, 1, *size), **options)
    for name, expected in ranges.items():
        assert set(augmentation.parameters[name].tolist()) == set(expected)


@pytest.mark.parametrize("operations", [tuple(OPERATIONS), ("flip", "crop")])
def test_the_operations_asked_for_are_drawn_one_at_a_time(operations):
    generator, config = seeded(), AugmentConfig(operations=operations)
    draws = [draw_augmentation(config, batch=2, height=8, width=8, generator=generator) for _ in range(1200)]
    counts = Counter(augmentation.operation for augmentation in draws)
    assert set(counts) == set(operations)
    assert all(abs(number - 1200 / len(operations)) < 60 for number in counts.values())


def test_the_generators_state_decides_and_no_other():
    before = torch.get_rng_state()
    for name in NAMES:
        first, again, other = (drawn(name, (4, 3, 8, 8), seed=seed) for seed in (4, 4, 5))
        pairs = list(zip(first.tensors(), again.tensors(), other.tensors(), strict=True))
        assert all(torch.equal(one, two) for one, two, _ in pairs)
        assert not all(torch.equal(one, three) for one, _, three in pairs)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_operations_change_nothing_and_draw_nothing():
    generator, images = seeded(), randn(2, 3, 8, 8)
    before = generator.get_state()
    config = AugmentConfig(operations=())
    augmentation = draw_augmentation(config, batch=2, height=8, width=8, generator=generator)
    assert augmentation.operation == "identity"
    assert torch.equal(augmentation(images), images)
    assert torch.equal(generator.get_state(), before)


# How it is applied


@pytest.mark.parametrize("name", NAMES)
def test_siamese(name):
    # Two batches share the parameters row by row: each row is treated as if it were alone.
    first, second = randn(4, 3, 8, 8, seed=1), randn(4, 3, 8, 8, seed=2)
    augmentation = drawn(name, first.shape)
    assert not torch.equal(augmentation(first), first)
    assert torch.equal(augmentation(first), augmentation(first))
    assert torch.equal(first, randn(4, 3, 8, 8, seed=1))  # untouched
    for images in (first, second):
        augmented = augmentation(images)
        for row in range(4):
            own = {key: values[row : row + 1] for key, values in augmentation.parameters.items()}
            alone = Augmentation(name, own, 1, 8, 8)(images[row : row + 1])
            torch.testing.assert_close(augmented[row : row + 1], alone, rtol=1e-14, atol=1e-14)
    # Drawn for one image, it treats all alike.
    augmentation = drawn(name, (1, 3, 8, 8), seed=2)
    expected = torch.cat([augmentation(image[None]) for image in first])
    torch.testing.assert_close(augmentation(first), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_every_dtype_and_device_gets_the_same_augmentation(name, device):
    exact = randn(4, 3, 8, 8)
    augmentation = drawn(name, exact.shape)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        result = augmentation(exact.to(device, dtype))
        assert (result.dtype, result.device.type) == (dtype, device)
        torch.testing.assert_close(result.double().cpu(), augmentation(exact), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_derivatives(name, channels):
    images = randn(2, channels, 4, 4).requires_grad_()
    augmentation = drawn(name, images.shape, crop=0.3, seed=3)
    assert torch.autograd.gradcheck(augmentation, images)
    assert torch.autograd.gradgradcheck(augmentation, images)
    # Once more where the second derivative is not zero.
    assert torch.autograd.gradgradcheck(lambda batch: augmentation(batch) ** 3, images)


# What is refused


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"operations": ("colour",)}, "unknown augmentation operation 'colour' .did you mean 'color'"),
        (
            {"operations": "color"},
            "operations is 'color'; it must be a list of names, each once, such as color",
        ),
        ({"operations": ("flip", "flip")}, r"operations is \('flip', 'flip'\); it must be .* each once"),
        ({"crop": -0.1}, "crop is -0.1; it must be a finite number of at least 0 and at most 1"),
        ({"scale": 0.9}, "scale is 0.9; it must be a finite number of at least 1"),
        ({"rotate": 200}, "rotate is 200; it must be a finite number of at least 0 and at most 180"),
    ],  # the other fields are among all configurations' in test_properties
)
def test_bad_configurations_are_refused(fields, sentence):
    assert_refused(sentence, AugmentConfig, **fields)


def test_a_list_of_operations_becomes_a_tuple():
    assert AugmentConfig(operations=["flip", "crop"]).operations == ("flip", "crop")
    assert hash(AugmentConfig(operations=["flip"])) == hash(AugmentConfig(operations=("flip",)))


def test_images_of_another_size_are_refused():
    augmentation = drawn("crop", (4, 3, 8, 8))
    sentence = "have shape {}; this augmentation was drawn for (4, channels, 8, 8)"
    for shape in ((3, 3, 8, 8), (4, 3, 8, 9), (4, 8, 8)):
        assert_refused(re.escape(sentence.format(shape)), augmentation, torch.zeros(shape))


@pytest.mark.parametrize("device", DEVICES)
def test_bad_draws_are_refused(device):
    for name in ("batch", "height", "width"):
        given = {"batch": 2, "height": 8, "width": 8, "generator": torch.Generator(device)} | {name: 0}
        assert_refused(f"{name} is 0; it must be a whole number", draw_augmentation, AugmentConfig(), **given)
    if device == "cuda":
        message = "generator is on cuda; give it a CPU generator"
        assert_refused(message, draw_augmentation, AugmentConfig(), **given | {"width": 8})
