"""What a file or a frame is if it is no slice of a CT in Hounsfield units, by what its elements say.

Section numbers are those of the DICOM standard, PS3.3 (objects).
"""

from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from ich.dicom.reader import SECONDARY_CAPTURE, STORAGE

MULTI_FRAME = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_NO_IMAGE = {"SR", "KO", "PR", "DOC", "REG", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "FID", "RWV", "PLAN"}

# Values of ImageType that mean a quantity computed of slices. Of the standard (C.8.2.1.1.1, C.8.15.3.1, C.8.16.1.4)
# and of vendors' perfusion and dual-energy programs.
_MAPS = {"CBF", "CBV", "MTT", "TTP", "TTD", "TMAX", "PBV", "PERMEABILITY", "FLOW", "PENUMBRA", "PERFUSION_MAP"}
_MAPS |= {"MAT_SPECIFIC", "MAT_REMOVED", "MAT_FRACTIONAL", "MAT_VALUE_BASED", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY"}
_MAPS |= {"IODINE", "IODINE_MAP", "Z_EFF", "ZEFF", "QUANTITY", "SUBTRACTION", "DIVISION", "STD_DEVIATION"}
_PROJECTIONS = {"MIP", "MINIP", "MAXIP", "MIN_IP", "MAX_IP", "MAXIMUM", "MINIMUM", "PROJECTION IMAGE", "VRT", "SSD"}
_PROJECTIONS |= {"VOLREN", "VOLUME_RENDERING", "CSA MIP"}
MONO_ENERGETIC = {"VMI", "MONO", "MONOENERGETIC", "MONO_ENERGETIC"}
"""Values of ImageType that mean an image for one energy of X-rays: in HU, but of another contrast."""


def kind_of_file(
    sop_class: str,
    modality: str | None,
    image_type: tuple[str, ...],
    rescale_type: list[str],
    samples: float,
    frames: float,
    photometric: str,
) -> tuple[str, str]:
    """What a file is if it holds no slices, as a word of REASONS, and a sentence with what was found; "" if it may.

    Args:
        sop_class, modality: SOPClassUID and Modality.
        image_type, rescale_type: ImageType and RescaleType, in capitals.
        samples, frames: SamplesPerPixel and NumberOfFrames.
        photometric: PhotometricInterpretation.
    """
    if f"{sop_class}.".startswith(SECONDARY_CAPTURE):
        return "secondary_capture", "SOPClassUID is that of a Secondary Capture"
    if modality is not None and modality.upper() != "CT":  # in capitals by PS3.5, 6.2, but the meaning is plain
        return "no_image" if modality.upper() in _NO_IMAGE else "other_modality", f"Modality is {modality}"
    if sop_class not in (CTImageStorage, *MULTI_FRAME) and sop_class.startswith(STORAGE):
        name = UID(sop_class).name
        return "other_modality" if "Image" in name else "no_image", f"SOPClassUID is that of {name}"
    if fault := kind_of_image(image_type, rescale_type):
        return fault
    gray = photometric in ("MONOCHROME1", "MONOCHROME2")
    if samples == 1 and gray and (frames == 1 or sop_class in MULTI_FRAME):
        return "", ""
    pixels = f"{samples:g} sample(s) a pixel, {frames:g} frame(s), {photometric}"
    return "unsupported", f"{pixels}; expected one gray frame, or the frames of an Enhanced CT"


def kind_of_image(image_type: tuple[str, ...], rescale_type: list[str]) -> tuple[str, str] | None:
    """What an image of CT is if it is no slice in HU, as a word of REASONS and a sentence; None if it is one."""
    values = "/".join(image_type)
    if "LOCALIZER" in image_type:
        return "localizer", f"ImageType is {values}"
    # C.11.1.1.2; missing, it is HU. GDCM, and so ITK, writes US for "unspecified".
    other = set(rescale_type) - {"HU", "US", ""}
    if other:
        return "not_hu", f"RescaleType is {', '.join(sorted(other))}"
    if (_MAPS | _PROJECTIONS).intersection(image_type):
        return "derived", f"ImageType is {values}"
    if "SCREEN SAVE" in image_type:
        return "secondary_capture", f"ImageType is {values}"
    return None
