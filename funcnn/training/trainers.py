"""From an objective and an optimizer to a pure step: ``step(train_state, batch) -> (train_state, info)``."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from funcnn import checks
from funcnn.core import Layer, Tree, expect_key
from funcnn.metrics import Metric
from funcnn.training import scaling
from funcnn.training import telemetry as telemetries
from funcnn.training.accumulation import accumulated, total_of, whole
from funcnn.training.objectives import Aux, Objective, loss_sums, mean_of, supervised_objective
from funcnn.training.states import TrainState


class Trainer(NamedTuple):
    """Pure functions, from which a run is made: four, and one more where single steps are looked at.

    ``init(key, batch) -> TrainState`` reads only shapes and dtypes of the batch; ``step(train_state, batch) ->
    (train_state, info)``; ``evaluate(train_state, batch) -> info``; ``report(info) -> dict of arrays``. An ``info``
    is a pytree of sums: the sums of several batches are added, and then reported. A run stops at the first step whose
    ``report(info)["loss"]`` is not finite (where there is no ``"loss"``: any of the entries). ``telemetry(info) ->
    (info, dict of arrays)`` takes out of the info of a step what is not added up but stacked.
    """

    init: Callable[..., TrainState]
    step: Callable[[TrainState, Any], tuple[TrainState, Any]]
    evaluate: Callable[[TrainState, Any], Any]
    report: Callable[[Any], dict[str, Any]]
    telemetry: Callable[[Any], tuple[Any, dict[str, Any]]] = telemetries.nothing

    def __repr__(self) -> str:
        return f"Trainer({', '.join(self._fields)})"


# Folded into the key of init for the key of the steps, and beside the numbers of steps for the keys of evaluations:
# numbers that neither the checksums of names nor a step reach.
_STEPS = 2**32 - 1
_EVALUATIONS = 2**31


def trainer(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    metrics: Mapping[str, Metric] | None = None,
    evaluation_params: Callable[[TrainState], Tree] | None = None,
    *,
    micro_batch_size: int | None = None,
    loss_scale: float | str | None = None,
    telemetry: Mapping[str, telemetries.Telemetry] | None = None,
) -> Trainer:
    """The trainer of any objective.

    Formula: ``params <- params + update(gradient of (sum over terms of sum(l w) / sum(w)) + penalty)``; with
    micro-batches the sums are taken over all of them before they are divided, so that the gradient is that of the
    whole batch however the weights are spread, and the smaller last batch of an epoch is a step of its own.

    Args:
        objective: what is made small.
        optimizer: any Optax ``GradientTransformation``; ``value``, ``grad`` and ``value_fn`` go to those that take
            them.
        metrics: by name, measured on ``Aux.outputs``, ``Aux.targets`` and ``Aux.weights`` of every batch.
        evaluation_params: the params that ``evaluate`` takes, as a function of the state; those of the state otherwise.
        micro_batch_size: how many examples of a batch are in memory at once (gradient accumulation); all of them
            otherwise. Batch norm and the penalty see micro-batches, each with a key of its own.
        loss_scale: for float16, ``"dynamic"``: the gradient is that of the loss times a number, and divided by it. The
            number is halved where the gradient is not finite, and that step leaves everything as it was; after 2000
            steps without it is doubled. Or the number itself.
        telemetry: by name, functions ``(params, gradient, updates) -> arrays``, such as ``training.gradient_norm``, of
            every single step; ``Result.telemetry`` holds them stacked.

    Raises:
        TypeError: an argument is of another type, for instance an optimizer that was not called.
        ValueError: a metric has the name of something else that is reported.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn.training import Aux, Objective, trainer
        >>> def init(key, batch):
        ...     return {"slope": jnp.zeros(())}, {}
        >>> def loss(params, model_state, batch, *, key, training):
        ...     x, y = batch
        ...     return (params["slope"] * x - y) ** 2, Aux(model_state)
        >>> line = trainer(Objective(init, loss), optax.sgd(0.5))
        >>> batch = jnp.ones(4), 3 * jnp.ones(4)
        >>> state, info = line.step(line.init(jax.random.key(0), batch), batch)
        >>> float(state.params["slope"]), float(line.report(info)["loss"])
        (3.0, 9.0)

    Reference: the State and Info of BlackJAX; the step of Optax.
    """
    measured = _expect_metrics({} if metrics is None else metrics)
    expect_optimizer("trainer", optimizer)
    if not isinstance(objective, Objective):
        checks.fail(
            "trainer", "an Objective", type(objective).__name__, "for a model and a loss write supervised", TypeError
        )
    update = optax.with_extra_args_support(optimizer).update
    scaling.expect_loss_scale(loss_scale)
    dynamic = isinstance(loss_scale, str)
    micro = None if micro_batch_size is None else checks.expect_count("trainer", "micro_batch_size", micro_batch_size)
    asked = telemetries.expect_telemetry("trainer", {} if telemetry is None else telemetry)

    def init(key: Any, batch: Any) -> TrainState:
        expect_key("trainer.init", key)
        step_key = jax.random.fold_in(key, _STEPS)
        params, model_state = objective.init(key, batch)
        opt_state = scaling.begun(optimizer.init(params)) if dynamic else optimizer.init(params)
        return TrainState(params, model_state, opt_state, step_key, jnp.zeros((), jnp.int32))

    def measure(params: Tree, model_state: Tree, batch: Any, key: Any) -> tuple[Any, Tree]:
        losses, aux = _loss_and_aux(objective.loss(params, model_state, batch, key=key, training=True))
        return _info(losses, aux, measured), aux.model_state

    total = whole(measure) if micro is None else accumulated(measure, micro)

    def step(train_state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        params, model_state, opt_state, key, count = train_state
        step_key = jax.random.fold_in(key, count)
        scaled, opt_state = (opt_state, opt_state.optimizer) if dynamic else (None, opt_state)
        scale = loss_scale if scaled is None else scaled.scale
        value, gradient, new_model_state, info = total.slope(params, model_state, batch, step_key, scale)
        gradient = gradient if scale is None else scaling.unscaled(gradient, scale)
        more = {"value_fn": lambda p: total.value(p, model_state, batch, step_key)}
        updates, new_opt_state = update(gradient, opt_state, params, value=value, grad=gradient, **more)
        info = telemetries.measured(asked, info, params, gradient, updates) if asked else info
        after = TrainState(optax.apply_updates(params, updates), new_model_state, new_opt_state, key, count + 1)
        return after if scaled is None else scaling.guarded(after, train_state, scaled, gradient), info

    def evaluate(train_state: TrainState, batch: Any) -> Any:
        params = train_state.params if evaluation_params is None else evaluation_params(train_state)
        key = jax.random.fold_in(
            train_state.key, jnp.uint32(_EVALUATIONS) + jnp.asarray(train_state.step).astype(jnp.uint32)
        )
        losses, aux = _loss_and_aux(objective.loss(params, train_state.model_state, batch, key=key, training=False))
        return _info(losses, aux, measured)

    taken_out = telemetries.split if asked else telemetries.nothing
    return Trainer(init, step, evaluate, lambda info: _report(info, measured), taken_out)


def supervised(
    model: Layer,
    loss: Callable[[Any, Any], Any],
    optimizer: optax.GradientTransformation,
    metrics: Mapping[str, Metric] | None = None,
    penalty: Callable[[Tree], Any] | None = None,
    *,
    evaluation_params: Callable[[TrainState], Tree] | None = None,
    micro_batch_size: int | None = None,
    loss_scale: float | str | None = None,
    telemetry: Mapping[str, telemetries.Telemetry] | None = None,
) -> Trainer:
    """The trainer of a model on batches ``(x, y)`` or ``(x, y, weights)``.

    Formula: the mean of ``loss(model(x), y)`` over the batch, weighted where there are weights, plus
    ``penalty(params)`` and what layers put under ``auxiliary_loss`` in their state. The last two count in training
    only, so ``validation_loss`` is without.

    Args:
        model: any layer.
        loss: ``(prediction, target) -> one loss for each example``; options by ``functools.partial``.
        optimizer: any Optax ``GradientTransformation``.
        metrics: by name, as they are to stand in the history.
        penalty: ``params -> scalar``, for instance ``penalties.l2(1e-4)``.
        evaluation_params: as for ``trainer``; so are ``micro_batch_size``, ``loss_scale`` and ``telemetry``.

    Raises:
        TypeError: an argument is of another type, for instance a layer, a loss or an optimizer that was not called.
        ValueError: a loss was reduced to a scalar, or outputs and targets were broadcast against each other.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, metrics, training
        >>> mae = {"mae": metrics.mean_absolute_error}
        >>> line = training.supervised(layers.dense(1), losses.squared_error, optax.adam(0.01), mae)
        >>> batch = jnp.ones((4, 2)), jnp.zeros((4, 1))
        >>> state, info = line.step(line.init(jax.random.key(0), batch), batch)
        >>> sorted(line.report(info))
        ['loss', 'mae']
    """
    if not callable(loss) or isinstance(loss, (Layer, Metric)):
        checks.fail(
            "supervised",
            "a loss, (prediction, target) -> losses",
            type(loss).__name__,
            "pass one of funcnn.losses",
            TypeError,
        )
    if penalty is not None and getattr(penalty, "__module__", "") == "funcnn.penalties" and not _is_closure(penalty):
        got, fix = f"the factory {penalty.__name__}", f"call it: penalties.{penalty.__name__}(1e-4)"
        checks.fail("supervised", "a penalty, params -> scalar", got, fix, TypeError)
    if penalty is not None and not callable(penalty):
        checks.fail(
            "supervised",
            "a penalty, params -> scalar",
            type(penalty).__name__,
            "pass one of funcnn.penalties",
            TypeError,
        )
    objective = supervised_objective(model, loss, penalty)
    return trainer(
        objective,
        optimizer,
        metrics,
        evaluation_params,
        micro_batch_size=micro_batch_size,
        loss_scale=loss_scale,
        telemetry=telemetry,
    )


def _is_closure(function: Any) -> bool:
    return "<locals>" in getattr(function, "__qualname__", "")


def _loss_and_aux(returned: Any) -> tuple[Any, Aux]:
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Aux)):
        parts = returned if isinstance(returned, tuple) else (returned,)
        got = ", ".join(type(part).__name__ for part in parts)
        fix = "return losses, Aux(model_state, ...)"
        checks.fail("trainer", "a loss that returns (losses, Aux)", got, fix, TypeError)
    return returned


def _info(losses: Any, aux: Aux, metrics: Mapping[str, Metric]) -> dict[str, Any]:
    info: dict[str, Any] = {"losses": loss_sums(losses, aux.weights)}
    for name in info["losses"]:
        if name in ("loss", "penalty") or name.startswith("validation_"):
            fix = "rename it: the history has these names of its own"
            checks.fail("trainer", "terms of the loss not named 'loss', 'penalty' or 'validation_...'", repr(name), fix)
    taken = sorted(({*info["losses"], "penalty"}) & set(metrics))
    if taken:
        checks.fail(
            "trainer", "metrics with names of their own", f"{taken} twice", "rename the metric or the term of the loss"
        )
    if not (isinstance(aux.penalty, (int, float)) and aux.penalty == 0):
        if jnp.ndim(aux.penalty) != 0:
            checks.fail("trainer", "a scalar penalty", f"shape {jnp.shape(aux.penalty)}", "sum it")
        info["penalty"] = (jnp.asarray(aux.penalty), jnp.ones((), jnp.result_type(float)))
    if metrics and aux.outputs is None:
        checks.fail("trainer", "Aux with outputs, for the metrics", "none", "return Aux(model_state, outputs, targets)")
    weights = None if isinstance(aux.weights, dict) else aux.weights
    info["metrics"] = {name: m.measure(aux.outputs, aux.targets, weights) for name, m in metrics.items()}
    return info


def _report(info: Any, measured: Mapping[str, Metric]) -> dict[str, Any]:
    rows: dict[str, Any] = {"loss": total_of(info)}
    rows |= {name: mean_of(sums) for name, sums in info["losses"].items() if name}
    rows |= {"penalty": mean_of(info["penalty"])} if "penalty" in info else {}
    return rows | {name: measured[name].compute(sums) for name, sums in info["metrics"].items()}


def _expect_metrics(given: Any) -> dict[str, Metric]:
    if not isinstance(given, Mapping):
        got = type(given).__name__
        checks.fail("trainer", "metrics as a dict", got, 'give each a name: {"accuracy": metrics.accuracy}', TypeError)
    metrics = dict(given)
    for name, metric in metrics.items():
        if name == "loss" or not isinstance(name, str) or not name or name.startswith("validation_"):
            fix = "rename the metric: the history has these names of its own"
            checks.fail("trainer", "metrics named otherwise than 'loss' and 'validation_...'", repr(name), fix)
        if not isinstance(metric, Metric):
            got = f"the function {metric.__name__}" if callable(metric) else type(metric).__name__
            checks.fail(
                "trainer", f"a Metric under {name!r}", got, "call it, or wrap a function: metrics.mean(f)", TypeError
            )
    return metrics


def expect_optimizer(where: str, optimizer: Any) -> None:
    """Raise a ``TypeError`` unless ``optimizer`` is one of Optax, and say what was probably meant."""
    if isinstance(optimizer, optax.GradientTransformation):
        return
    got = (
        f"the factory {optimizer.__name__}"
        if callable(optimizer) and hasattr(optimizer, "__name__")
        else type(optimizer).__name__
    )
    fix = "pass one such as optax.adam(1e-3)"
    if hasattr(optimizer, "gradient_transformation"):  # optax.MultiSteps
        fix = "pass its .gradient_transformation()"
    checks.fail(where, "an Optax optimizer", got, fix, TypeError)


def expect_trainer(where: str, value: Any) -> None:
    """Raise a ``TypeError`` unless ``value`` is a ``Trainer``, and say how to make one."""
    if not isinstance(value, Trainer):
        fix = "make one with training.supervised(model, loss, optimizer)"
        checks.fail(where, "a Trainer", type(value).__name__, fix, TypeError)
