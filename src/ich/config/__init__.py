"""The config of an experiment: keys and defaults by section; loading.py reads files and overrides."""

from ich.config.data import Preprocess, WindowConfig
from ich.config.loading import differences, load, load_data, of_values, overrides_of
from ich.config.model import Model, ScanModel
from ich.config.schema import Config
from ich.config.sequence import Sequence
from ich.config.train import Predict, Train

__all__ = [
    "Config",
    "Model",
    "Predict",
    "Preprocess",
    "ScanModel",
    "Sequence",
    "Train",
    "WindowConfig",
    "differences",
    "load",
    "load_data",
    "of_values",
    "overrides_of",
]
