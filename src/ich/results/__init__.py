"""Predictions on disk, and what is made of several; read `result_directory` first."""
