"""What is trained: seven data sets and how often each is gone through, in NumPy: all sides read the same bytes."""

from typing import Any, NamedTuple

import numpy as np


class Workload(NamedTuple):
    """How a data set is gone through; ``steady`` and ``first`` are the bars for funcnn over the hand-written scan."""

    title: str
    epochs: int
    batch_size: int | None  # None: all examples are one batch
    steady: float = 1.03
    first: float = 1.15
    members: int = 1  # runs that are trained, each with a seed and a learning rate of its own

    def steps(self, examples: int) -> int:
        """Steps of the whole run, the smaller last one of each epoch included."""
        return self.epochs * (1 if self.batch_size is None else -(-examples // self.batch_size))


WORKLOADS = {
    "W1": Workload("XOR, 2-4-4-1, SGD, all 4 rows at once", 2000, None),
    "W2": Workload("moons, 2-16-8-1, Adam, all 100 points at once", 5000, None),
    "W3": Workload("digits, 64-128-64-10, Adam, 1437 images in batches of 32", 20, 32),
    "W4": Workload("random numbers, 784-512-512-10, Adam, 60000 rows in batches of 128", 1, 128),
    "W5": Workload(
        "random images 28x28x1, conv32-pool-conv64-pool-128-10, Adam, 1000 in batches of 64", 3, 64, steady=0.7
    ),
    "W6": Workload(
        "characters, transformer, 4 blocks of width 128, context 64, AdamW, 960 texts in batches of 32", 1, 32
    ),
    "W7": Workload("W1 256 times: 64 learning rates, each with 4 seeds", 2000, None, members=256),
}

VOCABULARY = CONTEXT = 64


def rates(members: int) -> Any:
    """The learning rate of each run of W7: 64 of them, four runs of each; of fewer members the first ones."""
    return np.repeat(np.linspace(0.1, 1.0, 64, dtype=np.float32), 4)[:members]


def seeds(members: int) -> Any:
    """Which of the four seeds each run of W7 begins from: with each rate the same four."""
    return np.tile(np.arange(4), 64)[:members]


def data(name: str) -> tuple[Any, Any]:
    """The inputs and targets of a workload."""
    random = np.random.default_rng(0)
    if name in ("W1", "W7"):
        x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
        return x, (x[:, :1] != x[:, 1:]).astype(np.float32)
    if name == "W2":
        from sklearn.datasets import make_moons

        x, y = make_moons(100, noise=0.1, random_state=42)
        return x.astype(np.float32), y[:, None].astype(np.float32)
    if name == "W3":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        return (x / 16).astype(np.float32)[:1437], y.astype(np.int32)[:1437]
    if name == "W6":
        return characters(random, 960)
    count, shape = (60000, (784,)) if name == "W4" else (1000, (28, 28, 1))
    return random.random((count, *shape), np.float32), random.integers(0, 10, count).astype(np.int32)


def characters(random: np.random.Generator, texts: int) -> tuple[Any, Any]:
    """Texts from a chain in which each character draws the next one, and the same texts one character on."""
    scores = np.exp(3 * random.standard_normal((VOCABULARY, VOCABULARY)))
    steps, drawn = np.cumsum(scores / scores.sum(1, keepdims=True), axis=1), random.random(texts * CONTEXT)
    chain = [0]
    for number in drawn:
        chain.append(min(int(np.searchsorted(steps[chain[-1]], number)), VOCABULARY - 1))
    text = np.array(chain, np.int32)
    return text[:-1].reshape(texts, CONTEXT), text[1:].reshape(texts, CONTEXT)
