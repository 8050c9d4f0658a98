"""Conversion of Keras models to LiteRT (`.tflite`) files; the only importer of `tf.lite`."""

from keras_bn._callable_module import make_callable

make_callable(__name__, "keras_bn.pipeline:convert")
