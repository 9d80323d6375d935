import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import make_dicom
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ich.competition import submission
from ich.competition.labels import INDEX_NAME, LABELS
from ich.config import Config
from ich.data import augment
from ich.data.generator import DataGenerator
from ich.dicom.windows import PRESETS, apply_window
from ich.errors import IchError
from ich.images import convert
from ich.images.render import Settings
from ich.models import backbones
from ich.results.predictions import write_predictions
from ich.training.run_directory import Run

SPEC = importlib.util.spec_from_file_location("slice_life", Path(__file__).parents[2] / "docs/slice_life.py")
slice_life = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(slice_life)
IDS = ["ID_00a", "ID_00b", "ID_00c"]
SIZE = 32


def config_of(**sections):
    content = {
        "name": "one",
        "data": {"sources": ["scans"], "images": "images"},
        "preprocess": {"windows": ["brain", "subdural", "bone"], "size": SIZE},
        "folds": {"n": 2},
        "model": {"name": "small_cnn", "weights": None},
        "train": {},
        "machine": {"workers": 1},
    }
    for section, values in sections.items():
        content[section] = {**content[section], **values}
    return Config.model_validate(content)


def stored(seed):
    return np.random.default_rng(seed).integers(900, 1200, (48, 40)).astype(np.uint16)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two untrained models, of test slices of 48 x 40 pixels."""
    folder = tmp_path_factory.mktemp("life")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("scans/stage_2_test").mkdir(parents=True)
        for seed, id in enumerate(IDS):
            place = [0.0, 0.0, 5.0 * seed]
            data = make_dicom(stored(seed), uid=id, ImagePositionPatient=place)
            Path(f"scans/stage_2_test/{id}.dcm").write_bytes(data)
        config = config_of()
        convert.convert([Path("scans")], Path("images"), Settings.of(config.preprocess), jobs=1)
        untrained = Run(Path("runs/one"), config)
        for k in (0, 1):
            untrained.fold(k).mkdir(parents=True)
            backbones.build_model("small_cnn", (SIZE, SIZE, 3)).save(untrained.fold(k) / "model.keras")
            (untrained.fold(k) / "oof.parquet").touch()
        untrained.config_path.write_text(config.resolved())
        untrained.environment_path.write_text("{}")
        values = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.1, 0.9, 0.2, 0.2, 0.2, 0.95], [0.2] * 6], np.float32)
        write_predictions(
            pd.DataFrame(values, pd.Index(IDS, name=INDEX_NAME), list(LABELS)), untrained.predictions_path
        )
    return folder


@pytest.fixture
def there(run, monkeypatch):
    monkeypatch.chdir(run)


def opened(**sections):
    return Run(Path("runs/one"), config_of(**sections))


def texts(figure):
    return [text.get_text() for text in figure.texts]


def test_the_surest_slice_is_followed_from_the_archive_to_its_rows(there):
    life = slice_life.follow(opened())
    assert (life.id, life.file, life.label, life.models) == (IDS[1], f"stage_2_test/{IDS[1]}.dcm", *LABELS[1:2], 2)
    np.testing.assert_array_equal(life.hu, stored(1).astype(int) - 1024)
    square = np.full((48, 48), -1024, np.int16)
    square[:, 4:44] = life.hu
    for name in ("brain", "subdural", "bone"):
        np.testing.assert_array_equal(life.windows[name], apply_window(square, PRESETS[name]))
    assert life.png.shape == (SIZE, SIZE, 3)
    assert life.heat.shape == (SIZE, SIZE)
    assert 0 <= life.heat.min() <= life.heat.max() <= 1
    long = submission.make_submission(
        pd.DataFrame([life.probabilities], pd.Index([IDS[1]], name=INDEX_NAME)),
        pd.Series([f"{IDS[1]}_{label}" for label in LABELS], name="ID"),
        pd.Index([IDS[1]]),
    )
    submission.write_submission(long, Path("one.csv"), {})
    assert ["ID,Label", *life.rows] == Path("one.csv").read_text().splitlines()


def test_it_is_augmented_as_training_would(there):
    life = slice_life.follow(opened(train={"augment": "heavy", "seed": 3}))
    samples = DataGenerator(
        IDS, image_dir="images/test", augment=augment.pipeline("heavy", SIZE, SIZE), seed=3, batch_size=2
    )
    for epoch, picture in enumerate(life.augmented):
        samples.set_epoch(epoch)
        np.testing.assert_array_equal(picture, samples[0][1])
    assert len({picture.tobytes() for picture in life.augmented}) > 1


def test_of_neighbours_in_the_channels_the_slice_itself_is_shown(there):
    image = np.arange(9, dtype=np.uint8).reshape(1, 1, 9)
    assert slice_life._own(image, [-1, 0, 1]).ravel().tolist() == [3, 4, 5]
    assert slice_life._own(image, [0, 1, 2]).ravel().tolist() == [0, 1, 2]
    assert slice_life._own(image, [-2, -1, 1]).ravel().tolist() == [3, 4, 5]


def test_another_slice_and_label(there):
    life = slice_life.follow(opened(), IDS[0], "epidural")
    assert (life.id, life.label) == (IDS[0], "epidural")
    assert slice_life.follow(opened(), IDS[0]).label == "subdural"


def test_the_picture_says_what_it_shows(there, tmp_path):
    life = slice_life.follow(opened())
    figure = slice_life.draw(life)
    shown = "\n".join(texts(figure))
    for text in (
        "48 \u00d7 40",
        "32 \u00d7 32",
        "brain, subdural, bone",
        "2 models",
        "0.90",
        "red, green, blue",
        *life.rows,
    ):
        assert text in shown
    slice_life.save(figure, tmp_path / "life.png")
    picture = cv2.imread(str(tmp_path / "life.png"))
    assert picture.shape == (518, 900, 3)
    canvas = FigureCanvasAgg(figure).get_renderer()
    for text in figure.texts:
        box = text.get_window_extent(canvas)
        assert box.x0 >= 0 <= box.y0
        assert (box.x1 <= 900) & (box.y1 <= 518)


def test_one_window_is_drawn_in_gray(there):
    life = slice_life.follow(opened())
    gray = life._replace(
        windows={"brain": life.windows["brain"]}, png=life.png[..., :1], augmented=life.augmented[..., :1]
    )
    assert "the PNG" in texts(slice_life.draw(gray))


def test_the_script_writes_it(there, tmp_path, capsys):
    slice_life.main(["runs/one", "--slice", IDS[0], "--out", str(tmp_path / "a.png"), "--dpi", "50"])
    assert capsys.readouterr().out == f"{IDS[0]}, subdural 0.50: {tmp_path}/a.png\n"
    assert cv2.imread(str(tmp_path / "a.png")).shape == (259, 450, 3)


def test_what_cannot_be_drawn_is_refused(there, tmp_path):
    with pytest.raises(IchError, match="has no prediction of ID_99"):
        slice_life.follow(opened(), "ID_99")
    with pytest.raises(IchError, match="no label is called 'bleed'; there are epidural, "):
        slice_life.follow(opened(), label="bleed")
    with pytest.raises(IchError, match="files=channels, not separate"):
        slice_life.follow(opened(preprocess={"files": "separate"}))
    (tmp_path / "test").mkdir()
    (tmp_path / "test/ID_00c.dcm").write_bytes(b"")
    with pytest.raises(IchError, match="have no slice ID_00b"):
        slice_life.follow(opened(data={"sources": [str(tmp_path)]}))
    second = Run(tmp_path, config_of())
    second.environment_path.write_text('{"first_stage": ["runs/one"]}')
    with pytest.raises(
        IchError, match="is a second stage, whose models read no images; give a run that it was trained"
    ):
        slice_life.follow(second)
