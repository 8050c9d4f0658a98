from keras_bn.loading import load_model, require_finite_weights  # noqa: F401
