"""Labels, weights and extra inputs: tables indexed by id → float32 arrays in the order of the samples."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from ich.errors import IchError, name_some, one_line

_EXACT = 2**24
"""Up to here float32 has every whole number."""


def labels_of(
    ids: pd.Index, labels: Any, num_classes: int | None = None
) -> tuple[np.ndarray | Callable | None, list[str] | None]:
    """Return the labels of a table in the order of the ids, and its columns' names; a function or None as it is.

    Raises:
        IchError: as `as_table`, `array_of` and, with num_classes, `one_hot`.
    """
    names = None
    if labels is not None and not callable(labels):
        table = as_table(labels, "labels")
        labels = array_of(ids, table, "labels")
        names = [str(name) for name in table.columns] if isinstance(table, pd.DataFrame) else None
    return labels if num_classes is None else one_hot(labels, num_classes), names


def weights_of(ids: pd.Index, weights: Any) -> np.ndarray:
    """Return the weights of samples in the loss, shape (len(ids),); raise IchError for several columns."""
    array = array_of(ids, as_table(weights, "weights"), "weights")
    if array.ndim != 1:
        raise IchError(f"weights have {array.shape[1]} columns, expected one number an id: a Series")
    return array


def extra_of(ids: pd.Index, extra: Any) -> dict[str, np.ndarray]:
    """Return the columns of a frame, shape (len(ids), 1).

    Raises:
        IchError: a Series, or a column called image, unaugmented, augment or mix, or without a name; as `as_table` and
            `array_of`.
    """
    table = as_table(extra, "extra inputs")
    if isinstance(table, pd.Series):
        raise IchError("extra is a Series, expected a DataFrame: the names of its columns are those of the inputs")
    if any(pd.isna(name) is True for name in table.columns):
        raise IchError("extra has a column without a name, which is that of the input; give it one")
    names = [str(name) for name in table.columns]
    inputs = {"image": "images", "unaugmented": "images", "augment": "augmentations", "mix": "mixtures"}
    for name, what in inputs.items():
        if name in names:
            raise IchError(f"the input of {what} is called {name}; give that column of extra another name")
    return dict(zip(names, array_of(ids, table, "extra inputs").T[..., None], strict=True))


def as_table(values: Any, what: str) -> pd.DataFrame | pd.Series:
    """Return a frame or a Series as it is, or one made of a dict.

    Args:
        values: of a dict, each id has a number, a list of numbers, or a dict of them by column.
        what: they are, for messages: labels, weights, extra inputs.

    Raises:
        IchError: anything else, a list or an array too, as they do not say which value is of which id; or columns of
            one name.
    """
    if isinstance(values, Mapping):
        sizes = {
            "named" if isinstance(value, Mapping) else len(value) if _axes(value) == 1 else "one"
            for value in values.values()
        }
        if len(sizes) > 1:
            raise IchError(f"the {what} are a dict of values of several shapes; give each id as many numbers")
        values = pd.Series(values) if sizes <= {"one"} else pd.DataFrame.from_dict(dict(values), orient="index")
    if not isinstance(values, (pd.DataFrame, pd.Series)):
        problem = "expected a DataFrame, Series or dict whose index is the ids"
        if isinstance(values, (list, tuple, np.ndarray)):
            problem = (
                "which does not say which value is of which id; if they stand in the order of the ids, give"
                " pd.Series(values, index=ids), or pd.DataFrame of several columns"
            )
        raise IchError(f"the {what} are a {type(values).__name__}, {problem}")
    if isinstance(values, pd.DataFrame):
        names = pd.Index(map(str, values.columns))
        if not names.is_unique:
            twice = names[names.duplicated()].unique()
            raise IchError(f"the {what} have several columns {name_some(twice)}; give each a name of its own")
    return values


def array_of(ids: pd.Index, table: pd.DataFrame | pd.Series, what: str) -> np.ndarray:
    """Return a table's numbers in the order of the ids; float32, shape (len(ids), columns) or (len(ids),).

    Args:
        table: as `as_table` gives it.
        what: it holds, for messages: labels, weights, extra inputs.

    Raises:
        IchError: ids that stand twice, are missing, or have a value that is no finite number, among them dates and
            digits in text; a whole number that float32 would round.
    """
    if not table.index.is_unique:
        twice = table.index[table.index.duplicated()].unique()
        raise IchError(f"the {what} list {name_some(twice)} twice; merge their rows first")
    places = table.index.get_indexer(ids)
    if (places < 0).any():
        raise IchError(f"there are no {what} of {name_some(ids[places < 0])}; leave them out, or complete the {what}")
    columns = [table] if isinstance(table, pd.Series) else [column for _, column in table.items()]
    for column in columns:
        # NumPy would make numbers of dates and digits, and real numbers of complex ones.
        if not pd.api.types.is_numeric_dtype(column.dtype) or column.dtype.kind == "c":
            wrong = next((pair for pair in column.items() if not _is_number(pair[1])), None)
            if wrong is not None:
                where = f"{wrong[0]}" if column.name is None else f"{wrong[0]} in the column {column.name}"
                raise IchError(
                    f"{what} are numbers, but of {where} there is {value_and_type(wrong[1])};"
                    f" {_instead(wrong[1], what)}"
                )
    array = table.to_numpy(dtype=np.float32, na_value=np.nan)[places]
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        raise IchError(f"the {what} of {name_some(ids[~finite])} are not all numbers; nothing is filled in for them")
    if np.abs(array).max(initial=0) >= _EXACT:
        for column, rounded in zip(columns, array.reshape(len(array), -1).T, strict=True):
            large = np.flatnonzero(np.abs(rounded) >= _EXACT)
            _check_exact(column.iloc[places[large]].tolist(), rounded[large], ids[large], what)
    return array


def label_of(value: Any, id: Hashable) -> np.ndarray:
    """Return what a function gave as the label of an id, as float32 of its shape.

    Raises:
        IchError: it holds anything but finite numbers, or a whole number that float32 would round.
    """
    given = np.asarray(value)
    values = [] if given.dtype.kind in "biuf" else given.ravel().tolist()
    wrong = [item for item in values if not _is_number(item)]
    if wrong:
        raise IchError(f"labels are numbers, but of {id} there is {value_and_type(wrong[0])}; convert it")
    label = given.astype(np.float32)
    if not np.isfinite(label).all():
        raise IchError(f"the labels of {id} are not all numbers; nothing is filled in for them")
    if np.abs(label).max(initial=0) >= _EXACT:
        _check_exact(given.ravel().tolist(), label.ravel(), [id] * label.size, "labels")
    return label


def one_hot(labels: Any, num_classes: int) -> np.ndarray:
    """Return whole numbers from 0 as float32 of shape (len(labels), num_classes).

    Raises:
        IchError: anything else than an array of one column of such numbers.
    """
    fits = isinstance(labels, np.ndarray) and labels.ndim == 1 and (labels % 1 == 0).all()
    if not fits or labels.min() < 0 or labels.max() >= num_classes:
        raise IchError(f"num_classes={num_classes} takes one column of whole numbers from 0 to {num_classes - 1}")
    return np.eye(num_classes, dtype=np.float32)[labels.astype(np.int64)]


def value_and_type(value: Any) -> str:
    """Return a value with its type, for a message; of an array its dtype and shape."""
    shown = f"{value.dtype} of {value.shape}" if isinstance(value, np.ndarray) else one_line(repr(value))
    return f"{shown} ({type(value).__name__})"


def _axes(value: Any) -> int:
    """How many axes an array, a list or a tuple has, 2 standing for more; 0 of anything else."""
    if isinstance(value, (list, tuple)):
        return 1 + any(map(_axes, value))
    return min(value.ndim, 2) if isinstance(value, np.ndarray) else 0


def _instead(value: Any, what: str) -> str:
    """What to give in place of a value that is no number."""
    if what == "labels" and _axes(value) == 2:
        return "masks are given by a function: labels=masks.get, of a dict or a Series of masks by id"
    if _axes(value) > 0 and what == "weights":
        return "give one number an id"
    if _axes(value) > 0:
        return "give each number a column of its own, as pd.DataFrame(values.tolist(), index=values.index) does"
    advice = "; class_mode of from_dataframe takes classes by name" if what == "labels" else ""
    return f"convert the column to numbers{advice}"


def _is_number(value: Any) -> bool:
    """Whether it is a real number, or a scalar that stands for a missing one."""
    return isinstance(value, (Real, Decimal, np.bool_)) or (pd.api.types.is_scalar(value) and pd.isna(value) is True)


def _check_exact(values: Iterable[Real], rounded: np.ndarray, ids: Iterable[Hashable], what: str) -> None:
    """Refuse whole numbers of which float32 holds another."""
    for value, near, id in zip(values, rounded.tolist(), ids, strict=True):
        measured = isinstance(value, float) and (value % 1 != 0 or abs(value) >= 2**53)  # no count, or not an exact one
        if not measured and value != near:
            raise IchError(
                f"the {what} of {id} hold {value}, which float32 rounds to {near:.0f}: it is exact up to {_EXACT:,};"
                " subtract an offset, number them anew, or convert to float32 yourself if that is near enough"
            )
