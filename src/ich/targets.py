"""What a network learns: labels in the order of the samples, one-hot, classes by name."""

from collections.abc import Hashable, Sequence, Sized
from typing import Any

import numpy as np
import pandas as pd

from ich.errors import IchError, name_some, one_line


def array_of(ids: pd.Index, labels: pd.DataFrame | pd.Series, what: str) -> np.ndarray:
    """Labels in the order of the ids, looked up once; float32, shape (len(ids), columns) or (len(ids),).

    Args:
        what: they are, for messages: labels, weights, extra inputs.

    Raises:
        IchError: ids that stand twice, are missing, or have a value that is no finite number.
    """
    if not labels.index.is_unique:
        twice = labels.index[labels.index.duplicated()].unique()
        raise IchError(f"the {what} list {name_some(twice)} twice; merge their rows first")
    places = labels.index.get_indexer(ids)
    if (places < 0).any():
        raise IchError(f"there are no {what} of {name_some(ids[places < 0])}; leave them out, or complete the {what}")
    try:
        array = labels.to_numpy(dtype=np.float32, na_value=np.nan)[places]
    except (ValueError, TypeError) as error:
        raise IchError(
            f"{what} are numbers, but {one_line(error)}; class_mode of from_dataframe takes classes by name"
        ) from error
    numbers = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not numbers.all():
        raise IchError(f"the {what} of {name_some(ids[~numbers])} are not all numbers; nothing is filled in for them")
    return array


def one_hot(labels: Any, num_classes: int) -> np.ndarray:
    """Whole numbers from 0 as float32 of shape (len(labels), num_classes).

    Raises:
        IchError: anything else than an array of one column of such numbers.
    """
    fits = isinstance(labels, np.ndarray) and labels.ndim == 1 and (labels % 1 == 0).all()
    if not fits or labels.min() < 0 or labels.max() >= num_classes:
        raise IchError(f"num_classes={num_classes} takes one column of whole numbers from 0 to {num_classes - 1}")
    return np.eye(num_classes, dtype=np.float32)[labels.astype(np.int64)]


def class_labels(
    column: pd.Series, class_mode: str, classes: Sequence[Hashable] | None
) -> tuple[pd.DataFrame | pd.Series, dict[Hashable, int], np.ndarray]:
    """Labels of classes by name, of rows that have a wanted one; which class has which index; which rows these are.

    Args:
        column: a class a row, or for "categorical" lists of them; class_mode and classes as
            `DataGenerator.from_dataframe` has them.

    Raises:
        IchError: rows that name no class, lists where one class is expected, or not two classes for "binary".
    """
    lists = column.map(lambda value: isinstance(value, (list, tuple, set))).to_numpy(dtype=bool)
    if lists.any() and class_mode != "categorical":
        raise IchError(
            f"{column.name} holds several classes for {name_some(column.index[lists])}: categorical takes them"
        )
    empty = lists & column.map(lambda value: isinstance(value, Sized) and len(value) == 0).to_numpy(dtype=bool)
    named = pd.Series(column.to_numpy(), np.arange(len(column)), dtype=object).explode()
    named = named[~empty[named.index]]
    if named.isna().any():
        nameless = column.index[named.index[named.isna()].unique()]
        raise IchError(f"{column.name} names no class for {name_some(nameless)}; leave these rows out")
    known = sorted(named.unique()) if classes is None else list(dict.fromkeys(classes))
    if class_mode == "binary" and len(known) != 2:
        raise IchError(f"class_mode binary takes two classes, found {len(known)}: {name_some(known)}")
    indices = {name: index for index, name in enumerate(known)}
    codes = pd.Index(known, dtype=object).get_indexer(named)
    rows, codes = named.index.to_numpy()[codes >= 0], codes[codes >= 0]
    wanted = empty.copy()
    wanted[rows] = True
    if class_mode == "categorical":
        hot = np.zeros((len(column), len(known)), np.float32)
        hot[rows, codes] = 1
        return pd.DataFrame(hot, index=column.index, columns=known)[wanted], indices, wanted
    return pd.Series(codes, index=column.index[rows]), indices, wanted
