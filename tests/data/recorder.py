"""A model that keeps what Keras shows it."""

import keras


class Recorder(keras.Model):
    """Keeps each batch of its training as a tuple of arrays; its prediction is its input."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.compile(run_eagerly=True)

    def train_step(self, data):
        self.seen.append(tuple(keras.ops.convert_to_numpy(part) for part in data))
        return {"loss": 0.0}

    def call(self, x):
        return x
