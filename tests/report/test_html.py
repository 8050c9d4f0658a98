"""The page: structure, sections, every sample, accessibility, and hostile names."""

import base64
import dataclasses
import hashlib
import itertools
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_bn.bench.baseline import compared
from keras_bn.bench.result import Operation, OutputDeviation
from keras_bn.fold.result import FoldedLayer, FoldResult, KeptLayer
from keras_bn.report import plane, selection, strips, texts
from keras_bn.report.html import render_html
from keras_bn.report.markdown import render_markdown
from keras_bn.report.quantities import MISSING
from keras_bn.report.results import ModelSummary, document
from tests.report.example import (
    BOARD,
    FLOAT,
    FOLD,
    HOST,
    INT8,
    MICRO,
    PHONE,
    PROFILE,
    REFUSED,
    conversion,
    measurement,
    three_devices,
    whole,
)
from tests.report.page import parse

SECTIONS = [
    "models",
    "frontier",
    "latency",
    "device-1",
    "folding",
    "quantization",
    "operations",
    "environment",
]


def page(written):
    return parse(render_html(written))


def sections(root):
    return [section.attributes["aria-labelledby"] for section in root.all("section")]


def facts(element):
    """What its lists of names and values tell."""
    pairs = (pair for told in element.all("dl") for pair in told.all("div"))
    return {pair.one("dt").text: pair.one("dd").text for pair in pairs}


def cells(table):
    return [[cell.text for cell in row.children if not isinstance(cell, str)]
            for row in table.one("tbody").all("tr")]  # fmt: skip


@pytest.fixture(scope="module")
def root():
    return page(whole())


@pytest.fixture(scope="module")
def three():
    return page(three_devices())


def test_it_is_one_file_that_needs_no_network():
    html = render_html(whole())
    fetching = r"https?:|(?<!:)//[a-z]|url\(|@import|\bsrc=|\bhref=\"[^#]|<link|<iframe|style=\""
    assert not re.search(fetching, html)
    assert html.startswith('<!doctype html>\n<html lang="en">')
    assert '<meta charset="utf-8">' in html


def test_its_policy_allows_its_own_style_and_script_alone(root):
    """And stands before both, since it holds for what comes after it."""
    policy = root.one("meta", http_equiv="Content-Security-Policy")
    told = dict(part.strip().split(" ", 1) for part in policy.attributes["content"].split(";"))
    assert told == {
        "default-src": "'none'",
        "style-src": hash_of(root.one("style")),
        "script-src": hash_of(root.one("script")),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    head = list(root.one("head").all())
    assert head.index(policy) < head.index(root.one("style"))


def hash_of(element):
    [text] = element.children
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_it_can_be_made_again_from_the_file_alone():
    written = whole()
    assert render_html(json.loads(json.dumps(written))) == render_html(written)


def test_dark_and_light_and_narrow_have_styles(root):
    style = root.one("style").text
    assert "prefers-color-scheme: dark" in style
    assert "max-width: 40rem" in style
    assert "tabular-nums" in style
    assert root.one("meta", name="viewport").attributes["content"].startswith("width=device-width")


def test_every_variable_and_class_of_a_colour_is_defined(root):
    style = root.one("style").text
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", style))
    assert used <= {"--c", "--inside", "--edge"} | set(re.findall(r"(--[a-z0-9]+):", style))
    for scheme in ("light", "dark"):
        block = style.split("prefers-color-scheme: dark")[scheme == "dark"]
        for index in range(selection.COLOURS):
            assert f"--c{index}:" in block
    for index in range(selection.STYLES):
        assert f".c{index} {{" in style


def test_ids_are_unique_and_references_hold(root):
    ids = [element.attributes["id"] for element in root.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    labelled = [e.attributes["aria-labelledby"] for e in root.all() if
                "aria-labelledby" in e.attributes]  # fmt: skip
    assert len(labelled) >= 10
    assert set(labelled) <= set(ids)
    links = [link.attributes["href"] for link in root.one("nav").all("a")]
    assert len(links) == 7
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_tables_are_accessible(three):
    tables = list(three.all("table"))
    assert len(tables) == 1 + 3 * 3 + (1 + 2) + 3 + 3 + 2 + 1
    for table in tables:
        assert table.one("caption").text
        headings = list(table.one("thead").all("th"))
        assert all(heading.attributes["scope"] == "col" for heading in headings)
        assert all(heading.text for heading in headings)
        for row in (
            row for part in ("tbody", "tfoot") for e in table.all(part) for row in e.all("tr")
        ):
            assert row.one("th").attributes["scope"] == "row"
            assert len(list(row.all("td"))) + 1 == len(headings)


def test_charts_have_names_and_headings_have_levels(root):
    charts = list(root.all("svg", role="img"))
    assert len(charts) == 2 + 6 + 1  # quality, a strip for each measurement, threads
    assert all(chart.attributes["aria-label"] for chart in charts)
    others = [chart for chart in root.all("svg") if chart not in charts]
    axis = [each for area in root.all("div", class_="strip-axis") for each in area.all("svg")]
    assert others
    assert all("aria-hidden" in each.attributes for each in others if each not in axis)
    levels = [int(e.tag[1]) for e in root.all() if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_all_sections_of_a_whole_document(root, three):
    assert sections(root) == SECTIONS
    assert root.one("h1").text == "Digits"
    subtitle = root.one("p", class_="subtitle").text
    assert "digits.keras 14 730 parameters 22 layers 186 kB as .keras accuracy 97.8 %" in subtitle
    assert "04 March 2026, 05:06 UTC" in subtitle
    assert "Not part of this report" not in three.one("footer").text


@pytest.mark.parametrize(
    "parts, present, absent",
    [
        ({}, ["environment"], "the Keras model, folding, conversions, latency, microcontrollers"),
        (
            {"benchmarks": [measurement()]},
            ["latency", "device-1", "environment"],
            "Keras model, folding, conversions, microcontrollers",
        ),
        (
            {"microcontrollers": [MICRO]},
            ["microcontrollers", "environment"],
            "conversions, latency",
        ),
        (
            {"conversions": [conversion()], "fold": FoldResult(None, [], [], 0.0)},
            ["models", "folding", "quantization", "operations", "environment"],
            "the Keras model, latency",
        ),
        ({"fold": FOLD}, ["folding", "environment"], "the Keras model, conversions, latency"),
        ({"model": ModelSummary("m")}, ["environment"], "folding, conversions, latency"),
    ],
    ids=[
        "nothing",
        "latency alone",
        "microcontrollers alone",
        "conversions alone",
        "folding alone",
        "model alone",
    ],
)
def test_only_what_is_there_is_drawn(parts, present, absent):
    root = page(document(title="Part", environment={}, **parts))
    assert sections(root) == present
    assert f"{absent}" in root.one("footer").text
    assert "Not recorded." in root.one("main").text


def test_folding_says_when_nothing_was_folded_or_kept():
    none = page(document(title="", environment={}, fold=FoldResult(None, [], [], 0.0)))
    assert "No normalization was folded." in none.one("main").text
    assert "No normalization stayed." in none.one("main").text


def test_every_sample_is_a_dot(root):
    drawn = [path.attributes["d"].count("M") for path in root.all("path", class_="dots")]
    assert drawn == [30] * 6


def test_of_more_samples_than_can_be_told_apart_some_are_drawn():
    many = measurement(runs=1200)
    root = page(document(title="", environment={}, benchmarks=[many]))
    dots = root.one("path", class_="dots").attributes["d"]
    assert dots.count("M") == strips.DOTS
    places = [float(x) for x in re.findall(r"M([\d.]+) ", dots)]
    # The extremes are among them: the axis has 8 % of the span beside each.
    assert min(places) == pytest.approx(1000 * 0.08 / 1.16, abs=0.1)
    assert max(places) == pytest.approx(1000 * 1.08 / 1.16, abs=0.1)
    assert "200 invokes between the dots are not drawn" in root.one("main").text


def places(chart):
    """Where the markers of a chart are."""
    for marker in chart.all("path", class_="marker"):
        x, y = re.match(r"translate\(([\d.]+) ([\d.]+)\)", marker.attributes["transform"]).groups()
        yield float(x), float(y)


def test_places_are_on_the_chart(root):
    for path in root.all("path", class_="dots"):
        xs = [float(x) for x in re.findall(r"M([\d.]+) ", path.attributes["d"])]
        assert 0 < min(xs) < max(xs) < 1000
    charts = list(root.all("svg", viewbox=f"0 0 {plane.WIDTH} {plane.HEIGHT}"))
    assert len(charts) == 3
    for chart in charts:
        for x, y in places(chart):
            assert plane.LEFT <= x <= plane.WIDTH - plane.RIGHT
            assert plane.TOP <= y <= plane.HEIGHT - plane.BOTTOM


def test_better_is_higher_and_faster_is_further_left(root):
    by_latency = next(
        chart
        for chart in root.all("svg", role="img")
        if "against latency" in chart.attributes["aria-label"]
    )
    names = [title.text.partition(":")[0] for title in by_latency.all("title")]
    place = dict(zip(names, places(by_latency), strict=True))
    assert place["net-int8"][0] < place["net-float32"][0]
    assert place["net-int8"][1] > place["net-float32"][1]  # y points down


def test_figures_of_the_tables(root):
    (
        overview,
        speedups,
        latency,
        loading,
        folded,
        kept,
        others,
        quantization,
        outputs,
        operations,
    ) = map(cells, root.all("table"))
    assert overview[1][:7] == [
        "net-int8",
        "int8",
        "27.8 kB",
        "3.60\u00d7",
        "97.4 %",
        "98.8 %",
        "30.2",
    ]
    assert [row[:3] for row in speedups] == [["net-int8", "net-float32", "faster"]] * 3
    assert [row[1] for row in latency] == ["1", "2", "4"] * 2
    assert loading[0] == ["net-float32", "1", "1.50", "5.50", "50.0 MB", "43.0 MB"]
    assert folded == [
        ["bn_1", "conv_1", "into the convolution before"],
        ["bn_2", "dense", "into the layer after"],
    ]
    assert kept == [["bn_3", "its input is read by add_2 too"]]
    assert others == [
        ["rescaling", "conv_1", "backward into Conv2D"],
        ["norm (gamma)", "stays", "its output is read by add_1 too"],
    ]
    assert [(row[1], row[3]) for row in quantization] == [("none", MISSING), ("int8", "SOFTMAX")]
    assert quantization[1][2].startswith("Weights and activations are 8-bit integers")
    assert outputs[1][1:] == ["probabilities", "0.031", "30.2", "0.998120", "98.8 %", "256"]
    assert operations == [
        ["CONV_2D", "6", "6"],
        ["SOFTMAX", "1", "1 (1 in float)"],
    ]
    *_, last = root.all("tfoot")
    assert last.text == "All 7 7"


def test_figures_sort_by_value_and_not_by_text(root):
    [overview, *_] = root.all("table")
    sizes = [cell.attributes["data-value"] for cell in overview.all("td", class_="figure")]
    assert "27800" in sizes
    exact = page(document(title="", environment={}, conversions=[conversion(snr_db=float("inf"))]))
    assert "Infinity" in [c.attributes.get("data-value") for c in exact.all("td")]


def test_an_exact_model_is_named_where_it_cannot_be_drawn():
    exact, close = conversion(snr_db=float("inf")), conversion(INT8, "int8")
    root = page(document(title="", environment={}, conversions=[exact, close]))
    assert "infinite or unknown: net-float32" in root.one("main").text
    assert [len(list(places(chart))) for chart in root.all("svg", role="img")] == [1]

    exact_too = conversion(INT8, "int8", snr_db=float("inf"))
    root = page(document(title="", environment={}, conversions=[exact, exact_too]))
    assert "No model has both figures." in root.one("main").text


def test_infinite_snr_is_on_the_frontier_though_it_cannot_be_drawn():
    exact = conversion(snr_db=float("inf"), size_bytes=90_000)
    third = conversion("out/third.tflite", "dynamic", 100_000, snr_db=20.0)
    converted = [exact, conversion(INT8, "int8", 27_800), third]
    measured = [measurement(path) for path in (FLOAT, INT8, third.path)]
    written = document(title="", environment={}, conversions=converted, benchmarks=measured)
    sizes = {"net-float32": 90_000, "net-int8": 27_800, "third": 100_000}
    for each in written["benchmarks"]:
        each["size_bytes"] = sizes[each["name"]]
    [note] = [e.text for e in page(written).all("p", class_="note") if "frontier of" in e.text]
    assert note == (
        "The frontier of size, SNR and latency on host, 1 thread: net-float32, net-int8. Matched "
        "or beaten in all of these by one of them: third."
    )


def test_a_single_model_has_no_chart_of_its_quality():
    root = page(document(title="", environment={}, conversions=[conversion()]))
    assert list(root.all("figure")) == []


def test_long_names_keep_their_end_in_charts():
    long = [Path(f"out/{'very_' * 8}long_name_{kind}.tflite") for kind in ("float32", "int8")]
    written = [conversion(long[0]), conversion(long[1], "int8")]
    root = page(document(title="", environment={}, conversions=written))
    labels = [text.text for text in root.all("text", class_="name")]
    assert [len(label) for label in labels] == [plane.LABEL_LETTERS] * 2
    assert [label.rpartition("_")[2] for label in labels] == ["float32", "int8"]


def warned(root):
    return [item.text for item in root.one("ul", class_="warnings").all("li")]


def test_a_warning_is_told_once_with_all_that_it_is_about(root):
    assert warned(root) == ["Too noisy. Be quiet. net-int8, 1 and 2 and 4 threads."]
    assert "Latency on host (1 warning)" in root.one("nav").text

    shared = [measurement(t, warnings=("Busy.",)) for t in (FLOAT, INT8)]
    assert warned(page(document(title="", environment={}, benchmarks=shared))) == [
        "Busy. All measurements."
    ]
    texts = ("3 of 30 are outliers.", "4.5 of 30 are outliers.", "30 are too few.")
    alike = [measurement(FLOAT, threads=t, warnings=(text,)) for t, text in enumerate(texts, 1)]
    assert warned(page(document(title="", environment={}, benchmarks=alike))) == [
        "3 of 30 are outliers. net-float32, 1 and 2 threads. The figures are those of "
        "net-float32, 1 thread.",
        "30 are too few. net-float32, 3 threads.",
    ]
    quiet = page(document(title="", environment={}, benchmarks=[measurement()]))
    assert "None: nothing made the figures doubtful." in quiet.one("main").text


def test_environments_are_told_once_for_each_machine(root):
    told = facts(root)
    assert told["tensorflow"] == "2.21.0"
    assert told["temperature"] == "48.3 °C before"
    assert told["memory"] == "4.00 GB"
    assert told["xnnpack"] == "yes"
    assert "governor" not in told  # unknown
    assert [h.text for h in root.all("h3") if "Measured on" in h.text] == ["Measured on host"]


def test_what_was_read_before_and_after_is_told_side_by_side():
    told = {"before": {"temperature_c": 48.3, "governor": "x"}, "after": {"temperature_c": 61.0}}
    told["after"]["governor"] = "x"
    root = page(document(title="", environment={}, benchmarks=[measurement(environment=told)]))
    assert facts(root) == {"temperature": "48.3 °C before, 61.0 °C after", "governor": "x"}


def test_each_device_has_a_section_and_ratios_of_its_own(three):
    devices = list(three.all("section", class_="device"))
    assert [device.one("h3").text for device in devices] == [BOARD, HOST, PHONE]
    assert all("Cortex-A72" in next(iter(device.all("p"))).text for device in devices)
    for device, counts in zip(devices, ((1, 2, 4), (1, 2), (1,)), strict=True):
        speedups, latency, loading, *profile = map(cells, device.all("table"))
        assert [row[3] for row in speedups] == [str(count) for count in counts]
        assert len(latency) == len(loading) == 2 * len(counts)
        assert len(list(device.all("path", class_="dots"))) == 2 * len(counts)
        assert len(list(device.all("figure", class_="plane"))) == (len(counts) > 1)
        assert len(profile) == (3 if device is devices[-1] else 0)
        missing = "No times of single operations." in device.text
        assert missing == (not profile)
    overview = next(iter(three.all("table")))
    headings = [heading.text for heading in overview.one("thead").all("th")]
    assert headings[-3:] == [f"{BOARD}, ms", f"{HOST}, ms", f"{PHONE}, ms"]
    titles = [e.one("figcaption").text for e in three.all("figure", class_="plane")]
    assert titles[1:4] == [
        f"Accuracy against latency, {device}, 1 thread" for device in (BOARD, HOST, PHONE)
    ]


def test_a_profile_tells_kinds_and_operations():
    twice = Operation("conv_b", "CONV_2D", 0.5, 0.2, 3)
    measured = [
        measurement(FLOAT, profile=(*PROFILE, twice)),
        measurement(INT8, profile=PROFILE[:1]),
        measurement(INT8, threads=2, profile=PROFILE),
    ]
    root = page(document(title="", environment={}, benchmarks=measured))
    *_, kinds, float32, int8, _ = root.all("table")
    assert [h.text for h in kinds.one("thead").all("th")] == [
        "Kind of operation",
        "net-float32",
        "net-int8",
    ]
    assert kinds.one("caption").text.endswith("by kind of operation, 1 thread, in ms")
    assert cells(kinds) == [["CONV_2D", "2.000", "1.500"], ["SOFTMAX", "0.500", MISSING]]
    assert kinds.one("tfoot").text == "All 2.500 1.500"
    # Bars are as long as the figures: 1.5 of 2.0, and none for what is missing.
    bars = [rect.attributes["width"] for rect in kinds.all("rect")]
    assert bars == ["100.0", "75.0", "25.0"]
    assert cells(float32)[2] == ["conv_b", "CONV_2D", "3", "3", "0.500", "20.0 %"]
    assert len(cells(int8)) == 1


def test_quantiles_have_intervals_where_the_samples_suffice():
    measured = [measurement(FLOAT, runs=300), measurement(INT8)]
    written = document(title="", environment={}, benchmarks=measured)
    tables = list(page(written).all("table"))
    [quantiles] = [
        cells(t) for t in tables if t.one("caption").text == "Quantiles of latency in ms"
    ]
    [[name, threads, p5, p5_interval, _, p95_interval, _, p99_interval]] = quantiles
    assert (name, threads, p5) == ("net-float32", "1", f"{measured[0].latency_ms.p5:.2f}")
    low, high = measured[0].latency_ms.p5_ci95
    assert p5_interval == f"[{low:.2f}, {high:.2f}]"
    assert p95_interval.startswith("[")
    assert p99_interval == MISSING  # takes 1000


def test_invokes_of_several_runs_are_counted_together():
    measured = [measurement(FLOAT), measurement(INT8, repeats=5)]
    latency = next(iter(page(document(title="", environment={}, benchmarks=measured)).all("table")))
    assert [row[-1] for row in cells(latency)] == ["30", "30 in 5 runs"]


def test_microcontrollers_tell_what_runs_in_how_much(three):
    section = three.one("section", aria_labelledby="microcontrollers")
    fits, reasons, outputs = map(cells, section.all("table"))
    assert fits == [
        ["net-int8", "yes", "27.8 kB", "20.5 kB", "41.5", "0.0078", "6"],
        ["net-float32", "no", "100 kB", MISSING, MISSING, MISSING, "1"],
    ]
    assert reasons == [["net-float32", MISSING, "Didn't find op for CUMSUM"]]
    assert outputs[1] == ["net-int8", "features", "float32", "1.0·10⁻⁷", MISSING, "∞", "8"]
    assert facts(section) == {"tflite-micro": "0.dev1", "ai-edge-litert": "2.3.0"}


def test_a_run_beside_its_baseline():
    measured = [measurement(FLOAT, 4.0), measurement(INT8, 1.5)]
    written = document(title="", environment={}, benchmarks=measured)
    before = [measurement(FLOAT, 3.0), measurement("out/other.tflite")]
    earlier = document(title="", environment={}, benchmarks=before)["benchmarks"]
    changes = compared(written["benchmarks"], earlier, limit=0.05)
    written["against"] = json.loads(json.dumps(dataclasses.asdict(changes)))
    section = page(written).one("section", aria_labelledby="baseline")
    [[name, device, verdict, _, threads, then, now, ratio, _]] = cells(section.one("table"))
    assert (name, device, verdict, threads) == ("net-float32", "host", "slower", "1")
    assert float(then) == pytest.approx(3.0, rel=0.01)
    assert float(now) == pytest.approx(4.0, rel=0.01)
    assert float(ratio.removesuffix("\u00d7")) == pytest.approx(4 / 3, rel=0.02)
    assert "slower counts from 5.0 % on" in section.text
    notes = [note.text for note in section.all("p")]
    assert [note.partition(":")[0] for note in notes] == [
        "Not measured again",
        "Not in the baseline",
    ]
    assert "other" in notes[0]
    assert "net-int8" in notes[1]
    text = render_markdown(written)
    assert "## Against the baseline" in text
    assert "| net-float32 | host | slower |" in text


def test_without_conversions_size_is_drawn_against_latency():
    measured = [measurement(path, device=d) for path in (FLOAT, INT8) for d in (HOST, PHONE)]
    root = page(document(title="", environment={}, benchmarks=measured))
    titles = [e.one("figcaption").text for e in root.all("figure", class_="plane")]
    assert titles == [f"Size against latency, {device}, 1 thread" for device in (HOST, PHONE)]


def test_every_model_of_many_is_named_in_its_chart_or_beneath():
    paths = [Path(f"out/model_{index:02}.tflite") for index in range(30)]
    converted = [conversion(path, "int8", 1000, snr_db=20.0) for path in paths]
    root = page(document(title="", environment={}, conversions=converted))
    figure = root.one("figure", class_="plane")
    inside = [text.text for text in figure.all("text", class_="name")]
    beneath = [item.text for item in figure.one("ul", class_="legend").all("li")]
    assert inside  # all 30 are at one place, so most have no room
    assert sorted(inside + beneath) == [path.stem for path in paths]


# --- Names are data ----------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>\"'><b>&amp;{{ 7*7 }}</title></svg>"


def hostile(name: str):
    """A document with `name` at every place that holds a text."""
    path = Path("out") / f"{name.replace('/', '_')}.tflite"
    gone, stayed = FoldedLayer(name, name, name), KeptLayer(name, name)
    fold = FoldResult(None, [gone], [stayed], 0.0, [gone, stayed])
    measured = [
        measurement(
            path,
            4.0 / t,
            t,
            name,
            warnings=(name,),
            inputs=(name,),
            environment={name: name, "cpu": name, "before": {name: name}, "after": name},
            profile=(Operation(name, name, 1.0, 1.0, 1),),
        )
        for t in (1, 2)
    ]
    output = OutputDeviation(name, name, 0.0, None, 1.0)
    tried = [
        dataclasses.replace(MICRO, model=str(path), outputs=(output,), environment={name: name}),
        dataclasses.replace(REFUSED, model=str(path), reason=name, stopped_by=name),
    ]
    each = conversion(path, name)
    each.ops[name] += 1
    return document(
        title=name,
        environment={name: name},
        model=ModelSummary(name),
        fold=fold,
        conversions=[each],
        benchmarks=measured,
        microcontrollers=tried,
    )


def test_markup_in_names_is_inert():
    plain, root = page(hostile("plain")), page(hostile(HOSTILE))

    def shape(element):  # but for the places where a long name may be broken
        return [child.tag for child in element.all() if child.tag != "wbr"]

    assert shape(root) == shape(plain)
    assert len(list(root.all("script"))) == 1
    assert root.one("h1").text == HOSTILE  # shown, not obeyed
    assert "49" not in root.one("h1").text


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)


@settings(max_examples=25, deadline=None)
@given(NAMES.filter(lambda name: name != "none"))  # a quantization of that name is not explained
def test_any_name_leaves_the_structure_alone(name):
    root = page(hostile(name))
    assert sections(root) == [
        "models",
        "latency",
        "device-1",
        "microcontrollers",
        "folding",
        "quantization",
        "operations",
        "environment",
    ]
    assert len(list(root.all("script"))) == 1
    assert len(list(root.all("table"))) == 15


def test_what_texts_could_do_to_the_text_around_them_they_do_not():
    evil = "net\u202egpj.exe\x00\x1b[31m\ud800\u2069"
    written = hostile("plain")
    written["benchmarks"][0]["name"] = written["benchmarks"][0]["device"] = evil
    written["title"] = "x" * 10_000
    html = render_html(written)
    assert html.encode("utf-8")
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", html)
    assert r"net\u202egpj.exe\u0000\u001b[31m\ud800\u2069" in html
    assert len(parse(html).one("h1").text) == texts.LONGEST


def test_what_is_not_a_document_is_refused():
    with pytest.raises(ValueError, match="not a results document"):
        render_html({"title": "x"})
