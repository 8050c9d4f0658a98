"""The table of measurements: one row each, columns that are explained, cells that do nothing."""

import csv
import io
import re
from pathlib import Path

import pytest

import keras_bn
from keras_bn.report.csv import COLUMNS, render_csv
from keras_bn.report.results import document
from tests.report.example import FLOAT, INT8, conversion, measurement, three_devices
from tests.report.test_html import hostile


def rows(written):
    return list(csv.DictReader(io.StringIO(render_csv(written)), strict=True))


def test_a_row_for_each_measurement():
    written = three_devices()
    found = rows(written)
    assert [(row["device"], row["threads"], row["model"]) for row in found] == [
        (each["device"], str(each["threads"]), each["name"]) for each in written["benchmarks"]
    ] + [("tflm", "", "net-int8"), ("tflm", "", "net-float32")]
    assert list(found[0]) == list(COLUMNS)
    assert all(text.endswith(".") for text in COLUMNS.values())
    columns = {name for row in found for name, value in row.items() if value}
    few = {f"{name}_{end}_ms" for name in ("p5", "p95", "p99") for end in ("low", "high")}
    assert columns == set(COLUMNS) - few - {"tflm_stopped_by"}  # what the example cannot know


def test_figures_are_those_of_the_document():
    written = three_devices()
    measured, row = written["benchmarks"][3], rows(written)[3]
    assert (row["model"], row["device"], row["threads"]) == (
        "net-int8",
        "ssh://pi@board.local",
        "1",
    )
    assert float(row["median_ms"]) == measured["latency_ms"]["median"]
    assert [float(row["median_low_ms"]), float(row["median_high_ms"])] == (
        measured["latency_ms"]["ci95"]
    )
    assert (row["invokes"], row["repeats"], row["warnings"]) == ("30", "1", "1")
    assert row["quantize"] == "int8"
    assert (float(row["accuracy"]), float(row["snr_db"])) == (0.9742, 30.25)
    [speedup] = [
        each
        for each in written["speedups"]
        if (each["device"], each["threads"]) == (row["device"], int(row["threads"]))
    ]
    assert (row["baseline"], float(row["speedup"])) == ("net-float32", speedup["ratio"])
    assert [float(row["speedup_low"]), float(row["speedup_high"])] == speedup["ci95"]


def test_intervals_of_quantiles():
    many = measurement(runs=300)
    [row] = rows(document(title="", environment={}, benchmarks=[many]))
    assert (float(row["p95_low_ms"]), float(row["p95_high_ms"])) == many.latency_ms.p95_ci95
    assert row["p99_low_ms"] == row["p99_high_ms"] == ""  # takes 1000


def test_what_is_not_known_is_empty():
    *_, phone, runs, refused = rows(three_devices())
    assert (phone["device"], phone["peak_rss_bytes"], phone["init_ms"]) == (
        "adb:1A051FDF6007CD",
        "",
        "",
    )
    assert (runs["runs_on_tflm"], runs["arena_bytes"], runs["median_ms"]) == ("true", "20480", "")
    assert (refused["runs_on_tflm"], refused["arena_bytes"]) == ("false", "")
    [unmeasured] = rows(document(title="", environment={}, conversions=[conversion()]))
    assert (unmeasured["model"], unmeasured["device"]) == ("net-float32", "")


@pytest.mark.parametrize(
    "text",
    [
        '=HYPERLINK("http://x","y")',
        "+1+1",
        "-2+3",
        "@SUM(A1)",
        "\t=1",
        "\r\n=1",
        "  =1",
        "\uff1d1",
        "\x00=1",
        'a,b"c\nd;=1',
    ],
    ids=repr,
)
def test_no_cell_is_a_formula(text):
    """And none ends its row, whatever the name has in it."""
    written = hostile("plain")
    for part in ("conversions", "benchmarks", "microcontrollers"):
        for each in written[part]:
            each["name"] = text
    written["benchmarks"][0]["device"] = text
    found = rows(written)
    assert len(found) == 4
    for row in found:
        for name in ("model", "device"):
            assert not row[name].lstrip(" \t\r\n\x00").startswith(("=", "+", "-", "@", "\uff1d"))
    assert found[0]["model"].replace("'", "").strip()[-1] == text.strip()[-1]


def test_negative_figures_stay_figures():
    worse = conversion(INT8, "int8", snr_db=-3.5)
    [row] = rows(
        document(title="", environment={}, conversions=[worse], benchmarks=[measurement(INT8)])
    )
    assert row["snr_db"] == "-3.5"


def test_names_of_the_same_file_agree_with_the_other_reports():
    written = document(
        title="", environment={}, conversions=[conversion(FLOAT)], benchmarks=[measurement(FLOAT)]
    )
    [row] = rows(written)
    assert (row["model"], row["file"]) == ("net-float32", str(FLOAT))


def test_the_documentation_explains_the_same_columns():
    page = (Path(keras_bn.__file__).parents[1] / "docs" / "reports.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE)) == COLUMNS
