"""The cache of decoded images: used, renewed with the files, healed, and never the cause of a failure."""

import os

import pytest
import safetensors.torch
import torch

from iadd_lab.data import decoded
from iadd_lab.data.sets import DataConfig, load_data
from iadd_lab.store.artefacts import load_artefact, save_artefact
from tests.samples import assert_refused, load, make_tree, three


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """This test's own folder of decoded images."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("IADD_CACHE", str(folder))
    return folder


@pytest.fixture
def decodes(monkeypatch):
    """Paths of the files that were decoded."""
    seen = []
    decode = decoded.decode_file
    monkeypatch.setattr(decoded, "decode_file", lambda path, *rest: seen.append(path) or decode(path, *rest))
    return seen


def test_the_cache_is_used_and_equal(tmp_path, cache, decodes):
    root = make_tree(tmp_path / "mine")
    first, second = load("image_folder", root), load("image_folder", root)
    load("image_folder", root, seed=7, validation_fraction=0.3)
    assert len(decodes) == 12
    assert first.fingerprint == second.fingerprint
    assert len(list(cache.iterdir())) == 1  # nothing half-written beside it
    load("image_folder", root, size=8)
    load("image_folder", root, channels=1)
    assert len(decodes) == 36
    path = root / "cat" / "000.png"  # a changed file
    times = path.stat()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    load("image_folder", root)
    assert len(decodes) == 48


def under_another_key(path):
    """Sound images, but others."""
    tensors = load_artefact(path, kind=decoded.KIND).tensors
    inverted = {part: 255 - images for part, images in tensors.items()}
    save_artefact(path, kind=decoded.KIND, tensors=inverted, metadata={"key": "another"})


HARMS = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "foreign": lambda path: path.write_bytes(safetensors.torch.save({"weights": torch.zeros(3)})),
    "holds other images": under_another_key,
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_cache_heals(tmp_path, cache, decodes, caplog, harm):
    root = make_tree(tmp_path / "mine")
    first = load("image_folder", root)
    (path,) = cache.iterdir()
    HARMS[harm](path)
    for _ in range(2):
        assert load("image_folder", root).fingerprint == first.fingerprint
        assert len(decodes) == 24
    assert (harm in caplog.text) == (harm == "holds other images")


def test_loaded_images_and_the_cache_leave_one_another_alone(tmp_path, cache, decodes):
    for part in ("train", "test"):
        make_tree(tmp_path / "mine" / part)
    load("image_folder", tmp_path / "mine")
    data, changed = (load("image_folder", tmp_path / "mine") for _ in range(2))
    before = [split.images.clone() for split in three(data)]
    changed.test.images.zero_()
    assert load("image_folder", tmp_path / "mine").fingerprint == data.fingerprint
    assert len(decodes) == 24
    (path,) = cache.iterdir()
    zeros = {part: torch.zeros(12, 3, 32, 32, dtype=torch.uint8) for part in ("train", "test")}
    save_artefact(path, kind=decoded.KIND, tensors=zeros, metadata={})
    path.unlink()
    assert all(torch.equal(split.images, images) for split, images in zip(three(data), before, strict=True))


def test_a_cache_that_cannot_be_written_and_a_full_disk_are_no_errors(tmp_path, cache, decodes, caplog):
    root = make_tree(tmp_path / "mine")
    cache.write_text("a file where the folder should be")
    first, second = load("image_folder", root), load("image_folder", root)
    assert first.fingerprint == second.fingerprint
    assert len(decodes) == 24
    assert "can't be kept" in caplog.text
    cache.unlink()
    caplog.clear()
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        assert load("image_folder", root).fingerprint == first.fingerprint
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "can't be kept" in caplog.text
    assert list(cache.iterdir()) == []


def test_what_images_need_is_said_before_one_is_decoded_and_refused_where_there_is_less(
    tmp_path, cache, decodes, capsys, monkeypatch
):
    root = make_tree(tmp_path / "mine")
    load_data(DataConfig("image_folder", size=8), root=root)
    said = "12 images of 3 × 8 × 8 bytes need 0.00 GB of memory"
    assert said in capsys.readouterr().err
    monkeypatch.setattr(os, "sysconf", lambda _: 48)  # 2,304 bytes
    (root / "cat" / "000.png").unlink()
    before = len(decodes)
    assert_refused(
        f"{said.replace('12', '11')}, but .* 0.00 GB: .* smaller", load, "image_folder", root, size=8
    )
    assert len(decodes) == before
