"""The rules of what affines pass, one by one: op(affine(x)) = affine'(op(x)), in float64.

Keras itself runs the operations. Affines are random, of both signs unless an operation needs
positive scales, and far from the identity.
"""

from dataclasses import dataclass

import keras
import numpy as np
import pytest
from keras import layers, ops, tree

from keras_bn.fold import transmit
from keras_bn.fold.affine import Affine, Refused
from keras_bn.graph.view import view

pytestmark = pytest.mark.backend(
    "tensorflow", because="elsewhere Keras computes float64 in float32"
)

IMAGE = (6, 8, 4)
SEQUENCE = (6, 4)
BATCH = 2


@dataclass
class Row:
    """An operation and the affines that pass it.

    Attributes:
        call: Calls it on tensors of `shapes`.
        inputs: Of each input, the axes that an affine may vary along.
        backward: The same of the outputs; None where nothing passes backward.
        positive: Whether scales have to be positive.
        fixed: A number that the affines have to map to itself.
        rounding: What the operation rounds to: Keras resizes images in float32.
    """

    call: object
    shapes: tuple
    inputs: tuple
    backward: tuple | None
    positive: bool
    fixed: float | None
    rounding: float


def row(
    call,
    *shapes,
    forward=(-1,),
    inputs=None,
    backward=(-1,),
    positive=False,
    fixed=None,
    rounding=1e-16,
):
    shapes = shapes or (IMAGE,)
    inputs = (forward,) * len(shapes) if inputs is None else inputs
    return Row(call, shapes, inputs, backward, positive, fixed, rounding)


ROWS = (0,)
NOWHERE = ()
PASSED = {
    # Slices.
    "x[..., :2]": row(lambda x: x[..., :2]),
    "x[..., 1]": row(lambda x: x[..., 1]),
    "x[..., ::-2]": row(lambda x: x[..., ::-2]),
    "x[:, ::2, 1::3]": row(lambda x: x[:, ::2, 1::3]),
    "x[:, ::2, 1::3] everywhere": row(
        lambda x: x[:, ::2, 1::3], forward=(0, 1, 2), backward=(0, 1, 2)
    ),
    "x[:, -1]": row(lambda x: x[:, -1], forward=(0, 2)),
    "x[:, None, 0, ..., None, 1:]": row(lambda x: x[:, None, 0, ..., None, 1:], forward=(0, 2)),
    "x[[key]]": row(lambda x: ops.get_item(x, [slice(None), 0, 2]), forward=(0, 1, 2)),
    "x[(1:,)]": row(lambda x: ops.get_item(x, (slice(1, None),))),
    "x[0]": row(lambda x: x[0]),
    "x[(None,)]": row(lambda x: ops.get_item(x, (None,)), backward=(2, 3)),
    "slice": row(lambda x: ops.slice(x, [0, 1, 0, 1], [BATCH, 4, 8, 2]), forward=(0, 1, 2)),
    "slice to the end": row(lambda x: ops.slice(x, [0, 1, 0, 1], [-1, 4, -1, -1])),
    "take": row(lambda x: ops.take(x, [2, -1, 0], axis=-1)),
    "take one": row(lambda x: ops.take(x, 0, axis=1), forward=(0, 2)),
    "split": row(lambda x: ops.split(x, 2, axis=-1)),
    "split at": row(lambda x: ops.split(x, [1, 3], axis=-1)),
    "split rows": row(lambda x: ops.split(x, 3, axis=1), forward=(0, 2), backward=(0, 2)),
    "array_split": row(lambda x: ops.array_split(x, 3, axis=-1)),
    "hsplit": row(lambda x: ops.hsplit(x, 2), forward=ROWS, backward=ROWS),
    "vsplit": row(lambda x: ops.vsplit(x, 2)),
    "dsplit": row(lambda x: ops.dsplit(x, 4), forward=(1, 2), backward=(1, 2)),
    "unstack": row(lambda x: ops.unstack(x, axis=1), forward=(0, 2)),
    "unstack channels": row(lambda x: ops.unstack(x, axis=-1)),
    # Copies and other orders.
    "flip": row(lambda x: ops.flip(x, axis=-1), forward=(0, 2), backward=(0, 2)),
    "flip all": row(lambda x: ops.flip(x), forward=(0, 1, 2)),
    "fliplr": row(lambda x: ops.fliplr(x), forward=ROWS, backward=ROWS),
    "flipud": row(lambda x: ops.flipud(x), forward=ROWS, backward=ROWS),
    "roll": row(lambda x: ops.roll(x, 3, axis=-1)),
    "roll twice": row(lambda x: ops.roll(x, (1, 2), axis=(-1, -1))),
    "repeat": row(lambda x: ops.repeat(x, 3, axis=1), forward=(0, 2)),
    "repeat channels": row(lambda x: ops.repeat(x, 2, axis=-1), backward=ROWS),
    "repeat each": row(lambda x: ops.repeat(x, [1, 2, 1, 3, 1, 1], axis=1), forward=(0, 2)),
    "tile": row(lambda x: ops.tile(x, [2, 1, 3, 1]), forward=(1, 2)),
    "tile channels": row(lambda x: ops.tile(x, [2]), backward=ROWS),
    "broadcast_to": row(lambda x: ops.broadcast_to(x, (BATCH, 6, 8, 4)), (1, 8, 4)),
    "broadcast_to channels": row(
        lambda x: ops.broadcast_to(x, (BATCH, 6, 8, 4)), (6, 8, 1), forward=(0, 1), backward=(0, 1)
    ),
    "RepeatVector": row(lambda x: layers.RepeatVector(3)(x), (4,)),
    "pad by reflection": row(
        lambda x: ops.pad(x, [[0, 0], [1, 2], [3, 0], [0, 0]], mode="reflect"), forward=(0, 1, 2)
    ),
    "pad symmetrically": row(
        lambda x: ops.pad(x, [[0, 0], [0, 0], [0, 0], [1, 2]], mode="symmetric"),
        backward=ROWS,
    ),
    # Side by side.
    "stack": row(lambda x, y: ops.stack([x, y], axis=1), IMAGE, IMAGE, backward=(0, 3)),
    "stack last": row(lambda x, y: ops.stack([x, y], axis=-1), IMAGE, IMAGE, backward=(-2, -1)),
    "stack first": row(lambda x, y: ops.stack([x, y]), IMAGE, IMAGE),
    "concatenate": row(lambda x, y: ops.concatenate([x, y], axis=-1), IMAGE, (6, 8, 3)),
    "Concatenate rows": row(lambda x, y: layers.Concatenate(axis=1)([x, y]), SEQUENCE, (3, 4)),
    "Concatenate batches": row(
        lambda x, y: layers.Concatenate(axis=0)([x, y]), SEQUENCE, SEQUENCE, forward=(0, 1)
    ),
    "append": row(lambda x, y: ops.append(x, y, axis=-1), SEQUENCE, (6, 2)),
    "hstack": row(lambda x, y: ops.hstack([x, y]), (4,), (3,)),
    "vstack": row(lambda x, y: ops.vstack([x, y]), (4,), (4,)),
    "dstack": row(lambda x, y: ops.dstack([x, y]), SEQUENCE, (6, 3)),
    # Blocks.
    "extract_patches": row(lambda x: ops.image.extract_patches(x, (3, 2)), backward=NOWHERE),
    "extract_patches, padded": row(
        lambda x: ops.image.extract_patches(x, 3, padding="same"),
        backward=NOWHERE,
        fixed=0.0,
    ),
    "extract_patches_3d": row(
        lambda x: ops.image.extract_patches_3d(x, 2), (2, 4, 4, 3), backward=NOWHERE
    ),
    "space_to_depth": row(lambda x: ops.space_to_depth(x, 2), backward=NOWHERE),
    "space_to_depth, channels first": row(
        lambda x: ops.space_to_depth(x, 2, data_format="channels_first"),
        (3, 4, 6),
        forward=(0,),
        backward=NOWHERE,
    ),
    "depth_to_space": row(lambda x: ops.depth_to_space(x, 2), (2, 3, 12), forward=NOWHERE),
    "depth_to_space, channels first": row(
        lambda x: ops.depth_to_space(x, 2, data_format="channels_first"),
        (12, 2, 3),
        forward=NOWHERE,
        backward=(0,),
    ),
    # Shapes.
    "reshape": row(lambda x: ops.reshape(x, (-1, 48, 2, 2)), backward=(1, 2)),
    "reshape all": row(
        lambda x: ops.reshape(x, (-1, 48, 2, 2)), forward=(0, 1, 2), backward=(0, 1, 2)
    ),
    "reshape into the batch": row(lambda x: ops.reshape(x, (-1, 4)), forward=(2,)),
    "reshape out of the batch": row(lambda x: ops.reshape(x, (1, -1, 4)), SEQUENCE),
    "reshape to the same period": row(
        lambda x: ops.reshape(x, (-1, 6, 2, 16)), forward=(1, 2), backward=(1, 2)
    ),
    "expand_dims in front": row(lambda x: ops.expand_dims(x, 0), forward=(0, 2), backward=(1, 3)),
    "time first": row(lambda x: ops.transpose(x, (1, 0, 2)), SEQUENCE),
    "channels in the middle": row(lambda x: ops.swapaxes(x, 1, 2), SEQUENCE, backward=(0,)),
    "batch to the end": row(lambda x: ops.moveaxis(x, 0, 1), SEQUENCE),
    # Padding and reductions.
    "pad": row(lambda x: ops.pad(x, [[0, 0], [1, 0], [0, 2], [0, 0]]), fixed=0.0),
    "pad with 3": row(
        lambda x: ops.pad(x, [[0, 0], [1, 0], [0, 2], [0, 0]], constant_values=3.0), fixed=3.0
    ),
    "pad channels": row(
        lambda x: ops.pad(x, [[0, 0], [0, 0], [0, 0], [2, 1]], constant_values=3.0), backward=None
    ),
    "pad channels and rows": row(lambda x: ops.pad(x, [[0, 0], [1, 1], [0, 0], [2, 1]]), fixed=0.0),
    "crop_images": row(lambda x: ops.image.crop_images(x, 1, 2, 1, 0)),
    "pad_images": row(lambda x: ops.image.pad_images(x, 1, 2, 1, 0), fixed=0.0),
    "resize": row(lambda x: ops.image.resize(x, (5, 11), interpolation="bicubic"), rounding=6e-8),
    "resize, filled up": row(
        lambda x: ops.image.resize(x, (9, 9), pad_to_aspect_ratio=True, fill_value=2.0),
        fixed=2.0,
        rounding=6e-8,
    ),
    "adaptive_average_pool": row(lambda x: ops.adaptive_average_pool(x, (3, 5))),
    "adaptive_max_pool": row(lambda x: ops.adaptive_max_pool(x, (3, 5)), positive=True),
    "sum": row(lambda x: ops.sum(x, axis=(1, 2))),
    "sum, axes kept": row(lambda x: ops.sum(x, axis=-2, keepdims=True), backward=(0, 2)),
    "average": row(lambda x: ops.average(x, axis=1)),
    "average, weighted": row(lambda x: ops.average(x, axis=1, weights=np.arange(1.0, 7.0))),
    "median": row(lambda x: ops.median(x, axis=1)),
    "amax": row(lambda x: ops.amax(x, axis=1), positive=True),
    "amin": row(lambda x: ops.amin(x, axis=1), positive=True),
    # Element by element.
    "abs": row(ops.abs, fixed=0.0, positive=True),
    "abs of both signs": row(ops.abs, fixed=0.0, backward=None),
    "stop_gradient": row(ops.stop_gradient),
    "cast": row(lambda x: ops.cast(x, "float64")),
    "copy": row(ops.copy),
    "maximum with 0": row(lambda x: ops.maximum(x, 0.0), fixed=0.0, positive=True),
    "minimum with 2": row(lambda x: ops.minimum(2.0, x), fixed=2.0, positive=True),
    "Pipeline": row(lambda x: layers.Pipeline([layers.CenterCrop(4, 6), layers.Dropout(0.5)])(x)),
    # Products.
    "matmul": row(ops.matmul, SEQUENCE, (4, 3), inputs=(ROWS, (1,)), backward=ROWS, fixed=0.0),
    "matmul, columns": row(ops.matmul, SEQUENCE, (4, 3), inputs=(ROWS, (1,)), fixed=0.0),
    "matmul of stacks": row(
        ops.matmul, (3, 6, 4), (3, 4, 5), inputs=((0, 1), (0, 2)), backward=(0, 1), fixed=0.0
    ),
    "queries and keys": row(
        lambda x, y: ops.einsum("bqhd,bkhd->bhqk", x, y),
        (6, 2, 4),
        (5, 2, 4),
        inputs=((0, 1), (0, 1)),
        backward=(0, 2),
        fixed=0.0,
    ),
    "an axis summed alone": row(
        lambda x, y: ops.einsum("bij,bkj->bi", x, y),
        SEQUENCE,
        (3, 4),
        inputs=(ROWS, ()),
        backward=ROWS,
        fixed=0.0,
    ),
    "Dot": row(
        lambda x, y: layers.Dot(axes=(1, -1))([x, y]),
        (4, 6),
        (3, 4),
        inputs=((1,), ROWS),
        fixed=0.0,
    ),
    "Dot of vectors": row(
        lambda x, y: layers.Dot(axes=1)([x, y]), (4,), (4,), forward=(), backward=(), fixed=0.0
    ),
}

FORWARD, BACKWARD = "forward", "backward"
REFUSED = {
    "take of a table": (
        row(lambda x: ops.take(x, [[0, 1], [1, 2]], axis=1)),
        "takes a table of elements",
    ),
    "take of all": (
        row(lambda x: ops.take(x, [5, 9, 9]), backward=None),
        "mixes the batch axis with others",
    ),
    "roll of all": (row(lambda x: ops.roll(x, 3)), "mixes the batch axis with others"),
    "tile in front": (
        row(lambda x: ops.tile(x, [2, 1, 1, 1, 1])),
        "puts axes in front of the batch axis",
    ),
    "x[0] of rows": (row(lambda x: x[0], forward=ROWS, backward=None), "along the batch axis"),
    "channels to the front": (
        row(lambda x: ops.transpose(x, (2, 0, 1)), SEQUENCE, backward=None),
        "puts an axis that it varies along in front",
    ),
    "rows into the batch": (
        row(lambda x: ops.reshape(x, (-1, 4)), forward=ROWS, backward=None),
        "merges the batch axis",
    ),
    "repeated channels": (
        row(lambda x: ops.repeat(x, 2, axis=-1), inputs=()),
        "differ where the same element is repeated",
    ),
    "stretched channels": (
        row(lambda x: ops.broadcast_to(x, (BATCH, 6, 8, 4)), (6, 8, 1), inputs=()),
        "differ where the same element is repeated",
    ),
    "a repeated vector": (
        row(lambda x: layers.RepeatVector(3)(x), (4,), inputs=(), backward=ROWS),
        "along an axis on which elements are repeated",
    ),
    "dstack of vectors": (
        row(lambda x, y: ops.dstack([x, y]), (4,), (4,)),
        "side by side on an axis that they lack",
    ),
    "patches": (
        row(lambda x: ops.image.extract_patches(x, 2), inputs=()),
        "differ where the same element is repeated",
    ),
    "patches of rows": (
        row(lambda x: ops.image.extract_patches(x, 2), forward=ROWS, backward=None),
        "vary along an axis that",
    ),
    "padded patches": (
        row(lambda x: ops.image.extract_patches(x, 4, padding="same"), backward=()),
        "pads with zeros",
    ),
    "patches of one image": (
        row(lambda x: ops.image.extract_patches(x, 2), (8, 4), backward=()),
        "takes the batch axis for an axis of one image",
    ),
    "depth_to_space": (
        row(lambda x: ops.depth_to_space(x, 2), backward=None),
        "differ where the same element is repeated",
    ),
    "padding": (
        row(lambda x: ops.pad(x, [[0, 0], [1, 0], [0, 2], [0, 0]])),
        "pads with a constant, which would have to change",
    ),
    "padding of rows and channels": (
        row(lambda x: ops.pad(x, [[0, 0], [1, 0], [0, 0], [0, 1]])),
        "pads with a constant, which would have to change",
    ),
    "padded channels": (
        row(lambda x: ops.pad(x, [[0, 0], [0, 0], [0, 0], [0, 1]]), inputs=()),
        "pads with a constant, which would have to change",
    ),
    "padding by an array": (
        row(lambda x: ops.pad(x, [[0, 0], [1, 0], [0, 2], [0, 0]], constant_values=[1.0])),
        "pads with a constant, which would have to change",
    ),
    "padded images": (row(lambda x: ops.image.pad_images(x, 1, 2, 1, 0)), "pads with zeros"),
    "one padded image": (
        row(lambda x: ops.image.pad_images(x, 1, 2, 1, 0), (8, 4), fixed=0.0),
        "takes the batch axis for the height",
    ),
    "images filled up": (
        row(lambda x: ops.image.resize(x, (9, 9), pad_to_aspect_ratio=True)),
        "fills up with 0.0",
    ),
    "sum of channels": (row(lambda x: ops.sum(x, axis=-1), backward=None), "vary along an axis"),
    "sum of batches": (row(lambda x: ops.sum(x, axis=0)), "reduces the batch axis"),
    "amax": (row(lambda x: ops.amax(x, axis=1)), "a scale is negative"),
    "abs": (row(ops.abs, positive=True), "lets no shift pass"),
    "abs, backward": (row(ops.abs, inputs=(), fixed=0.0), "lets no negative scale pass"),
    "maximum": (row(lambda x: ops.maximum(x, 1.0), positive=True), "with a constant that would"),
    "maximum of both signs": (row(lambda x: ops.maximum(x, 0.0), fixed=0.0), "a scale is negative"),
    "maximum with an array": (
        row(lambda x: ops.maximum(x, np.zeros(4)), positive=True, fixed=0.0),
        "with a constant that would",
    ),
    "add with a constant": (
        row(lambda x: layers.Add()([x, np.ones((BATCH, *IMAGE))])),
        "combines it with a constant",
    ),
    "concatenate with a constant": (
        row(lambda x: ops.concatenate([x, np.ones((BATCH, *IMAGE))], axis=-1)),
        "combines it with a constant",
    ),
    "matmul with a constant": (
        row(lambda x: ops.matmul(x, np.ones((4, 3))), fixed=0.0),
        "combines it with a constant",
    ),
    "einsum with a constant": (
        row(lambda x: ops.einsum("bhwc,cd->bhwd", x, np.ones((4, 3))), fixed=0.0),
        "combines it with a constant",
    ),
    "matmul": (row(ops.matmul, SEQUENCE, (4, 3)), "so no shift passes"),
    "matmul of columns": (
        row(ops.matmul, SEQUENCE, (4, 3), inputs=((1,), ROWS), backward=(0, 1), fixed=0.0),
        "a scale varies along an axis that is summed over, or that one tensor lacks",
    ),
    "stretched factors": (
        row(ops.matmul, (1, 6, 4), (5, 4, 1), inputs=(), backward=(0, 1), fixed=0.0),
        "stretches an input along an axis that it varies on",
    ),
    "an equation with dots": (
        row(lambda x, y: ops.einsum("...ij,...kj->...ik", x, y), SEQUENCE, (3, 4), fixed=0.0),
        "does not name every axis once",
    ),
    "Pipeline": (
        row(
            lambda x: layers.Pipeline([layers.Dropout(0.5), layers.ReLU()], name="steps")(x),
            positive=True,
        ),
        "inside 'steps': .* lets no shift pass",
    ),
    "normalized Dot": (
        row(lambda x, y: layers.Dot(axes=-1, normalize=True)([x, y]), SEQUENCE, (3, 4), fixed=0.0),
        "normalizes its inputs",
    ),
}


NOT_IN_EVERY_KERAS = (
    "adaptive_average_pool",
    "adaptive_max_pool",
    "array_split",
    "depth_to_space",
    "dsplit",
    "dstack",
    "fliplr",
    "flipud",
    "hsplit",
    "space_to_depth",
    "vsplit",
)
MISSING = tuple(name for name in NOT_IN_EVERY_KERAS if not hasattr(ops, name))
PASSED = {name: row for name, row in PASSED.items() if not name.startswith(MISSING)}
REFUSED = {name: row for name, row in REFUSED.items() if not name.startswith(MISSING)}


@pytest.fixture(scope="module", autouse=True)
def float64():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy(before)


def read(row):
    """The model of one operation, its rule, and the function that asks it for assignments."""
    inputs = [keras.Input(shape, batch_size=BATCH, dtype="float64") for shape in row.shapes]
    model = keras.Model(inputs, row.call(*inputs))
    graph = view(model)
    (node,) = graph.nodes
    rule = transmit.rule_for(node.operation)

    def assignments(direction, affine, position):
        tensors = transmit.tensors_of(node, frozenset())
        shapes = ([graph.shapes[t][1:] for t in side] for side in (tensors, node.outputs))
        call = transmit.Call(*map(tuple, shapes), node.constants)
        return list(getattr(rule, direction)(node.operation, affine, call, position))

    return model, assignments


def random_affine(rng, row, shape, axes):
    """One that varies along `axes` of a tensor of shape `shape`, the batch axis left out."""
    varying = {axis % len(shape) for axis in axes}
    lengths = [length if axis in varying else 1 for axis, length in enumerate(shape)]
    scale = rng.integers(2, 9, lengths) / 4  # so that what is to be fixed is so without rounding
    if not row.positive:
        scale *= rng.choice([-1.0, 1.0], lengths)
        scale.flat[0] = -np.abs(scale.flat[0])
    shift = rng.normal(0, 3, lengths) if row.fixed is None else row.fixed - row.fixed * scale
    return Affine(scale, shift)


def asked(row, model):
    """Every direction, position and shape of a tensor, and the axes that an affine varies along."""
    for position, (shape, axes) in enumerate(zip(row.shapes, row.inputs, strict=False)):
        yield FORWARD, position, shape, axes
    if row.backward is not None:
        for position, output in enumerate(model.outputs):
            yield BACKWARD, position, tuple(output.shape[1:]), row.backward


def computed(model, inputs):
    return [np.asarray(output) for output in tree.flatten(model(inputs, training=False))]


@pytest.mark.parametrize("name", PASSED)
def test_assignments_hold(name):
    row, rng = PASSED[name], np.random.default_rng(0)
    model, assignments = read(row)
    inputs = [rng.normal(size=(BATCH, *shape)) for shape in row.shapes]
    outputs = computed(model, inputs)
    assert {str(output.dtype) for output in outputs} == {"float64"}
    for direction, position, shape, axes in asked(row, model):
        affine = random_affine(rng, row, shape, axes)
        found = assignments(direction, affine, position)
        assert found
        for assignment in found:
            side = assignment.inputs if direction == FORWARD else assignment.outputs
            assert side[position].equals(affine)
            changed = [
                a.scale * x + a.shift for a, x in zip(assignment.inputs, inputs, strict=True)
            ]
            for a, y, z in zip(assignment.outputs, outputs, computed(model, changed), strict=True):
                # Some dozens of roundings, of numbers up to a hundred.
                np.testing.assert_allclose(
                    z, a.scale * y + a.shift, rtol=0, atol=1e4 * row.rounding
                )


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(name):
    row, reason = REFUSED[name]
    model, assignments = read(row)
    rng = np.random.default_rng(0)
    for direction, position, shape, axes in asked(row, model):
        with pytest.raises(Refused, match=reason):
            assignments(direction, random_affine(rng, row, shape, axes), position)
