"""Each augmentation against a slow reference of its own, and its derivatives."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from iadd_lab.data.augment import OPERATIONS, Augmentation, AugmentConfig, draw_augmentation
from iadd_lab.errors import InputError

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
NAMES = sorted(OPERATIONS)
SHAPES = [(7, 3, 16, 16), (5, 1, 8, 8), (3, 3, 9, 9), (4, 1, 12, 7)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def drawn(name: str, shape: tuple[int, ...], *, seed: int = 0, **strengths) -> Augmentation:
    """The augmentation `name` for images of this shape."""
    config = AugmentConfig(operations=(name,), **strengths)
    return draw_augmentation(config, batch=shape[0], height=shape[2], width=shape[3], generator=seeded(seed))


def column(augmentation: Augmentation, name: str) -> list[float]:
    return augmentation.parameters[name].tolist()


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
    for row in range(image.shape[1]):
        for col in range(image.shape[2]):
            if top <= row < bottom and left <= col < right:
                image[:, row, col] = 0.0
    return image


def reference_flip(image: Tensor, *, flipped: bool) -> Tensor:
    return image.flip(-1) if flipped else image


def reference_affine(image: Tensor, matrix: list[list[float]]) -> Tensor:
    theta = torch.tensor([matrix], dtype=image.dtype)
    grid = F.affine_grid(theta, [1, *image.shape], align_corners=True)
    return F.grid_sample(image[None], grid, padding_mode="zeros", align_corners=True)[0]


def reference_scale(image: Tensor, *, horizontal: float, vertical: float) -> Tensor:
    return reference_affine(image, [[horizontal, 0.0, 0.0], [0.0, vertical, 0.0]])


def reference_rotate(image: Tensor, *, angle: float) -> Tensor:
    cosine, sine = math.cos(angle), math.sin(angle)
    return reference_affine(image, [[cosine, -sine, 0.0], [sine, cosine, 0.0]])


REFERENCES = {
    "color": reference_color,
    "crop": reference_crop,
    "cutout": reference_cutout,
    "flip": reference_flip,
    "scale": reference_scale,
    "rotate": reference_rotate,
}


def image_by_image(augmentation: Augmentation, images: Tensor) -> Tensor:
    """What the references make of a batch."""
    reference = REFERENCES[augmentation.operation]
    rows = [
        reference(image, **{name: values[index].item() for name, values in augmentation.parameters.items()})
        for index, image in enumerate(images)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_reference(name, shape):
    images = noise(*shape)
    for seed in range(5):
        augmentation = drawn(name, shape, seed=seed)
        torch.testing.assert_close(
            augmentation(images), image_by_image(augmentation, images), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("name", ["crop", "cutout", "scale", "rotate"])
def test_agrees_with_the_reference_when_it_is_strong(name):
    strengths = {"crop": 1.0, "cutout": 0.9, "scale": 4.0, "rotate": 180.0}
    images = noise(20, 2, 6, 6)
    augmentation = drawn(name, images.shape, **{name: strengths[name]})
    torch.testing.assert_close(
        augmentation(images), image_by_image(augmentation, images), rtol=1e-10, atol=1e-10
    )


def test_cutout_covers_what_dsas_clamped_indices_cover():
    # DSA zeroes the positions clamp(i + centre - side // 2), i = 0 .. side - 1, of each axis.
    length, side = 7, 4
    images = torch.ones(200, 1, length, length)
    cut = drawn("cutout", images.shape)
    top = cut.parameters["top"]
    assert set(top.tolist()) == set(range(-(side // 2), length - side // 2 + 1))
    for image, first_row, first_column in zip(cut(images), top, cut.parameters["left"], strict=True):
        rows = {min(max(int(first_row) + step, 0), length - 1) for step in range(side)}
        columns = {min(max(int(first_column) + step, 0), length - 1) for step in range(side)}
        expected = torch.ones(length, length)
        expected[torch.tensor(sorted(rows))[:, None], torch.tensor(sorted(columns))] = 0.0
        assert torch.equal(image[0], expected)


# Cases with a known answer


@pytest.mark.parametrize(
    ("name", "strengths"),
    [
        ("crop", {"crop": 0.0}),
        ("cutout", {"cutout": 0.0}),
        ("flip", {"flip": 0.0}),
        ("scale", {"scale": 1.0}),
        ("rotate", {"rotate": 0.0}),
    ],
)
def test_no_strength_changes_nothing(name, strengths):
    images = noise(3, 3, 11, 11)
    torch.testing.assert_close(drawn(name, images.shape, **strengths)(images), images, rtol=1e-12, atol=1e-12)


def test_a_quarter_turn():
    images = noise(2, 3, 8, 8)
    turn = Augmentation("rotate", {"angle": torch.full((2,), math.pi / 2, dtype=torch.float64)}, 2, 8, 8)
    torch.testing.assert_close(turn(images), images.rot90(1, (2, 3)), rtol=1e-12, atol=1e-12)


def test_a_flip_for_certain():
    images = noise(2, 3, 8, 8)
    assert torch.equal(drawn("flip", images.shape, flip=1.0)(images), images.flip(3))


def test_saturation_leaves_grey_images_as_they_are():
    images = noise(4, 1, 8, 8)
    augmentation = drawn("color", images.shape, brightness=0.0)
    level = images.mean(dim=(1, 2, 3), keepdim=True)
    contrast = augmentation.parameters["contrast"].view(-1, 1, 1, 1)
    torch.testing.assert_close(augmentation(images), (images - level) * contrast + level)


# What is drawn


def test_parameters_stay_in_their_ranges_and_fill_them():
    shape = (2000, 3, 32, 28)
    ranges = {
        "color": {"brightness": (-0.5, 0.5), "saturation": (0.0, 2.0), "contrast": (0.5, 1.5)},
        "scale": {"horizontal": (1 / 1.2, 1.2), "vertical": (1 / 1.2, 1.2)},
        "rotate": {"angle": (-math.radians(15), math.radians(15))},
    }
    for operation, bounds in ranges.items():
        augmentation = drawn(operation, shape)
        for name, (low, high) in bounds.items():
            values, margin = augmentation.parameters[name], 0.01 * (high - low)
            assert values.shape == (2000,)
            assert values.dtype == torch.float64
            assert low <= values.min() < low + margin
            assert high - margin < values.max() <= high
            assert abs(values.mean() - (low + high) / 2) < 3 * margin


def test_whole_parameters_take_every_value_of_their_ranges():
    # 28 px: a shift of up to 3.5, rounded to 4; a hole of 14 px whose centre is in 0 .. 28.
    crop = drawn("crop", (2000, 3, 32, 28))
    assert set(column(crop, "row_shift")) == set(range(-4, 5))
    assert set(column(crop, "column_shift")) == set(range(-4, 5))
    cutout = drawn("cutout", (2000, 3, 32, 28))
    assert set(column(cutout, "top")) == set(range(-8, 25))
    assert set(column(cutout, "left")) == set(range(-7, 22))
    assert (cutout.parameters["bottom"] - cutout.parameters["top"] == 16).all()
    assert (cutout.parameters["right"] - cutout.parameters["left"] == 14).all()
    flipped = drawn("flip", (2000, 3, 32, 28)).parameters["flipped"]
    assert flipped.dtype == torch.bool
    assert abs(flipped.double().mean() - 0.5) < 0.05


def test_an_odd_hole_is_centred_on_a_pixel():
    # 10 px: a hole of 5 px whose centre is in 0 .. 9; an even one has its centre between pixels, in 0 .. 10.
    assert set(column(drawn("cutout", (500, 1, 10, 10)), "top")) == set(range(-2, 8))
    assert set(column(drawn("cutout", (500, 1, 10, 10), cutout=0.4), "top")) == set(range(-2, 9))


def test_crop_shifts_are_rounded_half_up():
    # 20 / 8 = 2.5, which Python's round() would make 2.
    crop = drawn("crop", (500, 1, 20, 20))
    assert set(column(crop, "row_shift")) == set(range(-3, 4))


def test_every_operation_is_drawn_one_at_a_time():
    generator = seeded()
    draws = [
        draw_augmentation(AugmentConfig(), batch=2, height=8, width=8, generator=generator)
        for _ in range(1200)
    ]
    counts = Counter(augmentation.operation for augmentation in draws)
    assert set(counts) == set(OPERATIONS)
    assert all(abs(number - 200) < 60 for number in counts.values())


def test_only_the_operations_asked_for_are_drawn():
    generator, config = seeded(), AugmentConfig(operations=("flip", "crop"))
    draws = [draw_augmentation(config, batch=2, height=8, width=8, generator=generator) for _ in range(50)]
    assert {augmentation.operation for augmentation in draws} == {"flip", "crop"}


def test_the_generators_state_decides():
    first, second, third = (
        draw_augmentation(AugmentConfig(), batch=4, height=8, width=8, generator=seeded(seed))
        for seed in (4, 4, 5)
    )
    assert first.operation == second.operation
    for name, values in first.parameters.items():
        assert torch.equal(values, second.parameters[name])
    assert first.operation != third.operation or any(
        not torch.equal(values, third.parameters[name]) for name, values in first.parameters.items()
    )


def test_the_global_generator_is_not_used():
    before = torch.get_rng_state()
    for name in NAMES:
        drawn(name, (2, 3, 8, 8))(noise(2, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_operations_change_nothing_and_draw_nothing():
    generator, images = seeded(), noise(2, 3, 8, 8)
    before = generator.get_state()
    augmentation = draw_augmentation(
        AugmentConfig(operations=()), batch=2, height=8, width=8, generator=generator
    )
    assert augmentation.operation == "identity"
    assert torch.equal(augmentation(images), images)
    assert torch.equal(generator.get_state(), before)


# How it is applied


@pytest.mark.parametrize("name", NAMES)
def test_the_same_result_again_and_the_images_untouched(name):
    images = noise(4, 3, 8, 8)
    before, augmentation = images.clone(), drawn(name, images.shape)
    assert torch.equal(augmentation(images), augmentation(images))
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", NAMES)
def test_siamese(name):
    # Two batches share the parameters row by row: each row is treated as if it were alone.
    first, second = noise(4, 3, 8, 8, seed=1), noise(4, 3, 8, 8, seed=2)
    augmentation = drawn(name, first.shape)
    assert not torch.equal(augmentation(first), first)
    for images in (first, second):
        augmented = augmentation(images)
        for row in range(4):
            own = {key: values[row : row + 1] for key, values in augmentation.parameters.items()}
            alone = Augmentation(name, own, 1, 8, 8)(images[row : row + 1])
            torch.testing.assert_close(augmented[row : row + 1], alone, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_drawn_for_one_image_it_treats_all_alike(name):
    images = noise(5, 3, 8, 8)
    augmentation = drawn(name, (1, 3, 8, 8), seed=2)
    expected = torch.cat([augmentation(image[None]) for image in images])
    torch.testing.assert_close(augmentation(images), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_every_dtype_and_device_gets_the_same_augmentation(name, device):
    exact = noise(4, 3, 8, 8)
    augmentation = drawn(name, exact.shape)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        result = augmentation(exact.to(device, dtype))
        assert result.dtype == dtype
        assert result.device.type == device
        assert result.shape == exact.shape
        torch.testing.assert_close(result.double().cpu(), augmentation(exact), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_derivatives(name, channels):
    images = noise(2, channels, 4, 4).requires_grad_()
    augmentation = drawn(name, images.shape, crop=0.3, seed=3)
    assert torch.autograd.gradcheck(augmentation, images)
    assert torch.autograd.gradgradcheck(augmentation, images)
    # Once more where the second derivative is not zero.
    assert torch.autograd.gradgradcheck(lambda batch: augmentation(batch) ** 3, images)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_transpose(name):
    # <A'(x) v, u> = <v, A'(x)^T u>, at a size at which gradcheck would be slow.
    images, direction, weights = (noise(3, 3, 16, 16, seed=seed) for seed in (1, 2, 3))
    augmentation = drawn(name, images.shape)
    linear_part = augmentation(images + direction) - augmentation(images)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad((augmentation(images) * weights).sum(), images)
    torch.testing.assert_close((linear_part * weights).sum(), (gradient * direction).sum())


# What is refused


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"operations": ("colour",)},
            "unknown augmentation operation 'colour' (did you mean 'color'?): "
            "choose one of color, crop, cutout, flip, rotate, scale.",
        ),
        (
            {"operations": "color"},
            "operations is 'color'; it must be a list of names, "
            "such as color, crop, cutout, flip, scale, rotate.",
        ),
        (
            {"operations": ("flip", "flip")},
            "operations ('flip', 'flip') names one twice; give each name once.",
        ),
        ({"flip": 1.5}, "flip is 1.5; it must be a finite number of at least 0 and at most 1."),
        ({"crop": -0.1}, "crop is -0.1; it must be a finite number of at least 0 and at most 1."),
        ({"cutout": 2}, "cutout is 2; it must be a finite number of at least 0 and at most 1."),
        ({"scale": 0.9}, "scale is 0.9; it must be a finite number of at least 1."),
        ({"rotate": 200}, "rotate is 200; it must be a finite number of at least 0 and at most 180."),
        ({"brightness": -1}, "brightness is -1; it must be a finite number of at least 0."),
        ({"saturation": math.nan}, "saturation is nan; it must be a finite number of at least 0."),
        ({"contrast": "0.5"}, "contrast is '0.5'; it must be a finite number of at least 0."),
    ],
)
def test_bad_configurations_are_refused(fields, sentence):
    with pytest.raises(InputError) as refusal:
        AugmentConfig(**fields)
    assert str(refusal.value) == sentence


def test_a_list_of_operations_becomes_a_tuple():
    assert AugmentConfig(operations=["flip", "crop"]).operations == ("flip", "crop")
    assert hash(AugmentConfig(operations=["flip"])) == hash(AugmentConfig(operations=("flip",)))


def test_images_of_another_size_are_refused():
    augmentation = drawn("crop", (4, 3, 8, 8))
    sentence = r"have shape \({}\); this augmentation was drawn for \(4, channels, 8, 8\)"
    for shape in ((3, 3, 8, 8), (4, 3, 8, 9), (4, 8, 8)):
        with pytest.raises(InputError, match=sentence.format(", ".join(map(str, shape)))):
            augmentation(torch.zeros(shape))


def test_bad_draws_are_refused():
    with pytest.raises(InputError, match="batch is 0; it must be a whole number of at least 1"):
        draw_augmentation(AugmentConfig(), batch=0, height=8, width=8, generator=seeded())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_generator_on_a_gpu_is_refused():
    with pytest.raises(InputError, match="generator is on cuda; give it a CPU generator"):
        draw_augmentation(AugmentConfig(), batch=2, height=8, width=8, generator=torch.Generator("cuda"))
