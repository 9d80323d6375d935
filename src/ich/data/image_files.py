"""Which image files there are: those of a folder a class, and those that are missing."""

import os
import warnings
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ich.errors import IchError, name_some
from ich.images.reading import SUFFIXES

_FEW = 64  # files of a folder that are asked for one by one, and the folder not listed
_READABLE = ", ".join(SUFFIXES)


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
            f"{path} has no images ({_READABLE}) in folders of {name_some(classes) or 'classes'}; there are:"
            f" {counts or 'no files at all'}"
        )
    if counts:
        warnings.warn(f"{path}: left out are {counts}; read are {_READABLE}", stacklevel=3)
    return images, list(classes)


def _images(files: Iterable[str]) -> list[str]:
    return [file for file in files if file.lower().endswith(SUFFIXES) and not file.startswith(".")]


def _refuse(error: OSError) -> None:
    raise IchError(f"{error.filename} cannot be listed: {error.strerror}; give it rights to read") from error


def check(folder: Path, ids: Sequence[Hashable], suffixes: Sequence[str], has_window: bool, may_lack: bool) -> None:
    """Check before the first epoch that all files `folder/<id><suffix>` are there and have a reader.

    Args:
        has_window: whether DICOM files are read through a window.
        may_lack: whether missing files give a warning and no error.

    Raises:
        IchError: a suffix without a reader, DICOM files without a window, or missing files.
    """
    names = [*suffixes, *(ids if "" in suffixes else [])]
    if not has_window and any(str(name).lower().endswith(".dcm") for name in names):
        raise IchError("DICOM files are read through a window; say which, such as window='brain'")
    for suffix in suffixes:
        if suffix and not suffix.lower().endswith(SUFFIXES):
            raise IchError(f"there are readers for {_READABLE}, none for {suffix!r}; give reader=")
        unreadable = [] if suffix else [id for id in ids if not str(id).lower().endswith(SUFFIXES)]
        if unreadable:
            raise IchError(
                f"{len(unreadable):,} of {len(ids):,} names of files end in none of {_READABLE}, of which there are"
                f" readers: {name_some(unreadable)}; say suffix='.png' if the names lack it, or give reader="
            )
    lost = missing(folder, ids, suffixes)
    if lost:
        files = " or ".join(f"{folder}/<id>{suffix}" for suffix in suffixes)
        message = f"{len(lost):,} of {len(ids):,} samples lack {files}: {name_some(lost)}"
        if not may_lack:
            raise IchError(f"{message}; were they converted? Leave them out, or correct image_dir and suffix")
        warnings.warn(f"{message}; others will be shown in their place", stacklevel=4)


def missing(folder: Path, ids: Collection[Hashable], suffixes: Sequence[str]) -> list[Hashable]:
    """Return the ids that lack a file `folder/<id><suffix>`.

    A folder in which many are asked for is listed once, which takes a quarter of the time of asking for each.
    """
    names = list(map(str, ids))
    listed: dict[str, set[str]] = {}
    for inner, count in Counter(name.rpartition("/")[0] for name in names).items():
        if count > _FEW:
            with suppress(OSError):  # where it cannot be listed, each of its files is asked for
                listed[inner] = set(os.listdir(folder / inner))  # noqa: PTH208  (iterdir makes a Path of each)

    def is_there(name: str, suffix: str) -> bool:
        inner, _, last = name.rpartition("/")
        # What the list lacks may still be found: in a file system that ignores case, or a folder in the suffix.
        return f"{last}{suffix}" in listed.get(inner, ()) or Path(folder, f"{name}{suffix}").exists()

    return [id for id, name in zip(ids, names, strict=True) if not all(is_there(name, suffix) for suffix in suffixes)]
