"""Artefacts come out whole or not at all; configurations are told by what they say."""

import dataclasses
import errno
import json
import os
import struct
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors import SafetensorError

from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.sets import DataConfig
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.matching import Learned, Matching, Pruned
from iadd_lab.errors import InputError
from iadd_lab.store import artefacts as store
from iadd_lab.store import runs
from iadd_lab.store.artefacts import (
    atomic_path,
    load_artefact,
    open_artefact,
    read_checksum,
    read_metadata,
    save_artefact,
    save_text,
    tensor_fingerprint,
)
from iadd_lab.store.configs import describe, fingerprint, restore, run_folder
from iadd_lab.store.locks import locked
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.teachers import TeacherConfig

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b/c": torch.tensor([True, False, True]),
    "none": torch.zeros(0, 3),
    "scalar": torch.tensor(5),
}
METADATA = {"x": 1, "y": [1, 2.5, None, "é"]}


def test_a_file_says_what_it_was_computed_with_and_is_called_the_same_elsewhere(tmp_path, monkeypatch):
    found, sums = [], []
    for held in ("COMPATIBLE", "AVX2"):
        monkeypatch.setenv("MKL_CBWR", held)
        path = save_artefact(tmp_path / held, kind="thing", tensors=TENSORS, metadata=METADATA)
        found.append(load_artefact(path, kind="thing"))
        sums.append(read_checksum(path, kind="thing"))
        assert found[-1].computed_with.endswith(f"MKL_CBWR={held}")
        assert torch.backends.cpu.get_cpu_capability() in found[-1].computed_with
        assert f"PyTorch {torch.__version__}" in found[-1].computed_with
    assert sums[0] == sums[1]
    assert found[0].metadata == found[1].metadata == METADATA


# Configurations ------------------------------------------------------------------------------------------


def test_a_fingerprint_ignores_the_order_of_keys_and_keeps_that_of_parts():
    assert fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
    assert fingerprint(1, 2) != fingerprint(2, 1)
    assert fingerprint(1, 2) != fingerprint([1, 2])
    assert fingerprint((1, 2)) == fingerprint([1, 2])
    # The same in all releases: stored runs are found again by them.
    assert fingerprint("teachers", 3, 0.25, {"x": None}) == "9df5f41c42e2788f"


def test_a_run_folder_is_told_by_its_parts(tmp_path):
    parts = ((Pruned(0.25), 3), (Pruned(0.5), 3), (Pruned(0.25), 4))
    folder, *others = (run_folder(tmp_path, "toy", *each) for each in parts)
    assert folder == run_folder(str(tmp_path), "toy", *parts[0])
    assert folder.parent == tmp_path
    assert len({folder, *others}) == 3


def test_the_stored_kind_names_the_subclass_and_left_out_fields_take_their_defaults():
    for base in (Matching, Pruned):
        stored = {"kind": "Pruned", "measure": "difference"}
        assert restore(base, stored) == Pruned(measure="difference")


FOREIGN = r"^a stored DistillConfig was expected, but .* was found\.$"
MISFIT = describe(DistillConfig()) | {"matching": describe(NetworkConfig())}
SHARP = describe(DistillConfig()) | {"matching": describe(Learned()) | {"sharpness": 2}}


NONE = ({"kind": "Uniform"}, {"ipc": 1}, {}, None, "DistillConfig", ["kind"], {"kind": ["DistillConfig"]})


@pytest.mark.parametrize(
    ("kind", "stored", "sentence"),
    [
        *((DistillConfig, stored, FOREIGN) for stored in NONE),
        (DistillConfig, MISFIT, r"^a stored Matching was expected"),
        (DistillConfig, SHARP, r"^Learned has no field sharpness: it was written by another version\.$"),
        (Pruned, {"kind": "Pruned", "fraction": 2}, r"^fraction is 2"),
        (DataConfig, {"kind": "DataConfig"}, "DataConfig"),
        (AugmentConfig, {"kind": "AugmentConfig", "operations": 5}, "AugmentConfig"),
    ],
)
def test_what_is_no_description_of_it_is_refused(kind, stored, sentence):
    with pytest.raises(InputError, match=sentence):
        restore(kind, stored)


@dataclasses.dataclass(frozen=True)
class _Rates:
    rates: tuple[float, ...] = (1.0, 0.5)


def test_equal_configs_are_described_alike():
    assert fingerprint(TeacherConfig(rate=1)) == fingerprint(TeacherConfig(rate=1.0))
    assert fingerprint(Learned(rate=0.0)) == fingerprint(Learned(rate=-0.0))
    assert fingerprint({"a": Learned()}) == fingerprint({"a": describe(Learned())})
    assert restore(_Rates, describe(_Rates())) == _Rates()
    assert fingerprint(_Rates((1, 0))) == fingerprint(_Rates((1.0, -0.0))) != fingerprint(_Rates((1.0, 0.5)))


# Round trips ---------------------------------------------------------------------------------------------


def test_an_artefact_knows_its_path_and_kind_and_yields_single_tensors(tmp_path):
    path = tmp_path / "new" / "folder" / "a.safetensors"
    assert save_artefact(str(path), kind="toy", tensors=TENSORS, metadata=METADATA) == path
    found = load_artefact(str(path), kind="toy")
    assert (found.path, found.kind, found.metadata) == (path, "toy", METADATA)
    with open_artefact(path) as file:
        assert set(file.keys()) == set(TENSORS)
        assert torch.equal(file.get_slice("a")[1], TENSORS["a"][1])


def test_views_are_stored_apart_and_live_tensors_stay_live(tmp_path):
    live = torch.arange(6.0).view(2, 3).requires_grad_()
    tensors = {"whole": live, "row": live[1], "transposed": live.T, "again": live}
    path = save_artefact(tmp_path / "a.safetensors", kind="toy", tensors=tensors, metadata={})
    assert live.requires_grad
    with torch.no_grad():
        live.fill_(-1)
    found = load_artefact(path, kind="toy").tensors
    expected = torch.arange(6.0).view(2, 3)
    found["whole"].fill_(-2)
    for name, part in {"row": expected[1], "transposed": expected.T, "again": expected}.items():
        assert torch.equal(found[name], part)
    save_artefact(path, kind="toy", tensors={"whole": torch.zeros(2, 3)}, metadata={})
    assert torch.equal(found["again"], expected)  # what was loaded does not touch the file, nor it that
    assert torch.equal(load_artefact(path, kind="toy").tensors["whole"], torch.zeros(2, 3))


def test_a_tensor_fingerprint_sees_names_values_dtypes_and_shapes_but_not_order_and_strides():
    two = torch.tensor([1.0, 2.0])
    others = [{"a": other} for other in (two, two + 1, two.double(), two[None], two.view(torch.int32))]
    assert len({tensor_fingerprint(tensors) for tensors in (*others, {"b": two}, {})}) == 7
    one = torch.arange(6.0).view(2, 3)
    rearranged = {"b": two, "a": one.T.contiguous().T}
    assert tensor_fingerprint(rearranged) == tensor_fingerprint({"a": one, "b": two})


# Atomic writing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_alone_or_nothing(error, tmp_path):
    path = tmp_path / "a.txt"
    for old in ([], [path]):
        with pytest.raises(error), atomic_path(path) as temporary:  # noqa: PT012
            temporary.write_text("half of the ne")
            raise error
        assert list(tmp_path.iterdir()) == old
        save_text(path, "old")
        with atomic_path(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
            assert temporary.parent == path.parent  # a rename within one file system is atomic
        assert path.read_text() == "new"
        assert list(tmp_path.iterdir()) == [path]


def test_what_can_not_be_written_leaves_the_old_artefact_whole(tmp_path, monkeypatch):
    path = save_artefact(tmp_path / "a.safetensors", kind="toy", tensors=TENSORS, metadata={"run": 1})
    with pytest.raises(TypeError):
        save_artefact(path, kind="toy", tensors=TENSORS, metadata={"x": object()})

    def half(tensors, filename, metadata):
        Path(filename).write_bytes(path.read_bytes()[:100])
        raise SafetensorError("I/O error: (os error 28)")

    monkeypatch.setattr(store, "save_file", half)
    told = r"a\.safetensors could not be written \(No space left on device\): make room on its disk, then run"
    with pytest.raises(OSError, match=told):
        save_artefact(path, kind="toy", tensors=TENSORS, metadata={"run": 2})
    assert load_artefact(path, kind="toy").metadata == {"run": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_files_get_the_mode_of_any_new_file_and_need_nothing_that_mounts_refuse(tmp_path, monkeypatch):
    """Neither chmod nor, where there is none, fsync; a disk that fails to sync is an error all the same."""

    def refuse(*_, number=errno.EOPNOTSUPP, **__):
        raise OSError(number, os.strerror(number))

    for mask in (0o077, 0o002, 0o027):
        before = os.umask(mask)
        try:
            path = save_artefact(tmp_path / f"{mask}", kind="toy", tensors=TENSORS, metadata={})
            with locked(tmp_path / ".lock", "x"):
                made = (path, tmp_path / ".lock")
                assert {each.stat().st_mode & 0o777 for each in made} == {0o666 & ~mask}
        finally:
            os.umask(before)
    for name in ("chmod", "fchmod", "fsync"):
        monkeypatch.setattr(os, name, refuse)
    path = save_artefact(tmp_path / "a.safetensors", kind="toy", tensors=TENSORS, metadata=METADATA)
    assert load_artefact(path, kind="toy").metadata == METADATA
    monkeypatch.setattr(os, "fsync", partial(refuse, number=errno.EIO))
    with pytest.raises(OSError, match=r"could not be written \(Input/output error\)"):
        save_text(path, "new")


# Damaged and foreign files -------------------------------------------------------------------------------


def write_safetensors(path, header, tensors=b""):
    content = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + tensors)


def assert_refused(path, *, kind="toy", match=""):
    """Both readers raise `InputError`, in one sentence that names the file."""
    for read in (load_artefact, read_metadata):
        with pytest.raises(InputError, match=match) as caught:
            read(path, kind=kind)
        sentence = str(caught.value)
        assert sentence.startswith(str(path))
        assert sentence.endswith(".")
        assert "\n" not in sentence


def test_every_bit_and_every_length_counts(tmp_path):
    """Readers of all notice every harm, readers of the header alone what is in the header or cut off."""
    path = save_artefact(tmp_path / "a", kind="toy", tensors={"t": torch.ones(2)}, metadata={"x": 50})
    whole = path.read_bytes()
    assert load_artefact(path, kind="toy").metadata == read_metadata(path, kind="toy") == {"x": 50}
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert_refused(path, match="not a whole safetensors file")
    others = (b"\0" * 8, b"not a safetensors file at all", b"PK\x03\x04" + b"\xff" * 99)
    for content in (whole + b"\0", *others):
        path.write_bytes(content)
        assert_refused(path, match="not a whole safetensors file")
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            with pytest.raises(InputError, match=str(path)):
                load_artefact(path, kind="toy")
    foreign, header = "was not written by iadd-lab", r"is damaged \(its header|was not written by iadd-lab"
    replaced = [
        (key, key.upper(), foreign) for key in (b"iadd_lab", b"content", b"sha256", b"format", b"kind")
    ]
    for old, new, sentence in (*replaced, (b"metadata\\", b"metadatb\\", header), (b": 50", b": 10", header)):
        assert whole.count(old) == 1
        path.write_bytes(whole.replace(old, new))
        assert_refused(path, match=sentence)


FORMAT = store.FORMAT_VERSION
STRANGE = ['"\\ud800"', "[" * 100_000, f'{{"format": {FORMAT}}}', "NaN", "[]", None]


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"format": "pt"},
        *({"iadd_lab": text} for text in ("", "{", "[1]", "3", json.dumps({"sha256": "0"}), *STRANGE[:4])),
        *({"iadd_lab": json.dumps({"content": text, "sha256": "0"})} for text in STRANGE),
        *({"iadd_lab": json.dumps({"content": text, "text_digest": "", "sha256": ""})} for text in STRANGE),
    ],
    ids=lambda header: str(header)[:60],
)
def test_a_safetensors_file_of_others_is_refused(header, tmp_path):
    write_safetensors(tmp_path / "a", {"__metadata__": header})
    sentence = r"was not written by iadd-lab: expected a toy file of its own\.$"
    assert_refused(tmp_path / "a", match=sentence)


def test_a_newer_format_is_refused(tmp_path):
    content = json.dumps({"format": FORMAT + 1})
    header = json.dumps({"content": content})
    write_safetensors(tmp_path / "a", {"__metadata__": {"iadd_lab": header}})
    told = f"has format version {FORMAT + 1}, but this iadd-lab reads version {FORMAT}: make"
    assert_refused(tmp_path / "a", match=told)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0", "C64", "F99"])
def test_tensors_of_types_that_we_never_write_are_refused(tmp_path, dtype):
    bits = {"F4": 4, "F6_E2M3": 6, "C64": 64}.get(dtype, 8)
    entry = {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}
    path = save_artefact(tmp_path / "a", kind="toy", tensors={}, metadata={})
    with open_artefact(path) as file:
        header = {"__metadata__": file.metadata(), "t": entry}
    write_safetensors(path, header, bytes(bits))
    with pytest.raises(InputError, match=str(path)):
        load_artefact(path, kind="toy")


def test_what_is_no_file_of_the_kind_or_cannot_be_read_is_refused(tmp_path, monkeypatch):
    path = save_artefact(tmp_path / "run" / "distilled.safetensors", kind="toy", tensors={}, metadata={})
    assert_refused(path, kind="trajectory", match="toy.* but .*trajectory.* was expected")
    for missing in (tmp_path / "b.safetensors", path / "b", tmp_path):
        assert_refused(missing, match="is not there")

    raised = {
        PermissionError(errno.EACCES, "Permission denied"): r"can't be read \(Permission denied\): see to it",
        SafetensorError(
            "I/O error: (os error 24)"
        ): r"can't be read \(Too many open files\): raise the limit",
    }
    for error, told in raised.items():
        monkeypatch.setattr(store, "safe_open", Mock(side_effect=error))
        assert_refused(path, match=told)
        assert runs.stored(tmp_path)[0].state == "foreign"  # which nobody deletes
