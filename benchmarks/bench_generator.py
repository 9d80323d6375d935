"""python benchmarks/bench_generator.py [competition.zip]

Feeding images to Keras: `ich.data.generator.DataGenerator` beside the floor and what people use.

1,024 windowed 512 × 512 PNGs, made by `ich.images.convert` from the real slices of the archive (of the folder in
RSNA_SAMPLE without a path; repeated under other names if it holds fewer); batches of 32; flip, affine, brightness and
contrast; two cores. Each side runs in a process of its own, all in turns; ratios are of medians. What is timed is the
steady state, after some batches that are not, without the ends of epochs.

Who gets what: Keras's `fit` takes the batches of all sides but two, with a model whose training step does nothing, so
that each pays Keras's own way to its tensors. torch's loader gives its tensors to a loop. The floor decodes and
augments, and keeps nothing. Ours runs with two processes, as torch's does, and once with two threads. The stand-in for
an accelerator is a training step that sleeps; `fed_accelerator` is with eight steps in one execution, as a config may
ask for.

The packages of the peers: pip install -e .[bench]; one that is not installed is left out, its key null. Prints tables
and, last, a line of JSON.
"""

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

IMAGES, BATCH, CORES, SIDE = 1024, 32, 2, 512
ROWS = 752_803  # labeled images of stage 2
STEPS = (0.04, 0.08, 0.16)  # seconds that the stand-in for an accelerator takes a batch
AT_A_TIME = (1, 8)  # `machine.steps_per_execution`


def augmentation():
    import albumentations as A

    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.Affine(rotate=(-15, 15), translate_percent=(-0.05, 0.05), scale=(0.95, 1.05), p=1),
            A.RandomBrightnessContrast(brightness_limit=0.1, contrast_limit=0.1, p=1),
        ]
    )


def data(folder: Path):
    """The label frame and the slice table."""
    import pandas as pd

    from ich.images.slice_table import read_table

    return pd.read_csv(folder / "labels.csv", index_col=0), read_table(folder / "slices.parquet")


class Clock:
    """Images a second between the end of batch `skip` and that of batch `skip + count`."""

    def __init__(self, skip: int, count: int):
        self.skip, self.count, self.seen = skip, count, 0
        self.result: dict[str, float] = {}
        self.lock = threading.Lock()

    def tick(self) -> None:
        with self.lock:
            self.seen += 1
            if self.seen == self.skip:
                self.start, self.cpu = time.perf_counter(), time.process_time()
            elif self.seen == self.skip + self.count:
                images = self.count * BATCH
                seconds, cpu = time.perf_counter() - self.start, time.process_time() - self.cpu
                self.result = {"rate": images / seconds, "cpu_ms": 1000 * cpu / images}


def consume(dataset, clock: Clock) -> None:
    """What Keras does with a dataset, but for the arithmetic."""
    import keras

    class Nothing(keras.Model):
        def train_step(self, batch):
            return {"zero": keras.ops.zeros(())}

    class Tick(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            clock.tick()

    model = Nothing()
    model.compile(optimizer="sgd", jit_compile=False)
    model.fit(dataset, steps_per_epoch=clock.skip + clock.count, verbose=0, callbacks=[Tick()])


def feed(dataset, clock: Clock, seconds: float, at_a_time: int) -> None:
    """The same for a training step that takes so long, so many in one execution."""
    import keras
    import tensorflow as tf

    def work(x):
        time.sleep(seconds)
        clock.tick()
        return x

    class Accelerator(keras.Model):
        def train_step(self, batch):
            return {"zero": tf.ensure_shape(tf.numpy_function(work, [tf.zeros(())], tf.float32), ())}

    model = Accelerator()
    model.compile(optimizer="sgd", jit_compile=False, steps_per_execution=at_a_time)
    model.fit(dataset, steps_per_epoch=clock.skip + clock.count, verbose=0)


class Rounds:
    """All samples, shuffled, then all again: one epoch long enough to measure."""

    def __init__(self, batches: int):
        self.batches = batches

    def __call__(self, rng):
        import numpy as np

        rounds = -(-self.batches * BATCH // IMAGES)
        return np.concatenate([rng.permutation(IMAGES) for _ in range(rounds)])[: self.batches * BATCH]


def generator(folder: Path, clock: Clock, **kwargs):
    from ich.data.generator import DataGenerator

    labels, _ = data(folder)
    options = {"augment": augmentation(), "workers": CORES, "use_multiprocessing": True, "shuffle": False}
    options["sampling"] = Rounds(clock.skip + clock.count)
    return DataGenerator(labels.index, labels, image_dir=folder, batch_size=BATCH, **options | kwargs)


def run_ours(folder: Path, clock: Clock) -> None:
    consume(generator(folder, clock), clock)


def run_threads(folder: Path, clock: Clock) -> None:
    consume(generator(folder, clock, use_multiprocessing=False), clock)


def run_plain(folder: Path, clock: Clock) -> None:
    consume(generator(folder, clock, augment=None), clock)


def run_neighbours(folder: Path, clock: Clock) -> None:
    consume(generator(folder, clock, neighbours=(-1, 0, 1), slices=data(folder)[1]), clock)


def run_neighbours_in_order(folder: Path, clock: Clock) -> None:
    import numpy as np

    scan_order = lambda rng: np.arange((clock.skip + clock.count) * BATCH) % IMAGES  # noqa: E731
    consume(generator(folder, clock, neighbours=(-1, 0, 1), slices=data(folder)[1], sampling=scan_order), clock)


def run_fed(step: float, at_a_time: int) -> Callable[[Path, Clock], None]:
    return lambda folder, clock: feed(generator(folder, clock), clock, step, at_a_time)


def run_ready(step: float, at_a_time: int) -> Callable[[Path, Clock], None]:
    def run(folder: Path, clock: Clock) -> None:
        import keras
        import numpy as np

        class Ready(keras.utils.PyDataset):
            """Batches of nothing much, always the same one: what remains is Keras's own."""

            batch = np.zeros((BATCH, 8, 8, 1), np.uint8), np.zeros((BATCH, 6), np.float32)

            def __len__(self):
                return clock.skip + clock.count

            def __getitem__(self, index):
                return self.batch

        feed(Ready(workers=CORES), clock, step, at_a_time)

    return run


def run_floor(folder: Path, clock: Clock) -> None:
    import cv2

    paths = [str(folder / f"{id}.png") for id in data(folder)[0].index]
    total = (clock.skip + clock.count) * BATCH
    done = iter(range(1, total + 1))
    todo: Iterator[str] = (paths[place % IMAGES] for place in range(total))
    lock = threading.Lock()

    def work() -> None:
        augment = augmentation()
        while True:
            with lock:
                path = next(todo, None)
            if path is None:
                return
            augment(image=cv2.imread(path, cv2.IMREAD_UNCHANGED))
            with lock:
                full = next(done) % BATCH == 0
            if full:
                clock.tick()

    threads = [threading.Thread(target=work) for _ in range(CORES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run_torch(folder: Path, clock: Clock) -> None:
    import cv2
    import torch

    labels, _ = data(folder)

    class Slices(torch.utils.data.Dataset):
        def __init__(self):
            self.paths, self.labels = [str(folder / f"{id}.png") for id in labels.index], labels.to_numpy("float32")
            self.augment = augmentation()

        def __len__(self):
            return IMAGES

        def __getitem__(self, place):
            image = cv2.imread(self.paths[place], cv2.IMREAD_UNCHANGED)
            return self.augment(image=image)["image"][None], self.labels[place]

    total = (clock.skip + clock.count) * BATCH
    places = torch.cat([torch.randperm(IMAGES) for _ in range(-(-total // IMAGES))])[:total].tolist()
    cv2.setNumThreads(1)  # its processes are the parallel work
    for _ in torch.utils.data.DataLoader(Slices(), batch_size=BATCH, sampler=places, num_workers=CORES):
        clock.tick()


def run_image_data_generator(folder: Path, clock: Clock) -> None:
    import pandas as pd
    import tensorflow as tf

    labels, _ = data(folder)
    frame = labels.assign(filename=labels.index + ".png")
    frame = pd.concat([frame] * -(-(clock.skip + clock.count) * BATCH // IMAGES), ignore_index=True)
    generator = tf.keras.preprocessing.image.ImageDataGenerator(
        rotation_range=15,
        width_shift_range=0.05,
        height_shift_range=0.05,
        zoom_range=0.05,
        brightness_range=(0.9, 1.1),
        horizontal_flip=True,
        fill_mode="constant",
    ).flow_from_dataframe(
        frame,
        str(folder),
        y_col=list(labels.columns),
        class_mode="raw",
        color_mode="grayscale",
        target_size=(SIDE, SIDE),
        batch_size=BATCH,
    )
    generator.workers = CORES  # it takes no such argument, but Keras honors the attribute
    consume(generator, clock)


def run_tf_data(folder: Path, clock: Clock) -> None:
    import keras
    import tensorflow as tf

    labels, _ = data(folder)
    paths = [str(folder / f"{id}.png") for id in labels.index]
    layers = keras.Sequential(
        [
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomRotation(15 / 360, fill_mode="constant"),
            keras.layers.RandomTranslation(0.05, 0.05, fill_mode="constant"),
            keras.layers.RandomZoom(0.05, fill_mode="constant"),
            keras.layers.RandomBrightness(0.1, value_range=(0, 255)),
            keras.layers.RandomContrast(0.1, value_range=(0, 255)),
        ]
    )

    def read(path, label):
        return tf.ensure_shape(tf.io.decode_png(tf.io.read_file(path), channels=1), (SIDE, SIDE, 1)), label

    dataset = tf.data.Dataset.from_tensor_slices((paths, labels.to_numpy("float32"))).shuffle(IMAGES).repeat()
    dataset = dataset.map(read, tf.data.AUTOTUNE).batch(BATCH)
    dataset = dataset.map(lambda x, y: (layers(tf.cast(x, tf.float32), training=True), y), tf.data.AUTOTUNE)
    consume(dataset.prefetch(tf.data.AUTOTUNE), clock)


def run_tutorial(folder: Path, clock: Clock) -> None:
    import keras
    import matplotlib.image
    import numpy as np

    labels, _ = data(folder)

    class Tutorial(keras.utils.PyDataset):
        def __len__(self):
            return clock.skip + clock.count

        def __getitem__(self, index):
            x, y = np.empty((BATCH, SIDE, SIDE, 1)), np.empty((BATCH, labels.shape[1]))
            for place in range(BATCH):
                id = labels.index[(index * BATCH + place) % IMAGES]
                x[place, ..., 0] = matplotlib.image.imread(folder / f"{id}.png")
                y[place] = labels.loc[id].values
            return x, y

    consume(Tutorial(), clock)


def fed(side: str, step: float, at_a_time: int) -> str:
    return f"{side}_fed_{1000 * step:.0f}_ms_by_{at_a_time}"


# For each side: what runs, batches before the clock starts (at least as many as Keras prepares while it compiles, and
# more), batches on the clock.
SIDES: dict[str, tuple[Callable[[Path, Clock], None], int, int]] = {
    "floor": (run_floor, 16, 128),
    "ours": (run_ours, 20, 128),
    "torch": (run_torch, 16, 128),
    "ours_neighbours": (run_neighbours, 20, 96),
    "ours_neighbours_in_order": (run_neighbours_in_order, 20, 96),
    "ours_threads": (run_threads, 20, 128),
    **{fed("ours", step, many): (run_fed(step, many), 24, 64) for many in AT_A_TIME for step in STEPS},
    **{fed("ready", step, many): (run_ready(step, many), 24, 64) for many in AT_A_TIME for step in STEPS},
    "ours_no_augmentation": (run_plain, 20, 192),
    "tutorial": (run_tutorial, 8, 24),
    "image_data_generator": (run_image_data_generator, 14, 16),
    "tf_data": (run_tf_data, 14, 16),
}
# Whose work the clock does not see.
IN_PROCESSES = {"torch", *(side for side in SIDES if side.startswith("ours"))} - {"ours_threads"}
PACKAGES = {"torch": "torch", "image_data_generator": "tensorflow", "tf_data": "tensorflow"}


class Stub:
    """A reader that reads nothing, so that an epoch is its look-ups alone."""

    def __init__(self, image):
        self.image = image

    def __call__(self, path):
        return self.image


def resident() -> float:
    """MB of this process's memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory() -> dict:
    """What ROWS rows cost: seconds to construct, MB above the frames over two epochs of look-ups, what is pickled."""
    import multiprocessing
    import pickle

    import keras
    import numpy as np
    import pandas as pd

    from ich.competition.labels import LABELS
    from ich.data.generator import DataGenerator

    rng = np.random.default_rng(0)
    numbers = 4096 * rng.permutation(16**6)[:ROWS]
    index = pd.Index([f"ID_{number:09x}" for number in numbers.tolist()])
    frame = pd.DataFrame(rng.integers(0, 2, (ROWS, len(LABELS)), np.int8), index=index, columns=list(LABELS))
    del numbers
    options = {"shuffle": True, "reader": Stub(np.zeros((8, 8, 1), np.uint8))}

    before = resident()
    start = time.perf_counter()
    generator = DataGenerator(frame.index, frame, batch_size=BATCH, **options)
    result = {"construct_s": time.perf_counter() - start, "above_mb": [resident() - before]}
    start = time.perf_counter()
    for epoch in range(2):
        generator.set_epoch(epoch)
        for batch in range(len(generator)):
            generator[batch]
            if batch % (len(generator) // 8) == 0:
                result["above_mb"].append(resident() - before)
    result["lookup_us"] = 1e6 * (time.perf_counter() - start) / (2 * ROWS)
    result["pickle_mb"] = len(pickle.dumps(generator)) / 1e6

    # Keras's pool, of spawned processes, which get nothing but by pickling.
    pickled, state = 0, DataGenerator.__getstate__

    def counting(self):
        nonlocal pickled
        pickled += 1
        return state(self)

    DataGenerator.__getstate__ = counting
    multiprocessing.set_start_method("spawn")
    generator = DataGenerator(frame.index, frame, batch_size=4096, workers=CORES, use_multiprocessing=True, **options)
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(len(LABELS))])
    model.compile(optimizer="sgd", loss="mse")
    model.fit(generator, verbose=0)
    return result | {"pickled": pickled, "batches": len(generator)}


def prepare(archive: Path, folder: Path) -> None:
    """PNGs `ID_….png`, labels.csv and slices.parquet of IMAGES slices, whole series after one another."""
    import pandas as pd

    from ich.competition.labels import read_labels
    from ich.dicom.windows import PRESETS
    from ich.images.convert import convert
    from ich.images.render import Settings
    from ich.images.slice_table import write_table

    images = folder / "converted"
    table = convert([archive], images, Settings(windows=(PRESETS["brain"],), size=SIDE), jobs=CORES)
    table = table[table["status"] == "ok"]
    copies = []
    for copy in range(-(-IMAGES // len(table))):
        part = table.copy()
        for column in ("SOPInstanceUID", "SeriesInstanceUID"):
            part[column] = part[column] + f"_{copy}"
        copies.append(part)
    frame = pd.concat(copies, ignore_index=True)[:IMAGES]
    for id, path in zip(frame["SOPInstanceUID"], frame["path"], strict=True):
        shutil.copyfile(images / path, folder / f"{id}.png")
    with zipfile.ZipFile(archive) as opened:
        name = next(name for name in opened.namelist() if name.endswith("_train.csv"))
        opened.extract(name, folder)
    labels, _ = read_labels(folder / name)
    # Test slices have none: any will do here, and 0 does.
    labels = labels.reindex(frame["SOPInstanceUID"].str.rsplit("_", n=1).str[0]).fillna(0).astype("int8")
    labels.set_axis(pd.Index(frame["SOPInstanceUID"])).to_csv(folder / "labels.csv")
    write_table(frame, folder / "slices.parquet")


def measure(side: str, folder: Path) -> dict:
    """One run of a side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def rates_of(sides: list[str], folder: Path, repeat: int) -> dict[str, float]:
    """Images a second of each side, medians, all sides in turns; printed as a table."""
    runs: dict[str, list[dict]] = {side: [] for side in sides}
    for _ in range(repeat):
        for side in sides:
            runs[side].append(measure(side, folder))
    print(f"{'':28}{'images/s':>10}{'from':>8}{'to':>8}{'CPU ms an image':>18}")
    for side, taken in runs.items():
        rates = [run["rate"] for run in taken]
        cpu = "" if side in IN_PROCESSES else f"{statistics.median(run['cpu_ms'] for run in taken):.2f}"
        print(f"{side:28}{statistics.median(rates):10.0f}{min(rates):8.0f}{max(rates):8.0f}{cpu:>18}")
    return {side: statistics.median(run["rate"] for run in taken) for side, taken in runs.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    sample = os.environ.get("RSNA_SAMPLE")
    parser.add_argument("archive", nargs="?", type=Path, help="the competition's archive, or a part of it")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each side (default: 5)")
    parser.add_argument("--only", nargs="+", choices=[*SIDES, "memory"], help="these alone; keys of others are null")
    parser.add_argument("--side", choices=[*SIDES, "memory"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="of prepared images: made, if missing, and kept")
    args = parser.parse_args(argv)
    if args.side == "memory":
        print(json.dumps(memory()))
        return
    if args.side:
        run, skip, count = SIDES[args.side]
        clock = Clock(skip, count)
        run(args.folder, clock)
        print(json.dumps(clock.result))
        return

    archive = args.archive or (sample and Path(sample) / "rsna-intracranial-hemorrhage-detection.zip")
    if archive is None:
        parser.error("name the archive, or set RSNA_SAMPLE to its folder")
    chosen = args.only or [*SIDES, "memory"]
    for side, package in PACKAGES.items():
        if side in chosen and importlib.util.find_spec(package) is None:
            print(f"{side} is left out: {package} is not installed")
            chosen = [other for other in chosen if other != side]
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "slices.parquet").exists():
            folder.mkdir(parents=True, exist_ok=True)
            prepare(archive, folder)
        size = sum(path.stat().st_size for path in folder.glob("*.png"))
        print(f"{IMAGES:,} PNGs of {size / IMAGES / 1000:.0f} kB, medians of {args.repeat}, load {os.getloadavg()}\n")
        rate = rates_of([side for side in SIDES if side in chosen], folder, args.repeat)
        rows = measure("memory", folder) if "memory" in chosen else None

    def ratio(side: str, against: str) -> float | None:
        return round(rate[side] / rate[against], 3) if side in rate and against in rate else None

    shares = {}
    for side in ("ours", "ready"):  # a batch that is ready tells what Keras's own steps leave to be had
        for many in AT_A_TIME:
            rates = {step: rate.get(fed(side, step, many)) for step in STEPS}
            if "floor" in rate and all(rates.values()):
                these = {step: rates[step] / min(BATCH / step, rate["floor"]) for step in STEPS}
                summary = ", ".join(f"{1000 * step:.0f} ms: {share:.3f}" for step, share in these.items())
                print(f"\n{side} fed, {many} step(s) an execution: {summary}")
                shares[side, many] = round(min(these.values()), 3)
    if rows:
        above = rows["above_mb"]
        print(f"\n{ROWS:,} rows: constructed in {rows['construct_s']:.2f} s; MB above the frames: {above[0]:.0f} then,")
        print(f"{', '.join(f'{mb:.0f}' for mb in above[1:])} over two epochs; {rows['lookup_us']:.0f} µs a look-up")
        print(f"{rows['pickle_mb']:.1f} MB pickled, {rows['pickled']} times for {CORES} spawned workers that gave")
        print(f"{rows['batches']} batches")
    result = {
        "vs_floor": ratio("ours", "floor"),
        "vs_torch": ratio("ours", "torch"),
        "vs_image_data_generator": ratio("ours", "image_data_generator"),
        "vs_tf_data": ratio("ours", "tf_data"),
        "vs_tutorial": ratio("ours_no_augmentation", "tutorial"),
        "neighbours_vs_single": ratio("ours_neighbours", "ours"),
        "fed_accelerator": shares.get(("ours", 8)),
        "fed_accelerator_by_single_steps": shares.get(("ours", 1)),
        "construct_s": rows and round(rows["construct_s"], 2),
        "overhead_mb": rows and round(max(rows["above_mb"])),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
