import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphlossy.train._format import format_size
from graphlossy.train._svg import Bar, Line, bar_chart, line_chart, nice_ticks


@settings(deadline=None, max_examples=50)
@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_span_the_range_in_equal_steps(low, width):
    high = low + width
    ticks = nice_ticks(low, high)
    slack = max(abs(low), abs(high), width) * 1e-6
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 12
    steps = [b - a for a, b in zip(ticks, ticks[1:], strict=False)]
    assert all(step == pytest.approx(steps[0], rel=1e-3, abs=slack) for step in steps)


def test_a_flat_curve_still_has_an_axis():
    ticks = nice_ticks(0.5, 0.5)
    assert ticks[0] < 0.5 < ticks[-1]


def test_a_chart_is_well_formed_and_stays_inside_its_frame():
    chart = line_chart([Line("a < b & c", [(1, 0.2), (2, math.nan), (3, 0.9)], strong=True)], "epoch", "x & y")
    root = ElementTree.fromstring(chart)
    pairs = [pair.split(",") for pair in root.find("polyline").get("points").split()]
    assert len(pairs) == 2
    assert all(0 <= float(x) <= 640 and 0 <= float(y) <= 300 for x, y in pairs)
    assert root.find("polyline/title").text == "a < b & c"


def test_bars_are_in_proportion():
    root = ElementTree.fromstring(
        bar_chart([Bar("conv", [200.0, 50.0], ["200", "50"]), Bar("x", [None, 100.0], ["", "1"])])
    )
    widths = [float(rect.get("width")) for rect in root.findall("rect")]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.01)
    assert widths[0] / widths[2] == pytest.approx(2, rel=0.01)


def test_charts_of_nothing_say_so():
    assert "nothing to draw" in line_chart([], "x", "y")
    assert "nothing to draw" in bar_chart([])


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 2**30, "5.0 GiB"), (None, "-")]
)
def test_sizes(size, text):
    assert format_size(size) == text
