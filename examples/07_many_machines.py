"""Two machines train one network, each on the digits that it has, with the statistics of both.

The first machine has the zeros to fours, the second the fives to nines: data that lie on several
machines are seldom shuffled among them. Were each to normalize by its own samples, the two would
train two networks: what the first calls a channel's mean is none that the second ever sees.

Keras trains on several machines through `keras.distribution` on the JAX backend. Each process
brings its share of every batch, the batch is one array spread over the devices of all of them, and
its mean is computed over all of it, wherever the samples lie. So is everything that
keras_bn.layers.BatchNormalization tells from a batch: mean, variance, and the number m of elements
behind them, by which the variance is made unbiased. `keras_bn.update_bn` works alike; there the
processes may also bring different numbers of samples, and end at different times.

    python examples/07_many_machines.py [--quick] [--output FOLDER]

plays two machines of two devices each by two processes here, and compares them with one process
that has all the data. On real machines, start the same file on each of them, with the address of
the first and a free port there, which the others must be able to reach:

    python examples/07_many_machines.py --coordinator 10.0.0.1:1234 --process 0    (on 10.0.0.1)
    python examples/07_many_machines.py --coordinator 10.0.0.1:1234 --process 1    (on the other)
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
from matplotlib.figure import Figure

if find_spec("jax") is None:
    sys.exit(
        "Keras trains on several machines through JAX, which is not installed. Run: pip install jax"
    )
os.environ["KERAS_BACKEND"] = "jax"

import keras
from keras import layers
from keras.ops import convert_to_numpy

import keras_bn
from keras_bn.demo import load_digits

MACHINES = 2
SHARE = 32  # samples that a machine brings to each batch
EPOCHS = 5

SMALLEST = 1e-9  # distance that the figure shows


def digits_of(machine):
    """The training images and labels that lie on this machine."""
    digits = load_digits()
    mine = digits.train_labels // 5 == machine
    return digits.train_images[mine], digits.train_labels[mine]


def samples_to_train_on():
    """On each machine: `fit` needs as many batches on each of them, and all of one size."""
    return min(len(digits_of(machine)[0]) for machine in range(MACHINES)) // SHARE * SHARE


def network():
    return keras.Sequential([
        keras.Input((8, 8, 1)),
        layers.Conv2D(16, 3, use_bias=False),
        keras_bn.layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
        layers.Conv2D(32, 3, use_bias=False),
        keras_bn.layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(10),
    ])  # fmt: skip


def train(images, labels, batch_size, epochs):
    keras.utils.set_random_seed(0)
    model = network()
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    # In the order of the data, so that one process can put the same samples into each batch.
    model.fit(images, labels, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0)
    return model


def be_a_machine(coordinator, process, epochs, output):
    """What each of the machines runs."""
    import jax

    # Between GPUs JAX speaks NCCL by itself; between CPUs it has to be told how to speak.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    keras.distribution.initialize(coordinator, num_processes=MACHINES, process_id=process)
    # auto_shard_dataset=True would deal a tf.data.Dataset of all the data out to the processes.
    # Here each process has its own share.
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    with distribution.scope():
        images, labels = digits_of(process)
        enough = samples_to_train_on()
        model = train(images[:enough], labels[:enough], SHARE, epochs)
        trained = statistics(model)
        keras_bn.update_bn(model, images, batch_size=SHARE)
    # All processes have the same weights, so one saves them. Out of the scope: within it, saving
    # makes variables of its own, in which all processes have to take part.
    if process == 0:
        model.save(output / "two_machines.keras")
        np.savez(output / "trained.npz", *trained)


def statistics(model):
    """Moving means and variances of all normalizations, one array each."""
    normalizations = [
        layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)
    ]
    return [
        np.concatenate([convert_to_numpy(getattr(layer, name)) for layer in normalizations])
        for name in ("moving_mean", "moving_variance")
    ]


def play_machines(arguments, folder):
    """Run this file in two processes at once, each with two devices made of this CPU."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    logs = [folder / f"{process}.log" for process in range(MACHINES)]
    running = []
    try:
        for process, log in enumerate(logs):
            command = [sys.executable, __file__, *arguments, "--output", str(folder)]
            command += ["--coordinator", address, "--process", str(process)]
            with log.open("w") as output:
                running.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=output)
                )
        # One that fails would leave the others waiting.
        while any(one.poll() is None for one in running) and not any(one.poll() for one in running):
            time.sleep(0.1)
        if any(one.poll() for one in running):
            sys.exit("\n".join(log.read_text() for log in logs))
    finally:
        for one in running:
            one.kill()
            one.wait()


def whole_batches(shares):
    """The batches that all machines make together, each of which has one of the `shares`."""
    return [
        np.concatenate([share[start : start + SHARE] for share in shares])
        for start in range(0, max(map(len, shares)), SHARE)
    ]


def train_in_one_process(epochs):
    """The model after update_bn, and its statistics before."""
    images, labels = zip(*map(digits_of, range(MACHINES)), strict=True)
    enough = samples_to_train_on()
    model = train(
        np.concatenate(whole_batches([one[:enough] for one in images])),
        np.concatenate(whole_batches([one[:enough] for one in labels])),
        MACHINES * SHARE,
        epochs,
    )
    trained = statistics(model)
    return keras_bn.update_bn(model, whole_batches(images)), trained


def draw(alone, both, one, path):
    """The statistics of each channel by who measured them, and how far they are from `one`."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    (top_left, top_right), (bottom_left, bottom_right) = figure.subplots(
        2, 2, sharex=True, height_ratios=[2, 1]
    )
    for number, (name, top, bottom) in enumerate([
        ("mean", top_left, bottom_left), ("variance", top_right, bottom_right)
    ]):  # fmt: skip
        channels = np.arange(len(one[number]))
        top.plot(channels, one[number], "o", color="0.3", fillstyle="none", label="one process")
        for label, (statistic, style) in {
            "machine 0's digits alone": (alone[0], {"marker": ".", "color": "#0072B2"}),
            "machine 1's digits alone": (alone[1], {"marker": ".", "color": "#D55E00"}),
            "both machines": (both, {"marker": "+", "color": "#009E73"}),
        }.items():
            top.plot(channels, statistic[number], linestyle="", label=label, **style)
            distance = abs(statistic[number] - one[number])
            # Where both agree in every digit: a logarithmic axis has no zero.
            bottom.plot(channels, np.maximum(distance, SMALLEST), linestyle="", **style)
        top.set(title=f"{name.capitalize()} of each channel", ylabel=name)
        bottom.set(yscale="log", ylabel="distance from one process", xlabel="channel")
    top_right.set_yscale("log")
    figure.legend(*top_left.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


@click.command()
@click.option("--quick", is_flag=True, help="One epoch.")
@click.option("--output", type=click.Path(path_type=Path), default=".", help="For the figure.")
@click.option("--coordinator", help="Address and port of process 0, when this is one of several.")
@click.option("--process", type=int, help="This one's number, from 0.")
def main(quick, output, coordinator, process):
    epochs = 1 if quick else EPOCHS
    if coordinator is not None:
        be_a_machine(coordinator, process, epochs, output)
        return

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        play_machines(["--quick"] if quick else [], folder)
        model = keras.models.load_model(folder / "two_machines.keras")
        with np.load(folder / "trained.npz") as arrays:
            trained = list(arrays.values())
    both = statistics(model)
    reference, trained_in_one = train_in_one_process(epochs)
    one = statistics(reference)
    alone = [
        statistics(keras_bn.update_bn(model, digits_of(machine)[0], batch_size=SHARE))
        for machine in range(MACHINES)
    ]

    rows = {
        "two machines, after training": (trained, trained_in_one),
        "two machines, after update_bn": (both, one),
        "machine 0's digits alone": (alone[0], one),
        "machine 1's digits alone": (alone[1], one),
    }
    print("Largest distance from the statistics of one process that has all the data:")
    print(f"{'':30}  {'mean':>8}  {'variance':>8}")
    for name, (some, others) in rows.items():
        distances = [abs(x - y).max() for x, y in zip(some, others, strict=True)]
        print(f"{name:30}  {distances[0]:8.1e}  {distances[1]:8.1e}")
    apart = max(
        abs(convert_to_numpy(x) - convert_to_numpy(y)).max()
        for x, y in zip(model.trainable_weights, reference.trainable_weights, strict=True)
    )
    print(f"The trained weights are at most {apart:.1e} apart.")
    draw(alone, both, one, output / "07_many_machines.png")


if __name__ == "__main__":
    main()
