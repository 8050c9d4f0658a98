"""The page in a browser, from a file: it asks for nothing, sorts, fits, and can be read."""

import contextlib
import dataclasses
import http.server
import json
import re
import shutil
import threading

import pytest

from keras_bn.report.html import render_html
from keras_bn.report.results import document
from tests.report.example import conversion, measurement, three_devices
from tests.report.test_html import HOSTILE, hostile

selenium = pytest.importorskip("selenium", reason="drives the browser: pip install selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="needs chromium and chromedriver: apt-get install chromium chromium-driver",
)

WIDTHS = (360, 768, 1280)
SCHEMES = ("light", "dark")
LONG = "very_long_name_without_an_end_" * 12


def crowded():
    """Ten files that hardly differ, one with an interval across the chart."""
    paths = [f"out/mobilenet_v3_width_{index}_int8.tflite" for index in range(10)]
    converted = [
        conversion(path, "int8", 1000 + i, snr_db=30 + i / 9) for i, path in enumerate(paths)
    ]
    measured = [
        measurement(path, 1 + index / 99, threads)
        for threads in (1, 2)
        for index, path in enumerate(paths)
    ]
    wide = dataclasses.replace(measured[0].latency_ms, ci95=(0.7, 1.4))
    measured[0] = dataclasses.replace(measured[0], latency_ms=wide)
    return document(title="Crowded", environment={}, conversions=converted, benchmarks=measured)


PAGES = {
    "three devices": three_devices,
    "crowded": crowded,
    "markup": lambda: hostile(HOSTILE),
    "long names": lambda: hostile(LONG),
    "right to left": lambda: hostile("\u202e\u05e9\u05dc\u05d5\u05dd 12 \u0627\u0644"),
    "latency alone": lambda: document(title="", environment={}, benchmarks=[measurement()]),
    "one conversion": lambda: document(title="x", environment={}, conversions=[conversion()]),
    "nothing": lambda: document(title="", environment={}),
}


@pytest.fixture(scope="session")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # A container's root has no sandbox, and its /dev/shm is small.
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")
    options.add_argument("--disable-dev-shm-usage")
    options.add_argument("--disable-gpu")
    options.add_argument("--disable-background-networking")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="session")
def addresses(tmp_path_factory):
    """Where each page is, written when the first test asks for it."""
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for number, (name, document_of) in enumerate(PAGES.items()):
        path = folder / f"{number}.html"
        path.write_text(render_html(document_of()), encoding="utf-8")
        found[name] = path.as_uri()
    return found


@pytest.fixture
def show(browser, addresses):
    """Opens a page at a width, in a colour scheme; what was logged before is forgotten."""

    def open_page(name="three devices", width=1280, scheme="light", media="screen"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": features, "media": media}
        )
        resize(browser, width)
        browser.get_log("browser"), browser.get_log("performance")
        browser.get(addresses[name])
        return browser

    return open_page


def resize(browser, width):
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def elements(browser, selector):
    return browser.find_elements("css selector", selector)


# --- Alone -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_it_asks_for_nothing_and_complains_of_nothing(show, addresses, name):
    browser = show(name)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert asked == [addresses[name]]


def test_nothing_can_be_asked_for_or_run(show):
    """Whatever a name might smuggle in: the policy holds where escaping would have failed."""
    browser = show()
    with counting_server() as (address, hits):
        outcome = browser.execute_async_script(
            """
            const [address, done] = arguments;
            const image = document.createElement("img");
            const failed = new Promise((resolve) => { image.onerror = () => resolve("refused"); });
            image.src = address + "/image";
            document.body.append(image);
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", "<p id=bad style='color:red'>x</p>");
            const fetched = fetch(address + "/fetch", { mode: "no-cors" })
              .then(() => "reached", () => "refused");
            Promise.all([failed, fetched]).then((outcomes) => done([
              ...outcomes, window.ran === undefined, getComputedStyle(bad).color,
            ]));
            """,
            address,
        )
    assert hits == []
    assert outcome[:3] == ["refused", "refused", True]
    assert outcome[3] != "rgb(255, 0, 0)"
    # The log that is empty otherwise tells of it.
    assert (
        len([e for e in browser.get_log("browser") if "Content Security Policy" in e["message"]])
        >= 4
    )


@contextlib.contextmanager
def counting_server():
    hits = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", hits
        finally:
            server.shutdown()
            thread.join()


def test_markup_in_names_is_shown(show):
    browser = show("markup")
    assert browser.execute_script("return document.querySelector('h1').textContent") == HOSTILE
    assert browser.execute_script("return document.scripts.length") == 1


def test_right_to_left_ends_with_the_name(show):
    """An override is written out, and the count of threads after Arabic letters stays there."""
    browser = show("right to left")
    assert r"\u202e" in browser.execute_script("return document.querySelector('h1').textContent")
    name, count = browser.execute_script(
        """
        const text = document.getElementById("overview-table").firstChild;
        return [/ on .*,/, /1(?= thread)/].map((part) => {
          const [found] = text.textContent.match(part);
          const range = document.createRange();
          range.setStart(text, text.textContent.lastIndexOf(found));
          range.setEnd(text, text.textContent.lastIndexOf(found) + found.length);
          return range.getBoundingClientRect();
        });
        """
    )
    assert name["right"] <= count["left"]


# --- Tables ------------------------------------------------------------------------------------


def rows(table):
    """The texts of its body's cells, as they stand now."""
    cells = "[...arguments[0].tBodies[0].rows].map((r) => [...r.cells].map((c) => c.innerText))"
    return table.parent.execute_script(f"return {cells}", table)


def column(table, index):
    return [row[index] for row in rows(table)]


def sorted_by(table):
    """How it is sorted: by which column, and in which order."""
    order = "[...arguments[0].tHead.rows[0].cells].map((c) => c.getAttribute('aria-sort'))"
    told = table.parent.execute_script(f"return {order}", table)
    return {index: value for index, value in enumerate(told) if value is not None}


def test_tables_sort_by_click_and_by_key(show):
    from selenium.webdriver.common.keys import Keys

    browser = show()
    table = elements(browser, "section.device table")[1]
    names, medians = 0, 2
    buttons = table.find_elements("css selector", "thead button")
    assert len(buttons) == len(table.find_elements("css selector", "thead th"))
    assert sorted_by(table) == {}
    before = rows(table)

    buttons[medians].click()
    ascending = [float(text) for text in column(table, medians)]
    assert ascending == sorted(ascending)
    assert ascending[0] < ascending[-1]
    assert sorted_by(table) == {medians: "ascending"}

    buttons[medians].send_keys(Keys.ENTER)
    assert [float(text) for text in column(table, medians)] == ascending[::-1]
    assert sorted_by(table) == {medians: "descending"}

    buttons[names].send_keys(Keys.SPACE)
    assert column(table, names) == ["net-float32"] * 3 + ["net-int8"] * 3
    assert sorted_by(table) == {names: "ascending"}
    assert sorted(rows(table)) == sorted(before)  # rows stay whole


def test_missing_figures_come_last_and_totals_stay(show):
    browser = show()
    micro = elements(browser, "section[aria-labelledby=microcontrollers] table")[0]
    arena = micro.find_elements("css selector", "thead button")[3]
    for _ in ("ascending", "descending"):
        arena.click()
        assert column(micro, 3)[-1] == "\u2013"
    operations = elements(browser, "section[aria-labelledby=operations] table")[0]
    operations.find_elements("css selector", "thead button")[1].click()
    assert column(operations, 0) == ["SOFTMAX", "CONV_2D"]
    assert operations.text.splitlines()[-1].startswith("All")


def test_everything_can_be_reached_by_key_and_seen_to_be(show):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser = show()
    total = browser.execute_script(
        """
        const visible = [...document.querySelectorAll("a, .scroll, thead button, summary")]
          .filter((e) => e.checkVisibility());
        window.reached = [];
        addEventListener("focusin", ({ target }) => {
          window.reached.push([visible.indexOf(target), getComputedStyle(target).outlineStyle]);
        });
        return visible.length;
        """
    )
    assert total > 100
    ActionChains(browser).send_keys(Keys.TAB * total).perform()
    # In the order of the page, each with an outline around it.
    assert browser.execute_script("return window.reached") == [[i, "solid"] for i in range(total)]


def test_it_works_without_script(show, browser):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show()
        assert elements(browser, "thead button") == []
        assert len(elements(browser, "table")) == 22
        assert all(heading.text for heading in elements(browser, "section.device thead th")[:12])
        assert browser.get_log("browser") == []
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


# --- Fitting -----------------------------------------------------------------------------------

# How much further than a window the page goes.
SCROLLING_BY = """
const page = document.documentElement;
return page.scrollWidth - page.clientWidth;
"""
# What sticks out of the page, but for what lies in an area that scrolls of its own.
STICKING_OUT = """
const width = document.documentElement.clientWidth;
return [...document.body.querySelectorAll("*")]
  .filter((e) => !e.closest(".scroll") || e.matches(".scroll"))
  .filter((e) => e.checkVisibility() && !e.matches("br, wbr"))
  .filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width && (box.right > width + 0.5 || box.left < -0.5);
  })
  .map((e) => e.outerHTML.slice(0, 120));
"""
# Cells whose text is wider than they are.
SPILLING = """
return [...document.querySelectorAll("th, td, dt, dd, h1, h2, h3, h4, p, li, figcaption")]
  .filter((e) => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0)
  .map((e) => e.outerHTML.slice(0, 120));
"""


@pytest.mark.parametrize("name", PAGES)
def test_it_fits_every_width(show, name):
    browser = show(name)
    for width in WIDTHS:
        resize(browser, width)
        assert browser.execute_script(SCROLLING_BY) == 0
        assert browser.execute_script(STICKING_OUT) == []
        assert browser.execute_script(SPILLING) == []


# For each chart: its label, its size, texts that leave its box or touch one another, and marks
# that have no place in it.
CHARTS = """
const inside = (a, b, by) => a.left >= b.left - by && a.right <= b.right + by
  && a.top >= b.top - by && a.bottom <= b.bottom + by;
const apart = (a, b) => a.right <= b.left + 1 || b.right <= a.left + 1
  || a.bottom <= b.top + 3 || b.bottom <= a.top + 3;
return [...document.querySelectorAll("svg[role=img], .strip-axis svg")].map((svg) => {
  const box = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")]
    .map((e) => [e.textContent, e.getBoundingClientRect()]);
  const marks = [...svg.querySelectorAll(".marker, .dots, .median, .line")];
  const axis = svg.closest(".strip-axis") !== null;
  return {
    label: svg.getAttribute("aria-label"),
    axis,
    size: [box.width, box.height],
    outside: texts.filter(([, b]) => !inside(b, box, axis ? 16 : 2)).map(([t]) => t),
    touching: texts.flatMap(([t, a], i) =>
      texts.slice(i + 1).filter(([, b]) => !apart(a, b)).map(([u]) => [t, u])),
    marks: marks.length,
    lost: marks.filter((e) => !inside(e.getBoundingClientRect(), box, 6)).length,
  };
});
"""


@pytest.mark.parametrize("name, drawn", [("three devices", 4 + 12 + 2), ("crowded", 2 + 20 + 1)])
def test_charts_are_there_and_can_be_read(show, name, drawn):
    """Frontiers, a strip for each measurement, threads; and the axes of strips."""
    browser = show(name)
    for width in WIDTHS:
        resize(browser, width)
        charts = browser.execute_script(CHARTS)
        assert len([chart for chart in charts if not chart["axis"]]) == drawn
        for chart in charts:
            assert chart["size"][0] > 150, chart
            assert chart["size"][1] > 20, chart
            assert chart["outside"] == [], chart
            assert chart["touching"] == [], chart
            assert chart["lost"] == 0, chart
            assert chart["axis"] or chart["marks"] >= 2, chart
        keys = "return [...document.querySelectorAll('.key')].map((e) => e.clientWidth)"
        assert {8 <= key <= 16 for key in browser.execute_script(keys)} == {True}


def test_letters_in_charts_are_large_enough_on_a_phone(show):
    browser = show(width=360)
    heights = browser.execute_script(
        "return [...document.querySelectorAll('svg text')]"
        ".map((e) => e.getBoundingClientRect().height)"
    )
    assert min(heights) > 11  # pixels from the top of the tallest letter to below the lowest


# --- Reading -----------------------------------------------------------------------------------

# Colours of all text that is to be seen: [text, colour, background, pixels, weight].
TEXTS = """
const background = (e) => {
  for (; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (!/^rgba\\(.*, 0\\)$/.test(colour)) return colour;
  }
  return "rgb(255, 255, 255)";
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || e.matches("script, title")) continue;
  if (!e.checkVisibility()) continue;
  const style = getComputedStyle(e);
  let opacity = 1;
  for (let p = e; p; p = p.parentElement) opacity *= getComputedStyle(p).opacity;
  found.push([walker.currentNode.textContent.trim().slice(0, 40),
    e.closest("svg") ? style.fill : style.color, background(e),
    parseFloat(style.fontSize), Number(style.fontWeight), opacity]);
}
return found;
"""


def contrast(one, other):
    """WCAG 2.2's ratio of two colours as a browser writes them."""

    def luminance(colour):
        red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_measured_as_wcag_does():
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("media", ["screen", "print"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_text_stands_out(show, scheme, media):
    browser = show(scheme=scheme, media=media)
    for details in elements(browser, "details"):
        browser.execute_script("arguments[0].open = true", details)
    texts = browser.execute_script(TEXTS)
    assert len(texts) > 400
    faint = [
        text
        for text, colour, background, pixels, weight, opacity in texts
        # Large is 18 points, or 14 in bold (WCAG 1.4.3); a point is 4/3 pixels.
        if contrast(colour, background)
        < (3 if pixels >= 24 or (weight >= 700 and pixels > 18.6) else 4.5)
        or opacity < 1
    ]
    assert faint == []
    [paper] = {background for _, _, background, _, _, _ in texts}
    is_dark = contrast(paper, "rgb(0, 0, 0)") < 3
    assert is_dark == (scheme == "dark" and media == "screen")  # ink on paper, whatever the screen


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_mark_stands_out(show, scheme):
    """3:1 for what charts are read by (WCAG 1.4.11)."""
    browser = show(scheme=scheme)
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    marks = browser.execute_script(
        "return [...document.querySelectorAll('.marker, .key')]"
        ".map((e) => getComputedStyle(e).fill)"
        ".concat([...document.querySelectorAll('.line, .interval, .median')]"
        ".map((e) => getComputedStyle(e).stroke))"
    )
    assert len(marks) > 50
    assert min(contrast(mark, paper) for mark in marks) >= 3


def test_links_lead_to_their_sections(show):
    browser = show()
    for link in elements(browser, "nav a"):
        link.click()
        top = "return document.querySelector(location.hash).getBoundingClientRect().top"
        assert -1 <= browser.execute_script(top) < 900


def test_on_paper_everything_is_unfolded_and_nothing_cut(show):
    """A4 has 182 mm between the margins: 688 pixels."""
    browser = show(media="print", width=688)
    state = "return [...document.querySelectorAll('details')].map((e) => e.open)"
    assert browser.execute_script(state) == [False, False]
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script(state) == [True, True]
    assert browser.execute_script(SCROLLING_BY) == 0
    wide = (
        "return [...document.querySelectorAll('table')].map((e) => e.getBoundingClientRect().right)"
    )
    assert max(browser.execute_script(wide)) <= 688
    assert not any(link.is_displayed() for link in elements(browser, "nav a"))
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(state) == [False, False]
