"""The sentences on top say what the figures say, and no more."""

import dataclasses

import pytest

from keras_bn.bench.result import Speedup
from keras_bn.fold.result import FoldedLayer, FoldResult, KeptLayer
from keras_bn.report.results import document
from keras_bn.report.summary import sentences
from tests.report.example import FLOAT, FOLD, INT8, MICRO, REFUSED, conversion, measurement


def summary(**parts):
    return sentences(document(title="", environment={}, **parts))


def pair(size=27_800, **compared):
    pair = [conversion(), conversion(INT8, "int8", size, **compared)]
    return [c.__class__(**{**vars(c), "fold": None}) for c in pair]


def speedup(ratio, low, high, threads=1, device="host"):
    return Speedup(str(INT8), str(FLOAT), device, threads, ratio, (low, high))


SMALLER = "int8 is 3.60\u00d7 smaller"
MEASURED = "on host with 1 thread"

CASES = {
    "faster": (
        {"speedups": [speedup(1.4, 1.3, 1.5)], "accuracies": {FLOAT: 0.978, INT8: 0.978}},
        f"{SMALLER} and, {MEASURED}, 1.40\u00d7 [1.30,\u00a01.50] faster than float32, "
        "at the same accuracy (97.8\u202f%).",
    ),
    "slower, less accurate": (
        {"speedups": [speedup(0.5, 0.4, 0.8)], "accuracies": {FLOAT: 0.978, INT8: 0.9712}},
        f"{SMALLER} and, {MEASURED}, 2.00\u00d7 [1.25,\u00a02.50] slower than float32, "
        "at 0.7 points lower accuracy (97.1\u202f% against 97.8\u202f%).",
    ),
    "undecided, more accurate": (
        {"speedups": [speedup(1.1, 0.9, 1.3)], "accuracies": {FLOAT: 0.97, INT8: 0.98}},
        f"{SMALLER} than float32, without a measurable difference in speed {MEASURED}, "
        "at 1.0 points higher accuracy (98.0\u202f% against 97.0\u202f%).",
    ),
    "not measured, agreement": (
        {},
        f"{SMALLER} than float32, and chooses the same class as the Keras model for 98.8\u202f% "
        "of 256 samples.",
    ),
    "an accuracy without the other says nothing": (
        {"accuracies": {INT8: 0.97}},
        f"{SMALLER} than float32, and chooses the same class as the Keras model for 98.8\u202f% "
        "of 256 samples.",
    ),
    "no classes": (
        {"conversions": pair(top1_agreement=None)},
        f"{SMALLER} than float32, with 30.2 dB between signal and error.",
    ),
    "larger": (
        {"conversions": pair(200_000, top1_agreement=None)},
        "int8 is 2.00\u00d7 larger than float32, with 30.2 dB between signal and error.",
    ),
    "same size": (
        {
            "conversions": pair(99_000, top1_agreement=None),
            "speedups": [speedup(1.4, 1.3, 1.5)],
        },
        f"int8 is 1.40\u00d7 [1.30,\u00a01.50] faster than float32 {MEASURED}, without a notable "
        "difference in size, with 30.2 dB between signal and error.",
    ),
    "no difference": (
        {
            "conversions": pair(99_000, top1_agreement=None),
            "speedups": [speedup(1.0, 0.9, 1.1)],
        },
        "int8 and float32 do not differ notably in size and speed, with 30.2 dB between "
        "signal and error.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_for_a_conversion(case):
    parts, sentence = CASES[case]
    assert summary(**{"conversions": pair()} | parts) == [sentence]


def test_speed_is_that_of_the_fewest_threads():
    [sentence] = summary(
        conversions=pair(), speedups=[speedup(3, 3, 3, threads=4), speedup(2, 2, 2, threads=1)]
    )
    assert "2.00\u00d7 [2.00,\u00a02.00] faster" in sentence


def test_each_device_tells_its_own_speed():
    """Ratios between devices would compare machines, not models."""
    elsewhere = [speedup(2.1, 2.0, 2.2, 4, "ssh://pi"), speedup(1.0, 0.9, 1.1, 1, "ssh://pi")]
    slower = speedup(0.5, 0.4, 0.8, 2, "adb:1")
    gained = [speedup(1.4, 1.3, 1.5), *elsewhere]
    told = "1.40\u00d7 [1.30,\u00a01.50] faster on host"
    assert summary(conversions=pair(top1_agreement=None), speedups=gained) == [
        f"{SMALLER} than float32, with 30.2 dB between signal and error. With 1 thread it is "
        f"{told} and neither faster nor slower on ssh://pi."
    ]
    assert summary(speedups=[*gained, slower]) == [
        f"net-int8 against net-float32: It is {told} with 1 thread, neither faster nor slower on "
        "ssh://pi with 1 thread and 2.00\u00d7 [1.25,\u00a02.50] slower on adb:1 with 2 threads."
    ]


def test_a_single_model_is_told_of_on_each_device():
    measured = [measurement(device=device, threads=t) for device in "ab" for t in (1, 2)]
    found = summary(benchmarks=measured)
    assert [sentence.partition(" on ")[2] for sentence in found] == [
        "a with 1 thread.",
        "b with 1 thread.",
    ]


def test_microcontrollers():
    runs = "TensorFlow Lite Micro runs net-int8 (20.5\u202fkB of RAM)"
    stopped = dataclasses.replace(REFUSED, stopped_by="CUMSUM")
    assert summary(microcontrollers=[MICRO]) == [f"{runs}."]
    assert summary(microcontrollers=[MICRO, stopped]) == [
        f"{runs} and does not run net-float32 (CUMSUM)."
    ]
    assert summary(microcontrollers=[REFUSED]) == [
        "TensorFlow Lite Micro does not run net-float32."
    ]


def test_files_of_one_quantization_go_by_their_names():
    other = conversion("out/other.tflite", "int8", 50_000)
    found = summary(conversions=[*pair(), other], speedups=[speedup(2, 2, 2)])
    assert [sentence.partition(" is ")[0] for sentence in found[:2]] == ["net-int8", "other"]


def test_without_a_float_model_only_sizes_are_told():
    assert summary(conversions=pair()[1:]) == ["net-int8 takes 27.8\u202fkB."]


def test_measurements_alone():
    assert summary(speedups=[speedup(1.4, 1.3, 1.5)], benchmarks=[measurement()]) == [
        "net-int8 is 1.40\u00d7 [1.30,\u00a01.50] faster than net-float32 on host with 1 thread."
    ]
    [sentence] = summary(benchmarks=[measurement(median=4.0)])
    assert sentence.startswith("net-float32 takes 4.0")
    assert sentence.endswith("] on host with 1 thread.")


def test_nothing_to_say():
    assert summary() == []


@pytest.mark.parametrize(
    "folded, kept, sentence",
    [
        (0, 0, "The model has no normalization to fold."),
        (0, 3, "None of the model's 3 normalizations could be folded."),
        (1, 0, "The model's only normalization was folded away; the outputs changed by 0 at most."),
        (1, 2, "1 of 3 normalizations was folded away; the outputs changed by 0 at most."),
        (4, 0, "All 4 normalizations were folded away; the outputs changed by 0 at most."),
        (2, 1, "2 of 3 normalizations were folded away; the outputs changed by 0 at most."),
    ],
)
def test_folding(folded, kept, sentence):
    fold = FoldResult(
        None, [FoldedLayer("a", "b", "c")] * folded, [KeptLayer("a", "b")] * kept, 0.0
    )
    assert summary(fold=fold) == [sentence]


def test_folding_comes_last():
    found = summary(conversions=pair(), fold=FOLD)
    assert found[-1].startswith("2 of 3 normalizations")
    assert len(found) == 2
