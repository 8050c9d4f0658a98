"""Gradients and compilation in the same words on every backend."""

import keras
from keras import ops

BACKEND = keras.backend.backend()

# How a function can be compiled. "eager" is PyTorch's usual way: torch.compile needs a C++
# compiler, and traces what is tested here.
MODES = {"tensorflow": ["graph", "XLA"], "jax": ["XLA"], "torch": ["eager"]}[BACKEND]


def on_gpu():
    """Whether Keras computes on a GPU."""
    if BACKEND == "torch":
        return ops.zeros(()).is_cuda
    return any(device.startswith("gpu") for device in keras.distribution.list_devices())


def gradient(function):
    """A function of the same tensors that gives the gradient of `function`, a scalar, by each."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        def slopes(*tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                loss = function(*tensors)
            return tape.gradient(loss, tensors)

        return slopes
    if BACKEND == "jax":
        import jax

        def slopes(*tensors):
            return jax.grad(function, argnums=tuple(range(len(tensors))))(*tensors)

        return slopes
    import torch

    def slopes(*tensors):
        tensors = [
            tensor if tensor.requires_grad else tensor.detach().requires_grad_()
            for tensor in tensors
        ]
        return torch.autograd.grad(function(*tensors), tensors, create_graph=True)

    return slopes


def compiled(function, mode):
    """`function`, from tensors to tensors, compiled as `mode` says."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=mode == "XLA", autograph=False)
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    return function


def arrays(tensors):
    """Tensors, in whatever nest, as NumPy arrays."""
    return keras.tree.map_structure(ops.convert_to_numpy, tensors)


def training_call(layer, x, mode, **call):
    """Output of a compiled training call; the layer's statistics move as in any."""
    x = ops.convert_to_tensor(x)

    def step(trainable, others, x):
        return layer.stateless_call(trainable, others, x, training=True, **call)

    if BACKEND == "tensorflow":  # whose graphs hold the variables themselves
        return arrays(compiled(lambda x: layer(x, training=True, **call), mode)(x))
    outputs, others = compiled(step, mode)(
        [weight.value for weight in layer.trainable_variables],
        [weight.value for weight in layer.non_trainable_variables],
        x,
    )
    for weight, value in zip(layer.non_trainable_variables, others, strict=True):
        weight.assign(value)
    return arrays(outputs)


def derivatives(layer, x, weights, mode=MODES[0], mask=None):
    """Derivatives of Σ weights·y², then those of the sum of the sines of these.

    y is what `layer` gives for `x` in training. By `x` and by each trainable weight.
    """
    others = [weight.value for weight in layer.non_trainable_variables]

    def loss(x, *trainable):
        y, _ = layer.stateless_call(trainable, others, x, training=True, mask=mask)
        return ops.sum(ops.square(y) * ops.convert_to_tensor(weights))

    def curved(*tensors):
        return sum(ops.sum(ops.sin(slope)) for slope in gradient(loss)(*tensors))

    def first_and_second(*tensors):
        return [*gradient(loss)(*tensors), *gradient(curved)(*tensors)]

    trainable = [ops.convert_to_tensor(weight) for weight in layer.trainable_variables]
    return arrays(compiled(first_and_second, mode)(ops.convert_to_tensor(x), *trainable))
