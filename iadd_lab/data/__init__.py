"""Images, real and distilled."""

from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.mtt_format import import_mtt
from iadd_lab.data.preprocess import Preprocess, fit_preprocess
from iadd_lab.data.sets import DATASETS, DataConfig, DatasetSpec, ImageData, fetch_data, load_data
from iadd_lab.data.splits import Split
