"""How far apart two models are: Keras models and `.tflite` files on the same data."""

from keras_bn._callable_module import make_callable

make_callable(__name__, "keras_bn.compare.api:compare")
