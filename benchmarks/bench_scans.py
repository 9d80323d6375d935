"""python benchmarks/bench_scans.py

scripts/predict_scans.py beside what it cannot do without; its memory, by the number of scans; its start; its pages.

Scans are a phantom's, 512 × 512, uncompressed, under new identifiers, in files without an extension; the model is that
of the demo (small_cnn at 128 pixels, three windows, three folds), untrained.

Throughput (`scans_vs_floor`): 200 scans of 32 slices. Ours is `predict_scans` with all that it does but pages: headers
of all files, the choice of series, slabs looked at, tables. The floor reads the same files (`ich.dicom.reader.read`),
renders them in two threads, and calls `model.predict` of each fold on the array of all. `pages_vs_floor` is ours with a
page a scan, Grad-CAM included, which the floor does not make. Models are read in all; each repetition is a process of
its own, the sides in turns; ratios are of the medians.

Memory (`memory_growth`): the peak of the script as a whole with pages, 400 scans over 40, of 16 slices.

Start (`cold_s`): the whole command for one scan of 40 slices, until its page is there. `page_mb`: that page, 40 slices
of 512 × 512; 10^6 bytes.

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench_predict import peak

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).resolve().parents[1]
FOLDS, SIDE, WINDOWS = 3, 128, ["brain", "subdural", "bone"]
BATCH = 64


def write_model(folder: Path) -> None:
    """A run of untrained models, as predicting reads it."""
    import keras
    import yaml

    from ich.competition.labels import LABELS
    from ich.models import backbones

    config = {
        "name": "run",
        "data": {"sources": "none", "images": "none"},
        "preprocess": {"windows": WINDOWS, "size": SIDE},
        "folds": {"n": FOLDS},
        "model": {"name": "small_cnn", "weights": None},
        "predict": {"batch_size": BATCH},
    }
    run = folder / "run"
    for k in range(FOLDS):
        keras.utils.set_random_seed(k)
        (run / f"fold{k}").mkdir(parents=True)
        backbones.build_model("small_cnn", (SIDE, SIDE, len(WINDOWS))).save(run / f"fold{k}/model.keras")
        (run / f"fold{k}/oof.parquet").touch()
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "environment.json").write_text(json.dumps({"python": "", "packages": {}, "commit": None, "platform": ""}))
    score = {"weighted_log_loss": 0.5, "of_prevalence": 0.5, "by_label": dict.fromkeys(LABELS, 0.5)}
    (run / "score.json").write_text(json.dumps(score))


def write_scans(folder: Path, count: int, slices: int, side: int) -> None:
    """So many scans of one phantom, as a PACS exports them."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

    from ich.synthetic.archive import render_series
    from ich.synthetic.plan import draw_plan

    plan = draw_plan(
        seed=1, patients=1, test_patients=1, size=side, min_slices=slices, max_slices=slices, bleed_factor=4.0
    )
    contents = []
    for number, rendered in enumerate(render_series(plan[0])):
        d = Dataset()
        d.file_meta = FileMetaDataset()
        d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = CTImageStorage
        d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = UID(f"1.2.100000.{100 + number}")
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.Modality, d.ConvolutionKernel, d.SliceThickness = "CT", "STANDARD", "5"
        d.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        d.StudyInstanceUID, d.SeriesInstanceUID, d.PatientID = "1.3.100000", "1.4.100000", "1.5.100000"
        d.ImagePositionPatient, d.ImageOrientationPatient = [0, 0, 5 * number], [1, 0, 0, 0, 1, 0]
        d.PixelSpacing, d.InstanceNumber = [0.5, 0.5], number + 1
        d.Rows, d.Columns = rendered.hu.shape
        d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
        d.RescaleIntercept, d.RescaleSlope = -1024, 1
        d.PixelData = (rendered.hu + 1024).clip(0, 4095).astype("<u2").tobytes()
        d["PixelData"].VR = "OW"
        path = folder / "one"
        folder.mkdir(parents=True, exist_ok=True)
        pydicom.dcmwrite(path, d, enforce_file_format=True)
        contents.append(path.read_bytes())
        path.unlink()
    for scan in range(count):
        (folder / f"{scan}").mkdir()
        for number, content in enumerate(contents):
            (folder / f"{scan}/IM{number:04}").write_bytes(content.replace(b".100000", f".{100_000 + scan}".encode()))


def run_ours(folder: Path, pages: bool = False) -> float:
    from ich.own_scans import predict
    from ich.own_scans.model_spec import read_model
    from ich.own_scans.options import Options

    options = Options(pages=pages)
    start = time.perf_counter()
    summary = predict.predict_scans(
        read_model(folder / "run"), [folder / "scans"], folder / f"out{os.getpid()}", options
    )
    seconds = time.perf_counter() - start
    assert summary.unread == 0
    return summary.slices / seconds


def run_pages(folder: Path) -> float:
    return run_ours(folder, pages=True)


def run_floor(folder: Path) -> float:
    import keras
    import numpy as np

    from ich.dicom import reader
    from ich.dicom.windows import PRESETS
    from ich.images.render import Settings, render

    settings = Settings(tuple(PRESETS[name] for name in WINDOWS), SIDE)
    files = sorted(path for path in (folder / "scans").glob("*/*"))

    def image(path: Path) -> np.ndarray:
        return render(reader.read(path)[0], settings)[0]

    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        images = np.stack(list(pool.map(image, files)))
    for k in range(FOLDS):
        model = keras.saving.load_model(folder / f"run/fold{k}/model.keras", compile=False)
        model.predict(images, batch_size=BATCH, verbose=0)
    return len(files) / (time.perf_counter() - start)


SIDES = {"ours": run_ours, "pages": run_pages, "floor": run_floor}


def throughput(scans: int, slices: int, repeats: int) -> dict:
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        call(["--write", folder, str(scans), str(slices), "512"])
        for _ in range(repeats):
            for side in SIDES:
                rates[side].append(float(call(["--side", side, folder]).splitlines()[-1]))
                for out in Path(folder).glob("out*"):
                    subprocess.run(["rm", "-r", str(out)], check=True)
    medians = {side: statistics.median(measured) for side, measured in rates.items()}
    for side, measured in rates.items():
        print(f"{side:<6} {medians[side]:7.1f} slices/s   of {', '.join(f'{rate:.1f}' for rate in measured)}")
    return {
        "scans_vs_floor": round(medians["ours"] / medians["floor"], 3),
        "pages_vs_floor": round(medians["pages"] / medians["floor"], 3),
        "slices_per_s": {side: round(rate, 1) for side, rate in medians.items()},
    }


def growth(counts: list[int]) -> dict:
    peaks = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            call(["--write", folder, str(count), "16", "128"])
            peaks[count] = peak(command(Path(folder)))
        print(f"{count:>5} scans: peak {peaks[count] / 2**20:7.1f} MB", flush=True)
    small, large = (peaks[count] for count in counts)
    return {"memory_growth": round(large / small, 3), "memory_mb": [round(size / 2**20) for size in peaks.values()]}


def start(repeats: int) -> dict:
    seconds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call(["--write", name, "1", "40", "512"])
        for _ in range(repeats):
            begun = time.perf_counter()
            subprocess.run(command(folder), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - begun)
            (page,) = (folder / "out").glob("scans/*.html")
            size = page.stat().st_size / 1e6
            subprocess.run(["rm", "-r", str(folder / "out")], check=True)
    print(f"one scan: {statistics.median(seconds):.1f} s   of {', '.join(f'{duration:.1f}' for duration in seconds)}")
    print(f"its page: {size:.1f} MB", flush=True)
    return {"cold_s": round(statistics.median(seconds), 1), "page_mb": round(size, 2)}


def command(folder: Path) -> list:
    return [
        sys.executable,
        ROOT / "scripts/predict_scans.py",
        folder / "run",
        folder / "scans",
        "--out",
        folder / "out",
    ]


def call(arguments: list[str]) -> str:
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)  # it said why
    return done.stdout


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("throughput", "memory", "start"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--slices", type=int, default=32)
    parser.add_argument("--write", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.write:
        folder, *numbers = arguments.write
        write_model(Path(folder))
        write_scans(Path(folder) / "scans", *map(int, numbers))
        return
    if arguments.side:
        side, folder = arguments.side
        print(SIDES[side](Path(folder)))
        return
    result = {}
    if arguments.only in (None, "start"):
        result |= start(arguments.repeats)
    if arguments.only in (None, "memory"):
        result |= growth([40, 400])
    if arguments.only in (None, "throughput"):
        result |= throughput(arguments.scans, arguments.slices, arguments.repeats)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
