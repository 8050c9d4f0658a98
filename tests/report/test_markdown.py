"""The Markdown report: sections, tables that are tables, inert names."""

import pytest

from keras_bn.report.markdown import render_markdown
from keras_bn.report.results import document
from tests.report.example import FOLD, measurement, whole
from tests.report.test_html import HOSTILE, hostile


def headings(text):
    return [line for line in text.splitlines() if line.startswith("#")]


def test_all_sections():
    text = render_markdown(whole())
    assert headings(text) == [
        "# Digits",
        "## Converted models",
        "## Latency",
        "### Warnings",
        "## Folding",
        "## Environment",
    ]
    assert "| net-int8 | int8 | 27.8\u202fkB | 3.60\u00d7 | 97.4\u202f% |" in text
    assert "- int8 is 3.60\u00d7 smaller and, on host with 1 thread, " in text
    assert "- **net-int8, 1 thread**: Too noisy. Be quiet." in text
    assert "| before, temperature | 48.3 °C |" not in text
    assert "| host: before, temperature | 48.3 °C |" in text


@pytest.mark.parametrize(
    "parts, present",
    [
        ({}, []),
        ({"benchmarks": [measurement()]}, ["## Latency", "## Environment"]),
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
    [whole(), hostile(HOSTILE), hostile("a|b\nc")],
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
