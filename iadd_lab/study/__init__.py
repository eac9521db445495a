"""What is compared: settings, methods, cells, and what they say."""

from iadd_lab.study.methods import METHODS, Method
from iadd_lab.study.settings import Setting
from iadd_lab.study.study import Cell, Study
