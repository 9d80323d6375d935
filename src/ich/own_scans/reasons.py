"""Why a series is skipped or has failed, and why a file belongs to no series: words and what they mean."""

REASONS: dict[str, str] = {
    # A series that is skipped.
    "localizer": "a localizer (scout): a projection of the patient and no slice",
    "other_plane": "slices of another plane: their normal is more than 45° off the axis of the patient",
    "other_modality": "images of another modality than CT",
    "no_image": "no images but a report, a presentation, a plan, a document or the like",
    "secondary_capture": "screen saves or scanned pages, whose values are no Hounsfield units",
    "not_hu": "the values are another quantity than Hounsfield units",
    "derived": "a map or a projection that was computed of slices, such as a perfusion map or a MIP",
    "too_few": "fewer than five slices; read if all series are asked for",
    "dynamic": "more than four scans of one place in one series, such as a perfusion study; read if all are asked for",
    "sharper_kernel": "a series of the same slices has a softer kernel and is read instead, unless all are asked for",
    "unsupported": "images that this project has no reading for, such as color",
    "no_nibabel": "NIfTI files are read by nibabel: pip install nibabel",
    "no_orientation": "a NIfTI file that does not tell which side is left",
    # A series that has failed.
    "conflict": "two different slices have one SOPInstanceUID, so that which one is meant is unknown",
    "not_predicted": "its slices could not be predicted",
    "damaged": "no file of the series can be read",
    # A file of no series.
    "hidden": "a hidden file, or one in a hidden folder",
    "empty": "an empty file, or a zip without files",
    "special": "a pipe, a socket or a device, which holds nothing",
    "not_dicom": "neither DICOM nor NIfTI",
    "unreadable": "no access to the file or folder, a link to nothing, or packed in a zip in a way that is not read",
    "damaged_zip": "a zip that is damaged",
    "nested_zip": "a zip within a zip; unpack the outer one",
    "dicomdir": "a DICOMDIR: a list of the files beside it, which are read themselves",
    "no_identity": "a damaged DICOM file, or one that names no series",
}
"""By the word that `Series.reason` and `Found.others` have."""
