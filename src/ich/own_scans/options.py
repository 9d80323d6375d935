"""How scans are read and written, and the names that are written for them."""

from dataclasses import dataclass
from hashlib import sha256

from ich.own_scans.series import Series


@dataclass(frozen=True, slots=True)
class Options:
    """How scans are read and written.

    Args:
        slabs: average slices that are thinner than the training's.
        all_series: read also series that share their positions with a softer one.
        patient_id: write PatientID.
        hash_ids: replace all identifiers by hashes, and leave file names out, which often hold names.
        pages: write a page a scan and index.html.
    """

    slabs: bool = True
    all_series: bool = False
    patient_id: bool = False
    hash_ids: bool = False
    pages: bool = True


def named(id: str | None, options: Options) -> str:
    """Return an identifier, or a UID made of its SHA-256 (PS3.5, B.2); empty if it is unknown."""
    if not id or not options.hash_ids:
        return id or ""
    return f"2.25.{int(sha256(id.encode()).hexdigest()[:32], 16)}"


def shown(file: str, options: Options) -> str:
    return "a file" if options.hash_ids else file


def title(series: Series, options: Options) -> str:
    name = "" if options.hash_ids else series.description
    return f"{name or 'CT'} …{named(series.uid, options)[-8:]}"
