"""Convert DICOM slices to windowed PNGs and the slice table; a rerun after an interruption converts the rest."""

import json
import os
import re
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from uuid import uuid4

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from ich import folders, parallel
from ich.dicom.archive import SPLITS, Members, members
from ich.dicom.member import Member
from ich.dicom.windows import Window
from ich.errors import IchError, name_some, one_line
from ich.files import discard, names_in, sweep, sync_filesystem, write_json
from ich.images import reading, slice_table
from ich.images.render import STATUSES, Settings, convert_chunk, read_slice, remove_images

_CHUNK = 64  # slices in one task of a worker
_PART_SECONDS = 10.0  # how often rows of converted slices are saved: at most so much work is lost by a kill
_PART = r"[0-9]{20}-[0-9a-f]{32}\.parquet"  # names of the files with such rows

_VERIFIED = ["repaired", "path", "size", "crc", "crop_top", "crop_left", "crop_side"]  # columns that `verify` compares


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

    A slice that cannot be read gets no PNG, and a row with its status and reason. A slice that an earlier run
    into the same folder converted is not read again, as long as its PNGs exist in their original size. Memory: the list
    of the sources' files and the slice table, about 1 KB a slice together, in this process; workers hold one slice at a
    time.

    Durability: before rows of the slice table are saved, the file system is synced once for all images that they name
    (`ich.files.sync_filesystem`). That covers the worker processes of this machine. Workers of a Dask cluster, which
    may be other machines, sync after every chunk of slices, before they return its rows.

    Args:
        sources: folders and zips of DICOM slices; raw data are only read.
        out: the images' folder.
        split: "train" or "test"; None takes it from the folders' names.
        jobs, backend, scheduler: as `ich.parallel.unordered` takes them; workers on other machines must see the
            sources and the folder under the same paths.

    Returns:
        The slice table (`ich.images.slice_table.SCHEMA`).

    Raises:
        IchError: a source cannot be read at all (`ich.dicom.archive.members`); `out` holds images of other settings or
            sources, or files that no conversion wrote; another process converts into it; a file cannot be written.
            Slices converted until then are kept for the next run.
    """
    with working_in(out, settings):
        return _convert(_members(sources, split), out, settings, jobs=jobs, backend=backend, scheduler=scheduler)


def working_in(out: Path, settings: Settings) -> AbstractContextManager[None]:
    """Lock a folder of images, which must have these settings or be empty, against other processes.

    Raises:
        IchError: it has other settings or content, or another process works in it.
    """

    def check() -> None:
        if _is_ours(out):
            check_settings(out, settings)

    return folders.locked(out, check)


def _convert(
    sources: Members, out: Path, settings: Settings, *, jobs: int, backend: str, scheduler: str | None
) -> pd.DataFrame:
    """Convert as `convert` does, in a locked folder."""
    _claim(out, settings)
    table_path, parts = out / "slices.parquet", out / "parts"
    for folder in (out, *(out / split for split in SPLITS), parts):
        sweep(folder)
    part_paths = [parts / name for name in names_in(parts) if re.fullmatch(_PART, name)]
    tables = [slice_table.read_table(path) for path in [table_path, *part_paths] if path.exists()]
    earlier = pd.concat(tables, ignore_index=True) if tables else slice_table.to_frame([])
    rows = _still_valid(earlier, sources, out, settings)
    todo = sources.where(pc.invert(pc.is_in(sources.table["id"], pa.array(rows["SOPInstanceUID"], pa.string()))))
    if not len(todo) and not part_paths and table_path.exists():
        return slice_table.read_table(table_path)

    total = len(sources)
    del tables, sources
    pa.default_memory_pool().release_unused()
    durable = backend == "dask"
    tasks = ((todo[at : at + _CHUNK], out.absolute(), settings, durable) for at in range(0, len(todo), _CHUNK))
    results = parallel.unordered(convert_chunk, tasks, jobs=jobs, backend=backend, scheduler=scheduler)
    converted: list[pd.DataFrame] = []
    with tqdm(total=total, initial=len(rows), unit="slice", desc="preprocess") as bar:
        converted.extend(_save_parts(results, parts, bar))
    # For the whole archive each of these takes hundreds of megabytes: freed before the next is built.
    del tasks, todo, results
    table = pd.concat([rows, *converted], ignore_index=True)
    del rows, converted
    pa.default_memory_pool().release_unused()
    table = slice_table.scan_order(table)
    paths = earlier["path"].dropna()
    for path in paths[~paths.isin(table["path"])].unique():  # of slices whose split changed
        remove_images(out, path, settings)
    slice_table.write_table(table, table_path)
    discard(parts, _PART)
    del table, earlier
    return slice_table.read_table(table_path)


def _members(sources: Sequence[Path], split: str | None) -> Members:
    slices = members(sources, split)
    if slices.left_out:
        print(f"not read as slices, and left out: {slices.left_out}")
    return slices


def _save_parts(results: Iterable[list[dict]], parts: Path, bar: tqdm) -> Iterator[pd.DataFrame]:
    """Save the rows of finished chunks every few seconds and at the end, also on an error; yield what was saved."""
    rows: list[dict] = []

    def save() -> pd.DataFrame:
        part = slice_table.to_frame(rows)
        sync_filesystem(parts.parent)
        slice_table.write_table(part, parts / f"{time.time_ns():020}-{uuid4().hex}.parquet")  # sorted by time
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
    """Compare all slices with their PNGs and their rows of the slice table, by reading both again.

    Args:
        As for `convert`.

    Returns:
        SOPInstanceUID -> what differs; empty if nothing does.

    Raises:
        IchError: the folder is not converted, or has other settings; a source cannot be read at all.
    """
    slices = _members(sources, split)
    check_settings(out, settings)
    table = slice_table.read_table(out / "slices.parquet")
    ids = slices.table["id"].to_pandas()
    differing = dict.fromkeys(set(table["SOPInstanceUID"]).difference(ids), "is in the table, not in the sources")
    differing |= dict.fromkeys(set(ids).difference(table["SOPInstanceUID"]), "is in the sources, not in the table")
    rows = table.set_index("SOPInstanceUID")[["status", "png_size", *_VERIFIED]]
    tasks = (
        (chunk, rows.reindex([member.id for member in chunk]), out.absolute(), settings)
        for chunk in (slices[at : at + _CHUNK] for at in range(0, len(slices), _CHUNK))
    )
    with tqdm(total=len(slices), unit="slice", desc="verify") as bar:
        for checked, wrong in parallel.unordered(_verify_chunk, tasks, jobs=jobs, backend=backend, scheduler=scheduler):
            bar.update(checked)
            differing |= {id: what for id, what in wrong.items() if id not in differing}
    return dict(sorted(differing.items()))


def _verify_chunk(chunk: list[Member], rows: pd.DataFrame, out: Path, settings: Settings) -> tuple[int, dict[str, str]]:
    cv2.setNumThreads(1)
    wrong = {}
    for member in chunk:
        row, image = read_slice(member, settings)
        expected = rows.loc[member.id]
        differing = [
            name for name in _VERIFIED if row.get(name) != (None if pd.isna(expected[name]) else expected[name])
        ]
        if row["status"] != expected["status"]:
            wrong[member.id] = f"reads as {row['status']}, the table says {expected['status']}"
        elif differing:
            wrong[member.id] = f"has another {', '.join(differing)} in the table than in its source"
        elif image is not None:
            wrong |= _compare(member, image, expected["png_size"], out, settings)
    return len(chunk), wrong


def _compare(member: Member, image: np.ndarray, size: int, out: Path, settings: Settings) -> dict[str, str]:
    paths = [out / member.split / f"{member.id}{suffix}" for suffix in settings.suffixes]
    try:
        pictures = [reading.read(path) for path in paths]
    except IchError as error:
        return {member.id: str(error)}
    same_size = {picture.shape[:2] for picture in pictures} == {image.shape[:2]}
    if not same_size or not np.array_equal(np.concatenate(pictures, axis=-1), image):
        return {member.id: "the PNG has other pixels than the source gives"}
    if (actual := sum(path.stat().st_size for path in paths)) != size:  # another program compressed the same pixels
        return {member.id: f"the PNG has {actual} bytes, the table says {size:.0f}"}
    return {}


def read_settings(out: Path) -> Settings:
    """Return the settings of a folder's images.

    Raises:
        IchError: its settings.json is missing or unreadable.
    """
    content = _settings_in(out)
    try:
        return Settings(**content | {"windows": tuple(Window(**window) for window in content["windows"])})
    except (KeyError, TypeError) as error:
        raise IchError(
            f"{out}/settings.json is of another version ({one_line(error)});"
            " convert into another folder, or delete this one"
        ) from error


def check_settings(out: Path, settings: Settings) -> None:
    """Refuse a folder whose images have other settings.

    Raises:
        IchError: they differ, or settings.json is missing or unreadable.
    """
    stored = _settings_in(out)
    expected = _as_json(settings)
    keys = dict.fromkeys([*expected, *stored])  # a later version may have stored settings unknown here
    differing = [
        f"{k}: {stored.get(k)} there, {expected.get(k)} here" for k in keys if stored.get(k) != expected.get(k)
    ]
    if differing:
        raise IchError(
            f"{out} holds images of other settings ({'; '.join(differing)}); name another folder, or delete it"
        )


def _settings_in(out: Path) -> dict:
    try:
        return dict(json.loads((out / "settings.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise IchError(
            f"{out} lacks a readable settings.json with the settings of its images ({one_line(error)}); convert into"
            " another folder"
        ) from error


def _is_ours(out: Path) -> bool:
    return folders.is_ours(out, folders.IMAGES)


def _claim(out: Path, settings: Settings) -> None:
    """Write the settings into an empty folder; refuse one of other settings or content."""
    if _is_ours(out):
        check_settings(out, settings)
        return
    write_json(out / "settings.json", _as_json(settings))


def _as_json(settings: Settings) -> dict:
    return json.loads(json.dumps(asdict(settings)))  # as a file returns it: lists for tuples


def _still_valid(rows: pd.DataFrame, sources: Members, out: Path, settings: Settings) -> pd.DataFrame:
    """Return the rows whose slices are unchanged in the sources and whose images exist in their size, each once."""
    current = sources.table.select(["id", "size", "crc", "split"]).to_pandas().set_index("id")
    foreign = rows.loc[~rows["SOPInstanceUID"].isin(current.index), "SOPInstanceUID"]
    if len(foreign):
        raise IchError(
            f"{out} holds slices that the sources lack: {name_some(foreign)}; name all sources of a folder together,"
            " or another folder"
        )
    current = current.loc[rows["SOPInstanceUID"]].reset_index()
    rows = rows.reset_index(drop=True)
    valid = (rows["size"] == current["size"]) & (rows["split"] == current["split"].astype(rows["split"].dtype))
    valid &= (
        (rows["crc"] == current["crc"]) | rows["crc"].isna() | current["crc"].isna()
    )  # unknown for the files of a folder
    # A slice that the system did not let us read (permissions, a missing disk) may be readable now.
    valid &= rows["status"] != "unreadable"
    if len(rows):
        images = _image_sizes(out)
        stems = rows["path"].str.removesuffix(settings.suffixes[0])
        total = np.zeros(len(rows))
        for suffix in settings.suffixes:
            places = pc.index_in(pa.array(stems + suffix, pa.string()), value_set=images["path"])
            total += images["size"].take(places).to_numpy()  # NaN where it is missing
        valid &= (rows["status"] != "ok") | (total == rows["png_size"].to_numpy(np.float64, na_value=np.nan))
    return rows[valid].drop_duplicates("SOPInstanceUID", keep="last")


def _image_sizes(out: Path) -> pa.Table:
    """Return the images' paths within their folder and their sizes in bytes.

    A table, as for a million files it takes a third of a dict's memory.
    """
    paths, sizes = [], array("q")
    for split in SPLITS:
        try:
            with os.scandir(out / split) as entries:
                for entry in entries:
                    sizes.append(entry.stat(follow_symlinks=False).st_size)
                    paths.append(f"{split}/{entry.name}")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise IchError(f"cannot list the images in {out / split}: {one_line(error)}; make them readable") from error
    return pa.table({"path": pa.array(paths, pa.string()), "size": pa.array(np.frombuffer(sizes, np.int64))})


def summary(table: pd.DataFrame) -> str:
    """Return a text about the converted slices: counts by split, repairs, and the slices without an image."""
    lines = [
        f"{split}: {(table['split'] == split).sum():,} slices" for split in SPLITS if (table["split"] == split).any()
    ]
    for repair, count in table.loc[table["repaired"] != "", "repaired"].value_counts().items():
        lines.append(f"repaired ({repair}): {count:,}")
    unreadable = table[table["status"] != "ok"]
    for kind, group in unreadable.groupby("status"):
        lines.append(f"without an image, {kind}: {len(group):,} ({STATUSES[kind]})")
        lines.extend(f"  {row.SOPInstanceUID}: {row.reason}" for row in group.head(5).itertuples())
    audit = slice_table.scan_audit(table[table["status"] == "ok"])
    for finding, has_it in {
        "series with slices without a position": audit["unplaced"] > audit["out_of_plane"],
        "series with slices of one position": audit["ties"] > 0,
        "series with gaps, where slices may be missing": audit["gaps"] > 0,
        "series of mixed orientation": audit["orientations"] > 1,
    }.items():
        if has_it.any():
            lines.append(f"{finding}: {name_some(audit.index[has_it])}")
    outside = audit.loc[audit["out_of_plane"] > 0, "out_of_plane"]
    if len(outside):
        finding = "slices out of the plane of their series, without a place in it"
        lines.append(f"{finding}: {outside.sum():,}, of {name_some(outside.index)}")
    return "\n".join(lines)
