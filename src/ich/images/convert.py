"""DICOM slices to windowed PNGs and the slice table; stopped at any moment, the next run does what is left."""

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
_PART_SECONDS = 10.0  # how often the rows of what is converted are saved: what a kill costs at most
_PART = r"[0-9]{20}-[0-9a-f]{32}\.parquet"  # names of the files of such rows

_VERIFIED = ["repaired", "path", "size", "crc", "crop_top", "crop_left", "crop_side"]  # columns of the slice table


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
    folder converted is not read again, as long as its PNGs are there and of the size that they were written in. Memory:
    the list of the sources' files and the slice table, about 1 KB a slice together, in this process; workers hold one
    slice at a time.

    Against a power cut: before rows of the slice table are saved, the images that they name are made durable, one sync
    of the file system for all (`ich.files.sync_filesystem`); then the rows are. That covers what the worker processes
    of this machine wrote. Workers of a Dask cluster, which may be other machines, each sync their own after every
    chunk of slices, before its rows are on their way.

    Args:
        sources: folders and zips of DICOM slices; raw data are only read.
        out: the images' folder.
        split: "train" or "test"; None tells by the folders' names.
        jobs, backend, scheduler: as `ich.parallel.unordered` takes them; workers on other machines must see the
            sources and the folder under the same paths.

    Returns:
        The slice table (`ich.images.slice_table.SCHEMA`).

    Raises:
        IchError: a source cannot be read at all (`ich.dicom.archive.members`); `out` holds images of other settings or
            of other sources, or what no conversion wrote; another process converts into it; a file cannot be written.
            What was converted until then stays and counts in the next run.
    """
    with working_in(out, settings):
        return _convert(_members(sources, split), out, settings, jobs=jobs, backend=backend, scheduler=scheduler)


def working_in(out: Path, settings: Settings) -> AbstractContextManager[None]:
    """Keep other processes from writing into an images' folder, which must be of these settings, or empty.

    Raises:
        IchError: it is not, or another process works in it.
    """

    def check() -> None:
        if _is_ours(out):
            check_settings(out, settings)

    return folders.locked(out, check)


def _convert(
    found: Members, out: Path, settings: Settings, *, jobs: int, backend: str, scheduler: str | None
) -> pd.DataFrame:
    """As `convert`, in a folder that others are kept from."""
    _claim(out, settings)
    table_path, parts = out / "slices.parquet", out / "parts"
    for folder in (out, *(out / split for split in SPLITS), parts):
        sweep(folder)
    pieces = [parts / name for name in names_in(parts) if re.fullmatch(_PART, name)]
    done = [slice_table.read_table(path) for path in [table_path, *pieces] if path.exists()]
    earlier = pd.concat(done, ignore_index=True) if done else slice_table.to_frame([])
    rows = _still_valid(earlier, found, out, settings)
    todo = found.where(pc.invert(pc.is_in(found.table["id"], pa.array(rows["SOPInstanceUID"], pa.string()))))
    if not len(todo) and not pieces and table_path.exists():
        return slice_table.read_table(table_path)

    total = len(found)
    del done, found
    pa.default_memory_pool().release_unused()
    durable = backend == "dask"
    tasks = ((todo[at : at + _CHUNK], out.absolute(), settings, durable) for at in range(0, len(todo), _CHUNK))
    results = parallel.unordered(convert_chunk, tasks, jobs=jobs, backend=backend, scheduler=scheduler)
    fresh: list[pd.DataFrame] = []
    with tqdm(total=total, initial=len(rows), unit="slice", desc="preprocess") as bar:
        fresh.extend(_saved(results, parts, bar))
    # Each of these is hundreds of megabytes of a whole archive: none may stay while the next is made.
    del tasks, todo, results
    table = pd.concat([rows, *fresh], ignore_index=True)
    del rows, fresh
    pa.default_memory_pool().release_unused()
    table = slice_table.scan_order(table)
    paths = earlier["path"].dropna()
    for path in paths[~paths.isin(table["path"])].unique():  # of a slice that changed its split
        remove_images(out, path, settings)
    slice_table.write_table(table, table_path)
    discard(parts, _PART)
    del table, earlier
    return slice_table.read_table(table_path)


def _members(sources: Sequence[Path], split: str | None) -> Members:
    found = members(sources, split)
    if found.left_out:
        print(f"not read as slices, and left out: {found.left_out}")
    return found


def _saved(results: Iterable[list[dict]], parts: Path, bar: tqdm) -> Iterator[pd.DataFrame]:
    """Gather rows and save them every few seconds, and at the end, whatever ends it; give what was saved."""
    rows: list[dict] = []

    def save() -> pd.DataFrame:
        part = slice_table.to_frame(rows)
        sync_filesystem(parts.parent)
        slice_table.write_table(part, parts / f"{time.time_ns():020}-{uuid4().hex}.parquet")  # later ones last
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
    """Read all slices and their PNGs once more and compare: pixels, and the rows of the slice table.

    Args:
        As for `convert`.

    Returns:
        What differs, by SOPInstanceUID; empty if nothing does.

    Raises:
        IchError: the folder is not converted, or of other settings; a source cannot be read at all.
    """
    found = _members(sources, split)
    check_settings(out, settings)
    table = slice_table.read_table(out / "slices.parquet")
    ids = found.table["id"].to_pandas()
    differing = dict.fromkeys(set(table["SOPInstanceUID"]).difference(ids), "is in the table, not in the sources")
    differing |= dict.fromkeys(set(ids).difference(table["SOPInstanceUID"]), "is in the sources, not in the table")
    rows = table.set_index("SOPInstanceUID")[["status", "png_size", *_VERIFIED]]
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
            wrong |= _compare(member, image, told["png_size"], out, settings)
    return len(chunk), wrong


def _compare(member: Member, image: np.ndarray, size: int, out: Path, settings: Settings) -> dict[str, str]:
    paths = [out / member.split / f"{member.id}{suffix}" for suffix in settings.suffixes]
    try:
        pictures = [reading.read(path) for path in paths]
    except IchError as error:
        return {member.id: str(error)}
    fit = {picture.shape[:2] for picture in pictures} == {image.shape[:2]}
    if not fit or not np.array_equal(np.concatenate(pictures, axis=-1), image):
        return {member.id: "the PNG is not what the source gives"}
    if (now := sum(path.stat().st_size for path in paths)) != size:  # another program packed the same pixels
        return {member.id: f"the PNG has {now} bytes, the table says {size:.0f}"}
    return {}


def read_settings(out: Path) -> Settings:
    """The settings that the images of a folder are of.

    Raises:
        IchError: nothing that can be read tells them.
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
    """Refuse a folder whose images are of other settings.

    Raises:
        IchError: they are, or nothing tells what they are of.
    """
    theirs = _settings_in(out)
    ours = _as_json(settings)
    keys = dict.fromkeys([*ours, *theirs])  # theirs may be of a later version, with settings unknown here
    differing = [f"{k}: {theirs.get(k)} there, {ours.get(k)} here" for k in keys if theirs.get(k) != ours.get(k)]
    if differing:
        raise IchError(
            f"{out} holds images of other settings ({'; '.join(differing)}); name another folder, or delete it"
        )


def _settings_in(out: Path) -> dict:
    try:
        return dict(json.loads((out / "settings.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise IchError(
            f"{out} lacks a readable settings.json that says what made its images ({one_line(error)}); convert into"
            " another folder"
        ) from error


def _is_ours(out: Path) -> bool:
    return folders.is_ours(out, folders.IMAGES)


def _claim(out: Path, settings: Settings) -> None:
    """Make the folder this settings' own, or refuse."""
    if _is_ours(out):
        check_settings(out, settings)
        return
    write_json(out / "settings.json", _as_json(settings))


def _as_json(settings: Settings) -> dict:
    return json.loads(json.dumps(asdict(settings)))  # as it comes back from a file: lists for tuples


def _still_valid(rows: pd.DataFrame, found: Members, out: Path, settings: Settings) -> pd.DataFrame:
    """The rows of slices that the sources hold unchanged, and whose images are there, of their size, each once."""
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
    if len(rows):
        there = _sizes(out)
        stems = rows["path"].str.removesuffix(settings.suffixes[0])
        total = np.zeros(len(rows))
        for suffix in settings.suffixes:
            places = pc.index_in(pa.array(stems + suffix, pa.string()), value_set=there["path"])
            total += there["size"].take(places).to_numpy()  # NaN where it is missing
        valid &= (rows["status"] != "ok") | (total == rows["png_size"].to_numpy(np.float64, na_value=np.nan))
    return rows[valid].drop_duplicates("SOPInstanceUID", keep="last")


def _sizes(out: Path) -> pa.Table:
    """The images' paths within their folder, and their sizes in bytes.

    As a table, as that of a million files is a third of what a dict of them would take.
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
            raise IchError(
                f"cannot look at the images in {out / split}: {one_line(error)}; make them readable"
            ) from error
    return pa.table({"path": pa.array(paths, pa.string()), "size": pa.array(np.frombuffer(sizes, np.int64))})


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
    odd = slice_table.scan_audit(table[table["status"] == "ok"])
    for what, found in {
        "series with slices without a position": odd["unplaced"] > odd["out_of_plane"],
        "series with slices of one position": odd["ties"] > 0,
        "series with gaps, where slices may be missing": odd["gaps"] > 0,
        "series of mixed orientation": odd["orientations"] > 1,
    }.items():
        if found.any():
            lines.append(f"{what}: {name_some(odd.index[found])}")
    aside = odd.loc[odd["out_of_plane"] > 0, "out_of_plane"]
    if len(aside):
        what = "slices out of the plane of their series, without a place in it"
        lines.append(f"{what}: {aside.sum():,}, of {name_some(aside.index)}")
    return "\n".join(lines)
