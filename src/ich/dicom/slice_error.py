"""The error of a slice that cannot be read, and its kinds."""

from ich.errors import IchError

KINDS: dict[str, str] = {
    "unreadable": "the system cannot read the file",
    "not_dicom": "the bytes are no DICOM file, or are damaged so that its elements cannot be told apart",
    "truncated": "the file ends before its pixel data does, or before them within another element",
    "no_pixels": "the file holds no pixel data",
    "missing_tag": "an element without which Hounsfield units or the slice's identity are unknown is not there",
    "bad_tag": "such an element holds a value that cannot be",
    "not_ct": "the image is of another modality, or no CT image by its SOPClassUID",
    "secondary_capture": "the image is a Secondary Capture: a screen save or a scanned page, whose values are no HU",
    "localizer": "the image is a localizer (scout), a projection of the patient and no slice",
    "not_hu": "the values are another quantity than Hounsfield units, by RescaleType",
    "unsupported": "the image is one that this project has no reading for (color, several frames)",
    "bad_pixels": "the pixel data do not decode, or do not fit what the header says of them",
}


class DicomError(IchError):
    """A slice that cannot be read.

    Args:
        kind: one of `KINDS`.
        reason: a sentence: what was found and what was expected.
        identity: the identifiers of slice, patient, study and series that could be read all the same, by keyword.
    """

    def __init__(self, kind: str, reason: str, identity: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.identity = identity or {}

    def __reduce__(self) -> tuple[type, tuple[str, str, dict[str, str]]]:
        return type(self), (self.kind, self.reason, self.identity)  # so that it comes back whole from a worker process
