"""The page of a scan, and the list of scans, in Chromium."""

import base64
import sys

import chromium
import cv2
import numpy as np
import pytest
from test_scan_page import NASTY, row_of, view_of

from ich.competition.labels import LABELS
from ich.dicom.windows import PRESETS, Window, apply_window
from ich.report.scan_page import write_index, write_scan_page

pytestmark = pytest.mark.skipif(
    chromium.PROGRAM is None or sys.platform == "win32", reason="there is no Chromium (apt-get install chromium)"
)
WIDTHS = pytest.mark.parametrize("width", [1280, 390])
READY = "document.getElementById('status').textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = chromium.Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the page of a scan and waits for its first slice; in the end, it must have asked for and said nothing."""

    def opened(view, width=1280):
        path = tmp_path / "scan.html"
        write_scan_page(view, path, "index.html")
        browser.open(path, width)
        browser.wait(READY)
        return browser

    yield opened
    assert browser.requested() == [(tmp_path / "scan.html").as_uri()]
    assert browser.messages() == []


def status(browser, start):
    """Wait until the line below the slice starts so."""
    return browser.wait(f"{READY}.startsWith({start!r}) && {READY}")


def pixels(browser, id="slice"):
    """The pixels of a canvas, uint8 (height, width, 4)."""
    url = browser.js(f"document.getElementById({id!r}).toDataURL()")
    data = np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8)
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)


def box(browser, id):
    return browser.js(
        f"(b => [b.left, b.top, b.width, b.height])(document.getElementById({id!r}).getBoundingClientRect())"
    )


@WIDTHS
def test_the_canvas_shows_each_slice_in_each_preset(opened, width):
    view = view_of()
    browser = opened(view, width)
    for place in range(5):
        browser.key("Home")
        for _ in range(place):
            browser.key("ArrowDown")
        for number, window in enumerate(PRESETS.values(), 1):
            browser.key(str(number))
            status(
                browser,
                f"Slice {place + 1} of 5{f', z {5 * place}.0 mm' if place < 4 else ''}; level {window.center}, width",
            )
            image = pixels(browser).astype(int)
            assert abs(image[..., :3] - apply_window(view.hu[place], window)[..., None]).max() <= 1
            assert image[..., 3].min() == 255
    assert browser.js("document.querySelector('#presets [aria-pressed=true]').textContent") == "5 bone"


def test_keys_and_the_wheel_move_through_the_slices(opened):
    browser = opened(view_of(n=40))
    status(browser, "Slice 39 of 40")  # the strongest
    moves = [("Home", 1), ("ArrowDown", 2), ("PageDown", 7), ("ArrowUp", 6), ("PageUp", 1), ("ArrowUp", 1), ("End", 40)]
    for key, place in moves:
        browser.key(key)
        status(browser, f"Slice {place} of 40")
    left, top, *_ = box(browser, "stage")
    for delta, place in ((-100, 39), (-20, 39), (-40, 38), (100, 39)):
        browser.mouse("mouseWheel", left + 50, top + 50, deltaX=0, deltaY=delta)
        status(browser, f"Slice {place} of 40")
    assert browser.js("scrollY") == 0
    browser.js("(p => { p.value = 12; p.dispatchEvent(new Event('input')) })(document.getElementById('place'))")
    status(browser, "Slice 12 of 40")


def test_keys_work_wherever_the_focus_is(opened):
    browser = opened(view_of(n=40, heat=np.zeros((40, 6, 2, 2), np.uint8)))
    level, width = "state.level", "state.width"

    def focus(css):
        browser.js(f"document.activeElement.blur(), document.querySelector({css!r})?.focus()")

    for css in ("none", "#presets button", "nav a", "#strongest button", "#stage"):
        focus(css)
        browser.key("Home")
        status(browser, "Slice 1 of 40")
        browser.key("ArrowDown")
        browser.key("PageDown")
        status(browser, "Slice 7 of 40")
        browser.key("3")
        browser.wait(f"{width} === 40")
        browser.key("1")
        browser.wait(f"{width} === 80")
    left, top, *_ = box(browser, "keys")
    browser.click(left + 5, top + 5)  # onto text
    assert browser.js("document.activeElement.tagName") == "BODY"
    browser.key("End")
    status(browser, "Slice 40 of 40")

    browser.js("document.querySelector('#labels label').click(), document.querySelector('#labels input').focus()")
    browser.key("3")
    browser.wait(f"{width} === 40")
    browser.key("Home")
    status(browser, "Slice 1 of 40")
    browser.key("ArrowDown")
    assert browser.js("document.getElementById('chosen').textContent") == LABELS[1]
    status(browser, "Slice 1 of 40")

    focus("#level")
    browser.js("document.getElementById('level').select()")
    browser.key("1")
    browser.wait(f"{level} === 1")
    browser.key("Home")
    browser.key("ArrowUp")
    browser.wait(f"{level} === 2")
    browser.key("PageDown")
    status(browser, "Slice 6 of 40")

    focus("#opacity")
    browser.key("End")
    browser.wait("document.getElementById('opacity').value === '100'")
    browser.key("2")
    browser.wait(f"{level} === 80")
    status(browser, "Slice 6 of 40")


@pytest.mark.parametrize("css", ["#stage", "none"])
def test_space_scrolls_the_page(opened, css):
    browser = opened(view_of(n=40), 390)
    browser.js(f"document.activeElement.blur(), document.querySelector({css!r})?.focus()")
    browser.key(" ")
    browser.wait("scrollY > 300")


def test_the_address_may_name_a_slice(browser, tmp_path):
    write_scan_page(view_of(), tmp_path / "scan.html")
    for fragment, place in (("#2", 2), ("#5", 5), ("#6", 4), ("#0", 4), ("#1.5", 4), ("#x", 4), ("", 4)):
        browser.send("Page.navigate", url="about:blank")
        browser.send("Page.navigate", url=(tmp_path / "scan.html").as_uri() + fragment)
        browser.wait("location.protocol === 'file:' && document.readyState === 'complete'")
        status(browser, f"Slice {place} of 5")
    browser.js("location.hash = '#3', 0")
    status(browser, "Slice 3 of 5")


def test_dragging_changes_width_and_level(opened):
    view = view_of()
    browser = opened(view)
    left, top, *_ = box(browser, "stage")
    browser.key("2")  # subdural: level 80, width 200
    browser.mouse("mousePressed", left + 100, top + 100, button="left", buttons=1)
    browser.mouse("mouseMoved", left + 164, top + 68, button="left", buttons=1)
    browser.mouse("mouseReleased", left + 164, top + 68, button="left")
    status(browser, "Slice 4 of 5, z 15.0 mm; level 55, width 250 HU")
    assert abs(pixels(browser)[..., 0].astype(int) - apply_window(view.hu[3], Window(55, 250))).max() <= 1
    browser.mouse("mouseMoved", left + 300, top + 300)
    status(browser, "Slice 4 of 5, z 15.0 mm; level 55, width 250 HU")
    browser.js("(w => { w.value = 90; w.dispatchEvent(new Event('input')) })(document.getElementById('width'))")
    status(browser, "Slice 4 of 5, z 15.0 mm; level 55, width 90 HU")


def test_a_finger_changes_width_and_level_and_does_not_scroll(opened):
    browser = opened(view_of(n=40), 390)
    browser.send("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        left, top, *_ = box(browser, "stage")
        for kind, points in (
            ("touchStart", [{"x": left + 100, "y": top + 200}]),
            ("touchMove", [{"x": left + 120, "y": top + 150}]),
            ("touchMove", [{"x": left + 164, "y": top + 104}]),
            ("touchEnd", []),
        ):
            browser.send("Input.dispatchTouchEvent", type=kind, touchPoints=points)
        status(browser, "Slice 39 of 40, z 190.0 mm; level 10, width 100 HU")
        assert browser.js("scrollY") == 0
    finally:
        browser.send("Emulation.setTouchEmulationEnabled", enabled=False)


@WIDTHS
def test_a_click_in_the_chart_jumps_to_the_slice(opened, width):
    browser = opened(view_of(n=40), width)
    browser.js("chart.scrollIntoView({block: 'center'})")
    left, top, wide, high = box(browser, "chart")
    unit = wide / browser.js("chart.viewBox.baseVal.width")
    for place in (1, 20, 40):
        x = browser.js(f"across({place - 1})") * unit
        browser.click(left + x, top + high / 3)
        status(browser, f"Slice {place} of 40")
        assert float(browser.js("cursor.getAttribute('x1')")) * unit == pytest.approx(x)


def test_the_strongest_slices_of_the_chosen_label_come_first(opened):
    p = np.random.default_rng(3).random((30, 6))
    truth = np.zeros((30, 6), int)
    truth[:, 1] = np.arange(30) % 2
    browser = opened(view_of(n=30, probabilities=p, labels=truth))
    browser.js("document.querySelectorAll('#labels input')[1].click()")
    order = np.argsort(-p[:, 1])[:10]
    expected = [f"{k + 1}: {p[k, 1]:.3f}{' ✓' if truth[k, 1] else ''}" for k in order]
    assert browser.js("[...document.querySelectorAll('#strongest button')].map(b => b.textContent)") == expected
    assert browser.js("document.getElementById('chosen').textContent") == LABELS[1]
    browser.js("document.querySelectorAll('#strongest button')[2].click()")
    line = status(browser, f"Slice {order[2] + 1} of 30")
    assert line.endswith(f"{LABELS[1]} {p[order[2], 1]:.3f}")
    shown = browser.js(
        "[...document.querySelectorAll('#labels tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    for k, row in enumerate(shown):
        best = p[:, k].argmax()
        assert row == [
            LABELS[k],
            f"{p[order[2], k]:.3f}",
            f"{p[best, k]:.3f} at {best + 1}",
            "yes" if truth[order[2], k] else "no",
        ]
    browser.js("document.querySelectorAll('#labels button')[4].click()")
    status(browser, f"Slice {p[:, 4].argmax() + 1} of 30")
    assert browser.js("document.querySelector('#labels input:checked').closest('tr').textContent").startswith(LABELS[4])


@WIDTHS
def test_a_slab_has_one_button_and_is_described_below_the_slice(opened, width):
    slabs = np.repeat([0, 1, 2], [7, 8, 1])
    truth = np.zeros((16, 6), int)
    truth[14] = 1
    view = view_of(n=16, probabilities=np.array([0.2, 0.9, 0.5])[slabs, None] * np.ones(6), groups=slabs, labels=truth)
    browser = opened(view, width)
    status(browser, "Slice 11 of 16")
    slab_text = "document.getElementById('slab').textContent"
    assert browser.js(slab_text) == "slab of slices 8 to 15, which the model read as one"
    assert browser.js("[...document.querySelectorAll('#strongest button')].map(b => b.textContent)") == [
        "8–15: 0.900 ✓",
        "16: 0.500",
        "1–7: 0.200",
    ]
    assert ("button", "slices 8 to 15, any 0.900 ✓") in names(browser)
    current = "document.querySelector('#strongest [aria-current=true]').value"
    for key, place, button in (("ArrowDown", 12, "10"), ("End", 16, "15"), ("Home", 1, "3")):
        browser.key(key)
        status(browser, f"Slice {place} of 16")
        assert browser.js(current) == button
        assert ("alone" in browser.js(slab_text)) == (place == 16)
    browser.js("document.querySelectorAll('#strongest button')[0].click()")
    status(browser, "Slice 11 of 16")


def test_grad_cam_lies_over_the_slice_as_the_slider_says(opened):
    heat = np.random.default_rng(1).integers(0, 256, (5, 6, 3, 4)).astype(np.uint8)
    view = view_of(heat=heat)
    browser = opened(view)
    browser.js("document.querySelectorAll('#labels input')[2].click()")
    opacity = "Number(getComputedStyle(document.getElementById('heat')).opacity)"
    assert browser.js(opacity) == 0
    browser.js("(o => { o.value = 60; o.dispatchEvent(new Event('input')) })(document.getElementById('opacity'))")
    assert browser.js(opacity) == pytest.approx(0.6)
    overlay = pixels(browser, "heat")
    np.testing.assert_array_equal(overlay[..., 3], heat[3, 2])  # clear where there is none
    assert (overlay[..., 0] >= 254)[heat[3, 2] > 100].all()
    assert box(browser, "heat") == box(browser, "slice")
    assert abs(pixels(browser)[..., 0].astype(int) - apply_window(view.hu[3], PRESETS["brain"])).max() <= 1


@WIDTHS
def test_text_stays_text(opened, width):
    view = view_of(title=NASTY, facts=[(NASTY, NASTY)], ids=[NASTY + str(k) for k in range(5)], heat_note=NASTY)
    browser = opened(view, width)
    assert browser.js("document.title") == browser.js("document.querySelector('h1').textContent") == NASTY
    assert browser.js("document.getElementById('id').textContent") == view.ids[3]
    assert browser.js("document.querySelectorAll('script').length") == 7


def test_a_script_that_is_not_the_pages_own_does_not_run(browser, tmp_path):
    write_scan_page(view_of(), tmp_path / "scan.html")
    text = (tmp_path / "scan.html").read_text(encoding="utf-8")
    intruder = "<script>window.intruder = 1</script><img src='http://localhost:1/a.png' onerror='window.intruder = 1'>"
    (tmp_path / "scan.html").write_text(text.replace("</h1>", f"</h1>{intruder}"), encoding="utf-8")
    browser.open(tmp_path / "scan.html")
    browser.wait(READY)
    assert browser.js("typeof window.intruder") == "undefined"
    assert len([event for event in browser.messages() if "Content Security Policy" in str(event)]) >= 2
    assert not [e for e in browser.events if e["method"] == "Network.responseReceived" and "localhost" in str(e)]


def test_a_damaged_slice_is_reported_and_the_others_are_shown(browser, tmp_path):
    write_scan_page(view_of(), tmp_path / "scan.html")
    text = (tmp_path / "scan.html").read_text(encoding="utf-8")
    at = text.index('class="hu">') + 400
    (tmp_path / "scan.html").write_text(text[:at] + "AAAAAAAA" + text[at + 8 :], encoding="utf-8")
    browser.open(tmp_path / "scan.html")
    status(browser, "Slice 4 of 5")
    browser.key("Home")
    browser.wait("document.getElementById('alarm').textContent.startsWith('Slice 1 cannot be shown')")
    assert browser.js(READY).startswith("Slice 4 of 5")  # which is what is drawn
    browser.key("ArrowDown")
    status(browser, "Slice 2 of 5")


def test_a_slice_that_is_unpacked_late_does_not_replace_a_later_one(opened):
    browser = opened(view_of())
    browser.js("unpacked.set(0, unpack(0).then(p => new Promise(done => { window.finish = () => done(p) }))), 0")
    browser.js("go(0), 0")
    browser.js("go(2)")
    browser.js("finish(), new Promise(done => setTimeout(done, 50))")
    assert browser.js(READY).startswith("Slice 3 of 5")


@pytest.mark.parametrize("n", [1, 600])
def test_one_slice_and_many(opened, n):
    browser = opened(view_of(n=n, rows=8, columns=8))
    status(browser, f"Slice {max(1, n - 1)} of {n}")
    browser.key("End")
    status(browser, f"Slice {n} of {n}{', z 0.0 mm' if n == 1 else ';'}")
    browser.js("chart.scrollIntoView({block: 'center'})")
    left, top, wide, high = box(browser, "chart")
    browser.click(
        left + browser.js(f"across({n // 2})") * wide / browser.js("chart.viewBox.baseVal.width"), top + high / 2
    )
    place = browser.wait(f"state.drawn.place !== {n - 1 if n > 1 else -1} && state.drawn.place + 1")
    assert abs(place - (n // 2 + 1)) <= 1  # of 600, a slice is a pixel wide


@WIDTHS
def test_the_sides_of_the_patient_stay_at_the_edges(opened, width):
    """In print and at twice the size too, and a click passes through them."""
    browser = opened(view_of(edges=("R", "L", "A", "P")), width)
    at = "[...document.querySelectorAll('.mark')].map(m => (b => [m.textContent, b.left, b.top, b.right, b.bottom])"
    at += "(m.getBoundingClientRect()))"
    for doing in ("0", "zoom(0.5, 0.5)", "print"):
        if doing == "print":
            browser.send("Emulation.setEmulatedMedia", media="print")
        else:
            browser.js(doing)
        x, y, wide, high = box(browser, "stage")
        near = {"R": x, "L": x + wide, "A": y, "P": y + high}
        for name, left, top, right, bottom in browser.js(at):
            edge = {"R": left, "L": right, "A": top, "P": bottom}[name]
            assert 0 <= abs(edge - near[name]) <= 0.05 * high
            assert x <= left < right <= x + wide
            assert y <= top < bottom <= y + high
            middle = (left + right) / 2 - x - wide / 2 if name in "AP" else (top + bottom) / 2 - y - high / 2
            assert abs(middle) <= 1
            assert browser.js(f"document.elementFromPoint({(left + right) / 2}, {(top + bottom) / 2}).id") == "slice"
        browser.send("Emulation.setEmulatedMedia", media="")


@WIDTHS
def test_the_parts_fit_the_screen(opened, width):
    labels, title = np.zeros((40, 6), int), f"Scan 1.2.{10**60}"
    browser = opened(view_of(n=40, spacing=(1.0, 0.5), labels=labels, title=title), width)
    assert browser.js("document.documentElement.scrollWidth") == width
    left, _, wide, high = box(browser, "slice")
    assert wide / high == pytest.approx(20 * 0.5 / 24, rel=0.01)
    beside = box(browser, "chart")[0] > left + wide
    assert beside == (width == 1280)
    assert browser.js("(t => t.scrollWidth <= t.clientWidth)(document.getElementById('labels').parentNode)")


CONTRAST = """[...document.querySelectorAll('body *')].filter(e => e.checkVisibility({visibilityProperty: true})
    && [...e.childNodes].some(c => c.nodeType === 3 && c.textContent.trim()) && !e.closest('#stage, svg, script')
).map(e => {
    const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const light = css => css.match(/[\\d.]+/g).slice(0, 3).reduce(
        (sum, v, k) => sum + linear(v / 255) * [0.2126, 0.7152, 0.0722][k], 0);
    let back = e;
    while (back && /, 0\\)/.test(getComputedStyle(back).backgroundColor)) back = back.parentElement;
    const pair = [light(getComputedStyle(e).color), back ? light(getComputedStyle(back).backgroundColor) : 1].sort();
    return [(pair[1] + 0.05) / (pair[0] + 0.05), e.textContent.slice(0, 30)];
}).sort((a, b) => a[0] - b[0])[0]"""  # the lowest contrast of a text to what is behind it (WCAG 2.2), and the text


def names(browser):
    """Role and name of what can be used, as a screen reader is given them."""
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    pairs = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    return [pair for pair in pairs if pair[0] in ("button", "slider", "radio", "spinbutton", "link", "image", "status")]


def test_a_scan_without_probabilities_says_so(opened):
    browser = opened(view_of(probabilities=np.full((5, 6), np.nan)))
    assert browser.js(READY) == "Slice 3 of 5, z 10.0 mm; level 40, width 80 HU"
    assert browser.js("document.getElementById('strongest').textContent") == "no slice has a probability"
    assert browser.js("document.querySelector('#labels tbody').textContent").count("none") == 12


def test_it_can_be_used_by_keyboard_and_screen_reader(opened):
    browser = opened(view_of(heat=np.zeros((5, 6, 2, 2), np.uint8), labels=np.zeros((5, 6), int)))
    assert browser.js(CONTRAST)[0] >= 4.5  # WCAG 2.2, 1.4.3, level AA
    controls = names(browser)
    assert all(name for role, name in controls if role != "status")
    assert {("slider", "slice"), ("slider", "Grad-CAM"), ("spinbutton", "level HU"), ("radio", "epidural")} <= set(
        controls
    )
    assert ("button", "2 subdural") in controls
    assert any(role == "button" and name.startswith("slice 4, any 0.67") for role, name in controls)
    assert browser.js("document.activeElement.id") == "stage"
    seen = []
    for _ in range(9):
        browser.key("Tab")
        seen.append(browser.js("getComputedStyle(document.activeElement).outlineStyle"))
    assert seen == ["solid"] * 9
    browser.js("document.querySelectorAll('#labels input')[5].focus()")
    browser.key("ArrowUp")  # chooses the label above, and no other slice
    assert browser.js("document.getElementById('chosen').textContent") == LABELS[4]
    status(browser, "Slice 4 of 5")


def test_double_click_doubles_the_size_and_the_hu_are_those_below_the_pointer(opened):
    view = view_of()
    browser = opened(view)
    left, top, wide, high = box(browser, "stage")
    for size in (1, 2, 1):
        assert box(browser, "slice")[2] == pytest.approx(size * wide)
        own_left, own_top, own_wide, own_high = box(browser, "slice")
        x, y = round(left + 0.3 * wide), round(top + 0.6 * high)
        browser.mouse("mouseMoved", x, y)
        row, column = int((y - own_top) / own_high * 24), int((x - own_left) / own_wide * 20)
        expected = f"{view.hu[3, row, column]} HU at row {row}, column {column}"
        browser.wait(f"document.getElementById('hu').textContent === {expected!r}")
        browser.click(left + 0.75 * wide, top + 0.25 * high)
        browser.click(left + 0.75 * wide, top + 0.25 * high, clicks=2)


def test_print_shows_the_slice_the_chart_and_the_facts(opened):
    browser = opened(view_of())
    browser.send("Emulation.setEmulatedMedia", media="print")
    try:
        parts = ["slice", "status", "chart", "labels", "presets", "place", "strongest"]
        shown = f"{parts}.filter(id => document.getElementById(id).checkVisibility())"
        assert browser.js(shown) == parts[:4]
        browser.send("Emulation.setDeviceMetricsOverride", width=700, height=1000, deviceScaleFactor=1, mobile=False)
        assert browser.js("document.documentElement.scrollWidth") == 700
        assert browser.js("document.querySelector('.facts').checkVisibility()")
        assert browser.js("document.querySelector('.notice').checkVisibility()")
    finally:
        browser.send("Emulation.setEmulatedMedia", media="")


@WIDTHS
def test_the_list_sorts_by_each_label(browser, tmp_path, width):
    p = np.random.default_rng(0).random((5, 6))
    p[2] = np.nan
    rows = [row_of(f"scan {k}{NASTY}", 0, probabilities=row, slices=k) for k, row in enumerate(p)]
    write_index(rows, [(NASTY, NASTY, NASTY)], tmp_path / "index.html", title=NASTY)
    browser.open(tmp_path / "index.html", width)
    order = "[...document.querySelectorAll('#scans tbody th')].map(cell => Number(cell.textContent[5]))"
    for k, label in enumerate(LABELS):
        head = f"[...document.querySelectorAll('#scans thead button')].find(b => b.textContent === {label!r})"
        down = [*np.argsort(-p[:, k])[:4].tolist(), 2]
        if label != "any":
            browser.js(f"{head}.click()")
            assert browser.js(order) == down
        browser.js(f"{head}.click()")
        assert browser.js(f"{head}.parentNode.getAttribute('aria-sort')") == "ascending" if label != "any" else True
        assert browser.js("document.querySelectorAll('#scans [aria-sort]').length") == 1
    browser.js("document.querySelectorAll('#scans thead button')[0].click()")
    assert browser.js(order) == [0, 1, 2, 3, 4]
    assert browser.js("document.title") == NASTY
    assert browser.js("document.documentElement.scrollWidth") == width
    assert browser.js(CONTRAST)[0] >= 4.5
    assert browser.messages() == []
    assert browser.requested() == [(tmp_path / "index.html").as_uri()]
