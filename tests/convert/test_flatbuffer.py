"""What a file holds, against what TensorFlow's own interpreter says of it."""

from collections import Counter

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from keras_bn.convert.export import export
from keras_bn.convert.flatbuffer import pack, read_contents, unpack
from keras_bn.samples import random_samples
from tests.deployable import MODELS, image_model
from tests.random_weights import randomize


@pytest.mark.parametrize("name", MODELS)
def test_operations_and_dtypes_are_those_of_the_interpreter(name, process, tmp_path):
    process.submit(export(MODELS[name](), tmp_path), quantize="none")
    tflite = process.result()
    contents = read_contents(tflite)
    interpreter = Interpreter(
        model_content=tflite,
        experimental_op_resolver_type=_without_delegates(),
    )
    ops = Counter(op["op_name"] for op in interpreter._get_ops_details())
    if "WHILE" in ops:  # the interpreter lists the first subgraph only
        assert not ops - contents.ops
        assert contents.ops["FULLY_CONNECTED"] > ops["FULLY_CONNECTED"]
    else:
        assert contents.ops == ops
        dtypes = Counter(np.dtype(t["dtype"]).name for t in interpreter.get_tensor_details())
        assert contents.dtypes == dtypes


def _without_delegates():
    from ai_edge_litert.interpreter import OpResolverType

    return OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES


def test_float_operations_of_an_integer_file_are_found(process, tmp_path):
    x = keras.Input((6,))
    model = randomize(keras.Model(x, keras.layers.Dense(2)(keras.ops.sin(x))))
    calibration = random_samples(model, 20)
    process.submit(export(model, tmp_path), quantize="int8", calibration=calibration)
    contents = read_contents(process.result())
    assert contents.float_ops == {"SIN": 1}
    assert contents.ops["FULLY_CONNECTED"] == 1


def test_boundaries_are_not_counted_as_float(process, tmp_path):
    model = image_model()
    calibration = random_samples(model, 20)
    process.submit(export(model, tmp_path), quantize="int8", calibration=calibration)
    contents = read_contents(process.result())
    assert contents.ops["QUANTIZE"] == contents.ops["DEQUANTIZE"] == 1
    assert not contents.float_ops


@pytest.mark.parametrize("name", MODELS)
def test_what_is_taken_apart_is_put_together_the_same(name, process, tmp_path):
    model = MODELS[name]()
    process.submit(export(model, tmp_path), quantize="none")
    tflite = process.result()
    packed = pack(unpack(tflite))
    assert read_contents(packed) == read_contents(tflite)
    before, after = Interpreter(model_content=tflite), Interpreter(model_content=packed)
    assert after.get_signature_list() == before.get_signature_list()
    samples = random_samples(model, 1)
    expected = before.get_signature_runner()(**samples)
    for output, values in after.get_signature_runner()(**samples).items():
        np.testing.assert_array_equal(values, expected[output])


def test_constants_begin_at_multiples_of_sixteen_bytes(process, tmp_path):
    process.submit(export(image_model(), tmp_path), quantize="none")
    packed = pack(unpack(process.result()))
    start = np.frombuffer(packed, np.uint8).ctypes.data
    constants = [b.data for b in unpack(packed).buffers if b.data is not None]
    assert len(constants) > 5
    assert {(data.ctypes.data - start) % 16 for data in constants} == {0}
