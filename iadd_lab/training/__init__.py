"""Networks, how they are trained, and the trajectories they leave."""

from iadd_lab.training.networks import NETWORKS, ImageClassifier, NetworkConfig, ParameterLayout
from iadd_lab.training.replay_buffers import import_replay_buffers
from iadd_lab.training.teachers import TeacherConfig, Teachers, open_teachers, train_teachers
