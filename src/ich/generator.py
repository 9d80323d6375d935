"""DataGenerator: images and labels in batches, for Keras."""

import copy
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from ich import images
from ich.errors import IchError, name_some
from ich.slices import neighbours as neighbours_in
from ich.windows import Window

CLASS_MODES = ("raw", "binary", "categorical", "sparse", None)
"""Keras's: the columns as they are, a class as 0 or 1, one-hot, its index, no labels."""

_SHARED = 96  # decoded images kept for samples that share them, if there are neighbours
_TRIES = 16  # other samples tried in place of one that cannot be read


class DataGenerator(keras.utils.PyDataset):
    """Batches of images (batch, height, width, channels) and, with labels, float32 labels (batch, n).

    What a sample looks like depends on (seed, epoch, id) alone: not on the number of workers, threads or processes, on
    the batch size, or on the other samples. Each epoch has an order and augmentations of its own; every sample appears
    in it once, or as often as `sampling` says, and the last batch holds what is left. `len()` is the epoch's length.

    Args:
        ids: the samples, each once; the file of one is `image_dir/<id><suffix>`.
        labels: indexed by id, a frame with a column a label or a Series; or a function of an id; or None to predict:
            batches are then images alone.
        image_dir: the images' folder.
        suffix: of the files: .png, .jpg, .jpeg, .npy, .dcm; empty if ids are names of files.
        batch_size: samples in a batch.
        shuffle: a new order of the samples each epoch. Refused without labels, where order is what ties a prediction
            to its sample.
        num_classes: makes of a Series of whole numbers from 0 one-hot labels of that many columns.
        augment: an albumentations transform or Compose, or a function of an image and a `numpy.random.Generator`, or
            None. Each thread works with a copy of its own, seeded for each sample.
        sampling: which samples an epoch shows; see `ich.sampling`. None shows all.
        weights: of the samples in the loss, indexed by id; a third item of each batch, float32.
        extra: inputs beside the image, indexed by id: images become the input "image" of a dict, and each column one by
            its name, float32, shape (batch, 1).
        neighbours: offsets in the scan, such as (-1, 0, 1): the channels of these slices one after the other. Edges
            repeat the last slice; one that cannot be read is replaced by the nearest that can.
        slices: the slice table, which `neighbours` need.
        color_mode, target_size, interpolation: as Keras has them; None keeps a file's own. See `ich.images`.
        window: for .dcm files.
        reader: a function of a path that gives an array (height, width, channels), in place of `ich.images.read`.
        preprocess: a function of the finished image; what it gives is what a batch holds, in its dtype.
        test_time: what the passes over a sample see: a list of transforms as for `augment`, None among them being the
            image as it is, or one transform that draws each pass anew. `at_pass(k)` gives a generator of the k-th.
        on_error: "raise", or "skip": another sample, the same in each run, replaces one whose image cannot be read,
            and `skipped` counts it (in this process). Never without labels.
        seed: of order, sampling and augmentation.
        epoch: the first epoch's number, for a run that goes on (`fit(initial_epoch=…)`).
        **kwargs: workers, use_multiprocessing, max_queue_size, as keras.utils.PyDataset takes them.

    Raises:
        IchError: arguments that do not fit together or with the ids; at reading, an image that cannot be read, is not
            uint8 (unless `preprocess` or `reader` answer for it) or differs in shape or dtype from the first.

    Example:
        >>> train = DataGenerator(ids, labels, image_dir="images/brain/train", shuffle=True, augment=compose)
        >>> model.fit(train, epochs=10)
    """

    def __init__(
        self,
        ids: Sequence[str] | pd.Index,
        labels: pd.DataFrame | pd.Series | Callable[[str], Any] | None = None,
        *,
        image_dir: str | Path = ".",
        suffix: str = ".png",
        batch_size: int = 32,
        shuffle: bool = False,
        num_classes: int | None = None,
        augment: Callable | None = None,
        sampling: Callable[[np.random.Generator], np.ndarray] | None = None,
        weights: pd.Series | None = None,
        extra: pd.DataFrame | None = None,
        neighbours: Sequence[int] = (0,),
        slices: pd.DataFrame | None = None,
        color_mode: str | None = None,
        target_size: tuple[int, int] | None = None,
        interpolation: str = "nearest",
        window: Window | None = None,
        reader: Callable[[Path], np.ndarray] | None = None,
        preprocess: Callable[[np.ndarray], np.ndarray] | None = None,
        test_time: Sequence[Callable | None] | Callable | None = None,
        on_error: str = "raise",
        seed: int = 0,
        epoch: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.ids = pd.Index(ids)
        if len(self.ids) == 0:
            raise IchError("there are no samples: the list of ids is empty")
        if not self.ids.is_unique:
            twice = self.ids[self.ids.duplicated()].unique()
            raise IchError(f"ids are listed twice: {name_some(twice)}; give each sample once")
        if batch_size < 1:
            raise IchError(f"batch_size is {batch_size}, expected at least 1")
        if on_error not in ("raise", "skip"):
            raise IchError(f"on_error is {on_error!r}, expected raise or skip")
        if labels is None and (shuffle or sampling is not None or on_error == "skip"):
            raise IchError(
                "shuffle, sampling and on_error='skip' need labels: without them, order is what ties a prediction to"
                " its sample"
            )
        self.labels = labels if labels is None or callable(labels) else _label_array(self.ids, labels, num_classes)
        self.weights = None if weights is None else _label_array(self.ids, weights, None)
        self.extra = None
        if extra is not None:
            self.extra = dict(zip(extra.columns, _label_array(self.ids, extra, None).T[..., None], strict=True))
        self.class_indices: dict[Hashable, int] | None = None
        self.image_dir, self.suffix = Path(image_dir), suffix
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.augment, self.sampling, self.preprocess = augment, sampling, preprocess
        self.test_time, self.on_error = test_time, on_error
        self.color_mode, self.target_size, self.interpolation = color_mode, target_size, interpolation
        self.window, self.reader = window, reader
        self.skipped: Counter[str] = Counter()
        self._files, self._neighbours = self.ids, None
        if tuple(neighbours) != (0,):
            if slices is None:
                raise IchError("neighbours need the slice table, which knows the order of slices: slices=…")
            self._files, self._neighbours = neighbours_in(slices, self.ids, tuple(neighbours))
        self._pass = 0
        self._shape: tuple[tuple[int, ...], np.dtype] | None = None
        self._begun = False
        self._make_local()
        self.set_epoch(epoch)

    @classmethod
    def from_dataframe(
        cls,
        frame: pd.DataFrame,
        x_col: str = "filename",
        y_col: str | Sequence[str] | None = "class",
        *,
        image_dir: str | Path = ".",
        class_mode: str | None = "categorical",
        classes: Sequence[Hashable] | None = None,
        weight_col: str | None = None,
        extra: Sequence[str] | None = None,
        suffix: str = "",
        **kwargs,
    ) -> "DataGenerator":
        """Samples from the rows of a frame, as Keras's flow_from_dataframe had them.

        Args:
            frame: a row a sample.
            x_col: the column of file names, or of ids if there is a suffix.
            y_col: the column of labels, or several for "raw".
            class_mode: "raw", the column or columns as numbers; "binary", a class of two as 0 or 1; "sparse", its
                index; "categorical", one-hot, or several ones where y_col holds lists of classes; None, no labels.
                `class_indices` tells which class is which.
            classes: all of them in order; None takes those that occur, sorted.
            weight_col: the column of sample weights.
            extra: columns that become inputs beside the image.
            **kwargs: as `DataGenerator` takes them.

        Raises:
            IchError: a column is missing, a class is unknown, an unknown class_mode, or another number of classes than
                two for "binary".
        """
        y_cols = [] if y_col is None or class_mode is None else [y_col] if isinstance(y_col, str) else list(y_col)
        wanted = [x_col, *y_cols, *([weight_col] if weight_col else []), *(extra or [])]
        missing = [column for column in wanted if column not in frame.columns]
        if missing:
            raise IchError(f"the frame lacks the columns {name_some(missing)}; it has {', '.join(map(str, frame))}")
        frame = frame.set_index(x_col)
        labels, class_indices = None, None
        if class_mode not in CLASS_MODES:
            raise IchError(f"class_mode is {class_mode!r}, expected one of {', '.join(map(str, CLASS_MODES))}")
        if class_mode == "raw":
            labels = frame[y_cols[0]] if isinstance(y_col, str) else frame[y_cols]
        elif class_mode is not None:
            if len(y_cols) != 1:
                raise IchError(
                    f"class_mode {class_mode} takes one column of classes, got {len(y_cols)}; raw takes more"
                )
            labels, class_indices = _class_labels(frame[y_cols[0]], class_mode, classes)
        made = cls(
            frame.index,
            labels,
            image_dir=image_dir,
            suffix=suffix,
            weights=frame[weight_col] if weight_col else None,
            extra=frame[list(extra)] if extra else None,
            **kwargs,
        )
        made.class_indices = class_indices
        return made

    @classmethod
    def from_directory(
        cls,
        path: str | Path,
        *,
        class_mode: str | None = "categorical",
        classes: Sequence[str] | None = None,
        **kwargs,
    ) -> "DataGenerator":
        """Samples from the folders of a folder, each of which is a class, as Keras's flow_from_directory had them.

        Ids are `<class>/<file>`, sorted by class, then folder, then file.

        Args:
            class_mode, classes, **kwargs: as for `from_dataframe`; classes are the folders' names. "raw" is none.

        Raises:
            IchError: no such folder, or no images in it.
        """
        path = Path(path)
        if not path.is_dir():
            raise IchError(f"{path} is no folder; expected one with a folder of images for each class")
        if classes is None:
            classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        found: list[tuple[str, str]] = []
        for name in classes:
            files = (file for file in (path / name).rglob("*") if file.suffix.lower() in (*images.READERS, ".dcm"))
            ordered = sorted(files, key=lambda file: (str(file.parent), file.name))
            found.extend((file.relative_to(path).as_posix(), name) for file in ordered)
        if not found:
            raise IchError(f"{path} has no images in folders of {name_some(classes) or 'classes'}")
        if class_mode == "raw":
            raise IchError(
                "class_mode raw needs columns of numbers; folders are classes: categorical, binary or sparse"
            )
        frame = pd.DataFrame(found, columns=["filename", "class"])
        return cls.from_dataframe(frame, image_dir=path, class_mode=class_mode, classes=classes, **kwargs)

    def __len__(self) -> int:
        return -(-len(self._plan[1]) // self.batch_size)

    def __getitem__(self, index: int):
        """Batch `index` of the epoch: x, (x, labels) or (x, labels, weights); x is an array, or a dict with `extra`."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        epoch, order, repeat = self._plan
        places = slice(index * self.batch_size, (index + 1) * self.batch_size)
        rows, turns = order[places].copy(), repeat[places]
        batch = None
        for place, (row, turn) in enumerate(zip(order[places], turns, strict=True)):
            rows[place], image = self._sample(row, epoch, turn)
            if batch is None:
                batch = np.empty((len(rows), *image.shape), image.dtype)
            batch[place] = image
        x = batch if self.extra is None else {"image": batch} | {k: v[rows] for k, v in self.extra.items()}
        if self.labels is None:
            return x
        if callable(self.labels):
            y = np.stack([np.asarray(self.labels(self.ids[row]), dtype=np.float32) for row in rows])
        else:
            y = self.labels[rows]
        return (x, y) if self.weights is None else (x, y, self.weights[rows])

    def on_epoch_begin(self) -> None:
        """Keras calls it, after workers of the epoch have started."""
        self._begun = True

    def on_epoch_end(self) -> None:
        """Go to the next epoch. Keras calls it; workers of the next epoch start after it.

        `fit` calls it once before the first epoch too: what has not begun does not end, or epochs would be off by one.
        A loop of one's own calls `set_epoch`.
        """
        if self._begun:
            self.set_epoch(self._plan[0] + 1)

    def set_epoch(self, epoch: int) -> None:
        """Make the next batches those of this epoch (0-based)."""
        rng = np.random.default_rng([self.seed, epoch])
        order = np.arange(len(self.ids)) if self.sampling is None else np.asarray(self.sampling(rng))
        if order.max(initial=-1) >= len(self.ids) or order.min(initial=0) < 0 or len(order) == 0:
            raise IchError(f"the sampling chose places outside the {len(self.ids):,} samples, or none")
        if self.shuffle:
            order = rng.permutation(order)
        # A sample that an epoch shows again looks different each time.
        repeat = np.zeros(len(order), np.int64)
        if self.sampling is not None:
            repeat = pd.Series(order).groupby(order).cumcount().to_numpy()
        self._plan = epoch, order, repeat  # one assignment, so that no thread sees the order of another epoch
        self._begun = False

    def at_pass(self, k: int) -> "DataGenerator":
        """A generator of the same samples in the k-th test-time pass (0-based): the same wherever and whenever it runs.

        Raises:
            IchError: there is no `test_time`, or no k-th transform in its list.
        """
        if self.test_time is None or k < 0 or (not callable(self.test_time) and k >= len(self.test_time)):
            passes = (
                0 if self.test_time is None else "any number of" if callable(self.test_time) else len(self.test_time)
            )
            raise IchError(f"there is no pass {k}: test_time gives {passes} passes, counted from 0")
        other = copy.copy(self)
        other._make_local()
        other._pass = k
        other.augment = self.test_time if callable(self.test_time) else self.test_time[k]
        return other

    def preview(self, n: int = 8):
        """Draw the first n samples of the epoch: as they are in the files above, as the network sees them below.

        Returns:
            A matplotlib Figure, with each sample's id and positive labels (or label) as title.
        """
        from matplotlib.figure import Figure  # only here: training needs no pictures

        epoch, order, repeat = self._plan
        n = min(n, len(order))
        figure = Figure(figsize=(2.2 * n, 5.2), layout="constrained")
        for column, (row, turn) in enumerate(zip(order[:n], repeat[:n], strict=True)):
            row, seen = self._sample(row, epoch, turn)
            for line, image in enumerate((self._read(row), seen)):
                axes = figure.add_subplot(2, n, line * n + column + 1)
                axes.imshow(*_drawable(image))
                axes.axis("off")
                axes.set_title(f"{self.ids[row]}\n{self._label_text(row)}" if line == 0 else "", fontsize=7)
        return figure

    def _label_text(self, row: int) -> str:
        if self.labels is None:
            return ""
        label = np.atleast_1d(self.labels(self.ids[row]) if callable(self.labels) else self.labels[row])
        return " ".join(f"{value:g}" for value in label)

    def _sample(self, row: int, epoch: int, turn: int) -> tuple[int, np.ndarray]:
        """A sample, or what replaces it if it cannot be read; and which it is."""
        chosen = row
        for attempt in range(_TRIES):
            try:
                return chosen, self._image(chosen, epoch, turn)
            except IchError:
                if self.on_error == "raise":
                    raise
                self.skipped[self.ids[chosen]] += 1
                chosen = _seed(self.seed, epoch, turn, attempt, self.ids[row]) % len(self.ids)
        raise IchError(
            f"{self.ids[row]} and {_TRIES - 1} samples drawn in its place cannot be read; convert them again"
        )

    def _image(self, row: int, epoch: int, turn: int) -> np.ndarray:
        """The finished image of a sample."""
        image = self._read(row)
        if self.augment is not None:
            when = ("pass", self._pass) if self.test_time is not None else (epoch, turn)
            image = self._augmented(image, _seed(self.seed, *when, self.ids[row]))
        if self.preprocess is not None:
            image = np.asarray(self.preprocess(image))
        elif image.dtype != np.uint8 and self.reader is None:
            raise IchError(
                f"{self.ids[row]} is {image.dtype}, expected uint8, 0 to 255; convert it, or give preprocess="
            )
        if self._shape is None:
            self._shape = image.shape, image.dtype
        if (image.shape, image.dtype) != self._shape:
            raise IchError(
                f"{self.ids[row]} gives {image.dtype} of {image.shape}, the first image gave {self._shape[1]} of"
                f" {self._shape[0]}; give target_size=, or an augmentation that keeps size and dtype"
            )
        return image

    def _read(self, row: int) -> np.ndarray:
        if self._neighbours is None:
            return self._file(self.ids[row])
        return np.concatenate([self._shared_file(place) for place in self._neighbours[row].tolist()], axis=-1)

    def _file(self, id: str) -> np.ndarray:
        """A file's image, in the colours and size asked for."""
        path = self.image_dir / f"{id}{self.suffix}"
        try:
            image = images.read(path, self.window) if self.reader is None else np.asarray(self.reader(path))
        except OSError as error:  # of a reader of the user's own
            raise IchError(f"{path} cannot be read: {error.strerror or error}") from error
        if self.color_mode is not None:
            image = images.recolor(image, self.color_mode)
        if self.target_size is not None:
            image = images.resize(image, self.target_size, self.interpolation)
        return image

    def _augmented(self, image: np.ndarray, seed: int) -> np.ndarray:
        if not hasattr(self.augment, "set_random_seed"):
            return self.augment(image, np.random.default_rng(seed))
        # A Compose holds the state of its random numbers: shared by threads, it gives other images in each run.
        if not hasattr(self._local, "augment"):
            self._local.augment = copy.deepcopy(self.augment)
        self._local.augment.set_random_seed(seed)
        return self._local.augment(image=image)["image"]

    def _make_local(self) -> None:
        """What does not pickle, and belongs to one process."""
        self._local = threading.local()
        self._shared_file = lru_cache(_SHARED)(lambda place: self._file(self._files[place]))

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("_local", "_shared_file")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._make_local()


def _label_array(ids: pd.Index, labels: pd.DataFrame | pd.Series, num_classes: int | None) -> np.ndarray:
    """Labels in the order of the ids, looked up once; float32, shape (len(ids), columns) or (len(ids),)."""
    if not labels.index.is_unique:
        twice = labels.index[labels.index.duplicated()].unique()
        raise IchError(f"the labels list {name_some(twice)} twice; merge their rows first")
    places = labels.index.get_indexer(ids)
    if (places < 0).any():
        raise IchError(f"there are no labels of {name_some(ids[places < 0])}; leave them out or label them")
    try:
        array = labels.to_numpy(dtype=np.float32)[places]
    except (ValueError, TypeError) as error:
        raise IchError(
            f"labels are numbers, but {error}; class_mode of from_dataframe takes classes by name"
        ) from error
    numbers = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not numbers.all():
        raise IchError(f"the labels of {name_some(ids[~numbers])} are not all numbers; nothing is filled in for them")
    if num_classes is None:
        return array
    if array.ndim != 1 or (array % 1 != 0).any() or array.min() < 0 or array.max() >= num_classes:
        raise IchError(f"num_classes={num_classes} takes one column of whole numbers from 0 to {num_classes - 1}")
    return np.eye(num_classes, dtype=np.float32)[array.astype(np.int64)]


def _class_labels(
    column: pd.Series, class_mode: str, classes: Sequence[Hashable] | None
) -> tuple[pd.DataFrame | pd.Series, dict[Hashable, int]]:
    """Labels of classes by name, and which class has which index."""
    several = column.map(lambda value: isinstance(value, (list, tuple, set)))
    if several.any() and class_mode != "categorical":
        raise IchError(
            f"{column.name} holds several classes for {name_some(column.index[several])}: categorical takes them"
        )
    named = column.explode() if several.any() else column
    if named.isna().any():
        raise IchError(
            f"{column.name} names no class for {name_some(column.index[column.isna()])}; leave these rows out"
        )
    known = sorted(named.unique()) if classes is None else list(classes)
    unknown = named[~named.isin(known)]
    if len(unknown):
        raise IchError(
            f"{column.name} has the classes {name_some(unknown.unique())}, which are not among the given ones"
        )
    if class_mode == "binary" and len(known) != 2:
        raise IchError(f"class_mode binary takes two classes, found {len(known)}: {name_some(known)}")
    indices: Mapping[Hashable, int] = {name: index for index, name in enumerate(known)}
    if class_mode != "categorical":
        return column.map(indices), dict(indices)
    hot = np.zeros((len(column), len(known)), np.float32)
    for row, value in enumerate(column):
        hot[row, [indices[name] for name in (value if several.iloc[row] else [value])]] = 1
    return pd.DataFrame(hot, index=column.index, columns=known), dict(indices)


def _drawable(image: np.ndarray) -> tuple[np.ndarray, str | None]:
    """An image as imshow takes it, and the colour map: three channels in colour, else the middle one in grey."""
    if image.shape[-1] == 3 and image.dtype == np.uint8:
        return image, None
    return image[..., image.shape[-1] // 2], "gray"


def _seed(*what: int | str) -> int:
    """32 bits from all of it. Python's own hash of a string differs from process to process."""
    digest = hashlib.blake2b("/".join(map(str, what)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
