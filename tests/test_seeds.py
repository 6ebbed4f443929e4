"""Whether the set-ups of the libraries that funcnn grew from learn from (nearly) every seed, with default initialisers.

Seeds are those from 0, each the ``jax.random.key`` of its number, and all networks of a study are trained by one
``vmap`` of the run. A share below its bar is a finding about the library; the bars and the seeds do not move.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import layers, losses, training

pytestmark = pytest.mark.slow  # thousands of runs

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name):
    """An example as a module; it does nothing when it is imported."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def over_seeds(function, count):
    """``function(key)`` for so many seeds, in one compiled program."""
    return np.asarray(jax.jit(jax.vmap(function))(jax.vmap(jax.random.key)(jnp.arange(count))))


def right_after(train, model, x, y, decided):
    """A function of a key: how many decisions of the network that it gives are right, on the data that were learned."""

    def right(key):
        state = train(key).state
        return jnp.sum(decided(model.apply(state.params, state.model_state, x)[0]) == y)

    return right


def test_xor_of_micrograd_in_elixir():
    """2-4-4-1, tanh and sigmoids, 2000 steps; all four within 0.08, which micrograd's own test asks of one network."""
    xor = example("xor")
    outputs = over_seeds(xor.outputs, 1000)
    assert outputs.shape == (1000, 4, 1)
    within = (np.abs(outputs - np.asarray(xor.y)) < 0.08).all(axis=(1, 2))
    assert within.mean() >= 0.94


def test_xor_of_smolml():
    """2-16-1, ReLU and tanh, mean squared error, 100 steps of AdaGrad at 0.1; SmolML starts its sums at 0."""
    xor = example("xor")
    model = layers.serial(layers.dense(16), layers.relu, layers.dense(1), layers.tanh)
    optimizer = optax.adagrad(0.1, initial_accumulator_value=0.0, eps=1e-8)
    trainer = training.supervised(model, losses.squared_error, optimizer)

    def train(key):
        return training.run(trainer, (xor.x, xor.y), key=key, epochs=100)

    right = right_after(train, model, xor.x, xor.y, lambda outputs: outputs > 0.5)
    assert (over_seeds(right, 200) == 4).mean() >= 0.99


def test_heights():
    """2-3-3-1, sigmoids, 1001 steps on ten standardised rows: all ten right."""
    heights = example("heights")
    right = over_seeds(lambda key: heights.right(heights.model, key), 1000)
    assert (right == 10).mean() >= 0.94


def test_heights_on_raw_inputs_are_not_learned():
    """What standardising is for: this is how the original was trained."""
    heights = example("heights")
    right = over_seeds(lambda key: heights.right(heights.raw, key), 100)
    assert (right == 10).mean() <= 0.2


def test_moons_of_smolml():
    """2-16-8-1, Adam at 0.01, 100 full-batch steps: the median of right answers, of 100."""
    moons = example("moons")
    right = right_after(moons.train, moons.model, moons.x.astype(np.float32), moons.y, lambda p: p > 0.5)
    assert np.median(over_seeds(right, 200)) >= 95


def test_iris_of_smolml():
    """4-16-8-3, Adam at 0.01, 100 full-batch steps, standardised: the median of right answers, of 150."""
    iris = example("iris")
    x, y = iris.iris.data.astype(np.float32), iris.iris.target
    model = iris.network(x)
    trainer = iris.trainer_of(model)

    def train(key):
        return training.run(trainer, (x, y), key=key, epochs=100, batch_size=None)

    right = right_after(train, model, x, y, lambda logits: logits.argmax(axis=-1))
    assert np.median(over_seeds(right, 200)) >= 147
