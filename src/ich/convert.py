"""DICOM slices to windowed PNGs and the slice table; stopped at any moment, the next run does what is left."""

import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from isal import isal_zlib
from tqdm import tqdm

from ich import dicom, images, parallel, slices
from ich.archive import SPLITS, Member, Members, members
from ich.dicom import DicomError
from ich.errors import IchError, name_some
from ich.files import replacing, sweep
from ich.windows import Window, apply_windows, name_of

STATUSES: dict[str, str] = {
    **dicom.KINDS,
    "bad_id": "the file's name cannot be a slice's id, and so not the name of a PNG",
    "wrong_id": "the file's name is not the SOPInstanceUID inside it, so that its labels may be those of another slice",
}

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CHUNK = 64  # slices in one task of a worker
_PART_SECONDS = 10.0  # how often the rows of what is converted are saved: what a kill costs at most

# Of cv2's settings for windowed slices, by the number of channels: quick to write, quicker to decode than the default,
# and no larger. benchmarks/RESULTS.md has the table.
PNG: dict[int, list[int]] = {
    1: [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE],
    3: [
        cv2.IMWRITE_PNG_FILTER,
        cv2.IMWRITE_PNG_FILTER_NONE,
        cv2.IMWRITE_PNG_STRATEGY,
        cv2.IMWRITE_PNG_STRATEGY_DEFAULT,
    ],
}

_VERIFIED = ["repaired", "path", "size", "crc", "crop_top", "crop_left", "crop_side"]  # columns of the slice table

_HEAD = -200  # HU; between air with clothes and hair in it, and skin
_MARGIN = 0.05  # of the head's longer side, on each side
_HEAD_STEP = 4  # pixels; the head is looked for in every fourth row and column


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides the pixels of the PNGs; a folder holds images of one of these only.

    Args:
        windows: of "channels" files, one for grey PNGs or three for the red, green and blue of colour ones, in this
            order; of "separate" files, any number; of "hu" files, none.
        size: pixels a side, reduced by area interpolation; None keeps each slice as it is.
        fit: what becomes of a slice that is not square, if there is a size: "pad" adds air evenly on its two sides,
            "stretch" does not keep its proportions.
        crop: keep only a square around the head, each slice for itself (2nd and 5th place); the slice table has it.
        files: "channels", a PNG a slice with the windows as channels; "separate", a grey PNG a window, called
            `<id>.<window>.png`; "hu", a 16-bit grey PNG of HU + 1024, to be windowed later.

    Raises:
        IchError: a number of windows that the files do not hold, the same one twice, a size below 16, an unknown fit
            or kind of files.
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
        fine = {
            "channels": count in (1, 3),
            "separate": 0 < count == len(set(map(name_of, self.windows))),
            "hu": count == 0,
        }
        if not fine[self.files]:
            raise IchError(f"files of the kind {self.files} hold {expected[self.files]}, got {count}")
        if self.size is not None and self.size < 16:
            raise IchError(f"images need a size of at least 16 pixels, got {self.size}")
        if self.fit not in ("pad", "stretch"):
            raise IchError(f"fit is {self.fit!r}, expected pad or stretch")

    @property
    def suffixes(self) -> list[str]:
        """What follows the id in the names of a slice's PNGs."""
        return [f".{name_of(w)}.png" for w in self.windows] if self.files == "separate" else [".png"]


@dataclass(frozen=True, slots=True)
class Box:
    """A square of a slice, in pixels; it may reach beyond the slice, where there is air.

    Args:
        top, left: its first row and column.
        side: rows and columns.
    """

    top: int
    left: int
    side: int


def head_box(hu: np.ndarray) -> Box:
    """The square around the head: the largest connected part brighter than air, and a margin.

    The table and the head holder are parts of their own, unless they touch the head.

    Args:
        hu: int16, shape (rows, columns), Hounsfield units.

    Returns:
        The box; without anything brighter than air, the square around the whole slice.
    """
    bright = (hu[::_HEAD_STEP, ::_HEAD_STEP] > _HEAD).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(bright)
    top, left, height, width = 0, 0, *hu.shape
    margin = 0
    if count > 1:  # the first is the background
        largest = stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax()] * _HEAD_STEP
        left, top, width, height = (int(n) for n in largest[:4])
        # No less than what the rows and columns between those that were looked at may add.
        margin = max(_HEAD_STEP, round(_MARGIN * max(width, height)))
    side = max(width, height) + 2 * margin
    return Box(top=top + (height - side) // 2, left=left + (width - side) // 2, side=side)


def cut(hu: np.ndarray, box: Box) -> np.ndarray:
    """The part of a slice in the box, air where the box reaches beyond it; int16, shape (side, side)."""
    out = np.full((box.side, box.side), dicom.AIR, dtype=hu.dtype)
    top, left = max(box.top, 0), max(box.left, 0)
    inside = hu[top : box.top + box.side, left : box.left + box.side]
    out[top - box.top :, left - box.left :][: inside.shape[0], : inside.shape[1]] = inside
    return out


def render(hu: np.ndarray, settings: Settings) -> tuple[np.ndarray, Box | None]:
    """The image of a slice, and the box that it shows if it was cropped.

    Windows come before the resizing, so that bone, far outside them, does not blur over the brain beside it.

    Args:
        hu: int16, shape (rows, columns), Hounsfield units.

    Returns:
        uint8 of shape (height, width, number of windows); for "hu" files uint16 of shape (height, width, 1).
    """
    box = head_box(hu) if settings.crop else None
    if box is not None:
        hu = cut(hu, box)
    elif settings.size is not None and settings.fit == "pad" and hu.shape[0] != hu.shape[1]:
        rows, columns = hu.shape
        side = max(rows, columns)
        hu = cut(hu, Box(top=-((side - rows) // 2), left=-((side - columns) // 2), side=side))
    image = hu[..., None] if settings.files == "hu" else apply_windows(hu, settings.windows)
    if settings.size is not None and image.shape[:2] != (settings.size, settings.size):
        image = cv2.resize(image, (settings.size, settings.size), interpolation=cv2.INTER_AREA)
        image = image.reshape(settings.size, settings.size, -1)  # cv2 drops a single channel
    if settings.files == "hu":
        image = (image.astype(np.int32) - dicom.AIR).astype(np.uint16)
    return image, box


def encode(image: np.ndarray, settings: Settings) -> list[bytes]:
    """The PNGs of a slice, in the order of `Settings.suffixes`."""
    if settings.files == "separate":
        pictures = cv2.split(image)
    elif image.shape[2] == 3:
        pictures = [cv2.cvtColor(image, cv2.COLOR_RGB2BGR)]  # cv2 stores blue first: the first window is a viewer's red
    else:
        pictures = [image[..., 0]]
    return [cv2.imencode(".png", picture, PNG[3 if picture.ndim == 3 else 1])[1].tobytes() for picture in pictures]


def convert(
    sources: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    split: str | None = None,
    jobs: int = -1,
    backend: str = "processes",
    scheduler: str | None = None,
) -> pd.DataFrame:
    """Convert all slices of the sources to PNGs `out/<split>/<id>.png`, and write `out/slices.parquet`.

    A slice that cannot be read gets no PNG, and a row with its status and reason. What an earlier run into the same
    folder converted is not read again. Memory: the list of the sources' files and the slice table, about 1 KB a slice
    together, in this process; workers hold one slice at a time.

    Args:
        sources: folders and zips of DICOM slices; raw data are only read.
        out: the images' folder.
        split: "train" or "test"; None tells by the folders' names.
        jobs, backend, scheduler: as `ich.parallel.unordered` takes them; workers on other machines must see the
            sources and the folder under the same paths.

    Returns:
        The slice table (`ich.slices.SCHEMA`).

    Raises:
        IchError: a source cannot be read at all (`ich.archive.members`); `out` holds images of other settings or of
            other sources; a file cannot be written. What was converted until then stays and counts in the next run.
    """
    found = members(sources, split)
    _claim(out, settings)
    table_path, parts = out / "slices.parquet", out / "parts"
    sweep(out)
    there = {f"{split}/{name}" for split in SPLITS for name in sweep(out / split)}
    pieces = [parts / name for name in sorted(sweep(parts))]
    done = [slices.read_table(path) for path in [table_path, *pieces] if path.exists()]
    earlier = pd.concat(done, ignore_index=True) if done else slices.to_frame([])
    rows = _still_valid(earlier, found, there, out, settings)
    todo = found.where(pc.invert(pc.is_in(found.table["id"], pa.array(rows["SOPInstanceUID"], pa.string()))))
    if not len(todo) and not pieces and table_path.exists():
        return slices.read_table(table_path)

    total = len(found)
    del done, found
    pa.default_memory_pool().release_unused()
    tasks = ((todo[at : at + _CHUNK], out.absolute(), settings) for at in range(0, len(todo), _CHUNK))
    results = parallel.unordered(_convert_chunk, tasks, jobs=jobs, backend=backend, scheduler=scheduler)
    fresh = []
    with tqdm(total=total, initial=len(rows), unit="slice", desc="preprocess") as bar:
        fresh.extend(_saved(results, parts, bar))
    # Each of these is hundreds of megabytes of a whole archive: none may stay while the next is made.
    del tasks, todo, results
    table = pd.concat([rows, *fresh], ignore_index=True)
    del rows, fresh
    pa.default_memory_pool().release_unused()
    table = slices.scan_order(table)
    for path in there.intersection(earlier["path"]).difference(table["path"]):  # of a slice that changed its split
        _remove(out, path, settings)
    slices.write_table(table, table_path)
    shutil.rmtree(parts, ignore_errors=True)
    del table, earlier
    return slices.read_table(table_path)


def _saved(results: Iterable[list[dict]], parts: Path, bar: tqdm) -> Iterator[pd.DataFrame]:
    """Gather rows and save them every few seconds, and at the end, whatever ends it; give what was saved."""
    rows: list[dict] = []

    def save() -> pd.DataFrame:
        part = slices.to_frame(rows)
        slices.write_table(part, parts / f"{time.time_ns():020}-{uuid4().hex}.parquet")  # later ones last
        rows.clear()
        return part

    saved = time.monotonic()
    try:
        for chunk in results:
            rows.extend(chunk)
            bar.update(len(chunk))
            if time.monotonic() - saved > _PART_SECONDS:
                yield save()
                saved = time.monotonic()
    except BaseException:
        if rows:
            save()
        raise
    if rows:
        yield save()


def _convert_chunk(chunk: Iterable[Member], out: Path, settings: Settings) -> list[dict]:
    cv2.setNumThreads(1)  # the processes are the parallel work; threads of each would fight for the same cores
    return [convert_slice(member, out, settings) for member in chunk]


def convert_slice(member: Member, out: Path, settings: Settings) -> dict:
    """Convert one slice; its row of the slice table, without z and order.

    Raises:
        IchError: a PNG cannot be written, or that of an earlier run not removed.
    """
    row, image = read_slice(member, settings)
    if image is None:
        if row["status"] != "bad_id":
            _remove(out, _path(member, settings), settings)  # there is one if the slice was whole in an earlier run
        return row
    paths = [out / member.split / f"{member.id}{suffix}" for suffix in settings.suffixes]
    for path, png in zip(paths, encode(image, settings), strict=True):
        with replacing(path) as temporary:
            temporary.write_bytes(png)
    return row


def read_slice(member: Member, settings: Settings) -> tuple[dict, np.ndarray | None]:
    """A slice's row of the slice table, without z and order, and its image; None where it cannot be read."""
    row = {"SOPInstanceUID": member.id, "split": member.split, "size": member.size, "repaired": "", "reason": ""}
    if not _ID.fullmatch(member.id):
        reason = f"{member.id!r:.200} is no id of letters, digits and ._-, 64 at most"
        return row | {"status": "bad_id", "reason": reason}, None
    try:
        data = member.read()
        row["crc"] = isal_zlib.crc32(data)
        hu, header = dicom.read(data)
    except IchError as error:
        kind = error.kind if isinstance(error, DicomError) else "unreadable"
        return row | {"status": kind, "reason": _writable(str(error))}, None
    row |= {name: getattr(header, name) for name in slices.SCHEMA.names if hasattr(header, name)}
    row |= {"SOPInstanceUID": member.id, "repaired": ",".join(header.repaired)}
    if header.SOPInstanceUID != member.id:
        return row | {"status": "wrong_id", "reason": f"the file says it is {header.SOPInstanceUID!r:.200}"}, None
    image, box = render(hu, settings)
    if box is not None:
        row |= {"crop_top": box.top, "crop_left": box.left, "crop_side": box.side}
    return row | {"status": "ok", "path": _path(member, settings)}, image


def _path(member: Member, settings: Settings) -> str:
    return f"{member.split}/{member.id}{settings.suffixes[0]}"


def verify(
    sources: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    split: str | None = None,
    jobs: int = -1,
    backend: str = "processes",
    scheduler: str | None = None,
) -> dict[str, str]:
    """Read all slices and their PNGs once more and compare: pixels, and the rows of the slice table.

    Args:
        As for `convert`.

    Returns:
        What differs, by SOPInstanceUID; empty if nothing does.

    Raises:
        IchError: the folder is not converted, or of other settings; a source cannot be read at all.
    """
    found = members(sources, split)
    check_settings(out, settings)
    table = slices.read_table(out / "slices.parquet")
    ids = found.table["id"].to_pandas()
    differing = dict.fromkeys(set(table["SOPInstanceUID"]).difference(ids), "is in the table, not in the sources")
    differing |= dict.fromkeys(set(ids).difference(table["SOPInstanceUID"]), "is in the sources, not in the table")
    rows = table.set_index("SOPInstanceUID")[["status", *_VERIFIED]]
    tasks = (
        (chunk, rows.reindex([member.id for member in chunk]), out.absolute(), settings)
        for chunk in (found[at : at + _CHUNK] for at in range(0, len(found), _CHUNK))
    )
    with tqdm(total=len(found), unit="slice", desc="verify") as bar:
        for checked, wrong in parallel.unordered(_verify_chunk, tasks, jobs=jobs, backend=backend, scheduler=scheduler):
            bar.update(checked)
            differing |= {id: what for id, what in wrong.items() if id not in differing}
    return dict(sorted(differing.items()))


def _verify_chunk(chunk: list[Member], rows: pd.DataFrame, out: Path, settings: Settings) -> tuple[int, dict[str, str]]:
    cv2.setNumThreads(1)
    wrong = {}
    for member in chunk:
        row, image = read_slice(member, settings)
        told = rows.loc[member.id]
        differing = [name for name in _VERIFIED if row.get(name) != (None if pd.isna(told[name]) else told[name])]
        if row["status"] != told["status"]:
            wrong[member.id] = f"reads as {row['status']}, the table says {told['status']}"
        elif differing:
            wrong[member.id] = f"has another {', '.join(differing)} in the table than its source gives"
        elif image is not None:
            wrong |= _compare(member, image, out, settings)
    return len(chunk), wrong


def _compare(member: Member, image: np.ndarray, out: Path, settings: Settings) -> dict[str, str]:
    try:
        pngs = [images.read(out / member.split / f"{member.id}{suffix}") for suffix in settings.suffixes]
    except IchError as error:
        return {member.id: str(error)}
    if {png.shape[:2] for png in pngs} != {image.shape[:2]} or not np.array_equal(np.concatenate(pngs, -1), image):
        return {member.id: "the PNG is not what the source gives"}
    return {}


def _writable(text: str) -> str:
    # Names in another encoding than the system's hold surrogates, which no table takes.
    return text.encode("utf-8", "backslashreplace").decode()


def _remove(out: Path, path: str, settings: Settings) -> None:
    """Remove a slice's PNGs, of which the table names the first."""
    stem = path.removesuffix(settings.suffixes[0])
    for suffix in settings.suffixes:
        try:
            (out / f"{stem}{suffix}").unlink(missing_ok=True)
        except OSError as error:
            raise IchError(
                f"cannot remove {out / stem}{suffix}: {error.strerror or error}; its slice is no longer readable"
            ) from error


def check_settings(out: Path, settings: Settings) -> None:
    """Refuse a folder whose images are of other settings.

    Raises:
        IchError: they are, or nothing tells what they are of.
    """
    try:
        theirs = dict(json.loads((out / "settings.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise IchError(
            f"{out} lacks a readable settings.json that says what made its images ({error});"
            " convert into another folder, or delete this one"
        ) from error
    ours = _as_json(settings)
    keys = dict.fromkeys([*ours, *theirs])  # theirs may be of a later version, with settings unknown here
    differing = [f"{k}: {theirs.get(k)} there, {ours.get(k)} here" for k in keys if theirs.get(k) != ours.get(k)]
    if differing:
        raise IchError(
            f"{out} holds images of other settings ({'; '.join(differing)}); name another folder, or delete it"
        )


def _claim(out: Path, settings: Settings) -> None:
    """Make the folder this settings' own, or refuse."""
    if any((out / name).exists() for name in ("settings.json", *SPLITS)):
        check_settings(out, settings)
        return
    with replacing(out / "settings.json") as temporary:
        temporary.write_text(json.dumps(_as_json(settings), indent=2) + "\n")


def _as_json(settings: Settings) -> dict:
    return json.loads(json.dumps(asdict(settings)))  # as it comes back from a file: lists for tuples


def _still_valid(rows: pd.DataFrame, found: Members, there: set[str], out: Path, settings: Settings) -> pd.DataFrame:
    """The rows of slices that the sources hold unchanged, and whose images are there, each once."""
    now = found.table.select(["id", "size", "crc", "split"]).to_pandas().set_index("id")
    foreign = rows.loc[~rows["SOPInstanceUID"].isin(now.index), "SOPInstanceUID"]
    if len(foreign):
        raise IchError(
            f"{out} holds slices that the sources do not: {name_some(foreign)}; name all sources of a folder together,"
            " or another folder"
        )
    now = now.loc[rows["SOPInstanceUID"]].reset_index()
    rows = rows.reset_index(drop=True)
    valid = (rows["size"] == now["size"]) & (rows["split"] == now["split"].astype(rows["split"].dtype))
    valid &= (rows["crc"] == now["crc"]) | rows["crc"].isna() | now["crc"].isna()  # a folder does not tell it
    # What the system did not let us read (rights, a disk that was away) may be readable by now.
    valid &= rows["status"] != "unreadable"
    first = settings.suffixes[0]
    stems = rows["path"].str.removesuffix(first)
    for suffix in settings.suffixes:
        valid &= (rows["status"] != "ok") | (stems + suffix).isin(there)
    return rows[valid].drop_duplicates("SOPInstanceUID", keep="last")


def summary(table: pd.DataFrame) -> str:
    """What became of the slices, for people: counts by split, repaired ones, and each that has no image."""
    lines = [
        f"{split}: {(table['split'] == split).sum():,} slices" for split in SPLITS if (table["split"] == split).any()
    ]
    for repair, count in table.loc[table["repaired"] != "", "repaired"].value_counts().items():
        lines.append(f"repaired ({repair}): {count:,}")
    lost = table[table["status"] != "ok"]
    for kind, group in lost.groupby("status"):
        lines.append(f"without an image, {kind}: {len(group):,} ({STATUSES[kind]})")
        lines.extend(f"  {row.SOPInstanceUID}: {row.reason}" for row in group.head(5).itertuples())
    odd = slices.scan_audit(table[table["status"] == "ok"])
    for what, found in {
        "series with slices without a position": odd["unplaced"] > 0,
        "series with slices of one position": odd["ties"] > 0,
        "series with gaps, where slices may be missing": odd["gaps"] > 0,
        "series of mixed orientation": odd["orientations"] > 1,
    }.items():
        if found.any():
            lines.append(f"{what}: {name_some(odd.index[found])}")
    return "\n".join(lines)
