"""Phantom head CT scans as RSNA-style DICOM, for tests and the demo in place of the competition's images.

Read `plan` first: who is scanned and how; then `head` and `tissue` (the anatomy), `bleeds` (the five subtypes), `dicom_file` (pixel
formats and tags) and `archive` (rendered slices and the zip).
"""
