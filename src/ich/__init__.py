"""RSNA Intracranial Hemorrhage Detection: from DICOM to a submission."""
