"""Checks of DataGenerator's arguments; those that other generators have, and what to write here in their place."""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd

from ich.errors import IchError, name_some, names_in_utf8

_INSTEAD = {
    # of ImageDataGenerator and its flow_from_*
    "directory": "image_dir=; from_directory takes the folder as its first argument",
    "dataframe": "the frame as the first argument of from_dataframe",
    "subset validation_split": "two generators: split the ids or the frame, patients kept together"
    " (ich.competition.folds.make_folds), and make one of each",
    "rescale featurewise_center featurewise_std_normalization samplewise_center samplewise_std_normalization"
    " zca_whitening zca_epsilon": "scaling in the model, such as keras.layers.Rescaling(1 / 255) or Normalization(), or"
    " preprocess=",
    "preprocessing_function": "preprocess=, which is given the augmented image",
    "dtype": "preprocess=lambda image: image.astype('float32'); without it images keep the files' uint8",
    "data_format": "keras.layers.Permute in the model: channels come last",
    "follow_links": "from_dataframe, with a row for each file wherever it lies",
    "validate_filenames": "nothing: missing files are reported when the generator is made, unless it has a reader=",
    "drop_duplicates": "frame.drop_duplicates(x_col)",
    "has_ext": "suffix='.png' where ids have none",
    "sort": "frame.sort_values(x_col)",
    "save_to_dir save_prefix save_format": "generator.preview(), a picture of samples",
    "sample_weight": "weights=, a Series by id, or weight_col= of from_dataframe",
    "rotation_range width_shift_range height_shift_range brightness_range shear_range zoom_range channel_shift_range"
    " fill_mode cval horizontal_flip vertical_flip interpolation_order transform transforms": "augment=, an"
    " albumentations transform such as A.Compose([A.HorizontalFlip(), A.Affine(rotate=(-15, 15))])",
    # of keras.utils.image_dataset_from_directory
    "label_mode": "class_mode=",
    "class_names": "classes=",
    "image_size dim": "target_size=(height, width)",
    "crop_to_aspect_ratio pad_to_aspect_ratio keep_aspect_ratio": "a crop or padding in augment= or preprocess=:"
    " target_size= scales whatever the proportions",
    # of the generator of Stanford's tutorial, which many have copied
    "list_IDs list_ids": "the ids as the first argument",
    "n_channels": "color_mode='grayscale', 'rgb' or 'rgba'; without it files keep their channels",
    "n_classes": "num_classes=",
    "to_fit": "labels=None to predict",
    # of fit, and torch's DataLoader
    "class_weight": "weights=, a Series by id: Keras's class_weight takes labels of several classes for one",
    "steps_per_epoch": "sampling=, which says what an epoch shows",
    "num_workers": "workers=, with use_multiprocessing=True for processes",
}

INSTEAD = {name: advice for names, advice in _INSTEAD.items() for name in names.split()}
"""What to write here, by the name of another generator's argument."""

CLASS_MODES = {
    "other": "raw",
    "multi_output": "raw with several columns, and split them in the model",
    "input": "a PyDataset of your own that gives (x, x) of the batches of class_mode=None",
    "int": "sparse",
}
"""What to write here, by another generator's class mode."""


def checked(function: Callable) -> Callable:
    """Make a method of DataGenerator refuse unknown arguments, before Python misses others.

    Known are those of the method itself, and of the constructors of the class and of what it derives from.

    Raises:
        IchError: unknown arguments, with what to write instead, or the names that there are; ids that are not UTF-8.
    """

    @functools.wraps(function)
    def method(first, *args, **kwargs):
        bases = (first if isinstance(first, type) else type(first)).__mro__[:-1]
        callables = (function, *(base.__init__ for base in bases))
        parameters = [parameter for call in callables for parameter in inspect.signature(call).parameters.values()]
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        known = dict.fromkeys(p.name for p in parameters if p.kind in named and p.name not in ("self", "cls"))
        unknown = [name for name in kwargs if name not in known]
        advice = [f"{name} is not an argument here; write {INSTEAD[name]}" for name in unknown if name in INSTEAD]
        others = [name for name in unknown if name not in INSTEAD]
        if others:
            advice.append(f"there is no argument {', '.join(others)}; those that there are: {', '.join(known)}")
        if advice:
            raise IchError(". ".join(advice))
        with names_in_utf8():
            return function(first, *args, **kwargs)

    return method


def index_of(ids: Any) -> pd.Index:
    """Return the list of samples, from whatever holds names one after the other."""
    if isinstance(ids, (str, Path, pd.DataFrame)):
        kind = type(ids).__name__
        raise IchError(f"ids is a {kind}, expected a list of ids; from_dataframe takes frames, from_directory folders")
    try:
        index = pd.Index(ids)
    except TypeError as error:  # a number, None
        raise IchError(f"ids is {ids!r}, expected a list of ids") from error
    if index.nlevels > 1 or index.hasnans:
        raise IchError("ids are missing for some samples, or are pairs; expected a name for each")
    if len(index) == 0:
        raise IchError("there are no samples: the list of ids is empty")
    if not pd.Index(index.array).is_unique:  # of another Index, as pandas keeps the table that it looks them up in
        raise IchError(f"ids are listed twice: {name_some(index[index.duplicated()].unique())}; give each sample once")
    return index


def check_numbers(batch_size: Any, seed: int | None, **switches: Any) -> None:
    """Refuse a batch_size or seed that is no whole number, and switches that are neither True nor False.

    Raises:
        IchError: as said.
    """
    if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise IchError(f"batch_size is {batch_size!r}, expected a whole number of at least 1")
    if seed is not None and not (isinstance(seed, Integral) and seed >= 0):
        raise IchError(f"seed is {seed!r}, expected a whole number from 0, or None to draw one")
    for name, given in switches.items():
        if not isinstance(given, (bool, np.bool_)):
            raise IchError(f"{name} is {given!r}, expected True or False")


def check_functions(**functions: Any) -> None:
    """Refuse what is given as a function, by its argument's name, and is none.

    Raises:
        IchError: as said.
    """
    for name, function in functions.items():
        if function is not None and not callable(function):
            advice = "; several transforms become one by A.Compose([…])" if name == "augment" else ""
            raise IchError(f"{name} is a {type(function).__name__}, expected a function{advice}")


def check_purpose(
    labels: Any, weights: Any, extra: Any, mix: Any, scan: Any, on_error: Any, augment_on: Any, chooses: bool
) -> None:
    """Refuse arguments of `DataGenerator` that are for training where it predicts, or do not go together.

    Args:
        chooses: whether the samples are shuffled or sampled.

    Raises:
        IchError: as said, or an unknown on_error or augment_on.
    """
    if on_error not in ("raise", "skip"):
        raise IchError(f"on_error is {on_error!r}, expected raise or skip")
    if augment_on not in ("cpu", "device"):
        raise IchError(f"augment_on is {augment_on!r}, expected cpu or device")
    if labels is None and chooses:
        raise IchError("shuffle and sampling need labels: without them, order is what ties a prediction to its sample")
    if on_error == "skip" and not chooses:
        raise IchError("on_error='skip' is for training, with shuffle or sampling: a prediction keeps to its sample")
    if labels is None and weights is not None:
        raise IchError("weights need labels: they are of samples in the loss")
    if mix is not None and (labels is None or not chooses):
        raise IchError("mix is for training, with labels and shuffle or sampling: a prediction is of one sample")
    if mix is not None and extra is not None:
        raise IchError("mix mixes images and labels, and extra inputs would be of one of both; give one of the two")
    if scan is not None and (extra is not None or callable(labels) or on_error == "skip"):
        raise IchError(
            "scan takes labels from a table, no extra inputs, and on_error='raise': no slice of a scan is replaced"
        )


def warn(message: str) -> None:
    """Warn of what a user gave, at the line that gave it: the nearest one outside of this package."""
    level = 1
    caller: FrameType | None = sys._getframe()
    while caller is not None and caller.f_globals.get("__name__", "").partition(".")[0] == "ich":
        level, caller = level + 1, caller.f_back
    warnings.warn(message, stacklevel=level)
