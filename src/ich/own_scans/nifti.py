"""NIfTI volumes: the axial slices of one file, read by nibabel, which is an extra.

The format has no identifiers and no word for Hounsfield units: a volume is taken for a CT by its values.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ich.dicom.bits import AIR
from ich.dicom.slice_error import DicomError
from ich.errors import one_line
from ich.own_scans.header import Facts

_GZIP = b"\x1f\x8b"
_MAX_BYTES = 2**31  # of a volume; 600 slices of 512² in 16 bits have a seventh of it
_LOWEST, _HIGHEST = -(2**15), 2**15 - 1  # HU of 16 bits; padding of -3024 and less, and metal, occur
_AIR, _SOFT, _BONE = -700, (-100, 100), 200  # HU: at most, from and to, at least
_SHARE = 0.01  # of the pixels of a head CT that are air, and soft tissue: far less than there are
_LOOKED_AT = 9  # slices, evenly over the volume
_ISOTROPIC = 2.0  # times as far apart within the slices as along them: then they were scanned in another plane


class NoVolume(Exception):
    """A NIfTI file that is not read.

    Args:
        reason: a word of `ich.own_scans.reasons.REASONS`.
        detail: a sentence with what was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def looks_like_nifti(head: bytes) -> bool:
    """Whether bytes begin as a NIfTI file in one piece does, of version 1 or 2, compressed or not."""
    if head[:2] == _GZIP:
        try:
            head = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, 400)
        except zlib.error:
            return False
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


@dataclass(frozen=True)
class Geometry:
    """Of the axial slices of a volume."""

    z: tuple[float, ...]  # mm along the normal of the slices, ascending: from the feet to the head
    orientation: tuple[float, ...]  # as ImageOrientationPatient
    pixel_spacing: tuple[float, float]  # mm between rows, between columns
    rows: int
    columns: int
    thickness: float  # mm, the size of a voxel along the normal


class Volume:
    """A volume, whose axial slices are read one by one.

    Args:
        data: the file's bytes.

    Raises:
        NoVolume: it is no axial volume, or nibabel is not there.
    """

    def __init__(self, data: bytes) -> None:
        try:
            import nibabel
        except ImportError as error:
            raise NoVolume("no_nibabel", "NIfTI needs the package nibabel: pip install nibabel") from error
        try:
            image = _image(nibabel, data)
            shape = image.shape
        except Exception as error:  # nibabel meets damaged bytes with whatever its parser tripped over
            detail = f"nibabel cannot read it ({one_line(error, named=True)})"
            raise NoVolume("damaged", detail) from error
        if len(shape) < 3 or any(side != 1 for side in shape[3:]) or 0 in shape or image.get_data_dtype().names:
            raise NoVolume("unsupported", f"the shape is {shape}, expected one gray volume")
        if not (image.header["sform_code"] or image.header["qform_code"]):
            raise NoVolume("no_orientation", "sform_code and qform_code are 0, so that left may be right")
        # Axes of the array for those of the patient, to the right, to the front and up; and their signs.
        self._axes = nibabel.io_orientation(image.affine)
        if np.isnan(self._axes).any():
            raise NoVolume("damaged", "the affine leads nowhere along one axis")
        self._data: Any = image.dataobj
        self.geometry = self._place(image.affine, shape)

    def read(self, number: int) -> np.ndarray:
        """The HU of an axial slice, int16, anterior at the top and the patient's right on the left.

        Args:
            number: of the slice, from 0, from the feet to the head.

        Raises:
            DicomError: its data are damaged, or beyond 16 bits of HU.
        """
        try:
            hu = self._slice(number)
        except Exception as error:  # nibabel meets damaged bytes with whatever its parser tripped over
            raise DicomError("bad_pixels", f"the slice cannot be had ({one_line(error, named=True)})") from error
        if not np.isfinite(hu).all():
            raise DicomError("bad_pixels", "values that are no numbers, expected HU")
        return np.clip(np.rint(hu), AIR, _HIGHEST).astype(np.int16)

    def _slice(self, number: int) -> np.ndarray:
        axes, signs = self._axes[:, 0].astype(int), self._axes[:, 1]
        along = int(np.flatnonzero(axes == 2)[0])
        place = number if signs[along] > 0 else self._data.shape[along] - 1 - number
        index: list = [slice(None)] * 3 + [0] * (self._data.ndim - 3)
        index[along] = place
        hu = np.asarray(self._data[tuple(index)], np.float64)
        in_plane = [axis for axis in range(3) if axis != along]
        # Rows run to the back and columns to the left, against the axes of NIfTI.
        if axes[in_plane[0]] == 0:
            hu = hu.T
        right, front = (signs[np.flatnonzero(axes == axis)[0]] for axis in (0, 1))
        return hu[:: -1 if front > 0 else 1, :: -1 if right > 0 else 1]

    def _place(self, affine: np.ndarray, shape: tuple[int, ...]) -> Geometry:
        axes, signs = self._axes[:, 0].astype(int), self._axes[:, 1]
        of_patient = [int(np.flatnonzero(axes == axis)[0]) for axis in range(3)]
        right, front, up = (affine[:3, axis] * signs[axis] for axis in of_patient)
        sizes = [shape[axis] for axis in of_patient]
        spacing = [float(np.linalg.norm(axis)) for axis in (right, front, up)]
        if max(spacing[:2]) > _ISOTROPIC * spacing[2]:
            spacings = f"{spacing[0]:.2f} × {spacing[1]:.2f} mm within axial slices, {spacing[2]:.2f} mm between them"
            raise NoVolume("other_plane", f"{spacings}: a scan of another plane")
        along = of_patient[2]
        first = affine[:3, 3] + affine[:3, along] * ((shape[along] - 1) * (signs[along] < 0))
        # From NIfTI's directions, right, front and up, to DICOM's, left, back and up (PS3.3, C.7.6.2.1.1).
        to_dicom = np.array([-1.0, -1.0, 1.0])
        rows, columns = -right * to_dicom / spacing[0], -front * to_dicom / spacing[1]
        normal = np.cross(rows, columns)
        normal /= np.linalg.norm(normal)
        start, step = float(normal @ (first * to_dicom)), float(normal @ (up * to_dicom))
        return Geometry(
            z=tuple(start + step * number for number in range(sizes[2])),
            orientation=tuple(float(cosine) for cosine in (*rows, *columns)),
            pixel_spacing=(spacing[1], spacing[0]),
            rows=sizes[1],
            columns=sizes[0],
            thickness=spacing[2],
        )

    def check(self) -> None:
        """Look at some slices.

        Raises:
            NoVolume: their values are no HU of a head.
        """
        count = len(self.geometry.z)
        low, high, air, soft, pixels = np.inf, -np.inf, 0, 0, 0
        for number in sorted(set(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int).tolist())):
            try:
                hu = self._slice(number)
            except Exception as error:  # nibabel meets damaged bytes with whatever its parser tripped over
                detail = f"slice {number + 1} cannot be had ({one_line(error, named=True)})"
                raise NoVolume("damaged", detail) from error
            if not np.isfinite(hu).all():
                raise NoVolume("not_hu", "the values are not all finite numbers")
            low, high = min(low, float(hu.min())), max(high, float(hu.max()))
            air += int(np.count_nonzero(hu <= _AIR))
            soft += int(np.count_nonzero((hu >= _SOFT[0]) & (hu <= _SOFT[1])))
            pixels += hu.size
        if low < _LOWEST or not _BONE <= high <= _HIGHEST or min(air, soft) < _SHARE * pixels:
            detail = (
                f"values from {low:g} to {high:g}, by which {air / pixels:.0%} are air and {soft / pixels:.0%} soft"
            )
            raise NoVolume("not_hu", f"{detail} tissue: no CT in HU but a mask, a windowed image or another unit")


def slices_of(data: bytes, name: str) -> Iterator[Facts]:
    """What each axial slice of a volume says of itself; of a volume that is not read, one that says why.

    Args:
        data: the file's bytes.
        name: what stands for the SeriesInstanceUID, which the format does not have.
    """
    try:
        volume = Volume(data)
        volume.check()
    except NoVolume as error:
        damaged = error.reason == "damaged"
        kind, why, fault = ("", "", error.detail) if damaged else (error.reason, error.detail, "")
        yield Facts(series=name, kind=kind, why=why, fault=fault)
        return
    place = volume.geometry
    normal = np.cross(place.orientation[:3], place.orientation[3:])
    for number, z in enumerate(place.z):
        yield Facts(
            uid=f"{name}.{number + 1}",
            series=name,
            number=float(number + 1),
            frame=number,
            thickness=place.thickness,
            position=tuple((normal * z).tolist()),  # a point of the slice's plane
            orientation=place.orientation,
            pixel_spacing=place.pixel_spacing,
            rows=place.rows,
            columns=place.columns,
        )


def _image(nibabel: Any, data: bytes) -> Any:
    if data[:2] == _GZIP:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it inflates to more than {_MAX_BYTES:,} bytes")
    of_version = nibabel.Nifti2Image if data[4:8] == b"n+2\0" else nibabel.Nifti1Image
    return of_version.from_bytes(data)
