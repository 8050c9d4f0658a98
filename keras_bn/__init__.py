"""From a Keras 3 model in training to a verified, benchmarked `.tflite`.

The public names below are imported on first use, so that `import keras_bn` costs
milliseconds: TensorFlow is loaded by the function that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from keras_bn import errors
from keras_bn._callable_module import resolve

if TYPE_CHECKING:
    from keras_bn import callbacks, compare, convert, fold, interop, layers
    from keras_bn.bench.api import benchmark
    from keras_bn.training.population import update_bn
    from keras_bn.training.replace import replace_batch_norm

__version__ = "0.1.0"

_MODULES = ("callbacks", "compare", "convert", "fold", "interop", "layers")
_FUNCTIONS = {
    "benchmark": "keras_bn.bench.api:benchmark",
    "replace_batch_norm": "keras_bn.training.replace:replace_batch_norm",
    "update_bn": "keras_bn.training.population:update_bn",
}

__all__ = [
    "benchmark",
    "callbacks",
    "compare",
    "convert",
    "errors",
    "fold",
    "interop",
    "layers",
    "replace_batch_norm",
    "update_bn",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _FUNCTIONS:
        return resolve(_FUNCTIONS[name])
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}"
    )


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
