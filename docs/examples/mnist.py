"""Handwritten digits: a perceptron and a small convolutional network in PyTorch, beside each other.

    headwater run docs/examples/mnist.py --param data=../shared/data --param epochs=5

The data is the test set of MNIST, 10,000 images of 28 x 28 pixels, as two files in the IDX format. The network needs
PyTorch; `--output mlp --output mlp_quality` leaves it out.
"""

import gzip
import math
import os

import numpy as np
import pyarrow as pa

import headwater as hw

DATA = os.environ.get("HEADWATER_DATA", "../shared/data")


def read_idx(path: str) -> np.ndarray:
    """Read an IDX file: two zero bytes, the type (8 is uint8), the number of axes, their lengths, the values."""
    with gzip.open(path) as file:
        content = file.read()
    assert content[:3] == b"\0\0\x08", f"{path}: no IDX file of bytes"
    shape = np.frombuffer(content, ">i4", content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def scaled(rows: pa.Table) -> pa.Table:
    """Turn each image's bytes into numbers from 0 to 1."""
    pixels = rows["pixels"].combine_chunks()
    width = pixels.type.list_size
    numbers = pixels.values.to_numpy()[pixels.offset * width :][: len(pixels) * width]
    scaled = pa.FixedSizeListArray.from_arrays(pa.array(numbers.astype(np.float32) / 255), width)
    return rows.set_column(rows.schema.get_field_index("pixels"), "pixels", scaled)


def network():
    """Make the convolutional network; it gets rows of 784 pixels, and reshapes them itself."""
    from torch import nn

    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 8, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 6 * 6, 10),
    )


@hw.pipeline
def mnist(data: str = DATA, epochs: int = 5, seed: int = 0):
    """Give both models, and how many of the held-out digits each of them reads."""
    images = read_idx(f"{data}/mnist10k/images-idx3-ubyte.gz")
    digits = read_idx(f"{data}/mnist10k/labels-idx1-ubyte.gz")
    table = pa.table(
        {
            "image": np.arange(len(images)),
            "pixels": pa.FixedSizeListArray.from_arrays(
                pa.array(images.reshape(-1)), math.prod(images.shape[1:])
            ),
            "digit": digits.astype(np.int64),
        }
    )
    schema = {"image": "int64", "pixels": pa.list_(pa.float32(), 784), "digit": "int64"}
    rows = hw.from_arrow(table, partitions=4).map_batches(scaled, format="arrow", schema=schema)
    train, test = rows.split(0.8, 0.2, by="image", seed=seed)

    outputs = {}
    for name, objective in (
        ("mlp", hw.objectives.MLP(hidden=(128,), task="classes", classes=10)),
        ("cnn", hw.objectives.Torch(network, output="classes", classes=10)),
    ):
        model = hw.train(
            train,
            target="digit",
            features="pixels",
            objective=objective,
            optimizer=hw.optim.adam(2e-3),
            epochs=epochs,
            batch_size=128,
            seed=seed,
        )
        read = test.predict(model)
        quality = read.agg(accuracy=hw.metrics.accuracy("digit", "prediction"), images=hw.count())
        outputs |= {name: model, f"{name}_quality": quality}
    return outputs
