"""Windows of slices: their layout, against one written slice by slice, and the batches of scans made of them."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.data.generator import DataGenerator
from ich.data.scan_windows import PADDING, ScanOrder, ScanWindows, mean_over_windows
from ich.errors import IchError

LENGTHS = (7, 1, 4, 10)
UIDS = [f"ID_{number:03}" for number in range(sum(LENGTHS))]
MODES = [
    pytest.param({"workers": 1}, id="no worker"),
    pytest.param({"workers": 3}, id="threads"),
    pytest.param({"workers": 2, "use_multiprocessing": True}, id="processes"),
]


def table_of(lengths, uids=UIDS, placed=True):
    """A slice table of series of these lengths, its rows in any order; the first series' slices are 5 mm apart."""
    rows, names = [], iter(uids)
    for series, length in enumerate(lengths):
        for order in range(length):
            place = {"order": order, "z": 5.0 * order * (series + 1) - 100} if placed else {"order": None, "z": None}
            rows.append({"SOPInstanceUID": next(names), "SeriesInstanceUID": f"S{series}", "split": "train", **place})
    frame = pd.DataFrame(rows).assign(status="ok", order=lambda table: table["order"].astype("Int32"))
    return frame.sample(frac=1, random_state=0)


SLICES = table_of(LENGTHS)


def windows(n, overlapping, lengths=LENGTHS):
    uids = [f"ID_{number:03}" for number in range(sum(lengths))]
    return ScanWindows(ScanOrder.of(pd.Index(uids), table_of(lengths, uids)), n, overlapping)


def as_lists(layout):
    return [[row for row in window if row != PADDING] for window in layout.tolist()]


def scan_of(row, lengths):
    return int(np.searchsorted(np.cumsum(lengths), row, side="right"))


@settings(max_examples=60)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 12), st.integers(0, 9), st.booleans())
def test_an_epoch_shows_each_slice_once_in_runs_of_one_scan(lengths, n, seed, drawn):
    laid = windows(n, False, lengths)
    layout = laid.layout(np.random.default_rng(seed) if drawn else None)
    assert layout.shape == (len(laid), n)
    shown = as_lists(layout)
    assert sorted(row for window in shown for row in window) == list(range(sum(lengths)))
    for window, padded in zip(shown, layout.tolist(), strict=True):
        assert window
        assert padded == window + [PADDING] * (n - len(window))  # behind the slices
        assert window == list(range(window[0], window[0] + len(window)))
        assert scan_of(window[0], lengths) == scan_of(window[-1], lengths)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 12))
def test_windows_to_predict_by_overlap_by_half(lengths, n):
    laid = windows(n, True, lengths)
    shown = as_lists(laid.layout())
    assert len(shown) == len(laid)
    expected, first = [], 0  # scan by scan, window by window
    for length in lengths:
        begin = 0
        while begin + n < length:
            expected.append(list(range(first + begin, first + begin + n)))
            begin += max(1, n // 2)
        expected.append(list(range(first + max(0, length - n), first + length)))
        first += length
    assert shown == expected
    values = np.random.default_rng(0).normal(size=(sum(lengths), 6)).astype(np.float32)
    layout = laid.layout()
    np.testing.assert_allclose(mean_over_windows(values[layout], layout, len(values)), values, rtol=1e-6)


def test_where_windows_begin_is_drawn_evenly():
    laid, first = windows(4, False, [10]), []
    for seed in range(600):
        first.append(len(as_lists(laid.layout(np.random.default_rng(seed)))[0]))
    assert len(laid) == 3
    counts = np.bincount(first, minlength=5)
    assert counts[:2].tolist() == [0, 0]  # three windows of 4 hold 10 slices only if the first has 2 or more
    assert (np.abs(counts[2:] / 600 - 1 / 3) < 0.06).all()


def test_a_slices_mean_is_over_the_windows_that_show_it():
    layout = np.array([[0, 1, 2], [1, 2, 3]])
    outputs = np.arange(6, dtype=np.float16).reshape(2, 3, 1)
    merged = mean_over_windows(outputs, layout, 4)
    assert merged.dtype == np.float16
    assert merged[:, 0].tolist() == [0, 2, 3, 5]


def test_a_slice_without_outputs_has_no_mean():
    layout = np.array([[0, 1], [2, 3]])
    outputs = np.zeros((2, 2, 6), np.float32)
    with pytest.raises(IchError, match=r"no window shows 1 of 5 slices, so that they have no mean; leave out sampling"):
        mean_over_windows(outputs, layout, 5)
    with pytest.raises(IchError, match=r"the outputs have the shape \(1, 2, 6\), expected \(2, 2, …\): of all windows"):
        mean_over_windows(outputs[:1], layout, 4)


def test_a_slice_without_a_place_is_a_scan_of_its_own():
    laid = ScanWindows(ScanOrder.of(pd.Index(UIDS[:3]), table_of([3], UIDS[:3], placed=False)), 4, True)
    assert as_lists(laid.layout()) == [[0], [1], [2]]


def test_positions_begin_at_the_windows_first_slice():
    laid = windows(4, True)
    layout = laid.layout()
    inputs = laid.inputs(layout)
    assert inputs["mask"].tolist() == (layout != PADDING).astype(float).tolist()
    assert inputs["z"][:3].tolist() == [[0, 5, 10, 15], [0, 5, 10, 15], [0, 5, 10, 15]]
    assert inputs["z"][3].tolist() == [0, 0, 0, 0]
    assert all(array.dtype == np.float32 for array in inputs.values())


@pytest.mark.parametrize("n", [0, 2.5, True, "3"])
def test_what_is_no_number_of_slices_is_refused(n):
    with pytest.raises(IchError, match=r"^scan is .*, expected the number of slices in a sample, at least 1$"):
        windows(n, True)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "scan needs the slice table, slices=…, as read_table gives it; got NoneType"),
        (SLICES.drop(columns=["z", "order"]), "the slice table lacks the columns order, z, which scan reads"),
        (SLICES[SLICES["SeriesInstanceUID"] != "S1"], "the slice table has no slices ID_007; is it of other images"),
    ],
)
def test_a_slice_table_that_does_not_fit_is_refused(table, message):
    with pytest.raises(IchError, match=message):
        ScanOrder.of(pd.Index(UIDS), table)


# ------------------------------------------------------------------------------------------- batches of scans

LABELS = pd.DataFrame(np.random.default_rng(1).integers(0, 2, (len(UIDS), 6)), index=UIDS)


def read(path):
    """A slice of its own number, with a gradient, so that it shows how it was moved."""
    return np.add.outer(np.arange(8), np.zeros(8)).astype(np.uint8)[..., None] * 8 + np.uint8(int(path.name[3:]))


def noise(image, rng):
    return image + np.uint8(rng.integers(0, 100))


def generator(labels=LABELS, **options):
    options = {"reader": read, "suffix": "", "slices": SLICES, "scan": 4, "batch_size": 2} | options
    return DataGenerator(UIDS, labels, **options)


def test_a_batch_holds_images_mask_positions_labels_and_weights():
    weights = pd.Series(np.arange(1, len(UIDS) + 1), index=UIDS)
    dataset = generator(shuffle=False, weights=weights)
    shown = 0
    for index in range(len(dataset)):
        x, y, w = dataset[index]
        assert x["image"].shape == (len(w), 4, 8, 8, 1)
        assert x["image"].dtype == np.uint8
        real = x["mask"] > 0
        ids = dataset.ids_of(index)
        numbers = [int(id[3:]) for id in ids]
        assert x["image"][real][:, 0, 0, 0].tolist() == numbers
        assert y[real].tolist() == LABELS.loc[ids].to_numpy().tolist()
        assert w[real].tolist() == weights[ids].tolist()
        assert not any(array[~real].any() for array in (x["image"], x["z"], y, w))
        shown += len(ids)
    assert shown == len(UIDS)
    assert (generator(shuffle=False)[0][2] == generator(shuffle=False)[0][0]["mask"]).all()


def test_a_shuffled_epoch_draws_its_windows_anew_and_the_same_for_the_same_seed():
    def shown(epoch, seed=0):
        dataset = generator(epoch=epoch, seed=seed)
        return [tuple(dataset.ids_of(index)) for index in range(len(dataset))]

    assert shown(3) == shown(3)
    assert len({str(shown(epoch)) for epoch in range(4)}) == 4
    assert shown(3) != shown(3, seed=1)
    assert {len(generator(epoch=epoch)) for epoch in range(9)} == {len(generator())}


def test_one_draw_moves_all_slices_of_a_sample_alike_and_another_those_of_the_next():
    dataset = generator(augment=noise, batch_size=1)
    drawn = set()
    for index in range(len(dataset)):
        x, _, _ = dataset[index]
        images = x["image"][x["mask"] > 0].astype(int)
        shifts = images[:, 0, 0, 0] - [int(id[3:]) for id in dataset.ids_of(index)]
        assert len(set(shifts)) == 1
        drawn.add(shifts[0])
    assert len(drawn) > 3
    flip = generator(augment=A.Compose([A.VerticalFlip(p=0.5)]), batch_size=1, epoch=1)
    flipped = []
    for index in range(len(flip)):
        x, _, _ = flip[index]
        images = x["image"][x["mask"] > 0].astype(int)
        ups = images[:, 0, 0, 0] > images[:, -1, 0, 0]
        assert len(set(ups)) == 1
        flipped.append(bool(ups[0]))
    assert 0 < sum(flipped) < len(flipped)


class Recorder(keras.Model):
    def __init__(self):
        super().__init__()
        self.seen, self.scale = [], self.add_weight()
        self.built = True

    def call(self, x):
        return keras.ops.zeros(keras.ops.shape(x["mask"])) + self.scale

    def train_step(self, data):
        x = data[0]
        self.seen.append((x["image"].numpy().tobytes(), x["mask"].numpy().tobytes(), x["z"].numpy().tobytes()))
        return {"loss": keras.ops.zeros(())}


@pytest.mark.parametrize("mode", MODES)
def test_what_is_shown_depends_on_neither_workers_nor_batch_size(mode):
    def shown(**options):
        model = Recorder()
        model.compile(run_eagerly=True)
        model.fit(generator(augment=noise, **options), epochs=2, shuffle=False, verbose=0)
        return [b"".join(parts) for parts in zip(*model.seen, strict=True)]

    assert shown(**mode) == shown() == shown(batch_size=3, **mode)


def test_slices_of_overlapping_windows_are_decoded_once():
    calls = []

    def counting(path):
        calls.append(path.name)
        return read(path)

    dataset = generator(None, reader=counting)
    for index in range(len(dataset)):
        dataset[index]
    assert sorted(calls) == UIDS


def test_predictions_come_back_in_the_order_of_the_ids():
    dataset = generator(None)
    windows_of = [dataset[index]["image"][..., 0, 0, 0] for index in range(len(dataset))]
    assert dataset.sample_count == sum(map(len, windows_of))
    merged = dataset.mean_over_windows(np.concatenate(windows_of)[..., None].astype(np.float32))
    assert merged[:, 0].tolist() == [int(id[3:]) for id in UIDS]
    alone = DataGenerator(UIDS, reader=read, suffix="")
    assert (alone.sample_count, alone.mean_over_windows(merged) is merged) == (len(UIDS), True)


@pytest.mark.parametrize(
    "options",
    [
        {"extra": pd.DataFrame({"age": 0.0}, index=UIDS)},
        {"labels": lambda id: [1]},
        {"on_error": "skip"},
    ],
)
def test_what_scans_do_not_take_is_refused(options):
    with pytest.raises(IchError, match=r"^scan takes labels from a table, no extra inputs, and on_error='raise'"):
        generator(**options)


def test_a_sampling_chooses_windows():
    dataset = generator(sampling=lambda rng: np.array([0, 2]), shuffle=False, batch_size=1)
    whole = generator(shuffle=False, batch_size=1)
    assert [dataset.ids_of(index).tolist() for index in range(2)] == [whole.ids_of(k).tolist() for k in (0, 2)]

    class Sized:
        def __len__(self):
            return len(UIDS)

        def __call__(self, rng):
            return np.arange(3)

    with pytest.raises(IchError, match=rf"the sampling is of {len(UIDS)} samples, the windows of scans are"):
        generator(sampling=Sized())


def test_a_preview_shows_slices():
    assert len(generator(shuffle=False).preview(5).axes) == 10


def test_a_slice_that_cannot_be_read_is_named():
    def failing(path):
        raise ZeroDivisionError("nine")

    with pytest.raises(IchError, match=r"reader raised ZeroDivisionError: nine"):
        generator(None, reader=failing)[0]


def test_a_mixed_batch_keeps_masks_and_mixes_slices_alike():
    from ich.data.mixing import Mix

    plain, mixed = generator(), generator(mix=Mix(mixup=1.0))
    (x, y, w), (mixed_x, mixed_y, mixed_w) = plain[0], mixed[0]
    for name in ("mask", "z"):
        assert (x[name] == mixed_x[name]).all()
    assert (w == mixed_w).all()
    assert (y != mixed_y).any()
    assert not mixed_x["image"][w == 0].any()
