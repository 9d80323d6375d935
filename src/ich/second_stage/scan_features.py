"""What a second stage is told of each slice of a scan: inputs of the network and of the boosting, and augmentation."""

import numpy as np

from ich.competition.labels import LABELS
from ich.second_stage.scans import Scans, batches, padded

SQUASH = 6.0
"""Logits of this size are squashed by a quarter; ten times as large ones are hardly told from each other."""

_ANY = LABELS.index("any")
# mm of a usual step between slices: gaps are told as multiples of it, at most four.
_STEP = 5.0


def places(z: np.ndarray) -> np.ndarray:
    """Where each slice of one scan lies in it.

    Args:
        z: mm, (n,), ascending or descending; NaN for a slice alone.

    Returns:
        float32, (n, 4): the gaps to the slice before and after, in steps of 5 mm, at most 4, 0 at the ends; the
        relative position, -1 to 1, 0 in the middle; the logarithm of the scan's length, 0 for 32 slices.
    """
    n = len(z)
    gaps = np.zeros(n + 1)
    gaps[1:-1] = np.abs(np.diff(z)) / _STEP
    position = (2 * np.arange(n) + 1) / n - 1
    columns = np.stack([gaps[:-1], gaps[1:], position, np.full(n, np.log(n / 32))], axis=1)
    columns[:, :2] = columns[:, :2].clip(0, 4)
    return columns.astype(np.float32)


def slice_inputs(logits: np.ndarray, z: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """What a network is told of each slice of one scan.

    Logits are squashed to ±1, so that a first stage which is sure of a mistake does not outshout its neighbours; and
    told once more by their inverse hyperbolic sine, a logarithm with a sign, which keeps the ratios of large ones: how
    far within a bleed a slice is shows in its share of the bleed's highest.

    Args:
        logits: (n, 6). z: (n,). embeddings: (n, e).

    Returns:
        float32, (n, 42 + 3 e): tanh(logits / `SQUASH`), asinh(logits) / 2, the differences of both to the slice before
        and after (0 at the ends), the places and whether it is the first and the last slice, the embedding and its two
        differences.
    """
    n = len(z)
    ends = np.zeros((n, 2), np.float32)
    ends[0, 0] = ends[-1, 1] = 1
    scores = np.concatenate([np.tanh(logits / SQUASH), np.arcsinh(logits) / 2], axis=1)
    columns = [*_with_differences(scores), places(z), ends, *_with_differences(embeddings)]
    return np.concatenate(columns, axis=1).astype(np.float32)


def embedding_scale(embeddings: np.ndarray, rows: int = 2**14) -> tuple[np.ndarray, np.ndarray]:
    """What brings embeddings to a mean of 0 and a variance of 1.

    A unit that hardly ever speaks is not raised to the others' height: of a patient not seen, it might shout.

    Args:
        embeddings: float16, (n, e), e at least 1; may be mapped from a file.
        rows: that are looked at at once.

    Returns:
        Means and variances, float64, (e,); no variance is below a ten-thousandth of the largest.
    """
    total, squares = np.zeros(embeddings.shape[1]), np.zeros(embeddings.shape[1])
    for start in range(0, len(embeddings), rows):
        # About the first row: sums of squares of what lies far from 0 would lose the digits.
        some = embeddings[start : start + rows].astype(np.float64) - embeddings[0].astype(np.float64)
        total += some.sum(axis=0)
        squares += (some**2).sum(axis=0)
    mean = total / len(embeddings)
    variance = np.maximum(squares / len(embeddings) - mean**2, 0)
    return mean + embeddings[0], np.maximum(variance, 1e-4 * variance.max()) if variance.any() else np.ones_like(mean)


def _with_differences(values: np.ndarray) -> list[np.ndarray]:
    values = values.astype(np.float32)
    steps = np.diff(values, axis=0)
    return [values, np.pad(steps, ((1, 0), (0, 0))), np.pad(steps, ((0, 1), (0, 0)))]


def drawn_rows(n: int, window: int, rng: np.random.Generator) -> np.ndarray:
    """Some slices of a scan of n, in order or in reversed order: a sample to train on.

    One scan in ten keeps every other slice, two in ten lose a tenth of their slices, three in ten are cut to a window
    of half their length or more; half of all are reversed. None is longer than `window`.

    Returns:
        int64, from 1 to `window` places.
    """
    rows = np.arange(n)
    kind = rng.random()
    if kind < 0.1 and n >= 16:
        rows = rows[rng.integers(2) :: 2]
    elif kind < 0.3:
        keep = rng.random(n) >= 0.1
        keep[rng.integers(n)] = True
        rows = rows[keep]
    length = len(rows)
    if rng.random() < 0.3:
        length = int(rng.integers((length + 1) // 2, length + 1))
    length = min(length, window)
    start = rng.integers(len(rows) - length + 1)
    rows = rows[start : start + length]
    return rows[::-1] if rng.random() < 0.5 else rows


def drawn_kinds(share: float, rng: np.random.Generator) -> np.ndarray:
    """The labels in their order, or, of this share of samples, the five kinds of bleeding in any.

    How a bleed runs through slices, and how a classifier errs there, is much alike for all kinds: so each learns from
    the others' scans. `any` stays in its place.
    """
    kinds = np.arange(len(LABELS))
    if rng.random() < share:
        kinds[:_ANY] = rng.permutation(_ANY)
    return kinds


def noisy(logits: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Logits of one scan with three normal errors of this deviation: of the scan, of a label in it, of each value."""
    shapes = ((1, 1), (1, logits.shape[1]), logits.shape)
    return logits + sum(rng.normal(0, scale, shape) for shape in shapes).astype(np.float32)


def neighbour_features(scans: Scans, reach: int) -> np.ndarray:
    """What a classifier without a memory is told of a slice and one label, from the whole scan.

    Of the label, of `any` and of the strongest other label: the logits of the neighbours (the label's to ±reach, the
    others' to half of that) and the mean, maximum, minimum and deviation over the scan. Of the label alone: its median,
    the sum of its probabilities, its maximum and exponential mean up to here and from here. Of the slice: the other
    labels' logits by size, and its place in the scan.

    Returns:
        float32, (n, 6, features), NaN for neighbours beyond the ends.
    """
    out = None
    for which in batches(scans, 256):
        pieces = [slice(scans.starts[i], scans.starts[i + 1]) for i in which]
        values = _label_features(padded([scans.logits[p] for p in pieces], scans.lengths[which].max(), np.nan), reach)
        if out is None:
            out = np.empty((len(scans.ids), len(LABELS), values.shape[-1] + 5), np.float32)
        for row, piece in zip(values, pieces, strict=True):
            n = piece.stop - piece.start
            ends = np.minimum(np.arange(n), np.arange(n)[::-1])
            out[piece, :, :-5] = row[:n]
            out[piece, :, -5:] = np.column_stack([places(scans.z[piece]), ends])[:, None]
    return out


def _label_features(logits: np.ndarray, reach: int) -> np.ndarray:
    """The features of padded scans, without places: (scans, length, 6) to (scans, length, 6, features)."""
    others = np.stack([np.delete(logits[..., :_ANY], k, axis=-1) for k in range(_ANY)], axis=2)
    # Of `any`, the others are the four strongest of the five that it is made of.
    ranked = np.sort(np.concatenate([others, np.sort(logits[..., None, :_ANY], axis=-1)[..., 1:]], axis=2), axis=-1)
    kinds = [logits, np.repeat(logits[..., _ANY:], len(LABELS), axis=-1), ranked[..., -1].copy()]
    kinds[2][..., _ANY] = logits[..., :_ANY].max(axis=-1)
    columns = [shifted(kind, k) for kind, far in zip(kinds, (reach, reach // 2, reach // 2), strict=True)
               for k in range(-far, far + 1)]  # fmt: skip
    for kind in kinds:
        columns += [np.broadcast_to(f(kind, axis=1, keepdims=True), kind.shape) for f in
                    (np.nanmean, np.nanmax, np.nanmin, np.nanstd)]  # fmt: skip
    columns.append(np.broadcast_to(np.nanmedian(logits, axis=1, keepdims=True), logits.shape))
    columns.append(np.broadcast_to(np.nansum(1 / (1 + np.exp(-logits)), axis=1, keepdims=True), logits.shape))
    for flip in (slice(None), slice(None, None, -1)):
        columns.append(np.fmax.accumulate(logits[:, flip], axis=1)[:, flip])
        columns.append(_exponential_mean(logits[:, flip])[:, flip])
    return np.concatenate([np.stack(columns, axis=-1), ranked], axis=-1).astype(np.float32)


def shifted(values: np.ndarray, k: int) -> np.ndarray:
    """What lies k slices farther on, NaN beyond the ends; (scans, length, ...)."""
    out = np.full_like(values, np.nan)
    length = values.shape[1]
    if abs(k) < length:
        out[:, max(0, -k) : length - max(0, k)] = values[:, max(0, k) : length + min(0, k)]
    return out


def _exponential_mean(values: np.ndarray, alpha: float = 0.4) -> np.ndarray:
    """The mean of this slice and those before, each weighing 1 - alpha of the one after it."""
    total, weight = np.zeros_like(values[:, 0]), np.zeros_like(values[:, 0])
    out = np.empty_like(values)
    for k in range(values.shape[1]):
        known = ~np.isnan(values[:, k])
        total = (1 - alpha) * total + np.where(known, values[:, k], 0)
        weight = (1 - alpha) * weight + known
        out[:, k] = np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)
    return out
