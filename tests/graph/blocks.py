"""Layers and models as users write them: out of other layers, with code of their own in between."""

import keras
import numpy as np
from keras import layers, ops


class ConvNorm(layers.Layer):
    """The sub-layers of every such block are called the same."""

    def __init__(self, filters, kernel=3, strides=1, rectified=True, **options):
        super().__init__(**options)
        self.conv = layers.Conv2D(filters, kernel, strides=strides, padding="same", name="conv")
        self.norm = layers.BatchNormalization(name="norm")
        self.rectified = rectified

    def call(self, x, training=None):
        x = self.norm(self.conv(x), training=training)
        return ops.relu(x) if self.rectified else x


class Residual(layers.Layer):
    """Blocks in a block; what it computes depends on how it was made."""

    def __init__(self, filters, strides=1, **options):
        super().__init__(**options)
        self.first = ConvNorm(filters, strides=strides, name="first")
        self.second = ConvNorm(filters, rectified=False, name="second")
        self.shortcut = (
            ConvNorm(filters, 1, strides, False, name="shortcut") if strides > 1 else None
        )

    def call(self, x, training=None):
        y = self.second(self.first(x, training=training), training=training)
        return ops.relu(y + (x if self.shortcut is None else self.shortcut(x, training=training)))


class ResNet(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.stem = ConvNorm(6, name="stem")
        self.blocks = [Residual(6, name="block0"), Residual(8, 2, name="block1")]
        self.pool = layers.GlobalAveragePooling2D(name="pool")
        self.head = layers.Dense(3, name="head")

    def call(self, inputs, training=None):
        x = self.stem(inputs, training=training)
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(self.pool(x))


class SqueezeExcite(layers.Layer):
    def __init__(self, channels, **options):
        super().__init__(**options)
        self.reduce = layers.Dense(2, activation="relu")
        self.expand = layers.Dense(channels, activation="sigmoid")

    def call(self, x):
        return x * self.expand(self.reduce(ops.mean(x, axis=(1, 2), keepdims=True)))


class InvertedResidual(layers.Layer):
    def __init__(self, channels, **options):
        super().__init__(**options)
        self.expand = keras.Sequential(
            [layers.Conv2D(2 * channels, 1), layers.BatchNormalization(), layers.ReLU(6.0)]
        )
        self.depthwise = layers.DepthwiseConv2D(3, padding="same")
        self.norm = layers.BatchNormalization()
        self.squeeze = SqueezeExcite(2 * channels)
        self.project = layers.Conv2D(channels, 1)
        self.drop = layers.Dropout(0.5)

    def call(self, x, training=False):
        y = keras.activations.silu(self.norm(self.depthwise(self.expand(x)), training=training))
        y = self.project(self.squeeze(y))
        if training:
            y = self.drop(y, training=True)
        return layers.Add()([x, y])


class DenseBlock(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.norms = [layers.BatchNormalization() for _ in range(3)]
        self.convs = {f"conv{i}": layers.Conv2D(2, 3, padding="same") for i in range(3)}

    def call(self, x):
        for norm, conv in zip(self.norms, self.convs.values(), strict=True):
            x = ops.concatenate([x, conv(ops.relu(norm(x)))], axis=-1)
        return x


class Encoder(layers.Layer):
    """A transformer's: it reads the mask, loses it, and hands it on."""

    def __init__(self, width=8, **options):
        super().__init__(**options)
        self.attention = layers.MultiHeadAttention(2, 4)
        self.feed = keras.Sequential([layers.Dense(12, activation="gelu"), layers.Dense(width)])
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]
        self.drop = layers.Dropout(0.5)
        self.supports_masking = True

    def call(self, x, mask=None, training=None):
        mask = None if mask is None else ops.cast(mask[:, None, :], "int32")
        y = self.attention(x, x, attention_mask=mask)
        x = self.norms[0](x + self.drop(y, training=training))
        return self.norms[1](x + self.feed(x))


class Attention(layers.Layer):
    """By hand, with the batch size asked for as Keras's own examples do."""

    def __init__(self, width=8, heads=2, **options):
        super().__init__(**options)
        self.width, self.heads = width, heads
        self.query, self.key, self.value, self.out = (layers.Dense(width) for _ in range(4))

    def split(self, x):
        x = ops.reshape(x, (ops.shape(x)[0], -1, self.heads, self.width // self.heads))
        return ops.transpose(x, (0, 2, 1, 3))

    def call(self, x):
        query, key, value = (self.split(f(x)) for f in (self.query, self.key, self.value))
        weights = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) / 2.0)
        y = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
        return self.out(ops.reshape(y, (ops.shape(x)[0], -1, self.width)))


class Patches(keras.Model):
    """A vision transformer's beginning: how many patches there are is left to reshape."""

    def __init__(self, **options):
        super().__init__(**options)
        self.patches = layers.Conv2D(8, 4, strides=4)
        self.attention = Attention(name="attention")
        self.head = layers.Dense(2)

    def call(self, images):
        x = self.patches(images)
        x = ops.reshape(x, (ops.shape(images)[0], -1, 8))
        return self.head(self.attention(x)[:, 0])


class Tokens(keras.Model):
    def __init__(self, masked=True, **options):
        super().__init__(**options)
        self.embedding = layers.Embedding(20, 8, mask_zero=masked)
        self.encoders = [Encoder(name="encoder0"), Encoder(name="encoder1")]
        self.pool = layers.GlobalAveragePooling1D()

    def call(self, ids, training=None):
        x = self.embedding(ids)
        for encoder in self.encoders:
            x = encoder(x, training=training)
        return self.pool(x)


class UNet(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.down = [ConvNorm(4), ConvNorm(6)]
        self.middle = ConvNorm(6)
        self.up = [ConvNorm(6), ConvNorm(4)]
        self.pool, self.enlarge = layers.MaxPooling2D(), layers.UpSampling2D()

    def call(self, image, training=None):
        x, skipped = image, []
        for block in self.down:
            x = block(x, training=training)
            skipped.append(x)
            x = self.pool(x)
        x = self.middle(x)
        for block in self.up:
            x = block(ops.concatenate([self.enlarge(x), skipped.pop()], axis=-1))
        return x


class Siamese(keras.Model):
    """One encoder, called twice; dictionaries in and out, a list inside."""

    def __init__(self, **options):
        super().__init__(**options)
        self.encoder = Residual(3, name="encoder")
        self.pool = layers.GlobalMaxPooling2D(name="pool")

    def call(self, inputs):
        codes = [self.pool(self.encoder(inputs[side])) for side in ("left", "right")]
        return {"codes": codes, "distance": ops.sum(ops.square(codes[0] - codes[1]), axis=-1)}


class Transfer(keras.Model):
    """A Functional backbone in a subclassed model, told not to train."""

    def __init__(self, **options):
        super().__init__(**options)
        image = keras.Input((8, 8, 3), name="image")
        x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, name="conv")(image))
        self.backbone = keras.Model(image, layers.Flatten()(x), name="backbone")
        self.head = layers.Dense(3, name="head")

    def call(self, images):
        return self.head(self.backbone(images, training=False))


class Mixer(layers.Layer):
    """Tensors in several arguments and in structures; options; a structure as the result."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(4, name="dense")
        self.norm = layers.BatchNormalization(name="norm")

    def call(self, x, context=None, scale=1.0, pair=None):
        y = self.norm(self.dense(x)) * scale
        if context is not None:
            y = y + context["c"]
        if pair is not None:
            y = y + pair[0] - pair[1]
        return {"y": y, "more": [2.0 * y, x]}


def mixed_arguments():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    mixer = Mixer(name="mixer")
    full = mixer(a, context={"c": b}, scale=3.0, pair=[a, b])
    plain, again = mixer(b), mixer(a)
    outputs = {"full": full["y"], "list": [full["more"][0], plain["y"], again["more"][0]]}
    return keras.Model({"a": a, "b": b}, outputs, name="mixed")


def masked_functional():
    """A mask that comes about in a nested model, and is read after it by a block and an LSTM."""
    inner = keras.Input((6,), dtype="int32")
    embed = keras.Model(inner, layers.Embedding(20, 8, mask_zero=True)(inner), name="embed")
    ids = keras.Input((6,), dtype="int32", name="ids")
    return keras.Model(ids, layers.LSTM(3)(Encoder(name="encoder")(embed(ids))))


class MaskedEmbedding(layers.Layer):
    """A composite with a mask of its own making."""

    def __init__(self, **options):
        super().__init__(**options)
        self.embedding = layers.Embedding(20, 8)
        self.supports_masking = True

    def call(self, ids):
        return self.embedding(ids) * 2.0

    def compute_mask(self, ids, mask=None):
        return ops.not_equal(ids, 0)


def own_mask():
    ids = keras.Input((6,), dtype="int32", name="ids")
    x = Encoder(name="encoder")(MaskedEmbedding(name="embed")(ids))
    return keras.Model(ids, layers.GRU(3)(x))


def sequential(*parts, shape=(8, 8, 3)):
    return keras.Sequential([keras.Input(shape), *parts])


def called(model, inputs):
    """`model`, built by being called once."""
    model(inputs)
    return model


RNG = np.random.default_rng(0)
IDS = np.array([[1, 2, 3, 0, 0, 0], [5, 6, 7, 8, 9, 0], [4, 4, 4, 4, 4, 4]], "int32")


def normal(*shape):
    return 3 * RNG.normal(size=shape).astype("float32")
