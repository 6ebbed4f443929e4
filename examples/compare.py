"""Four networks by funcnn, PyTorch, Keras and scikit-learn: how good, how long the first time, how the loss falls."""

import importlib
import os
import pathlib
import time
from itertools import pairwise

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn import datasets
from sklearn.neural_network import MLPClassifier, MLPRegressor

from funcnn import layers, losses, models, training

os.environ.setdefault("KERAS_BACKEND", "jax")  # without it Keras asks for TensorFlow
FIGURE = pathlib.Path("figures/compare.png")
RATE, EPOCHS = 0.01, 300
TASKS = {  # data, and neurons in the middle
    "XOR": ((np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([0, 1, 1, 0])), (8, 8)),
    "moons": (datasets.make_moons(150, noise=0.1, random_state=42), (16, 8)),
    "iris": (datasets.load_iris(return_X_y=True), (16, 8)),
    "diabetes": (datasets.load_diabetes(return_X_y=True), (32,)),
}


def by_funcnn(x, y, hidden, outputs):
    model = models.mlp(hidden, outputs, activation=layers.tanh)
    loss = losses.squared_error if outputs == 1 else losses.softmax_cross_entropy
    trainer = training.supervised(model, loss, optax.adam(RATE))
    result = training.fit(trainer, (x, y), key=jax.random.key(0), epochs=EPOCHS, batch_size=None, progress=False)
    return np.asarray(training.predict(model, result.state, x)), result.history["loss"]


def by_torch(x, y, hidden, outputs):
    import torch

    torch.manual_seed(0)
    parts = [p for a, b in pairwise([x.shape[1], *hidden]) for p in (torch.nn.Linear(a, b), torch.nn.Tanh())]
    model = torch.nn.Sequential(*parts, torch.nn.Linear(hidden[-1], outputs))
    optimizer, curve = torch.optim.Adam(model.parameters(), lr=RATE), []
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y if outputs == 1 else y.astype(np.int64))
    loss = torch.nn.MSELoss() if outputs == 1 else torch.nn.CrossEntropyLoss()
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        value = loss(model(inputs), targets)
        value.backward()
        optimizer.step()
        curve.append(value.item())
    return model(inputs).detach().numpy(), curve


def by_keras(x, y, hidden, outputs):
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([*(keras.layers.Dense(n, "tanh") for n in hidden), keras.layers.Dense(outputs)])
    loss = "mse" if outputs == 1 else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(RATE), loss)
    curve = model.fit(x, y, batch_size=len(x), epochs=EPOCHS, verbose=0).history["loss"]
    return model.predict(x, verbose=0), curve


def by_sklearn(x, y, hidden, outputs):
    kind = MLPRegressor if outputs == 1 else MLPClassifier  # by its tol it stops after EPOCHS, without a warning
    model = kind(hidden_layer_sizes=hidden, activation="tanh", alpha=0.0, batch_size=len(x), learning_rate_init=RATE)
    model.set_params(random_state=0, tol=1e9, n_iter_no_change=EPOCHS - 2, max_iter=2 * EPOCHS).fit(x, y.ravel())
    said = model.predict(x)[:, None] if outputs == 1 else model.predict_proba(x)
    return said, np.array(model.loss_curve_) * (2 if outputs == 1 else 1)  # its squared error is halved


def main():
    figure, panels = plt.subplots(1, 4, figsize=(14, 3))
    sides = {"funcnn": by_funcnn, "torch": by_torch, "keras": by_keras, "sklearn": by_sklearn}
    for axes, (name, ((x, y), hidden)) in zip(panels, TASKS.items(), strict=True):
        x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
        outputs = 1 if name == "diabetes" else int(y.max()) + 1
        y = ((y - y.mean()) / y.std())[:, None].astype(np.float32) if outputs == 1 else y.astype(np.int32)
        for side, train in sides.items():
            try:
                importlib.import_module(side)  # not a part of the time
            except ImportError as error:
                print(f"{name:9} {side:8} left out: {error}")
                continue
            begin = time.perf_counter()
            (said, curve), taken = train(x, y, hidden, outputs), time.perf_counter() - begin
            found = 1 - np.mean((said - y) ** 2) / y.var() if outputs == 1 else np.mean(said.argmax(-1) == y)
            print(f"{name:9} {side:8} {found:.3f} after {EPOCHS} epochs, loss {curve[-1]:.4f}, {taken:.2f} s")
            axes.semilogy(curve, label=side)
        axes.set(title=name, xlabel="epoch", ylabel="loss")
    panels[0].legend()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=120, bbox_inches="tight")
    print(f"drawn in {FIGURE}; diabetes is R squared, the others are accuracies, all on what was trained on")


if __name__ == "__main__":
    main()
