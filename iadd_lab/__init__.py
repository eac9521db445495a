"""Importance-aware adaptive dataset distillation: the method, its family, and what a study of it needs.

```python
data = load_data("digits")
teachers = train_teachers(data, TeacherConfig(), "runs/teachers", count=5)
result = distill(data, teachers, DistillConfig(ipc=1), folder="runs/ipc1")
print(evaluate(result.distilled, data, EvaluateConfig()))
```
"""

from importlib.metadata import version

from iadd_lab import _start  # noqa: F401 (first: it minds Ctrl-C during the other imports)
from iadd_lab.baselines.features import DistributionMatchingConfig, match_distributions
from iadd_lab.baselines.gradients import GradientMatchingConfig, match_gradients
from iadd_lab.baselines.real_images import herding, random_real, whole_set
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.mtt_format import import_mtt
from iadd_lab.data.sets import DATASETS, DataConfig, ImageData, load_data
from iadd_lab.device import pick_device
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.matching import MATCHINGS, Learned, Matching, Pruned, Uniform
from iadd_lab.distillation.result import DistillResult
from iadd_lab.distillation.unroll import ENGINES
from iadd_lab.errors import DivergenceError, InputError
from iadd_lab.evaluation.export import EXPORTS, export_set
from iadd_lab.evaluation.fair import FairConfig, FairScores, evaluate_fairly
from iadd_lab.evaluation.protocol import EvaluateConfig, Evaluation, evaluate, evaluate_random
from iadd_lab.evaluation.training_set import TrainingSet, load
from iadd_lab.plots.tensorboard import TensorBoard
from iadd_lab.training.networks import NETWORKS, NetworkConfig
from iadd_lab.training.teachers import TeacherConfig, Teachers, open_teachers, train_teachers

__version__ = version("iadd-lab")

__all__ = [
    "DATASETS",
    "ENGINES",
    "EXPORTS",
    "MATCHINGS",
    "NETWORKS",
    "AugmentConfig",
    "DataConfig",
    "DistillConfig",
    "DistillResult",
    "DistilledSet",
    "DistributionMatchingConfig",
    "DivergenceError",
    "EvaluateConfig",
    "Evaluation",
    "FairConfig",
    "FairScores",
    "GradientMatchingConfig",
    "ImageData",
    "InputError",
    "Learned",
    "Matching",
    "NetworkConfig",
    "Pruned",
    "TeacherConfig",
    "Teachers",
    "TensorBoard",
    "TrainingSet",
    "Uniform",
    "distill",
    "evaluate",
    "evaluate_fairly",
    "evaluate_random",
    "export_set",
    "herding",
    "import_mtt",
    "load",
    "load_data",
    "match_distributions",
    "match_gradients",
    "open_teachers",
    "pick_device",
    "random_real",
    "train_teachers",
    "whole_set",
]
