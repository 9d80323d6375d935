"""A run in an offline Kaggle notebook; read `packing` first."""
