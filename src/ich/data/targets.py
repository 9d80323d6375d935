"""What a network learns: labels in the order of the samples, one-hot, classes by name."""

import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from ich.errors import IchError, name_some, one_line

_EXACT = 2**24
"""Up to here float32 has every whole number."""

_SEVERAL = (list, tuple, set, frozenset, np.ndarray)
"""What holds several classes of one sample. Parquet gives arrays where lists were written."""


def as_table(labels: Any, what: str) -> pd.DataFrame | pd.Series:
    """Labels indexed by id: a frame or a Series as it is, or made of a dict.

    Args:
        labels: of a dict, each id has a number, a list of numbers, or a dict of them by column.
        what: they are, for messages: labels, weights, extra inputs.

    Raises:
        IchError: anything else, a list or an array too, as they do not say which value is of which id; or columns of
            one name.
    """
    if isinstance(labels, Mapping):
        rows = {
            Mapping
            if isinstance(value, Mapping)
            else len(value)
            if isinstance(value, (list, tuple, np.ndarray))
            else None
            for value in labels.values()
        }
        if len(rows) > 1:
            raise IchError(f"the {what} are a dict of values of several shapes; give each id as many numbers")
        labels = pd.Series(labels) if rows <= {None} else pd.DataFrame.from_dict(dict(labels), orient="index")
    if isinstance(labels, (list, tuple, np.ndarray)):
        raise IchError(
            f"the {what} are a {type(labels).__name__}, which does not say which value is of which id; if they stand in"
            " the order of the ids, give pd.Series(values, index=ids), or pd.DataFrame of several columns"
        )
    if not isinstance(labels, (pd.DataFrame, pd.Series)):
        raise IchError(
            f"the {what} are a {type(labels).__name__}, expected a DataFrame, Series or dict whose index is the ids"
        )
    if isinstance(labels, pd.DataFrame):
        names = pd.Index(map(str, labels.columns))
        if not names.is_unique:
            twice = names[names.duplicated()].unique()
            raise IchError(f"the {what} have several columns {name_some(twice)}; give each a name of its own")
    return labels


def array_of(ids: pd.Index, labels: pd.DataFrame | pd.Series, what: str) -> np.ndarray:
    """Labels in the order of the ids, looked up once; float32, shape (len(ids), columns) or (len(ids),).

    Args:
        labels: as `as_table` gives them.
        what: they are, for messages: labels, weights, extra inputs.

    Raises:
        IchError: ids that stand twice, are missing, or have a value that is no finite number, among them dates and
            digits in text; a whole number that float32 would round.
    """
    if not labels.index.is_unique:
        twice = labels.index[labels.index.duplicated()].unique()
        raise IchError(f"the {what} list {name_some(twice)} twice; merge their rows first")
    places = labels.index.get_indexer(ids)
    if (places < 0).any():
        raise IchError(f"there are no {what} of {name_some(ids[places < 0])}; leave them out, or complete the {what}")
    columns = [labels] if isinstance(labels, pd.Series) else [column for _, column in labels.items()]
    for column in columns:
        # NumPy would make numbers of dates and digits, and real numbers of complex ones.
        if not pd.api.types.is_numeric_dtype(column.dtype) or column.dtype.kind == "c":
            wrong = next((pair for pair in column.items() if not _is_number(pair[1])), None)
            if wrong is not None:
                where = f"{wrong[0]}" if column.name is None else f"{wrong[0]} in the column {column.name}"
                advice = "; class_mode of from_dataframe takes classes by name" if what == "labels" else ""
                raise IchError(
                    f"{what} are numbers, but of {where} there is {_shown(wrong[1])}; convert the column to"
                    f" numbers{advice}"
                )
    array = labels.to_numpy(dtype=np.float32, na_value=np.nan)[places]
    numbers = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not numbers.all():
        raise IchError(f"the {what} of {name_some(ids[~numbers])} are not all numbers; nothing is filled in for them")
    if len(array) and np.abs(array).max(initial=0) >= _EXACT:
        for column, held in zip(columns, array.reshape(len(array), -1).T, strict=True):
            large = np.flatnonzero(np.abs(held) >= _EXACT)
            _check_exact(column.iloc[places[large]].tolist(), held[large], ids[large], what)
    return array


def label_of(value: Any, id: Hashable) -> np.ndarray:
    """What a function gave as the label of an id, as float32 of its shape.

    Raises:
        IchError: it holds anything but finite numbers, or a whole number that float32 would round.
    """
    given = np.asarray(value)
    wrong = [one for one in given.ravel().tolist() if not _is_number(one)] if given.dtype.kind not in "biuf" else []
    if wrong:
        raise IchError(f"labels are numbers, but of {id} there is {_shown(wrong[0])}; convert it")
    label = given.astype(np.float32)
    if not np.isfinite(label).all():
        raise IchError(f"the labels of {id} are not all numbers; nothing is filled in for them")
    if label.size and np.abs(label).max() >= _EXACT:
        _check_exact(given.ravel().tolist(), label.ravel(), [id] * label.size, "labels")
    return label


def _shown(value: Any) -> str:
    return f"{one_line(repr(value))} ({type(value).__name__})"


def _is_number(value: Any) -> bool:
    """Whether it is a real number, or a scalar that stands for a missing one."""
    return isinstance(value, (Real, Decimal, np.bool_)) or (pd.api.types.is_scalar(value) and pd.isna(value) is True)


def _check_exact(values: Iterable[Real], held: np.ndarray, ids: Iterable[Hashable], what: str) -> None:
    """Refuse whole numbers of which float32 holds another."""
    for value, near, id in zip(values, held.tolist(), ids, strict=True):
        measured = isinstance(value, float) and (value % 1 != 0 or abs(value) >= 2**53)  # no count, or not an exact one
        if not measured and value != near:
            raise IchError(
                f"the {what} of {id} hold {value}, which float32 rounds to {near:.0f}: it is exact up to {_EXACT:,};"
                " subtract an offset, number them anew, or convert to float32 yourself if that is near enough"
            )


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
        column: a class a row, or for "categorical" several of them in a list, tuple, set or array: none, if it is
            empty. class_mode and classes as `DataGenerator.from_dataframe` has them.

    Raises:
        IchError: rows that name no class, several classes where one is expected, classes that cannot be sorted or are
            no names, or not two classes for "binary". A class without a row is told by a warning.
    """
    values = [value.tolist() if isinstance(value, np.ndarray) else value for value in column]
    several = np.fromiter((isinstance(value, _SEVERAL) for value in values), bool, len(values))
    if several.any() and class_mode != "categorical":
        raise IchError(
            f"{column.name} holds several classes for {name_some(column.index[several])}: categorical takes them"
        )
    pairs = [
        (place, name)
        for place, (value, many) in enumerate(zip(values, several, strict=True))
        for name in (value if many else [value])
    ]
    rows = np.fromiter((place for place, _ in pairs), np.int64, len(pairs))
    named = pd.Series([name for _, name in pairs], dtype=object)
    if named.isna().any():
        nameless = column.index[np.unique(rows[named.isna()])]
        raise IchError(
            f"{column.name} names no class for {name_some(nameless)}; leave these rows out, or give an empty list to"
            " those that have none of the classes (categorical)"
        )
    if isinstance(classes, str):
        raise IchError(f"classes is {classes!r}, expected a list of classes")
    try:
        known = sorted(named.unique()) if classes is None else list(dict.fromkeys(classes))
        indices = {name: index for index, name in enumerate(known)}
        codes = np.fromiter((indices.get(name, -1) for name in named), np.int64, len(named))
    except TypeError as error:  # of what cannot be hashed, or not be compared
        kinds = {type(name).__name__: name for name in [*named, *(classes or [])]}
        told = ", ".join(map(_shown, kinds.values()))
        raise IchError(f"{column.name} holds classes that cannot be sorted: {told}; make all of them str") from error
    if class_mode == "binary" and len(known) != 2:
        raise IchError(f"class_mode binary takes two classes, found {len(known)}: {name_some(known)}")
    unused = [name for name, code in indices.items() if code not in codes]
    if unused:
        warnings.warn(f"there is no sample of the class {name_some(unused)}, which still has an index", stacklevel=4)
    rows, codes = rows[codes >= 0], codes[codes >= 0]
    wanted = np.fromiter((many and len(value) == 0 for value, many in zip(values, several, strict=True)), bool)
    wanted[rows] = True
    if class_mode == "categorical":
        hot = np.zeros((len(column), len(known)), np.float32)
        hot[rows, codes] = 1
        return pd.DataFrame(hot, index=column.index, columns=known)[wanted], indices, wanted
    return pd.Series(codes, index=column.index[rows]), indices, wanted
