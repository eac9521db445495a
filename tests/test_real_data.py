"""The whole way on real image data, at the smallest scale: it fits together for every kind of image."""

from dataclasses import replace

import pytest
import torch

from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.result import DistillResult
from iadd_lab.evaluation.protocol import EvaluateConfig, evaluate
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.teachers import TeacherConfig, train_teachers

LIMITS = {"cifar10": 200, "fashion_mnist": 200, "covid19": 60, "tiny_imagenet": 200}


@pytest.mark.parametrize("name", LIMITS)
def test_teach_distill_evaluate(name, tmp_path, load_real):
    data = load_real(name, train_limit=LIMITS[name])
    augment, network = data.augmentation(None), NetworkConfig(width=8)
    teacher_config = TeacherConfig(network=network, epochs=2, batch=50, augment=augment)
    teachers = train_teachers(data, teacher_config, tmp_path / "teachers", count=1, progress=False)
    config = DistillConfig(iterations=3, student_steps=3, teacher_epochs=1, augment=augment, snapshots=2)
    result = distill(data, teachers, config, folder=tmp_path / "run", progress=False)
    assert torch.isfinite(result.images).all()
    assert not torch.equal(result.history.snapshot_images[0], result.images)
    small = replace(data, test=data.test.take(torch.arange(0, len(data.test), 50).numpy()))
    stored = DistillResult.load(tmp_path / "run" / "distilled.safetensors").distilled
    protocol = EvaluateConfig(network=network, networks=1, epochs=3, augment=augment)
    assert evaluate(stored, small, protocol, progress=False).confusion.sum() == len(small.test)
