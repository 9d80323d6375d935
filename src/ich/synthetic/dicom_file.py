"""Write a phantom's HU as a DICOM file like the competition's."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """A storage format of HU; `wrapped` stores HU modulo 4096, as some of the archive's files do by accident."""

    bits_stored: int = 12
    signed: bool = False
    intercept: int = -1024
    wrapped: bool = False

    @property
    def name(self) -> str:
        if self.wrapped:
            return "wrapped"
        return f"{'signed' if self.signed else 'unsigned'} {self.bits_stored}-bit, {self.intercept}"

    @property
    def hu_range(self) -> tuple[int, int]:
        """The lowest and highest HU that the format holds."""
        if self.wrapped:
            return -1000, 3095
        lowest = -(2 ** (self.bits_stored - 1)) if self.signed else 0
        low, high = lowest + self.intercept, lowest + 2**self.bits_stored - 1 + self.intercept
        return max(low, -32768), min(high, 32767)

    def store(self, hu: np.ndarray) -> np.ndarray:
        """Convert HU, int16, to stored values, uint16 or int16 of the same shape; clips to `hu_range`."""
        clipped = np.clip(hu.astype(np.int32), *self.hu_range)
        stored = clipped % 4096 if self.wrapped else clipped - self.intercept
        return stored.astype(np.int16 if self.signed else np.uint16)


COMMON_FORMATS = (PixelFormat(), PixelFormat(16, True, -1024))
RARE_FORMATS = (PixelFormat(12, False, -1000), PixelFormat(12, True, 0), PixelFormat(16, True, 0))


def to_dicom(
    hu: np.ndarray,
    *,
    stored_as: PixelFormat = COMMON_FORMATS[0],
    uid: str = "ID_000000001",
    patient_id: str = "ID_00000001",
    study_uid: str = "ID_0000000001",
    series_uid: str = "ID_0000000002",
    position: Sequence[float] = (-125.0, -125.0, 0.0),
    orientation: Sequence[float] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    spacing: float = 0.488281,
    window: Sequence[str] = ("40", "80"),
    explicit: bool = True,
    truncated: bool = False,
) -> bytes:
    """Write a DICOM file with the competition's tags, in their order and spelling.

    Args:
        hu: int16, shape (rows, columns); clipped to the format's range.
        window: center and width as text; ("36", "80", "36", "80") is a multi-valued one.
        explicit: explicit or implicit value representations; little endian both.
        truncated: leave out the last two fifths of the pixel data.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(f"1.2.826.0.1.{int(hashlib.sha256(uid.encode()).hexdigest()[:10], 16)}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
    meta.ImplementationClassUID = UID("1.2.3.4")  # fixed: pydicom's own changes with its version
    meta.ImplementationVersionName = "PHANTOM"
    centers, widths = list(window[0::2]), list(window[1::2])
    with pydicom.config.disable_value_validation():  # `ID_…` is no valid UID, in the real files either
        d = Dataset()
        d.file_meta = meta
        d.preamble = bytes(128)
        d.SOPInstanceUID = uid
        d.Modality = "CT"
        d.PatientID = patient_id
        d.StudyInstanceUID = study_uid
        d.SeriesInstanceUID = series_uid
        d.StudyID = ""
        d.ImagePositionPatient = [f"{v:.6f}" for v in position]
        d.ImageOrientationPatient = [f"{v:.6f}" for v in orientation]
        d.SamplesPerPixel = 1
        d.PhotometricInterpretation = "MONOCHROME2"
        d.Rows, d.Columns = hu.shape
        d.PixelSpacing = [f"{spacing:.6f}"] * 2
        d.BitsAllocated = 16
        d.BitsStored = stored_as.bits_stored
        d.HighBit = stored_as.bits_stored - 1
        d.PixelRepresentation = int(stored_as.signed)
        d.WindowCenter = centers if len(centers) > 1 else centers[0]
        d.WindowWidth = widths if len(widths) > 1 else widths[0]
        d.RescaleIntercept = str(stored_as.intercept)
        d.RescaleSlope = "1"
        pixels = stored_as.store(hu).astype("<i2" if stored_as.signed else "<u2").tobytes()
        d.PixelData = pixels
        d["PixelData"].VR = "OW"
        buffer = io.BytesIO()
        d.save_as(buffer)
    content = buffer.getvalue()
    return content[: len(content) - 2 * len(pixels) // 5] if truncated else content
