"""The colours of models stand out, and apart, also with one kind of cone missing."""

import itertools
import re

import numpy as np
import pytest

from keras_bn.report.html import render_html
from keras_bn.report.selection import COLOURS
from tests.report.example import whole
from tests.report.page import parse

# Machado, Oliveira & Fernandes 2009, severity 1.0, on linear RGB.
VISION = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# Ottosson 2020, linear sRGB to Oklab.
LMS = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def linear(colour: str) -> np.ndarray:
    encoded = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


@pytest.fixture(scope="module")
def schemes():
    style = parse(render_html(whole())).one("style").text
    light, dark = re.findall(r":root \{(.*?)\}", style)
    return {
        name: dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        for name, block in (("light", light), ("dark", dark))
    }


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_apart(schemes, scheme, vision):
    """0.1 in Oklab is five times what is just noticeable (0.02); a red and a green of the same
    lightness are at 0.01 to those who do not tell them apart."""
    colours = np.array([linear(schemes[scheme][f"c{index}"]) for index in range(COLOURS)])
    seen = np.clip(colours @ np.transpose(VISION[vision]), 0, 1)
    lab = np.cbrt(seen @ np.transpose(LMS)) @ np.transpose(LAB)
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)]
    assert min(distances) > 0.1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_in_any_colour_can_be_read(schemes, scheme):
    """WCAG 1.4.3 wants 4.5:1 for text."""
    luminance = {
        name: linear(colour) @ [0.2126, 0.7152, 0.0722] for name, colour in schemes[scheme].items()
    }
    for name in (*(f"c{index}" for index in range(COLOURS)), "ink", "muted", "link"):
        dark, light = sorted((luminance[name], luminance["paper"]))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name
