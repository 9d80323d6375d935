"""DataGenerator: images and labels in batches, for Keras.

It composes the steps from a list of ids to a batch, each a module of its own: `epoch_plan` (which samples in which
order), `sample_reader` (files → image), `augmenter`, `targets` (labels, weights, extra inputs) and `batch`; of samples
that are windows of a scan, `scan_windows`.
"""

import copy
import dataclasses
import secrets
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ich.data import arguments, batch, channels, frames, mixing, sample_reader, targets, user_code
from ich.data.augmenter import Augmenter
from ich.data.epoch_plan import EpochPlan, plan_epoch, seed_of
from ich.data.epochs import EpochDataset
from ich.data.sample_reader import SampleReader, SkipCounts
from ich.data.scan_windows import PADDING, ScanOrder, ScanWindows, mean_over_windows
from ich.dicom.windows import Window, windows_of
from ich.errors import IchError

_REPLACEMENTS = 15  # other samples tried in place of one that cannot be read


class DataGenerator(EpochDataset):
    """Batches of images (batch, height, width, channels) and, with labels, float32 labels (batch, n).

    What a sample looks like depends on (seed, epoch, id) alone: not on the number of workers, threads or processes, on
    the batch size, or on the other samples. Each epoch has an order and augmentations of its own; every sample appears
    in it once, or as often as `sampling` says, and the last batch holds what is left. `len()` is the epoch's length.
    With `mix`, a batch depends on (seed, epoch, number of the batch), and so on the batch size.

    Args:
        ids: the samples, each once; predictions are in their order. The file of one is `image_dir/<id><suffix>`.
        labels: a frame with a column a label, a Series or a dict, indexed by id; a function of an id; or None to
            predict: batches are then images alone. A list or an array is refused, as it does not say which label is of
            which id; pd.Series(values, index=ids) does. Masks, which a function gives as (height, width[, channels]) in
            the image's size, are augmented with their images, by an albumentations transform only; flattened ones are
            refused.
        image_dir: the images' folder; a dict or Series of each id's folder, with `neighbours` of every readable slice
            of their scans; None if ids are paths.
        suffix: of the files, one of `ich.images.reading.SUFFIXES`; empty if ids are names of files. Several, such as
            (".brain.png", ".bone.png"), are files whose channels are put one after the other.
        batch_size: samples in a batch.
        shuffle: a new order of the samples each epoch; None is True with labels, as in Keras's flow_from_…. Refused
            without labels, where order is what ties a prediction to its sample.
        num_classes: makes of a Series of whole numbers from 0 one-hot labels of that many columns.
        augment: an albumentations transform or Compose, or a function of an image and a `numpy.random.Generator`. Each
            thread works with a copy, seeded for each sample. A dtype and size that it changes to must be the same for
            all. Code of your own should draw from that generator. Whatever else a function given here draws from the
            global states of NumPy (`np.random.rand`), Python, OpenCV or torch (on the CPU) is the sample's own in
            worker processes alone, which seed them for each sample; with threads, and in this process, it goes on from
            sample to sample and differs from run to run. A generator object of your own, such as a module's
            `np.random.default_rng(5)`, is out of reach: each forked worker repeats the same numbers.
        augment_on: "cpu", or "device": the model applies `augment`, a Compose that `ich.data.affine_draw.AffineDraw`
            takes, in one warp, and `mix`, a `Mix`, behind it: `ich.models.augmented.with_augmentation` makes the model
            that does. x is a dict: "unaugmented", images as read, (batch, files, height, width, channels), the files
            being those whose channels the model puts one after the other, or one if they differ in shape; "augment",
            (batch, 8), what is drawn for each sample, by the same random numbers as on the CPU; with `mix` also "mix".
            Images are uint8, without `preprocess`.
        sampling: which samples an epoch shows; see `ich.data.sampling`. None shows all.
        mix: `ich.data.mixing.Mix(cutmix=1.0)` for MixUp and CutMix, or a function of a finished batch (images, labels,
            weights or None, numpy.random.Generator) that gives the first three, in their shapes. In training alone:
            with labels, and a shuffle or sampling.
        weights: of the samples in the loss, indexed by id; a third item of each batch, float32.
        extra: inputs beside the image, indexed by id: images become the input "image" of a dict, and each column one by
            its name, float32, shape (batch, 1). Standardize them: they are taken as they are.
        neighbours: offsets in the scan, such as (-1, 0, 1): the channels of these slices one after the other. Edges
            repeat the last slice; one that cannot be read is replaced by the nearest that can.
        slices: the slice table, which `neighbours` and `scan` need.
        scan: makes a sample of this many consecutive slices of a series, in scan order. x is a dict: "image", (batch,
            scan, height, width, channels); "mask", (batch, scan), 1 for slices and 0 for what a short scan lacks behind
            them; "z", (batch, scan), mm from the sample's first slice. Labels are (batch, scan, n), and weights (batch,
            scan) are given too, 0 where mask is. With labels each slice is shown once an epoch, with a shuffle in a
            window drawn anew; without labels windows overlap by half, and `mean_over_windows` gives predictions of
            slices. `augment` works on each slice with the same random numbers. `sampling` chooses windows.
        color_mode, target_size, interpolation: as Keras has them, to the pixel, but for the gray of colors, which may
            differ by one level; None keeps a file's own. See `ich.images.reading`, which has one interpolation more.
        window: for .dcm files, a `Window` or the name of a preset, such as "brain"; several give a channel each.
        reader: a function of a path that gives an array (height, width[, channels]), in place of
            `ich.images.reading.read`. Without one, missing files are reported when the generator is made. With
            `neighbours` samples share what it gives, so that it should draw nothing at random.
        preprocess: a function of the finished image; what it gives is what a batch holds, in its dtype.
        tta: what the TTA passes over a sample see: a list of transforms as for `augment`, None among them being the
            image as it is, or one transform that draws each pass anew. `at_pass(k)` gives a generator of the k-th.
        on_error: "raise", or "skip": another sample, the same in each run, replaces one whose image cannot be read,
            and `skipped` counts it. Only with labels and a shuffle or sampling: a prediction is never that of another
            sample.
        seed: of order, sampling and augmentation, a whole number from 0. None draws one; the attribute `seed` holds it.
        epoch: the first epoch's number. Each epoch of `fit` is the next one; `fit(initial_epoch=k)` with k above 0, and
            `BackupAndRestore`, begin at epoch k.
        **kwargs: workers, use_multiprocessing, max_queue_size, as keras.utils.PyDataset takes them. Processes are
            faster than threads, which share Python's lock; see `ich.data.shared_memory` for how their batches arrive.
            With workers, OpenCV works with one thread each from the first batch on, in the whole process. With images
            of 128 kB or more, the process keeps up to 128 MB of freed memory for later arrays (on Linux).

    Raises:
        IchError: arguments that do not fit together or with the ids, or that only other generators have; images that
            are missing (under on_error="skip" a warning counts them); at reading, an image that cannot be read, is not
            uint8 (without `preprocess` or `reader`) or differs in shape or dtype from the first, and whatever a
            function given here raised. The message names the sample.

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
        image_dir: str | Path | Mapping[str, str | Path] | pd.Series | None = ".",
        suffix: str | Sequence[str] = ".png",
        batch_size: int = 32,
        shuffle: bool | None = None,
        num_classes: int | None = None,
        augment: Callable | None = None,
        augment_on: str = "cpu",
        sampling: Callable[[np.random.Generator], np.ndarray] | None = None,
        mix: Callable | None = None,
        weights: pd.Series | Mapping[str, float] | None = None,
        extra: pd.DataFrame | None = None,
        neighbours: Sequence[int] = (0,),
        slices: pd.DataFrame | None = None,
        scan: int | None = None,
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
        self.ids = arguments.index_of(ids)
        self.shuffle = labels is not None if shuffle is None else shuffle
        arguments.check_numbers(batch_size, seed, shuffle=self.shuffle, use_multiprocessing=self.use_multiprocessing)
        arguments.check_functions(augment=augment, sampling=sampling, mix=mix, reader=reader, preprocess=preprocess)
        chooses = self.shuffle or sampling is not None
        arguments.check_purpose(labels, weights, extra, mix, scan, on_error, augment_on, chooses)
        self.scan = scan
        self._windows = None if scan is None else ScanWindows(ScanOrder.of(self.ids, slices), scan, labels is None)
        if sampling is not None and hasattr(sampling, "__len__") and len(sampling) != self.sample_count:
            samples = "ids" if scan is None else "windows of scans"
            raise IchError(f"the sampling is of {len(sampling):,} samples, the {samples} are {self.sample_count:,}")

        self.labels, self.label_names = targets.labels_of(self.ids, labels, num_classes)
        # Of a label in the table, which could be a flattened mask; one-hot ones are none.
        in_table = isinstance(self.labels, np.ndarray) and num_classes is None
        self._numbers = len(self.label_names or (0,)) if in_table else 1
        self.weights = None if weights is None else targets.weights_of(self.ids, weights)
        self.extra = None if extra is None else targets.extra_of(self.ids, extra)
        self.class_indices: dict[Hashable, int] | None = None
        folder, suffixes = sample_reader.folders_of(image_dir), (suffix,) if isinstance(suffix, str) else tuple(suffix)
        look = (color_mode, target_size, interpolation, None if window is None else windows_of(window), reader)
        ordered, overlapping = scan is not None or not self.shuffle, scan is not None and labels is None
        self._reader = SampleReader(self.ids, folder, suffixes, neighbours, slices, *look, ordered, overlapping)
        if reader is None:
            self._reader.check_files(may_lack=on_error == "skip")
        if isinstance(mix, mixing.Mix) and isinstance(self.labels, np.ndarray):
            mix.check_labels(self.labels)
        self._augmenter, self.mix, self.preprocess, self.tta = Augmenter(augment), mix, preprocess, tta
        self._draw = None if augment_on == "cpu" else _draw_for_model(augment, mix, preprocess)
        self.on_error, self._skips = on_error, SkipCounts(len(self.ids))
        self.batch_size, self.sampling = batch_size, sampling
        self.seed = secrets.randbits(64) if seed is None else int(seed)
        self._pass: int | None = None
        self._first: dict[str, Any] = {}  # shape, dtype and files of the first image
        self.set_epoch(epoch)

    @classmethod
    @arguments.checked
    def from_dataframe(
        cls,
        frame: pd.DataFrame,
        x_col: str = "filename",
        y_col: str | Sequence[str] | None = "class",
        *,
        image_dir: str | Path | Mapping[str, str | Path] | pd.Series | None = ".",
        class_mode: str | None = "categorical",
        classes: Sequence[Hashable] | None = None,
        weight_col: str | None = None,
        extra: Sequence[str] | None = None,
        suffix: str = "",
        **kwargs,
    ) -> "DataGenerator":
        """Make a generator of the rows of a frame, as Keras's flow_from_dataframe did.

        Args:
            frame: a row a sample.
            x_col: the column of file names, or of ids if there is a suffix.
            y_col: the column of labels, or several for "raw".
            class_mode: "raw", the column or columns as numbers; "binary", a class of two as 0 or 1; "sparse", its
                index; "categorical", one-hot, or several ones where y_col holds lists of classes (none of an empty
                list or array); None, no labels. `class_indices` holds the index of each class.
            classes: in order; rows of others alone are left out. None takes those that occur, sorted.
            weight_col: the column of sample weights.
            extra: columns that become inputs beside the image.
            **kwargs: as `DataGenerator` takes them.

        Raises:
            IchError: a column is missing, a row names no class, an unknown class_mode, or another number of classes
                than two for "binary".
        """
        doubled = [name for name in ("ids", "labels", "weights") if name in kwargs]
        if doubled:
            raise IchError(
                f"{', '.join(doubled)} of from_dataframe are columns of the frame: name them by x_col=, y_col= and"
                " weight_col="
            )
        if class_mode == "sparse" and kwargs.get("mix") is not None:
            raise IchError("mix mixes labels, and class_mode sparse gives numbers of classes; write categorical")
        samples, class_indices = frames.samples_of(frame, x_col, y_col, class_mode, classes, weight_col, extra)
        generator = cls(**samples, image_dir=image_dir, suffix=suffix, **kwargs)
        generator.class_indices = class_indices
        if class_indices is not None:
            generator._numbers = 1
        return generator

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
        """Make a generator of the folders of a folder, each of which is a class, as Keras's flow_from_directory did.

        Ids are `<class>/<file>`, sorted by class, then folder, then file. A warning counts the files that are left out;
        see `frames.in_folders`.

        Args:
            path: of folders whose names are the classes; all files in them of `ich.images.reading.SUFFIXES` are
                samples.
            class_mode, classes, **kwargs: as for `from_dataframe`; classes are the folders' names. "raw" is none.
                `class_indices` holds their indices with class_mode None too.

        Raises:
            IchError: no such folder, no images in it, or a name that is not UTF-8.
        """
        if class_mode == "raw":
            raise IchError(
                "class_mode raw needs columns of numbers; folders are classes: categorical, binary or sparse"
            )
        if "image_dir" in kwargs:
            raise IchError("from_directory takes the folder as its first argument, and no image_dir")
        images, classes = frames.in_folders(Path(path), classes)
        frame = pd.DataFrame(images, columns=["filename", "class"])
        generator = cls.from_dataframe(frame, image_dir=path, class_mode=class_mode, classes=classes, **kwargs)
        generator.class_indices = {name: index for index, name in enumerate(classes)}
        return generator

    def __getitem__(self, index: int):
        """Return batch `index` of the epoch: x, (x, labels) or (x, labels, weights); with `extra`, x is a dict."""
        result = self._batch(index)
        return result if self._draw is None else batch.name_unaugmented(result)

    def _batch(self, index: int):
        in_worker = batch.enter_process(parallel=self.workers > 1 or self.use_multiprocessing)
        plan = self._plan
        rows, repeats = plan.batch(index)
        if self._windows is None:
            samples = self._samples(plan.epoch, rows, repeats, in_worker)
            result = batch.make_batch(samples, len(rows), self.labels, self.weights, self.extra, in_worker, self._draw)
        else:
            slices = plan.slices(index)
            images = self._images_of_windows(plan.epoch, slices, repeats, in_worker)
            labels = self.labels if isinstance(self.labels, np.ndarray) else None  # there are no functions of scans
            inputs = self._windows.inputs(slices)
            result = batch.make_scan_batch(images, slices, inputs, labels, self.weights, in_worker)
            if self._draw is not None:
                x, shown = result[0] if isinstance(result, tuple) else result, self.ids[slices[:, 0]]
                seeds = (self._seed_of(id, plan.epoch, repeat) for id, repeat in zip(shown, repeats, strict=True))
                x["augment"] = self._draw.of_batch(x["image"], seeds)
        if self.mix is None:
            return result
        seed = seed_of(self.seed, "mix", plan.epoch, index)
        if in_worker:
            user_code.seed_global_states(seed)
        if isinstance(self.mix, mixing.Mix) and self._draw is not None:
            return mixing.draw_for_model(result, self.mix, np.random.default_rng(seed))
        return mixing.mix_batch(result, self.mix, np.random.default_rng(seed), f"batch {index} of epoch {plan.epoch}")

    def ids_of(self, index: int) -> pd.Index:
        """Return the ids of batch `index` of the epoch, in its order: not that of `ids` if it is shuffled or sampled.

        With `scan` these are the ids of all its slices.

        In callbacks `index` is the batch's number. After `fit`, and in a callback's `on_epoch_end`, the epoch is the
        next one, after `evaluate` the one that was shown. With on_error="skip" the ids are those of the samples that
        are shown; to know them, their images are read.

        Raises:
            IchError: in a callback of a `fit` without shuffle=False: Keras then shuffles batches, and its number of a
                batch is not the generator's.
        """
        self.check_batches_in_order()
        plan = self._plan
        rows, repeats = plan.batch(index)
        if self._windows is not None:
            slices = plan.slices(index)
            return self.ids[slices[slices != PADDING]]
        if self.on_error == "skip":
            samples = zip(rows, self.ids[rows], repeats, strict=True)
            rows = np.array([self._read(row, id, plan.epoch, repeat)[0] for row, id, repeat in samples], np.int64)
        return self.ids[rows]

    def plan_of(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch."""
        plan = plan_epoch(epoch, self.sample_count, self.batch_size, self.seed, self.shuffle, self.sampling)
        if self._windows is None:
            return plan
        rng = np.random.default_rng([self.seed, plan.epoch, 1]) if self.shuffle else None
        return dataclasses.replace(plan, windows=self._windows.layout(rng)[plan.rows])

    @property
    def sample_count(self) -> int:
        """The number of samples: slices, or with `scan` windows of them."""
        return len(self.ids) if self._windows is None else len(self._windows)

    def mean_over_windows(self, outputs: np.ndarray) -> np.ndarray:
        """Return a model's outputs for the slices, in the order of `ids`, of its outputs for all samples.

        Args:
            outputs: shape (samples, …), or with `scan` (samples, scan, …): a slice gets the mean over its windows.
        """
        if self._windows is None:
            return outputs
        return mean_over_windows(outputs, self._plan.windows, len(self.ids))

    @property
    def augment(self) -> Callable | None:
        """The augmentation; of a generator of `at_pass`, the pass's transform."""
        return self._augmenter.augment

    @property
    def skipped(self) -> dict[str, int]:
        """How often an image could not be read and another replaced it, by id, in this process and forked workers."""
        return {self.ids[row]: count for row, count in self._skips.counts().items()}

    def at_pass(self, k: int) -> "DataGenerator":
        """Return a generator of the k-th TTA pass (0-based) over the same samples, the same wherever it runs.

        Raises:
            IchError: there is no `tta`, or no k-th transform in its list.
        """
        if self.tta is None or k < 0 or (not callable(self.tta) and k >= len(self.tta)):
            passes = 0 if self.tta is None else "any number of" if callable(self.tta) else len(self.tta)
            raise IchError(f"there is no pass {k}: tta gives {passes} passes, counted from 0")
        other = copy.copy(self)
        other._pass, other.on_error, other.mix, other._draw = k, "raise", None, None
        other._first = {}  # a pass may have a size of its own
        other._augmenter = Augmenter(self.tta if callable(self.tta) else self.tta[k])
        return other

    def preview(self, n: int = 8):
        """Draw the first n samples of the epoch: as in the files above, as the network sees them, unmixed, below.

        With `scan` the first n slices.

        Returns:
            A matplotlib Figure, with each sample's id and positive labels (or label) as title.
        """
        from ich.data import preview  # only here: training needs no matplotlib

        plan, drawn = self._plan, []
        n = max(1, n)
        looking = copy.copy(self)
        looking._skips = SkipCounts(len(self.ids))  # nothing is shown to a network
        looking._draw, looking._first = None, {}  # the CPU augments by the same random numbers
        samples = looking._samples(plan.epoch, plan.rows[:n], plan.repeats[:n])
        if self._windows is not None:
            rows = plan.windows[:n][plan.windows[:n] != PADDING][:n]
            images = looking._images_of_windows(plan.epoch, plan.windows[:n], plan.repeats[:n])
            samples = (batch.Sample(row, self.ids[row], image) for row, image in zip(rows, images, strict=False))
        for sample in samples:
            label = self.labels[sample.row] if isinstance(self.labels, np.ndarray) else sample.label
            text = preview.label_text(label, self.label_names, self.class_indices)
            stored = channels.joined(self._reader.read(sample.row, sample.id))
            drawn.append(((str(sample.id), text), stored, channels.joined(sample.image)))
        return preview.draw(drawn)

    def _samples(
        self, epoch: int, rows: np.ndarray, repeats: np.ndarray, in_worker: bool = False
    ) -> Iterator[batch.Sample]:
        """Yield samples as a batch holds them, each itself or what replaces it if it cannot be read."""
        seeds_states = in_worker and self._calls_user_code()
        ids = self.ids[rows].tolist()  # in one step: pandas takes longer for one of them than for some more
        for row, id, repeat in zip(rows.tolist(), ids, repeats.tolist(), strict=True):
            if seeds_states:
                user_code.seed_global_states(self._seed_of(id, epoch, repeat))
            shown, image, unreadable = self._read(row, id, epoch, repeat)
            if unreadable:
                self._skips.add(unreadable)
                id = self.ids[shown]
            label = None
            if callable(self.labels):
                label = targets.label_of(user_code.call("labels", id, self.labels, id), id)
            seed = self._seed_of(id, epoch, repeat)
            yield batch.Sample(shown, id, *self._finish(image, label, id, seed), seed)

    def _images_of_windows(
        self, epoch: int, windows: np.ndarray, repeats: np.ndarray, in_worker: bool = False
    ) -> Iterator[channels.Image]:
        """Yield the images of the slices of windows, each as a batch holds it; those of a window by the same seed."""
        seeds_states = in_worker and self._calls_user_code()
        for rows, repeat in zip(windows, repeats.tolist(), strict=True):
            rows = rows[rows != PADDING]
            ids = self.ids[rows].tolist()
            seed = self._seed_of(ids[0], epoch, repeat)
            for row, id in zip(rows.tolist(), ids, strict=True):
                if seeds_states:
                    user_code.seed_global_states(seed)
                yield self._finish(self._reader.read(row, id), None, id, seed)[0]

    def _calls_user_code(self) -> bool:
        """Whether a sample may draw from global random states, with which all forked workers would begin alike."""
        functions = (self._reader.reader, self.labels if callable(self.labels) else None, self.augment, self.preprocess)
        return any(map(user_code.has_user_code, functions))

    def _read(self, row: int, id: str, epoch: int, repeat: int) -> tuple[int, channels.Image, list[int]]:
        """Read a sample, or with on_error="skip" another one: its row, its image, the rows that cannot be read."""
        if self.on_error == "raise":
            return row, self._reader.read(row, id), []
        seeds = (seed_of(self.seed, epoch, repeat, attempt, id) for attempt in range(_REPLACEMENTS))
        return self._reader.read_or_replace(row, id, (seed % len(self.ids) for seed in seeds))

    def _finish(
        self, image: channels.Image, label: np.ndarray | None, id: str, seed: int
    ) -> tuple[channels.Image, np.ndarray | None]:
        """Augment, preprocess and check an image as it is read, and augment its label if it is a mask.

        What the model augments is only checked.
        """
        if image.dtype != np.uint8 and self.preprocess is None and self._reader.reader is None:
            raise IchError(f"{id} is {image.dtype}, expected uint8, 0 to 255; convert it, or give preprocess=")
        if self._draw is None:
            image, label = self._augmenter(image, label, id, seed, self._numbers)
        else:
            self._draw.check(image, label, id)
            self._augmenter.check_label(image, label, id, self._numbers)
        if self.preprocess is not None:
            given = user_code.call("preprocess", id, self.preprocess, channels.joined(image))
            image = user_code.as_image(given, "preprocess", id, min_axes=0)
        # In one step, so that of several threads one alone is the first.
        shape, dtype = self._first.setdefault("image", (image.shape, image.dtype))
        if (image.shape, image.dtype) != (shape, dtype):
            raise IchError(
                f"{id} gives {image.dtype} of {image.shape}, the first image gave {dtype} of {shape}; give"
                " target_size=, or an augmentation that keeps size and dtype"
            )
        if self._draw is not None:
            image = channels.apart(image, self._first.setdefault("files", channels.files_of(image)))
        return image, label

    def _seed_of(self, id: str, epoch: int, repeat: int) -> int:
        """Return the seed of a sample's augmentation, 128 bits."""
        when = (epoch, repeat) if self._pass is None else ("pass", self._pass)
        return seed_of(self.seed, *when, id)


def _draw_for_model(*arguments: Any) -> Any:
    from ich.data import affine_draw  # only here: a generator without transforms needs no albumentations

    return affine_draw.for_model(*arguments)
