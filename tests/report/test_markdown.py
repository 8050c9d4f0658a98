"""The Markdown report: sections, tables that are tables, inert names."""

import pytest

from keras_bn.report.markdown import render_markdown
from keras_bn.report.results import document
from tests.report.example import FOLD, measurement, three_devices, whole
from tests.report.test_html import HOSTILE, hostile


def headings(text):
    return [line for line in text.splitlines() if line.startswith("#")]


def test_all_sections():
    text = render_markdown(whole())
    assert headings(text) == [
        "# Digits",
        "## Converted models",
        "## Latency",
        "### host",
        "## Folding",
        "## Quantization",
        "## Operations",
        "## Environment",
    ]
    assert "| net-int8 | int8 | 27.8\u202fkB | 3.60\u00d7 | 97.4\u202f% |" in text
    assert "- int8 is 3.60\u00d7 smaller and, on host with 1 thread, " in text
    assert "- Too noisy. Be quiet. (net-int8, 1 and 2 and 4 threads)" in text
    assert "| host: temperature | 48.3 °C before |" in text
    assert text.count("| All | 7 | 7 |") == 1


def test_several_devices_and_microcontrollers():
    text = render_markdown(three_devices())
    assert [line for line in headings(text) if line.startswith("###")] == [
        "### ssh://pi@board.local",
        "### host",
        "### adb:1A051FDF6007CD",
    ]
    board, phone = text.index("### ssh"), text.index("### adb")
    assert board < text.index("| Model | Against |") < text.index("### host")
    assert text.index("| Kind of operation |") > phone
    assert "## Microcontrollers" in text
    assert "| net-float32 | \u2013 | Didn't find op for CUMSUM |" in text


@pytest.mark.parametrize(
    "parts, present",
    [
        ({}, []),
        ({"benchmarks": [measurement()]}, ["## Latency", "### host", "## Environment"]),
        ({"fold": FOLD}, ["## Folding"]),
    ],
    ids=["nothing", "latency", "folding"],
)
def test_only_what_is_there(parts, present):
    text = render_markdown(document(title="Part", environment={}, **parts))
    assert headings(text) == ["# Part", *present]
    assert text.endswith("\n")


def unescaped(line, character):
    return line.replace("\\\\", "").replace(f"\\{character}", "").count(character)


@pytest.mark.parametrize(
    "written",
    [three_devices(), hostile(HOSTILE), hostile("a|b\nc")],
    ids=["plain", "markup", "table marks"],
)
def test_every_row_has_the_columns_of_its_table(written):
    columns = None
    for line in render_markdown(written).splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        columns = columns or unescaped(line, "|")
        assert unescaped(line, "|") == columns >= 3


def test_markup_in_names_is_inert():
    text = render_markdown(hostile(HOSTILE))
    assert unescaped(text, "<") == 0
    assert "\\<script\\>" in text
    assert headings(render_markdown(hostile("# x\n# y")))[0] == "# \\# x \\# y"
