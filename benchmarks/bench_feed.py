"""python benchmarks/bench_feed.py [competition.zip]

Feeding training: images a second that two cores give to a model, by ways to read and to augment them.

The train slices of the archive (of the folder in RSNA_SAMPLE without a path), converted to three windows of 384 × 384,
cropped to the head, as configs/gold.yaml and configs/scan.yaml do; two worker processes. Keras's `fit` takes the
batches of ours, with a model whose training step does nothing. Each side runs in a process of its own, in turns; ratios
are of medians.

- gold: a slice with both its neighbors, nine channels, with the augmentation `heavy`, in batches of 32. "today" gives
  albumentations all channels at once, by a subclass of its Compose; "grouped" is what `train.augment: heavy` does;
  "device" draws on the CPU what the training model applies (`train.augment_on: device`), and its time is that of the
  input alone; "decoding" reads the same PNGs by two bare threads, and does nothing else; "torch" is a torch DataLoader
  of two workers, with the same function for PNGs (`ich.images.reading.read`) and the same albumentations.
- slices, scans: single slices beside windows of 16 slices, `DataGenerator(scan=16)`, with `heavy` and without. Both
  give batches of 32 places; of scans, two windows, of which places behind a scan's end are empty and are not counted.

Expected: `grouped_vs_today` at least 1.4, `device_vs_today` (CPU time of the workers) at least 3, `device_vs_decoding`
at least 0.8, `torch_vs_device` at most 0.33, `scan_feed_vs_slices` (decoded alone) and `scan_sample_vs_slices`
(augmented) at least 0.9: a window costs its slices, each decoded once, and one sort. Null is what cannot run, named
above the table.

Prints a table and, last, a line of JSON.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

SLICES, SCAN, CORES, SIDE, NEIGHBORS = 32, 16, 2, 384, (-1, 0, 1)
GOLD = [f"gold, {way}" for way in ("today", "grouped", "device", "decoding", "torch")]
SCANS = [f"{what}, {augment}" for augment in ("none", "heavy") for what in ("slices", "scans")]
WARM = 20  # batches before the clock starts, and behind its end
ROUNDS = {"gold": 6, "slices": 12, "scans": 12}  # how often all slices are shown


def convert(archive: Path, folder: Path) -> None:
    """Write the PNGs and the slice table of the archive's train slices."""
    from ich.config import Preprocess
    from ich.images.convert import convert
    from ich.images.render import Settings

    settings = Settings.of(Preprocess(windows=["brain", "subdural", "bone"], size=SIDE, crop=True))
    convert([archive], folder, settings, jobs=CORES)


def augmentation(side: str) -> dict[str, Any]:
    """Return what DataGenerator takes for the augmentation of a side."""
    import albumentations as A

    from ich.data import augment

    class Whole(A.Compose):
        """A user's own, which is given all channels at once."""

    way = side.partition(", ")[2]
    if way == "today":
        return {"augment": Whole(augment.PIPELINES["heavy"](SIDE, SIDE))}
    if way == "device":
        return {"augment": augment.pipeline("heavy", SIDE, SIDE), "augment_on": "device"}
    return {"augment": augment.pipeline("heavy" if way == "grouped" else way, SIDE, SIDE)}


def measure_ours(folder: Path, side: str) -> dict[str, float]:
    """Return images a second in the steady state, and ms of the workers' CPU an image: Keras's own is left out."""
    import keras
    import numpy as np
    import pandas as pd

    from ich.competition.labels import LABELS
    from ich.data.generator import DataGenerator
    from ich.images import slice_table

    table = slice_table.read_table(folder / "slices.parquet")
    ids = slice_table.readable(table, "train").index
    labels = pd.DataFrame(0.0, ids, list(LABELS))
    kind = side.partition(", ")[0]
    options = {"image_dir": folder / "train", "workers": CORES, "use_multiprocessing": True, "max_queue_size": 8}
    options |= {
        "gold": {"neighbours": NEIGHBORS, "slices": table, "batch_size": SLICES},
        "slices": {"batch_size": SLICES},
        "scans": {"scan": SCAN, "slices": table, "batch_size": SLICES // SCAN},
    }[kind]
    samples = DataGenerator(ids, labels, **options).sample_count

    def rounds(rng: np.random.Generator) -> np.ndarray:
        return np.concatenate([rng.permutation(samples) for _ in range(ROUNDS[kind])])

    generator = DataGenerator(ids, labels, sampling=rounds, **options, **augmentation(side))
    images = [len(generator.ids_of(batch)) for batch in range(len(generator))]
    ends = WARM, len(images) - WARM - 1
    seen: list[tuple[float, int]] = []
    cpu: list[float] = []

    class Nothing(keras.Model):
        def train_step(self, batch):
            return {"zero": keras.ops.zeros(())}

    class Tick(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append((time.perf_counter(), images[batch]))
            if batch in ends:
                cpu.append(cpu_of_workers())

    model = Nothing()
    model.compile(optimizer="sgd", jit_compile=False)
    model.fit(generator, shuffle=False, verbose=0, callbacks=[Tick()])
    return {"rate": steady(seen), "cpu_ms": 1000 * (cpu[1] - cpu[0]) / sum(images[WARM:-WARM][1:])}


def cpu_of_workers() -> float:
    """Return the seconds of CPU that the worker processes have taken so far (proc(5), /proc/pid/stat)."""
    fields = [Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split() for child in active_children()]
    return sum(int(of_one[11]) + int(of_one[12]) for of_one in fields) / os.sysconf("SC_CLK_TCK")


def steady(seen: list[tuple[float, int]]) -> float:
    """Return images a second of the times at which batches came, with their images.

    The queue is full when the clock starts, and runs empty at the end: both ends are left out.
    """
    measured = seen[WARM:-WARM]
    return sum(count for _, count in measured[1:]) / (measured[-1][0] - measured[0][0])


def gold_files(folder: Path) -> list[list[Path]]:
    """Return the three PNGs of each slice, all slices in an order drawn anew each round."""
    import numpy as np

    from ich.images import slice_table

    table = slice_table.read_table(folder / "slices.parquet")
    ids = slice_table.readable(table, "train").index
    known, places = slice_table.neighbours(table, ids, NEIGHBORS)
    paths = np.array([folder / "train" / f"{id}.png" for id in known])[places]
    rng = np.random.default_rng(0)
    return [list(paths[row]) for _ in range(ROUNDS["gold"]) for row in rng.permutation(len(paths))]


def measure_decoding(folder: Path, side: str) -> dict[str, float]:
    """Return images a second and ms of CPU an image of threads that decode the three PNGs of each."""
    import cv2

    from ich.images import reading

    cv2.setNumThreads(1)
    todo: Iterator[list[Path]] = iter(gold_files(folder))
    done: list[int] = [0]
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                paths = next(todo, None)
            if paths is None:
                return
            for path in paths:
                reading.read(path)
            with lock:
                done[0] += 1

    threads = [threading.Thread(target=work) for _ in range(CORES)]
    start, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "rate": done[0] / (time.perf_counter() - start),
        "cpu_ms": 1000 * (time.process_time() - cpu) / done[0],
    }


def measure_torch(folder: Path, side: str) -> dict[str, float]:
    """Return images a second of a torch DataLoader in the steady state."""
    import cv2
    import numpy as np
    import torch

    from ich.data import augment
    from ich.images import reading

    class Slices(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.files, self.augment = gold_files(folder), augment.pipeline("heavy", SIDE, SIDE)

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, place: int) -> tuple[np.ndarray, np.ndarray]:
            image = cv2.merge([reading.read(path) for path in self.files[place]])
            return self.augment(image=image)["image"], np.zeros(6, np.float32)

    cv2.setNumThreads(1)  # its processes are the parallel work
    seen = []
    for images, _ in torch.utils.data.DataLoader(Slices(), batch_size=SLICES, num_workers=CORES):
        seen.append((time.perf_counter(), len(images)))
    return {"rate": steady(seen)}


MEASURES: dict[str, Callable[[Path, str], dict[str, float]]] = {
    "gold, decoding": measure_decoding,
    "gold, torch": measure_torch,
}
"""How a side is measured that is not ours."""


def lacking() -> dict[str, str]:
    """Return the sides that cannot run, with the reason."""
    reasons = {}
    if importlib.util.find_spec("torch") is None:
        reasons["gold, torch"] = "torch is not installed: pip install -e .[bench]"
    return reasons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[2])
    default = Path(os.environ.get("RSNA_SAMPLE", ".")) / "rsna-intracranial-hemorrhage-detection.zip"
    parser.add_argument("archive", type=Path, nargs="?", default=default)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", choices=["gold", "scans"], help="half of the sides; the keys of the others are null")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        folder, side = arguments.side
        print(json.dumps(MEASURES.get(side, measure_ours)(Path(folder), side)))
        return
    reasons = lacking()
    chosen = {"gold": GOLD, "scans": SCANS}.get(arguments.only, GOLD + SCANS)
    results: dict[str, list[dict[str, float]]] = {side: [] for side in chosen if side not in reasons}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        convert(arguments.archive, folder)
        for _ in range(arguments.repeat):
            for side, runs in results.items():
                command = [sys.executable, __file__, "--side", str(folder), side]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
                print(side, ", ".join(f"{name} {value:,.2f}" for name, value in runs[-1].items()), flush=True)
    for side in filter(reasons.get, chosen):
        print(f"{side}: {reasons[side]}")

    def median(side: str, name: str = "rate") -> float | None:
        return statistics.median(run[name] for run in results[side]) if results.get(side) else None

    def rounded(side: str) -> int | None:
        rate = median(side)
        return None if rate is None else round(rate)

    def ratio(numerator: str, denominator: str, name: str = "rate") -> float | None:
        above, below = median(numerator, name), median(denominator, name)
        return None if above is None or below is None else round(above / below, 3)

    print("\n| side | images a second, median (least, most) | ms of CPU an image |\n|---|---|---|")
    for side, runs in results.items():
        rates = [run["rate"] for run in runs]
        cpu = f"{median(side, 'cpu_ms'):.2f}" if "cpu_ms" in runs[0] else ""
        print(f"| {side} | {median(side):,.0f} ({min(rates):,.0f}, {max(rates):,.0f}) | {cpu} |")
    print(
        json.dumps(
            {
                "gold_images_per_s": rounded("gold, today"),
                "grouped_vs_today": ratio("gold, grouped", "gold, today"),
                "device_vs_today": ratio("gold, today", "gold, device", "cpu_ms"),
                "device_vs_decoding": ratio("gold, device", "gold, decoding"),
                "torch_vs_device": ratio("gold, torch", "gold, device"),
                "slices_per_s": rounded("slices, none"),
                "scan_feed_vs_slices": ratio("scans, none", "slices, none"),
                "scan_sample_vs_slices": ratio("scans, heavy", "slices, heavy"),
            }
        )
    )


if __name__ == "__main__":
    main()
