"""Scans of another hospital, which join the training of the images of conftest."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import json

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import TRAIN, tiny_config

from ich.competition import labels as competition_labels
from ich.competition.labels import INDEX_NAME, LABELS
from ich.errors import IchError
from ich.images import convert, slice_table
from ich.images.render import Settings
from ich.training import external, fold, fold_setup
from ich.training.run_data import RunData
from ich.training.run_directory import Run

IDS = [f"1.2.840.{number}" for number in range(8)]  # two scans of four slices; the last slice has no label
LEFT_OUT = [
    "left out: 1 slice(s) without a label",
    "left out: 2 label(s) without a readable slice of the split train",
    "left out: 1 slice(s) of the split test",
    "3 slice(s) have no PatientID: their UIDs alone tell them from the competition's",
]


def make_external(path, preprocess, ids=IDS, **columns):
    """Images whose pixels are 200 and the slice's number, and their labels."""
    convert._claim(path / "images", Settings.of(preprocess))
    (path / "images/train").mkdir()
    rows = []
    for number, id_ in enumerate(ids):
        cv2.imwrite(str(path / f"images/train/{id_}.png"), np.full((32, 32), 200 + number, np.uint8))
        place = {"SeriesInstanceUID": f"1.3.{number // 4}", "order": number % 4, "StudyInstanceUID": "1.4"}
        patient = {"PatientID": "p1" if number < 4 else None}
        of_file = {"split": "train", "status": "ok", "size": 10 + number, "crc": number}
        rows.append({"SOPInstanceUID": id_} | place | patient | of_file | columns)
    rows.append({"SOPInstanceUID": "1.2.999", "split": "test", "status": "ok", "SeriesInstanceUID": "1.3.9"})
    slice_table.write_table(slice_table.to_frame(rows), path / "images/slices.parquet")
    write_labels(path)
    return {"images": path / "images", "labels": path / "labels.csv", "weight": 0.5}


def write_labels(path, flipped=()):
    frame = pd.DataFrame(0, pd.Index([*IDS[:7], "1.2.7", "1.2.8"], name=INDEX_NAME), list(LABELS))
    frame.loc[[*IDS[:2], *flipped], ["any", "subdural"]] = 1
    frame.assign(remark="by two readers").to_csv(path / "labels.csv")


@pytest.fixture
def source(tmp_path, data):
    return make_external(tmp_path / "other", tiny_config(data).preprocess)


def with_external(data, *sources, **sections):
    return tiny_config(data, data={"external": list(sources)}, **sections)


def test_they_join_the_training_of_every_fold_and_are_never_held_out(data, source):
    config = with_external(data, source, model={"neighbours": [-1, 0, 1]}, train={"augment": "none", "batch_size": 3})
    run_data = RunData(config)
    for k in range(2):
        train, held_out = fold_setup.generators(config, run_data.folds, run_data.slices, k, 1, run_data.external)
        own = [id_ for number, id_ in enumerate(TRAIN) if number // 4 % 2 != k]
        assert train.ids.tolist() == own + IDS[:7]
        assert held_out.ids.tolist() == [id_ for id_ in TRAIN if id_ not in own]
        assert len(held_out[0]) == 2  # no weights
        shown = {}
        for index in range(len(train)):
            images, labels, weights = train[index]
            shown |= dict(zip(train.ids_of(index), zip(images, labels, weights, strict=True), strict=True))
        assert shown.keys() == {*own, *IDS[:7]}
        for number, id_ in enumerate(IDS[:7]):
            image, label, weight = shown[id_]
            first = number // 4 * 4
            expected = [200 + min(max(number + offset, first), first + 3) for offset in (-1, 0, 1)]
            assert image[0, 0].tolist() == expected  # the slice without a label is the neighbor of another
            assert label.tolist() == ([0, 0, 0, 0, 1, 1] if number < 2 else [0] * 6)
            assert weight == 0.5
        for id_ in own:
            image, label, weight = shown[id_]
            stored = cv2.imread(str(data / f"images/train/{id_}.png"), cv2.IMREAD_GRAYSCALE)
            np.testing.assert_array_equal(image[..., 1], stored)
            assert label.tolist() == run_data.folds.loc[id_, list(LABELS)].tolist()
            assert weight == 1


def test_without_a_weight_batches_are_those_of_the_folds_alone_but_for_the_order(data, source):
    config = with_external(data, source | {"weight": 1}, train={"batch_size": 64})
    alone = tiny_config(data, train={"batch_size": 64})
    looks = []
    for variant in (config, alone):
        run_data = RunData(variant)
        train, _ = fold_setup.generators(variant, run_data.folds, run_data.slices, 0, 1, run_data.external)
        images, _ = train[0]
        looks.append(dict(zip(train.ids_of(0), map(np.ndarray.tobytes, images), strict=True)))
    assert looks[1].items() <= looks[0].items()
    assert len(looks[0]) == len(looks[1]) + 7


@pytest.mark.parametrize("sampling", [{"slices_per_series": 1}, {"positive_share": 0.5}])
def test_an_epoch_is_sampled_from_all(data, source, sampling):
    config = with_external(data, source, train=sampling)
    run_data = RunData(config)
    train, _ = fold_setup.generators(config, run_data.folds, run_data.slices, 0, 1, run_data.external)
    seen = {id for epoch in range(9) for id in train.ids[train.plan_of(epoch).rows]}
    assert seen & set(IDS)
    assert seen & set(TRAIN)
    if "slices_per_series" in sampling:
        assert len(train.plan_of(0).rows) == 3 + 2  # series


def test_a_fold_tells_and_records_what_joins(data, source, tmp_path, capsys, monkeypatch):
    run = Run.begin(with_external(data, source), tmp_path / "runs")
    monkeypatch.setattr(fold, "_fit", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fold.train_fold(run, 1)
    printed = capsys.readouterr().out
    assert "fold 1: 19 slices to train on, 12 held out" in printed
    images = source["images"]
    assert f"of these to train on, 7 external slices of {images} with the weight 0.5" in printed
    assert [line for line in LEFT_OUT if f"fold 1: {images}: {line}\n" in printed] == LEFT_OUT
    facts = json.loads(run.environment_path.read_text())
    assert facts["external"] == RunData(run.config).trained_on["external"]
    assert facts["external"]["slices"] == 7
    assert facts["pseudo"] is None


def test_they_cannot_change_once_a_training_began(data, source, tmp_path):
    config = with_external(data, source)
    run = Run.begin(config, tmp_path / "runs")
    run.claim("tensorflow", ["cpu:0"], RunData(config).trained_on)
    others = {"weight": source | {"weight": 1}}
    Run.begin(config, tmp_path / "runs")
    message = r"was trained on other external scans, labels or weights than data\.external now names; restore them"
    for other in (with_external(data), with_external(data, others["weight"])):
        with pytest.raises(IchError, match=message):
            Run.begin(other, tmp_path / "runs")
    write_labels(source["images"].parent, flipped=[IDS[5]])
    with pytest.raises(IchError, match=message):
        run.claim("tensorflow", ["cpu:0"], RunData(config).trained_on)
    write_labels(source["images"].parent)
    Run.begin(config, tmp_path / "runs")
    alone = Run.begin(tiny_config(data, data={}), tmp_path / "alone")
    alone.claim("tensorflow", ["cpu:0"], RunData(alone.config).trained_on)
    with pytest.raises(IchError, match=message):
        Run.begin(config, tmp_path / "alone")


@pytest.mark.parametrize("column", external.IDS)
def test_patients_of_the_competition_are_refused(data, tmp_path, column):
    config = tiny_config(data)
    slices = slice_table.read_table(data / "images/slices.parquet")
    slices[column] = slices[column].astype(object)
    slices.loc[3, column] = "mine"
    ids = [*IDS[:6], "mine", IDS[7]] if column == "SOPInstanceUID" else IDS
    source = make_external(tmp_path, config.preprocess, ids, **({} if ids is not IDS else {column: "mine"}))
    if ids is not IDS:
        frame = pd.read_csv(tmp_path / "labels.csv").replace(IDS[6], "mine")
        frame.to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(IchError, match=rf"competition's images have 1 {column}\(s\) in common: mine; .*take their"):
        external.read(with_external(data, source), slices)


def test_a_scan_in_two_sources_is_refused(data, source, tmp_path):
    config = tiny_config(data)
    slices = slice_table.read_table(data / "images/slices.parquet")
    renamed = [f"{id_}.1" for id_ in IDS[:6]] + IDS[6:]
    second = make_external(tmp_path / "second", config.preprocess, renamed)
    with pytest.raises(IchError, match=r"have 2 SOPInstanceUID\(s\) in common: 1\.2.*count twice"):
        external.read(with_external(data, source, second), slices)


def test_images_of_other_settings_are_refused(data, tmp_path):
    config = tiny_config(data)
    other = config.preprocess.model_copy(update={"windows": ["bone"]})
    source = make_external(tmp_path, other)
    with pytest.raises(IchError, match=r"holds images of other settings \(windows"):
        RunData(with_external(data, source)).external  # noqa: B018


def test_long_labels_and_a_table_are_the_same(tmp_path):
    values = np.random.default_rng(0).integers(0, 2, (6, 6), dtype=np.int8)
    values[:, 5] = values[:, :5].max(axis=1)
    ids = pd.Index([f"ID_{number:03x}" for number in range(6)], name=INDEX_NAME)
    frame = pd.DataFrame(values, ids, list(LABELS))
    frame[list(LABELS[::-1])].to_csv(tmp_path / "table.csv")
    competition_labels.to_long(frame).to_csv(tmp_path / "long.csv", index=False)
    for name in ("table.csv", "long.csv"):
        pd.testing.assert_frame_equal(external.read_labels(tmp_path / name), frame)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read .*correct the labels in data.external"),
        ("SOPInstanceUID,any\n1.2,1\n", "is not a file of labels: .*expected the columns SOPInstanceUID and epidural"),
        ("SOPInstanceUID," + ",".join(LABELS) + "\n1.2,0,0,0,0,0,\n", "is not a file of labels"),
        ("SOPInstanceUID," + ",".join(LABELS) + "\n1.2,0,0,0,0,0,2\n", r"labels\.csv: labels are 0 or 1"),
        ("SOPInstanceUID," + ",".join(LABELS) + "\n1.2,0,0,0,0,1,0\n", r"labels\.csv: .*`any` disagrees"),
        ("SOPInstanceUID," + ",".join(LABELS) + 2 * "\n1.2,0,0,0,0,0,0", "in more than one row"),
        ("slice,any\n1.2,1\n", "expected"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(IchError, match=message):
        external.read_labels(tmp_path / "labels.csv")


def test_labels_of_other_slices_are_refused(data, source):
    (source["labels"]).write_text("SOPInstanceUID," + ",".join(LABELS) + "\n1.9,0,0,0,0,0,0\n")
    with pytest.raises(IchError, match=r"labels none of the 8 readable slices .*converted with data\.split=train"):
        RunData(with_external(data, source)).external  # noqa: B018
