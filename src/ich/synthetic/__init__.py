"""Phantom head CT scans as RSNA-style DICOM: what the tests and the demo read in place of the competition's images.

`head` has the anatomy, `bleeds` the five kinds of bleeding, `plan` who is scanned and how, `dicom_file` the pixel
formats and the tags, `archive` the rendered slices and the zip.
"""

from ich.synthetic.archive import (
    FOLDER,
    PhantomSlice,
    Summary,
    phantom_series,
    render_series,
    series_labels,
    write_archive,
)
from ich.synthetic.bleeds import VISIBLE_AREA, VISIBLE_CONTRAST, Bleed
from ich.synthetic.dicom_file import COMMON_FORMATS, RARE_FORMATS, PixelFormat, to_dicom
from ich.synthetic.plan import ODDITIES, SeriesPlan, SlicePlan, draw_plan

__all__ = [
    "COMMON_FORMATS",
    "FOLDER",
    "ODDITIES",
    "RARE_FORMATS",
    "VISIBLE_AREA",
    "VISIBLE_CONTRAST",
    "Bleed",
    "PhantomSlice",
    "PixelFormat",
    "SeriesPlan",
    "SlicePlan",
    "Summary",
    "draw_plan",
    "phantom_series",
    "render_series",
    "series_labels",
    "to_dicom",
    "write_archive",
]
