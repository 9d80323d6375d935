"""Samples from a frame or from folders, as Keras's flow_from_dataframe and flow_from_directory had them."""

import os
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ich.data import arguments
from ich.data.targets import value_and_type
from ich.errors import IchError, name_some
from ich.images.reading import SUFFIXES

CLASS_MODES = ("raw", "binary", "categorical", "sparse", None)
"""Keras's: the columns as they are, a class as 0 or 1, one-hot, its index, no labels."""

_SEVERAL = (list, tuple, set, frozenset, np.ndarray)
"""What holds several classes of one sample. Parquet gives arrays where lists were written."""


def samples_of(
    frame, x_col, y_col, class_mode, classes, weight_col, extra
) -> tuple[dict[str, Any], dict[Hashable, int] | None]:
    """Return arguments of `DataGenerator`, and the index of each class if the labels are classes.

    Arguments and errors are those of `DataGenerator.from_dataframe`.
    """
    if not isinstance(frame, pd.DataFrame):
        raise IchError(f"the frame is a {type(frame).__name__}, expected a pandas DataFrame with a row a sample")
    if not isinstance(x_col, Hashable):
        raise IchError(f"x_col is {x_col!r}, expected one column; several files a sample are suffix=('.a.png', …)")
    several = isinstance(y_col, (list, tuple, np.ndarray, pd.Index))
    y_cols = [] if y_col is None or class_mode is None else list(y_col) if several else [y_col]
    extra_cols = [extra] if isinstance(extra, str) else list(extra or [])
    columns = [x_col, *y_cols, *([weight_col] if weight_col else []), *extra_cols]
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise IchError(f"the frame lacks the columns {name_some(missing)}; it has {', '.join(map(str, frame))}")
    if any(pd.isna(column) is True for column in columns):
        raise IchError("x_col, y_col, weight_col and extra name columns, and one of them is None; give it a name")
    twice = [column for column in dict.fromkeys(columns) if list(frame.columns).count(column) > 1]
    if twice:
        raise IchError(f"the frame has several columns {name_some(twice)}; give each a name of its own")
    if class_mode not in CLASS_MODES:
        advice = f"; write {arguments.CLASS_MODES[class_mode]}" if class_mode in arguments.CLASS_MODES else ""
        raise IchError(f"class_mode is {class_mode!r}, expected one of {', '.join(map(str, CLASS_MODES))}{advice}")
    if class_mode is not None and not y_cols:
        raise IchError(f"class_mode {class_mode} needs a column of labels: y_col=…; class_mode=None has no labels")
    frame = frame.set_index(x_col, drop=False)
    labels, class_indices = None, None
    if class_mode == "raw":
        labels = frame[y_cols] if several else frame[y_cols[0]]
    elif class_mode is not None:
        if len(y_cols) != 1:
            raise IchError(f"class_mode {class_mode} takes one column of classes, got {len(y_cols)}; raw takes more")
        labels, class_indices, kept = class_labels(frame[y_cols[0]], class_mode, classes)
        frame = frame[kept]
    samples = {
        "ids": frame.index,
        "labels": labels,
        "weights": frame[weight_col] if weight_col else None,
        "extra": frame[extra_cols] if extra_cols else None,
    }
    return samples, class_indices


def class_labels(
    column: pd.Series, class_mode: str, classes: Sequence[Hashable] | None
) -> tuple[pd.DataFrame | pd.Series, dict[Hashable, int], np.ndarray]:
    """Return labels from classes by name, for the rows that have one of the classes.

    Args:
        column: a class a row, or for "categorical" several of them in a list, tuple, set or array: none, if it is
            empty. class_mode and classes as `DataGenerator.from_dataframe` has them.

    Returns:
        (labels, class_indices, kept): the labels of the kept rows; the index of each class; and whether each row of the
        column is kept, bool.

    Raises:
        IchError: rows that name no class, several classes where one is expected, classes that cannot be sorted or are
            no names, or not two classes for "binary". A class without a row gives a warning.
    """
    values = [value.tolist() if isinstance(value, np.ndarray) else value for value in column]
    several = np.fromiter((isinstance(value, _SEVERAL) for value in values), bool, len(values))
    if several.any() and class_mode != "categorical":
        raise IchError(
            f"{column.name} holds several classes for {name_some(column.index[several])}: categorical takes them"
        )
    lists = [value if many else [value] for value, many in zip(values, several, strict=True)]
    counts = np.fromiter(map(len, lists), np.int64, len(lists))
    rows = np.repeat(np.arange(len(lists)), counts)
    named = pd.Series([name for names in lists for name in names], dtype=object)
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
        examples = {type(name): value_and_type(name) for name in [*named, *(classes or [])]}
        raise IchError(
            f"{column.name} holds classes that cannot be sorted: {', '.join(examples.values())}; make all of them str"
        ) from error
    names = pd.Index(map(str, known))
    if not names.is_unique:
        alike = [value_and_type(name) for name in known if str(name) == names[names.duplicated()][0]]
        raise IchError(f"classes have names of their own, but {' and '.join(alike)} are written alike; rename one")
    if class_mode == "binary" and len(known) != 2:
        raise IchError(f"class_mode binary takes two classes, found {len(known)}: {name_some(known)}")
    unused = [name for name, code in indices.items() if code not in codes]
    if unused:
        arguments.warn(f"there is no sample of the class {name_some(unused)}, which still has an index")
    rows, codes = rows[codes >= 0], codes[codes >= 0]
    kept = counts == 0
    kept[rows] = True
    if class_mode == "categorical":
        hot = np.zeros((len(column), len(known)), np.float32)
        hot[rows, codes] = 1
        return pd.DataFrame(hot, index=column.index, columns=known)[kept], indices, kept
    return pd.Series(codes, index=column.index[rows]), indices, kept


def in_folders(path: Path, classes: Sequence[str] | None) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the images in the folders of a folder, each of which is a class, however deep.

    A warning counts what is left out: files without a reader, names that begin with a dot, images beside the classes'
    folders, links to folders.

    Args:
        classes: the folders to look into; None for all, sorted.

    Returns:
        (path within `path`, class) of each image, sorted by class, then folder, then file; and the classes.

    Raises:
        IchError: no such folder, one that cannot be listed, no images, or a name of one that is not UTF-8.
    """
    if not path.is_dir():
        raise IchError(f"{path} is no folder; expected one with a folder of images for each class")
    if isinstance(classes, str):
        raise IchError(f"classes is {classes!r}, expected a list of folders")
    _, folders, files = next(os.walk(path, onerror=_refuse))
    left_out = Counter({"image(s) beside the folders of classes": len(_images(files))})
    if classes is None:
        classes = sorted(name for name in folders if not name.startswith("."))
        left_out["hidden folder(s)"] += len(folders) - len(classes)
    images: list[tuple[str, str]] = []
    for name in classes:
        if not (path / name).is_dir():
            raise IchError(f"{path} has no folder of the class {name}")
        walked = []
        for folder, folders, files in os.walk(path / name, onerror=_refuse):
            visible = [inner for inner in folders if not inner.startswith(".")]
            left_out["hidden folder(s)"] += len(folders) - len(visible)
            left_out["link(s) to folders"] += sum(Path(folder, inner).is_symlink() for inner in visible)
            folders[:] = visible
            walked.append((folder, files))
        for folder, files in sorted(walked):
            inside, own = Path(folder).relative_to(path).as_posix(), _images(files)
            images.extend((f"{inside}/{file}", name) for file in sorted(own))
            for file in set(files).difference(own):
                suffix = Path(file).suffix.lower() or "without suffix"
                left_out["hidden file(s)" if file.startswith(".") else suffix] += 1
    for file, _ in images:
        if not file.isascii() and file.encode(errors="replace").decode() != file:
            raise IchError(f"the name {file!r} is not UTF-8; rename it")
    counts = ", ".join(f"{count:,} {what}" for what, count in sorted(left_out.items()) if count)
    if not images:
        raise IchError(
            f"{path} has no images ({', '.join(SUFFIXES)}) in folders of {name_some(classes) or 'classes'}; there are:"
            f" {counts or 'no files at all'}"
        )
    if counts:
        arguments.warn(f"{path}: left out are {counts}; read are {', '.join(SUFFIXES)}")
    return images, list(classes)


def _images(files: Iterable[str]) -> list[str]:
    return [file for file in files if file.lower().endswith(SUFFIXES) and not file.startswith(".")]


def _refuse(error: OSError) -> None:
    raise IchError(f"{error.filename} cannot be listed: {error.strerror}; give it rights to read") from error
