"""Reading a sample: from its files and those of its neighbours in the scan to one image."""

import mmap
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import InitVar, dataclass
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from ich.data import arguments, channels, user_code
from ich.dicom.windows import Window
from ich.errors import IchError, name_some
from ich.images import reading
from ich.images.slice_table import neighbours as neighbours_in

_CACHED = 96  # decoded images kept for samples that share them as neighbours
_FEW = 64  # files of a folder that are asked for one by one, and the folder not listed


@dataclass(eq=False)
class SampleReader:
    """Reads the image of a sample. Arguments are those of `DataGenerator`; a sample's row is its place in `ids`.

    Raises:
        IchError: neighbours without a slice table or not in it, folders that lack a slice, or an unknown color_mode,
            size or interpolation.
    """

    ids: pd.Index
    image_dir: Path | dict[str, Path]  # as `folders_of` gives it
    suffixes: Sequence[str] = (".png",)
    neighbours: Sequence[int] = (0,)
    slices: InitVar[pd.DataFrame | None] = None
    color_mode: str | None = None
    target_size: tuple[int, int] | None = None
    interpolation: str = "nearest"
    windows: Sequence[Window] | None = None
    reader: Callable[[Path], np.ndarray] | None = None
    ordered: bool = True  # whether slices of a scan come one after the other, and share neighbours
    overlapping: bool = False  # whether also each slice comes again soon

    def __post_init__(self, slices: pd.DataFrame | None) -> None:
        reading.check(self.color_mode, self.target_size, self.interpolation)
        offsets = tuple(self.neighbours) if isinstance(self.neighbours, Iterable) else ()
        if not offsets or not all(isinstance(offset, (int, np.integer)) for offset in offsets):
            raise IchError(f"neighbours is {self.neighbours!r}, expected offsets in the scan, such as (-1, 0, 1)")
        known, self._places = self.ids, None  # all slices; of these the sample's and its neighbours' places
        if offsets == (0,) and self.overlapping:
            self._places = np.arange(len(self.ids), dtype=np.int32)[:, None]
        if offsets != (0,):
            if slices is None:
                raise IchError("neighbours need the slice table, which knows the order of slices: slices=…")
            known, self._places = neighbours_in(slices, self.ids, offsets)
        if self._places is not None:  # a sample's ids in 3 µs, of pandas in 70 to 300; 16 bytes a slice
            self._known = np.asarray(known, object)
            if pd.api.types.infer_dtype(self._known, skipna=False) == "string":  # others are numbers or paths
                self._known = self._known.astype(np.dtypes.StringDType(coerce=False))
        if isinstance(self.image_dir, dict):
            lacking = [id for id in self._needed() if id not in self.image_dir]
            if lacking:
                raise IchError(f"image_dir names no folder of {len(lacking):,} slices: {name_some(lacking)}")

    def _folder(self, id: str) -> Path:
        return self.image_dir[id] if isinstance(self.image_dir, dict) else self.image_dir

    def _needed(self) -> list:
        """Return the ids of all images: of the samples and their neighbours."""
        return (self.ids if self._places is None else self._known[np.unique(self._places)]).tolist()

    def check_files(self, may_lack: bool) -> None:
        """Check before the first epoch that all files are there and have a reader.

        Args:
            may_lack: whether missing files give a warning and no error.

        Raises:
            IchError: a suffix without a reader, DICOM files without a window, or missing files.
        """
        ids = self._needed()
        readable = ", ".join(reading.SUFFIXES)
        names = [*self.suffixes, *(ids if "" in self.suffixes else [])]
        if self.windows is None and any(str(name).lower().endswith(".dcm") for name in names):
            raise IchError("DICOM files are read through a window; say which, such as window='brain'")
        for suffix in self.suffixes:
            if suffix and not suffix.lower().endswith(reading.SUFFIXES):
                raise IchError(f"there are readers for {readable}, none for {suffix!r}; give reader=")
            unreadable = [] if suffix else [id for id in ids if not str(id).lower().endswith(reading.SUFFIXES)]
            if unreadable:
                raise IchError(
                    f"{len(unreadable):,} of {len(ids):,} names of files end in none of {readable}, of which there are"
                    f" readers: {name_some(unreadable)}; say suffix='.png' if the names lack it, or give reader="
                )
        of_folder: dict[Path, list] = {}
        for id in ids:
            of_folder.setdefault(self._folder(id), []).append(id)
        lost, folder = [], Path()
        for directory, in_it in of_folder.items():
            lost += (lacking := _missing(directory, in_it, self.suffixes))
            folder = directory if lacking else folder
        if lost:
            files = " or ".join(f"{folder}/<id>{suffix}" for suffix in self.suffixes)
            message = f"{len(lost):,} of {len(ids):,} samples lack {files}: {name_some(lost)}"
            if not may_lack:
                raise IchError(f"{message}; were they converted? Leave them out, or correct image_dir and suffix")
            arguments.warn(f"{message}; others will be shown in their place")

    def read(self, row: int, id: str) -> channels.Image:
        """Return the image of a sample, shape (height, width, channels), or as the file or `reader` has it.

        One of several files is usually given in parts, which may be those of other samples: they are not to be changed.

        Args:
            id: of the same sample; pandas takes longer to look up one id than a batch of them.

        Raises:
            IchError: a file cannot be read, or images do not fit into the channels of one; the message names it.
        """
        if self._places is None:
            return self._image(id)
        ids = self._known[self._places[row]].tolist()
        try:
            slices = {id: self._slice(id) for id in dict.fromkeys(ids)}  # once where the last one is repeated
        except IchError as error:
            if len(self.neighbours) == 1:
                raise
            raise IchError(f"{id} with its neighbours: {error}") from error
        return channels.stack([slices[id] for id in ids], id)

    def read_or_replace(self, row: int, id: str, replacements: Iterable[int]) -> tuple[int, channels.Image, list[int]]:
        """Return the image of a sample or, if it cannot be read, of the first of other rows that can.

        Returns:
            (row, image, unreadable): the row whose image it is, and the rows that could not be read.

        Raises:
            IchError: none can be read.
        """
        unreadable: list[int] = []
        candidates = chain([(row, id)], ((other, self.ids[other]) for other in replacements))
        for replaced, candidate in enumerate(candidates):
            try:
                return candidate[0], self.read(*candidate), unreadable
            except IchError as error:
                last, tried = error, replaced
                if candidate[0] not in unreadable:
                    unreadable.append(candidate[0])
        raise IchError(f"{id} and {tried} samples drawn in its place cannot be read; the last: {last}") from last

    @cached_property
    def _slice(self) -> Callable[[str], channels.Image]:
        # Kept in vain, images cost a quarter of a millisecond each: none lies where the processor's cache still holds
        # the last one.
        return lru_cache(_CACHED)(self._shared) if self.ordered else self._image

    def _shared(self, id: str) -> channels.Image:
        """Read a slice that several samples show: read-only, so that each copies what it changes."""
        image = self._image(id)
        if isinstance(image, np.ndarray):
            image = image.view()
            image.flags.writeable = False
        return image

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_slice"}

    def _image(self, id: str) -> channels.Image:
        """Read a slice in the color and size asked for; of several files, all channels."""
        images: list[channels.Image] = []
        folder = self._folder(id)
        for suffix in self.suffixes:
            path = folder / f"{id}{suffix}"
            if self.reader is None:
                image = reading.view(path, self.windows)
            else:
                image = user_code.as_image(user_code.call("reader", path, self.reader, path), "reader", path)
                image = image[..., None] if image.ndim == 2 else image
            try:
                if self.color_mode is not None:
                    image = reading.recolor(image, self.color_mode)
                if self.target_size is not None:
                    alpha = self.color_mode == "rgba"
                    image = reading.resize(image, self.target_size, self.interpolation, alpha)
            except IchError as error:
                raise IchError(f"{path}: {error}") from error
            images.append(image)
        return channels.stack(images, id)


def folders_of(image_dir: str | Path | Mapping[str, str | Path] | pd.Series | None) -> Path | dict[str, Path]:
    """Return the folder of images, or that of each id; None stands before ids that are paths.

    Raises:
        IchError: a Series that lists an id twice.
    """
    if not isinstance(image_dir, (Mapping, pd.Series)):
        return Path(image_dir or "")
    if isinstance(image_dir, pd.Series) and not image_dir.index.is_unique:
        raise IchError(f"image_dir lists {name_some(image_dir.index[image_dir.index.duplicated()].unique())} twice")
    paths: dict[str | Path, Path] = {}  # one for all ids of a folder
    return {id: paths.setdefault(folder, Path(folder)) for id, folder in image_dir.items()}


def _missing(folder: Path, ids: list, suffixes: Sequence[str]) -> list:
    """Return the ids that lack a file `folder/<id><suffix>`."""
    names = list(map(str, ids))
    listed: dict[str, set[str]] = {}  # folders with many files: a quarter of the time of asking for each file
    for inner, count in Counter(name.rpartition("/")[0] for name in names).items():
        if count > _FEW:
            with suppress(OSError):  # where it cannot be listed, each of its files is asked for
                listed[inner] = set(os.listdir(folder / inner))  # noqa: PTH208  (iterdir makes a Path of each)

    def is_there(name: str, suffix: str) -> bool:
        inner, _, last = name.rpartition("/")
        # What the list lacks may still be found: in a file system that ignores case, or a folder in the suffix.
        return f"{last}{suffix}" in listed.get(inner, ()) or Path(folder, f"{name}{suffix}").exists()

    return [id for id, name in zip(ids, names, strict=True) if not all(is_there(name, suffix) for suffix in suffixes)]


class SkipCounts:
    """Counts by row how often each of so many samples could not be read, in memory that forked workers share."""

    def __init__(self, samples: int, counts: Mapping[int, int] | None = None):
        self._counts = np.frombuffer(mmap.mmap(-1, 4 * samples), np.uint32)
        for row, count in (counts or {}).items():
            self._counts[row] = count

    def add(self, rows: list[int]) -> None:
        """Count rows, each of which is listed once."""
        self._counts[rows] += 1

    def counts(self) -> dict[int, int]:
        """Return the counts above 0."""
        rows = np.flatnonzero(self._counts)
        return dict(zip(rows.tolist(), self._counts[rows].tolist(), strict=True))

    def __reduce__(self):
        return SkipCounts, (len(self._counts), self.counts())
