import base64
import json
import re
import runpy
import shutil
import subprocess
import sys
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.special import expit
from test_pictures import THREE, write_images
from test_scan_page import read as scan_parts

from ich.competition import folds
from ich.competition.labels import LABELS
from ich.config import Config
from ich.errors import IchError
from ich.images import slice_table
from ich.report import figures, galleries, heat, page, pictures, run_scan
from ich.results import commands, compare
from ich.results.predictions import read_predictions, write_predictions
from ich.training import run_directory

SCRIPTS = Path(__file__).parents[2] / "scripts"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
N = 36  # slices, one of which cannot be read, of 12 patients
SIZE = 32  # pixels


def script(name, *arguments):
    runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"](list(map(str, arguments)))


class Page(HTMLParser):
    """What a page says, its pictures, and what it would load."""

    def __init__(self, path):
        super().__init__()
        self.text, self.images, self.loads, self.tags = "", [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.text += " "
        self.tags.append(tag)
        if tag == "img":
            self.images.append(attributes)
        self.loads += [attributes[name] for name in ("src", "href", "srcset", "data", "action") if name in attributes]

    def handle_data(self, data):
        self.text += data

    @property
    def plain(self):
        return " ".join(self.text.split())


def predictions(table, seed=0):
    truth = 2.0 * table[list(LABELS)].to_numpy() - 1
    values = expit(truth + np.random.default_rng(seed).normal(0, 1, truth.shape))
    return pd.DataFrame(values.astype(np.float32), index=table.index, columns=list(LABELS))


def write_run(path, config, oof, **files):
    path.mkdir(parents=True)
    write_predictions(oof, path / "oof.parquet")
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    digest = sha256(Path("images/folds.csv").read_bytes()).hexdigest()
    facts = {"python": "3.11.7", "packages": {"keras": "3.15.1"}, "commit": "<b>0123</b>", "folds_sha256": digest}
    (path / "environment.json").write_text(json.dumps(facts))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))


def config_of(name, **data):
    data = {"sources": ["a.zip"], "images": "images"} | data
    sections = {"preprocess": {"windows": ["brain", "subdural", "bone"], "size": SIZE}, "folds": {"n": 2}}
    model = {"name": "small_cnn", "weights": None}
    machine = {"workers": 1}
    return Config(name=name, data=data, model=model, machine=machine, **sections).model_dump(mode="json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with images, folds, a run of untrained models, a blend of it, and the reports of both."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        table = write_images(Path("images"), THREE, n=N, shape=(SIZE, SIZE))
        settings = json.loads(Path("images/settings.json").read_text()) | {"size": SIZE}
        Path("images/settings.json").write_text(json.dumps(settings))
        ok = table[table["status"] == "ok"].set_index("SOPInstanceUID")
        labels = (np.random.default_rng(0).random((len(ok), 6)) < 0.4).astype(np.int8)
        labels[:, 5] = labels[:, :5].max(axis=1)
        fold_table = pd.DataFrame(labels, index=ok.index, columns=list(LABELS))
        fold_table = fold_table.assign(
            PatientID=ok["PatientID"], fold=(ok["PatientID"].str[1:].astype(int) % 2).astype("int64")
        )
        folds.write_folds("images/folds.csv", fold_table)
        write_run(Path("runs/one"), config_of("one"), predictions(fold_table))
        from ich.models import backbones  # TensorFlow, for the tests of this fixture alone

        for k in (0, 1):
            (Path("runs/one") / f"fold{k}").mkdir()
            backbones.build_model("small_cnn", (SIZE, SIZE, 3)).save(Path("runs/one") / f"fold{k}" / "model.keras")
            losses = {name: [0.7, 0.5] for name in ("loss", "weighted_log_loss")}
            losses |= {f"val_{name}": [0.8, 0.6125 + k] for name in losses}
            history = pd.DataFrame(losses | {f"val_auc_{label}": [0.5, 0.9] for label in LABELS})
            history.rename_axis("epoch").to_csv(Path("runs/one") / f"fold{k}" / "history.csv")
        work = commands.Work(Path("runs/one"), "predictions_test.parquet")
        write_predictions(predictions(fold_table)[:5] * 0, Path("runs/one/predictions_test.parquet"))
        work.done("predict", ["runs/one", "--set", "predict.tta=[none, flip]"])
        write_run(Path("runs/other"), config_of("other"), predictions(fold_table, seed=1))
        script("blend", "runs/one", "runs/other", "--out", "runs/blend", "--by-label")
        script("report", "runs/one", "--pages")
        code = (
            "import runpy, sys; path, sys.argv = sys.argv[1], sys.argv[1:]; runpy.run_path(path, run_name='__main__');"
        )
        code += "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
        command = [sys.executable, "-c", code, SCRIPTS / "report.py", "runs/blend"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed = done.stdout.splitlines()
        assert (printed[0], printed[-1]) == ("wrote: runs/blend/report.html", "[]")  # a blend needs no TensorFlow
    return folder


@pytest.fixture
def workdir(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def undrawn(workdir, monkeypatch):
    """The same, with charts left empty, which are half the work of a report: for what stands in its text alone."""
    monkeypatch.setattr(figures, "svg", lambda figure: b"<svg/>")
    return workdir


def test_the_page_needs_nothing_beside_it(finished):
    for name in ("one", "blend"):
        report = Page(finished / "runs" / name / "report.html")
        assert all(load.startswith(("data:", "#", *(["scans/"] if name == "one" else []))) for load in report.loads)
        assert not {"script", "iframe", "object", "embed"} & set(report.tags)
        style = re.search(r"<style>(.*?)</style>", (finished / "runs" / name / "report.html").read_text(), re.DOTALL)[1]
        assert "url(" not in style
        assert "@import" not in style
        assert all(len(image["alt"]) > 10 for image in report.images)


def test_the_galleries_link_to_the_slices_in_the_pages_of_their_scans(finished):
    report = Page(finished / "runs/one/report.html")
    links = [load for load in report.loads if load.startswith("scans/")]
    assert len(links) == report.plain.count("the whole scan") == 18  # a slice a label in each of three galleries
    ids = re.findall(r"<p>(ID_\d+)", (finished / "runs/one/report.html").read_text(encoding="utf-8"))
    oof = read_predictions(finished / "runs/one/oof.parquet")
    for id, link in zip(ids, links, strict=True):
        file, _, place = link.partition("#")
        data = scan_parts(finished / "runs/one" / file).data()
        assert data["ids"][int(place) - 1] == id
        np.testing.assert_allclose(data["probabilities"][int(place) - 1], oof.loc[id], atol=1e-5)
    assert len(list((finished / "runs/one/scans").iterdir())) == len({link.partition("#")[0] for link in links})
    assert not (finished / "runs/blend/scans").exists()


def test_a_slice_without_a_series_or_a_readable_scan_has_no_page(workdir):
    results = compare.read_results([Path("runs/one")])
    slices = slice_table.read_table(Path("images/slices.parquet"))
    slices.loc[slices["SOPInstanceUID"] == "ID_00", "SeriesInstanceUID"] = None
    Path("images/train/ID_03.png").unlink()
    pages = galleries._pages(Path("runs/one"), Path("images"), results, slices, {"ID_00", "ID_03", "ID_09"})
    assert pages["ID_00"].absent == "the series of this slice is not known"
    assert "ID_03.png" in pages["ID_03"].absent
    assert Path("runs/one", pages["ID_09"].partition("#")[0]).exists()


def test_the_score_stands_with_its_interval_beside_the_floor(finished, monkeypatch):
    monkeypatch.chdir(finished)
    from ich.competition import metrics

    read = compare.read_results([Path("runs/one")])
    row = compare.compare(read.table, read.oof, "runs/one").iloc[0]
    floor = metrics.prevalence_log_loss(read.table[list(LABELS)])
    text = Page(Path("runs/one/report.html")).plain
    assert f"one {row['weighted_log_loss']:.4f} Out-of-fold weighted log loss" in text
    assert f"{row['low']:.4f} to {row['high']:.4f} (bootstrap over patients)" in text
    assert f"prevalence baseline scores {floor:.4f}" in text
    assert f"{N - 1} slices of 12 patients in 2 folds" in text


def test_a_run_shows_its_learning_its_slices_and_where_it_comes_from(finished):
    report = Page(finished / "runs/one/report.html")
    alts = [image["alt"] for image in report.images]
    assert any("fold 0 ends at 0.6125; fold 1 ends at 1.6125" in alt for alt in alts)
    assert sum(alt.startswith("Grad-CAM of ") for alt in alts) == 18  # a slice a label in each of three galleries
    assert sum("brain window" in alt and alt.startswith("slice ") for alt in alts) == 18
    assert sum(alt.startswith("probability of ") for alt in alts) == 18
    for words in (
        "train: 36 slices repaired (wrapped): 1 without an image, truncated: 1",
        "No patient is in two folds.",
        "mean of 5 test slices",
        "12 bits",
        "python scripts/predict.py runs/one --set 'predict.tta=[none, flip]' python scripts/report.py",
        "packages: keras 3.15.1",
        "there are no steps to compare",
        "name: small_cnn",
    ):
        assert words in report.plain, words


def test_what_is_put_in_is_escaped(finished):
    assert "commit <b>0123</b>" in Page(finished / "runs/one/report.html").plain


def test_a_blend_says_what_it_lacks_and_what_it_gained(finished):
    report = Page(finished / "runs/blend/report.html")
    score = json.loads((finished / "runs/blend/score.json").read_text())
    for words in (
        "no fold has a training history here",
        "this directory has no models: there is no Grad-CAM",
        "there are no test predictions",
        f"Gain over the best member, {score['best_run']}: {score['gain']:+.4f}",
        f"{score['weights']['epidural']['runs/one']:.3f}",
        "python scripts/blend.py runs/one runs/other --out runs/blend --by-label",
    ):
        assert words in report.plain, words
    assert not [image for image in report.images if "Grad-CAM" in image["alt"]]


def test_pictures_are_those_of_the_slices(finished):
    import base64

    from ich.images import png

    for image in Page(finished / "runs/one/report.html").images:
        match = re.fullmatch(r"slice (ID_\d+), (\w+) window", image["alt"])
        if match:
            data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
            stored = png.decode((finished / "images/train" / f"{match[1]}.png").read_bytes())
            channel = ["brain", "subdural", "bone"].index(match[2])
            np.testing.assert_array_equal(png.decode(data)[..., 0], stored[..., channel])


def test_what_does_not_exist_is_n_a(undrawn):
    """A label that no slice has; and slices whose study the table does not tell."""
    table = folds.read_folds("images/folds.csv").assign(epidural=0)
    table["any"] = table[list(LABELS[:-1])].max(axis=1)
    folds.write_folds("images/folds.csv", table.astype(dict.fromkeys(LABELS, "int8")))
    facts = json.loads(Path("runs/blend/environment.json").read_text())
    facts["folds_sha256"] = sha256(Path("images/folds.csv").read_bytes()).hexdigest()
    Path("runs/blend/environment.json").write_text(json.dumps(facts))
    rows = slice_table.read_table(Path("images/slices.parquet")).assign(StudyInstanceUID=None)
    slice_table.write_table(rows, Path("images/slices.parquet"))
    script("report", "runs/blend")
    page = Path("runs/blend/report.html").read_text()
    assert re.search(r"<th[^>]*>epidural</th>(<td>[^<]*</td>){6}(<td>n/a</td>){3}", page)
    assert re.search(r">deviation</th>(<td></td>){2}<td>n/a</td><td>[0-9.]+%</td>", page)
    assert not re.search(r"(>|study|\s)[-+]?(nan|inf)\b", Page(Path("runs/blend/report.html")).plain, re.IGNORECASE)


def test_without_images_the_rest_stands(undrawn):
    Path("images/folds.csv").rename("folds.csv")
    shutil.rmtree("images")
    script("report", "runs/blend", "--folds", "folds.csv")
    report = Page(Path("runs/blend/report.html"))
    assert report.plain.count("images/slices.parquet does not exist") == 3  # weak spots, galleries, conversion
    assert any("ROC curves" in image["alt"] for image in report.images)


def test_a_picture_that_is_gone_is_reported_in_its_place(undrawn):
    for path in Path("images/train").glob("*.png"):
        path.unlink()
    Path("runs/one/fold0/history.csv").write_text("loss\n0.1")
    Path("runs/one/score.json").write_text("{")
    script("report", "runs/one")
    report = Page(Path("runs/one/report.html"))
    assert "runs/one/fold0/history.csv is not the history of a training" in report.plain
    message = "runs/one/score.json, which every result of train_kfold, train_sequence and blend has, cannot be read"
    assert report.plain.count(message) == 1  # in place of what the steps gained
    assert "was it converted?" in report.plain
    assert sum(image["alt"].startswith("probability of ") for image in report.images) == 18


def test_a_second_stage_is_described_beside_the_first_and_a_damaged_model_costs_grad_cam_alone(undrawn):
    Path("runs/one/fold1/model.keras").write_bytes(b"no zip")
    score = {"weighted_log_loss": 0.3, "of_first_stage": 0.4, "of_kinds": {"recurrent": 0.31, "linear": 0.33}}
    score["weights"] = {"test": {"recurrent": 0.7, "linear": 0.3}}
    Path("runs/one/score.json").write_text(json.dumps(score))
    Path("runs/one/fold0/history.csv").write_text("seed,epoch,loss\n0,0,0.1\n")
    script("report", "runs/one")
    report = Page(Path("runs/one/report.html"))
    assert "their training loss is in runs/one/fold<k>/history.csv" in report.plain.replace("&lt;", "<").replace(
        "&gt;", ">"
    )
    assert "The first stage scores 0.4000: the second gains +0.1000." in report.plain
    assert "Its kind recurrent alone scores 0.3100; its weight is 0.70." in report.plain
    assert "the model runs/one/fold1/model.keras cannot be read" in report.plain
    assert not [image for image in report.images if "Grad-CAM" in image["alt"]]


def test_a_page_of_a_scan_has_grad_cam_of_the_runs_models(workdir, capsys):
    Path("runs/one/predictions_test.parquet").unlink()  # here, of the same slices
    script("view_study", "runs/one", "ID_00", "--out", "scan.html", "--grad-cam")
    assert "wrote: scan.html: 2 slices" in capsys.readouterr().out
    written = scan_parts(Path("scan.html"))
    assert "Grad-CAM of the fold's model that has not seen the patient" in written.text
    place = written.data()["ids"].index("ID_00")
    data = np.frombuffer(base64.b64decode(written.of("heat")[place]), np.uint8)
    heat_map = cv2.imdecode(data, cv2.IMREAD_UNCHANGED).reshape(6, SIZE, SIZE)

    from ich.models import gradcam
    from ich.training import inference

    run, fold_table = run_directory.Run.open(Path("runs/one")), folds.read_folds("images/folds.csv")
    windows = pictures.windows_of(Path("images"), "train/ID_00.png", THREE)
    image = np.repeat(np.stack(list(windows.values()), axis=-1)[None], 6, axis=0)
    maps = {k: gradcam.heatmaps(inference.load_model(run, k), image, np.arange(6)) for k in (0, 1)}
    p = read_predictions(Path("runs/one/oof.parquet")).loc["ID_00"].to_numpy()
    expected = maps[fold_table.at["ID_00", "fold"]] * p[:, None, None] * 255
    assert expected.max() > 10
    assert abs(heat_map - expected).max() <= 1

    shutil.copytree("images/train", "images/test")
    slices = slice_table.read_table(Path("images/slices.parquet"))
    rows = slices[slices["SOPInstanceUID"] == "ID_00"].assign(split="test")
    of_test = run_scan.grad_cam(Path("runs/one"), fold_table, rows)
    np.testing.assert_allclose(of_test[0], maps[0], atol=1e-5)  # the first fold's model


def test_what_the_passes_gain_and_what_made_a_second_stage(undrawn):
    score = {"weighted_log_loss": 0.3, "plain_weighted_log_loss": 0.32, "tta": ["none", "flip"]}
    Path("runs/one/score.json").write_text(json.dumps(score))
    facts = json.loads(Path("runs/one/environment.json").read_text())
    Path("runs/one/environment.json").write_text(json.dumps(facts | {"first_stage": ["runs/first"]}))
    with pytest.raises(IchError, match=r"there is no Grad-CAM$"):  # as if runs/first were a table of scores
        next(heat.heatmaps(Path("runs/one"), pd.Series(dtype=int), []))
    Path("runs/first").mkdir()
    script("report", "runs/one")
    report = Page(Path("runs/one/report.html"))
    assert "scores 0.3200: the TTA passes (none, flip) gain +0.0200." in report.plain
    assert "there is no Grad-CAM; see the report of runs/first" in report.plain
    assert not [image for image in report.images if "Grad-CAM" in image["alt"]]


def test_a_directory_that_does_not_tell_its_commands_says_so(undrawn):
    Path("runs/one/commands.jsonl").unlink()
    for k in (0, 1):
        Path(f"runs/one/fold{k}/model.keras").unlink()  # whose Grad-CAM takes seconds
    script("report", "runs/one")
    assert "runs/one has no commands.jsonl with the commands" in Page(Path("runs/one/report.html")).plain
    assert "python scripts/" not in Page(Path("runs/one/report.html")).plain
    Path("runs/one/commands.jsonl").write_text("half a li")
    script("report", "runs/one", "--folds", "images/folds.csv")
    assert (
        "runs/one/commands.jsonl, which lists the commands that made a result, is damaged"
        in Page(Path("runs/one/report.html")).plain
    )


def test_images_of_other_slices_are_reported(undrawn):
    write_images(Path("images"), n=0)
    script("report", "runs/blend")
    report = Page(Path("runs/blend/report.html"))
    assert "the slice table has none of these slices" in report.plain
    assert "this slice has no position in a scan" in report.plain


def test_a_directory_without_predictions_is_refused(workdir):
    Path("runs/one/oof.parquet").unlink()
    with pytest.raises(IchError, match=r"runs/one/oof.parquet does not exist"):
        script("report", "runs/one")


def test_a_large_slice_is_made_smaller():
    import base64

    data = page.png_picture(np.zeros((512, 384), np.uint8), "nothing", "").source.partition(",")[2]
    assert cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED).shape == (256, 192)


def browse(path, folder, width):
    """Open a page in a headless browser: what the page asked the network for, what the console said, and a picture."""
    folder.mkdir()
    log, picture = folder / "net.json", folder / "page.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    command += [f"--log-net-log={log}", f"--screenshot={picture}", f"--window-size={width},3000"]
    command += ["--disable-background-networking", f"--user-data-dir={folder / 'profile'}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # What the browser asks for by itself has no page as its origin.
    asked = {event["url"] for event in events if event.get("initiator", "not an origin") != "not an origin"}
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return asked, said, cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome is installed")
def test_in_a_browser_it_asks_for_nothing_and_complains_of_nothing(finished, tmp_path):
    path = finished / "runs/one/report.html"
    for width in (1200, 390):
        asked, said, seen = browse(path, tmp_path / str(width), width)
        assert (asked, said) == (set(), [])
        assert seen.shape == (3000, width)
        assert all(part.std() > 5 for part in np.split(seen, 3))  # nowhere empty
    # A page that does both is found out.
    bad = "<img src='http://127.0.0.1:9/x.png'><script>console.error('bad')</script></main>"
    (tmp_path / "bad.html").write_text(path.read_text().replace("</main>", bad))
    asked, said, _ = browse(tmp_path / "bad.html", tmp_path / "bad", 390)
    assert asked == {"http://127.0.0.1:9/x.png"}
    assert len(said) >= 1
