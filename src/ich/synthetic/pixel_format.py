"""How HU are stored as pixels: the formats of the competition's files."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """A storage format of HU; `wrapped` stores HU modulo 4096, as some of the archive's files do by accident."""

    bits_stored: int = 12
    signed: bool = False
    intercept: int = -1024
    wrapped: bool = False

    @property
    def name(self) -> str:
        if self.wrapped:
            return "wrapped"
        return f"{'signed' if self.signed else 'unsigned'} {self.bits_stored}-bit, {self.intercept}"

    @property
    def hu_range(self) -> tuple[int, int]:
        """The lowest and highest HU that the format holds."""
        if self.wrapped:
            return -1000, 3095
        lowest = -(2 ** (self.bits_stored - 1)) if self.signed else 0
        low, high = lowest + self.intercept, lowest + 2**self.bits_stored - 1 + self.intercept
        return max(low, -32768), min(high, 32767)

    def store(self, hu: np.ndarray) -> np.ndarray:
        """Convert HU, int16, to stored values, uint16 or int16 of the same shape; clips to `hu_range`."""
        clipped = np.clip(hu.astype(np.int32), *self.hu_range)
        stored = clipped % 4096 if self.wrapped else clipped - self.intercept
        return stored.astype(np.int16 if self.signed else np.uint16)


COMMON_FORMATS = (PixelFormat(), PixelFormat(16, True, -1024))
RARE_FORMATS = (PixelFormat(12, False, -1000), PixelFormat(12, True, 0), PixelFormat(16, True, 0))
