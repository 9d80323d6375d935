"""Convert one slice: from its bytes to its PNGs and its row of the slice table.

Workers import little else: without pandas they start in half the time.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from isal import isal_zlib

from ich.dicom import reader, slice_error
from ich.dicom.member import Member
from ich.dicom.reader import Header
from ich.dicom.slice_error import DicomError
from ich.dicom.windows import Window, apply_windows, name_of, preset
from ich.errors import IchError, one_line
from ich.files import replacing, sync_filesystem
from ich.images import png

if TYPE_CHECKING:  # with pydantic, a worker would take a fifth longer to start
    from ich.config import Preprocess

STATUSES: dict[str, str] = {
    **slice_error.KINDS,
    "bad_id": "the file's name cannot be the id of a slice, which is the name of its PNG",
    "wrong_id": "the file's name is not the SOPInstanceUID in it, so that its labels may belong to another slice",
}

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# The fastest of cv2's settings for 16-bit HU.
_HU_PNG = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]

_HEAD = -200  # HU; between skin, and air with clothes and hair
_MARGIN = 0.05  # on each side, as a share of the head's longer side
_HEAD_STEP = 4  # pixels; the search for the head reads every fourth row and column


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings that determine the pixels of the PNGs; all images of a folder share them.

    Args:
        windows: for "channels" files, one (gray PNGs) or three (red, green and blue, in this order); for "separate"
            files, any number; for "hu" files, none.
        size: pixels a side, by area interpolation; None keeps each slice's size.
        fit: for a slice that is not square, if there is a size: "pad" adds air evenly on two sides, "stretch" changes
            its proportions.
        crop: keep only a square around the head, for each slice by itself (2nd and 5th place); the slice table has the
            square.
        files: "channels", one PNG a slice with the windows as channels; "separate", one gray PNG a window, named
            `<id>.<window>.png`; "hu", a 16-bit gray PNG of HU + 1024, to be windowed later.

    Raises:
        IchError: the number of windows does not fit the files, a window twice, a size below 16, an unknown fit or kind
            of files.
    """

    windows: tuple[Window, ...]
    size: int | None = None
    fit: str = "pad"
    crop: bool = False
    files: str = "channels"

    def __post_init__(self) -> None:
        expected = {"channels": "one window or three", "separate": "windows, each once", "hu": "no windows"}
        if self.files not in expected:
            raise IchError(f"files are {self.files!r}, expected one of {', '.join(expected)}")
        count = len(self.windows)
        is_valid = {
            "channels": count in (1, 3),
            "separate": 0 < count == len(set(map(name_of, self.windows))),
            "hu": count == 0,
        }
        if not is_valid[self.files]:
            raise IchError(f"files of the kind {self.files} hold {expected[self.files]}, got {count}")
        if self.size is not None and self.size < 16:
            raise IchError(f"images need a size of at least 16 pixels, got {self.size}")
        if self.fit not in ("pad", "stretch"):
            raise IchError(f"fit is {self.fit!r}, expected pad or stretch")

    @classmethod
    def of(cls, section: "Preprocess") -> "Settings":
        """Return the settings of a config's preprocess section, with presets replaced by their windows.

        Raises:
            IchError: an unknown preset, or as for the settings themselves.
        """
        windows = tuple(
            preset(window) if isinstance(window, str) else Window(center=window.center, width=window.width)
            for window in section.windows
        )
        return cls(windows, **section.model_dump(exclude={"windows"}))

    @property
    def suffixes(self) -> list[str]:
        """Return the endings after the id in the names of a slice's PNGs."""
        return [f".{name_of(w)}.png" for w in self.windows] if self.files == "separate" else [".png"]


@dataclass(frozen=True, slots=True)
class Box:
    """A square of a slice, in pixels; beyond the slice it is filled with air.

    Args:
        top, left: its first row and column.
        side: rows and columns.
    """

    top: int
    left: int
    side: int


def head_box(hu: np.ndarray) -> Box:
    """Return the square around the head: the largest connected part brighter than air, with a margin.

    The table and the head holder are separate parts, unless they touch the head.

    Args:
        hu: int16, shape (rows, columns), Hounsfield units.

    Returns:
        The box; the square around the whole slice if nothing is brighter than air.
    """
    bright = (hu[::_HEAD_STEP, ::_HEAD_STEP] > _HEAD).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(bright)
    top, left, height, width = 0, 0, *hu.shape
    margin = 0
    if count > 1:  # component 0 is the background
        largest = stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax()] * _HEAD_STEP
        left, top, width, height = (int(n) for n in largest[:4])
        # At least the step, as the rows and columns between those that were read may belong to the head.
        margin = max(_HEAD_STEP, round(_MARGIN * max(width, height)))
    side = max(width, height) + 2 * margin
    return Box(top=top + (height - side) // 2, left=left + (width - side) // 2, side=side)


def cut(hu: np.ndarray, box: Box) -> np.ndarray:
    """Return the part of a slice in the box, with air beyond the slice; int16, shape (side, side)."""
    out = np.full((box.side, box.side), reader.AIR, dtype=hu.dtype)
    top, left = max(box.top, 0), max(box.left, 0)
    inside = hu[top : box.top + box.side, left : box.left + box.side]
    out[top - box.top :, left - box.left :][: inside.shape[0], : inside.shape[1]] = inside
    return out


@dataclass(frozen=True, slots=True)
class Field:
    """The part of a slice that its image shows, in pixels of the slice; it may reach beyond the slice."""

    top: int
    left: int
    rows: int
    columns: int


def field_of_view(shape: tuple[int, ...], box: Box | None, settings: Settings) -> Field:
    """Return the part of a slice that `render` shows.

    Args:
        shape: rows and columns of the slice.
        box: from `render`.
    """
    if box is None:
        box = _padding_box(shape, settings)
    return Field(0, 0, shape[0], shape[1]) if box is None else Field(box.top, box.left, box.side, box.side)


MAP_SIDE = 32
"""Rows and columns of a map over a whole slice; the networks' own have 4 to 16."""


def over_slices(maps: np.ndarray, fields: Sequence[Field], shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Lay maps of what images show, such as Grad-CAM, over the whole slices.

    Args:
        maps: float, (n, labels, height, width), 0 to 1, each over the field of its slice.
        fields: of the slices, in their pixels.
        shapes: rows and columns of the slices.

    Returns:
        uint8, (n, labels, MAP_SIDE, MAP_SIDE), 255 for 1, and 0 where no field reaches.
    """
    out = np.zeros((*maps.shape[:2], MAP_SIDE, MAP_SIDE), np.uint8)
    at = (np.arange(MAP_SIDE, dtype=np.float32) + 0.5) / MAP_SIDE  # shares of a slice
    height, width = maps.shape[2:]
    for of_slice, target, field, shape in zip(maps.astype(np.float32), out, fields, shapes, strict=True):
        y = (at * shape[0] - field.top) / field.rows * height - 0.5
        x = (at * shape[1] - field.left) / field.columns * width - 0.5
        columns, rows = (part.astype(np.float32) for part in np.meshgrid(x, y))
        for of_label, place in zip(of_slice, target, strict=True):
            laid = cv2.remap(of_label, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
            place[:] = np.rint(255 * laid)
    return out


def _padding_box(shape: tuple[int, ...], settings: Settings) -> Box | None:
    """Return the square that a slice is padded to; None if it needs no padding."""
    rows, columns = shape
    if settings.size is None or settings.fit != "pad" or rows == columns:
        return None
    side = max(rows, columns)
    return Box(top=-((side - rows) // 2), left=-((side - columns) // 2), side=side)


def render(hu: np.ndarray, settings: Settings) -> tuple[np.ndarray, Box | None]:
    """Return the image of a slice, and the box that it shows if it was cropped.

    Windows are applied before resizing, so that bone, far outside them, does not blur into the brain next to it.

    Args:
        hu: int16, shape (rows, columns), Hounsfield units.

    Returns:
        uint8 of shape (height, width, number of windows); for "hu" files uint16 of shape (height, width, 1).
    """
    box = head_box(hu) if settings.crop else None
    square = box or _padding_box(hu.shape, settings)
    if square is not None:
        hu = cut(hu, square)
    image = hu[..., None] if settings.files == "hu" else apply_windows(hu, settings.windows)
    if settings.size is not None and image.shape[:2] != (settings.size, settings.size):
        image = cv2.resize(image, (settings.size, settings.size), interpolation=cv2.INTER_AREA)
        image = image.reshape(settings.size, settings.size, -1)  # cv2 drops a single channel
    if settings.files == "hu":
        image = (image.astype(np.int32) - reader.AIR).astype(np.uint16)
    return image, box


def encode(image: np.ndarray, settings: Settings) -> list[bytes]:
    """Encode an image as the PNGs of its slice, in the order of `Settings.suffixes`."""
    if settings.files == "hu":
        return [cv2.imencode(".png", image[..., 0], _HU_PNG)[1].tobytes()]
    if settings.files == "separate":
        return [png.encode(channel[..., None]) for channel in cv2.split(image)]
    return [png.encode(image)]


def convert_chunk(chunk: Iterable[Member], out: Path, settings: Settings, durable: bool) -> list[dict]:
    """Convert slices and return their rows of the slice table; `durable` syncs the images to the disk first."""
    cv2.setNumThreads(1)  # the processes use all cores; threads of each would compete for them
    rows = [convert_slice(member, out, settings) for member in chunk]
    if durable:
        sync_filesystem(out)
    return rows


def convert_slice(member: Member, out: Path, settings: Settings) -> dict:
    """Convert one slice and return its row of the slice table, without z and order.

    Raises:
        IchError: a PNG cannot be written, or that of an earlier run cannot be removed.
    """
    row, image = read_slice(member, settings)
    if image is None:
        if row["status"] != "bad_id":
            remove_images(out, _path(member, settings), settings)  # those of an earlier run that could read the slice
        return row
    paths = [out / member.split / f"{member.id}{suffix}" for suffix in settings.suffixes]
    encoded = encode(image, settings)
    for path, data in zip(paths, encoded, strict=True):
        with replacing(path, durable=False) as temporary:  # synced together, before their rows are saved
            temporary.write_bytes(data)
    return row | {"png_size": sum(map(len, encoded))}


def read_slice(member: Member, settings: Settings) -> tuple[dict, np.ndarray | None]:
    """Return a slice's row of the slice table, without z and order, and its image, None if it cannot be read."""
    row = {"SOPInstanceUID": member.id, "split": member.split, "size": member.size, "repaired": "", "reason": ""}
    if not _ID.fullmatch(member.id):
        reason = f"{member.id!r:.200} is not an id: expected letters, digits and ._-, 64 at most"
        return row | {"status": "bad_id", "reason": reason}, None
    try:
        data = member.read()
        row["crc"] = isal_zlib.crc32(data)
        hu, header = reader.read(data)
    except IchError as error:
        kind = error.kind if isinstance(error, DicomError) else "unreadable"
        if isinstance(error, DicomError) and error.identity.get("SOPInstanceUID") == member.id:
            row |= error.identity  # its series tells which slices are its neighbors
        return row | {"status": kind, "reason": _writable(str(error))}, None
    row |= {field.name: getattr(header, field.name) for field in fields(Header)}
    row |= {"SOPInstanceUID": member.id, "repaired": ",".join(header.repaired)}
    if header.SOPInstanceUID != member.id:
        return row | {"status": "wrong_id", "reason": f"the file says it is {header.SOPInstanceUID!r:.200}"}, None
    image, box = render(hu, settings)
    if box is not None:
        row |= {"crop_top": box.top, "crop_left": box.left, "crop_side": box.side}
    return row | {"status": "ok", "path": _path(member, settings)}, image


def _path(member: Member, settings: Settings) -> str:
    return f"{member.split}/{member.id}{settings.suffixes[0]}"


def _writable(text: str) -> str:
    # Names in another encoding than the system's hold surrogates, which Arrow refuses.
    return text.encode("utf-8", "backslashreplace").decode()


def remove_images(out: Path, path: str, settings: Settings) -> None:
    """Remove a slice's PNGs; `path` is the first, as in the table."""
    stem = path.removesuffix(settings.suffixes[0])
    for suffix in settings.suffixes:
        try:
            (out / f"{stem}{suffix}").unlink(missing_ok=True)
        except OSError as error:
            raise IchError(
                f"cannot remove {out / stem}{suffix}: {one_line(error)}; its slice is no longer readable"
            ) from error
