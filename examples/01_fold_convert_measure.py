"""A Keras model with batch normalizations becomes a checked, measured int8 file.

python examples/01_fold_convert_measure.py
"""

import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_bn

images = np.random.default_rng(0).normal(size=(200, 32, 32, 3)).astype("float32")

model = keras.Sequential([
    keras.Input((32, 32, 3)),
    keras.layers.Conv2D(16, 3, use_bias=False),
    keras_bn.layers.BatchNormalization(momentum=0.9),
    keras.layers.ReLU(),
    keras.layers.GlobalAveragePooling2D(),
    keras.layers.Dense(10, activation="softmax"),
])  # fmt: skip
keras_bn.update_bn(model, images)  # population statistics, as after training

folded = keras_bn.fold(model)
print("folded:", [(each.layer, each.into) for each in folded.folded], "kept:", folded.kept)

with tempfile.TemporaryDirectory() as folder:
    paths = []
    for mode in ("none", "int8"):
        paths.append(Path(folder, f"{mode}.tflite"))
        conversion = keras_bn.convert(model, paths[-1], quantize=mode, calibration=images)
        print(f"{mode}: {conversion.size_bytes} bytes, SNR {conversion.comparison.snr_db:.1f} dB")
    for result in keras_bn.benchmark(paths, runs=100):
        latency = result.latency_ms
        print(f"{Path(result.model).name}: {latency.median:.3f} ms, 95 % within {latency.ci95}")
