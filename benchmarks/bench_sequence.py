"""The second stage against LightGBM on neighbours' scores, side by side on one table of scored slices.

    pip install -e .[bench]
    python benchmarks/bench_sequence.py SLICES_WITH_SCORES --seeds 0 1 2

SLICES_WITH_SCORES is a table as `scripts/train_sequence.py --table` takes it: labels and a slice classifier's logits.
Five folds by patient, the same for both sides. LightGBM has 250 rounds on the scores of ±5 neighbours with the series'
mean, maximum and minimum, the position and the length, as the competition's 3rd, 5th and 11th places had in kind.

    python benchmarks/bench_sequence.py --only demo --seeds 0 1 2   # simulated scans, end to end
    python benchmarks/bench_sequence.py --only scale                # the network on 25,262 series: time, memory

Prints a table and, as the last line, JSON; of several seeds, means. `boosting` is LightGBM's loss, `trees` that of our
own boosting, `sequence` that of our kind (--set sequence.kind=…), a blend unless told otherwise, judged nested.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from ich.config import load

ROOT = Path(__file__).resolve().parents[1]
FOLDS = 5
# Of those tried, the best: fewer leaves, more rows in each and fewer columns than LightGBM's own defaults, with which
# it scores worse by a fifth.
LIGHTGBM = {
    "objective": "binary",
    "learning_rate": 0.04,
    "num_leaves": 15,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "verbose": -1,
}


def boosting(stage, seed: int) -> float:
    """The weighted log loss of LightGBM's out-of-fold predictions."""
    import lightgbm

    from ich.competition import metrics
    from ich.competition.labels import LABELS

    scans, reach = stage.train, 5
    of_slice = np.repeat(np.arange(len(scans)), scans.lengths)
    place = np.arange(len(scans.ids)) - scans.starts[of_slice]
    length = scans.lengths[of_slice]
    scores = pd.DataFrame(scans.logits)
    by_scan = scores.groupby(of_slice)
    neighbours = [by_scan.shift(-k) for k in range(-reach, reach + 1)]
    of_series = [by_scan.transform(name) for name in ("mean", "max", "min")]
    features = np.column_stack([*neighbours, *of_series, place / length, length]).astype(np.float32)
    y = stage.folds.loc[scans.ids, list(LABELS)].to_numpy()
    fold = stage.folds.loc[scans.ids, "fold"].to_numpy()
    predictions = np.empty(y.shape)
    for k in range(FOLDS):
        for label in range(len(LABELS)):
            data = lightgbm.Dataset(features[fold != k], y[fold != k, label])
            model = lightgbm.train(LIGHTGBM | {"seed": seed, "num_threads": os.cpu_count()}, data, 250)
            predictions[fold == k, label] = model.predict(features[fold == k])
    return metrics.weighted_log_loss(y, predictions)


def against_boosting(path: Path, seeds: list[int], overrides: list[str]) -> dict:
    from ich.second_stage import inputs, train

    rows = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            options = [f"folds.n={FOLDS}", f"folds.seed={seed}", f"sequence.seed={1000 * seed}", *overrides]
            stage = inputs.inputs_from_table(path, overrides=options, root=Path(folder))
            start = time.perf_counter()
            _, facts = train.train(stage, Path(folder))
            seconds = time.perf_counter() - start
        start = time.perf_counter()
        theirs = boosting(stage, seed)
        kinds = facts["of_kinds"]
        rows.append(
            {
                "alone": facts["of_first_stage"],
                "boosting": theirs,
                **({"recurrent": kinds["recurrent"]} if "recurrent" in kinds else {}),
                **({"trees": kinds["boosting"]} if "boosting" in kinds else {}),
                **({"linear": kinds["linear"]} if "linear" in kinds else {}),
                "sequence": facts["weighted_log_loss"],
                "sequence_vs_boosting": facts["weighted_log_loss"] / theirs,
                "seconds": seconds,
                "boosting_seconds": time.perf_counter() - start,
            }
        )
        print(f"seed {seed}: " + ", ".join(f"{key} {value:.4f}" for key, value in rows[-1].items()), flush=True)
    table = pd.DataFrame(rows, index=pd.Index(seeds, name="seed"))
    print(table.round(4).to_string())
    return {key: round(value, 4) for key, value in table.mean().items()} | {
        "worst_sequence_vs_boosting": round(table["sequence_vs_boosting"].max(), 4),
        "seeds": seeds,
    }


def demo(seeds: list[int], overrides: list[str]) -> dict:
    """Every stage up to the second on simulated scans, in a folder of its own."""
    ratios = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "rsna-intracranial-hemorrhage-detection.zip"
            values = {"data.sources": archive, "data.images": Path(folder) / "images", "folds.seed": seed}
            values["train.seed"] = seed
            config = Path(folder) / "demo.yaml"
            own = [f"{key}={value}" for key, value in values.items()]
            config.write_text(load(ROOT / "configs" / "demo.yaml", own).resolved())
            settings = [f"--set={setting}" for setting in (f"sequence.seed={seed}", *overrides)]
            stages = {
                "make_demo_data": [archive, "--seed", seed],
                "preprocess": [config, "--max-failures", 1],
                "make_folds": [config],
                "train_kfold": [config],
                "predict": ["runs/demo"],  # by the test set, sequence.align aligns the folds
                "train_sequence": ["runs/demo", *settings],
            }
            for stage, arguments in stages.items():
                start = time.perf_counter()
                command = [sys.executable, ROOT / "scripts" / f"{stage}.py", *arguments]
                subprocess.run(list(map(str, command)), cwd=folder, check=True, stdout=subprocess.DEVNULL)
            facts = json.loads((Path(folder) / "runs" / "demo-sequence" / "score.json").read_text())
        ratios.append(facts["weighted_log_loss"] / facts["of_first_stage"])
        kinds = ", ".join(f"{kind} {loss:.4f}" for kind, loss in facts["of_kinds"].items())
        print(
            f"seed {seed}: first stage {facts['of_first_stage']:.4f}, second {facts['weighted_log_loss']:.4f}"
            f" = {ratios[-1]:.3f} ({kinds}; {time.perf_counter() - start:.0f} s)",
            flush=True,
        )
    return {"worst_ratio": round(max(ratios), 4), "ratios": [round(r, 4) for r in ratios], "seeds": seeds}


def scale() -> dict:
    """One epoch of the network over as many series as the competition has, of 32 slices with 6 + 256 features."""
    from ich.competition.labels import LABELS
    from ich.config import Sequence
    from ich.second_stage import rnn
    from ich.second_stage.scans import Scans

    n, slices, width = 25_262, 32, 256
    rng = np.random.default_rng(0)
    rows = n * slices
    embeddings = np.empty((rows, width), np.float16)
    for start in range(0, rows, 100_000):
        embeddings[start : start + 100_000] = rng.standard_normal((min(100_000, rows - start), width), np.float32)
    logits = rng.normal(-3, 2, (rows, len(LABELS))).astype(np.float32)
    z = np.tile(np.arange(slices, dtype=np.float32) * 5, n)
    scans = Scans(pd.RangeIndex(rows), np.arange(0, rows + 1, slices), z, logits, embeddings)
    labels = (logits > 0).astype(np.int8)
    section = Sequence(features="embeddings", shuffle_kinds=0, epochs=1, warmup_epochs=0)
    start = time.perf_counter()
    rnn.train(scans, labels, section, 0)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{n:,} series of {slices} slices, {len(LABELS)} + {width} features: {seconds:.0f} s an epoch, {peak:,.0f} MB"
    )
    return {"epoch_seconds": round(seconds, 1), "peak_mb": round(peak)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, nargs="?", metavar="SLICES_WITH_SCORES")
    parser.add_argument("--only", choices=["demo", "scale"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args(argv)
    if (arguments.only is None) == (arguments.table is None):
        parser.error("give a table of slices with scores, or --only")
    if arguments.only == "demo":
        result = demo(arguments.seeds, arguments.overrides)
    elif arguments.only == "scale":
        result = scale()
    else:
        result = against_boosting(arguments.table, arguments.seeds, arguments.overrides)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
