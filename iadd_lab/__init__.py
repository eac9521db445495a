"""Importance-aware adaptive dataset distillation: the method, its family, and what a study of it needs.

```python
data = load_data("digits")
teachers = train_teachers(data, TeacherConfig(), "runs/teachers", count=5)
result = distill(data, teachers, DistillConfig(ipc=1), folder="runs/ipc1")
print(evaluate(result.distilled, data, EvaluateConfig()))
```

Each name is imported from its room when it is first asked for: to import this package takes no time.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("iadd-lab")

_ROOMS = {
    "errors": "DivergenceError InputError",
    "device": "Execution pick_device",
    "data.augment": "AugmentConfig",
    "data.distilled": "DistilledSet",
    "data.mtt_format": "import_mtt",
    "data.parametrisation": "PARAMETRISATIONS MultiFormation Parametrisation Pixels",
    "data.sets": "DATASETS DataConfig ImageData load_data",
    "training.networks": "NETWORKS NetworkConfig",
    "training.teachers": "TeacherConfig Teachers open_teachers train_teachers",
    "distillation.config": "DistillConfig",
    "distillation.loop": "distill",
    "distillation.matching": "MATCHINGS Learned Matching Pruned Uniform",
    "distillation.presets": "PRESETS",
    "distillation.result": "DistillResult",
    "distillation.unroll": "ENGINES",
    "baselines.features": "DistributionMatchingConfig match_distributions",
    "baselines.gradients": "GradientMatchingConfig match_gradients",
    "baselines.real_images": "herding random_real whole_set",
    "evaluation.export": "EXPORTS export_set load",
    "evaluation.fair": "FairConfig FairScores evaluate_fairly",
    "evaluation.protocol": "EvaluateConfig Evaluation evaluate evaluate_random",
    "evaluation.training_set": "TrainingSet",
    "plots.tensorboard": "TensorBoard",
}
_PLACES = {name: room for room, names in _ROOMS.items() for name in names.split()}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value  # from now on without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
