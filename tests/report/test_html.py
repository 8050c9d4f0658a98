"""The page: structure, sections, every sample, accessibility, and hostile names."""

import itertools
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_bn.fold.result import FoldedLayer, FoldResult, KeptLayer
from keras_bn.report.html import render_html
from keras_bn.report.results import ModelSummary, document
from tests.report.example import FLOAT, FOLD, INT8, conversion, measurement, whole
from tests.report.page import parse

SECTIONS = ["models", "latency", "folding", "inside", "environment"]


def page(written):
    return parse(render_html(written))


def sections(root):
    return [section.attributes["aria-labelledby"] for section in root.all("section")]


def cells(table):
    return [[cell.text for cell in row.children if not isinstance(cell, str)]
            for row in table.one("tbody").all("tr")]  # fmt: skip


@pytest.fixture(scope="module")
def root():
    return page(whole())


def test_it_is_one_file_that_needs_no_network():
    html = render_html(whole())
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bsrc=|\bhref=|<link|<iframe", html)
    assert html.startswith('<!doctype html>\n<html lang="en">')
    assert '<meta charset="utf-8">' in html


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
    assert used <= {"--c"} | set(re.findall(r"(--[a-z0-9]+):", style))
    for scheme in ("light", "dark"):
        block = style.split("prefers-color-scheme: dark")[scheme == "dark"]
        for index in range(6):
            assert f"--c{index}:" in block


def test_ids_are_unique_and_references_hold(root):
    ids = [element.attributes["id"] for element in root.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    labelled = [e.attributes["aria-labelledby"] for e in root.all() if
                "aria-labelledby" in e.attributes]  # fmt: skip
    assert len(labelled) >= 10
    assert set(labelled) <= set(ids)


def test_tables_are_accessible(root):
    tables = list(root.all("table"))
    assert len(tables) == 8
    for table in tables:
        assert table.one("caption").text
        headings = list(table.one("thead").all("th"))
        assert all(heading.attributes["scope"] == "col" for heading in headings)
        assert all(heading.one("button").text for heading in headings)
        for row in table.one("tbody").all("tr"):
            assert row.one("th").attributes["scope"] == "row"
            assert len(list(row.all("td"))) + 1 == len(headings)


def test_charts_have_names_and_headings_have_levels(root):
    charts = list(root.all("svg"))
    assert len(charts) == 2 + 6 + 1  # quality, a strip for each measurement, threads
    assert all(chart.attributes["role"] == "img" for chart in charts)
    assert all(chart.attributes["aria-label"] for chart in charts)
    levels = [int(e.tag[1]) for e in root.all() if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_all_sections_of_a_whole_document(root):
    assert sections(root) == SECTIONS
    assert root.one("h1").text == "Digits"
    subtitle = root.one("p", class_="subtitle").text
    assert "digits.keras 14 730 parameters 22 layers 186 kB as .keras accuracy 97.8 %" in subtitle
    assert "04 March 2026, 05:06 UTC" in subtitle
    assert "Not part of this report" not in root.one("footer").text


@pytest.mark.parametrize(
    "parts, present, absent",
    [
        ({}, ["environment"], "the Keras model, folding, conversions, latency"),
        ({"benchmarks": [measurement()]}, ["latency", "environment"], "Keras model, folding, conv"),
        (
            {"conversions": [conversion()], "fold": FoldResult(None, [], [], 0.0)},
            ["models", "folding", "inside", "environment"],
            "the Keras model, latency",
        ),
        ({"fold": FOLD}, ["folding", "environment"], "the Keras model, conversions, latency"),
        ({"model": ModelSummary("m")}, ["environment"], "folding, conversions, latency"),
    ],
    ids=["nothing", "latency alone", "conversions alone", "folding alone", "model alone"],
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


def test_places_are_on_the_chart(root):
    for path in root.all("path", class_="dots"):
        xs = [float(x) for x in re.findall(r"M([\d.]+) ", path.attributes["d"])]
        assert 0 < min(xs) < max(xs) < 1000
    for chart in root.all("svg", viewbox="0 0 420 290"):
        for circle in chart.all("circle"):
            assert 46 <= float(circle.attributes["cx"]) <= 406
            assert 34 <= float(circle.attributes["cy"]) <= 248


def test_better_is_higher_and_faster_is_further_left(root):
    by_latency = next(c for c in root.all("svg") if "against latency" in c.attributes["aria-label"])
    place = {
        group.one("title").text.partition(":")[0]: group.one("circle").attributes
        for group in by_latency.all("g")
    }
    assert float(place["net-int8"]["cx"]) < float(place["net-float32"]["cx"])
    assert float(place["net-int8"]["cy"]) > float(place["net-float32"]["cy"])  # y points down


def test_figures_of_the_tables(root):
    overview, speedups, latency, loading, folded, kept, outputs, operations = map(
        cells, root.all("table")
    )
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
    assert outputs[1][1:] == ["probabilities", "0.031", "30.2", "0.998120", "98.8 %", "256"]
    assert operations == [
        ["CONV_2D", "6", "6"],
        ["SOFTMAX", "1", "1 (1 in float)"],
        ["All", "7", "7"],
    ]


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
    assert len(list(root.all("circle"))) == 1

    exact_too = conversion(INT8, "int8", snr_db=float("inf"))
    root = page(document(title="", environment={}, conversions=[exact, exact_too]))
    assert "No model has both figures." in root.one("main").text


def test_a_single_model_has_no_chart_of_its_quality():
    root = page(document(title="", environment={}, conversions=[conversion()]))
    assert list(root.all("figure")) == []


def test_long_names_keep_their_end_in_charts():
    long = [Path(f"out/{'very_' * 8}long_name_{kind}.tflite") for kind in ("float32", "int8")]
    written = [conversion(long[0]), conversion(long[1], "int8")]
    root = page(document(title="", environment={}, conversions=written))
    labels = [text.text for text in root.all("text", class_="name")]
    assert [len(label) for label in labels] == [24, 24]
    assert [label.rpartition("_")[2] for label in labels] == ["float32", "int8"]


def test_warnings_stand_with_what_they_are_about(root):
    warned = [item.text for item in root.one("ul", class_="warnings").all("li")]
    assert warned == [
        f"net-int8, {threads} Too noisy. Be quiet."
        for threads in ("1 thread", "2 threads", "4 threads")
    ]
    shared = [measurement(t, warnings=("Busy.",)) for t in (FLOAT, INT8)]
    root = page(document(title="", environment={}, benchmarks=shared))
    assert root.one("ul", class_="warnings").text == "All measurements Busy."
    quiet = page(document(title="", environment={}, benchmarks=[measurement()]))
    assert "None: nothing made the figures doubtful." in quiet.one("main").text


def test_environments_are_told_once_for_each_machine(root):
    facts = {
        row.one("dt").text: row.one("dd").text for row in root.all("div") if list(row.all("dt"))
    }
    assert facts["tensorflow"] == "2.21.0"
    assert facts["before, temperature"] == "48.3 °C"
    assert facts["memory"] == "4.00 GB"
    assert facts["xnnpack"] == "yes"
    assert "before, governor" not in facts  # unknown
    assert [h.text for h in root.all("h3") if "Measured on" in h.text] == ["Measured on host"]


def test_several_devices_have_a_column_and_charts_of_their_own():
    measured = [measurement(FLOAT, 4.0, 1, "host"), measurement(FLOAT, 9.0, 1, "ssh://pi")]
    root = page(document(title="", environment={}, benchmarks=measured))
    latency = next(iter(root.all("table")))
    assert [heading.text for heading in latency.one("thead").all("th")][:3] == [
        "Model",
        "Device",
        "Threads",
    ]
    assert [f.one("figcaption").text for f in root.all("figure", class_="strips")] == [
        "host, ms",
        "ssh://pi, ms",
    ]


# --- Names are data ----------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>\"'><b>&amp;{{ 7*7 }}</title></svg>"


def hostile(name: str):
    path = Path("out") / f"{name.replace('/', '_')}.tflite"
    fold = FoldResult(None, [FoldedLayer(name, name, name)], [KeptLayer(name, name)], 0.0)
    measured = [
        measurement(
            path, 4.0 / t, t, name, warnings=(name,), inputs=(name,), environment={name: name}
        )
        for t in (1, 2)
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
    )


def test_markup_in_names_is_inert():
    plain, root = page(hostile("plain")), page(hostile(HOSTILE))

    def shape(element):
        return [child.tag for child in element.all()]

    assert shape(root) == shape(plain)
    assert len(list(root.all("script"))) == 1
    assert root.one("h1").text == HOSTILE  # shown, not obeyed
    assert "49" not in root.one("h1").text


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30))
def test_any_name_leaves_the_structure_alone(name):
    root = page(hostile(name))
    assert sections(root) == SECTIONS
    assert len(list(root.all("script"))) == 1
    assert len(list(root.all("table"))) == 7


def test_what_is_not_a_document_is_refused():
    with pytest.raises(ValueError, match="not a results document"):
        render_html({"title": "x"})
