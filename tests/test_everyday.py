"""The everyday things of a trainer, each against PyTorch or a loop by hand, and each under the law of a run."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_law import assert_same_bytes
from test_trainers import assert_same_as, close, twin_of

from funcnn import layers, losses, metrics, penalties, training, trees
from funcnn.training import Aux, Objective

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
N, BATCH, EPOCHS = 29, 8, 4  # three whole batches and one of five examples
X = RNG.normal(size=(N, 4)).astype(np.float32)
LABELS = (X[:, :3] + 0.5 * RNG.normal(size=(N, 3))).argmax(1).astype(np.int32)
OF_CLASSES = np.array([0.2, 1.0, 3.0], np.float32)
SPREAD = np.exp(2 * RNG.normal(size=N)).astype(np.float32)
SPREAD[8:16] = 0  # a whole batch, where the order is that of the data
SPREAD[[2, 20]] = 0
MODEL = layers.serial(layers.dense(8), layers.tanh, layers.dense(3))
IN_ORDER = {"key": KEY, "epochs": EPOCHS, "batch_size": BATCH, "shuffle": False}
ACCURACY = {"accuracy": metrics.accuracy}


def supervised(optimizer=None, model=MODEL, **options):
    return training.supervised(model, losses.softmax_cross_entropy, optimizer or optax.sgd(0.3), ACCURACY, **options)


def begun(line, batch):
    """The state from which a run and its twin in PyTorch begin."""
    params, _ = MODEL.init(KEY, X)
    return line.init(KEY, batch)._replace(params=params), params


def parts(*arrays):
    for begin in range(0, N, BATCH):
        yield tuple(a[begin : begin + BATCH] for a in arrays)


def by_pytorch(torch, twin, loss, optimizers, before=lambda value: None, after=lambda: None):
    """A plain loop in the order of the data; ``loss(outputs, rows)`` is ``None`` where a batch has no weight at all."""
    for _ in range(EPOCHS):
        for x, rows in parts(X, np.arange(N)):
            value = loss(twin(torch.tensor(x)), rows)
            if value is None:
                continue
            for optimizer in optimizers:
                optimizer.zero_grad()
            value.backward()
            before(value.item())
            for optimizer in optimizers:
                optimizer.step()
            after()


def cross_entropy(torch, **options):
    return lambda outputs, rows: torch.nn.functional.cross_entropy(
        outputs, torch.tensor(LABELS[rows]).long(), **options
    )


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_class_weights_are_the_weights_of_their_examples(torch):
    data = X, LABELS, OF_CLASSES[LABELS]
    line = supervised()
    state, params = begun(line, data)
    result = training.run(line, data, state=state, validation=data, **IN_ORDER)
    twin, seen = twin_of(torch, params), []
    loss = cross_entropy(torch, weight=torch.tensor(OF_CLASSES))
    by_pytorch(torch, twin, loss, [torch.optim.SGD(twin.parameters(), 0.3)], before=seen.append)
    assert_same_as(twin, result.state.params)
    everything = twin(torch.tensor(X))
    np.testing.assert_allclose(result.history["validation_loss"][-1], loss(everything, np.arange(N)).item(), 1e-5)
    right = everything.argmax(1).numpy() == LABELS
    np.testing.assert_allclose(
        result.history["validation_accuracy"][-1], np.average(right, weights=OF_CLASSES[LABELS]), 1e-5
    )
    # The loss of an epoch is that of all its examples, and no mean of the means of its batches.
    of_batches = [weights.sum() for (weights,) in parts(OF_CLASSES[LABELS])]
    first = np.average(seen[: len(of_batches)], weights=of_batches)
    np.testing.assert_allclose(result.history["loss"][0], first, 1e-5)
    assert abs(np.mean(seen[: len(of_batches)]) - first) > 1e-3


@pytest.mark.slow
def test_class_weights_may_be_swept():
    """As a part of the objective: ``Aux.weights`` divide as they multiply."""

    def made(of_classes):
        def loss(params, model_state, batch, *, key, training):
            x, y = batch
            outputs, model_state = MODEL.apply(params, model_state, x, key=key, training=training)
            return losses.softmax_cross_entropy(outputs, y), Aux(model_state, outputs, y, of_classes[y])

        return training.trainer(Objective(lambda key, batch: MODEL.init(key, batch[0]), loss), optax.sgd(0.3))

    options = {"epochs": 3, "batch_size": BATCH}
    grid = np.stack([np.ones(3, np.float32), OF_CLASSES])
    found = training.sweep(made, grid, (X, LABELS), key=KEY, how="map", progress=False, **options)
    for member, weights in zip(found.members, grid, strict=True):
        expected = training.run(supervised(), (X, LABELS, weights[LABELS]), key=member.key, **options)
        close(member.result.state.params, expected.state.params)
        close(member.result.history["loss"], expected.history["loss"])


@pytest.mark.slow
def test_sample_weights_are_a_weighted_mean_of_each_batch(torch):
    data = X, LABELS, SPREAD
    line = supervised()
    state, params = begun(line, data)
    result = training.run(line, data, state=state, **IN_ORDER)

    def loss(outputs, rows):
        weights = torch.tensor(SPREAD[rows])
        each = cross_entropy(torch, reduction="none")(outputs, rows)
        return (each * weights).sum() / weights.sum() if weights.sum() > 0 else None

    twin = twin_of(torch, params)
    by_pytorch(torch, twin, loss, [torch.optim.SGD(twin.parameters(), 0.3)])
    assert_same_as(twin, result.state.params)
    assert int(result.state.step) == EPOCHS * 4  # a batch without weight is a step that moves nothing


# ---- optimizers ------------------------------------------------------------------------------------------------------


def clipped_and_scheduled():
    schedule = training.warmup_cosine_decay_schedule(0.0, 0.1, 3, 14, 0.01)
    return optax.chain(optax.clip_by_global_norm(0.2), optax.adamw(schedule, b2=0.99, eps=1e-6, weight_decay=0.1))


def rate_by_hand(step):
    if step < 3:
        return 0.1 * step / 3
    return 0.01 + 0.09 * (1 + np.cos(np.pi * min((step - 3) / 11, 1))) / 2


@pytest.mark.slow
def test_clipping_and_a_schedule_over_ragged_batches_are_those_of_pytorch(torch):
    line = supervised(clipped_and_scheduled())
    state, params = begun(line, (X, LABELS))
    result = training.run(line, (X, LABELS), state=state, **IN_ORDER)
    twin, norms = twin_of(torch, params), []
    adam = torch.optim.AdamW(twin.parameters(), 1.0, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, rate_by_hand)
    clip = functools.partial(torch.nn.utils.clip_grad_norm_, list(twin.parameters()), 0.2)
    by_pytorch(torch, twin, cross_entropy(torch), [adam], lambda _: norms.append(clip().item()), schedule.step)
    assert max(norms) > 0.2
    assert_same_as(twin, result.state.params)


@pytest.mark.slow
def test_the_rate_falls_where_that_of_pytorch_falls(torch):
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=2, rtol=0.0, atol=1e-3)
    line = supervised(optax.chain(optax.sgd(0.3), plateau))
    state, params = begun(line, (X, LABELS))
    result = training.run(line, (X, LABELS), state=state, **IN_ORDER)
    twin = twin_of(torch, params)
    sgd = torch.optim.SGD(twin.parameters(), 0.3)
    reduce = torch.optim.lr_scheduler.ReduceLROnPlateau(
        sgd, factor=0.5, patience=1, threshold=1e-3, threshold_mode="abs", eps=0.0
    )
    by_pytorch(torch, twin, cross_entropy(torch), [sgd], before=reduce.step)
    rate = sgd.param_groups[0]["lr"]
    assert 0 < rate < 0.1  # it fell more than once
    np.testing.assert_allclose(0.3 * float(result.state.opt_state[1].scale), rate, 1e-6)
    assert_same_as(twin, result.state.params)


def body_and_head():
    """The head is what is new: a rate and a kind of optimizer of its own."""

    def labels(params):
        return trees.labels(params, {"dense_0/**": "body"}, default="head")

    return optax.partition({"body": optax.sgd(0.3, momentum=0.9), "head": optax.adam(0.05, eps=1e-6)}, labels)


@pytest.mark.slow
def test_parts_of_the_params_have_optimizers_of_their_own(torch):
    line = supervised(body_and_head())
    state, params = begun(line, (X, LABELS))
    result = training.run(line, (X, LABELS), state=state, **IN_ORDER)
    twin = twin_of(torch, params)
    body = torch.optim.SGD(twin[0].parameters(), 0.3, momentum=0.9)
    head = torch.optim.Adam(twin[2].parameters(), 0.05, eps=1e-6)
    by_pytorch(torch, twin, cross_entropy(torch), [body, head])
    assert_same_as(twin, result.state.params)


def averaging():
    return supervised(training.averaged(optax.sgd(0.3), 0.8), evaluation_params=training.average_of)


@pytest.mark.slow
def test_the_average_that_is_evaluated_is_that_of_pytorch(torch):
    line = averaging()
    state, params = begun(line, (X, LABELS))
    state = state._replace(opt_state=state.opt_state._replace(average=params))
    result = training.run(line, (X, LABELS), state=state, validation=(X, LABELS), **IN_ORDER)
    twin = twin_of(torch, params)
    swa = torch.optim.swa_utils
    average = swa.AveragedModel(twin, multi_avg_fn=swa.get_ema_multi_avg_fn(0.8))
    average.update_parameters(twin)  # the first is a copy
    sgd = torch.optim.SGD(twin.parameters(), 0.3)
    by_pytorch(torch, twin, cross_entropy(torch), [sgd], after=lambda: average.update_parameters(twin))
    assert_same_as(twin, result.state.params)
    assert_same_as(average.module, training.average_of(result.state))
    value, of_params = (cross_entropy(torch)(m(torch.tensor(X)), np.arange(N)).item() for m in (average.module, twin))
    np.testing.assert_allclose(result.history["validation_loss"][-1], value, 1e-5)
    assert abs(value - of_params) > 1e-3


# ---- several losses --------------------------------------------------------------------------------------------------


def several():
    """Cross-entropy with weights, and how large the outputs are, without."""

    def loss(params, model_state, batch, *, key, training):
        x, y, weights = batch
        outputs, model_state = MODEL.apply(params, model_state, x, key=key, training=training)
        terms = {"right": losses.softmax_cross_entropy(outputs, y), "size": 0.1 * (outputs**2).mean(axis=1)}
        return terms, Aux(model_state, outputs, y, {"right": weights})

    return training.trainer(Objective(lambda key, batch: MODEL.init(key, batch[0]), loss), optax.sgd(0.3), ACCURACY)


@pytest.mark.slow
def test_several_losses_are_added_and_each_is_a_column(torch):
    data = X, LABELS, OF_CLASSES[LABELS]
    line = several()
    state, params = begun(line, data)
    result = training.run(line, data, state=state, validation=data, **IN_ORDER)
    twin = twin_of(torch, params)

    def terms(outputs, rows):
        right = cross_entropy(torch, weight=torch.tensor(OF_CLASSES))(outputs, rows)
        return {"right": right, "size": 0.1 * (outputs**2).mean()}

    def total(outputs, rows):
        return sum(terms(outputs, rows).values())

    by_pytorch(torch, twin, total, [torch.optim.SGD(twin.parameters(), 0.3)])
    assert_same_as(twin, result.state.params)
    last = {name: term.item() for name, term in terms(twin(torch.tensor(X)), np.arange(N)).items()}
    found = {name: float(result.history[f"validation_{name}"][-1]) for name in ("right", "size", "loss")}
    assert found == pytest.approx(last | {"loss": sum(last.values())}, rel=1e-5)
    assert sorted(result.history) == [
        *("accuracy", "loss", "right", "size"),
        *("validation_accuracy", "validation_loss", "validation_right", "validation_size"),
    ]


# ---- half precision --------------------------------------------------------------------------------------------------

LARGE = (20 * X).astype(np.float32)  # so that the first gradients are too large for float16


HALF = layers.mixed_precision(layers.serial(layers.dense(8), layers.relu, layers.dense(3)), compute=jnp.float16)


def half(optimizer):
    return supervised(optimizer, HALF, loss_scale="dynamic")


def moved(one, other):
    """The largest distance between two entries."""
    return max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


@pytest.mark.slow
def test_loss_scaling_is_a_loop_that_leaves_out_what_overflows():
    line = half(optax.sgd(1e-3))
    state = line.init(KEY, (LARGE, LABELS))
    result = training.run(line, (LARGE, LABELS), state=state, **IN_ORDER)

    @jax.jit
    def slope(params, x, y, scale):
        def scaled(p):
            log_p = jax.nn.log_softmax(HALF.apply(p, {}, x)[0].astype(jnp.float32))
            return -scale * log_p[jnp.arange(len(y)), y].mean()

        return jax.grad(scaled)(params)

    first = params = state.params
    scale, left_out = 2.0**15, 0
    for _ in range(EPOCHS):
        for x, y in parts(LARGE, LABELS):
            gradient = slope(params, x, y, scale)
            if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)):
                params = jax.tree.map(lambda p, g, s=scale: p - 1e-3 * g / s, params, gradient)
            else:
                scale, left_out = scale / 2, left_out + 1
    assert 0 < left_out < EPOCHS * 4
    assert float(result.state.opt_state.scale) == scale
    assert int(result.state.step) == EPOCHS * 4
    assert moved(params, first) > 1e-2
    assert moved(result.state.params, params) < 1e-5


# ---- accumulation ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_four_unequal_parts_are_their_sum_also_at_the_end_of_an_epoch(shuffle):
    """In float64, so that rounding is far below anything else: batches in 3, 3, 3, 2, the last in 3, 3, 1."""
    weights = np.exp(3 * RNG.normal(size=N)) * (np.arange(N) % 5 > 0)  # from nothing to a thousand
    y = X @ RNG.normal(size=(4, 1)) + 1
    options = IN_ORDER | {"batch_size": 11, "shuffle": shuffle}
    with jax.enable_x64(True):
        found, whole = (
            training.run(
                training.supervised(
                    layers.dense(1),
                    losses.squared_error,
                    optax.sgd(0.1, momentum=0.9),
                    {"mae": metrics.mean_absolute_error},
                    penalties.l2(1e-2),
                    micro_batch_size=micro,
                ),
                (X.astype(np.float64), y, weights),
                **options,
            )
            for micro in (3, None)
        )
        first = layers.dense(1).init(jax.random.split(KEY, 3)[0], X.astype(np.float64))[0]
        assert found.state.params["kernel"].dtype == np.float64
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12),
        (found.history, found.state.params, found.state.opt_state),
        (whole.history, whole.state.params, whole.state.opt_state),
    )
    if shuffle:
        return
    kernel, bias, velocity = np.asarray(first["kernel"]), np.asarray(first["bias"]), [0.0, 0.0]
    for _ in range(EPOCHS):
        for begin in (0, 11, 22):
            x, t, w = (a[begin : begin + 11] for a in (X.astype(np.float64), y, weights[:, None]))
            error = 2 * w * (x @ kernel + bias - t) / w.sum()
            velocity = [
                0.9 * velocity[0] + x.T @ error + 0.02 * kernel,
                0.9 * velocity[1] + error.sum(0),
            ]
            kernel, bias = kernel - 0.1 * velocity[0], bias - 0.1 * velocity[1]
    np.testing.assert_allclose(found.state.params["kernel"], kernel, rtol=1e-9)
    np.testing.assert_allclose(found.state.params["bias"], bias, rtol=1e-9)


# ---- the law ---------------------------------------------------------------------------------------------------------


def everything():
    """All of it at once: what works alone has to work beside all else."""
    model = layers.serial(layers.dense(8), layers.batch_norm(), layers.tanh, layers.dropout(0.2), layers.dense(3))
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=2, rtol=0.0, atol=1e-3)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), body_and_head(), plateau)
    return supervised(
        training.averaged(optimizer, 0.8),
        layers.mixed_precision(model, compute=jnp.float16),
        evaluation_params=training.average_of,
        micro_batch_size=3,
        loss_scale="dynamic",
        penalty=penalties.l2(1e-3),
    )


WEIGHTED = X, LABELS, SPREAD
LAWFUL = {
    "everything": (everything, (LARGE, LABELS, SPREAD)),
    "class weights": (supervised, (X, LABELS, OF_CLASSES[LABELS])),
    "sample weights": (supervised, WEIGHTED),
    "clipping and schedule": (lambda: supervised(clipped_and_scheduled()), WEIGHTED),
    "plateau": (
        lambda: supervised(optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=2))),
        WEIGHTED,
    ),
    "parts": (lambda: supervised(body_and_head()), WEIGHTED),
    "average": (averaging, WEIGHTED),
    "several losses": (several, WEIGHTED),
    "half precision": (lambda: half(optax.adam(0.01)), (LARGE, LABELS)),
    "accumulation": (lambda: supervised(optax.adam(0.1), micro_batch_size=3), WEIGHTED),
}


@pytest.mark.parametrize(
    "name", [name if name == "parts" else pytest.param(name, marks=pytest.mark.slow) for name in LAWFUL]
)
def test_the_law_holds(name):
    make, given = LAWFUL[name]
    line, options = make(), {"key": KEY, "epochs": EPOCHS, "batch_size": BATCH, "validation": given}
    whole = jax.jit(lambda: training.run(line, given, **options))()
    assert all(np.isfinite(column).all() for column in whole.history.values())
    assert len(np.unique(whole.history["loss"])) == EPOCHS
    for every in (1, 3, None):
        assert_same_bytes(training.fit(line, given, progress=False, every=every, **options), whole)
    if name == "half precision":
        assert whole.state.opt_state.scale < 2.0**15  # there were steps that moved nothing
    *_, last = training.steps(line, given, every=3, **options)  # cut within epochs
    assert_same_bytes(last.state, whole.state)


# ---- what is refused, and when ---------------------------------------------------------------------------------------

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **more: (
        compiled.append(more.get("fun_name", "")) if event.endswith("backend_compile_duration") else None
    )
)


def rated(h):
    return supervised(optax.sgd(h["rate"], h.get("momentum", 0.0)))


def of_width(h):
    return supervised(model=layers.serial(layers.dense(h["width"]), layers.dense(3)))


def of_depth(h):
    return supervised(model=layers.serial(*[layers.dense(3) for _ in range(h["depth"])]))


def of_micro_batches(h):
    return supervised(micro_batch_size=h["micro"])


def one_of_two(h):
    return supervised([optax.sgd(0.1), optax.adam(0.1)][h["which"]])


def without_momentum(h):
    jnp.sin(h["momentum"])  # computed, and read by nothing
    return supervised(optax.sgd(h["rate"]))


STRUCTURAL = "sweep: expected hyperparameters that are computed with, got one that decides a shape or a branch"
UNUSED = "sweep: expected a make_trainer(h) that uses all of the grid, got nothing that depends on h['momentum']; use"


@pytest.mark.parametrize(
    ("make", "grid", "options", "message"),
    [
        (rated, {}, {}, "sweep: expected a grid with a name or more, got an empty one; "),
        (rated, {"rate": []}, {}, "sweep: expected at least one of the values of 'rate', got none; "),
        (rated, {"rate": [0.1], "momentum": np.zeros((0, 2))}, {}, "one of the values of 'momentum', got none"),
        (lambda rate: rated({"rate": rate}), np.zeros(0), {}, "sweep: expected at least one of the values, got none; "),
        (rated, {"rate": [0.1, 0.2], "momentum": [0.9]}, {"combine": "zip"}, "{'rate': 2, 'momentum': 1}; or pass"),
        (rated, {"rate": np.zeros(2), "momentum": np.zeros(3)}, {"combine": "zip"}, "got {'rate': 2, 'momentum': 3}; "),
        (lambda h: rated({"rate": h["rate"]}), {"rate": [0.1], "momentum": [0.9]}, {}, UNUSED),
        (lambda h: rated({"rate": h["rate"]}), {"rate": [0.1], "momentum": [0.9]}, {"combine": "zip"}, UNUSED),
        (without_momentum, {"rate": [0.1], "momentum": [0.5, 0.9]}, {}, UNUSED),
        (of_width, {"width": [8, 16]}, {}, STRUCTURAL),
        (of_width, {"width": [8]}, {}, STRUCTURAL),
        (of_depth, {"depth": [1, 2]}, {}, STRUCTURAL),
        (of_micro_batches, {"micro": [2, 4]}, {}, STRUCTURAL),
        (one_of_two, {"which": [0, 1]}, {}, STRUCTURAL),
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["map", pytest.param("vmap", marks=pytest.mark.slow)])
def test_a_grid_that_cannot_be_swept_is_refused_in_a_sentence_and_before_compilation(make, grid, options, message, how):
    compiled.clear()
    with pytest.raises((TypeError, ValueError)) as caught:
        training.sweep(make, grid, (X, LABELS), key=KEY, epochs=1, how=how, progress=False, **options)
    assert_refused(caught.value, message)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (N + 1, f"at most {N} folds, one for each example, got {N + 1}; take fewer folds"),
        (1000, f"at most {N} folds, one for each example, got 1000; take fewer folds"),
        (1, "expected count of at least 2, got 1; "),
    ],
)
def test_folds_that_the_data_do_not_have_are_refused_in_a_sentence_and_before_compilation(folds, message):
    compiled.clear()
    with pytest.raises(ValueError, match="folds") as caught:
        training.cross_validate(supervised(), (X, LABELS), key=KEY, folds=folds, epochs=1)
    assert_refused(caught.value, message)


@pytest.mark.slow
def test_as_many_folds_as_examples_are_none_too_many():
    found = training.cross_validate(supervised(), (X, LABELS), key=KEY, folds=N, epochs=1, batch_size=None)
    assert found.history["validation_loss"].shape == (N, 1)


def assert_refused(error, message):
    assert message in str(error)
    assert re.fullmatch(r"[a-z_.]+: expected [^\n]+, got [^\n]+; [^\n]+", str(error)), error
    programs = [name for name in compiled if re.search("start|advance|mapped|program", name)]
    assert programs == []
