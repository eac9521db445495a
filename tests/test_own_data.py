"""From a folder of pictures to settings: sample pictures, sizes, splits of uneven classes, suggestions."""

import re
from dataclasses import replace

import pytest
import torch

from iadd_lab.data.sets import load_data
from iadd_lab.study.own_data import (
    class_table,
    folds_for,
    own_config,
    sample_pictures,
    sample_sources,
    suggest,
    suggest_size,
)
from tests.processes import complete
from tests.samples import assert_refused, counts, load, make_tree, noise, save, three


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return sample_pictures(tmp_path_factory.mktemp("pictures") / "samples")


@pytest.fixture
def data(pictures):
    return load_data(own_config(pictures), progress=False)


def test_sample_pictures_are_sixty_in_three_uneven_classes(pictures, data):
    found = {path.name: len(list(path.iterdir())) for path in pictures.iterdir()}
    assert found == {"eight": 30, "nine": 20, "three": 10}
    assert sum(map(len, three(data))) == 60
    assert (data.channels, data.size) == (1, 8)
    assert sample_pictures(pictures) == pictures  # what is there stays


def test_every_split_has_the_classes_in_their_proportions(data):
    for split in three(data):
        assert min(counts(split)) >= 1
    assert counts(data.test) == [6, 4, 2]
    assert counts(data.train) == sorted(counts(data.train), reverse=True)
    assert class_table(data).splitlines()[1].split() == ["eight", *(str(counts(s)[0]) for s in three(data))]


@pytest.mark.parametrize(("shape", "size"), [((8, 8), 8), ((30, 21), 16), ((100, 300), 32), ((3, 5), 8)])
def test_the_side_is_that_of_the_pictures_up_to_a_limit(tmp_path, shape, size):
    assert suggest_size(make_tree(tmp_path, count=2, shape=(*shape, 3))) == size


def test_a_folder_without_pictures_is_named_and_bad_ones_are_passed_over(tmp_path):
    assert_refused("has no pictures", suggest_size, tmp_path)
    save(tmp_path / "a.png", noise((16, 16, 3)))
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert suggest_size(tmp_path) == 16


def test_digits_in_four_ways_are_one_set_of_their_own_size(tmp_path):
    ways = sample_sources(tmp_path)
    loaded = {way: load_data(source, progress=False) for way, source in ways.items()}
    assert len(loaded) == 4
    assert {data.fingerprint for data in loaded.values()} == {loaded["arrays"].fingerprint}
    for way in ("npz", "table"):
        config = own_config(ways[way], label_column={"npz": "labels", "table": "label"}[way])
        assert (config.size, config.bad_images) == (8, "skip")
        assert load_data(config, progress=False).fingerprint == loaded[way].fingerprint
    assert_refused("'kind'", own_config, ways["table"], label_column="kind")


def test_suggestions_fit_the_size_of_the_data(data, toy_data):
    small, large = suggest(data), suggest(load("digits"))
    assert small.distillation.ipc == 1
    assert large.distillation.ipc == 10
    for chosen in (small, large, suggest(toy_data)):
        settings, teachers = chosen.distillation, chosen.teachers
        assert settings.max_start_epoch - 1 + settings.teacher_epochs <= teachers.epochs
        assert settings.augment == teachers.augment == chosen.evaluation.augment
    for count, teachers in ((43, small.teachers), (1213, large.teachers)):
        assert -(-count // teachers.batch) * teachers.epochs >= 150  # steps


def test_more_images_per_class_than_the_smallest_class_has_are_refused(data):
    smallest = int(torch.bincount(data.train.labels).min())
    assert suggest(data, ipc=smallest).distillation.ipc == smallest
    sentence = f"ipc is {smallest + 1}, but class 'three' has only {smallest}"
    assert_refused(sentence, suggest, data, ipc=smallest + 1)


def test_the_command_line_suggests_the_same_and_remembers_the_folder(pictures, data, tmp_path, monkeypatch):
    monkeypatch.delenv("IADD_DATA", raising=False)
    places = {"pictures": pictures, "at": tmp_path}
    said = complete(
        "teach --data image_folder --data-root {pictures} --suggest --teachers 1 --epochs 4 --out {at}/t",
        **places,
    )
    assert str(replace(suggest(data, mirror=False).teachers, epochs=4)) in said.stdout
    said = complete(
        "distill --teachers {at}/t --suggest --iterations 2 --max-start-epoch 2 --out {at}/d", **places
    )
    own = suggest(data, mirror=False).distillation
    assert str(replace(own, iterations=2, max_start_epoch=2)) in said.stdout
    said = complete("evaluate {at}/d --suggest --epochs 2 --networks 2", **places).stdout
    assert "epochs=2" in said
    assert re.search(
        r"Note: learned: balanced accuracy .* on 12 test images (cannot be told from|is below)", said
    )
    assert "Note: 12 test images are few; `teach --test-fold 1` to 4 keeps others aside" in said
    said = complete("export {at}/d --to png16 --out {at}/out", **places).stdout
    assert "Trained on these files, read back: learned: " in said


def test_folds_are_as_many_as_bring_a_hundred_test_images(data):
    assert (len(data.test), folds_for(data)) == (12, 5)
    assert folds_for(load("digits")) == 1
    assert folds_for(replace(data, folds=1)) == 1


def test_mirroring_is_left_out_where_it_changes_the_meaning(data):
    assert "flip" in suggest(data).distillation.augment.operations
    assert "flip" not in suggest(data, mirror=False).distillation.augment.operations
