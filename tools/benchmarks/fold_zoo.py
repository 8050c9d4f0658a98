"""keras_bn.fold on all of keras.applications: what is left, how exact, and what it costs.

Every architecture and size is built at its own image size without its softmax, which would hide
differences. Kernels are random, and so are gammas (of both signs), betas, biases and the
statistics of Normalization. Moving statistics are those of a batch of random images under these
weights: drawn at random they would let activations vanish or overflow on the way through hundreds
of layers. The images differ in brightness as photographs do. Images of noise alone look the same to
the deeper layers, whose statistics would then be those of next to nothing, and every rounding on
other images a thousand times what it is. What folding does to the outputs stands beside what
rounding does to the original's: both are differences from the original in float64, relative to its
largest output.

Time is that of a fold beside keras.models.clone_model, which take turns; memory is the growth of
the peak resident set of a fresh process by each. Every model has processes of its own. The largest
need about ten gigabytes; a model that fails has a row that says so, and the run goes on.

    python -m tools.benchmarks.fold_zoo [--quick] [--json FILE] [--markdown FILE]
"""

from __future__ import annotations

import json
import subprocess
import sys
from types import FunctionType
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from tools.benchmarks.command import machine, main
from tools.benchmarks.fold_time import application, peaks, times
from tools.benchmarks.timing import in_child

if TYPE_CHECKING:
    import keras
    import numpy as np

QUICK_MODELS = (
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "EfficientNetB0",
    "NASNetMobile",
    "DenseNet121",
)
COUNTS = ("batch_normalizations", "other_affines", "layers")
IMAGES = 4  # whose statistics the batch normalizations get
PATCHES = 8  # along each side of an image
ROUNDS = 3


def run(quick: bool) -> dict[str, Any]:
    """Measure every model in processes of its own; the JSON document."""
    return {
        "benchmark": "fold_zoo",
        "quick": quick,
        "machine": machine(),
        "models": [_row(name, 1 if quick else ROUNDS) for name in _names(quick)],
    }


def table(document: dict[str, Any]) -> Table:
    """The document's figures for people."""
    result = Table(
        title="keras_bn.fold on keras.applications",
        caption=(
            "BN, affines, layers: how many batch normalizations, layers that rescale their input "
            "(Rescaling, Normalization) and layers in all, before → after. Off by: largest "
            "difference of the folded model from the original in float64, relative to its largest "
            "output; rounding: the same of the original in float32. Time: that of a fold over "
            "that of keras.models.clone_model; together: of the sums of both; unverified: without "
            "running both models to compare them. MB: growth of the peak resident set.\n\n"
            "What stays in ResNetV2 and DenseNet normalizes a stream that other layers read as "
            "well: in ResNetV2 where gammas below zero stand in front of a ReLU, in DenseNet "
            "because each of the layers that read a stream normalizes it by other statistics. The "
            "new affines of ResNetV2 are what is left of some, one addition or multiplication "
            "each. The affine left in EfficientNet and MobileNetV3 stands in front of a "
            "convolution that pads with zeros.\n\n"
            "Every architecture has its own image size, random kernels, and gammas of both signs."
        ),
    )
    result.add_column("model", no_wrap=True)
    for heading in (
        "BN",
        "affines",
        "layers",
        "off by",
        "rounding",
        "time",
        "unverified",
        "fold MB",
        "clone MB",
    ):
        result.add_column(heading, justify="right")
    for row in document["models"]:
        if "error" in row:
            result.add_row(row["model"], row["error"])
            continue
        result.add_row(
            row["model"],
            *(f"{row[count]['before']} → {row[count]['after']}" for count in COUNTS),
            f"{row['fold_off_by']:.1e}",
            f"{row['rounding']:.1e}",
            f"{row['ratio']:.2f}",
            f"{row['unverified_ratio']:.2f}",
            f"{row['fold_peak_bytes'] / 1e6:.0f}",
            f"{row['clone_peak_bytes'] / 1e6:.0f}",
        )
    whole = [row for row in document["models"] if "error" not in row]
    seconds = {
        way: sum(row[f"{way}_s"] for row in whole) for way in ("fold", "unverified", "clone")
    }
    result.add_row(
        "together",
        *(
            " → ".join(str(sum(row[count][when] for row in whole)) for when in ("before", "after"))
            for count in COUNTS
        ),
        *("", ""),
        *(f"{seconds[way] / seconds['clone']:.2f}" for way in ("fold", "unverified")),
    )
    return result


def measure(name: str, rounds: int) -> None:
    """Print what a fold does to a model of keras.applications and how long it takes, as JSON."""
    import keras
    import numpy as np

    import keras_bn

    keras.utils.set_random_seed(0)
    model = application(name, classifier_activation=None)
    rng = np.random.default_rng(0)
    images = _images(rng, model.input_shape[1:])
    _randomize(model, images, rng)
    folded = keras_bn.fold(model).model
    outputs = [_run(each, images[:1]) for each in (folded, model)]
    keras.config.set_dtype_policy("float64")
    exact_model = application(name, classifier_activation=None)
    keras.config.set_dtype_policy("float32")
    exact_model.set_weights(model.get_weights())
    _finalize(exact_model)
    exact = _run(exact_model, images[:1])
    del exact_model
    off_by = [float(np.max(np.abs(each - exact)) / np.max(np.abs(exact))) for each in outputs]
    document = {
        **{
            label: {"before": count(model), "after": count(folded)}
            for label, count in (
                ("batch_normalizations", _count(keras.layers.BatchNormalization)),
                ("other_affines", _count(keras.layers.Rescaling, keras.layers.Normalization)),
                ("layers", _count(keras.layers.Layer)),
            )
        },
        "parameters": model.count_params(),
        "pixels": model.input_shape[1],
        "fold_off_by": off_by[0],
        "rounding": off_by[1],
    }
    del folded
    json.dump({**document, **times(model, rounds)}, sys.stdout)


def _names(quick: bool) -> list[str]:
    """The functions in keras.applications that make a model."""
    import keras

    if quick:
        return list(QUICK_MODELS)
    members = vars(keras.applications).items()
    return [name for name, value in members if isinstance(value, FunctionType)]


def _row(name: str, rounds: int) -> dict[str, Any]:
    click.echo(f"{name} …", err=True)
    try:
        return {
            "model": name,
            "rounds": rounds,
            **in_child(f"fold_zoo:measure({name!r}, {rounds})"),
            **peaks(name),
        }
    except subprocess.CalledProcessError as error:
        signal = " (killed, as for lack of memory)" if error.returncode == -9 else ""
        return {"model": name, "error": f"exit status {error.returncode}{signal}"}


def _images(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Bright ones and dark ones: patches of random colours, and noise."""
    import numpy as np

    height, width, channels = shape
    brightness = rng.uniform(0, 1, (IMAGES, 1, 1, 1))
    patches = brightness * rng.uniform(0, 255, (IMAGES, PATCHES, PATCHES, channels))
    for axis, length in ((1, height), (2, width)):
        patches = patches.repeat(-(-length // PATCHES), axis)
    images = patches[:, :height, :width]
    return np.clip(images + rng.normal(0, 20, images.shape), 0, 255).astype("float32")


def _randomize(model: keras.Model, images: np.ndarray, rng: np.random.Generator) -> None:
    """Weights far from the identity, and statistics that belong to them."""
    import keras

    import keras_bn

    for variable in model.variables:
        shape = tuple(variable.shape)
        if variable.name == "gamma":
            variable.assign(rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape))
        elif variable.name in ("beta", "bias", "mean"):
            variable.assign(rng.normal(0.0, 0.5, shape))
        elif variable.name == "variance":
            variable.assign(rng.uniform(0.5, 2.0, shape))
    _finalize(model)
    if _count(keras.layers.BatchNormalization)(model):
        keras_bn.update_bn(model, images, verbose=False)


def _finalize(model: keras.Model) -> None:
    """Let Normalization derive its constants from its weights."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def _count(*kinds: type) -> Any:
    """A function that counts a model's layers of these kinds, those inside others included."""
    return lambda model: sum(
        isinstance(layer, kinds) for layer in model._flatten_layers(include_self=False)
    )


def _run(model: keras.Model, images: np.ndarray) -> np.ndarray:
    import keras
    import numpy as np

    return np.asarray(keras.ops.convert_to_numpy(model(images, training=False)), np.float64)


if __name__ == "__main__":
    main(run, table)
