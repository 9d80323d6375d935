"""Features of each slice for the network and the boosting, and augmentation of scans."""

import numpy as np

from ich.competition.labels import ANY, LABELS
from ich.second_stage.scans import Scans, batches, padded

SQUASH = 6.0
"""Scale of the tanh that squashes logits: 6 becomes 4.6; logits ten times as large are hardly distinguishable."""

_STEP = 5.0  # mm between slices in a usual scan, the unit of gaps


def places(z: np.ndarray) -> np.ndarray:
    """Compute the position features of each slice of one scan.

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
    """Compute the network's inputs for each slice of one scan.

    Logits enter twice: squashed to ±1, so that a confident mistake of the first stage does not dominate its neighbors;
    and as their inverse hyperbolic sine, a signed logarithm, which keeps the ratios of large ones: how deep within a
    bleed a slice lies shows in its logit relative to the bleed's highest.

    Args:
        logits: (n, 6). z: (n,). embeddings: (n, e).

    Returns:
        float32, (n, 42 + 3 e): tanh(logits / `SQUASH`), asinh(logits) / 2, the differences of both to the slice before
        and after (0 at the ends), the places and whether it is the first and the last slice, the embedding and its two
        differences.
    """
    n, e = len(z), embeddings.shape[1]
    out = np.zeros((n, 42 + 3 * e), np.float32)
    np.tanh(logits / SQUASH, out=out[:, :6], casting="same_kind")
    np.arcsinh(logits, out=out[:, 6:12], casting="same_kind")
    out[:, 6:12] /= 2
    _add_differences(out[:, :36])
    out[:, 36:40] = places(z)
    out[0, 40] = out[-1, 41] = 1  # the ends
    out[:, 42 : 42 + e] = embeddings
    _add_differences(out[:, 42:])
    return out


def embedding_scale(embeddings: np.ndarray, rows: int = 2**14) -> tuple[np.ndarray, np.ndarray]:
    """Compute means and variances that standardize embeddings.

    Floor the variance of near-constant features: scaled up, they could dominate on an unseen patient.

    Args:
        embeddings: float16, (n, e), e at least 1; may be mapped from a file.
        rows: number read at once.

    Returns:
        Means and variances, float64, (e,); no variance is below a ten-thousandth of the largest.
    """
    total, squares = np.zeros(embeddings.shape[1]), np.zeros(embeddings.shape[1])
    for start in range(0, len(embeddings), rows):
        # Relative to the first row: sums of squares of values far from 0 would lose digits.
        chunk = embeddings[start : start + rows].astype(np.float64) - embeddings[0].astype(np.float64)
        total += chunk.sum(axis=0)
        squares += (chunk**2).sum(axis=0)
    mean = total / len(embeddings)
    variance = np.maximum(squares / len(embeddings) - mean**2, 0)
    return mean + embeddings[0], np.maximum(variance, 1e-4 * variance.max()) if variance.any() else np.ones_like(mean)


def _add_differences(columns: np.ndarray) -> None:
    """Fill the second and third third of the columns with the first's differences to the slice before and after."""
    width = columns.shape[1] // 3
    values, before, after = columns[:, :width], columns[:, width : 2 * width], columns[:, 2 * width :]
    np.subtract(values[1:], values[:-1], out=before[1:])
    after[:-1] = before[1:]


def drawn_rows(n: int, window: int, rng: np.random.Generator) -> np.ndarray:
    """Draw rows of a scan of n slices, in order or reversed, as a training sample.

    One scan in ten keeps every other slice, two in ten lose a tenth of their slices, three in ten are cropped to
    half their length or more; half of all are reversed. None is longer than `window`.

    Returns:
        int64, 1 to `window` rows.
    """
    rows = np.arange(n)
    case = rng.random()
    if case < 0.1 and n >= 16:
        rows = rows[rng.integers(2) :: 2]
    elif case < 0.3:
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
    """Draw an order of the labels: with probability `share` the five subtypes are permuted, `any` stays last.

    How a bleed extends over slices, and how a classifier errs there, is similar for all subtypes: so each learns from
    the others' scans.
    """
    order = np.arange(len(LABELS))
    if rng.random() < share:
        order[:ANY] = rng.permutation(ANY)
    return order


def noisy(logits: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Add normal noise of this deviation to one scan's logits, thrice: to the scan, to each label, to each value."""
    shapes = ((1, 1), (1, logits.shape[1]), logits.shape)
    of_scan, of_label, of_value = (rng.normal(0, scale, shape) for shape in shapes)
    return logits + (of_scan + of_label + of_value).astype(np.float32)


def neighbor_features(scans: Scans, reach: int) -> np.ndarray:
    """Compute the features of a classifier without memory for each slice and label, from the whole scan.

    Of the label, of `any` and of the strongest other label: the logits of the neighbors (the label's to ±reach, the
    others' to half of that) and the mean, maximum, minimum and deviation over the scan. Of the label alone: its median,
    the sum of its probabilities, its maximum and exponential mean up to here and from here. Of the slice: the other
    labels' logits by size, and its place in the scan.

    Returns:
        float32, (n, 6, features), NaN for neighbors beyond the ends.
    """
    n_features = _label_features(np.zeros((1, 1, len(LABELS)), np.float32), reach).shape[-1] + 5
    features = np.empty((len(scans.ids), len(LABELS), n_features), np.float32)
    for batch in batches(scans, 256):
        rows = [scans.rows(i) for i in batch]
        logits = padded([scans.logits[of_scan] for of_scan in rows], scans.lengths[batch].max(), np.nan)
        for of_scan, values in zip(rows, _label_features(logits, reach), strict=True):
            n = len(of_scan)
            to_end = np.minimum(np.arange(n), np.arange(n)[::-1])
            features[of_scan, :, :-5] = values[:n]
            features[of_scan, :, -5:] = np.column_stack([places(scans.z[of_scan]), to_end])[:, None]
    return features


def _label_features(logits: np.ndarray, reach: int) -> np.ndarray:
    """Compute the features of padded scans but for the places: (scans, length, 6) to (scans, length, 6, features)."""
    others = np.stack([np.delete(logits[..., :ANY], k, axis=-1) for k in range(ANY)], axis=2)
    # For `any`, the others are the four strongest of the five subtypes.
    ranked = np.sort(np.concatenate([others, np.sort(logits[..., None, :ANY], axis=-1)[..., 1:]], axis=2), axis=-1)
    scores = [logits, np.repeat(logits[..., ANY:], len(LABELS), axis=-1), ranked[..., -1].copy()]
    scores[2][..., ANY] = logits[..., :ANY].max(axis=-1)
    columns = [shifted(score, k) for score, far in zip(scores, (reach, reach // 2, reach // 2), strict=True)
               for k in range(-far, far + 1)]  # fmt: skip
    for score in scores:
        columns += [np.broadcast_to(f(score, axis=1, keepdims=True), score.shape) for f in
                    (np.nanmean, np.nanmax, np.nanmin, np.nanstd)]  # fmt: skip
    columns.append(np.broadcast_to(np.nanmedian(logits, axis=1, keepdims=True), logits.shape))
    columns.append(np.broadcast_to(np.nansum(1 / (1 + np.exp(-logits)), axis=1, keepdims=True), logits.shape))
    for flip in (slice(None), slice(None, None, -1)):
        columns.append(np.fmax.accumulate(logits[:, flip], axis=1)[:, flip])
        columns.append(_exponential_mean(logits[:, flip])[:, flip])
    return np.concatenate([np.stack(columns, axis=-1), ranked], axis=-1).astype(np.float32)


def shifted(values: np.ndarray, k: int) -> np.ndarray:
    """Shift values by k slices, NaN beyond the ends; (scans, length, ...)."""
    out = np.full_like(values, np.nan)
    length = values.shape[1]
    if abs(k) < length:
        out[:, max(0, -k) : length - max(0, k)] = values[:, max(0, k) : length + min(0, k)]
    return out


def _exponential_mean(values: np.ndarray, alpha: float = 0.4) -> np.ndarray:
    """Compute the mean of each slice and those before, each weighing 1 - alpha of the one after it."""
    total, weight = np.zeros_like(values[:, 0]), np.zeros_like(values[:, 0])
    out = np.empty_like(values)
    for k in range(values.shape[1]):
        known = ~np.isnan(values[:, k])
        total = (1 - alpha) * total + np.where(known, values[:, k], 0)
        weight = (1 - alpha) * weight + known
        out[:, k] = np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)
    return out
