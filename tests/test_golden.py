"""Files stored by the revision before the rooms: still read, and a run still goes on from them."""

import json
import shutil
from pathlib import Path

import torch

from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.result import DistillResult
from iadd_lab.training.teachers import open_teachers

STORED = Path(__file__).parent / "golden" / "stored"


def test_a_stored_checkpoint_goes_on_to_the_stored_result(toy_data, tmp_path):
    """Bit for bit, on a processor that makes the stored bits; another one's last digits are others."""
    teachers = open_teachers(STORED / "teachers")
    made = DistillResult.load(STORED / "learned" / "distilled.safetensors")
    assert made.distilled.fingerprint == json.loads((STORED / "expected.json").read_text())["learned"]
    whole = distill(toy_data, teachers, made.config, progress=False)
    close = {"rtol": 0, "atol": 0} if torch.equal(whole.images, made.images) else {"rtol": 1e-2, "atol": 1e-3}
    shutil.copytree(STORED / "half", tmp_path / "run")
    seen = []
    options = {"folder": tmp_path / "run", "progress": False, "on_iteration": lambda i, _: seen.append(i)}
    found = distill(toy_data, teachers, made.config, **options)
    assert seen == [3, 4, 5, 6]
    for one, other in zip(parts(found), parts(made), strict=True):
        torch.testing.assert_close(one, other, **close)


def parts(result: DistillResult) -> tuple[torch.Tensor, ...]:
    history = torch.tensor([result.history.loss, result.history.alpha], dtype=torch.float64)
    return result.images, result.importance, result.raw, history
