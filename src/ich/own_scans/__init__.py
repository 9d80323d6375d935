"""Anybody's scans: which series a folder, zip or file holds, which of them are read, and why; begin with find.py."""
