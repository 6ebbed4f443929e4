"""Losses against PyTorch, SciPy, scikit-learn and hand computations; extreme inputs; every message."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr

from funcnn import losses

RNG = np.random.default_rng(0)
SHAPES = [(5,), (5, 1), (4, 3), (3, 2, 4)]

ELEMENTWISE = [  # our loss, its name in PyTorch, options there
    (losses.squared_error, "mse_loss", {}),
    (losses.absolute_error, "l1_loss", {}),
    (losses.huber, "huber_loss", {}),
    (partial(losses.huber, delta=0.3), "huber_loss", {"delta": 0.3}),
    (losses.sigmoid_cross_entropy, "binary_cross_entropy_with_logits", {}),
    (losses.binary_cross_entropy, "binary_cross_entropy", {}),
]
SAME_SHAPE = {  # loss, and a prediction and target that suit it
    "squared_error": lambda s: (RNG.normal(size=s), RNG.normal(size=s)),
    "absolute_error": lambda s: (RNG.normal(size=s), RNG.normal(size=s)),
    "huber": lambda s: (3 * RNG.normal(size=s), RNG.normal(size=s)),
    "log_cosh": lambda s: (RNG.normal(size=s), RNG.normal(size=s)),
    "sigmoid_cross_entropy": lambda s: (RNG.normal(size=s), RNG.integers(0, 2, s)),
    "binary_cross_entropy": lambda s: (RNG.uniform(0.1, 0.9, s), RNG.integers(0, 2, s)),
    "hinge": lambda s: (RNG.normal(size=s), RNG.choice([-1, 1], s)),
}
OVER_LAST_AXIS = {
    "cosine_distance": lambda s: (RNG.normal(size=s), RNG.normal(size=s)),
    "softmax_cross_entropy": lambda s: (RNG.normal(size=s), RNG.integers(0, s[-1], s[:-1])),
    "categorical_cross_entropy": lambda s: (RNG.dirichlet(np.ones(s[-1]), s[:-1]), RNG.integers(0, s[-1], s[:-1])),
    "kl_divergence": lambda s: (log_softmax(RNG.normal(size=s), -1), RNG.dirichlet(np.ones(s[-1]), s[:-1])),
}
ALL = {**SAME_SHAPE, **OVER_LAST_AXIS}


def value_and_grad(loss, prediction, target):
    return jax.value_and_grad(lambda p: loss(p, target).sum())(prediction)


def torch_per_example(torch, values):
    return values.reshape(values.shape[0], -1).mean(1)


def torch_value_and_grad(torch, loss, prediction):
    leaf = torch.tensor(np.asarray(prediction, np.float64), requires_grad=True)
    per_example = torch_per_example(torch, loss(leaf))
    per_example.sum().backward()
    return per_example.detach().numpy(), leaf.grad.numpy()


# ---- oracles ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("loss", "name", "options"), ELEMENTWISE, ids=lambda v: v if isinstance(v, str) else "")
def test_elementwise_losses_and_gradients_are_pytorchs(torch, loss, name, options, shape):
    own = "binary_cross_entropy" if name == "binary_cross_entropy" else "sigmoid_cross_entropy"
    prediction, target = SAME_SHAPE[own if "binary" in name else "huber"](shape)
    reference = partial(getattr(torch.nn.functional, name), reduction="none", **options)
    expected, slope = torch_value_and_grad(
        torch, lambda p: reference(p, torch.tensor(target, dtype=p.dtype)), prediction
    )
    np.testing.assert_allclose(loss(jnp.float32(prediction), target), expected, rtol=1e-5, atol=1e-6)
    ours = value_and_grad(loss, jnp.float32(prediction), target)[1]
    np.testing.assert_allclose(ours, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("rows", [False, True], ids=["labels", "rows"])
@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 3)], ids=str)
@pytest.mark.parametrize("probabilities", [False, True], ids=["logits", "probabilities"])
def test_cross_entropy_over_classes_is_pytorchs(torch, shape, rows, smoothing, probabilities):
    name = "categorical_cross_entropy" if probabilities else "softmax_cross_entropy"
    prediction, target = OVER_LAST_AXIS[name](shape)
    if rows:
        target = RNG.dirichlet(np.ones(shape[-1]), shape[:-1])

    def reference(p):
        p = torch.log(p) if probabilities else torch.log_softmax(p, -1)
        q = torch.tensor(target if rows else np.eye(shape[-1])[target])
        # PyTorch smooths logits only, so the definition is spelt out, and compared with PyTorch's own where it has one.
        return -(((1 - smoothing) * q + smoothing / shape[-1]) * p).sum(-1)

    expected, slope = torch_value_and_grad(torch, reference, prediction)
    if not probabilities and len(shape) == 2:
        own = torch.nn.functional.cross_entropy(
            torch.tensor(prediction), torch.tensor(target), reduction="none", label_smoothing=smoothing
        )
        np.testing.assert_allclose(expected, own.numpy(), rtol=1e-9)
    loss = partial(getattr(losses, name), label_smoothing=smoothing)
    np.testing.assert_allclose(loss(jnp.float32(prediction), target), expected, rtol=2e-5)
    ours = value_and_grad(loss, jnp.float32(prediction), target)[1]
    np.testing.assert_allclose(ours, slope, rtol=1e-4, atol=1e-6)


def test_kl_divergence_is_pytorchs_and_scipys(torch):
    prediction, target = OVER_LAST_AXIS["kl_divergence"]((6, 4))
    target[0] = [1, 0, 0, 0]
    reference = partial(torch.nn.functional.kl_div, target=torch.tensor(target), reduction="none")
    expected, slope = torch_value_and_grad(torch, lambda p: 4 * reference(p), prediction)  # the mean times 4: the sum
    np.testing.assert_allclose(expected, rel_entr(target, np.exp(prediction)).sum(-1), rtol=1e-9)
    np.testing.assert_allclose(losses.kl_divergence(jnp.float32(prediction), target), expected, rtol=1e-5)
    np.testing.assert_allclose(
        value_and_grad(losses.kl_divergence, jnp.float32(prediction), target)[1], slope, rtol=1e-5
    )


@pytest.mark.slow
def test_cosine_distance_is_pytorchs(torch):
    prediction, target = OVER_LAST_AXIS["cosine_distance"]((6, 2, 4))
    reference = partial(torch.nn.functional.cosine_similarity, x2=torch.tensor(target), dim=-1)
    expected, slope = torch_value_and_grad(torch, lambda p: 1 - reference(p), prediction)
    np.testing.assert_allclose(losses.cosine_distance(jnp.float32(prediction), target), expected, rtol=1e-5)
    ours = value_and_grad(losses.cosine_distance, jnp.float32(prediction), target)[1]
    np.testing.assert_allclose(ours, slope, rtol=1e-4, atol=1e-6)


def test_hinge_is_scikit_learns():
    prediction, target = SAME_SHAPE["hinge"]((50,))
    expected = sklearn.metrics.hinge_loss(target, prediction)
    np.testing.assert_allclose(losses.hinge(jnp.float32(prediction), target).mean(), expected, rtol=1e-6)
    slope = np.where(target * prediction < 1, -target, 0)
    np.testing.assert_array_equal(value_and_grad(losses.hinge, jnp.float32(prediction), target)[1], slope)


@pytest.mark.slow
def test_log_cosh_is_numpys_with_the_gradient_tanh():
    errors = np.array([-3.0, -0.5, 0.0, 1e-3, 2.0, 1e4])
    value, slope = (
        losses.log_cosh(jnp.float32(errors), 0 * errors),
        value_and_grad(losses.log_cosh, errors, 0 * errors)[1],
    )
    expected = np.logaddexp(errors, -errors) - np.log(2)
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(slope, np.tanh(errors), rtol=1e-6, atol=1e-7)
    assert jax.hessian(lambda e: losses.log_cosh(e, jnp.zeros(1)).sum())(jnp.zeros(1)).item() == pytest.approx(1.0)


def test_sigmoid_label_smoothing_moves_targets_towards_a_half():
    logits, target = jnp.array([-1.0, 2.0]), np.array([0, 1])
    smoothed = losses.sigmoid_cross_entropy(logits, target, label_smoothing=0.2)
    np.testing.assert_allclose(smoothed, losses.sigmoid_cross_entropy(logits, np.array([0.1, 0.9])), rtol=1e-6)
    p = jax.nn.sigmoid(logits)
    np.testing.assert_allclose(losses.binary_cross_entropy(p, target, label_smoothing=0.2), smoothed, rtol=1e-6)


# ---- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@settings(max_examples=4, deadline=None)
@given(shape=st.lists(st.integers(2, 4), min_size=2, max_size=4).map(tuple))
def test_one_loss_for_each_example_which_no_other_example_changes(name, shape):
    prediction, target = (jnp.asarray(a, jnp.float32 if a.dtype == float else int) for a in ALL[name](shape))
    loss = jax.jit(getattr(losses, name))
    together = loss(prediction, target)
    assert together.shape == shape[:1]
    alone = jax.jit(lambda p, t: [loss(p[i : i + 1], t[i : i + 1])[0] for i in range(shape[0])])(prediction, target)
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    if len(shape) > 2 or name in SAME_SHAPE:  # axes after the batch are averaged
        rows = jax.jit(jax.vmap(getattr(losses, name), in_axes=1))(prediction, target)
        np.testing.assert_allclose(together, rows.mean(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(shape=st.tuples(st.integers(1, 5), st.integers(2, 6)), smoothing=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_label_is_the_same_as_its_one_hot_row(shape, smoothing, seed):
    rng = np.random.default_rng(seed)
    logits, label = jnp.float32(rng.normal(size=shape)), rng.integers(0, shape[1], shape[0])
    for loss in (
        losses.softmax_cross_entropy,
        lambda p, t, **o: losses.categorical_cross_entropy(jax.nn.softmax(p), t, **o),
    ):
        both = jax.jit(partial(value_and_grad, partial(loss, label_smoothing=smoothing)))
        value, slope = both(logits, label)
        for rows in (np.eye(shape[1])[label], np.eye(shape[1], dtype=int)[label]):
            np.testing.assert_allclose(value, both(logits, rows)[0], rtol=1e-6)
            np.testing.assert_allclose(slope, both(logits, rows)[1], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_losses_can_be_jitted_mapped_and_differentiated_twice(name):
    prediction, target = (jnp.asarray(a, jnp.float32 if a.dtype == float else int) for a in ALL[name]((4, 3)))
    loss = getattr(losses, name)
    np.testing.assert_allclose(jax.jit(loss)(prediction, target), loss(prediction, target), rtol=1e-5, atol=1e-6)
    mapped = jax.vmap(loss, in_axes=(0, None))(jnp.stack([prediction, prediction]), target)
    np.testing.assert_allclose(mapped[1], loss(prediction, target), rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda p: loss(p, target).sum())
    hvp = jax.jvp(slope, (prediction,), (jnp.ones_like(prediction),))[1]
    transposed = jax.grad(lambda p: slope(p).sum())(prediction)
    assert np.isfinite(hvp).all()
    np.testing.assert_allclose(hvp, transposed, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_target_has_a_gradient_too(name):
    prediction, target = ALL[name]((4, 3))
    if target.ndim < 2:
        target = np.eye(3)[target]
    slope = jax.grad(lambda t: getattr(losses, name)(jnp.float32(prediction), t).sum())(jnp.float32(target))
    assert np.isfinite(slope).all()


@pytest.mark.slow
def test_options_may_be_tracers():
    logits, label = jnp.array([[1.0, 2.0], [0.5, -1.0]]), np.array([0, 1])
    for smoothing in (0.0, 0.3):
        traced = jax.jit(lambda s: losses.softmax_cross_entropy(logits, label, label_smoothing=s))(smoothing)
        np.testing.assert_allclose(
            traced, losses.softmax_cross_entropy(logits, label, label_smoothing=smoothing), rtol=1e-6
        )
    one_hot = np.eye(2)[label]
    for call in (
        lambda v: losses.huber(logits, one_hot, delta=v),
        lambda v: losses.sigmoid_cross_entropy(logits, one_hot, label_smoothing=v),
        lambda v: losses.binary_cross_entropy(jax.nn.sigmoid(logits), one_hot, label_smoothing=v, epsilon=v / 1e3),
        lambda v: losses.categorical_cross_entropy(jax.nn.softmax(logits), one_hot, label_smoothing=v, epsilon=v / 1e3),
        lambda v: losses.cosine_distance(logits, one_hot, epsilon=v),
    ):
        np.testing.assert_allclose(jax.jit(call)(0.2), call(0.2), rtol=1e-6)


def test_predictions_are_clipped_to_the_bit():
    """Also those that are no probabilities, such as logits by mistake; the slope is that of what was clipped to."""
    p = jnp.array([[-2.0], [3.0], [0.0], [1.0], [0.3]])
    inside = jnp.clip(p, 1e-7, 1 - 1e-7)
    for target in (0.0, 1.0):
        y = jnp.full((5, 1), target)
        found = losses.binary_cross_entropy(p, y)
        np.testing.assert_array_equal(found, losses.binary_cross_entropy(inside, y))
        assert np.isfinite(found).all()
        slope = jax.grad(lambda p, y=y: losses.binary_cross_entropy(p, y).sum())
        np.testing.assert_array_equal(slope(p), slope(inside))
    outside = jnp.array([[3.0, -2.0, 5.0]])
    np.testing.assert_allclose(losses.categorical_cross_entropy(outside, jnp.array([1])), -np.log(1e-7), 1e-6)


# ---- extremes --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_large_logits_are_exact_and_half_precision_is_computed_in_float32(dtype):
    logits = jnp.array([[1e4, 1e4 - 8.0, -1e4]], dtype)
    exact = log_softmax(np.asarray(logits, np.float64), -1)
    for label in range(3):
        value = losses.softmax_cross_entropy(logits, np.array([label]))
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, -exact[:, label], rtol=1e-6, atol=6e-8)
        slope = value_and_grad(losses.softmax_cross_entropy, logits, np.array([label]))[1]
        assert slope.dtype == dtype
        np.testing.assert_allclose(slope.astype(float), np.exp(exact) - np.eye(3)[label], rtol=1e-2, atol=1e-7)
    value = losses.sigmoid_cross_entropy(jnp.array([1e4, -1e4], dtype), np.array([0, 0]))
    np.testing.assert_allclose(value, [float(jnp.array(1e4, dtype)), 0.0])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_float32_of_the_rounded_input(name, dtype):
    prediction, target = ALL[name]((4, 3))
    prediction = jnp.asarray(prediction, dtype)
    loss = getattr(losses, name)
    assert loss(prediction, target).dtype == jnp.float32
    np.testing.assert_array_equal(loss(prediction, target), loss(prediction.astype(jnp.float32), target))


def test_squares_of_half_precision_do_not_overflow():
    assert losses.squared_error(jnp.array([1e3], jnp.float16), jnp.array([-1e3], jnp.float16)).item() == 4e6


def test_float64_stays_float64_under_x64():
    with jax.enable_x64(True):
        prediction, target = ALL["softmax_cross_entropy"]((4, 3))
        value = losses.softmax_cross_entropy(jnp.asarray(prediction), target)
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, -log_softmax(prediction, -1)[np.arange(4), target], rtol=1e-12)
        assert losses.squared_error(jnp.ones(2, jnp.float32), np.zeros(2)).dtype == jnp.float32


def test_probabilities_of_0_and_1_have_finite_losses_and_gradients_that_point_the_right_way():
    p, target = jnp.array([0.0, 1.0, 0.0, 1.0]), np.array([1, 0, 0, 1])
    value, slope = losses.binary_cross_entropy(p, target), value_and_grad(losses.binary_cross_entropy, p, target)[1]
    np.testing.assert_allclose(value, [-np.log(1e-7), -np.log(2.0**-23), 1e-7, 2.0**-23], rtol=1e-5)
    np.testing.assert_allclose(slope, [-1e7, 2.0**23, 1, -1], rtol=1e-5)
    rows = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    value, slope = value_and_grad(losses.categorical_cross_entropy, rows, np.array([0, 0]))
    np.testing.assert_allclose(value, -np.log(1e-7), rtol=1e-6)
    np.testing.assert_allclose(slope, [[-1e7, 0], [-1, 0]], rtol=1e-6)


@pytest.mark.slow
def test_a_class_ruled_out_by_an_infinite_logit_costs_nothing():
    logits = jnp.array([[1.0, 2.0, -jnp.inf]])
    expected = log_softmax([1.0, 2.0])
    for target in (np.array([0]), np.array([[1.0, 0.0, 0.0]])):
        value, slope = value_and_grad(losses.softmax_cross_entropy, logits, target)
        assert value == pytest.approx(-expected[0])
        np.testing.assert_allclose(slope, [[np.exp(expected[0]) - 1, np.exp(expected[1]), 0]], rtol=1e-5)
    assert losses.kl_divergence(jnp.array([[0.0, -jnp.inf]]), np.array([[1.0, 0.0]])).item() == 0


@pytest.mark.slow
def test_vectors_of_zeros_are_at_distance_1_with_a_finite_gradient():
    value, slope = value_and_grad(losses.cosine_distance, jnp.zeros((1, 3)), np.ones((1, 3)))
    assert value == 1
    assert np.isfinite(slope).all()


def test_the_gradient_of_the_absolute_error_at_0_is_0():
    assert value_and_grad(losses.absolute_error, jnp.ones(1), np.ones(1))[1].item() == 0


@pytest.mark.parametrize("label", [-1, -100, 3])
def test_a_traced_label_out_of_range_gives_nan_for_its_example_alone(label):
    value = jax.jit(losses.softmax_cross_entropy)(jnp.zeros((2, 3)), jnp.array([label, 0]))
    assert np.isnan(value[0])
    assert value[1].item() == pytest.approx(np.log(3))


# ---- what is refused -------------------------------------------------------------------------------------------------

LOGITS = np.zeros((4, 3), np.float32)
COLUMN, ROW = np.zeros((4, 1), np.float32), np.zeros(4, np.float32)
REFUSED = [  # loss, prediction, target, error, message
    ("squared_error", COLUMN, ROW, ValueError,
     "squared_error: expected a target of the prediction's shape (4, 1), got (4,); add the last axis: target[..., N"),
    ("squared_error", ROW, COLUMN, ValueError, "shape (4,), got (4, 1); drop the last axis: target[..., 0]"),
    ("squared_error", LOGITS, ROW, ValueError, "(4, 3), got (4,); give one target for each output, or for int"),
    ("squared_error", LOGITS, LOGITS.T, ValueError, "(4, 3), got (3, 4); make them equal, for shapes are never br"),
    ("squared_error", np.float32(1), np.float32(1), ValueError, "at least 1 axes, (batch, ...), of the prediction"),
    ("squared_error", np.zeros(4, int), ROW, TypeError, "expected a floating input, got int64(4,); pass what the"),
    ("squared_error", ROW, np.array(list("abcd")), TypeError, "expected a target of numbers, got <U1(4,); encode it"),
    ("cosine_distance", ROW, ROW, ValueError, "at least 2 axes, (batch, ..., n), of the prediction, got shape (4,)"),
    ("softmax_cross_entropy", LOGITS, ROW, TypeError,
     "softmax_cross_entropy: expected integer labels, got float32(4,); convert them: target.astype(int)"),
    ("softmax_cross_entropy", LOGITS, ROW == 0, TypeError, "expected integer labels, got bool(4,)"),
    ("softmax_cross_entropy", LOGITS, np.zeros((4, 1), int), ValueError,
     "expected integer labels (4,) or rows (4, 3), got a target of shape (4, 1); drop the last axis: target[..., 0]"),
    ("softmax_cross_entropy", LOGITS, np.zeros(5, int), ValueError, "a target of shape (5,); give one label for"),
    ("softmax_cross_entropy", LOGITS, np.array([1, 2, 3, 1]), ValueError,
     "expected labels from 0 to 2 for 3 classes, got labels from 1 to 3; count classes from 0"),
    ("softmax_cross_entropy", LOGITS, np.array([0, 2, -1, 1]), ValueError, "got labels from -1 to 2"),
    ("softmax_cross_entropy", LOGITS, np.full((4, 3), 0.5), ValueError,
     "expected rows of probabilities that sum to 1, got a row that sums to 1.5, with values from 0.5 to 0.5; div"),
    ("softmax_cross_entropy", LOGITS, np.array([[2.0, -1, 0]] * 4), ValueError, "sums to 1, with values from -1.0 to "),
    ("softmax_cross_entropy", LOGITS, np.full((4, 3), np.nan), ValueError, "a row that sums to nan"),
    ("softmax_cross_entropy", COLUMN, ROW.astype(int), ValueError,
     "over at least 2 classes, got shape (4, 1); use sigmoid_cross_entropy or binary_cross_entropy for one output"),
    ("softmax_cross_entropy", ROW, ROW.astype(int), ValueError, "got shape (4,); use sigmoid_cross_entropy"),
    ("categorical_cross_entropy", LOGITS, np.array([0, 0, 0, 7]), ValueError, "categorical_cross_entropy: expected la"),
    ("kl_divergence", LOGITS, LOGITS, ValueError, "kl_divergence: expected rows of probabilities that sum to 1"),
    ("sigmoid_cross_entropy", ROW, ROW - 1, ValueError,
     "sigmoid_cross_entropy: expected targets from 0 to 1, got values from -1.0 to -1.0; map the two classes to 0 and"),
    ("binary_cross_entropy", ROW, ROW + 2, ValueError, "expected targets from 0 to 1, got values from 2.0 to 2.0"),
    ("binary_cross_entropy", COLUMN, ROW, ValueError, "(4, 1), got (4,); add the last axis: target[..., None]"),
    ("hinge", ROW, np.array([0, 1, 1, 0]), ValueError,
     "hinge: expected targets -1 and 1, got values from 0 to 1; map 0 and 1 to them: 2 * target - 1"),
    ("hinge", ROW, ROW == 0, TypeError, "hinge: expected targets -1 and 1, got booleans"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "prediction", "target", "error", "message"), REFUSED)
def test_what_is_wrong_is_refused_with_a_fix(name, prediction, target, error, message):
    loss = getattr(losses, name)
    numbers = target.dtype.kind in "biuf"
    for given_target in (target, jnp.asarray(target)) if numbers and target.dtype == np.float32 else (target,):
        with pytest.raises(error) as caught:
            loss(prediction, given_target)
        assert message in str(caught.value)
        # As `fit` asks before it compiles: the predictions are tracers, the targets known.
        with pytest.raises(error) as caught:
            jax.eval_shape(lambda p: loss(p, given_target), prediction)  # noqa: B023
        assert message.replace("int64", "int32") in str(caught.value)


@pytest.mark.parametrize("name", ALL)
def test_known_targets_pass_under_eval_shape(name):
    prediction, target = ALL[name]((4, 3))
    for known in (target, jnp.asarray(target), target.tolist()):
        shape = jax.eval_shape(lambda p: getattr(losses, name)(p, known), jnp.float32(prediction)).shape  # noqa: B023
        assert shape == (4,)


def test_values_of_traced_targets_are_not_looked_at():
    jax.eval_shape(losses.sigmoid_cross_entropy, ROW, ROW + 7)
    jax.eval_shape(losses.softmax_cross_entropy, LOGITS, LOGITS)
    jax.eval_shape(losses.hinge, ROW, ROW)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_rows_rounded_to_half_precision_still_sum_to_1(dtype):
    rows = jnp.asarray(RNG.dirichlet(np.ones(1000), 20), dtype)
    assert losses.softmax_cross_entropy(jnp.zeros((20, 1000)), rows).shape == (20,)
    thirds = jnp.full((1, 3), 1 / 3, dtype)
    assert losses.softmax_cross_entropy(jnp.zeros((1, 3)), thirds).shape == (1,)


@pytest.mark.slow
def test_empty_batches_have_no_losses():
    for name in ALL:
        prediction, target = (a[:0] for a in ALL[name]((4, 3)))
        assert getattr(losses, name)(jnp.float32(prediction), target).shape == (0,)


@pytest.mark.parametrize("call", [
    lambda: losses.softmax_cross_entropy(LOGITS, np.zeros(4, int), label_smoothing=1.5),
    lambda: losses.sigmoid_cross_entropy(ROW, ROW, label_smoothing=-0.1),
])  # fmt: skip
def test_smoothing_outside_0_to_1_is_refused(call):
    with pytest.raises(ValueError, match=r"expected label_smoothing from 0 to 1, got"):
        call()


def test_a_delta_of_0_is_refused():
    with pytest.raises(ValueError, match=r"huber: expected delta above 0, got 0; choose where"):
        losses.huber(ROW, ROW, delta=0)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="label_smooting"):
        losses.softmax_cross_entropy(LOGITS, np.zeros(4, int), label_smooting=0.1)
