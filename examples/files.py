"""Training from files that stay on disk, with memory for a few batches of them at a time.

The digits of scikit-learn are written as MNIST comes, as IDX files of images and labels, those held out as ``.npy``.
``fit`` takes a stream of shuffled batches of them, of which memory holds a window. In the end, files are damaged.
"""

import dataclasses
import gzip
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mapped_files import idx, npy, write_idx
from sklearn.datasets import load_digits

from funcnn import checks, data, layers, losses, metrics, training


@dataclasses.dataclass(frozen=True)
class Files:
    """Shuffled batches of images and labels. Each pass is an epoch, in an order that seed and number of it decide."""

    read: Callable[[Path], np.memmap]
    images: Path
    labels: Path
    batch_size: int = 128
    window: int = 32  # batches in memory at once, and mixed among one another
    block: int = 128  # examples in a row, read together; a window has blocks from all over the files
    seed: int = 0
    passes: Iterator[int] = dataclasses.field(default_factory=itertools.count, compare=False)

    def __post_init__(self):
        images, labels = len(self.read(self.images)), len(self.read(self.labels))
        if images != labels:
            checks.fail("Files", f"{images} labels, one for each image", str(labels), "do the files belong together?")

    def __len__(self):
        return -(-len(self.read(self.labels)) // self.batch_size)

    def __iter__(self):
        return self.in_pass(next(self.passes))

    def in_pass(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of a pass; the last one may be smaller."""
        random, n = np.random.default_rng((self.seed, number)), len(self.read(self.labels))
        size, window = self.batch_size, self.batch_size * self.window
        blocks = random.permutation(-(-n // self.block))
        rows = (self.block * blocks[:, None] + np.arange(self.block)).ravel()
        rows = rows[rows < n]
        for begin in range(0, n, window):
            # Mapped anew for each window: what was read stays in memory for as long as its map does.
            images, labels = self.read(self.images), self.read(self.labels)
            chosen = random.permutation(rows[begin : begin + window])
            for batch in np.split(chosen, range(size, len(chosen), size)):
                yield images[batch], labels[batch]


model = layers.serial(
    layers.function(lambda pixels: pixels.astype(jnp.float32) / 16),  # here, so that bytes are what is moved
    layers.flatten,
    layers.dense(64),
    layers.relu,
    layers.dense(10),
)
trainer = training.supervised(model, losses.softmax_cross_entropy, optax.adam(3e-3), {"accuracy": metrics.accuracy})


def main():
    key = jax.random.key(0)
    images, labels = (array.astype(np.uint8) for array in load_digits(return_X_y=True))
    train, test = data.split((images.reshape(-1, 8, 8), labels), 0.2, key=key, stratify=labels)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, learned, held_out in zip(("images", "labels"), train, test, strict=True):
            write_idx(folder / f"{kind}.idx", learned)
            np.save(folder / f"{kind}.npy", held_out)
        stream = Files(idx, folder / "images.idx", folder / "labels.idx", batch_size=32, window=8, block=16)
        result = training.fit(trainer, stream, key=key, epochs=30)
        held_out = npy(folder / "images.npy"), npy(folder / "labels.npy")
        measured = training.evaluate(trainer, result.state, held_out)
        print(f"learned from {len(stream)} batches a pass, {stream.read(stream.images).shape} on disk")
        print(f"test accuracy {measured['accuracy']:.4f} on {len(held_out[1])} images that it never saw\n")

        whole = (folder / "images.idx").read_bytes()
        wrong = b"PNG" + whole[3:], whole[:2] + b"\x0a" + whole[3:]
        for content in (whole[:-1], whole[:9], b"", *wrong, gzip.compress(whole)):
            (folder / "damaged.idx").write_bytes(content)
            try:
                idx(folder / "damaged.idx")
            except ValueError as error:
                print(error)


if __name__ == "__main__":
    main()
