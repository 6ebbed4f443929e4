"""scikit-learn: ``MLPClassifier``, one ``fit`` of as many iterations as there are epochs.

It is written after the page Neural network models (supervised) of its user guide, with the penalty, the momentum and
the stopping rule off; a second ``train()`` goes on from the weights, with an optimizer that begins anew
(``warm_start``). What differs from the others: biases start from the same uniform distribution as the kernels, and
W1 has tanh in both hidden layers and cross entropy for its loss, since a sigmoid goes with no other and all hidden
layers have the same activation. Convolutions, transformers and a rate for each run it does not have.
"""

import warnings
from collections.abc import Callable

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from workloads import Workload

WORKLOADS = ("W1", "W2", "W3", "W4")

HIDDEN = {"W1": (4, 4), "W2": (16, 8), "W3": (128, 64), "W4": (512, 512)}


def started(
    name: str, work: Workload, x: np.ndarray, y: np.ndarray, seed: int
) -> tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
    """``train()``: a whole run of ``work.epochs`` epochs; and ``predict(x)``: raw outputs, or log probabilities."""
    options = {
        "hidden_layer_sizes": HIDDEN[name],
        "alpha": 0.0,
        "batch_size": work.batch_size or len(x),
        "shuffle": work.batch_size is not None,
        "max_iter": work.epochs,
        "n_iter_no_change": np.inf,
        "tol": 0.0,
        "warm_start": True,
        "random_state": seed,
    }
    if name == "W1":
        model = MLPClassifier(solver="sgd", activation="tanh", learning_rate_init=0.4, momentum=0.0, **options)
    else:
        model = MLPClassifier(solver="adam", learning_rate_init=0.01 if name == "W2" else 1e-3, **options)
    targets = y.ravel()

    def train() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it is to stop after the last epoch
            model.fit(x, targets)

    def predict(x: np.ndarray) -> np.ndarray:
        probabilities = model.predict_proba(x)
        if name == "W1":
            return probabilities[:, 1:]
        logs = np.log(np.maximum(probabilities, np.finfo(probabilities.dtype).tiny))
        return logs[:, 1:] - logs[:, :1] if name == "W2" else logs

    return train, predict
