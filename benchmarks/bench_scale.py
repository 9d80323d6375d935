"""Every stage after the conversion at the competition's numbers: seconds and peak memory of each.

    python benchmarks/bench_scale.py

752,803 + 121,232 slices of 25,262 series, 4.5 million labels; the images are hard links to a few PNGs of 32 × 32
pixels, the network is the demo's, two folds, an epoch of four slices a series. The scripts run one after the other, as
a user calls them, and what each writes is counted: rows of the folds, of predictions, of the submission. All of it is
then done with a quarter of the series, from which follows how each stage grows.

    python benchmarks/bench_scale.py --slices-share 0.01 --smaller 0        # quickly, without the comparison
    python benchmarks/bench_scale.py --folder /dev/shm/scale --only trees   # keeps the folder; what is done stays

A stage that fails is named with its last line, and those that do not need its files go on. Prints tables and, as the
last line, JSON. Of each stage: seconds; CPU seconds of all its processes; peak_mb, the largest sum of the PSS of its
processes, sampled four times a second; rss_mb, the largest resident set of any one of them, by the system's own count.
Growth is CPU time, or peak memory, as a multiple of the smaller run's, divided by the multiple of slices: above 1, a
stage grows faster than its slices. Aimed at: no stage above 4,000 MB, none that grows faster than its slices.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from bench_convert import memory

from ich.competition.labels import ANY, LABELS
from ich.config import load
from ich.files import write_json
from ich.images import slice_table
from ich.images.render import Settings, encode
from ich.results.predictions import read_predictions

ROOT = Path(__file__).resolve().parents[1]
SLICES = {"train": 752_803, "test": 121_232}
SERIES = {"train": 21_744, "test": 3_518}
PREVALENCE = (0.0042, 0.048, 0.0348, 0.0474, 0.0627)  # of slices with each subtype
BLED = 0.35  # of a scan's slices, where it has a bleed
LOOKS = 8  # gray levels of the images, which tell a label half of the time
LINKS = 30_000  # to one file: ext4 allows 65,000
CONFIG = """\
name: scale
data: {sources: sources, images: images}
preprocess: {windows: [brain], size: 32}
folds: {n: 2}
model: {name: small_cnn, weights: null}
train: {epochs: 1, warmup_epochs: 0, slices_per_series: 4, batch_size: 256, learning_rate: 3.0e-3}
predict: {batch_size: 512}
"""


class Stage(NamedTuple):
    """A script with its arguments, the stages whose files it needs, and what it must have written: file -> rows."""

    script: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    wrote: dict[str, str]  # "train" and "test" are their slices, "rows" six for each test slice


def result(name: str) -> dict[str, str]:
    """Return the files of predictions of a result."""
    return {f"runs/{name}/oof.parquet": "train", f"runs/{name}/predictions_test.parquet": "test"}


def second(kind: str, *settings: str) -> Stage:
    """Return the training of a second stage of one kind on the run."""
    overrides = [f"--set=sequence.{setting}" for setting in (f"kind={kind}", *settings)]
    return Stage("train_sequence", ("runs/scale", "--name", kind, *overrides), ("predict",), result(kind))


KINDS = ("network", "logistic", "trees")
RUNS = ("runs/recurrent", "runs/linear", "runs/boosting")
STAGES = {
    "folds": Stage("make_folds", ("scale.yaml",), (), {"images/folds.csv": "train"}),
    "training": Stage("train_kfold", ("scale.yaml",), ("folds",), {"runs/scale/oof.parquet": "train"}),
    "predict": Stage("predict", ("runs/scale",), ("training",), result("scale")),
    "submission": Stage("make_submission", ("runs/scale",), ("predict",), {"submissions/scale.csv": "rows"}),
    "report": Stage("report", ("runs/scale",), ("predict",), {}),
    "network": second("recurrent", "epochs=1", "warmup_epochs=0"),
    "logistic": second("linear"),
    "trees": second("boosting", "rounds=30"),
    "compare": Stage("compare_runs", ("runs/scale", *RUNS), KINDS, {}),
    "blend": Stage("blend", (*RUNS, "--out", "runs/blend"), KINDS, result("blend")),
}


# The folder: what the conversion and the competition leave.


def prepare(folder: Path, share: float) -> dict[str, int]:
    """Write the images, their table and the competition's two CSVs, unless they are there; count the slices."""
    slices = {split: round(share * number) for split, number in SLICES.items()}
    done = folder / "prepared.json"
    if done.exists():
        if json.loads(done.read_text()) != slices:
            raise SystemExit(f"{folder} is of other numbers than {slices}; name another folder")
        return slices
    (folder / "sources").mkdir(parents=True, exist_ok=True)
    (folder / "scale.yaml").write_text(CONFIG)
    settings = Settings.of(load(folder / "scale.yaml").preprocess)
    write_json(folder / "images" / "settings.json", dataclasses.asdict(settings))
    rng = np.random.default_rng(0)
    tables = []
    for split, number in slices.items():
        table, labels = made_up(split, number, max(4, round(share * SERIES[split])), rng)
        table["path"], table["png_size"] = link(
            folder / "images", split, table["SOPInstanceUID"], labels, settings, rng
        )
        if split == "train":
            write_long(folder / "sources" / "stage_2_train.csv", table["SOPInstanceUID"], labels)
        else:
            sample = np.full(labels.shape, 0.5)
            write_long(folder / "sources" / "stage_2_sample_submission.csv", table["SOPInstanceUID"], sample)
        tables.append(table)
    table = slice_table.scan_order(pd.concat(tables, ignore_index=True))
    slice_table.write_table(table.reindex(columns=slice_table.SCHEMA.names), folder / "images" / "slices.parquet")
    write_json(done, slices)
    return slices


def made_up(split: str, number: int, series: int, rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the headers of the slices of a split, and labels that run over neighboring slices; (number, 6)."""
    shares = rng.gamma(2, size=series)
    lengths = 20 + rng.multinomial(number - 20 * series, shares / shares.sum())
    of_slice = np.repeat(np.arange(series), lengths)
    place = (np.arange(number) - np.repeat(np.cumsum(lengths) - lengths, lengths)) / lengths[of_slice]
    labels = np.zeros((number, len(LABELS)), np.int8)
    for k, share in enumerate(PREVALENCE):
        first = np.where(rng.random(series) < share / BLED, rng.random(series) * (1 - BLED), np.inf)[of_slice]
        labels[:, k] = (place >= first) & (place < first + BLED)
    labels[:, ANY] = labels[:, :ANY].max(axis=1)
    patients = rng.integers(0, max(4, round(0.85 * series)), series)
    z = np.round(5.0 * place * lengths[of_slice], 3)
    vectors = {
        "ImagePositionPatient": np.column_stack([np.full(number, -125.0), np.full(number, -125.0), z]),
        "ImageOrientationPatient": np.tile([1.0, 0, 0, 0, 1, 0], (number, 1)),
        "PixelSpacing": np.full((number, 2), 0.488281),
    }
    offset = 0 if split == "train" else 0x800000000
    ids = [f"ID_{value:09x}" for value in offset + rng.permutation(number)]
    table = pd.DataFrame(
        {
            "SOPInstanceUID": ids,
            "PatientID": np.char.add(f"ID_{split}_p", patients[of_slice].astype(str)),
            "StudyInstanceUID": np.char.add(f"ID_{split}_t", of_slice.astype(str)),
            "SeriesInstanceUID": np.char.add(f"ID_{split}_s", of_slice.astype(str)),
            "split": split,
            **{name: of_vectors(values) for name, values in vectors.items()},
            **{"Rows": 512, "Columns": 512, "BitsStored": 16, "PixelRepresentation": 1},
            **{"RescaleIntercept": -1024.0, "RescaleSlope": 1.0, "repaired": "", "status": "ok", "reason": ""},
            **{"size": 525_000, "crc": np.arange(number)},
        }
    )
    return table, labels


def of_vectors(values: np.ndarray) -> pd.Series:
    """Return rows of numbers as a column of the slice table; Python's lists would take a gigabyte."""
    places = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
    column = pa.ListArray.from_arrays(places, pa.array(values.ravel()))
    return pd.Series(column, dtype=pd.ArrowDtype(column.type))


def link(
    images: Path, split: str, ids: pd.Series, labels: np.ndarray, settings: Settings, rng: np.random.Generator
) -> tuple[list[str], np.ndarray]:
    """Link each slice's name to one of a few PNGs; return the paths and the sizes."""
    (images / split).mkdir()
    bleeds = np.where(rng.random(len(ids)) < 0.5, labels[:, ANY], rng.random(len(ids)) < 0.5)
    look = (bleeds * (LOOKS // 2) + rng.integers(0, LOOKS // 2, len(ids))).astype(int)
    originals, sizes = {}, np.zeros(LOOKS, np.int64)
    paths, counts = [], np.zeros(LOOKS, np.int64)
    for name, image in zip(ids, look.tolist(), strict=True):
        file, number = images / split / f"{name}.png", counts[image] // LINKS
        if (image, number) not in originals:
            level = 255 * image // LOOKS + np.random.default_rng(image).integers(0, 20, (32, 32, 1))
            (content,) = encode(level.astype(np.uint8), settings)
            file.write_bytes(content)
            originals[image, number], sizes[image] = file, len(content)
        else:
            os.link(originals[image, number], file)
        counts[image] += 1
        paths.append(f"{split}/{name}.png")
    return paths, sizes[look]


def write_long(path: Path, ids: pd.Series, values: np.ndarray) -> None:
    """Write a value for each image and label in the competition's long form."""
    names = [f"{image}_{label}" for image in ids for label in LABELS]
    pd.DataFrame({"ID": names, "Label": values.ravel()}).to_csv(path, index=False)


# The stages.


def run(folder: Path, slices: dict[str, int], chosen: list[str]) -> dict[str, dict]:
    """Run the chosen stages that are not done yet, each in a process of its own; return what is known of all."""
    kept = folder / "stages.json"
    known: dict[str, dict] = json.loads(kept.read_text()) if kept.exists() else {}
    for name in chosen:
        stage = STAGES[name]
        if "failed" not in known.get(name, {"failed": ""}):
            continue
        lacking = [need for need in stage.needs if "failed" in known.get(need, {"failed": ""})]
        known[name] = {"failed": f"needs {', '.join(lacking)}"} if lacking else measured(folder, name, stage)
        if "failed" not in known[name] and (wrong := miscounted(folder, stage, slices)):
            known[name]["failed"] = wrong
        print(f"{name}: {known[name]}", flush=True)
        write_json(kept, known)
    return known


def measured(folder: Path, name: str, stage: Stage) -> dict:
    """Run a stage; return seconds, cpu_seconds, peak_mb and rss_mb, and the last line of what went wrong."""
    command = [sys.executable, str(ROOT / "scripts" / f"{stage.script}.py"), *stage.arguments]
    log = folder / f"{name}.log"
    start, peak = time.perf_counter(), 0
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT)
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            peak = max(peak, memory(process.pid))
            time.sleep(0.25)
    process.returncode = os.waitstatus_to_exitcode(status)
    facts = {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(peak / 1e6),
        "rss_mb": round(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6),
    }
    if process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        facts["failed"] = f"status {process.returncode}: {lines[-1]}"
    return facts


def miscounted(folder: Path, stage: Stage, slices: dict[str, int]) -> str:
    """Say which files of a stage hold other numbers of rows than the slices are."""
    expected = slices | {"rows": len(LABELS) * slices["test"]}
    wrong = []
    for name, number in stage.wrote.items():
        path = folder / name
        count = len(read_predictions(path)) if path.suffix == ".parquet" else len(pd.read_csv(path))
        if count != expected[number]:
            wrong.append(f"{name} has {count:,} rows, expected {expected[number]:,}")
    return "; ".join(wrong)


def rehearsed(folder: Path, share: float, chosen: list[str]) -> tuple[dict[str, int], dict[str, dict]]:
    start = time.perf_counter()
    slices = prepare(folder, share)
    print(
        f"{slices['train']:,} + {slices['test']:,} slices, prepared in {time.perf_counter() - start:.0f} s", flush=True
    )
    return slices, run(folder, slices, chosen)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices-share", type=float, default=1.0, help="of the competition's slices and series")
    parser.add_argument("--smaller", type=float, default=0.25, help="share of these for the comparison; 0: none")
    parser.add_argument("--only", nargs="+", choices=STAGES, help="stages, whose files from earlier ones are there")
    parser.add_argument("--folder", type=Path, help="kept, and taken up again (default: one in /dev/shm, removed)")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.slices_share <= 1 or not 0 <= arguments.smaller < 1:
        parser.error("--slices-share is above 0 and at most 1, --smaller at least 0 and less than 1")
    chosen = [name for name in STAGES if name in (arguments.only or STAGES)]
    shares = {"whole": arguments.slices_share}
    if arguments.smaller:
        shares["smaller"] = arguments.slices_share * arguments.smaller
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.exists() else None) as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        both = {name: rehearsed(folder / name, share, chosen) for name, share in shares.items()}
    slices, stages = both["whole"]
    stages = {name: dict(stages[name]) for name in chosen}
    if arguments.smaller:
        fewer, of_fewer = both["smaller"]
        multiple = sum(slices.values()) / sum(fewer.values())
        for name, facts in stages.items():
            for key, growth in (("cpu_seconds", "cpu_growth"), ("peak_mb", "memory_growth")):
                if key in facts and of_fewer[name].get(key):
                    facts[growth] = round(facts[key] / of_fewer[name][key] / multiple, 2)
    print(pd.DataFrame(stages).T.to_string())
    numbers = pd.DataFrame(stages).T.reindex(columns=["peak_mb", "rss_mb", "cpu_growth", "memory_growth"]).max()
    summary = {f"worst_{key}": None if pd.isna(value) else value for key, value in numbers.items()}
    failed = [name for name, facts in stages.items() if "failed" in facts]
    print(json.dumps({"slices": slices, "stages": stages, **summary, "failed": failed}))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
