"""Names of arguments that other generators have, and what stands in their place here."""

import functools
import inspect
from collections.abc import Callable, Iterable

from ich.errors import IchError, names_in_utf8

_AUGMENT = "augment=, an albumentations transform such as A.Compose([A.HorizontalFlip(), A.Affine(rotate=(-15, 15))])"
_SPLIT = (
    "two generators: split the ids or the frame, patients kept together (ich.competition.folds.make_folds), and make"
    " one of each"
)
_SCALE = "scaling in the model, such as keras.layers.Rescaling(1 / 255) or Normalization(), or preprocess="
_FOLDER = "image_dir=; from_directory takes the folder as its first argument"
_SIZE = "target_size=(height, width)"
_SAVE = "generator.preview(), a picture of samples"
_ASPECT = "a crop or padding in augment= or preprocess=: target_size= scales whatever the proportions"
_WORKERS = "workers=, with use_multiprocessing=True for processes"

ELSEWHERE = {
    # ImageDataGenerator and its flow_from_*
    "directory": _FOLDER,
    "dataframe": "the frame as the first argument of from_dataframe",
    "subset": _SPLIT,
    "validation_split": _SPLIT,
    "rescale": _SCALE,
    "featurewise_center": _SCALE,
    "featurewise_std_normalization": _SCALE,
    "samplewise_center": _SCALE,
    "samplewise_std_normalization": _SCALE,
    "zca_whitening": _SCALE,
    "zca_epsilon": _SCALE,
    "preprocessing_function": "preprocess=, which is given the augmented image",
    "dtype": "preprocess=lambda image: image.astype('float32'); without it images keep the files' uint8",
    "data_format": "keras.layers.Permute in the model: channels come last",
    "follow_links": "from_dataframe, with a row for each file wherever it lies",
    "validate_filenames": "nothing: missing files are told when the generator is made, unless it has a reader=",
    "drop_duplicates": "frame.drop_duplicates(x_col)",
    "has_ext": "suffix='.png' where ids have none",
    "sort": "frame.sort_values(x_col)",
    "save_to_dir": _SAVE,
    "save_prefix": _SAVE,
    "save_format": _SAVE,
    "sample_weight": "weights=, a Series by id, or weight_col= of from_dataframe",
    "keep_aspect_ratio": _ASPECT,
    **dict.fromkeys(
        (
            "rotation_range",
            "width_shift_range",
            "height_shift_range",
            "brightness_range",
            "shear_range",
            "zoom_range",
            "channel_shift_range",
            "fill_mode",
            "cval",
            "horizontal_flip",
            "vertical_flip",
            "interpolation_order",
        ),
        _AUGMENT,
    ),
    # keras.utils.image_dataset_from_directory
    "label_mode": "class_mode=",
    "class_names": "classes=",
    "image_size": _SIZE,
    "crop_to_aspect_ratio": _ASPECT,
    "pad_to_aspect_ratio": _ASPECT,
    # the generator of Stanford's tutorial, which many have copied
    "list_IDs": "the ids as the first argument",
    "list_ids": "the ids as the first argument",
    "dim": _SIZE,
    "n_channels": "color_mode='grayscale', 'rgb' or 'rgba'; without it files keep their channels",
    "n_classes": "num_classes=",
    "to_fit": "labels=None to predict",
    # fit, and torch's DataLoader
    "class_weight": "weights=, a Series by id: Keras's class_weight takes labels of several classes for one",
    "steps_per_epoch": "sampling=, which says what an epoch shows",
    "transform": _AUGMENT,
    "transforms": _AUGMENT,
    "num_workers": _WORKERS,
}
"""What to write now for what others call so."""

CLASS_MODES = {
    "other": "raw",
    "multi_output": "raw with several columns, and split them in the model",
    "input": "a PyDataset of your own that gives (x, x) of the batches of class_mode=None",
    "int": "sparse",
}
"""What to write now for class modes that others have."""


def check(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names of arguments that are not known.

    Raises:
        IchError: with what to write instead, or the names that there are.
    """
    unknown = [name for name in given if name not in known]
    if unknown:
        told = [f"{name} is not an argument here; write {ELSEWHERE[name]}" for name in unknown if name in ELSEWHERE]
        others = [name for name in unknown if name not in ELSEWHERE]
        if others:
            told.append(f"there is no argument {', '.join(others)}; those that there are: {', '.join(known)}")
        raise IchError(". ".join(told))


def checked(function: Callable) -> Callable:
    """A method of DataGenerator whose unknown arguments are answered by a sentence, before Python misses others.

    Known are those of the method itself, and of the constructors of the class and of what it derives from.
    """

    @functools.wraps(function)
    def method(first, *args, **kwargs):
        of = first if isinstance(first, type) else type(first)
        known = dict.fromkeys(
            name
            for one in (function, *(base.__init__ for base in of.__mro__[:-1]))
            for name, parameter in inspect.signature(one).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and name not in ("self", "cls")
        )
        check(kwargs, known)
        with names_in_utf8():
            return function(first, *args, **kwargs)

    return method
