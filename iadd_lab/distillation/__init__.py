"""The method: images, α and W, optimised together."""

from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.history import History
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.matching import MATCHINGS, Learned, Matching, Pruned, Uniform
from iadd_lab.distillation.result import DistillResult
from iadd_lab.distillation.unroll import ENGINES
