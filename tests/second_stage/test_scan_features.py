import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich.competition.labels import LABELS
from ich.second_stage import scan_features, scans

ANY = LABELS.index("any")


def some_scans(lengths=(5, 1, 9, 400), seed=0, embedding=0):
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    return scans.Scans(
        ids=pd.RangeIndex(n),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        z=np.concatenate([np.cumsum(rng.choice([0, 2.5, 5, 40], size)) for size in lengths]).astype(np.float32),
        logits=rng.normal(-2, 4, (n, 6)).clip(-15, 15).astype(np.float32),
        embeddings=rng.normal(size=(n, embedding)).astype(np.float16),
    )


# ------------------------------------------------------------------------------------------------------- places


def test_places_of_a_scan():
    places = scan_features.places(np.array([0, 5, 5, 7.5, 100], np.float32))
    np.testing.assert_allclose(places[:, 0], [0, 1, 0, 0.5, 4])
    np.testing.assert_allclose(places[:, 1], [1, 0, 0.5, 4, 0])
    np.testing.assert_allclose(places[:, 2], [-0.8, -0.4, 0, 0.4, 0.8], atol=1e-6)
    np.testing.assert_allclose(places[:, 3], np.log(5 / 32))


def test_a_slice_alone_has_a_place():
    assert scan_features.places(np.array([np.nan], np.float32)).tolist() == [[0, 0, 0, pytest.approx(np.log(1 / 32))]]


# ------------------------------------------------------------------------------------------- inputs of a network


def test_inputs_are_squashed_logits_places_and_embeddings_with_their_differences():
    scan = some_scans((5,), embedding=2)
    inputs = scan_features.slice_inputs(scan.logits, scan.z, scan.embeddings)
    assert inputs.shape == (5, 42 + 6)
    assert inputs.dtype == np.float32
    np.testing.assert_allclose(inputs[:, :6], np.tanh(scan.logits / 6), rtol=1e-6)
    np.testing.assert_allclose(inputs[:, 6:12], np.arcsinh(scan.logits) / 2, rtol=1e-6)
    np.testing.assert_allclose(inputs[1:, 12:24], np.diff(inputs[:, :12], axis=0), atol=1e-6)
    np.testing.assert_allclose(inputs[:-1, 24:36], np.diff(inputs[:, :12], axis=0), atol=1e-6)
    assert (inputs[0, 12:24] == 0).all()
    assert (inputs[-1, 24:36] == 0).all()
    assert inputs[:, 40].tolist() == [1, 0, 0, 0, 0]
    assert inputs[:, 41].tolist() == [0, 0, 0, 0, 1]
    np.testing.assert_array_equal(inputs[:, 42:44], scan.embeddings)
    np.testing.assert_array_equal(inputs[1:, 44:46], np.diff(scan.embeddings.astype(np.float32), axis=0))


def test_a_scan_read_backwards_has_its_differences_swapped():
    scan = some_scans((7,))
    forwards = scan_features.slice_inputs(scan.logits, scan.z, scan.embeddings)
    backwards = scan_features.slice_inputs(scan.logits[::-1], scan.z[::-1], scan.embeddings[::-1])[::-1]
    np.testing.assert_allclose(backwards[:, 12:24], -forwards[:, 24:36], atol=1e-6)
    np.testing.assert_allclose(backwards[:, 36:38], forwards[:, [37, 36]])
    np.testing.assert_allclose(backwards[:, 38], -forwards[:, 38], atol=1e-6)


# ------------------------------------------------------------------------------------------------- augmentation


@given(st.integers(1, 400), st.integers(1, 60), st.integers(0, 2**20))
def test_drawn_rows_are_slices_of_the_scan_in_one_direction(n, window, seed):
    rows = scan_features.drawn_rows(n, window, np.random.default_rng(seed))
    assert 1 <= len(rows) <= window
    assert rows.min() >= 0
    assert rows.max() < n
    steps = np.diff(rows)
    assert (steps > 0).all() or (steps < 0).all()


def test_every_augmentation_is_drawn():
    kinds = {"whole": 0, "window": 0, "second": 0, "dropped": 0, "reversed": 0}
    for seed in range(400):
        rows = scan_features.drawn_rows(30, 30, np.random.default_rng(seed))
        kinds["reversed"] += rows[0] > rows[-1]
        steps = np.abs(np.diff(rows))
        kinds["whole"] += len(rows) == 30
        kinds["window"] += len(rows) < 30 and (steps == 1).all()
        kinds["second"] += (steps == 2).all()
        kinds["dropped"] += len(set(steps)) > 1
    assert 150 < kinds["reversed"] < 250
    assert all(count > 20 for count in kinds.values()), kinds


def test_kinds_change_places_in_a_share_of_samples():
    rng = np.random.default_rng(0)
    drawn = [scan_features.drawn_kinds(0.5, rng) for _ in range(400)]
    assert all(sorted(kinds) == list(range(6)) and kinds[ANY] == ANY for kinds in drawn)
    moved = sum((kinds != np.arange(6)).any() for kinds in drawn)
    assert 150 < moved < 250
    assert all((scan_features.drawn_kinds(0.0, rng) == np.arange(6)).all() for _ in range(20))


def test_noise_has_errors_of_the_scan_the_label_and_the_slice():
    rng = np.random.default_rng(0)
    noise = np.stack([scan_features.noisy(np.zeros((50, 6), np.float32), 0.5, rng) for _ in range(400)])
    assert noise.dtype == np.float32
    assert noise.std() == pytest.approx(0.5 * 3**0.5, rel=0.05)
    assert noise.mean(axis=1).std() == pytest.approx(0.5 * 2**0.5, rel=0.05)
    assert noise.mean(axis=(1, 2)).std() == pytest.approx(0.5 * (1 + 1 / 6) ** 0.5, rel=0.1)
    np.testing.assert_array_equal(scan_features.noisy(noise[0], 0.0, rng), noise[0])


# ----------------------------------------------------------------------------------------------- neighbours' scores


def oracle(logits, z, reach):
    """The features of one scan, one value after the other."""
    n = len(logits)
    out = []
    for i in range(n):
        rows = []
        for k in range(6):
            own, top = logits[:, k], logits[:, ANY]
            others = np.delete(logits[:, :ANY], k, axis=1) if k != ANY else np.sort(logits[:, :ANY], axis=1)[:, 1:]
            other = others.max(axis=1) if k != ANY else logits[:, :ANY].max(axis=1)
            row = []
            for values, far in ((own, reach), (top, reach // 2), (other, reach // 2)):
                row += [values[i + d] if 0 <= i + d < n else np.nan for d in range(-far, far + 1)]
            for values in (own, top, other):
                row += [values.mean(), values.max(), values.min(), values.std()]
            row += [np.median(own), (1 / (1 + np.exp(-own))).sum()]
            for part in (own[: i + 1], own[i:][::-1]):
                weights = 0.6 ** np.arange(len(part))[::-1]
                row += [part.max(), (part * weights).sum() / weights.sum()]
            row += [*sorted(others[i]), *scan_features.places(z)[i], min(i, n - 1 - i)]
            rows.append(row)
        out.append(rows)
    return np.array(out)


@pytest.mark.parametrize("reach", [0, 1, 7])
def test_neighbor_features_are_those_of_the_slow_way(reach):
    several = some_scans((5, 1, 9, 2))
    features = scan_features.neighbor_features(several, reach)
    for a, b in zip(several.starts[:-1], several.starts[1:], strict=True):
        np.testing.assert_allclose(
            features[a:b], oracle(several.logits[a:b], several.z[a:b], reach), rtol=1e-4, atol=1e-4
        )


def test_neighbor_features_of_a_scan_are_the_same_alone_and_beside_others():
    several = some_scans()
    features = scan_features.neighbor_features(several, 7)
    for k in range(len(several)):
        alone = scan_features.neighbor_features(several.take(np.array([k])), 7)
        np.testing.assert_allclose(features[several.rows(k)], alone, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------- scale of embeddings


@pytest.mark.parametrize("rows", [1, 7, 10**6])
def test_the_scale_of_embeddings_is_their_mean_and_variance(rows):
    embeddings = (np.random.default_rng(0).normal(size=(50, 3)) * [1, 5, 0.5] + [0, 200, -3]).astype(np.float16)
    mean, variance = scan_features.embedding_scale(embeddings, rows)
    np.testing.assert_allclose(mean, embeddings.astype(np.float64).mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(variance, embeddings.astype(np.float64).var(axis=0), rtol=1e-9)


def test_a_unit_that_hardly_speaks_is_not_raised_to_the_others():
    embeddings = np.zeros((4, 3), np.float16)
    embeddings[:2, 0] = 2
    embeddings[0, 1] = 1e-4
    _, variance = scan_features.embedding_scale(embeddings)
    np.testing.assert_allclose(variance, [1, 1e-4, 1e-4])
    assert scan_features.embedding_scale(embeddings[:, 2:])[1].tolist() == [1]  # silent all
