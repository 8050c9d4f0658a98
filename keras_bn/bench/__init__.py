"""Benchmarks of `.tflite` files: request, device, samples, statistics, result.

`api.benchmark` checks a `request`, a file of `devices` runs `runner.py` with it where the
models are to be measured, `stats` and `advice` turn the raw samples into a `result`. Nothing
here loads TensorFlow or Keras.
"""
