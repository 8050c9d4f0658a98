"""The demonstration's data and network: scikit-learn's handwritten digits, a small CNN.

The digits are 1,797 real 8×8 images (the test part of "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository), and come with the scikit-learn package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers

from keras_bn.layers import BatchNormalization
from keras_bn.training.population import update_bn

EPOCHS = 30
BATCH_SIZE = 64
HELD_OUT = 0.3


@dataclass(frozen=True)
class Digits:
    """Images of shape (samples, 8, 8, 1) in [0, 1] and classes 0 to 9."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_digits() -> Digits:
    """The digits, split into a training part and 30 % that training never sees.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "the demo's data comes with scikit-learn, which is not installed; "
            "run: pip install scikit-learn"
        ) from error
    images, labels = load(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=HELD_OUT, stratify=labels, random_state=0
    )
    return Digits(train_x, train_y, test_x, test_y)


def build_model() -> keras.Model:
    """Convolution, depthwise-separable, residual and Dense blocks, each with normalizations.

    All but one can fold: the normalization after the addition feeds a ReLU, so that nothing
    linear is next to it.
    """

    def normalized(x: keras.KerasTensor, name: str, *, relu: bool = True) -> keras.KerasTensor:
        x = BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x) if relu else x

    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(32, 3, padding="same", use_bias=False, name="stem")(image)
    x = normalized(x, "stem")

    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = normalized(x, "depthwise")
    x = layers.Conv2D(64, 1, use_bias=False, name="pointwise")(x)
    x = normalized(x, "pointwise")
    x = layers.MaxPooling2D(2, name="pool")(x)

    shortcut = x
    x = layers.Conv2D(64, 3, padding="same", use_bias=False, name="residual_1")(x)
    x = normalized(x, "residual_1")
    x = layers.Conv2D(64, 3, padding="same", use_bias=False, name="residual_2")(x)
    x = normalized(x, "residual_2", relu=False)
    x = layers.Add(name="add")([shortcut, x])
    x = normalized(x, "sum")

    x = layers.GlobalAveragePooling2D(name="average")(x)
    x = layers.Dense(64, use_bias=False, name="hidden")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    x = normalized(x, "hidden")
    return keras.Model(
        image, layers.Dense(10, activation="softmax", name="digit")(x), name="digits"
    )


def train(
    digits: Digits, *, epochs: int = EPOCHS, progress: Callable[[int, int, str], None] | None = None
) -> keras.Model:
    """Train `build_model()` and replace its moving statistics by those of the training set.

    Args:
        digits: The data; its test part is not looked at.
        epochs: Passes over the training part.
        progress: Called after each epoch with (epochs done, epochs in all, words).
    """
    keras.utils.set_random_seed(0)
    model = build_model()
    steps = epochs * -(-len(digits.train_images) // BATCH_SIZE)
    model.compile(
        optimizer=keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(3e-3, steps), weight_decay=1e-3
        ),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,  # XLA runs depthwise convolutions several times slower on a CPU
    )

    def report(epoch: int, logs: dict[str, float] | None) -> None:
        if progress:
            progress(epoch + 1, epochs, f"train, accuracy {(logs or {}).get('accuracy', 0):.3f}")

    model.fit(
        digits.train_images,
        digits.train_labels,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=report)],
    )
    return update_bn(model, digits.train_images)
