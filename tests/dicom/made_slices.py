"""Slices made for the tests of reading, pydicom's own reading of them, and how a refusal is checked."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from ich.dicom.reader import AIR, read
from ich.dicom.slice_error import KINDS, DicomError

SYNTAXES = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
]
# As in the competition: bits stored, signed, intercept, range of the values.
STORED_AS = [(12, False, -1024), (12, False, -1000), (12, True, 0), (16, True, -1024), (16, True, 0)]


def values(bits=12, signed=False, shape=(32, 24), seed=0, low=None, high=None):
    """Random stored values over the range of so many bits, its two ends among them."""
    low = (-(2 ** (bits - 1)) if signed else 0) if low is None else low
    high = (2 ** (bits - (1 if signed else 0)) - 1) if high is None else high
    dtype = np.dtype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")
    stored = np.random.default_rng(seed).integers(low, high, shape, endpoint=True).astype(dtype)
    stored.flat[:2] = low, high
    return stored


def oracle_hu(data):
    """pydicom's own way, in float64, and then what this project promises on top: whole units, none below air."""
    ds = pydicom.dcmread(io.BytesIO(data))
    return np.clip(np.rint(np.asarray(apply_modality_lut(ds.pixel_array, ds), np.float64)), AIR, 32767)


def failure(data):
    with pytest.raises(DicomError) as caught:
        read(data)
    assert caught.value.kind in KINDS
    assert str(caught.value) == caught.value.reason
    return caught.value


def refused(data, kind, *said):
    """`data` is refused as `kind`, with a sentence that says each of `said`."""
    error = failure(data)
    assert error.kind == kind, error.reason
    for word in said:
        assert str(word) in error.reason


CODECS = ["JPEGLSLossless", "JPEG2000Lossless", "JPEGLosslessProcess14_1"]


def packed(plain, codec, folder):
    """The slice with its pixels compressed by GDCM, which decodes them too but encodes by code of its own."""
    gdcm = pytest.importorskip("gdcm")
    (folder / "plain.dcm").write_bytes(plain)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(folder / "plain.dcm"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, codec)))
    change.SetInput(reader.GetImage())
    if not change.Change():
        pytest.skip(f"this gdcm does not encode {codec}")
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(folder / "packed.dcm"))
    assert writer.Write()
    data = (folder / "packed.dcm").read_bytes()
    assert pydicom.dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID.is_compressed
    return data


def changed(data, *elements):
    """The slice with other elements: (tag or keyword, VR, value)."""
    ds = pydicom.dcmread(io.BytesIO(data))
    for tag, vr, value in elements:
        ds.add_new(tag, vr, value)
    file = io.BytesIO()
    ds.save_as(file)
    return file.getvalue()


def tissue(shape=(64, 64), seed=0, low=-1000, high=1999):
    """Random HU from air to bone, int64, of which the first rows are air."""
    hu = np.random.default_rng(seed).integers(low, high, shape, endpoint=True)
    hu[: max(4, shape[0] // 8)] = low
    return hu


def with_overlay(data, bit, **more):
    overlay = [(0x60000010, "US", 24), (0x60000011, "US", 24), (0x60000100, "US", 16), (0x60000102, "US", bit)]
    return changed(data, *overlay, *((tag, "OW", value) for tag, value in more.items()))
