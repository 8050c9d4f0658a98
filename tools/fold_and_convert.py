#!/usr/bin/env python3
"""Fold and convert a Keras model in one go: the same code as `keras-bn convert`.

python tools/fold_and_convert.py MODEL.keras -o OUT.tflite --quantize int8 --calibration DATA.npz
"""

from keras_bn.__main__ import main
from keras_bn.cli.convert import convert

if __name__ == "__main__":
    main(convert)
