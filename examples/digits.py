"""A convolutional network learns to read handwritten digits: 1,797 images of 8 x 8 pixels, a fifth of them held out.

``python digits.py FOLDER`` saves the run there every ten seconds; the same command goes on with it, whatever ended it.

Data: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI, 1998; bundled with scikit-learn.
"""

import functools
import pathlib
import sys
import time

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

from funcnn import checkpoints, data, inspection, layers, losses, metrics, plotting, training

EPOCHS, BATCH = 40, 64
FIGURE = pathlib.Path("figures/digits.png")

model = layers.serial(
    layers.conv(32, 3),
    layers.batch_norm(),
    layers.relu,
    layers.conv(32, 3),
    layers.batch_norm(),
    layers.relu,
    layers.max_pool(2),
    layers.dropout(0.25),
    layers.conv(64, 3),
    layers.batch_norm(),
    layers.relu,
    layers.max_pool(2),
    layers.flatten,
    layers.dropout(0.5),
    layers.dense(10),
)


def main(folder: str | None = None) -> None:
    """Train, measure, and save the curves; keep the run in a folder, if there is one."""
    begin = time.perf_counter()
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1) / 16
    key = jax.random.key(0)
    train, test = data.split((images, labels), 0.2, key=key, stratify=labels)

    steps = EPOCHS * -(-len(train[0]) // BATCH)
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=0.02)
    print(inspection.summary(model, train[0][:BATCH], optimizer=optimizer))
    trainer = training.supervised(
        model,
        functools.partial(losses.softmax_cross_entropy, label_smoothing=0.1),
        optimizer,
        metrics={"accuracy": metrics.accuracy, "confusion": metrics.confusion_matrix(10)},
    )
    kept = {} if folder is None else {"checkpoint": checkpoints.directory(folder, every=10.0), "resume": True}
    result = training.fit(trainer, train, key=key, epochs=EPOCHS, batch_size=BATCH, validation=test, **kept)

    measured = training.evaluate(trainer, result.state, test)
    print("\nrows: the digit; columns: what it was taken for")
    print(np.array2string(np.asarray(measured["confusion"]).astype(int)))
    print(f"\ntest accuracy {measured['accuracy']:.4f} on {len(test[0])} images that it never saw")
    FIGURE.parent.mkdir(exist_ok=True)
    plotting.history(result).savefig(FIGURE)
    print(f"{time.perf_counter() - begin:.1f} s in all; learning curves in {FIGURE}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
