"""Write a phantom's HU as a DICOM file like the competition's."""

import hashlib
import io

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ich.synthetic.plan import SeriesPlan, SlicePlan


def to_dicom(hu: np.ndarray, series: SeriesPlan, s: SlicePlan) -> bytes:
    """Write a slice as a DICOM file with the competition's tags, in their order and spelling.

    A truncated one lacks the last two fifths of the pixel data.

    Args:
        hu: int16, shape (rows, columns); clipped to the range of the pixel format.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(f"1.2.826.0.1.{int(hashlib.sha256(s.uid.encode()).hexdigest()[:10], 16)}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if series.explicit else ImplicitVRLittleEndian
    meta.ImplementationClassUID = UID("1.2.3.4")  # fixed: pydicom's own changes with its version
    meta.ImplementationVersionName = "PHANTOM"
    centers, widths = list(series.window[0::2]), list(series.window[1::2])
    with pydicom.config.disable_value_validation():  # `ID_…` is no valid UID, in the real files either
        d = Dataset()
        d.file_meta = meta
        d.preamble = bytes(128)
        d.SOPInstanceUID = s.uid
        d.Modality = "CT"
        d.PatientID = series.patient_id
        d.StudyInstanceUID = series.study_uid
        d.SeriesInstanceUID = series.series_uid
        d.StudyID = ""
        d.ImagePositionPatient = [f"{v:.6f}" for v in series.position(s)]
        d.ImageOrientationPatient = [f"{v:.6f}" for v in series.orientation]
        d.SamplesPerPixel = 1
        d.PhotometricInterpretation = "MONOCHROME2"
        d.Rows, d.Columns = hu.shape
        d.PixelSpacing = [f"{s.spacing:.6f}"] * 2
        d.BitsAllocated = 16
        d.BitsStored = s.stored_as.bits_stored
        d.HighBit = s.stored_as.bits_stored - 1
        d.PixelRepresentation = int(s.stored_as.signed)
        d.WindowCenter = centers if len(centers) > 1 else centers[0]
        d.WindowWidth = widths if len(widths) > 1 else widths[0]
        d.RescaleIntercept = str(s.stored_as.intercept)
        d.RescaleSlope = "1"
        pixels = s.stored_as.store(hu).astype("<i2" if s.stored_as.signed else "<u2").tobytes()
        d.PixelData = pixels
        d["PixelData"].VR = "OW"
        buffer = io.BytesIO()
        d.save_as(buffer)
    content = buffer.getvalue()
    return content[: len(content) - 2 * len(pixels) // 5] if "truncated" in s.oddities else content
