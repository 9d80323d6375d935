"""DICOM slices to windowed PNGs and the slice table; stopped at any moment, the next run does what is left."""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import cv2
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from ich import dicom, slices
from ich.archive import SPLITS, Member, members
from ich.dicom import DicomError
from ich.errors import IchError
from ich.files import replacing, sweep
from ich.windows import Window, apply_windows

STATUSES: dict[str, str] = {
    **dicom.KINDS,
    "bad_id": "the file's name cannot be a slice's id, and so not the name of a PNG",
    "wrong_id": "the file's name is not the SOPInstanceUID inside it, so that its labels may be those of another slice",
}

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CHUNK = 64  # slices; one task of a worker, and what a kill can cost each of them

# Of cv2's settings for windowed slices these give the fastest decoding, at a smaller size than the default.
_PNG = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides the pixels of the PNGs; a folder holds images of one of these only.

    Args:
        windows: one gives grey PNGs, three give the red, green and blue of colour ones, in this order.
        size: pixels a side, reduced by area interpolation; None keeps each slice as it is.
        fit: what becomes of a slice that is not square, if there is a size: "pad" adds air evenly on its two sides,
            "stretch" does not keep its proportions.

    Raises:
        IchError: another number of windows, a size below 16, an unknown fit.
    """

    windows: tuple[Window, ...]
    size: int | None = None
    fit: str = "pad"

    def __post_init__(self) -> None:
        if len(self.windows) not in (1, 3):
            raise IchError(f"a PNG holds one window or three, got {len(self.windows)}")
        if self.size is not None and self.size < 16:
            raise IchError(f"images need a size of at least 16 pixels, got {self.size}")
        if self.fit not in ("pad", "stretch"):
            raise IchError(f"fit is {self.fit!r}, expected pad or stretch")


def render(hu: np.ndarray, settings: Settings) -> np.ndarray:
    """The image of a slice.

    The window comes before the resizing, so that bone, far outside it, does not blur over the brain beside it.

    Args:
        hu: int16, shape (rows, columns), Hounsfield units.

    Returns:
        uint8, shape (height, width, number of windows).
    """
    if settings.size is not None and settings.fit == "pad" and hu.shape[0] != hu.shape[1]:
        missing = max(hu.shape) - np.array(hu.shape)
        hu = np.pad(hu, [(m // 2, m - m // 2) for m in missing], constant_values=dicom.AIR)
    image = apply_windows(hu, settings.windows)
    if settings.size is not None and image.shape[:2] != (settings.size, settings.size):
        image = cv2.resize(image, (settings.size, settings.size), interpolation=cv2.INTER_AREA)
    return image.reshape(*image.shape[:2], len(settings.windows))  # cv2 drops a single channel


def convert(
    sources: Sequence[Path], out: Path, settings: Settings, split: str | None = None, jobs: int = -1
) -> pd.DataFrame:
    """Convert all slices of the sources to PNGs `out/<split>/<id>.png`, and write `out/slices.parquet`.

    A slice that cannot be read gets no PNG, and a row with its status and reason. What an earlier run into the same
    folder converted is not read again.

    Args:
        sources: folders and zips of DICOM slices; raw data are only read.
        out: the images' folder.
        split: "train" or "test"; None tells by the folders' names.
        jobs: processes, as joblib's n_jobs.

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
    images = {f"{split}/{name}" for split in SPLITS for name in sweep(out / split)}
    pieces = [parts / name for name in sorted(sweep(parts))]
    done = [slices.read_table(path) for path in [table_path, *pieces] if path.exists()]
    earlier = pd.concat(done, ignore_index=True) if done else slices.to_frame([])
    rows = _still_valid(earlier, found, images, out)
    finished = set(rows["SOPInstanceUID"])
    todo = [member for member in found if member.id not in finished]
    if not todo and not pieces and table_path.exists():
        return slices.read_table(table_path)

    chunks = [todo[i : i + _CHUNK] for i in range(0, len(todo), _CHUNK)]
    work = Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(_convert_chunk)(chunk, out, settings) for chunk in chunks
    )
    fresh: list[pd.DataFrame] = []
    with tqdm(total=len(found), initial=len(finished), unit="slice", desc="preprocess") as bar:
        for chunk in work:
            part = slices.to_frame(chunk)
            slices.write_table(part, parts / f"{uuid4().hex}.parquet")
            fresh.append(part)
            bar.update(len(part))
    table = slices.scan_order(pd.concat([rows, *fresh], ignore_index=True))
    for path in images.intersection(earlier["path"]).difference(table["path"]):  # of a slice that changed its split
        _remove(out / path)
    slices.write_table(table, table_path)
    shutil.rmtree(parts, ignore_errors=True)
    return slices.read_table(table_path)


def _convert_chunk(chunk: Iterable[Member], out: Path, settings: Settings) -> list[dict]:
    cv2.setNumThreads(1)  # the processes are the parallel work; threads of each would fight for the same cores
    return [convert_slice(member, out, settings) for member in chunk]


def convert_slice(member: Member, out: Path, settings: Settings) -> dict:
    """Convert one slice; its row of the slice table, without z and order.

    Raises:
        IchError: the PNG cannot be written, or that of an earlier run not removed.
    """
    row = {"SOPInstanceUID": member.id, "split": member.split, "size": member.size, "repaired": "", "reason": ""}
    if not _ID.fullmatch(member.id):
        return row | {
            "status": "bad_id",
            "reason": f"{member.id!r:.200} is no id of letters, digits and ._-, 64 at most",
        }
    path = f"{member.split}/{member.id}.png"
    try:
        hu, header = dicom.read(member.read())
    except IchError as error:
        _remove(out / path)  # there is one if the slice was whole in an earlier run
        kind = error.kind if isinstance(error, DicomError) else "unreadable"
        return row | {"status": kind, "reason": _writable(str(error))}
    row |= {name: getattr(header, name) for name in slices.SCHEMA.names if hasattr(header, name)}
    row |= {"SOPInstanceUID": member.id, "repaired": ",".join(header.repaired)}
    if header.SOPInstanceUID != member.id:
        _remove(out / path)
        return row | {"status": "wrong_id", "reason": f"the file says it is {header.SOPInstanceUID!r:.200}"}
    image = render(hu, settings)
    # cv2 stores blue first; reversed, the first window is a viewer's red.
    _, png = cv2.imencode(".png", image[..., ::-1], _PNG)
    with replacing(out / path) as temporary:
        temporary.write_bytes(png.tobytes())
    return row | {"status": "ok", "path": path}


def _writable(text: str) -> str:
    # Names in another encoding than the system's hold surrogates, which no table takes.
    return text.encode("utf-8", "backslashreplace").decode()


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise IchError(f"cannot remove {path}: {error.strerror or error}; its slice is no longer readable") from error


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


def _still_valid(rows: pd.DataFrame, found: list[Member], images: set[str], out: Path) -> pd.DataFrame:
    """The rows of slices that the sources hold unchanged, and whose images are there, each once."""
    now = pd.DataFrame({"size": [m.size for m in found], "split": [m.split for m in found]}, [m.id for m in found])
    foreign = rows[~rows["SOPInstanceUID"].isin(now.index)]
    if len(foreign):
        raise IchError(
            f"{out} holds {len(foreign):,} slice(s) that the sources do not, such as"
            f" {foreign['SOPInstanceUID'].iloc[0]}; name all sources of a folder together, or another folder"
        )
    now = now.loc[rows["SOPInstanceUID"]]
    valid = (rows["size"].to_numpy() == now["size"].to_numpy()) & (rows["split"].to_numpy() == now["split"].to_numpy())
    # What the system did not let us read (rights, a disk that was away) may be readable by now.
    valid &= (rows["status"].ne("unreadable") & (rows["status"].ne("ok") | rows["path"].isin(images))).to_numpy()
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
    unplaced = (table["z"].isna() & (table["status"] == "ok")).sum()
    if unplaced:
        lines.append(f"without a position in their scan: {unplaced:,}")
    return "\n".join(lines)
