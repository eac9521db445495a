"""The whole way on real image data, at the smallest scale: it fits together for every kind of image."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.sets import DATASETS, DataConfig, load_data, locate
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.result import DistillResult
from iadd_lab.evaluation.protocol import EvaluateConfig, evaluate
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.teachers import TeacherConfig, train_teachers

CONFIGS = [
    DataConfig(name="cifar10", train_limit=200),
    DataConfig(name="fashion_mnist", train_limit=200),
    DataConfig(name="covid19", train_limit=60),
    DataConfig(name="tiny_imagenet", train_limit=200),
]


@pytest.fixture(params=CONFIGS, ids=lambda config: config.name)
def data(request):
    """A small part of a real data set."""
    if "IADD_DATA" not in os.environ:
        pytest.skip("IADD_DATA is not set: it names the folder of the real data sets")
    if locate(request.param.name) is None:
        pytest.skip(f"{request.param.name} is not in {os.environ['IADD_DATA']}")
    return load_data(request.param, progress=False)


def test_teach_distill_evaluate(data, tmp_path):
    augment = AugmentConfig(operations=DATASETS[data.name].augment)
    network = NetworkConfig(width=8)
    teacher_config = TeacherConfig(network=network, epochs=2, batch=50, augment=augment)
    teachers = train_teachers(data, teacher_config, tmp_path / "teachers", count=1, progress=False)
    config = DistillConfig(iterations=3, student_steps=3, teacher_epochs=1, augment=augment, snapshots=2)
    result = distill(data, teachers, config, folder=tmp_path / "run", progress=False)
    assert torch.isfinite(result.images).all()
    assert not torch.equal(result.history.snapshot_images[0], result.images)
    small = replace(data, test=data.test.take(torch.arange(0, len(data.test), 50).numpy()))
    evaluation = evaluate(
        DistillResult.load(tmp_path / "run" / "distilled.safetensors").distilled,
        small,
        EvaluateConfig(network=network, networks=1, epochs=3, augment=augment),
        progress=False,
    )
    assert evaluation.confusion.sum() == len(small.test)
