"""What a method has to beat."""

from iadd_lab.baselines.features import DistributionMatchingConfig, match_distributions
from iadd_lab.baselines.gradients import GradientMatchingConfig, match_gradients
from iadd_lab.baselines.real_images import herding, random_real, whole_set
