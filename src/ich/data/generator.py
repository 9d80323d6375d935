"""DataGenerator: images and labels in batches, for Keras."""

import copy
import ctypes
import hashlib
import math
import mmap
import multiprocessing
import random
import secrets
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from textwrap import wrap
from types import TracebackType
from typing import Any

import cv2
import keras
import numpy as np
import pandas as pd

from ich.data import arguments, epochs, image_files, shared_memory, targets
from ich.dicom.windows import Window, windows_of
from ich.errors import IchError, name_some, one_line
from ich.images import reading
from ich.images.slice_table import neighbours as neighbours_in

CLASS_MODES = ("raw", "binary", "categorical", "sparse", None)
"""Keras's: the columns as they are, a class as 0 or 1, one-hot, its index, no labels."""

_SHARED = 96  # decoded images kept for samples that share them, if there are neighbours
_MAPPED = 2**17  # bytes of an array from which on glibc maps it anew, unless it is told otherwise
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_TRIES = 16  # other samples tried in place of one that cannot be read


class DataGenerator(keras.utils.PyDataset):
    """Batches of images (batch, height, width, channels) and, with labels, float32 labels (batch, n).

    What a sample looks like depends on (seed, epoch, id) alone: not on the number of workers, threads or processes, on
    the batch size, or on the other samples. Each epoch has an order and augmentations of its own; every sample appears
    in it once, or as often as `sampling` says, and the last batch holds what is left. `len()` is the epoch's length.

    Args:
        ids: the samples, each once, in the order that predictions have if there is neither shuffle nor sampling; the
            file of one is `image_dir/<id><suffix>`.
        labels: indexed by id, a frame with a column a label, a Series or a dict; or a function of an id; or None to
            predict: batches are then images alone. A list or an array is refused: nothing in it says which label is of
            which id; pd.Series(values, index=ids) does. Masks, which a function gives as (height, width[, channels]) in
            the image's size, are augmented as their images are, by an albumentations transform; with a function as
            augmentation they are refused.
        image_dir: the images' folder; None if ids are paths.
        suffix: of the files, one of `ich.images.reading.SUFFIXES`; empty if ids are names of files. Several, such as
            (".brain.png", ".bone.png"), are files whose channels are put one after the other.
        batch_size: samples in a batch.
        shuffle: a new order of the samples each epoch. None does so if there are labels, as Keras's flow_from_… do.
            Refused without labels, where order is what ties a prediction to its sample.
        num_classes: makes of a Series of whole numbers from 0 one-hot labels of that many columns.
        augment: an albumentations transform or Compose, or a function of an image and a `numpy.random.Generator`, or
            None. Each thread works with a copy of its own, seeded for each sample. A dtype and size that it changes
            to must be the same for all. Code of your own shall draw from that generator: what it draws from `np.random`
            or `random` is the sample's own in worker processes, which seed them for each sample, but goes on from
            sample to sample, and differs from run to run with threads, in this process.
        sampling: which samples an epoch shows; see `ich.data.sampling`. None shows all.
        weights: of the samples in the loss, indexed by id; a third item of each batch, float32.
        extra: inputs beside the image, indexed by id: images become the input "image" of a dict, and each column one by
            its name, float32, shape (batch, 1). Standardise them: they are taken as they are.
        neighbours: offsets in the scan, such as (-1, 0, 1): the channels of these slices one after the other. Edges
            repeat the last slice; one that cannot be read is replaced by the nearest that can.
        slices: the slice table, which `neighbours` need.
        color_mode, target_size, interpolation: as Keras has them, to the pixel; None keeps a file's own. See
            `ich.images.reading`, which has one interpolation more.
        window: for .dcm files, a `Window` or the name of a preset, such as "brain"; several give a channel each.
        reader: a function of a path that gives an array (height, width[, channels]), in place of
            `ich.images.reading.read`. Whether there is a file is then its own affair; without one, missing files are
            told at once.
        preprocess: a function of the finished image; what it gives is what a batch holds, in its dtype.
        tta: what the passes over a sample see: a list of transforms as for `augment`, None among them being the
            image as it is, or one transform that draws each pass anew. `at_pass(k)` gives a generator of the k-th.
        on_error: "raise", or "skip": another sample, the same in each run, replaces one whose image cannot be read,
            and `skipped` counts it. Only with labels and a shuffle or sampling: a prediction is never that of another
            sample.
        seed: of order, sampling and augmentation, a whole number from 0. None draws one, which the attribute `seed`
            then holds: with it the same can be had again.
        epoch: the first epoch's number. Each epoch of `fit` is the next one; `fit(initial_epoch=k)` with k above 0, and
            `BackupAndRestore`, begin at epoch k.
        **kwargs: workers, use_multiprocessing, max_queue_size, as keras.utils.PyDataset takes them. Processes are
            faster than threads, which share Python's lock; see `ich.data.shared_memory` for how their batches arrive.
            With workers, OpenCV works with one thread each from the first batch on, in the whole process. With images
            of 128 kB or more, the process keeps up to 128 MB of memory that arrays have given up, for those to come (on
            Linux).

    Raises:
        IchError: arguments that do not fit together or with the ids, or that only other generators have; images that
            are missing (under on_error="skip" a warning counts them); at reading, an image that cannot be read, is not
            uint8 (unless `preprocess` or `reader` answer for it) or differs in shape or dtype from the first, and
            whatever a function given here raised. The message names the sample.

    Example:
        >>> train = DataGenerator(ids, labels, image_dir="images/brain/train", augment=compose)
        >>> held_out = DataGenerator(others, labels, image_dir="images/brain/train", shuffle=False)
        >>> # Keras would shuffle batches once more, outside of the seed.
        >>> model.fit(train, validation_data=held_out, epochs=10, shuffle=False)
    """

    @arguments.checked
    def __init__(
        self,
        ids: Sequence[str] | pd.Index,
        labels: pd.DataFrame | pd.Series | Mapping[str, Any] | Callable[[str], Any] | None = None,
        *,
        image_dir: str | Path | None = ".",
        suffix: str | Sequence[str] = ".png",
        batch_size: int = 32,
        shuffle: bool | None = None,
        num_classes: int | None = None,
        augment: Callable | None = None,
        sampling: Callable[[np.random.Generator], np.ndarray] | None = None,
        weights: pd.Series | Mapping[str, float] | None = None,
        extra: pd.DataFrame | None = None,
        neighbours: Sequence[int] = (0,),
        slices: pd.DataFrame | None = None,
        color_mode: str | None = None,
        target_size: tuple[int, int] | None = None,
        interpolation: str = "nearest",
        window: Window | str | Sequence[Window | str] | None = None,
        reader: Callable[[Path], np.ndarray] | None = None,
        preprocess: Callable[[np.ndarray], np.ndarray] | None = None,
        tta: Sequence[Callable | None] | Callable | None = None,
        on_error: str = "raise",
        seed: int | None = 0,
        epoch: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.ids = _index_of(ids)
        if len(self.ids) == 0:
            raise IchError("there are no samples: the list of ids is empty")
        if not pd.Index(self.ids.array).is_unique:  # pandas would keep a table of Python strings with our own
            twice = self.ids[self.ids.duplicated()].unique()
            raise IchError(f"ids are listed twice: {name_some(twice)}; give each sample once")
        if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise IchError(f"batch_size is {batch_size!r}, expected a whole number of at least 1")
        if on_error not in ("raise", "skip"):
            raise IchError(f"on_error is {on_error!r}, expected raise or skip")
        if shuffle is None:
            shuffle = labels is not None
        if labels is None and (shuffle or sampling is not None):
            raise IchError(
                "shuffle and sampling need labels: without them, order is what ties a prediction to its sample"
            )
        if on_error == "skip" and not shuffle and sampling is None:
            raise IchError(
                "on_error='skip' is for training, with shuffle or sampling: a prediction keeps to its sample"
            )
        if labels is None and weights is not None:
            raise IchError("weights need labels: they are of samples in the loss")
        functions = {"augment": augment, "sampling": sampling, "reader": reader, "preprocess": preprocess}
        for name, function in functions.items():
            if function is not None and not callable(function):
                advice = "; several transforms become one by A.Compose([…])" if name == "augment" else ""
                raise IchError(f"{name} is a {type(function).__name__}, expected a function{advice}")
        if sampling is not None and hasattr(sampling, "__len__") and len(sampling) != len(self.ids):
            raise IchError(f"the sampling is of {len(sampling):,} samples, the ids are {len(self.ids):,}")
        if seed is not None and not (isinstance(seed, Integral) and seed >= 0):
            raise IchError(f"seed is {seed!r}, expected a whole number from 0, or None to draw one")
        reading.check(color_mode, target_size, interpolation)
        suffixes = (suffix,) if isinstance(suffix, str) else tuple(suffix)
        offsets = tuple(neighbours) if isinstance(neighbours, Iterable) else ()
        if not offsets or not all(isinstance(offset, (int, np.integer)) for offset in offsets):
            raise IchError(f"neighbours is {neighbours!r}, expected offsets in the scan, such as (-1, 0, 1)")
        if labels is not None and not callable(labels):
            labels = targets.as_table(labels, "labels")
        self.labels = labels if labels is None or callable(labels) else targets.array_of(self.ids, labels, "labels")
        if num_classes is not None:
            self.labels = targets.one_hot(self.labels, num_classes)
        self.label_names = [str(name) for name in labels.columns] if isinstance(labels, pd.DataFrame) else None
        self.weights, self.extra = None, None
        if weights is not None:
            self.weights = targets.array_of(self.ids, targets.as_table(weights, "weights"), "weights")
            if self.weights.ndim != 1:
                raise IchError(f"weights have {self.weights.shape[1]} columns, expected one number an id: a Series")
        if extra is not None:
            extra = targets.as_table(extra, "extra inputs")
            if isinstance(extra, pd.Series):
                raise IchError(
                    "extra is a Series, expected a DataFrame: the names of its columns are those of the inputs"
                )
            names = [str(name) for name in extra.columns]
            if "image" in names:
                raise IchError("the input of images is called image; give that column of extra another name")
            self.extra = dict(zip(names, targets.array_of(self.ids, extra, "extra inputs").T[..., None], strict=True))
        self.class_indices: dict[Hashable, int] | None = None
        self.image_dir, self.suffix = Path("" if image_dir is None else image_dir), suffix
        self.batch_size, self.shuffle = batch_size, shuffle
        self.seed = secrets.randbits(64) if seed is None else int(seed)
        self.augment, self.sampling, self.preprocess = augment, sampling, preprocess
        self.tta, self.on_error = tta, on_error
        self.color_mode, self.target_size, self.interpolation = color_mode, target_size, interpolation
        self.window, self.reader = None if window is None else windows_of(window), reader
        self._skips = np.zeros(len(self.ids), np.uint32) if on_error == "skip" else None
        self._suffixes = suffixes
        self._files, self._neighbours = self.ids, None
        if offsets != (0,):
            if slices is None:
                raise IchError("neighbours need the slice table, which knows the order of slices: slices=…")
            self._files, self._neighbours = neighbours_in(slices, self.ids, offsets)
        if reader is None:
            self._look_for_files()
        self._pass: int | None = None
        self._make_local()
        self.set_epoch(epoch)

    def _look_for_files(self) -> None:
        """Count the images that are missing or that no reader takes, before an epoch meets the first of them."""
        ids = (self.ids if self._neighbours is None else self._files[np.unique(self._neighbours)]).tolist()
        files = [f"{self.image_dir}/<id>{suffix}" for suffix in self._suffixes]
        known = ", ".join(reading.SUFFIXES)
        names = [*self._suffixes, *(ids if "" in self._suffixes else [])]
        if self.window is None and any(str(name).lower().endswith(".dcm") for name in names):
            raise IchError("DICOM files are read through a window; say which, such as window='brain'")
        for suffix in self._suffixes:
            if suffix and not suffix.lower().endswith(reading.SUFFIXES):
                raise IchError(f"there are readers for {known}, none for {suffix!r}; give reader=")
            other = [] if suffix else [id for id in ids if not str(id).lower().endswith(reading.SUFFIXES)]
            if other:
                raise IchError(
                    f"{len(other):,} of {len(ids):,} names of files end in none of {known}, of which there are readers:"
                    f" {name_some(other)}; say suffix='.png' if the names lack it, or give reader="
                )
        lost = image_files.missing(self.image_dir, ids, self._suffixes)
        if lost:
            told = f"{len(lost):,} of {len(ids):,} samples lack {' or '.join(files)}: {name_some(lost)}"
            if self.on_error != "skip":
                raise IchError(f"{told}; were they converted? Leave them out, or correct image_dir and suffix")
            warnings.warn(f"{told}; others will be shown in their place", stacklevel=4)

    @classmethod
    @arguments.checked
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
                index; "categorical", one-hot, or several ones where y_col holds lists of classes (none of an empty
                list or array); None, no labels. `class_indices` tells which class is which.
            classes: those wanted, in order; rows of others alone are left out. None takes those that occur, sorted.
            weight_col: the column of sample weights.
            extra: columns that become inputs beside the image.
            **kwargs: as `DataGenerator` takes them.

        Raises:
            IchError: a column is missing, a row names no class, an unknown class_mode, or another number of classes
                than two for "binary".
        """
        if not isinstance(frame, pd.DataFrame):
            raise IchError(f"the frame is a {type(frame).__name__}, expected a pandas DataFrame with a row a sample")
        if not isinstance(x_col, Hashable):
            raise IchError(f"x_col is {x_col!r}, expected one column; several files a sample are suffix=('.a.png', …)")
        several = isinstance(y_col, (list, tuple, np.ndarray, pd.Index))
        y_cols = [] if y_col is None or class_mode is None else list(y_col) if several else [y_col]
        extra = [extra] if isinstance(extra, str) else list(extra or [])
        named = [x_col, *y_cols, *([weight_col] if weight_col else []), *extra]
        missing = [column for column in named if column not in frame.columns]
        if missing:
            raise IchError(f"the frame lacks the columns {name_some(missing)}; it has {', '.join(map(str, frame))}")
        twice = [column for column in dict.fromkeys(named) if list(frame.columns).count(column) > 1]
        if twice:
            raise IchError(f"the frame has several columns {name_some(twice)}; give each a name of its own")
        if class_mode not in CLASS_MODES:
            instead = arguments.CLASS_MODES.get(class_mode)
            raise IchError(
                f"class_mode is {class_mode!r}, expected one of {', '.join(map(str, CLASS_MODES))}"
                + (f"; write {instead}" if instead else "")
            )
        if class_mode is not None and not y_cols:
            raise IchError(f"class_mode {class_mode} needs a column of labels: y_col=…; class_mode=None has no labels")
        frame = frame.set_index(x_col, drop=False)
        labels, class_indices = None, None
        if class_mode == "raw":
            labels = frame[y_cols] if several else frame[y_cols[0]]
        elif class_mode is not None:
            if len(y_cols) != 1:
                raise IchError(
                    f"class_mode {class_mode} takes one column of classes, got {len(y_cols)}; raw takes more"
                )
            labels, class_indices, wanted = targets.class_labels(frame[y_cols[0]], class_mode, classes)
            frame = frame[wanted]
        made = cls(
            frame.index,
            labels,
            image_dir=image_dir,
            suffix=suffix,
            weights=frame[weight_col] if weight_col else None,
            extra=frame[extra] if extra else None,
            **kwargs,
        )
        made.class_indices = class_indices
        return made

    @classmethod
    @arguments.checked
    def from_directory(
        cls,
        path: str | Path,
        *,
        class_mode: str | None = "categorical",
        classes: Sequence[str] | None = None,
        **kwargs,
    ) -> "DataGenerator":
        """Samples from the folders of a folder, each of which is a class, as Keras's flow_from_directory had them.

        Ids are `<class>/<file>`, sorted by class, then folder, then file. A warning counts the files that are left out;
        see `image_files.in_folders`.

        Args:
            path: of folders whose names are the classes; all files in them of `ich.images.reading.SUFFIXES` are
                samples.
            class_mode, classes, **kwargs: as for `from_dataframe`; classes are the folders' names. "raw" is none.
                `class_indices` tells them with class_mode None too.

        Raises:
            IchError: no such folder, no images in it, or a name that is not UTF-8.
        """
        if class_mode == "raw":
            raise IchError(
                "class_mode raw needs columns of numbers; folders are classes: categorical, binary or sparse"
            )
        found, classes = image_files.in_folders(Path(path), classes)
        frame = pd.DataFrame(found, columns=["filename", "class"])
        made = cls.from_dataframe(frame, image_dir=path, class_mode=class_mode, classes=classes, **kwargs)
        made.class_indices = {name: index for index, name in enumerate(classes)}
        return made

    def __len__(self) -> int:
        return -(-len(self._plan[1]) // self.batch_size)

    def __getitem__(self, index: int):
        """Batch `index` of the epoch: x, (x, labels) or (x, labels, weights); x is an array, or a dict with `extra`."""
        in_worker = multiprocessing.current_process().name.startswith("Keras_worker")
        if in_worker:
            # A terminal's Ctrl-C reaches workers too. One that died of it would take its batch along, for which Keras
            # waits for ever; the process that trains ends them.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        if self.workers > 1 or self.use_multiprocessing:
            cv2.setNumThreads(1)  # workers are the parallel work; OpenCV's own threads would fight for the same cores
        epoch, order, repeat = self._plan
        places = slice(index * self.batch_size, (index + 1) * self.batch_size)
        rows, turns = order[places].copy(), repeat[places]
        ids = self.ids[rows].tolist()  # in one step: pandas takes longer for one of them than for some more
        batch, labels = None, []
        seeding = in_worker and self._runs_code_of_others()
        for place, (row, id, turn) in enumerate(zip(rows.tolist(), ids, turns.tolist(), strict=True)):
            if seeding:  # forked, all workers would begin with the same states
                seed = self._seed_of(id, epoch, turn)
                np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy state is what is to be seeded
                random.seed(seed)
            rows[place], image, label = self._sample(row, id, epoch, turn)
            labels.append(label)
            if batch is None:
                if image.nbytes >= _MAPPED:
                    _keep_memory()
                batch = (shared_memory.empty if in_worker else _aligned)((len(rows), *image.shape), image.dtype)
            batch[place] = image
        x = batch if self.extra is None else {"image": batch} | {k: v[rows] for k, v in self.extra.items()}
        if self.labels is None:
            return x
        y = self._stacked(rows, labels) if callable(self.labels) else self.labels[rows]
        return (x, y) if self.weights is None else (x, y, self.weights[rows])

    def ids_of(self, index: int) -> pd.Index:
        """The ids of batch `index` of the epoch, in its order: not that of `ids` if samples are shuffled or sampled.

        After `fit` the epoch is the next one, after `evaluate` the one that was shown. With on_error="skip" the ids are
        those of the samples that are shown; to know them, their images are read.
        """
        epoch, order, repeat = self._plan
        places = slice(index * self.batch_size, (index + 1) * self.batch_size)
        rows = order[places]
        if self.on_error == "skip":
            these = zip(rows, self.ids[rows], repeat[places], strict=True)
            rows = np.array([self._readable(row, id, epoch, turn)[0] for row, id, turn in these], dtype=np.int64)
        return self.ids[rows]

    @property
    def epoch(self) -> int:
        """The epoch whose batches these are, from 0."""
        return self._plan[0]

    def on_epoch_begin(self) -> None:
        """Keras calls it in `fit`, `evaluate` and `predict`; for anybody else it does nothing.

        Raises:
            IchError: `predict` on samples that are shuffled or sampled, or `fit` with fewer steps than batches.
        """
        call = epochs.keras_call(self)
        if call is None or not call.direct:
            return
        call.check_steps(self.batch_size)
        if call.method == "predict" and (self.shuffle or self.sampling is not None):
            call.stop_workers()
            raise IchError(
                "predict would give predictions in the order of this epoch, not in that of the ids; give a generator"
                " with shuffle=False and without sampling"
            )
        # A callback such as BackupAndRestore has changed it since `fit` began. Workers have started by now.
        if 0 < call.initial_epoch == call.epoch != self.epoch:
            with call.workers_stopped():
                self.set_epoch(call.epoch)

    def on_epoch_end(self) -> None:
        """Go to the next epoch, at the end of a loop of one's own or of an epoch of Keras's `fit`.

        Keras also calls it before the first epoch, which is then that of `fit(initial_epoch=…)` if given, and in
        `evaluate` and `predict`, which do not change the epoch. A callback's call during `fit` does nothing more.

        Raises:
            IchError: `fit` with fewer steps than batches.
        """
        call = epochs.keras_call(self)
        if call is None:
            self.set_epoch(self.epoch + 1)
        if call is None or not call.direct:
            return
        call.stop_workers()
        if call.method != "fit":
            return
        call.check_steps(self.batch_size)
        if not call.resets:
            self.set_epoch(self.epoch + 1)
        elif call.initial_epoch > 0:
            self.set_epoch(call.initial_epoch)

    def set_epoch(self, epoch: int) -> None:
        """Make the next batches those of this epoch (0-based)."""
        if not (isinstance(epoch, Integral) and epoch >= 0):
            raise IchError(f"epoch is {epoch!r}, expected a whole number from 0")
        rng = np.random.default_rng([self.seed, epoch])
        order = np.arange(len(self.ids)) if self.sampling is None else np.asarray(self.sampling(rng))
        if order.ndim != 1 or order.dtype.kind not in "iu" or len(order) == 0:
            raise IchError(f"the sampling gave {order.dtype} of {order.shape}, expected some places of samples, int64")
        if order.max() >= len(self.ids) or order.min() < 0:
            raise IchError(f"the sampling chose places outside the {len(self.ids):,} samples")
        if self.shuffle:
            order = rng.permutation(order)
        # A sample that an epoch shows again looks different each time.
        repeat = np.zeros(len(order), np.int64)
        if self.sampling is not None:
            repeat = pd.Series(order).groupby(order).cumcount().to_numpy()
        self._plan = epoch, order, repeat  # one assignment, so that no thread sees the order of another epoch

    def at_pass(self, k: int) -> "DataGenerator":
        """A generator of the same samples in the k-th TTA pass (0-based): the same wherever and whenever it runs.

        Raises:
            IchError: there is no `tta`, or no k-th transform in its list.
        """
        if self.tta is None or k < 0 or (not callable(self.tta) and k >= len(self.tta)):
            passes = 0 if self.tta is None else "any number of" if callable(self.tta) else len(self.tta)
            raise IchError(f"there is no pass {k}: tta gives {passes} passes, counted from 0")
        other = copy.copy(self)  # with copies of its own for threads: see __setstate__
        other._pass, other.on_error = k, "raise"
        other.__dict__.pop("_first", None)  # a pass may have a size of its own
        other.augment = self.tta if callable(self.tta) else self.tta[k]
        return other

    def preview(self, n: int = 8):
        """Draw the first n samples of the epoch: as they are in the files above, as the network sees them below.

        Returns:
            A matplotlib Figure, with each sample's id and positive labels (or label) as title.
        """
        from matplotlib.figure import Figure  # only here: training needs no pictures

        epoch, order, repeat = self._plan
        n = max(1, min(n, len(order)))
        figure = Figure(figsize=(2.2 * n, 5.6), layout="constrained")
        for column, (row, turn) in enumerate(zip(order[:n], repeat[:n], strict=True)):
            row, seen, _ = self._sample(row, self.ids[row], epoch, turn)
            above, below = (figure.add_subplot(2, n, line * n + column + 1) for line in (0, 1))
            for axes, image in ((above, self._read(row, self.ids[row])), (below, seen)):
                axes.imshow(**_drawable(image))
                axes.axis("off")
            # A line holds some 24 letters at this width, and six lines all labels of a slice.
            lines = [
                line for text in (str(self.ids[row]), self._label_text(row)) for line in wrap(text, 24, max_lines=6)
            ]
            above.set_title("\n".join(lines), fontsize=8, parse_math=False)
        return figure

    @property
    def skipped(self) -> dict[str, int]:
        """How often an image could not be read and another replaced it, by id, in this process and forked workers."""
        if self._skips is None:
            return {}
        rows = np.flatnonzero(self._skips)
        return dict(zip(self.ids[rows], self._skips[rows].tolist(), strict=True))

    def _stacked(self, rows: np.ndarray, found: list[np.ndarray]) -> np.ndarray:
        """The labels of a batch, from those of its samples."""
        for row, label in zip(rows, found, strict=True):
            if label.shape != found[0].shape:
                raise IchError(
                    f"the labels of {self.ids[row]} have the shape {label.shape}, those of {self.ids[rows[0]]}"
                    f" {found[0].shape}; give all samples labels of one shape"
                )
        return np.stack(found)

    def _label(self, row: int) -> np.ndarray:
        """The label of a sample; float32."""
        if not callable(self.labels):
            return self.labels[row]
        with _told(self.ids[row], "labels"):
            label = self.labels(self.ids[row])
        return targets.label_of(label, self.ids[row])

    def _label_text(self, row: int) -> str:
        """For a picture: the names of what is 1, if labels have names and are 0 or 1; else the numbers."""
        if self.labels is None:
            return ""
        label = np.atleast_1d(self._label(row))
        if label.ndim > 1:
            return f"labels of {label.shape}"
        if self.label_names is not None and np.isin(label, (0, 1)).all():
            return ", ".join(name for name, value in zip(self.label_names, label, strict=True) if value) or "none"
        if self.class_indices is not None and len(label) == 1:
            return str(list(self.class_indices)[int(label[0])])
        return " ".join(f"{value:g}" for value in label.ravel())

    def _sample(self, row: int, id: str, epoch: int, turn: int) -> tuple[int, np.ndarray, np.ndarray | None]:
        """Which sample is shown, itself or what replaces it if it cannot be read; its image; its label from a function.

        A label of two axes or more is a mask, which is augmented with the image.
        """
        chosen, image, unread = self._readable(row, id, epoch, turn)
        if unread:
            self._skips[unread] += 1
            id = self.ids[chosen]
        label = self._label(chosen) if callable(self.labels) else None
        if label is None or label.ndim < 2 or self.augment is None:
            return chosen, self._finished(image, id, epoch, turn)[0], label
        self._check_mask(label, image, id)
        return chosen, *self._finished(image, id, epoch, turn, label)

    def _check_mask(self, mask: np.ndarray, image: np.ndarray, id: str) -> None:
        if not hasattr(self.augment, "set_random_state"):
            raise IchError(
                f"the labels of {id} are a mask of {mask.shape}, and augment is a function of the image alone; give an"
                " albumentations transform, which augments both alike"
            )
        if image.ndim != 3 or mask.ndim > 3 or mask.shape[:2] != image.shape[:2]:
            raise IchError(
                f"the labels of {id} have the shape {mask.shape}, and its image of {image.shape} cannot be augmented"
                " with them: a mask has the height and width that the image has in the network; resize it, or leave"
                " augment out"
            )

    def _readable(self, row: int, id: str, epoch: int, turn: int) -> tuple[int, np.ndarray, list[int]]:
        """The sample that is shown in a sample's place, mostly itself; its image as read; those that cannot be read."""
        chosen, of, unread = row, id, []
        for attempt in range(_TRIES):
            try:
                return chosen, self._read(chosen, of), unread
            except IchError as error:
                if self.on_error == "raise":
                    raise
                last = error
                if chosen not in unread:
                    unread.append(chosen)
                chosen = _seed(self.seed, epoch, turn, attempt, id) % len(self.ids)
                of = self.ids[chosen]
        raise IchError(f"{id} and {_TRIES - 1} samples drawn in its place cannot be read; the last: {last}") from last

    def _finished(
        self, image: np.ndarray, id: str, epoch: int, turn: int, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """What a batch holds of a sample whose image has been read, and its mask."""
        if image.dtype != np.uint8 and self.preprocess is None and self.reader is None:
            raise IchError(f"{id} is {image.dtype}, expected uint8, 0 to 255; convert it, or give preprocess=")
        if self.augment is not None:
            with _told(id, "augment"):
                augmented, mask = self._augmented(image, mask, self._seed_of(id, epoch, turn))
            augmented = _array_of(augmented, id, "augment")
            # OpenCV's functions drop an axis of one channel.
            image = augmented[..., None] if augmented.ndim == 2 and image.ndim == 3 else augmented
        if self.preprocess is not None:
            with _told(id, "preprocess"):
                image = self.preprocess(image)
            image = _array_of(image, id, "preprocess", least=0)
        # In one step, so that of several threads one alone is the first.
        shape, dtype = self.__dict__.setdefault("_first", (image.shape, image.dtype))
        if (image.shape, image.dtype) != (shape, dtype):
            raise IchError(
                f"{id} gives {image.dtype} of {image.shape}, the first image gave {dtype} of {shape}; give"
                " target_size=, or an augmentation that keeps size and dtype"
            )
        return image, mask

    def _seed_of(self, id: str, epoch: int, turn: int) -> int:
        """Of what is drawn for a sample, 128 bits."""
        when = (epoch, turn) if self._pass is None else ("pass", self._pass)
        return _seed(self.seed, *when, id)

    def _runs_code_of_others(self) -> bool:
        """Whether images are made by code that may draw from the random states of NumPy and Python."""
        return self.reader is not None or self.preprocess is not None or _is_code_of_others(self.augment)

    def _read(self, row: int, id: str) -> np.ndarray:
        if self._neighbours is None:
            return self._file(id)
        try:
            slices = [self._shared_file(place) for place in self._neighbours[row].tolist()]
        except IchError as error:
            raise IchError(f"{id} with its neighbours: {error}") from error
        return _joined(slices, id)

    def _file(self, id: str) -> np.ndarray:
        """The image of a slice, in the colours and size asked for; of several files, their channels."""
        parts = []
        for suffix in self._suffixes:
            path = self.image_dir / f"{id}{suffix}"
            image = reading.read(path, self.window) if self.reader is None else self._own_reader(path)
            try:
                if self.color_mode is not None:
                    image = reading.recolor(image, self.color_mode)
                if self.target_size is not None:
                    alpha = self.color_mode == "rgba"
                    image = reading.resize(image, self.target_size, self.interpolation, alpha)
            except IchError as error:
                raise IchError(f"{path}: {error}") from error
            parts.append(image)
        return parts[0] if len(parts) == 1 else _joined(parts, id)

    def _own_reader(self, path: Path) -> np.ndarray:
        with _told(path, "reader"):
            image = self.reader(path)
        image = _array_of(image, path, "reader")
        return image[..., None] if image.ndim == 2 else image

    def _augmented(self, image: np.ndarray, mask: np.ndarray | None, seed: int) -> tuple[Any, np.ndarray | None]:
        if not hasattr(self.augment, "set_random_state"):
            return self.augment(image, np.random.default_rng(seed)), None
        # A Compose holds the state of its random numbers: shared by threads, it gives other images in each run.
        local = self._local
        if not hasattr(local, "augment"):
            # Not set_random_seed: it gives each transform of a Compose the same random numbers, so that those of equal
            # probability would happen together or not at all, and takes four times as long.
            local.augment, local.numpy, local.python = copy.deepcopy(self.augment), np.random.PCG64(0), random.Random()
            local.augment.set_random_state(np.random.Generator(local.numpy), local.python)
            local.state = local.numpy.state
        # The state itself, as a new generator's costs more than all that it draws.
        local.state["state"]["state"] = seed
        local.numpy.state = local.state
        local.python.seed(seed)
        if mask is None:
            return local.augment(image=image)["image"], None
        both = local.augment(image=image, mask=mask)
        return both["image"], both["mask"]

    def _make_local(self) -> None:
        """What does not pickle, and belongs to one process."""
        self._local = threading.local()
        self._shared_file = lru_cache(_SHARED)(lambda place: self._file(self._files[place]))
        if self._skips is not None:
            # Memory that forked workers share, so that what they skip is counted here too.
            shared = np.frombuffer(mmap.mmap(-1, self._skips.nbytes), self._skips.dtype)
            shared[:] = self._skips
            self._skips = shared

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("_local", "_shared_file")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._make_local()


def _index_of(ids: Any) -> pd.Index:
    """The list of samples, of whatever holds names one after the other."""
    if isinstance(ids, (str, Path, pd.DataFrame)):
        kind = type(ids).__name__
        raise IchError(f"ids is a {kind}, expected a list of ids; from_dataframe takes frames, from_directory folders")
    try:
        index = pd.Index(ids)
    except TypeError as error:  # a number, None
        raise IchError(f"ids is {ids!r}, expected a list of ids") from error
    if index.nlevels > 1 or index.hasnans:
        raise IchError("ids are missing for some samples, or are pairs; expected a name for each")
    return index


class _told:
    """Name the sample in what a function of the user's own raises: in a worker, nothing else tells it."""

    __slots__ = ("function", "which")

    def __init__(self, which: str | Path, function: str):
        self.which, self.function = which, function

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception):
            raise IchError(f"{self.which}: {self.function} raised {one_line(error, named=True)}") from error


_mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None


def _keep_memory() -> None:
    """Have glibc serve arrays of up to 32 MB from memory that it keeps, 128 MB of it (mallopt(3)).

    It comes to that by itself, unless a threshold is set: TensorFlow sets one when it makes a dataset of a generator.
    Each image is then put into memory new from the system, page by page, which takes a fifth of its time.
    """
    if _mallopt is not None:
        _mallopt(_M_MMAP_THRESHOLD, 2**25)
        _mallopt(_M_TRIM_THRESHOLD, 2**27)


def _array_of(given: Any, which: str | Path, function: str, least: int = 2) -> np.ndarray:
    """What a function of the user's own gave for a sample, as an array of numbers of at least so many axes."""
    try:
        array = np.asarray(given)
    except ValueError:  # a list of arrays of several shapes
        array = None
    if array is None or array.dtype.kind not in "buif" or array.ndim < least:
        what = f"{given.dtype} of {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
        raise IchError(f"{which}: {function} gave {what}, expected an image, an array of (height, width, channels)")
    return array


def _is_code_of_others(augment: Any) -> bool:
    """Whether a function, or a transform that is not albumentations' own, is an augmentation or a part of it."""
    if augment is None or type(augment).__module__.split(".")[0] == "albumentations":
        parts = getattr(augment, "transforms", ())
        return type(augment).__name__ == "Lambda" or any(map(_is_code_of_others, parts))
    return True


def _joined(parts: list[np.ndarray], id: str) -> np.ndarray:
    """Images side by side in the channels."""
    shapes = {(part.shape[:-1], part.dtype) for part in parts}
    if len(shapes) > 1:
        told = ", ".join(f"{part.dtype} of {part.shape}" for part in parts)
        raise IchError(f"{id} has images that do not fit into the channels of one: {told}; give target_size=")
    if parts[0].ndim == 3 and parts[0].dtype == np.uint8:
        merged = cv2.merge(parts)  # a tenth of the time
        return merged if merged.ndim == 3 else merged[..., None]  # of one image with one channel, cv2 drops it
    return np.concatenate(parts, axis=-1)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array at a multiple of 64 bytes, which TensorFlow takes over as it is; others it copies."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 63, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size].view(dtype).reshape(shape)


def _drawable(image: np.ndarray) -> dict[str, Any]:
    """What imshow takes: an image of three or four bytes a pixel in colour, else its middle channel in grey."""
    while image.ndim > 3:  # of a volume, the middle
        image = image[image.shape[0] // 2]
    if image.dtype == np.uint8 and image.shape[-1] in (3, 4):
        return {"X": image}
    limits = {"vmin": 0, "vmax": 255} if image.dtype == np.uint8 else {}
    return {"X": image[..., image.shape[-1] // 2], "cmap": "gray"} | limits


def _seed(*what: int | str) -> int:
    """128 bits from all of it. Python's own hash of a string differs from process to process."""
    digest = hashlib.blake2b("/".join(map(str, what)).encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")
