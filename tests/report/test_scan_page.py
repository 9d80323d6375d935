"""The page of a scan as a file; test_scan_browser.py has it in a browser."""

import base64
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from ich.competition.labels import LABELS
from ich.dicom.windows import PRESETS, apply_window
from ich.errors import IchError
from ich.report import scan_page
from ich.report.scan_page import IndexRow, ScanView, write_index, write_scan_page

NASTY = "</script><script>alert('1')</script><!-- & \u2028"


def view_of(n=5, rows=24, columns=20, **given):
    """A scan whose strongest slice is the second last; the last has no probabilities and no z."""
    rng = np.random.default_rng(0)
    hu = rng.integers(-1024, 3072, (n, rows, columns)).astype(np.int16)
    hu[:, rows // 4 : -rows // 4] = rng.integers(-150, 251, hu[:, rows // 4 : -rows // 4].shape)
    p = np.linspace(0.01, 0.9, n)[:, None] * np.linspace(0.5, 1, 6)
    z = np.arange(n) * 5.0
    if n > 1:
        p[-1], z[-1] = np.nan, np.nan
    usual = {
        "title": "a scan",
        "facts": [("thickness", "5 mm")],
        "ids": [f"1.2.{k}" for k in range(n)],
        "hu": hu,
        "spacing": (0.5, 0.5),
        "z": z,
        "probabilities": p,
    }
    return ScanView(**usual | given)


class Parts(HTMLParser):
    """The elements of a page as a browser's parser divides them: names, and the content of each script."""

    def __init__(self, text):
        super().__init__()
        self.names, self.scripts, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data):
        if self.names[-1:] == ["script"]:
            attributes, before = self.scripts[-1]
            self.scripts[-1] = attributes, before + data
        self.text += data

    def of(self, name):
        return [text for attributes, text in self.scripts if attributes.get("class") == name]

    def data(self):
        return next(json.loads(text) for attributes, text in self.scripts if attributes.get("id") == "scan")


def read(path):
    return Parts(path.read_text(encoding="utf-8"))


def decoded(data):
    """HU of a slice's PNG, by a library's decoder."""
    upper, lower = np.split(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).astype(int), 2)
    return scan_page.LEVELS[256 * upper + lower]


def test_every_hu_comes_back_within_the_promised_error():
    hu = np.arange(-32768, 32768).astype(np.int16).reshape(256, 256)
    error = abs(decoded(scan_page.encode(hu)) - hu)
    for low, high, most in ((-150, 250, 0), (-1024, -150, 8), (250, 3071, 4), (3071, 32767, 32), (-32768, -1024, 89)):
        assert error[(hu >= low) & (hu <= high)].max() <= most, (low, high)


def test_the_code_is_that_of_the_nearest_level():
    hu = np.random.default_rng(0).integers(-32768, 32768, 500).astype(np.int16)
    nearest = abs(scan_page.LEVELS[:, None] - hu).min(axis=0)
    np.testing.assert_array_equal(abs(decoded(scan_page.encode(hu.reshape(20, 25))).ravel() - hu), nearest)


def test_soft_tissue_has_one_upper_byte():
    """Else noise would change two bytes of a pixel."""
    assert (scan_page.LEVELS[256], scan_page.LEVELS[512]) == (-128, 128)


def test_each_preset_shows_the_same_gray_from_levels():
    """To one gray level in each window that a key chooses; the page's own arithmetic is tested in a browser."""
    hu = np.arange(-3000, 4000).astype(np.int16).reshape(70, 100)
    shown = decoded(scan_page.encode(hu)).astype(np.int16)
    for window in PRESETS.values():
        assert abs(apply_window(hu, window).astype(int) - apply_window(shown, window)).max() <= 1


def test_the_page_holds_each_slice_and_its_numbers(tmp_path):
    heat = np.random.default_rng(1).integers(0, 256, (5, 6, 3, 4)).astype(np.uint8)
    labels = np.arange(30).reshape(5, 6) % 2
    view = view_of(heat=heat, labels=labels, heat_note="of fold 0")
    write_scan_page(view, tmp_path / "a.html", "index.html")
    page = read(tmp_path / "a.html")
    for k in range(5):
        error = abs(decoded(base64.b64decode(page.of("hu")[k])) - view.hu[k])
        assert error.max() <= 8
        heat_map = cv2.imdecode(np.frombuffer(base64.b64decode(page.of("heat")[k]), np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(heat_map.reshape(6, 3, 4), heat[k])
    data = page.data()
    assert data["ids"] == view.ids
    assert data["z"] == [0, 5, 10, 15, None]
    np.testing.assert_allclose(np.array(data["probabilities"][:4]), view.probabilities[:4], atol=1e-5)
    assert data["probabilities"][4] == [None] * 6
    assert data["truth"] == labels.tolist()
    assert data["labels"] == list(LABELS)
    assert data["strongest"] == [[3, 2, 1, 0]] * 6  # the last slice has no probability
    assert data["start"] == 3
    assert data["presets"] == [
        {"name": name.replace("_", " "), "center": window.center, "width": window.width}
        for name, window in PRESETS.items()
    ]
    assert "of fold 0" in page.text
    assert "5 mm" in page.text


def test_what_is_not_known_is_not_there(tmp_path):
    write_scan_page(view_of(spacing=None), tmp_path / "a.html")
    page = read(tmp_path / "a.html")
    assert page.of("heat") == []
    assert page.data()["truth"] is None
    assert "unknown: pixels are drawn square" in page.text
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    for absent in ("All scans", "Grad-CAM <input", "50 mm", "truth</th>"):
        assert absent not in text


def test_a_scan_without_probabilities_opens_in_its_middle(tmp_path):
    write_scan_page(view_of(probabilities=np.full((5, 6), np.nan)), tmp_path / "a.html")
    data = read(tmp_path / "a.html").data()
    assert data["start"] == 2
    assert data["strongest"] == [[]] * 6


def test_a_slab_is_one_of_the_strongest_and_opens_in_its_middle(tmp_path):
    slabs = [0, 0, 0, 1, 1, 1, 1, 3, 3]  # a number may be left out
    p = np.array([0.2, 0.9, 0.5, 0.9])[slabs, None] * np.ones(6)
    view = view_of(n=9, probabilities=p, groups=np.array(slabs))
    thumbnail = write_scan_page(view, tmp_path / "a.html")
    page = read(tmp_path / "a.html")
    assert page.data()["strongest"] == [[4, 7, 1]] * 6
    assert page.data()["slabs"] == [[0, 2]] * 3 + [[3, 6]] * 4 + [[7, 8]] * 2
    assert page.data()["start"] == 4
    assert thumbnail == write_scan_page(view_of(n=1, hu=view.hu[4:5]), tmp_path / "b.html")
    assert "Strongest slabs" in page.text
    write_scan_page(view_of(groups=np.arange(5)), tmp_path / "a.html")
    assert "Strongest slices" in read(tmp_path / "a.html").text


def test_pixels_keep_their_proportions(tmp_path):
    thumbnail = write_scan_page(view_of(spacing=(1.0, 0.25)), tmp_path / "a.html")
    assert "aspect-ratio: 5 / 24" in (tmp_path / "a.html").read_text(encoding="utf-8")
    picture = cv2.imdecode(np.frombuffer(thumbnail, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture.shape == (128, 27)


@pytest.mark.parametrize(
    ("field", "length"), [(250, 50), (126, 50), (124, 20), (51, 20), (49, 10), (26, 10), (24, None)]
)
def test_the_scale_bar_fits_into_the_picture(tmp_path, field, length):
    write_scan_page(view_of(spacing=(1.0, field / 20)), tmp_path / "a.html")
    bars = re.findall(r'id="bar" style="width: ([\d.]+)%".*?(\d+) mm', (tmp_path / "a.html").read_text("utf-8"))
    assert [int(mm) for _, mm in bars] == ([] if length is None else [length])
    for percent, mm in bars:
        assert float(percent) == pytest.approx(100 * int(mm) / field, rel=1e-3)


def test_the_sides_of_the_patient_are_marked_or_said_to_be_unknown(tmp_path):
    marks = {}
    for edges in (None, ("R", "L", "A", "P")):
        write_scan_page(view_of(edges=edges), tmp_path / "a.html")
        text = (tmp_path / "a.html").read_text("utf-8")
        marks[edges] = re.findall(r'class="mark (\w+)"[^>]*>([^<]*)<', text)
        spoken = re.search(r'aria-label="CT slice in gray; ([^"]*)"', text)[1]
        assert ("unknown" in spoken) == (edges is None)
    assert spoken == "of the patient, R is at the left, L is at the right, A is at the top, P is at the bottom"
    assert marks[None] == [("unknown", "orientation unknown")]
    assert marks[edges] == [("left", "R"), ("right", "L"), ("top", "A"), ("bottom", "P")]


def test_the_thumbnail_is_the_strongest_slice_in_the_brain_window(tmp_path):
    view = view_of(rows=128, columns=128)
    thumbnail = cv2.imdecode(np.frombuffer(write_scan_page(view, tmp_path / "a.html"), np.uint8), -1)
    np.testing.assert_array_equal(thumbnail, apply_window(view.hu[3], PRESETS["brain"]))


def test_no_text_becomes_markup(tmp_path):
    write_scan_page(view_of(), tmp_path / "plain.html", "index.html")
    nasty = view_of(title=NASTY, facts=[(NASTY, NASTY)], ids=[NASTY + str(k) for k in range(5)], heat_note=NASTY)
    write_scan_page(nasty, tmp_path / "nasty.html", "index.html")
    plain, page = read(tmp_path / "plain.html"), read(tmp_path / "nasty.html")
    assert page.names == plain.names
    assert page.data()["ids"] == nasty.ids
    assert page.text.count("alert('1')") == 4  # title, heading, fact's name and value


def test_only_the_pages_own_script_may_run_and_nothing_is_loaded(tmp_path):
    write_scan_page(view_of(), tmp_path / "a.html", "index.html")
    write_index([], [], tmp_path / "index.html")
    for name in ("a.html", "index.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
        assert "default-src 'none'; img-src data:;" in policy
        assert "script-src 'sha256-" in policy
        assert not re.findall(r'(?:src|href)="(?!data:|index.html)[^"]*"|url\(|@import', text)


def test_a_page_of_real_size_stays_small(tmp_path):
    """40 slices have at most 8 MB: of a wide head with noise as of a sharp kernel, and in the air around it."""
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 1, (1024, 512)), (0, 0), 0.5).reshape(2, 512, 512)
    noise /= noise.std()
    radius = np.hypot(*(np.indices((512, 512)) - 255.5))
    skull = np.where(radius < 195, 1000 + 20 * noise, -1000 + 8 * noise)
    hu = np.where(radius < 175, 35 + 5 * noise, skull).astype(np.int16)
    write_scan_page(view_of(n=2, hu=hu), tmp_path / "two.html")
    write_scan_page(view_of(n=1, hu=hu[:1]), tmp_path / "one.html")
    a, b = ((tmp_path / f"{name}.html").stat().st_size for name in ("one", "two"))
    assert a + 39 * (b - a) <= 8e6


@pytest.mark.parametrize("n", [1, 600])
def test_one_slice_and_many(tmp_path, n):
    write_scan_page(view_of(n=n), tmp_path / "a.html")
    page = read(tmp_path / "a.html")
    assert len(page.of("hu")) == n
    assert page.data()["start"] == max(0, n - 2)
    assert all(len(order) == min(n, 10) for order in page.data()["strongest"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hu": np.zeros((4, 8, 8), np.int16)}, r"5 slices needs HU as int16 .* got int16 of \(4, 8, 8\)"),
        ({"hu": np.zeros((5, 8, 8), np.float32)}, "got float32"),
        ({"hu": np.zeros((5, 0, 8), np.int16)}, r"got int16 of \(5, 0, 8\)"),
        ({"z": np.zeros(4)}, r"z of shape \(5,\), got \(4,\)"),
        ({"probabilities": np.zeros((5, 5))}, r"probabilities of shape \(5, 6\), got \(5, 5\)"),
        ({"labels": np.zeros((6, 6), int)}, r"labels of shape \(5, 6\), got \(6, 6\)"),
        ({"heat": np.zeros((5, 6, 4, 4))}, "Grad-CAM as uint8 .* got float64"),
        ({"heat": np.zeros((5, 5, 4, 4), np.uint8)}, r"got uint8 of \(5, 5, 4, 4\)"),
        ({"groups": np.zeros(4, int)}, r"groups of shape \(5,\), got \(4,\)"),
        ({"groups": np.array([0, 1, 0, 1, 1])}, "falling numbers"),
        ({"spacing": (0.5, float("nan"))}, "expected two lengths in mm"),
        ({"spacing": (0.0, 0.5)}, "expected two lengths in mm"),
    ],
)
def test_arrays_that_do_not_fit_are_reported(given, message):
    with pytest.raises(IchError, match=message):
        view_of(**given)


def row_of(name, p, **given):
    usual = {"page": f"scans/{name}.html", "title": name, "study": "1.2", "slices": 3, "thumbnail": b"", "notes": []}
    return IndexRow(**usual | {"probabilities": [p] * 6} | given)


def test_the_index_has_the_strongest_scan_first_and_keys_to_sort_by(tmp_path):
    rows = [row_of("low", 0.1), row_of("none", np.nan), row_of("high", 0.93456789), row_of("also low", 0.1)]
    write_index(rows, [("1.2.9", "localizer", "two slices")], tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<th scope="row" data-key="([^"]*)"', text) == ["high", "also low", "low", "none"]
    keys = [re.findall(r'<td data-key="([^"]*)"', line) for line in text.splitlines() if '<th scope="row" data' in line]
    assert keys == [["0.934568"] * 6 + ["3"], ["0.100000"] * 6 + ["3"], ["0.100000"] * 6 + ["3"], [""] * 6 + ["3"]]
    assert text.count("aria-sort=") == 1 + 2  # the head, and its two styles
    assert re.search(r'aria-sort="descending"><button type="button">any<', text)
    assert re.findall(r'<button type="button">(\w+)<', text) == ["scan", "any", *LABELS[:5], "slices"]
    assert "localizer" in text
    assert "Not read: 1 series" in text
    assert scan_page.NOTICE.split(":")[0] in text


def test_an_index_of_nothing_says_so(tmp_path):
    write_index([], [], tmp_path / "index.html", notice="only a test", title="nothing")
    page = read(tmp_path / "index.html")
    assert "no scan was read" in page.text
    assert "only a test" in page.text
    assert "Not read" not in page.text


def test_no_text_of_the_index_becomes_markup(tmp_path):
    write_index([row_of("a", 0.5)], [("a", "b", "c")], tmp_path / "plain.html")
    nasty = row_of(NASTY, 0.5, study=NASTY, notes=[NASTY], page=f'x" onclick="{NASTY}')
    write_index([nasty], [(NASTY, NASTY, NASTY)], tmp_path / "nasty.html", NASTY, NASTY)
    assert read(tmp_path / "nasty.html").names == read(tmp_path / "plain.html").names


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IchError, match="cannot write"):
        write_scan_page(view_of(), tmp_path / "file" / "a.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
