"""Penalties against PyTorch and hand computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnn import penalties

RNG = np.random.default_rng(0)
PARAMS = jax.tree.map(jnp.float32, {
    "dense_0": {"kernel": RNG.normal(size=(3, 2)), "bias": RNG.normal(size=2)},
    "block": {"conv_0": {"kernel": RNG.normal(size=(2, 2, 3, 4))}, "layer_norm_0": {"scale": RNG.normal(size=4)}},
})  # fmt: skip
KERNELS = [PARAMS["dense_0"]["kernel"], PARAMS["block"]["conv_0"]["kernel"]]


def test_kernels_are_penalized_unless_patterns_say_otherwise():
    np.testing.assert_allclose(penalties.l1(0.1)(PARAMS), 0.1 * sum(np.abs(w).sum() for w in KERNELS), rtol=1e-6)
    np.testing.assert_allclose(penalties.l2(0.1)(PARAMS), 0.1 * sum((w**2).sum() for w in KERNELS), rtol=1e-6)
    bias, scale = PARAMS["dense_0"]["bias"], PARAMS["block"]["layer_norm_0"]["scale"]
    both = penalties.l2(2.0, "dense_0/bias", "**/scale", "**/scale")(PARAMS)
    np.testing.assert_allclose(both, 2 * ((bias**2).sum() + (scale**2).sum()), rtol=1e-6)
    np.testing.assert_allclose(penalties.l2(1.0)({"kernel": 2 * jnp.ones(3)}), 12)


def test_the_gradient_of_l2_is_pytorchs_weight_decay_of_twice_the_strength(torch):
    weight = torch.nn.Parameter(torch.tensor(np.asarray(KERNELS[0])))
    weight.grad = torch.zeros_like(weight)
    torch.optim.SGD([weight], lr=1.0, weight_decay=0.02).step()
    slope = jax.grad(penalties.l2(0.01))(PARAMS)["dense_0"]["kernel"]
    np.testing.assert_allclose(KERNELS[0] - slope, weight.detach().numpy(), rtol=1e-6)


def test_the_gradient_of_l1_is_the_sign_and_0_at_0():
    params = {"kernel": jnp.array([-2.0, 0.0, -0.0, 3.0])}
    np.testing.assert_array_equal(jax.grad(penalties.l1(0.5))(params)["kernel"], [-0.5, 0.0, 0.0, 0.5])
    assert jax.grad(penalties.l1(0.5))(PARAMS)["dense_0"]["bias"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("penalty", [penalties.l1, penalties.l2])
def test_the_strength_may_be_a_tracer(penalty):
    mapped = jax.jit(jax.vmap(lambda s: penalty(s)(PARAMS)))(jnp.array([0.0, 0.1, 2.0]))
    np.testing.assert_allclose(mapped, [penalty(s)(PARAMS) for s in (0.0, 0.1, 2.0)], rtol=1e-6)
    assert jax.grad(lambda s: penalty(s)(PARAMS))(0.1) == pytest.approx(penalty(1.0)(PARAMS).item())


def test_half_precision_is_summed_in_float32():
    total = penalties.l2(1.0)({"kernel": jnp.full(10, 1000, jnp.float16)})
    assert total.dtype == jnp.float32
    assert total.item() == 1e7


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: penalties.l2(0.1, "**/kernal")(PARAMS),
            ValueError,
            "l2: expected a pattern that matches a path, got '**/k",
        ),
        (
            lambda: penalties.l1(0.1)({"scale": jnp.ones(2)}),
            ValueError,
            "l1: expected a pattern that matches a path, got '**",
        ),
        (lambda: penalties.l1(-0.1), ValueError, "l1: expected strength from 0.0 to inf, got -0.1"),
        (
            lambda: penalties.l2("**/bias"),
            TypeError,
            "l2: expected a strength, then patterns, got str '**/bias'; begin with",
        ),
        (lambda: penalties.l2(PARAMS), TypeError, "l2: expected a strength, then patterns, got dict"),
    ],
)
def test_what_is_wrong_is_refused(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
