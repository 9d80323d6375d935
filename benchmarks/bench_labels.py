"""python benchmarks/bench_labels.py [stage_1_train.csv.xz]

Reading the competition's label file: `ich.competition.labels.read_labels` against the usual rsplit and pivot_table.

Without a path it takes stage_1_train.csv.xz of the folder in RSNA_SAMPLE or, without that, makes a file of the same
size. Both sides read the same plain CSV, each time in a process of its own, in turns. Times are of the reading, imports
apart; peaks are of the whole process, imports included. Prints a table and, last, a line of JSON.
"""

import argparse
import gzip
import json
import lzma
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMAGES = 674_258
TWICE = 4


def read_ours(path: str) -> dict[str, object]:
    from ich.competition.labels import read_labels

    start = time.perf_counter()
    frame, _ = read_labels(path)
    return report(start, frame)


def read_pivot(path: str) -> dict[str, object]:
    import pandas as pd

    start = time.perf_counter()
    table = pd.read_csv(path)
    table[["image", "label"]] = table["ID"].str.rsplit("_", n=1, expand=True)
    frame = table.pivot_table(index="image", columns="label", values="Label")
    return report(start, frame)


def report(start: float, frame) -> dict[str, object]:
    """Seconds since the start, this process's peak, and sums by which both sides can be compared."""
    seconds = time.perf_counter() - start
    # Linux counts in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    sums = {label: int(frame[label].sum()) for label in sorted(frame.columns)}
    return {"seconds": seconds, "peak_mb": peak, "sums": {"images": len(frame), **sums}}


SIDES = {"read_labels": read_ours, "rsplit + pivot_table": read_pivot}


def make_file(path: Path) -> None:
    """As many images as stage 1, four of them twice; labels as rare as there."""
    import numpy as np
    import pandas as pd

    from ich.competition.labels import INDEX_NAME, LABELS, to_long

    rng = np.random.default_rng(0)
    ids = 4096 * rng.permutation(16**6)[:IMAGES]
    index = pd.Index([f"ID_{number:09x}" for number in ids], name=INDEX_NAME)
    frame = pd.DataFrame(np.zeros((IMAGES, len(LABELS)), np.int8), index=index, columns=list(LABELS))
    for label, share in zip(LABELS[:-1], (0.004, 0.048, 0.035, 0.047, 0.063), strict=True):
        frame[label] = (rng.random(IMAGES) < share).astype(np.int8)
    frame["any"] = frame[list(LABELS[:-1])].max(axis=1)
    long = to_long(frame)
    pd.concat([long, long[: 6 * TWICE]]).to_csv(path, index=False)


def unpack(source: Path, path: Path) -> None:
    """Once, so that nobody's time is that of the decompression."""
    opened = {".xz": lzma.open, ".gz": gzip.open}.get(source.suffix, open)(source, "rb")
    with opened, path.open("wb") as target:
        shutil.copyfileobj(opened, target, 2**20)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("path", nargs="?", type=Path, help="the label file, plain, .xz or .gz")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each side (default: 5)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side:
        print(json.dumps(SIDES[args.side](str(args.path))))
        return

    source = args.path
    if source is None and os.environ.get("RSNA_SAMPLE"):
        source = Path(os.environ["RSNA_SAMPLE"]) / "stage_1_train.csv.xz"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.csv"
        if source is None:
            make_file(path)
        else:
            unpack(source, path)
        runs = {side: [] for side in SIDES}
        for _ in range(args.repeat):
            for side, taken in runs.items():
                command = [sys.executable, __file__, str(path), "--side", side]
                taken.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        size = path.stat().st_size

    if len({json.dumps(run["sums"]) for taken in runs.values() for run in taken}) != 1:
        raise SystemExit("the two sides disagree on the labels; nothing to compare")
    seconds = {side: statistics.median(run["seconds"] for run in taken) for side, taken in runs.items()}
    peak = {side: statistics.median(run["peak_mb"] for run in taken) for side, taken in runs.items()}
    images = next(iter(runs.values()))[0]["sums"]["images"]
    name = source.name if source else "synthetic"
    print(f"{name}: {size / 1e6:.0f} MB, {images:,} images; medians of {args.repeat} runs\n")
    print(f"{'':22}{'seconds':>10}{'peak MB':>10}")
    for side in SIDES:
        print(f"{side:22}{seconds[side]:10.2f}{peak[side]:10.0f}")
    ours, usual = (seconds[side] for side in SIDES)
    print(json.dumps({"labels_vs_pivot": round(usual / ours, 2), "peak_mb": round(peak["read_labels"])}))


if __name__ == "__main__":
    main()
