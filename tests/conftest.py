"""Quiet TensorFlow on the CPU, the same on every machine."""

import os
import signal

# A shell starts background jobs with Ctrl-C ignored, which every process that the tests start and
# interrupt would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
