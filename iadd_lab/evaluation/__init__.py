"""What a set is worth, and how it is handed on."""

from iadd_lab.evaluation.card import data_card
from iadd_lab.evaluation.export import EXPORTS, export_set, load
from iadd_lab.evaluation.fair import FairConfig, FairScores, evaluate_fairly
from iadd_lab.evaluation.protocol import EvaluateConfig, Evaluation, evaluate, evaluate_random
from iadd_lab.evaluation.training_set import TrainingSet
