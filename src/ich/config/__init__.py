"""The config of an experiment. schema.py has the keys and their defaults, loading.py reads files and overrides."""

from ich.config.loading import differences, load, load_data, of_values, overrides_of
from ich.config.schema import Config, Model, Predict, Preprocess, ScanModel, Sequence, Train, WindowConfig

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
