"""Meaning of the bits of a stored pixel: its sign, padding, overlays, and the unused bits above BitsStored.

Section numbers are those of the DICOM standard, PS3.3 (objects) and PS3.5 (encoding).
"""

from dataclasses import dataclass

import numpy as np

from ich.errors import IchError

AIR = -1024
"""HU; the lowest value a CT slice has. Scanners pad outside the field of view with -2000 and less: read as air."""

METAL = 3000
"""HU; above all tissue."""

_SHARE = 0.01  # of the pixels; far fewer of a head CT are above `METAL`, and padding takes more
_PADDING = -2000  # HU; scanners pad outside the field of view with this and less
_PURE_AIR = -900  # HU; with noise, no pixel of air around the head is above
_HIGHEST = 2**15 - 1  # HU of 16 bits
_LOWEST = -(2**15)  # of the numbers that scanners pad with: they write them in 16 bits
_MANY_TIMES = 4  # as many pixels for one reading as for the other decide between the two
_FEWEST = 8  # pixels, or pairs of them, that can be evidence
_FARTHER = 2  # times as large a mean difference between neighboring pixels is another


def fits(words: np.ndarray, bits: int) -> bool:
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


@dataclass(frozen=True, slots=True)
class _Image:
    """The words of an image in parts; all arrays have the shape of the words."""

    words: np.ndarray  # int64, as PixelRepresentation says
    stored: np.ndarray  # int64, the lowest BitsStored bits, without a sign
    unused: np.ndarray  # int64, the bits above them, without a sign
    air: np.ndarray  # bool, padding found so far
    bits: int  # BitsStored
    used: int  # bits of a word that are in the file
    signed: bool
    scale: tuple[float, float]  # RescaleSlope and RescaleIntercept

    @property
    def with_sign(self) -> np.ndarray:
        """The stored bits as two's complement."""
        return self.stored - ((self.stored >> (self.bits - 1)) << self.bits)

    @property
    def all_ones(self) -> int:
        return 2 ** (self.used - self.bits) - 1

    def hu(self, values: np.ndarray) -> np.ndarray:
        return values * self.scale[0] + self.scale[1]

    def share_outside(self, values: np.ndarray) -> float:
        """The share of the pixels that are no CT: far below air, or above `METAL`."""
        hu = self.hu(values[~self.air])
        return np.count_nonzero((hu > METAL) | (hu < _PADDING)) / values.size


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
    2. Padding that the header does not name is air: one or two numbers of -2000 HU or less, written in 16 bits, each in
       more than 1 % of the pixels, whose stored bits hardly occur below other unused bits.
    3. Of an image with overlays in unused bits, the stored bits count.
    4. Signed, and negative values carry their sign through the unused bits: the values beyond the stored bits count
       in full ("more_bits": metal above 12 bits), if they are a quarter as many at most, or if without those bits they
       would be below air.
    5. Signed, and the unused bits of these values are 0: the writer did not extend the sign. `_has_sign` decides
       whether the stored bits have one ("sign") or none ("unsigned").
    6. The unused bits mean nothing (`_mean_nothing`): the stored bits count ("high_bits").

    Where the unused bits do not tell (3 and 6), the stored bits of a signed image have a sign unless `_has_sign` says
    that they have none ("unsigned").

    Args:
        words: integers of any shape, signed or not as PixelRepresentation says.
        bits: BitsStored, 16 at most.
        used: bits of a word that are in the file, BitsAllocated less those that `shifted` took away.
        scale: RescaleSlope and RescaleIntercept.
        overlaid: an overlay stands in unused bits.
        padding: the lowest and the highest value that are padding.

    Returns:
        (values, air, repaired): int16 or uint16; bool, where the pixel is air whatever its value, which is 0 there;
        and what was mended: empty if the values are those of the stored bits by PixelRepresentation.

    Raises:
        IchError: the pixels do not decide what the bits mean.
    """
    wide = words.astype(np.int64)
    image = _Image(
        words=wide,
        stored=wide & (2**bits - 1),
        unused=(wide >> bits) & (2 ** (used - bits) - 1),
        air=np.zeros(words.shape, bool),
        bits=bits,
        used=used,
        signed=words.dtype.kind == "i",
        scale=scale,
    )
    by_header = image.with_sign if image.signed else image.stored
    beyond = wide != by_header
    if padding is not None:
        image.air[:] = (wide >= padding[0]) & (wide <= padding[1]) & (beyond | (image.hu(wide) > METAL))
    image.air[:] |= _padding_in_unused_bits(image)
    if overlaid:
        return _by_stored_bits(image, ())
    beyond &= ~image.air
    count = np.count_nonzero(beyond)
    if not count:
        return _typed(by_header, image.air, image.signed), image.air, ()

    if image.signed:
        not_extended = not image.unused[beyond].any()
        as_header = image.hu(by_header[beyond])
        negative = ~beyond & ~image.air & (by_header < 0) & (image.hu(wide) > _PADDING)
        extended = 0 if _constant(image) else int(np.count_nonzero(negative))  # bits of all pixels are no sign
        in_full = extended >= _MANY_TIMES * count or (extended and not_extended and (as_header < AIR).all())
        if in_full and wide[beyond].min() >= _LOWEST and wide[beyond].max() <= _HIGHEST:
            return _typed(wide, image.air, signed=True), image.air, ("more_bits",)
        if extended >= count and not (not_extended and (as_header >= AIR).all()):
            raise _undecided(image)
        if not_extended and _has_sign(image, beyond):
            return _typed(by_header, image.air, signed=True), image.air, ("sign",)
        if not_extended and wide.max() <= _HIGHEST:  # negative ones are in 16 bits, as they are padding or extended
            return _typed(wide, image.air, signed=True), image.air, ("unsigned",)
    values, air, repaired = _by_stored_bits(image, ("high_bits",))
    if not _mean_nothing(image, values.astype(np.int64)):
        raise _undecided(image)
    return values, air, repaired


def _undecided(image: _Image) -> IchError:
    return IchError(
        f"stored values from {image.words.min()} to {image.words.max()}, more than {image.bits} bits hold, and nothing"
        " tells whether BitsStored is wrong or the bits above are to be left out"
    )


def _by_stored_bits(image: _Image, repaired: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return `stored_values`'s result where the stored bits count, with a sign or without."""
    if image.signed and _has_sign(image, ~image.air):
        return _typed(image.with_sign, image.air, signed=True), image.air, repaired
    repaired = (*repaired, "unsigned") if image.signed else repaired
    return _typed(image.stored, image.air, signed=False), image.air, repaired


def _has_sign(image: _Image, asked: np.ndarray) -> bool:
    """Tell whether the highest stored bit is a sign in a signed image whose unused bits do not tell.

    Some writers put unsigned 12-bit values with an intercept of -1024 into a field that they call signed: bone above
    1,023 HU then has that bit set. Each pixel with the bit set speaks for the reading that gives HU of a CT: from air
    to `METAL`. Where only negative values can be air, by the intercept, there is a sign.

    Args:
        image: the image, PixelRepresentation 1.
        asked: bool, the pixels that may speak.

    Raises:
        IchError: the pixels do not decide it, or one value is so frequent that it is padding, cut to the stored bits.
    """
    if image.scale[1] > _PURE_AIR:
        return True
    top = image.stored[(image.stored >> (image.bits - 1) == 1) & asked]
    negative, positive = image.hu(top - 2**image.bits), image.hu(top)
    for_sign = np.count_nonzero((negative >= AIR) & (positive > METAL))
    for_none = np.count_nonzero((negative < AIR) & (positive <= METAL))
    if for_sign > _MANY_TIMES * for_none:
        return True
    white = np.count_nonzero(positive > METAL) > _SHARE * image.words.size
    if for_none < _MANY_TIMES * for_sign or white or _outstanding(top, image.words.size).size:
        raise IchError(
            f"PixelRepresentation is 1 (signed), but the bits above the {image.bits} stored ones are no copies of the"
            " sign, and the values do not decide whether the highest stored bit is one: they are above 1,000 HU"
            " without it and below air with it"
        )
    return False


def _outstanding(values: np.ndarray, size: int) -> np.ndarray:
    """Return the values that are far more frequent than those next to them, as no tissue is, among `size` pixels."""
    numbers, counts = np.unique(values, return_counts=True)
    count_of = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    frequent = numbers[(counts > _SHARE * size) & (counts >= _FEWEST)].tolist()
    return np.array(
        [n for n in frequent if count_of[n] >= _MANY_TIMES * (count_of.get(n - 1, 0) + count_of.get(n + 1, 0))]
    )


def _constant(image: _Image) -> bool:
    """Tell whether the unused bits are the same in all pixels, which are more than padding."""
    unused = image.unused[~image.air]
    return unused.size > 0 and int(np.ptp(unused)) == 0 and len(np.unique(image.words[~image.air])) > 2


def _padding_in_unused_bits(image: _Image) -> np.ndarray:
    """Return where padding stands that the header does not name, by its 16 bits (rule 3 of `stored_values`); bool."""
    padding = np.zeros(image.words.shape, bool)
    if _constant(image):
        return padding
    # Unsigned words as the numbers that they would be with a sign: padding is negative.
    number = image.words if image.signed else image.words - ((image.words >> (image.used - 1)) << image.used)
    low = ~image.air & (number < 0) & (number >= _LOWEST) & (image.hu(number) <= _PADDING)
    numbers, counts = np.unique(number[low], return_counts=True)
    frequent = counts > _SHARE * image.words.size
    padding_values = 0
    for value, count in zip(numbers[frequent].tolist(), counts[frequent].tolist(), strict=True):
        same_stored = (image.stored == value & (2**image.bits - 1)) & ~image.air
        same_unused = (image.unused == (value >> image.bits) & image.all_ones) & ~image.air
        other_words, beside = (np.count_nonzero(same) - count for same in (same_stored, same_unused))
        if count >= _MANY_TIMES * other_words and 2 * beside < image.words.size:
            padding |= low & (number == value)
            padding_values += 1
    return padding if padding_values <= 2 else np.zeros_like(padding)


def _mean_nothing(image: _Image, kept: np.ndarray) -> bool:
    """Tell whether the unused bits are no part of the values: chance, one constant, or what is left of an overlay.

    By the words with these bits, more than 1 % of the pixels must be no CT, and far more than without them; or the
    lowest unused bit is never set alone, as it is in values that grow beyond the stored bits. Bits that are the same
    everywhere then mean nothing; but ones everywhere may be the sign of padding, if one value stands out. Other bits
    mean nothing if they are more than copies of one bit, differ from pixel to pixel or have two patterns, and if the
    values without them change where the bits do by no more than some pixels beside, and far less than with them: the
    edge of an overlay is none of the image, that of metal is.

    Args:
        image: the image.
        kept: int64, its values without these bits.
    """
    inside = ~image.air
    outside = image.share_outside(image.words)
    no_ct = outside > _SHARE and _MANY_TIMES * image.share_outside(kept) <= outside
    if _constant(image):
        values = kept[inside & (image.hu(kept) > _PURE_AIR)]
        may_be_padding = int(image.unused[inside][0]) == image.all_ones and _outstanding(values, values.size).size > 0
        return no_ct and not may_be_padding
    patterns, counts = np.unique(image.unused[inside], return_counts=True)
    if np.isin(patterns, (0, image.all_ones)).all() or not (no_ct or 1 not in patterns):
        return False
    if 2 * counts.max() > counts.sum() and len(patterns) > 2:  # no chance, and too many for what is left of an overlay
        return False
    pairs = inside[..., 1:] & inside[..., :-1]
    edges = pairs & (np.diff(image.unused, axis=-1) != 0)
    beside = (np.roll(edges, 3, axis=-1) | np.roll(edges, -3, axis=-1)) & pairs & ~edges
    if np.count_nonzero(edges) < _FEWEST or not beside.any():
        return False
    with_bits, change = (np.abs(np.diff(values, axis=-1)) for values in (image.words, kept))
    as_beside = change[edges].mean() <= _FARTHER * change[beside].mean()
    return bool(as_beside and with_bits[edges].mean() > _FARTHER * change[edges].mean())


def _typed(values: np.ndarray, air: np.ndarray, signed: bool) -> np.ndarray:
    return np.where(air, 0, values).astype(np.int16 if signed else np.uint16)
