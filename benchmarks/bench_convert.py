"""RSNA_SAMPLE=folder python benchmarks/bench_convert.py

Conversion of real slices: `ich.images.convert.convert` in two processes against bare calls and against the loop people
    copy.

The folder in RSNA_SAMPLE holds a zip laid out as the competition's. Its slices are repeated, each copy under an id of
its own, to a folder and to a zip of --files slices. Sides take turns, each run in a process of its own, timed from the
start of its pool to its end, imports of the first process apart:

- floor: read, pydicom's parse, a lookup table, cv2.imencode at its quickest, write. No checks, no table, no rename.
- floor, our PNGs: the same with `ich.images.png`, which is quicker than cv2.
- loop: pixel_array to float64, masks, cv2.imwrite with its defaults, multiprocessing.Pool; from a zip, by zipfile.
- ours: the whole of `convert`, its workers' start, its slice table and all.

`one_window_vs_floor_of_our_pngs` is of whole runs, our workers' start included, which the floor, forked from a process
that has imported everything, does not have. `steady_vs_floor_of_our_pngs` is of the time that each slice beyond the
first 128 takes: a whole run less a run of 128 slices, on both sides. `first_128_s` is our run of these, most of it the
workers' start. `--only steady` measures these three alone.

Slices and PNGs of these lie in memory (/dev/shm), where that has room: of a disk, the speed of writing is measured, and
its changes from one minute to the next.

The big zip and the finished run are of 32 × 32 slices with a header as real ones, converted by scripts/preprocess.py.
--only measures single parts. Prints tables and, last, a line of JSON.
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian

from ich.images import png

ROOT = Path(__file__).resolve().parents[1]
JOBS = 2
WINDOWS = {1: ["brain"], 3: ["brain", "subdural", "bone"]}
BIG, FINISHED = 874_000, 100_000
IN_SERIES = 35  # slices, of the small ones
FIRST = 128  # slices, whose run is taken from a whole one: a chunk for each process
HEADER = 2048  # bytes at a file's start, in which its id is


# cv2's settings for gray slices that take the least time.
QUICKEST = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]


def encode_quickest(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image, QUICKEST)[1]


def in_memory(files: int) -> Path | None:
    """A folder in memory with room for the slices, packed and not, and their PNGs; else None."""
    folder = Path("/dev/shm")
    return folder if folder.is_dir() and shutil.disk_usage(folder).free > files * 1_500_000 else None


# The sides of the throughput: each converts a folder or a zip, and gives the seconds that it took.


def floor(source: Path, out: Path, count: int, encode: Callable = encode_quickest) -> float:
    from ich.dicom import windows

    values = np.arange(65536, dtype=np.uint16)
    window = windows.PRESETS[WINDOWS[count][0]]
    low = window.center - window.width / 2
    tables: dict[tuple, np.ndarray] = {}
    cv2.setNumThreads(1)
    files = sorted(source.rglob("*.dcm"))
    start = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(
        JOBS, _set, [{"tables": tables, "values": values, "low": low, "width": window.width, "encode": encode}]
    ) as pool:
        for _ in pool.imap_unordered(partial(floor_slice, out), files, chunksize=64):
            pass
    return time.perf_counter() - start


def floor_ours(source: Path, out: Path, count: int) -> float:
    return floor(source, out, count, lambda image: png.encode(image[..., None]))


def floor_slice(out: Path, path: Path) -> None:
    ds = pydicom.dcmread(io.BytesIO(path.read_bytes()))
    key = ds.PixelRepresentation, float(ds.RescaleSlope), float(ds.RescaleIntercept)
    table = STATE["tables"].get(key)
    if table is None:
        hu = STATE["values"].view(np.int16 if key[0] else np.uint16) * key[1] + key[2]
        share = (hu - STATE["low"]) / STATE["width"]
        table = STATE["tables"][key] = np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)
    stored = np.frombuffer(ds.PixelData, np.uint16).reshape(ds.Rows, ds.Columns)
    try:
        image = cv2.LUT(stored, table)
    except cv2.error:  # before OpenCV 5, of bytes only
        image = np.take(table, stored)
    (out / f"{path.stem}.png").write_bytes(STATE["encode"](image))


def loop(source: Path, out: Path, count: int) -> float:
    from ich.dicom.windows import PRESETS  # no more of it, so that pydicom stays as it comes

    windows = [(PRESETS[name].center, PRESETS[name].width) for name in WINDOWS[count]]
    if source.is_dir():
        files = sorted(map(str, source.rglob("*.dcm")))
        setup, read = {}, pydicom.dcmread
    else:
        with zipfile.ZipFile(source) as archive:
            files = [name for name in archive.namelist() if name.endswith(".dcm")]
        setup, read = {"zip": source}, read_zipped
    start = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(JOBS, _set, [setup]) as pool:
        pool.map(partial(loop_slice, out, windows, read), files)
    return time.perf_counter() - start


def read_zipped(name: str) -> pydicom.Dataset:
    if "archive" not in STATE:  # one each process, as the position in the file is not to be shared
        STATE["archive"] = zipfile.ZipFile(STATE["zip"])
    return pydicom.dcmread(io.BytesIO(STATE["archive"].read(name)))


def loop_slice(out: Path, windows: list[tuple], read: Callable, path: str) -> None:
    ds = read(path)
    pixels = ds.pixel_array.astype(np.float64)
    images = [window_image(pixels, *window, ds.RescaleIntercept, ds.RescaleSlope) for window in windows]
    image = images[0] if len(images) == 1 else np.dstack(images)
    cv2.imwrite(str(out / f"{Path(path).stem}.png"), image)


def window_image(image, center, width, intercept, slope):
    image = image * slope + intercept
    low, high = center - width // 2, center + width // 2
    image[image < low] = low
    image[image > high] = high
    return ((image - low) / (high - low) * 255).astype(np.uint8)


def ours(source: Path, out: Path, count: int) -> float:
    from ich.dicom import windows
    from ich.images import convert, render

    settings = render.Settings(windows=tuple(windows.PRESETS[name] for name in WINDOWS[count]))
    start = time.perf_counter()
    table = convert.convert([source], out, settings, jobs=JOBS)
    seconds = time.perf_counter() - start
    if not (table["status"] == "ok").all():
        raise SystemExit(convert.summary(table))
    return seconds


SIDES = {"floor": floor, "floor, our PNGs": floor_ours, "loop": loop, "ours": ours}
STATE: dict = {}  # of a worker


def _set(values: dict) -> None:
    STATE.update(values)


Run = tuple[str, int, Path]  # side, number of windows, source


def in_turns(work: Path, runs: list[Run], repeat: int) -> dict[Run, float]:
    """Median seconds of each run."""
    seconds: dict[Run, list[float]] = {run: [] for run in runs}
    for repetition in range(repeat):
        for side, count, source in runs[repetition % 2 :] + runs[: repetition % 2]:
            out = work / "out"
            out.mkdir()
            command = [sys.executable, __file__, f"--side={side}", f"--windows={count}", str(source), str(out)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            seconds[side, count, source].append(float(done.stdout))
            shutil.rmtree(out)
    return {run: statistics.median(taken) for run, taken in seconds.items()}


def of_folder(work: Path, source: Path, files: int, repeat: int, whole: bool) -> dict[str, float]:
    """Figures of the conversion of a folder; `whole` compares with all sides, not with the floor of our PNGs alone."""
    first = work / "first"
    for path in sorted(source.rglob("*.dcm"))[:FIRST]:
        link = first / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(path)
    floor, others = "floor, our PNGs", [("floor", 1), ("loop", 1), ("ours", 3), ("loop", 3)]
    sides = [("ours", 1), (floor, 1), *(others if whole else [])]
    took = in_turns(work, [*((*side, source) for side in sides), ("ours", 1, first), (floor, 1, first)], repeat)
    for side, count in sides:
        print(f"folder, {count} window(s), {side:24}{files / took[side, count, source]:10.0f} slices/s")
    steady = {side: took[side, 1, source] - took[side, 1, first] for side in ("ours", floor)}
    figures = {
        "one_window_vs_floor_of_our_pngs": took[floor, 1, source] / took["ours", 1, source],
        "steady_vs_floor_of_our_pngs": steady[floor] / steady["ours"],
        "first_128_s": took["ours", 1, first],
    }
    if whole:
        figures["one_window_vs_floor"] = took["floor", 1, source] / took["ours", 1, source]
        figures["one_window_vs_loop"] = took["loop", 1, source] / took["ours", 1, source]
        figures["three_windows_vs_loop"] = took["loop", 3, source] / took["ours", 3, source]
    shutil.rmtree(first)
    return figures


# What they convert.


def sample_slices(sample: Path) -> Iterator[tuple[str, bytes]]:
    """The real slices, by id."""
    (path,) = sample.glob("*.zip")
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".dcm"):
                yield Path(name).stem, archive.read(name)


def repeat_sample(sample: Path, folder: Path, path: Path, files: int) -> None:
    """The slices again and again, each with an id of its own inside and outside; as a folder and as a zip."""
    slices = list(sample_slices(sample))
    (folder / "stage_2_train").mkdir(parents=True)
    packed = [deflate(data[HEADER:], zlib.Z_FINISH) for _, data in slices]

    def members() -> Iterator[tuple[str, bytes, int, int]]:
        for number in range(files):
            old, data = slices[number % len(slices)]
            id = f"ID_{number:09x}"
            head = data[:HEADER].replace(old.encode(), id.encode())
            whole = head + data[HEADER:]
            name = f"stage_2_train/{id}.dcm"
            (folder / name).write_bytes(whole)
            # The pixels are packed once a slice, not once a copy: a deflate stream may be put together of such parts.
            yield name, deflate(head, zlib.Z_FULL_FLUSH) + packed[number % len(slices)], len(whole), zlib.crc32(whole)

    write_zip(path, members())


def small_slices(sample: Path, files: int) -> Iterator[tuple[str, bytes, int, int]]:
    """Members of a zip: 32 × 32 slices with a real one's header, in series of their own."""
    warnings.filterwarnings("ignore", "Invalid value for VR UI")  # of the competition's own ids
    ds = pydicom.dcmread(io.BytesIO(next(sample_slices(sample))[1]))
    middle = ds.pixel_array[240:272, 240:272]
    ds.Rows, ds.Columns, ds.PixelData = *middle.shape, middle.tobytes()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "ID_slice----"
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "ID_patient-", "ID_study-----", "ID_series----"
    ds.ImagePositionPatient = ["-125.000", "-112.000", "77777.00"]
    buffer = io.BytesIO()
    ds.save_as(buffer, implicit_vr=False, little_endian=True)
    template = buffer.getvalue()
    for number in range(files):
        series, place = divmod(number, IN_SERIES)
        scrambled = number * 0x9E3779B1 % 2**36  # so that the ids are in no order, as real ones
        data = (
            template.replace(b"ID_slice----", b"ID_%09x" % scrambled)
            .replace(b"ID_patient-", b"ID_%08x" % (series // 2))
            .replace(b"ID_study-----", b"ID_%010x" % series)
            .replace(b"ID_series----", b"ID_%010x" % series)
            .replace(b"77777.00", b"%08.2f" % (5 * place))
        )
        name = f"rsna-intracranial-hemorrhage-detection/stage_2_train/ID_{scrambled:09x}.dcm"
        yield name, deflate(data, zlib.Z_FINISH, level=1), len(data), zlib.crc32(data)


def deflate(data: bytes, end: int, level: int = 6) -> bytes:
    stream = zlib.compressobj(level, wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush(end)


def write_zip(path: Path, members: Iterable[tuple[str, bytes, int, int]]) -> None:
    """Members are name, deflated bytes, size and CRC. zipfile would take minutes and a gigabyte for the big one."""
    directory, count = bytearray(), 0
    with path.open("wb") as file:
        for name, packed, size, crc in members:
            fields = struct.pack("<HHHHHLLLHH", 20, 0, 8, 0, 33, crc, len(packed), size, len(name), 0)
            directory += b"PK\1\2\x14\0" + fields + struct.pack("<HHHLL", 0, 0, 0, 0, file.tell()) + name.encode()
            file.write(b"PK\3\4" + fields + name.encode() + packed)
            count += 1
        start = file.tell()
        file.write(directory)
        end = file.tell()
        numbers = struct.pack("<QQQQ", count, count, len(directory), start)
        file.write(b"PK\6\6" + struct.pack("<QHHLL", 44, 45, 45, 0, 0) + numbers)
        file.write(b"PK\6\7" + struct.pack("<LQL", 0, end, 1))
        short = min(count, 0xFFFF)
        file.write(b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, short, short, len(directory), start, 0))


# The scale of the archive.


def script(source: Path, images: Path) -> list[str]:
    values = {
        "data.sources": source,
        "data.images": images,
        "preprocess.size": "null",
        "machine.jobs": JOBS,
    }
    overrides = [f"--set={key}={value}" for key, value in values.items()]
    return [
        sys.executable,
        str(ROOT / "scripts" / "preprocess.py"),
        str(ROOT / "configs" / "baseline.yaml"),
        *overrides,
    ]


def watch(command: list[str], images: Path) -> tuple[float, float, float]:
    """Run it: seconds to the first PNG, seconds in all, and the peak of all processes' proportional memory, MB."""
    start = time.perf_counter()
    first, peak, sampled = None, 0, 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if first is None and any((images / "train").glob("ID_*.png")):
                first = time.perf_counter() - start
            if time.perf_counter() - sampled > 0.5:
                sampled = time.perf_counter()
                peak = max(peak, memory(process.pid))
            time.sleep(0.05 if first is None else 0.5)
    if process.returncode or first is None:
        raise SystemExit(f"status {process.returncode} of {' '.join(command)}")
    return first, time.perf_counter() - start, peak / 1e6


def memory(pid: int) -> int:
    """Return the bytes (PSS) of a process and all below it, what several share counted once; 0 where /proc lacks it."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total = int(line.split()[1]) * 1024
        tasks = Path(f"/proc/{pid}/task").iterdir()
        children = [child for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return total
    return total + sum(memory(int(child)) for child in children)


# The encoder.


def by_cv2(image: np.ndarray, settings: list[int]) -> bytes:
    blue_first = image[..., 0] if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", blue_first, settings)[1]


ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "ich.images.png": png.encode,
    "cv2's defaults": partial(by_cv2, settings=[]),
    **{
        f"{strategy} {filter} {level or '-'}": partial(
            by_cv2,
            settings=[
                # In this order: setting the level resets the strategy.
                *([cv2.IMWRITE_PNG_COMPRESSION, level] if level else []),
                *(cv2.IMWRITE_PNG_STRATEGY, getattr(cv2, f"IMWRITE_PNG_STRATEGY_{strategy}")),
                *(cv2.IMWRITE_PNG_FILTER, getattr(cv2, f"IMWRITE_PNG_{filter}")),
            ],
        )
        for strategy, levels in {
            "DEFAULT": (1, 3, 6),
            "RLE": (None,),
            "HUFFMAN_ONLY": (None,),
            "FIXED": (None,),
        }.items()
        for filter in ("FILTER_NONE", "FILTER_SUB", "FILTER_UP", "FILTER_PAETH", "FAST_FILTERS")
        for level in levels
    },
}


def real_images(sample: Path, count: int, every: int) -> list[np.ndarray]:
    """Windowed slices."""
    from ich.dicom import reader, windows
    from ich.images import render

    chosen = [windows.PRESETS[name] for name in WINDOWS[count]]
    slices = [data for _, data in sample_slices(sample)][::every]
    settings = render.Settings(windows=tuple(chosen))
    return [render.render(reader.read(data)[0], settings)[0] for data in slices]


def milliseconds(function: Callable, values: list) -> tuple[float, list]:
    start = time.perf_counter()
    results = [function(value) for value in values]
    return 1e3 * (time.perf_counter() - start) / len(values), results


def decode_cv2(file: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)


def encoder_table(sample: Path, repeat: int) -> list[str]:
    cv2.setNumThreads(1)
    lines = [
        f"{'':26}{'one window':>30}{'three windows':>30}",
        f"{'strategy filter level':26}" + f"{'encode ms':>11}{'decode ms':>11}{'KB':>8}" * 2,
    ]
    images = {count: real_images(sample, count, every=8) for count in WINDOWS}
    for name, encode in ENCODERS.items():
        line = f"{name:26}"
        for pictures in images.values():
            encodes, decodes = [], []
            for _ in range(repeat):
                took, files = milliseconds(encode, pictures)
                encodes.append(took)
                decodes.append(milliseconds(decode_cv2, files)[0])
            size = sum(map(len, files)) / len(files) / 1e3
            line += f"{statistics.median(encodes):11.2f}{statistics.median(decodes):11.2f}{size:8.1f}"
        lines.append(line)
    return lines


def compare_decoding(sample: Path, work: Path, repeat: int) -> dict[str, float]:
    """One process: our PNGs of one window, and cv2's by default, read by cv2.imread."""
    cv2.setNumThreads(1)
    files: dict[str, list[str]] = {"default": [], "ours": []}
    for number, image in enumerate(real_images(sample, 1, every=1)):
        for side, data in {"default": by_cv2(image, []), "ours": png.encode(image)}.items():
            path = work / f"{side}-{number}.png"
            path.write_bytes(data)
            files[side].append(str(path))
    size = {side: sum(Path(path).stat().st_size for path in paths) for side, paths in files.items()}
    taken: dict[str, list[float]] = {side: [] for side in files}
    for _ in range(repeat):
        for side, paths in files.items():
            taken[side].append(milliseconds(lambda path: cv2.imread(path, cv2.IMREAD_UNCHANGED), paths)[0])
    decode = {side: statistics.median(values) for side, values in taken.items()}
    for side in files:
        print(f"decode, {side:36}{decode[side]:10.2f} ms{size[side] / len(files[side]) / 1e3:10.1f} KB")
    return {"decode_vs_default": decode["default"] / decode["ours"], "bytes_vs_default": size["ours"] / size["default"]}


PARTS = ("folder", "steady", "zip", "decode", "encoder", "big-zip", "resume")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sample", nargs="?", type=Path, help="the sample's folder (default: that in RSNA_SAMPLE)")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="parts to measure (default: all)")
    parser.add_argument("--files", type=int, default=6000, help="copies of the sample's slices (default: 6000)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each side (default: 3)")
    parser.add_argument("--big", type=int, default=BIG, help=f"slices of the big zip (default: {BIG:,})")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--windows", type=int, help=argparse.SUPPRESS)
    parser.add_argument("out", nargs="?", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side:
        print(SIDES[args.side](args.sample, args.out, args.windows))
        return
    sample = args.sample or (Path(os.environ["RSNA_SAMPLE"]) if os.environ.get("RSNA_SAMPLE") else None)
    if sample is None or not any(sample.glob("*.zip")):
        sys.exit("set RSNA_SAMPLE to a folder with a zip of the competition's slices, or give it as the argument")

    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as disk, tempfile.TemporaryDirectory(dir=in_memory(args.files)) as memory:
        work = Path(memory)
        if {"folder", "steady", "zip"} & set(args.only):
            source, archive = work / "slices", work / "slices.zip"
            repeat_sample(sample, source, archive, args.files)
            print(f"{args.files:,} slices, {JOBS} processes each side, medians of {args.repeat} runs\n")
            if {"folder", "steady"} & set(args.only):
                figures |= of_folder(work, source, args.files, args.repeat, whole="folder" in args.only)
            shutil.rmtree(source)
            if "zip" in args.only:
                took = in_turns(work, [("ours", 1, archive), ("loop", 1, archive)], args.repeat)
                for (side, count, _), seconds in took.items():
                    print(f"zip, {count} window(s), {side:27}{args.files / seconds:10.0f} slices/s")
                figures["zip_vs_loop"] = took["loop", 1, archive] / took["ours", 1, archive]
            archive.unlink()
        if "decode" in args.only:
            figures |= compare_decoding(sample, work, args.repeat)
        if "encoder" in args.only:
            print("\n".join(["", *encoder_table(sample, args.repeat), ""]))
        work = Path(disk)
        if "big-zip" in args.only:
            write_zip(work / "big.zip", small_slices(sample, args.big))
            first, seconds, peak = watch(script(work / "big.zip", work / "big"), work / "big")
            print(
                f"zip of {args.big:,} slices, all converted: first PNG after {first:.1f} s, end after {seconds:.0f} s"
            )
            print(f"peak of all processes: {peak:,.0f} MB")
            figures |= {"big_zip_peak_mb": peak, "big_zip_start_s": first}
            shutil.rmtree(work / "big")
        if "resume" in args.only:
            write_zip(work / "finished.zip", small_slices(sample, FINISHED))
            command = script(work / "finished.zip", work / "finished")
            taken = []
            for _ in range(1 + args.repeat):  # the first converts
                start = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                taken.append(time.perf_counter() - start)
            figures["resume_finished_s"] = statistics.median(taken[1:])
            print(f"finished run of {FINISHED:,} slices, again: {figures['resume_finished_s']:.2f} s")
    print(json.dumps({key: round(value, 2 if value < 100 else None) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
