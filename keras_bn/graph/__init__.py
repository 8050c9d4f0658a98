"""Reading, checking and rebuilding Keras models; the only reader of Keras's private graph."""
