"""What several tests build their input with."""

import io
import os
import struct

import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless


def pytest_runtest_setup(item):
    if item.get_closest_marker("real") and not os.environ.get("RSNA_SAMPLE"):
        pytest.skip("RSNA_SAMPLE does not name the folder of the competition's sample")


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
