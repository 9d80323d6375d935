"""Pixels of a slice as they are stored: decoded, checked against the header, and the values that their bits mean."""

import numpy as np
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from ich.dicom import bits, decoding, elements
from ich.dicom.slice_error import DicomError
from ich.errors import IchError

MAX_SIDE = 4096
"""Pixels; more Rows or Columns than any CT has are a damaged header, and are refused before memory is taken."""


def stored_words(ds: FileDataset, bits_stored: int, signed: int) -> np.ndarray:
    """The pixels as they are stored, with all the bits that are allocated to each, checked against the header."""
    rows, columns = elements.integer(ds, "Rows"), elements.integer(ds, "Columns")
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        raise DicomError("bad_tag", f"the image is {rows} × {columns}, expected 1 to {MAX_SIDE} rows and columns")
    allocated = elements.integer(ds, "BitsAllocated")
    if allocated not in (8, 16, 32) or not 1 <= bits_stored <= min(allocated, 16) or signed not in (0, 1):
        raise DicomError(
            "bad_tag",
            f"BitsAllocated {allocated}, BitsStored {bits_stored}, PixelRepresentation {signed}; expected 8, 16 or 32"
            " bits allocated, no more stored than allocated and than 16, and 0 or 1",
        )
    name = elements.text(ds.file_meta, "TransferSyntaxUID")
    if name is None:
        raise DicomError("missing_tag", "TransferSyntaxUID is missing, so that the encoding of the pixels is unknown")
    syntax = UID(name)
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise DicomError("unsupported", f"TransferSyntaxUID {name} is no transfer syntax of the standard")
    shape = (rows, columns)
    # Of the uncompressed ones, bytes in big-endian words are left to pydicom too: they come in swapped pairs.
    native = not syntax.is_compressed and (syntax.is_little_endian or allocated > 8)
    return _decode_native(ds, shape, allocated, signed) if native else _decode(ds, shape, syntax, signed)


def stored_values(
    ds: FileDataset, words: np.ndarray, bits_stored: int, scale: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """The pixel values in 16 bits; where they are air whatever they say, None for nowhere; and what was mended."""
    used = words.itemsize * 8
    high_bit = elements.integer(ds, "HighBit", bits_stored - 1)
    if not bits_stored - 1 <= high_bit < used:
        raise DicomError("bad_tag", f"HighBit is {high_bit} of {used}, BitsStored {bits_stored}; expected one less")
    padding = _padding(ds, words)
    try:
        if high_bit != bits_stored - 1:
            by = high_bit - bits_stored + 1
            words, used = bits.shifted(words, by, _overlaid(ds, range(by))), used - by
        # Padding that is below air needs no care, nor has it a say of which bits count.
        if bits.fits(words, bits_stored) and (
            padding is None or max(value * scale[0] + scale[1] for value in padding) <= bits.METAL
        ):
            air = bits.unnamed_padding(words, scale)
            return words.astype(np.int16 if words.dtype.kind == "i" else np.uint16, copy=False), air, ()
        overlaid = _overlaid(ds, range(high_bit + 1, words.itemsize * 8))
        return bits.stored_values(words, bits_stored, used=used, scale=scale, overlaid=overlaid, padding=padding)
    except DicomError:
        raise
    except IchError as error:
        raise DicomError("bad_pixels", str(error)) from error


def _decode_native(ds: FileDataset, shape: tuple[int, int], allocated: int, signed: int) -> np.ndarray:
    raw, expected = elements.raw_element(ds, "PixelData"), shape[0] * shape[1] * allocated // 8
    # Of a plain element, pydicom's conversion gives the same bytes.
    if isinstance(raw, RawDataElement) and raw.VR in (None, "OB", "OW") and raw.value:
        data = raw.value
    else:
        data = elements.value_of(ds, "PixelData")
    if data is None:
        raise DicomError("no_pixels", "the PixelData element is empty")
    if not isinstance(data, bytes):
        raise DicomError("bad_tag", f"PixelData is of type {ds['PixelData'].VR}, expected bytes (OB or OW)")
    if len(data) < expected:
        raise DicomError("truncated", f"{len(data):,} bytes of pixel data, expected {expected:,}")
    if len(data) >= 2 * expected:  # no padding: more frames, or Rows and Columns of another image
        raise DicomError(
            "bad_pixels", f"{len(data):,} bytes of pixel data, which is {len(data) // expected} such images"
        )
    order = "<" if ds.original_encoding[1] else ">"
    dtype = np.dtype(f"{order}{'i' if signed else 'u'}{allocated // 8}")
    return np.frombuffer(data, dtype, count=shape[0] * shape[1]).reshape(shape)


def _decode(ds: FileDataset, shape: tuple[int, int], syntax: UID, signed: int) -> np.ndarray:
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise DicomError("unsupported", f"nothing installed here decodes {syntax.name}")
    raw, contrary = decoding.decode(ds, syntax, bool(signed))
    if raw.shape != shape:
        raise DicomError("bad_pixels", f"decoded to {raw.shape}, expected {shape}")
    if contrary and (raw.view(f"i{raw.itemsize}") < 0).any():
        raise DicomError(
            "bad_pixels", "the JPEG 2000 stream holds negative values, PixelRepresentation says that there are none"
        )
    return raw


def _padding(ds: FileDataset, words: np.ndarray) -> tuple[int, int] | None:
    """The least and the greatest value that is padding (C.7.5.1.1.2), as numbers of the words' kind.

    Its 16 bits count: many files give them the VR of the other PixelRepresentation.
    """
    ends = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        if elements.raw_element(ds, keyword) is None or elements.value_of(ds, keyword) is None:
            break
        pattern = elements.integer(ds, keyword) & 0xFFFF
        ends.append(pattern - 0x10000 if words.dtype.kind == "i" and pattern >> 15 else pattern)
    return (min(ends), max(ends)) if ends else None


def _overlaid(ds: FileDataset, unused: range) -> bool:
    """Whether an overlay stands in these bits of the pixels (C.9.2; retired, but files hold it)."""
    for group in range(0x6000, 0x6020, 2):
        position = ds.get((group, 0x0102))
        if position is not None and (group, 0x3000) not in ds and position.value in unused:
            return True
    return False
