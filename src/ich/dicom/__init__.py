"""One DICOM file, from bytes to Hounsfield units; read `reader` first."""
