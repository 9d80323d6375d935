"""What several tests build their input with."""

import os

# The suite has a process for each core already, and its matrices are so small that threads do no more than wait for one
# another: a fit of two numbers, as of a blend's ranks, takes 20 times the CPU time with two of them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import io
import signal
import struct
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from hypothesis import settings
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless

from ich.competition import folds
from ich.competition.labels import INDEX_NAME, LABELS
from ich.config import Config
from ich.images import convert, slice_table
from ich.images.render import Settings
from ich.synthetic import bleeds, plan
from ich.synthetic.head import Head

# An example that takes long tells of the machine's load; `timeout` of pyproject.toml ends a test that hangs.
settings.register_profile("any-load", deadline=None)
settings.load_profile("any-load")

# A shell starts what runs in the background (make test &) with Ctrl-C ignored, which the processes of tests inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item):
    if item.get_closest_marker("real") and not os.environ.get("RSNA_SAMPLE"):
        pytest.skip("RSNA_SAMPLE does not name the folder of the competition's sample")


def pytest_collection_finish():
    """Keep garbage collection to what the tests themselves make.

    Keras's `clear_session` collects before each training, and would look each time at all of TensorFlow and of the
    test modules, which stay to the end.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def eagerly():
    """Have TensorFlow run each step as it comes, without tracing a graph of it.

    Of the tests' models, a graph takes seconds to trace and a moment to run. Those of the training keep to graphs
    (test_fold.py, test_fold_survival.py, test_callbacks.py), as users do. A GRU of many steps is faster in a graph.
    """
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def eager():
    """The same for all tests of a module and their fixtures."""
    with eagerly():
        yield


UID_A = "ID_0123456ab"


def make_dicom(stored=None, *, uid=UID_A, syntax=ExplicitVRLittleEndian, drop=(), raw=None, pixels=None, **tags):
    """The bytes of a CT slice: 12 bits, unsigned, intercept -1024, unless told otherwise.

    Args:
        stored: the stored values, in the dtype they are allocated in; whole range of 12 bits if None.
        syntax: uncompressed, deflated or RLE.
        drop: keywords of elements to leave out; `TransferSyntaxUID` too.
        raw: keyword -> bytes that stand in the file as they are, however nonsensical; explicit little endian only.
        pixels: the bytes of PixelData, instead of those of `stored`.
        tags: keyword -> value of further elements, or instead of the usual ones.
    """
    if stored is None:
        stored = np.linspace(0, 4095, 32 * 32).round().astype(np.uint16).reshape(32, 32)
    big = not syntax.is_little_endian
    with pydicom.config.disable_value_validation():
        ds = Dataset()
        ds.preamble = b"\0" * 128
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
        bits = tags.get("BitsStored", 12)
        usual = {
            "SOPClassUID": CTImageStorage,
            "SOPInstanceUID": uid,
            "Modality": "CT",
            "PatientID": "ID_aaaaaaaa1",
            "StudyInstanceUID": "ID_bbbbbbbbb1",
            "SeriesInstanceUID": "ID_ccccccccc1",
            "ImagePositionPatient": [-125.0, -100.0, 20.0],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "Rows": stored.shape[0],
            "Columns": stored.shape[1],
            "PixelSpacing": [0.5, 0.5],
            "BitsAllocated": stored.dtype.itemsize * 8,
            "BitsStored": bits,
            "HighBit": max(bits - 1, 0),
            "PixelRepresentation": int(stored.dtype.kind == "i"),
            "WindowCenter": [36, 36],
            "WindowWidth": [80, 80],
            "RescaleIntercept": -1024,
            "RescaleSlope": 1,
        }
        for keyword, value in (dict.fromkeys(raw or (), 1) | usual | tags).items():
            if keyword != "PixelData":
                setattr(ds, keyword, value)
        data = stored.astype(stored.dtype.newbyteorder(">" if big else "<")).tobytes()
        ds.PixelData = data + b"\0" * (len(data) % 2) if pixels is None else pixels
        ds["PixelData"].VR = "OB" if stored.dtype.itemsize == 1 else "OW"
        if syntax == RLELossless:
            ds.compress(RLELossless, generate_instance_uid=False)
        for keyword in drop:
            del (ds.file_meta if keyword in ds.file_meta else ds)[keyword]
        file = io.BytesIO()
        given = {} if "TransferSyntaxUID" in ds.file_meta else {"implicit_vr": False, "little_endian": True}
        pydicom.dcmwrite(file, ds, **given)
    data = file.getvalue()
    for keyword, value in (raw or {}).items():
        tag, vr = Tag(keyword), "OW" if keyword == "PixelData" else dictionary_VR(keyword)
        length = struct.Struct("<2xI" if vr == "OW" else "<H")
        start = data.index(struct.pack("<HH", tag.group, tag.elem) + vr.encode()) + 6
        end = start + length.size + length.unpack_from(data, start)[0]
        data = data[:start] + length.pack(len(value)) + value + data[end:]
    return data


def jpeg_lossless(data=None, *, codec="JPEGLosslessProcess14_1", **options):
    """The bytes of a slice, compressed by GDCM.

    Args:
        data: of a slice that is not compressed; what `make_dicom` makes if None.
        options: as `make_dicom` takes them.
    """
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "slice"))
        Path(path).write_bytes(make_dicom(**options) if data is None else data)
        read, change, write = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        read.SetFileName(path)
        assert read.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, codec)))
        change.SetInput(read.GetImage())
        assert change.Change()
        write.SetFile(read.GetFile())
        write.SetImage(change.GetOutput())
        write.SetFileName(path)
        assert write.Write()
        return Path(path).read_bytes()


def crashing(data):
    """A slice in JPEG Lossless without some bytes of the stream's first table: GDCM ends its process at it."""
    at = data.index(b"\xff\xc4", data.index(b"\xff\xd8\xff"))
    return data[: at + 1] + data[at + 12 :]


HOLDER = """
import sys
from pathlib import Path
from ich.folders import locked
with locked(Path(sys.argv[1]), name=sys.argv[2]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def in_use(folder, fold=None, name=""):
    """Have another process work in a folder, in a fold of a run, or in a part of another name; that process."""
    command = [sys.executable, "-c", HOLDER, str(folder), name if fold is None else f"fold{fold}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.communicate()


# ------------------------------------------------------------------------------------------- a run in seconds

TRAIN = [f"ID_{number:09x}" for number in range(24)]
TEST = [f"ID_{number:09x}" for number in range(100, 107)]


def make_images(path):
    """24 images of 32 x 32 pixels to train on, 7 to predict, slice table and folds; a slice of each that was not read.

    A series has four slices, as has a patient, and every second patient is of fold 1.
    """
    convert._claim(path / "images", Settings.of(tiny_config(path).preprocess))
    rng = np.random.default_rng(0)
    five = rng.integers(0, 2, (len(TRAIN), 5), dtype=np.int8)
    labels = np.column_stack([five, five.max(axis=1)])
    for split, ids in (("train", TRAIN), ("test", TEST)):
        (path / "images" / split).mkdir(parents=True)
        for number, id_ in enumerate(ids):
            image = rng.integers(0, 100, (32, 32), dtype=np.uint8)
            if split == "train":
                image[4:20, 4:20] += np.uint8(100 * labels[number, 5])
            cv2.imwrite(str(path / "images" / split / f"{id_}.png"), image)
    rows = [_slice(id_, "train", number) for number, id_ in enumerate(TRAIN)]
    rows += [_slice(id_, "test", 100 + number) for number, id_ in enumerate(TEST)]
    rows += [_slice("ID_f00", "train", 200, "truncated"), _slice("ID_f01", "test", 300, "truncated")]
    slice_table.write_table(slice_table.to_frame(rows), path / "images/slices.parquet")
    table = pd.DataFrame(labels, columns=list(LABELS), index=pd.Index(TRAIN, name=INDEX_NAME))
    table["PatientID"] = [f"ID_p{number // 4}" for number in range(len(TRAIN))]
    table["fold"] = [number // 4 % 2 for number in range(len(TRAIN))]
    folds.write_folds(path / "folds.csv", table)


def _slice(id_, split, number, status="ok"):
    place = {"SeriesInstanceUID": f"ID_s{number // 4}", "order": 3 - number % 4}
    return {"SOPInstanceUID": id_, "split": split, "status": status, "path": f"{split}/{id_}.png", **place}


def tiny_config(path, /, **sections):
    """Of `make_images`: two folds, one epoch."""
    content = {
        "name": "tiny",
        "data": {"sources": path / "a.zip", "images": path / "images", "folds": path / "folds.csv"},
        "folds": {"n": 2},
        "model": {"name": "small_cnn", "weights": None},
        "train": {"epochs": 1, "batch_size": 5},
        "predict": {"batch_size": 5},
        "machine": {"workers": 1},
    }
    for section, values in sections.items():
        content[section] = {**content[section], **values}
    return Config.model_validate(content)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder of `make_images`, of which `tiny_config` is."""
    path = tmp_path_factory.mktemp("data")
    make_images(path)
    return path


def plan_series(seed=0, kinds=(), slices=8, size=64):
    """The plan of one phantom scan with a bleed of each of these kinds; without bleeds, it is the same to the noise."""
    rng = np.random.default_rng([seed, 1])
    anatomy = int(rng.integers(2**31))
    head = Head.draw(np.random.default_rng(anatomy), noise=False)
    draw = {"intraparenchymal": bleeds.deep, "subarachnoid": bleeds.aneurysmal}
    drawn = tuple(draw.get(kind, getattr(bleeds, kind, None))(head, rng) for kind in kinds)
    return plan._draw_series(rng, (seed,), "train", f"ID_{seed:08x}", anatomy, head, drawn, slices, size)


def table_of_scores(scans=40, length=12, seed=0):
    """Scans of patients with bleeds that run over slices, and logits of a classifier that errs slice by slice."""
    rng = np.random.default_rng(seed)
    n = scans * length
    scan = np.repeat(np.arange(scans), length)
    labels = np.zeros((n, 6), np.int8)
    for start in range(0, n, length):
        for k in range(5):
            if rng.random() < 0.5:
                first = rng.integers(length - 4)
                labels[start + first : start + first + 5, k] = 1
    labels[:, 5] = labels[:, :5].max(axis=1)
    scores = 4.0 * labels - 2.5 + rng.normal(0, 2, labels.shape)
    frame = pd.DataFrame(labels, columns=list(LABELS)).join(
        pd.DataFrame(scores, columns=[f"score_{label}" for label in LABELS])
    )
    frame.insert(0, INDEX_NAME, [f"ID_{seed}{k:05x}" for k in range(n)])
    return frame.assign(
        PatientID=[f"ID_p{s // 2}" for s in scan],
        SeriesInstanceUID=[f"ID_s{s}" for s in scan],
        z=np.tile(np.arange(length) * 5.0, scans),
    )


SCHEDULER = """
import sys, time
from distributed import LocalCluster
options = {"host": "127.0.0.1", "dashboard_address": None, "silence_logs": "CRITICAL"}
if __name__ == "__main__":
    cluster = LocalCluster(n_workers=int(sys.argv[1]), threads_per_worker=1, **options)
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()  # until the test closes it
    cluster.close()
"""


@contextmanager
def dask_scheduler(workers):
    """A real scheduler with so many worker processes, in a process of its own; that process and its address."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    }
    command = [sys.executable, "-c", SCHEDULER, str(workers)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        try:
            yield process, process.stdout.readline().strip()
            process.stdin.close()
            process.wait(timeout=20)
        finally:
            process.kill()
