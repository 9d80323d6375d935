"""Phantom head CT scans as RSNA-style DICOM, for tests and the demo in place of the competition's images.

Read `plan` first: who is scanned and how; then `head` and `tissue` (the anatomy), `bleeds` (the five subtypes),
`mimics` and `artifacts` (what makes a scan hard to read), `dicom_file` (tags and pixels) and `archive` (rendered slices
and the zip).
"""
