"""Values of a slice's elements as plain types: text, numbers."""

import math
import re
from functools import cache
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

from ich.dicom.parsing import tag_of
from ich.dicom.slice_error import DicomError
from ich.errors import one_line

_PLAIN_NUMBERS = re.compile(rb" *[-+]?\d+(\.\d*)? *(\\ *[-+]?\d+(\.\d*)? *)*")
_PLAIN_TEXT = re.compile(rb"[A-Za-z0-9_.-][A-Za-z0-9_. -]*\0?")


def value_of(ds: Dataset, keyword: str) -> Any:
    """The element's value; None where it is missing or empty."""
    if raw_element(ds, keyword) is None:  # pydicom takes longer to find nothing
        return None
    try:
        value = ds.get(keyword)
    except Exception as error:  # pydicom parses an element when it is asked for, and damaged ones fail in any way
        raise DicomError("bad_tag", f"{keyword} cannot be parsed ({one_line(error, named=True)})") from error
    if value is None or (isinstance(value, (str, bytes, list, MultiValue)) and len(value) == 0):
        return None
    return value


def raw_element(ds: Dataset, keyword: str) -> RawDataElement | DataElement | None:
    """The element as it was read; None where it is missing."""
    return ds.get_item(_tag_and_vr(keyword)[0], keep_deferred=True)  # else an empty one of a damaged VR is converted


def text(ds: Dataset, keyword: str) -> str | None:
    """The element's text, with a backslash between several values; None where it is missing or empty."""
    value = _plain_text(ds, keyword) or _text_of(ds, keyword)
    if value is None:
        return None
    if isinstance(value, (MultiValue, list)):
        value = "\\".join(map(str, value))  # as it stands in the file (PS3.5, 6.4)
    # Some character sets decode to surrogates, which no table takes.
    return str(value).encode("utf-8", "replace").decode().strip(" \0") or None  # what pads (PS3.5, 6.2) is no part


def texts(ds: Dataset, keyword: str) -> list[str]:
    """All values of an element of text, in capitals; none where it is missing or empty."""
    value = _text_of(ds, keyword)
    values = value if isinstance(value, (MultiValue, list)) else [value]
    return [str(value).strip().upper() for value in values if value is not None]


def _text_of(ds: Dataset, keyword: str) -> Any:
    value = value_of(ds, keyword)
    if isinstance(value, Sequence):  # whose items pydicom parses when they are printed, and fails on in any way
        raise DicomError("bad_tag", f"{keyword} is a sequence of {len(value)} items, expected text")
    return value


def number(ds: FileDataset, keyword: str) -> float:
    """A finite number; one that is given several times must be the same each time."""
    value = _plain_numbers(ds, keyword)
    if value is not None and len(value) == 1 and math.isfinite(value[0]):
        return value[0]
    value = value_of(ds, keyword)
    if value is None:
        raise DicomError("missing_tag", f"{keyword} is missing or empty, expected a number")
    values = value if isinstance(value, (MultiValue, list)) else [value]
    try:
        (number,) = {float(v) for v in values}
    except (ValueError, TypeError, OverflowError) as error:
        raise DicomError("bad_tag", f"{keyword} is {value!r}, expected a number") from error
    if not math.isfinite(number):
        raise DicomError("bad_tag", f"{keyword} is {number}, expected a finite number")
    return number


def integer(ds: FileDataset, keyword: str, default: int | None = None) -> int:
    plain = _plain_numbers(ds, keyword)
    if plain is None and default is not None and value_of(ds, keyword) is None:
        return default
    value = plain[0] if plain is not None and len(plain) == 1 else number(ds, keyword)
    if not value.is_integer():
        raise DicomError("bad_tag", f"{keyword} is {value}, expected a whole number")
    return int(value)


def numbers(ds: FileDataset, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """All numbers of an element; None where there are not `count` of them, or one is not finite."""
    try:
        numbers = _plain_numbers(ds, keyword)
        if numbers is None:
            value = value_of(ds, keyword)
            numbers = tuple(float(v) for v in (value if isinstance(value, (MultiValue, list)) else [value]))
    except (DicomError, ValueError, TypeError, OverflowError):
        return None
    return numbers if all(map(math.isfinite, numbers)) and count in (None, len(numbers)) else None


def _plain(ds: Dataset, keyword: str) -> tuple[str, RawDataElement | None]:
    """Return the VR of an element, and the element if it is encoded by it and has not been read yet.

    Values in the usual form are decoded here, all others by pydicom, which takes more time for a slice's two dozen
    elements than its pixels take.
    """
    vr, raw = _tag_and_vr(keyword)[1], raw_element(ds, keyword)
    return vr, raw if isinstance(raw, RawDataElement) and raw.VR in (None, vr) and raw.value else None


def _plain_numbers(ds: Dataset, keyword: str) -> tuple[float, ...] | None:
    """Return the numbers of an element in the usual form; None for any other."""
    vr, raw = _plain(ds, keyword)
    if raw is None or raw.value is None:
        return None
    if vr == "US" and len(raw.value) == 2:
        return (float(int.from_bytes(raw.value, "little" if raw.is_little_endian else "big")),)
    if vr in ("DS", "IS") and _PLAIN_NUMBERS.fullmatch(raw.value):
        return tuple(map(float, raw.value.split(b"\\")))
    return None


def _plain_text(ds: Dataset, keyword: str) -> str | None:
    """Return the text of an element in the usual form; None for any other."""
    vr, raw = _plain(ds, keyword)
    if raw is None or raw.value is None or vr not in ("UI", "LO", "CS") or not _PLAIN_TEXT.fullmatch(raw.value):
        return None
    return raw.value.rstrip(b"\0").decode("ascii")


@cache
def _tag_and_vr(keyword: str) -> tuple[BaseTag, str]:
    tag = tag_of(Tag(keyword))
    return tag, dictionary_VR(tag)
