"""What the bits of a stored pixel mean: sign, padding, overlays, and what stands above BitsStored.

Section numbers are those of the DICOM standard, PS3.3 (objects) and PS3.5 (encoding).
"""

import numpy as np

from ich.errors import IchError

AIR = -1024
"""HU; the lowest that CT means. Scanners pad outside the field of view with -2000 and less: read as air."""

METAL = 3000
"""HU; above all tissue."""

_SHARE = 0.01  # of the pixels; far fewer of a head CT are above `METAL`, and where there is padding, more are
_PADDING = -2000  # HU; scanners pad outside the field of view with this and less
_HIGHEST = 2**15 - 1  # HU of 16 bits
_LOWEST = -(2**15)  # of the numbers that scanners pad with: they write them in 16 bits
_SURE = 4  # times as many pixels that say one thing as say the other


def fit(words: np.ndarray, bits: int) -> bool:
    """Whether each word is a number that so many bits hold, so that nothing stands above them but copies of the sign.

    Args:
        words: integers, signed or not as PixelRepresentation says.
    """
    if bits == words.itemsize * 8 or words.size == 0:
        return True
    if words.dtype.kind == "u":
        return int(words.max()) < 2**bits
    return int(words.min()) >= -(2 ** (bits - 1)) and int(words.max()) < 2 ** (bits - 1)


def shifted(words: np.ndarray, by: int, overlaid: bool) -> np.ndarray:
    """Words without the bits below the pixel's lowest one, HighBit - BitsStored + 1 of them (PS3.5, 8.1.1).

    Raises:
        IchError: they are not 0, and no overlay stands there: then HighBit, or BitsStored, is not what was written.
    """
    if not overlaid and (words & (2**by - 1)).any():
        raise IchError(
            f"HighBit says that the lowest {by} bits of each stored value are unused, but they are not 0; expected"
            " HighBit = BitsStored - 1, or values that end in so many zeros"
        )
    return words >> by


def unnamed_padding(words: np.ndarray, scale: tuple[float, float]) -> np.ndarray | None:
    """Find padding that the header does not name in unsigned words of 16 stored bits.

    Scanners pad with one or two numbers of -2000 HU and less. Read without a sign they are beyond 16 bits of HU, which
    nothing else in a CT is.

    Args:
        words: integers, signed or not as PixelRepresentation says.
        scale: RescaleSlope and RescaleIntercept.

    Returns:
        bool, where there is padding; None for nowhere.
    """
    if words.dtype.kind == "i" or words.size == 0 or int(words.max()) * scale[0] + scale[1] <= _HIGHEST:
        return None
    wide = words.astype(np.int64)
    hu, hu_of_number = (values * scale[0] + scale[1] for values in (wide, wide - 2**16))
    padding = (wide >= 2**15) & (hu > _HIGHEST) & (hu_of_number <= _PADDING)
    return padding if 1 <= len(np.unique(wide[padding])) <= 2 else None


def stored_values(
    words: np.ndarray,
    bits: int,
    *,
    used: int,
    scale: tuple[float, float],
    overlaid: bool = False,
    padding: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Decide what the words of an image mean whose bits above BitsStored hold more than copies of the sign, or 0.

    The standard leaves those bits open (PS3.5, 8.1.1; older editions put overlays there). In this order:

    1. Padding that the header names (C.7.5.1.1.2) is air, where it does not fit the stored bits or lies above `METAL`.
       Between them it cannot be told from tissue and is left as it is.
    2. Of an image with overlays in unused bits, the stored bits count.
    3. Padding that the header does not name is air: one number of -2000 HU or less, written in 16 bits, in more than
       1 % of the pixels.
    4. Signed, and negative values carry their sign through the unused bits: the values beyond the stored bits mean what
       they say (metal above 12 bits), if they are a quarter as many at most, or if without those bits they would be
       below air.
    5. Signed, and the unused bits of these values are 0, or are chance: the stored bits count ("sign", "high_bits"), if
       fewer values carry their sign, or if by the stored bits none would be below air.
    6. Unsigned, and the unused bits are chance: the stored bits count ("high_bits").

    Bits are chance if they are not all the same, not all copies of a sign, and what the words say with them is no CT:
    more than 1 % of the pixels far below air or above `METAL`.

    Args:
        words: integers of any shape, signed or not as PixelRepresentation says.
        bits: BitsStored, 16 at most.
        used: bits of a word that are in the file, BitsAllocated less those that `shifted` took away.
        scale: RescaleSlope and RescaleIntercept.
        overlaid: an overlay stands in unused bits.
        padding: the lowest and the highest value that are padding.

    Returns:
        (values, air, repaired): int16 or uint16 as PixelRepresentation says; bool, where the pixel is air whatever its
        value, which is 0 there; and what was mended.

    Raises:
        IchError: nothing tells what the bits mean.
    """
    signed = words.dtype.kind == "i"
    wide = words.astype(np.int64)
    field = wide & (2**bits - 1)
    if signed:
        field -= (field >> (bits - 1)) << bits
    beyond = wide != field
    # Unsigned words as the numbers that they would be with a sign: padding is negative.
    number = wide if signed else wide - ((wide >> (used - 1)) << used)
    hu, hu_of_number = (values * scale[0] + scale[1] for values in (wide, number))

    air = np.zeros(words.shape, bool)
    if padding is not None:
        air = (wide >= padding[0]) & (wide <= padding[1]) & (beyond | (hu > METAL))
        beyond &= ~air
    if overlaid:
        return _typed(field, air, signed), air, ()
    low = beyond & (number < 0) & (number >= _LOWEST) & (hu_of_number <= _PADDING)
    if np.count_nonzero(low) > _SHARE * words.size and np.ptp(number[low]) == 0:
        air |= low
        beyond &= ~low
    count = np.count_nonzero(beyond)
    if not count:
        return _typed(field, air, signed), air, ()

    above = wide[beyond] >> bits
    ones = -1 if signed else 2 ** (used - bits) - 1
    no_ct = np.count_nonzero((hu[beyond] > METAL) | (hu[beyond] < _PADDING)) > _SHARE * words.size
    chance = np.ptp(above) > 0 and ((above != 0) & (above != ones)).any() and no_ct
    zero = not above.any()
    decided = chance
    if signed:
        carried = np.count_nonzero(~beyond & ~air & (field < 0) & (hu > _PADDING))
        would_be = field[beyond] * scale[0] + scale[1]
        metal = carried >= _SURE * count or (carried and zero and (would_be < AIR).all())
        if metal and wide[beyond].min() >= _LOWEST and wide[beyond].max() < 2**15:
            return _typed(wide, air, signed), air, ()
        decided = ((zero or chance) and carried < count) or (zero and (would_be >= AIR).all())
    if not decided:
        raise IchError(
            f"stored values from {wide.min()} to {wide.max()}, more than {bits} bits hold, and nothing tells whether"
            " BitsStored is wrong or the bits above are to be left out"
        )
    return _typed(field, air, signed), air, ("sign" if zero else "high_bits",)


def _typed(values: np.ndarray, air: np.ndarray, signed: bool) -> np.ndarray:
    return np.where(air, 0, values).astype(np.int16 if signed else np.uint16)
