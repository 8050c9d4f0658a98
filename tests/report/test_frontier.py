"""The frontier: what no other is at least as good as in every respect."""

from hypothesis import given
from hypothesis import strategies as st

from keras_bn.report.frontier import frontiers, undominated
from keras_bn.report.results import document
from tests.report.example import FLOAT, INT8, conversion, measurement, three_devices

costs = st.dictionaries(
    st.integers(0, 9), st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=8
)


@given(costs)
def test_everything_beaten_is_beaten_by_one_on_the_frontier(named):
    """Its definition: no worse in every respect, better in one; and that none of the rest is."""

    def beats(one, other):
        worse = [a > b for a, b in zip(named[one], named[other], strict=True)]
        better = [a < b for a, b in zip(named[one], named[other], strict=True)]
        return not any(worse) and any(better)

    on = undominated(named)
    assert on
    for name in named:
        assert (name in on) == (not any(beats(other, name) for other in named))
        assert name in on or any(beats(other, name) for other in on)


def test_each_device_has_its_own():
    third = conversion("out/third.tflite", "dynamic", 60_000)
    converted = [conversion(), conversion(INT8, "int8", 27_800), third]
    measured = [
        measurement(path, median, device=device)
        for device, medians in (("host", (1.0, 2.0, 3.0)), ("ssh://pi", (3.0, 2.0, 1.0)))
        for path, median in zip((FLOAT, INT8, third.path), medians, strict=True)
    ]
    written = document(title="", environment={}, conversions=converted, benchmarks=measured)
    for each in written["benchmarks"]:  # what a device measured is of the file's own size
        each["size_bytes"] = {c["name"]: c["size_bytes"] for c in written["conversions"]}[
            each["name"]
        ]
    host, board = frontiers(written)
    assert (host.where, host.respects) == ("host, 1 thread", "size, SNR and latency")
    assert (host.names, host.beaten) == (["net-float32", "net-int8"], ["third"])
    assert (board.names, board.beaten) == (["net-int8", "third"], ["net-float32"])


def test_of_two_files_nothing_needs_to_be_said():
    assert frontiers(three_devices()) == []
