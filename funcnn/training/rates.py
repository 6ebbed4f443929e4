"""Which learning rate? One short run in which it grows from far too small to far too large."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from funcnn import checks
from funcnn.training.preparing import prepared
from funcnn.training.runs import run
from funcnn.training.trainers import Trainer


class RateRange(NamedTuple):
    """The learning rate of each step, the loss of its batch, the same smoothed, and the rate that is suggested."""

    rates: Any
    losses: Any
    smoothed: Any
    suggestion: float

    def __repr__(self) -> str:
        span = f"{self.rates[0]:.3g} to {self.rates[-1]:.3g}"
        return f"RateRange({len(self.rates)} rates from {span}, {self.suggestion:.3g} suggested)"


def find_learning_rate(
    make_trainer: Callable[[Any], Trainer],
    data: Any,
    *,
    key: Any,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 150,
    batch_size: int = 32,
) -> RateRange:
    """The learning-rate range test: the loss of each batch while the rate grows, and the rate where it falls fastest.

    Formula: ``rate(step) = low * (high / low)^(step / (steps - 1))``; the suggestion is where the smoothed loss falls
    most for a factor of the rate, before it is at its least.

    Args:
        make_trainer: from a learning rate to a trainer, as for ``sweep``; it is called with a schedule.
        data: arrays with one leading length.
        key: the only source of randomness; batches are drawn with replacement.
        low: the first rate.
        high: the last one.
        steps: how many.
        batch_size: examples to a batch.

    Raises:
        TypeError: ``make_trainer`` computes with the rate, which is a schedule here, or the data are a function.
        ValueError: rates that do not grow, or a loss that never falls.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, training
        >>> def line(rate):
        ...     return training.supervised(layers.dense(1), losses.squared_error, optax.sgd(rate))
        >>> x = jnp.linspace(-1, 1, 100)[:, None]
        >>> found = training.find_learning_rate(line, (x, 3 * x), key=jax.random.key(0), low=1e-4)
        >>> 1e-2 < found.suggestion < 2
        True

    Reference: Smith, "Cyclical learning rates for training neural networks", 2015.
    """
    where = "find_learning_rate"
    if not 0 < low < high:
        checks.fail(where, "0 < low < high", f"{low} and {high}", "pass the least and the largest rate to try")
    steps = checks.expect_count(where, "steps", steps, 10)
    batch_size = checks.expect_count(where, "batch_size", batch_size)
    if callable(data):
        checks.fail(where, "data as arrays", "a function", "draw a few thousand examples from it", TypeError)
    asked: list[Any] = []

    def schedule(step: Any) -> Any:
        asked.append(step)
        return low * (high / low) ** (step / (steps - 1))

    trainer = _made(where, make_trainer, schedule)
    given = prepared(
        where,
        trainer,
        data,
        None,
        key,
        None,
        epochs=1,
        steps=None,
        batch_size=batch_size,
        shuffle=True,
        drop_last=False,
        steps_per_epoch=None,
        stops_at_nonfinite=False,
        monitor=None,
        takes_streams=False,
    )
    count = len(jax.tree.leaves(given.arrays)[0])

    @jax.jit
    def tested(key: Any, arrays: Any) -> Any:
        def draw(k: Any) -> Any:
            rows = jax.random.randint(k, (min(batch_size, count),), 0, count)
            return jax.tree.map(lambda a: a[rows], arrays)

        return run(trainer, draw, key=key, steps=steps).history["loss"]

    found = np.asarray(tested(key, given.arrays), np.float64)
    if not asked:
        fix = "give it to the optimizer: optax.adam(rate)"
        checks.fail(where, "a make_trainer(rate) that uses the rate", "one that does not", fix)
    rates = low * (high / low) ** (np.arange(steps) / (steps - 1))
    return _suggested(where, rates, found)


# Of a batch the loss is mostly noise. So each is averaged with those before and behind it: only with those before it
# the curve would lag behind the rate. The window is a part of the decades, whatever the number of steps.
_PART = 18


def _made(where: str, make_trainer: Any, schedule: Callable[[Any], Any]) -> Trainer:
    if not callable(make_trainer) or isinstance(make_trainer, Trainer):
        fix = "pass a function: lambda rate: training.supervised(..., optax.adam(rate))"
        checks.fail(where, "a function that makes a trainer from a rate", type(make_trainer).__name__, fix, TypeError)
    try:
        made: Any = make_trainer(schedule)
        return made
    except TypeError as error:
        error.add_note(f"{where}: what it is called with is a schedule, a function of the step, for an optimizer")
        raise


def _suggested(where: str, rates: Any, losses: Any) -> RateRange:
    finite = np.isfinite(losses)
    if not finite[:2].all():
        fix = "begin with a smaller low, or look at the loss and the data"
        checks.fail(where, "a finite loss at the first rates", str(losses[0]), fix)
    end = len(losses) if finite.all() else int(np.argmin(finite))
    smoothed = np.full(len(losses), np.nan)
    half = max(4, len(losses) // _PART)
    window = np.concatenate([np.arange(1, half + 1), np.arange(half + 1, 0, -1)])
    sums, counts = (np.convolve(a, window)[half:][:end] for a in (losses[:end], np.ones(end)))
    smoothed[:end] = sums / counts
    start = len(losses) // 10  # the first averages are of a few batches
    least = start + int(np.argmin(smoothed[start:end])) if end > start + 2 else start
    if least < start + 2:
        fix = "begin with a smaller low, or look at the loss and the data"
        checks.fail(where, "a loss that falls at some rate", "one that only grows", fix)
    slopes = np.gradient(smoothed[start : least + 1])
    return RateRange(rates, losses, smoothed, float(rates[start + int(np.argmin(slopes))]))
