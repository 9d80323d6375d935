"""Small scans in files as a PACS exports them."""

from functools import cache

import numpy as np
from conftest import make_dicom, plan_series

from ich.synthetic.archive import render_series


@cache
def head(slices=8, size=32):
    """HU of a phantom head, int16, slice by slice."""
    return [slice_.hu for slice_ in render_series(plan_series(seed=1, slices=slices, size=size))]


_files: dict[tuple, bytes] = {}


def _file(hu, uid, elements):
    """The bytes of a slice; many tests write the same ones."""
    key = (hu.tobytes(), hu.shape, uid, repr(elements))
    if key not in _files:
        stored = (hu + 1024).clip(0, 4095).astype(np.uint16)
        _files[key] = make_dicom(stored, uid=uid, **elements)
    return _files[key]


def write_scan(folder, *, series="1.2.7", slices=6, step=5.0, first=0.0, uid=None, change=None, pixels=None, **tags):
    """Write a series as files without an extension; their paths, in the order of their positions.

    Args:
        uid: of the slices, before their number; the series' one if None.
        change: number of the slice -> further elements of it.
        pixels: HU of each slice; a phantom's if None.
        tags: as `make_dicom` takes them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixels = head() if pixels is None else pixels
    paths = []
    for number in range(slices):
        usual = {
            "StudyInstanceUID": "1.2.3",
            "SeriesInstanceUID": series,
            "SeriesNumber": 2,
            "FrameOfReferenceUID": "1.2.3.4",
            "InstanceNumber": number + 1,
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "ImagePositionPatient": [-125.0, -100.0, first + number * step],
            "SliceThickness": step,
            "ConvolutionKernel": "STANDARD",
            "PatientID": "p1",
            "PatientName": "Doe^Jane",
            "PatientBirthDate": "19500101",
        }
        elements = usual | tags | (change or {}).get(number, {})
        # Numbers that say nothing of the order of the slices.
        path = folder / f"IMG{(number * 7 + 3) % 1009:05}"
        path.write_bytes(_file(pixels[number % len(pixels)], f"{uid or series}.{number + 1}", elements))
        paths.append(path)
    return paths
