"""Pictures: every function returns a Figure, and `save_figure` is the one place that writes them."""

from iadd_lab.plots.accuracy import accuracy_bars, accuracy_groups, confusion_matrix, paired_intervals
from iadd_lab.plots.curves import Curve, LivePlot, convergence, history_plot
from iadd_lab.plots.diagram import iteration_diagram
from iadd_lab.plots.engines import engine_costs, training_costs
from iadd_lab.plots.exploration import exploration
from iadd_lab.plots.images import before_after, image_grid, overview, real_and_distilled
from iadd_lab.plots.importance import importance_by_layer, learned_weights
from iadd_lab.plots.students import concept, movement_shares, parameter_difference
from iadd_lab.plots.style import save_figure

# What the reference shows.
__all__ = sorted(name for name, value in globals().items() if callable(value))
