"""Plots of reports: what stands on their axes."""

from __future__ import annotations

import re

import pytest

from gnnrec.report.svg import figure, logarithmic, number


def texts(x: list[float], y: list[float]) -> list[str]:
    """Of a plot with both axes logarithmic."""

    def draw(axes) -> None:
        axes.plot(x, y)
        logarithmic(axes, "x", "y")

    return re.findall(r"<text[^>]*>([^<]*)</text>", figure("plot", "A plot", draw).drawn)


@pytest.mark.parametrize(
    ("x", "shown"),
    [
        ([64, 2048, 16384], {"100", "1,000", "10,000", "2,000"}),
        ([1e-5, 1e-4], {"1e-05", "2e-05", "0.0001"}),
        ([310, 390], {"320", "340", "360", "380"}),
        ([1, 1e6], {"1", "100", "10,000", "1,000,000"}),
    ],
)
def test_a_logarithmic_axis_has_numbers_and_no_formulas(x, shown):
    found = texts(x, [1.0] * len(x)) + texts([1.0] * len(x), x)
    assert not [text for text in found if "$" in text or "math" in text]
    assert shown <= set(found)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.001, "0.001"),
        (1e-5, "1e-05"),
        (0.5, "0.5"),
        (64, "64"),
        (4096.0, "4,096"),
        (1e6, "1,000,000"),
        (1e9, "1e+09"),
    ],
)
def test_numbers_of_an_axis(value, shown):
    assert number(value) == shown
