"""Any number of channels: read, taught, distilled, evaluated, shown, exported and read again."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from iadd_lab.data.augment import AugmentConfig, draw_augmentation
from iadd_lab.data.mtt_format import import_mtt
from iadd_lab.data.pixels import MoreBits, channels_of, decode_file, resize_arrays
from iadd_lab.data.preprocess import PREPROCESSES, fit_preprocess
from iadd_lab.data.sets import DataConfig, load_data
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill
from iadd_lab.evaluation.export import export_set, load, read_pictures, reread
from iadd_lab.evaluation.protocol import EvaluateConfig, evaluate
from iadd_lab.plots.exploration import exploration
from iadd_lab.plots.images import before_after, image_grid
from iadd_lab.plots.tiles import as_bytes, shown_channels
from iadd_lab.study.views import View
from iadd_lab.training.networks import NetworkConfig, build_network
from iadd_lab.training.teachers import TeacherConfig, train_teachers
from tests.samples import assert_refused, noise

QUIET = {"progress": False, "device": "cpu"}
NETWORK = NetworkConfig(width=4, depth=2)


@pytest.fixture(scope="module")
def five():
    """Zeros and ones of the digits in five channels: as they are, upside down, mirrored, dark, and noise."""
    digits = load_data(DataConfig("digits"), progress=False).train
    rows = digits.labels < 2
    images, labels = digits.images[rows, 0].numpy(), digits.labels[rows].numpy()
    views = [images, images[:, ::-1], images[:, :, ::-1], images // 2, noise(images.shape)]
    return np.stack(views, axis=1), labels  # (count, 5, 8, 8)


@pytest.mark.parametrize("kind", sorted(PREPROCESSES))
def test_five_channels_from_a_file_to_an_export_and_back(kind, five, tmp_path):
    np.savez(tmp_path / "five.npz", images=five[0].transpose(0, 2, 3, 1), labels=five[1])
    data = load_data(tmp_path / "five.npz", progress=False)
    assert tuple(data.train.images.shape[1:]) == (5, 8, 8)
    config = TeacherConfig(network=NETWORK, preprocess=kind, epochs=3, batch=64, rate=0.05)
    teachers = train_teachers(data, config, tmp_path / "teachers", count=1, **QUIET)
    assert "color" not in teachers.config.augment.operations
    options = {
        "ipc": 4,
        "iterations": 3,
        "student_steps": 2,
        "teacher_epochs": 1,
        "max_start_epoch": 2,
        "alpha": 0.02,
    }
    result = distill(data, teachers, DistillConfig(**options), folder=tmp_path / "run", **QUIET)
    assert result.images.shape == (8, 5, 8, 8)
    assert result.history.loss[-1] < 2
    found = evaluate(result.distilled, data, EvaluateConfig(networks=1, epochs=5, network=NETWORK), **QUIET)
    assert found.confusion.sum() == len(data.test)
    training = load(tmp_path / "run")
    expected = result.distilled.preprocess.apply(data.test.images[:2])
    assert torch.equal(training.transform(data.test.images[:2]), expected)
    assert_refused("of 5 channels", training.transform, torch.zeros(3, 8, 8))
    for to in ("mtt", "safetensors", "png16", "image_folder"):
        export_set(tmp_path / "run", to, tmp_path / to, measure=False)
    assert torch.equal(reread(tmp_path / "mtt").images, result.images)
    imported = import_mtt(tmp_path / "mtt", data, preprocess=kind)
    assert torch.equal(imported.images, result.images)
    assert (reread(tmp_path / "png16").images - result.images).abs().max() < 1e-2
    pictures = load_data(tmp_path / "image_folder", progress=False)  # files as others read them
    shown = read_pictures(result.distilled, tmp_path / "image_folder")
    stored = (shown.preprocess.invert(shown.images) * 255).round().byte()
    assert {each.numpy().tobytes() for each in pictures.train.images} < {
        each.numpy().tobytes() for each in stored
    }
    said = "channels 1, 2, 3 as red, green, blue, of 5"
    drawn = image_grid(result.distilled.pictures(), result.labels, data.classes, title="Ours")
    assert drawn.get_suptitle() == f"Ours; {said}"
    assert before_after(result).get_suptitle() == said
    moment = exploration([View.of(result, title="five", data=data, teachers=teachers)])
    assert moment.axes[0].get_title() == f"five: iteration 3; {said}"


def test_pictures_show_one_or_three_channels_and_say_so():
    pictures = torch.rand(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    for channels, seen, said in (
        (1, [0] * 3, ""),
        (2, [0] * 3, "channel 1 as grey, of 2"),
        (3, [0, 1, 2], ""),
    ):
        assert torch.equal(as_bytes(pictures[:, :channels]), as_bytes(pictures[:, seen]))
        assert shown_channels(pictures[:, :channels]) == said
    assert torch.equal(as_bytes(pictures), as_bytes(pictures[:, :3]))
    assert shown_channels(pictures) == "channels 1, 2, 3 as red, green, blue, of 16"


def test_every_number_of_channels_up_to_16_gets_a_network_and_its_own_standardising():
    for channels in range(1, 17):
        images = torch.from_numpy(noise((40, channels, 8, 8), seed=channels))
        seen = fit_preprocess("standardise", images).prepare(images)
        assert seen.mean((0, 2, 3)).abs().max() < 1e-5
        network = build_network(NETWORK, channels=channels, size=8, classes=2, seed=0)
        assert network(seen).shape == (40, 2)
    for channels in (0, 17, True):
        refused = f"channels is {channels}; it must be a whole number of at least 1 and at most 16"
        options = {"channels": channels, "size": 8, "classes": 2, "seed": 0}
        assert_refused(refused, build_network, NETWORK, **options)
        assert_refused(refused, DataConfig, "digits", channels=channels)


def test_colour_on_five_channels_brightens_and_contrasts_but_mixes_none():
    config = AugmentConfig(operations=("color",), brightness=0.0, contrast=0.0)
    draw = {"batch": 3, "height": 4, "width": 4, "generator": torch.Generator().manual_seed(0)}
    images = torch.rand(3, 5, 4, 4, generator=torch.Generator().manual_seed(1))
    drawn = draw_augmentation(config, **draw)
    level = images.mean((1, 2, 3), keepdim=True)
    expected = (images - level) * drawn.parameters["contrast"].float()[:, None, None, None] + level
    assert (drawn(images) - expected).abs().max() < 1e-6


def test_channels_of_arrays_are_resized_one_by_one_and_never_made_up():
    images = noise((2, 12, 8, 5))
    found = resize_arrays(images, 6, 5)
    for channel in range(5):
        assert np.array_equal(found[:, channel], resize_arrays(images[..., channel], 6, 1)[:, 0])
    assert np.array_equal(resize_arrays(images[:, :8], 8, 5), images[:, :8].transpose(0, 3, 1, 2))
    for asked in (1, 3, 4):
        assert_refused(f"images have 5 channels, not {asked}", resize_arrays, images, 6, asked)


@pytest.fixture(params=["pages", "imagej", "samples", "planes"])
def tiff(request, tmp_path):
    """A way to store (height, width, channels) as a TIFF: with several pages or, by tifffile, samples."""

    def save(values, name="five.tif"):
        path, planes = tmp_path / name, np.moveaxis(values, -1, 0)
        if request.param in ("samples", "planes"):
            tifffile = pytest.importorskip("tifffile")
            options = {"photometric": "minisblack", "metadata": None}
            last = request.param == "samples"
            options["planarconfig"] = "contig" if last else "separate"
            tifffile.imwrite(path, values if last else planes, **options)
            return str(path)
        first, *others = map(Image.fromarray, planes)
        said = f"ImageJ=1.11a\nimages={len(planes)}\nchannels={len(planes)}\n"
        about = {"description": said} if request.param == "imagej" else {}
        first.save(path, save_all=True, append_images=others, **about)
        return str(path)

    save.says = request.param != "pages"
    return save


def test_tiffs_of_many_channels_are_read_with_8_and_16_bits(tiff):
    values = noise((8, 8, 5))
    path = tiff(values)
    assert channels_of(path) == (5 if tiff.says else 1)
    assert np.array_equal(decode_file(path, 8, 5), values.transpose(2, 0, 1))
    assert_refused("channels, not 6", decode_file, path, 8, 6)
    deep = tiff(values.astype(np.uint16) * 16, "deep.tif")
    assert np.array_equal(decode_file(deep, 8, 5, white=255 * 16), values.transpose(2, 0, 1))
    with pytest.raises(MoreBits, match=str(int(values.max()) * 16)):
        decode_file(deep, 8, 5, white=None)


def test_a_file_of_other_channels_is_named_and_so_is_what_would_read_it(tmp_path, monkeypatch):
    Image.fromarray(noise((8, 8, 3))).save(tmp_path / "colour.png")
    assert_refused("colour.png has 3 channels, not 5", decode_file, str(tmp_path / "colour.png"), 8, 5)
    bands = Image.fromarray(noise((8, 8, 4)))
    bands.save(tmp_path / "four.png")
    assert np.array_equal(decode_file(str(tmp_path / "four.png"), 8, 4), np.moveaxis(np.array(bands), 2, 0))
    (tmp_path / "unknown.tif").write_bytes(b"nothing")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert_refused("unknown.tif .*install tifffile", decode_file, str(tmp_path / "unknown.tif"), 8, 5)
