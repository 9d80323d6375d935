"""python benchmarks/bench_feed.py [competition.zip]

Feeding windows of scans: slices decoded a second by `DataGenerator(scan=16)`, beside the generator of single slices.

The train slices of the archive (of the folder in RSNA_SAMPLE without a path), converted to three windows of 384 × 384,
cropped to the head, as configs/scan.yaml does; two worker processes; with the augmentation `heavy` and without. Both
sides give batches of 32 places; of scans, two windows of 16 places, of which those behind a scan's end are empty and
are not counted. Keras's `fit` takes the batches, with a model whose training step does nothing. Each side runs in a
process of its own, in turns; ratios are of medians.

`scan_feed_vs_slices` is expected to be at least 0.9: a window costs its slices, each decoded once, and one sort.

Prints a table and, last, a line of JSON.
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
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

SLICES, SCAN, CORES, SIDE = 32, 16, 2, 384
SIDES = [f"{what}, {augment}" for augment in ("none", "heavy") for what in ("slices", "scans")]
WARM, ROUNDS = 20, 12  # batches before the clock starts; how often all slices are shown


def convert(archive: Path, folder: Path) -> None:
    """Write the PNGs and the slice table of the archive's train slices."""
    from ich.config import Preprocess
    from ich.images.convert import convert
    from ich.images.render import Settings

    settings = Settings.of(Preprocess(windows=["brain", "subdural", "bone"], size=SIDE, crop=True))
    convert([archive], folder, settings, jobs=CORES)


def measure(folder: Path, side: str) -> float:
    """Return slices a second in the steady state."""
    import keras
    import numpy as np
    import pandas as pd

    from ich.competition.labels import LABELS
    from ich.data import augment
    from ich.data.generator import DataGenerator
    from ich.images import slice_table

    table = slice_table.read_table(folder / "slices.parquet")
    ids = slice_table.readable(table, "train").index
    labels = pd.DataFrame(0.0, ids, list(LABELS))
    of_scans, name = side.startswith("scans"), side.partition(", ")[2]
    options = {"image_dir": folder / "train", "workers": CORES, "use_multiprocessing": True, "max_queue_size": 8}
    if of_scans:
        options |= {"scan": SCAN, "slices": table, "batch_size": SLICES // SCAN}
    else:
        options |= {"batch_size": SLICES}
    samples = DataGenerator(ids, labels, **options).sample_count

    def rounds(rng: np.random.Generator) -> np.ndarray:
        return np.concatenate([rng.permutation(samples) for _ in range(ROUNDS)])

    made = DataGenerator(ids, labels, augment=augment.pipeline(name, SIDE, SIDE), sampling=rounds, **options)
    seen: list[tuple[float, int]] = []

    class Nothing(keras.Model):
        def train_step(self, batch):
            return {"zero": keras.ops.zeros(())}

    class Tick(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append((time.perf_counter(), len(made.ids_of(batch))))

    model = Nothing()
    model.compile(optimizer="sgd", jit_compile=False)
    model.fit(made, shuffle=False, verbose=0, callbacks=[Tick()])
    # The queue is full when the clock starts, and runs empty at the end: both ends are left out.
    measured = seen[WARM:-WARM]
    return sum(count for _, count in measured[1:]) / (measured[-1][0] - measured[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[2])
    default = Path(os.environ.get("RSNA_SAMPLE", ".")) / "rsna-intracranial-hemorrhage-detection.zip"
    parser.add_argument("archive", type=Path, nargs="?", default=default)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(measure(Path(arguments.side[0]), arguments.side[1]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        convert(arguments.archive, folder)
        rates: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(arguments.repeat):
            for side in SIDES:
                command = [sys.executable, __file__, "--side", str(folder), side]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                rates[side].append(float(done.stdout.split()[-1]))
                print(f"{side}: {rates[side][-1]:,.0f} slices a second", flush=True)
    median = {side: statistics.median(of_side) for side, of_side in rates.items()}
    print("\n| side | slices a second, median (least, most) |\n|---|---|")
    for side, of_side in rates.items():
        print(f"| {side} | {median[side]:,.0f} ({min(of_side):,.0f}, {max(of_side):,.0f}) |")
    print(
        json.dumps(
            {
                "slices_per_s": round(median["slices, none"]),
                "scan_feed_vs_slices": round(median["scans, none"] / median["slices, none"], 3),
                "scan_feed_vs_slices_augmented": round(median["scans, heavy"] / median["slices, heavy"], 3),
            }
        )
    )


if __name__ == "__main__":
    main()
