"""Slices of the competition's kind as a PACS exports them: what is in it, and what is predicted of it."""

import os
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import in_use

from ich.competition.labels import LABELS
from ich.config import Preprocess
from ich.data.generator import DataGenerator
from ich.dicom import archive, reader
from ich.dicom.reader import DicomError
from ich.errors import IchError
from ich.images import slice_table
from ich.images.convert import convert
from ich.images.render import Settings
from ich.models.backbones import build_model
from ich.own_scans import find
from ich.own_scans.model_spec import ModelSpec, RunPart
from ich.own_scans.options import Options
from ich.own_scans.predict import predict_scans
from ich.synthetic.archive import write_archive
from ich.synthetic.pacs_export import write_export
from ich.synthetic.plan import draw_plan

PREPROCESS = Preprocess(windows=["brain", "subdural", "bone"], size=64, crop=True)
OFFSETS = [-1, 0, 1]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "archive.zip"
    plan = draw_plan(seed=3, patients=2, test_patients=3, size=64, min_slices=6, max_slices=8, bleed_factor=8.0)
    write_archive(path, plan)
    return path


def hu_by_id(source, split):
    """HU of the readable slices, by id; what the competition's way reads."""
    images = {}
    for member in archive.members([source]):
        if member.split == split:
            try:
                images[member.id] = reader.read(member.read())[0]
            except DicomError:
                continue
    return images


def test_an_export_has_the_same_pixels_under_other_names(phantoms, tmp_path):
    ids = write_export(phantoms, tmp_path / "export", "test")
    expected = hu_by_id(phantoms, "test")
    assert sorted(ids.values()) == sorted(expected)
    files = [path for path in (tmp_path / "export").rglob("*") if path.is_file()]
    assert {path.name for path in files if path.suffix} == {"README.TXT"}
    modalities, syntaxes = set(), set()
    for path in files:
        if path.name not in ("README.TXT", "DICOMDIR"):
            ds = pydicom.dcmread(path)
            modalities.add(ds.Modality)
            syntaxes.add(ds.file_meta.TransferSyntaxUID.name.partition(",")[0])
            assert b"ID_" not in path.read_bytes()
            if original := ids.get(ds.SOPInstanceUID):
                np.testing.assert_array_equal(reader.read(path)[0], expected[original])
    assert modalities == {"CT", "SR"}
    assert "JPEG Lossless" in syntaxes
    listed = pydicom.dcmread(tmp_path / "export/DICOMDIR").DirectoryRecordSequence
    images = [record for record in listed if record.DirectoryRecordType == "IMAGE"]
    assert len(images) == len(files) - 2 - 3  # but the two files beside them and three reports


def test_of_each_series_the_soft_slices_alone_are_read(phantoms, tmp_path):
    ids = write_export(phantoms, tmp_path / "export", "test", series=2)
    scans = find.find_series([tmp_path / "export"])
    by_reason = pd.Series([series.reason or series.status for series in scans.series]).value_counts()
    assert by_reason.to_dict() == {"read": 2, "localizer": 2, "sharper_kernel": 2, "no_image": 2}
    assert sorted(slice_.uid for series in scans.series for slice_ in series.slices) == sorted(ids)
    files = [path for path in (tmp_path / "export").rglob("*") if path.is_file()]
    assert sum(series.files for series in scans.series) + sum(count for count, _ in scans.others.values()) == len(files)


def test_what_cannot_be_exported_is_reported(phantoms, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "damaged/stage_2_train").mkdir(parents=True)
    (tmp_path / "damaged/stage_2_train/ID_0.dcm").write_bytes(b"nothing")
    with pytest.raises(IchError, match="is there; name a new folder"):
        write_export(phantoms, tmp_path / "export", "test")
    with in_use(tmp_path, name="export-other"), pytest.raises(IchError, match="in use by process"):
        write_export(phantoms, tmp_path / "other", "test")
    with pytest.raises(IchError, match="no readable train slices"):
        write_export(tmp_path / "damaged", tmp_path / "other", "train")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "export"]


def check_equal(source, split, folder):
    """Slices read from an export are predicted as those of the competition's archive, by files of its PNGs."""
    ids = write_export(source, folder / "export", split)
    convert([source], folder / "images", Settings.of(PREPROCESS), jobs=1)
    table = slice_table.read_table(folder / "images/slices.parquet")
    readable = slice_table.readable(table, split).index
    expected = np.zeros((len(readable), len(LABELS)))
    for k in range(2):
        keras.utils.set_random_seed(k)
        model = build_model("small_cnn", (64, 64, 9))
        layer = model.get_layer("logits")
        layer.kernel.assign(20 * layer.kernel)
        (folder / f"model/fold{k}").mkdir(parents=True)
        model.save(folder / f"model/fold{k}/model.keras")
        images = DataGenerator(
            readable, image_dir=folder / "images" / split, neighbours=OFFSETS, slices=table, batch_size=16
        )
        logits = np.concatenate([model.predict_on_batch(batch) for batch in images])
        expected += 1 / (1 + np.exp(-logits.astype(np.float64))) / 2
    part = RunPart(
        folder=folder / "model", folds=2, preprocess=PREPROCESS, neighbours=OFFSETS, tta=["none"], mean="probability",
        batch_size=16,
    )  # fmt: skip
    spec = ModelSpec(result="a", parts={"a": part}, thickness=5.0, out_of_fold={}, commit=None, packages={})
    summary = predict_scans(spec, [folder / "export"], folder / "out", Options(pages=False, slabs=False))
    assert summary.unread == 0
    predictions = pd.read_csv(folder / "out/slices.csv").set_index("SOPInstanceUID")[list(LABELS)]
    predictions.index = predictions.index.map(ids)
    assert sorted(predictions.index) == sorted(readable)
    np.testing.assert_allclose(predictions.loc[readable].to_numpy(), expected, atol=1e-6)
    assert expected.std(axis=0).mean() > 0.01
    return len(predictions)


def test_an_export_of_phantoms_is_predicted_as_their_archive(phantoms, tmp_path):
    assert check_equal(phantoms, "test", tmp_path) > 15


@pytest.mark.real
def test_an_export_of_real_studies_is_predicted_as_the_archive(tmp_path):
    (source,) = Path(os.environ["RSNA_SAMPLE"]).glob("*.zip")
    assert check_equal(source, "train", tmp_path) == 396
