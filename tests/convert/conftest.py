"""One worker process for all tests of a run: importing TensorFlow there takes seconds."""

import pytest

from keras_bn.convert.process import ConverterProcess


@pytest.fixture(scope="session")
def process():
    with ConverterProcess() as process:
        yield process
