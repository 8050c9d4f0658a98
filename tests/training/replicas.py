"""`update_bn` on several devices of one process: prints the statistics as JSON.

On TensorFlow two replicas of a MirroredStrategy, on JAX four devices of a DataParallel.
"""

import json

import keras
import numpy as np

import keras_bn

# Batches that the devices cannot share alike, and one smaller than their number.
SIZES = (8, 5, 1, 12, 7)
METHODS = ("pooled", "average")


def samples():
    """Each with a mean and a spread of its own, so that shares of a batch differ in both."""
    rng = np.random.default_rng(0)
    scale = np.arange(1, sum(SIZES) + 1)[:, None, None]
    return (5 * scale + scale * rng.normal(size=(sum(SIZES), 4, 3))).astype("float32")


def batches():
    return np.split(samples(), np.cumsum(SIZES)[:-1])


def model_of(kind, **options):
    model = keras.Sequential([keras.Input((4, 3)), kind(**options)])
    # As after training, in which replicas keep statistics of their own.
    model.layers[0].moving_mean.assign([1.0, 2.0, 3.0])
    return model


LAYERS = {
    "ours": (keras_bn.layers.BatchNormalization, {}),
    "Keras's": (keras.layers.BatchNormalization, {}),
    "synchronized": (keras_bn.layers.BatchNormalization, {"synchronized": True}),
}


def measured(scope):
    """The statistics of each layer under each method, and what a failed pass leaves."""
    results = {}
    for name, (kind, options) in LAYERS.items():
        for method in METHODS:
            with scope():
                model = model_of(kind, **options)
            keras_bn.update_bn(model, iter(batches()), method=method)
            results[f"{name} {method}"] = statistics(model)
    with scope():
        model = model_of(keras_bn.layers.BatchNormalization)
    try:
        keras_bn.update_bn(model, failing())
    except OSError:
        results["failed"] = statistics(model)
    return results


def statistics(model):
    return [weight.tolist() for weight in model.get_weights()[2:4]]


def failing():
    yield samples()
    raise OSError


def main():
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
        scope = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope
    else:
        from contextlib import nullcontext as scope

        assert len(keras.distribution.list_devices()) == 4
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    print(json.dumps(measured(scope)))


if __name__ == "__main__":
    main()
