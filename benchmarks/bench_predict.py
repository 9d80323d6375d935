"""python benchmarks/bench_predict.py

Prediction by the script's way, beside Keras's bare `model.predict`; and its memory, by the number of slices.

Throughput (`predict_vs_bare`): EfficientNetV2-B0 with random weights, on PNGs of 256 × 256 pixels. Ours is all that
scripts/predict.py does for a run of two folds and one pass: slice table, digests, reading and decoding, the network,
parts, the files of passes, the mean. Bare is `model.predict` by both models on one array in memory. Both predict with
batches of 32 by models that have predicted one batch before: reading and tracing a model is not timed. Each repetition
is a process of its own, both sides in turns; the ratio is of the medians.

Memory (`memory_growth`): the peak of scripts/predict.py as a whole, its processes together (resident), for small_cnn on
PNGs of 32 × 32 pixels, two folds. Files are hard links to 500 different ones: each is opened and decoded all the same.

Prints a table and, as the last line, JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).resolve().parents[1]
BATCH, DISTINCT = 32, 500
TRAIN = [f"ID_{number:09x}" for number in range(8)]


def write_run(folder: Path, name: str, side: int, counts: list[int]) -> None:
    """A run of two untrained models, and folders of images with so many test slices."""
    import cv2
    import keras
    import numpy as np
    import pandas as pd

    from ich.competition import folds
    from ich.competition.labels import INDEX_NAME, LABELS
    from ich.config import Config
    from ich.models import backbones
    from ich.training import inference
    from ich.training.run_data import RunData
    from ich.training.run_directory import Run
    from ich.training.run_score import score_run

    labels = np.tile(np.array([[0] * 6, [1] * 6], np.int8), (len(TRAIN) // 2, 1))
    table = pd.DataFrame(labels, columns=list(LABELS), index=pd.Index(TRAIN, name=INDEX_NAME))
    table["PatientID"], table["fold"] = TRAIN, [number % 2 for number in range(len(TRAIN))]
    folds.write_folds(folder / "folds.csv", table)
    config = Config.model_validate(
        {
            "name": "run",
            "data": {"sources": folder, "images": folder / str(counts[0]), "folds": folder / "folds.csv"},
            "folds": {"n": 2},
            "model": {"name": name, "weights": None},
            "predict": {"batch_size": BATCH},
        }
    )
    rng = np.random.default_rng(0)
    stock = folder / "stock"
    stock.mkdir()
    for number in range(DISTINCT):
        image = cv2.GaussianBlur(rng.integers(0, 256, (side, side), dtype=np.uint8), (5, 5), 0)
        cv2.imwrite(str(stock / f"{number}.png"), image)
    for count in counts:
        write_images(folder / str(count), stock, count, config)
    run = Run.begin(config, folder)
    run.claim(keras.backend.backend(), keras.distribution.list_devices(), RunData(config).digests)
    for k in range(2):
        model = backbones.build_model(name, (side, side, 1))
        run.fold(k).mkdir(parents=True)
        model.save(run.fold(k) / "model.keras")
        inference.predict_held_out(run, k, RunData(run.config), lambda model=model: model)
    score_run(run)


def write_images(images: Path, stock: Path, count: int, config) -> None:
    from dataclasses import asdict

    from ich.images import slice_table
    from ich.images.render import Settings

    test = [f"ID_{number:09x}" for number in range(1000, 1000 + count)]
    rows = []
    for split, ids in (("train", TRAIN), ("test", test)):
        (images / split).mkdir(parents=True)
        for number, id in enumerate(ids):
            os.link(stock / f"{number % DISTINCT}.png", images / split / f"{id}.png")
            rows.append(
                {"SOPInstanceUID": id, "SeriesInstanceUID": f"ID_{number // 34:09x}", "split": split, "status": "ok"}
                | {"path": f"{split}/{id}.png", "size": 1000, "crc": number}
            )
    (images / "settings.json").write_text(json.dumps(asdict(Settings.of(config.preprocess))))
    slice_table.write_table(slice_table.to_frame(rows), images / "slices.parquet")


def run_ours(folder: Path) -> float:
    from ich.data.generator import DataGenerator
    from ich.images import slice_table
    from ich.training import inference
    from ich.training.results_folder import with_results_in
    from ich.training.run_data import read_slices
    from ich.training.run_directory import Run

    run = Run.open(folder / "run")
    models = [inference.load_model(run, k) for k in range(2)]
    ids = slice_table.readable(read_slices(run.config), "test").index
    options = inference.generator_options(run.config, "test")
    for model in models:
        model.predict(DataGenerator(ids[:BATCH], batch_size=BATCH, **options), verbose=0)
    inference.load_model = lambda run, k: models[k]
    start = time.perf_counter()
    predictions = inference.predict_test(run, with_results_in(run, folder / f"out{os.getpid()}"))
    seconds = time.perf_counter() - start
    assert len(predictions) == len(ids)
    return 2 * len(ids) / seconds


def run_bare(folder: Path) -> float:
    from ich.images import slice_table
    from ich.training import inference
    from ich.training.run_data import read_slices
    from ich.training.run_directory import Run

    run = Run.open(folder / "run")
    models = [inference.load_model(run, k) for k in range(2)]
    images = read(folder, slice_table.readable(read_slices(run.config), "test").index)
    for model in models:
        model.predict(images[:BATCH], verbose=0)
    start = time.perf_counter()
    for model in models:
        model.predict(images, batch_size=BATCH, verbose=0)
    return 2 * len(images) / (time.perf_counter() - start)


SIDES = {"ours": run_ours, "bare": run_bare}


def read(folder: Path, ids):
    import numpy as np

    from ich.images import reading
    from ich.training.run_directory import Run

    run = Run.open(folder / "run")
    return np.stack([reading.read(run.config.data.images / "test" / f"{id}.png") for id in ids])


def throughput(slices: int, repeats: int) -> dict:
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        call(["--write", folder, "EfficientNetV2B0", "256", str(slices)])
        for _ in range(repeats):
            for side in SIDES:
                rates[side].append(float(call(["--side", side, folder]).splitlines()[-1]))
    ours, bare = (statistics.median(rates[side]) for side in SIDES)
    for side, measured in rates.items():
        single = ", ".join(f"{rate:.1f}" for rate in measured)
        print(f"{side:<5} {statistics.median(measured):7.1f} slices/s   of {single}")
    print(f"ours / bare: {ours / bare:.3f}", flush=True)
    return {"predict_vs_bare": round(ours / bare, 3), "ours_per_s": round(ours, 1), "bare_per_s": round(bare, 1)}


def growth(counts: list[int], repeats: int) -> dict:
    peaks: dict[int, list[int]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as folder:
        call(["--write", folder, "small_cnn", "32", *map(str, counts)])
        for repeat in range(repeats):
            for count in counts:
                command = [sys.executable, ROOT / "scripts/predict.py", f"{folder}/run"]
                command += ["--out", f"{folder}/out{count}-{repeat}", "--set", f"data.images={folder}/{count}"]
                peaks[count].append(peak(command))
    for count, measured in peaks.items():
        megabytes = ", ".join(f"{size / 2**20:.0f}" for size in measured)
        print(f"{count:>8,} slices: peak {statistics.median(measured) / 2**20:7.1f} MB   of {megabytes}")
    small, large = (statistics.median(peaks[count]) for count in counts)
    print(f"growth: {large / small:.3f}", flush=True)
    return {
        "memory_growth": round(large / small, 3),
        "memory_mb": {count: round(statistics.median(measured) / 2**20, 1) for count, measured in peaks.items()},
        "memory_slices": counts,
    }


def call(arguments: list[str]) -> str:
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)  # it said why
    return done.stdout


def peak(command: list) -> int:
    """The largest memory of a command and all its processes, in bytes; looked at ten times a second."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        most = 0
        while process.poll() is None:
            most = max(most, memory(process.pid))
            time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with status {process.returncode}")
    return most


def memory(pid: int) -> int:
    """Resident bytes of a process and all below it.

    Not PSS: it counts a library's pages less the more other programs use them, so that the rest of the machine shows.
    """
    total = 0
    try:
        total = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        tasks = Path(f"/proc/{pid}/task").iterdir()
        children = [child for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return total
    return total + sum(memory(int(child)) for child in children)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("throughput", "memory"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slices", type=int, default=640, help="of the throughput, for each of two models")
    parser.add_argument("--memory-slices", type=int, nargs=2, default=[10_000, 200_000])
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.write:
        folder, name, side, *counts = arguments.write
        write_run(Path(folder), name, int(side), list(map(int, counts)))
        return
    if arguments.side:
        side, folder = arguments.side
        print(SIDES[side](Path(folder)))
        return
    result = {}
    if arguments.only != "memory":
        result |= throughput(arguments.slices, arguments.repeats)
    if arguments.only != "throughput":
        result |= growth(arguments.memory_slices, arguments.repeats)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
