"""Batches of images and labels for Keras; read `generator` first."""

from ich.data.generator import DataGenerator

__all__ = ["DataGenerator"]
