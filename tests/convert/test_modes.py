"""Arguments that do not exist or do not go together."""

import re

import pytest

from keras_bn.convert.modes import IO_DTYPES, check_options

SUITABLE = {"io_dtype": "float32", "batch_size": 1, "recurrent": "auto"}


@pytest.mark.parametrize("mode", IO_DTYPES)
def test_every_mode_takes_its_dtypes(mode):
    for io_dtype in IO_DTYPES[mode]:
        check_options([mode], **SUITABLE | {"io_dtype": io_dtype})


def test_a_dtype_needs_one_mode_that_offers_it():
    check_options(["none", "int8"], **SUITABLE | {"io_dtype": "uint8"})


@pytest.mark.parametrize(
    ("mode", "change", "message"),
    [
        ("int4", {}, "'none', 'float16', 'dynamic', 'int8', 'int16x8'; received 'int4'"),
        ("none", {"io_dtype": "int8"}, "'float32' with quantize='none'; received 'int8'"),
        ("int8", {"io_dtype": "int16"}, "'float32', 'int8', 'uint8' with quantize='int8'"),
        ("int16x8", {"io_dtype": "uint8"}, "'float32', 'int16' with quantize='int16x8'"),
        ("none", {"batch_size": 0}, "batch_size to be a positive integer.*received 0"),
        ("none", {"batch_size": 1.5}, "received 1.5"),
        ("none", {"recurrent": "fused"}, "'fused'. That form is not available in this version"),
        ("none", {"recurrent": "unroll"}, "not available in this version"),
        ("none", {"recurrent": "lstm"}, "'auto', 'loop'; received 'lstm'"),
    ],
)
def test_others_are_refused_with_what_there_is(mode, change, message):
    with pytest.raises(ValueError, match=message):
        check_options([mode], **SUITABLE | change)


def test_some_mode_is_needed():
    with pytest.raises(ValueError, match="at least one of 'none'"):
        check_options([], **SUITABLE)


def test_batch_size_may_be_free():
    check_options(["none"], **SUITABLE | {"batch_size": None})


def test_messages_end_after_what_was_received():
    with pytest.raises(ValueError, match=re.escape("received 'lstm'.") + "$"):
        check_options(["none"], **SUITABLE | {"recurrent": "lstm"})
