"""Regression: the progress of diabetes in 442 patients, held against linear regression.

The first layer standardises the inputs and the last one brings the answer to the scale of the targets, so that the
model takes and gives what the data hold. Patients are few and the relation is nearly linear: without the penalty the
network fits the noise and falls behind, with it the two are about equal, most often with a small lead for the network.
"""

import jax
import optax
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, r2_score

from funcnn import data, layers, losses, metrics, penalties, training


def network(x, y):
    """A small network for inputs and targets distributed as these."""
    mean, std = y.mean(), y.std()
    rescale = layers.function(lambda z: mean + std * z[:, 0])
    return layers.serial(data.standardize(x), layers.dense(32), layers.tanh, layers.dense(1), rescale)


def main():
    key = jax.random.key(0)
    train, test = data.split(load_diabetes(return_X_y=True), 0.2, key=key)
    model = network(*train)
    measured = {"R²": metrics.r_squared, "MAE": metrics.mean_absolute_error}
    # The loss is in squared units of the target, of the order of thousands, and so is the penalty.
    trainer = training.supervised(model, losses.squared_error, optax.adam(3e-3), measured, penalties.l2(100.0))
    result = training.fit(trainer, train, key=key, epochs=50, validation=test)

    print(f"{len(train[1])} patients to learn from, {len(test[1])} held out")
    linear = LinearRegression().fit(*train).predict(test[0])
    print(f"linear regression: R² {r2_score(test[1], linear):.3f}, MAE {mean_absolute_error(test[1], linear):.1f}")
    report = training.evaluate(trainer, result.state, test)
    print(f"network:           R² {report['R²']:.3f}, MAE {report['MAE']:.1f}")


if __name__ == "__main__":
    main()
