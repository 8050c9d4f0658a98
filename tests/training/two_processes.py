"""Two processes of two devices each that train as one, and what one process is to agree with.

python -m tests.training.two_processes PROCESS PORT FOLDER
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np

from keras_bn import update_bn
from keras_bn.layers import BatchNormalization
from tests.random_weights import randomize

BATCHES, BATCH, STEPS, EPOCHS = 3, 16, 4, 2

# Side by side in one model, so that one step is compiled for all of them.
LAYERS = {
    "unbiased": {},
    "biased": {"unbiased": False, "momentum": 0.5},
    "cumulative": {"momentum": None},
    "debiased": {"debias": True, "momentum": 0.6},
    "time_steps": {"axis": (1, 2), "momentum": 0.5},
    "time_steps_masked": {"axis": (1, 2), "momentum": None},
    "masked": {"momentum": 0.5},
    "synchronized": {"synchronized": True, "momentum": 0.5},
}

# Samples that each of the two processes brings to each batch.
SHARES = {
    "halves": [[8, 8], [8, 8]],
    "unequal, then no multiple of the devices": [[5, 7, 3], [3, 1, 3]],
    "one has no samples, then no batches": [[8, 8, 8], [4, 0]],
    "one has nothing at all": [[], [8, 5]],
}


def training_data():
    """Inputs, targets and mask of all batches. The halves of a batch differ in mean and spread."""
    rng = np.random.default_rng(0)
    scale = np.tile(np.arange(1, BATCH + 1), BATCHES)[:, None, None]
    x = (scale + scale * rng.normal(size=(BATCHES * BATCH, STEPS, 3))).astype("float32")
    mask = np.arange(STEPS) < rng.integers(2, STEPS + 1, (len(x), 1))
    mask[: BATCH // 2] = False  # the first half of the first batch has nothing to say
    x[~mask] = 0
    return x, rng.normal(size=(*x.shape[:2], 2)).astype("float32"), mask


def to_train():
    inputs = keras.Input((STEPS, 3))
    masked = keras.layers.Masking()(inputs)
    branches = [
        BatchNormalization(**options, name=name)(masked if "masked" in name else inputs)
        for name, options in LAYERS.items()
    ]
    hidden = dense("hidden", 5)(keras.layers.Concatenate()(branches))
    normalized = BatchNormalization(momentum=0.5, name="hidden_normalized")(hidden)
    return start(keras.Model(inputs, dense("outputs", 2)(normalized)))


def trained(x, y, batch_size):
    model = to_train()
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit(x, y, batch_size=batch_size, epochs=EPOCHS, shuffle=False, verbose=0)
    return model


def batches(name):
    """Both processes' shares of every batch of sequences, which have one length in a batch."""
    rng = np.random.default_rng(1)
    shares = SHARES[name]
    for index in range(max(map(len, shares))):
        length = 3 + index
        for_both = []
        for number, sizes in enumerate(shares):
            size = sizes[index] if index < len(sizes) else 0
            x = number + (1 + number) * rng.normal(size=(size, length, 3))
            x[np.arange(length) >= rng.integers(1, length + 1, (size, 1))] = 0
            for_both.append(x.astype("float32"))
        yield for_both


def to_update():
    inputs = keras.Input((None, 3))
    normalized = BatchNormalization(name="first")(keras.layers.Masking()(inputs))
    hidden = dense("hidden", 4)(normalized)
    return start(keras.Model(inputs, keras.layers.BatchNormalization(name="stock")(hidden)))


def dense(name, units):
    # Random kernels would differ between the processes, which JAX refuses.
    return keras.layers.Dense(units, "tanh", kernel_initializer="zeros", name=name)


def start(model):
    """The same random weights in every process, and the counters of batches at zero."""
    randomize(model)
    for variable in model.variables:
        if variable.name == "num_batches_tracked":
            variable.assign(np.zeros(variable.shape, "int32"))
    return model


def weights(model):
    return {one.path: np.array(keras.ops.convert_to_numpy(one)) for one in model.weights}


def failing():
    yield np.ones((8, 3, 3), "float32")
    raise OSError("the disk is gone")


# What the second process brings, while the first brings ordinary batches.
FAILURES = {
    "raises at once": lambda: (1 / 0 for _ in range(3)),
    "raises later": failing,
    "no data": lambda: 3,
    "other features": lambda: [np.ones((8, 3, 5), "float32")],
    "other dtype": lambda: [np.ones((8, 3, 3), "int32")],
    "not a number": lambda: [np.full((8, 3, 3), np.nan, "float32")],
}


def main(process, port, folder):
    import jax
    import jax.experimental.multihost_utils

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    keras.distribution.set_distribution(distribution)
    arrays = {}

    def keep(name, model):
        arrays.update({f"{name}: {path}": value for path, value in weights(model).items()})

    x, y, _ = training_data()
    own = np.arange(len(x)) % BATCH // (BATCH // 2) == process
    model = trained(x[own], y[own], BATCH // 2)
    keep("trained", model)
    arrays["loss"] = model.evaluate(x[own], y[own], BATCH // 2, verbose=0)

    model = to_update()
    for name, sizes in SHARES.items():
        shares = [each[process] for each in batches(name)][: len(sizes[process])]
        keep(name, update_bn(model, iter(shares)))
    keep("average", update_bn(model, iter(shares), method="average"))

    errors = {}

    def attempt(name, data):
        try:
            update_bn(model, data)
        except Exception as error:
            errors[name] = [type(error).__name__, str(error)]

    ordinary = [np.ones((8, 3, 3), "float32")] * 3
    for name, second in FAILURES.items():
        attempt(name, second() if process else ordinary)
    attempt("nothing at all", [])
    keep("after errors", model)

    import tensorflow as tf

    distribution.auto_shard_dataset = True
    attempt("an array to deal out", x)
    keep("dealt out", update_bn(model, tf.data.Dataset.from_tensor_slices(x[:40]).batch(BATCH)))

    # One copy of a model that is spread over both processes, statistics included.
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((1, 4), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout["hidden/kernel"] = (None, "model")
    layout["stock/.*"] = ("model",)
    spread = keras.distribution.ModelParallel(layout_map=layout, auto_shard_dataset=False)
    with spread.scope():
        model_in_parts = update_bn(
            to_update(), [np.concatenate(both) for both in batches("halves")]
        )
        for one in model_in_parts.weights:
            whole = jax.experimental.multihost_utils.process_allgather(one.value, tiled=True)
            arrays[f"spread: {one.path}"] = whole
        attempt("other samples for one copy", [x[: 8 + process]])

    keras.distribution.set_distribution(None)
    if process == 0:
        model.save(folder / "model.keras")
    np.savez(folder / f"{process}.npz", **arrays)
    (folder / f"{process}.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
