"""Adaptive pooling against PyTorch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quickly_compiled
from hypothesis import given, settings
from hypothesis import strategies as st

from funcnn import layers


@quickly_compiled()
def agrees_with_torch(torch, kind, shape, output_size, ties):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    x = np.round(x) if ties else x
    layer = getattr(layers, f"adaptive_{kind}_pool")(output_size)
    weigh = np.random.default_rng(1).normal(size=(shape[0], *output_size, shape[-1])).astype(np.float32)

    @jax.jit
    def output_and_gradient(x):
        y, back = jax.vjp(lambda x: layer.apply({}, {}, x)[0], x)
        return y, *back(weigh)

    y, gradient = output_and_gradient(x)
    leaf = torch.tensor(x, requires_grad=True)
    form = getattr(torch.nn.functional, f"adaptive_{kind}_pool{len(output_size)}d")
    expected = torch.movedim(form(torch.movedim(leaf, -1, 1), output_size), 1, -1)
    (expected * torch.tensor(weigh)).sum().backward()
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize(
    ("shape", "output_size"),
    [((2, 7, 10, 3), (3, 5)), ((1, 4, 2), (6,)), ((2, 6, 5, 2), (4, 1)), ((1, 3, 5, 4, 2), (2, 5, 3))],
)
def test_adaptive_pooling_and_its_gradient_are_those_of_pytorch(torch, kind, shape, output_size):
    agrees_with_torch(torch, kind, shape, output_size, ties=True)


@pytest.mark.slow
@settings(max_examples=25)
@given(data=st.data(), rank=st.integers(1, 3), ties=st.booleans())
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_adaptive_pooling_is_that_of_pytorch_for_all_sizes(torch, kind, data, rank, ties):
    sizes, output_size = (data.draw(st.tuples(*[st.integers(1, 9)] * rank)) for _ in range(2))
    agrees_with_torch(torch, kind, (data.draw(st.integers(1, 2)), *sizes, 2), output_size, ties)


def test_half_precision_is_rounded_once():
    x = jnp.asarray(np.random.default_rng(0).normal(60, 20, (2, 50, 70, 3)), jnp.bfloat16)
    y, _ = layers.adaptive_avg_pool((1, 3)).apply({}, {}, x)
    wide = np.float64(x)
    expected = np.stack([wide[:, :, a:b].mean((1, 2)) for a, b in ((0, 24), (23, 47), (46, 70))], 1)[:, None]
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(y), expected, rtol=2**-8)


@pytest.mark.slow
def test_a_number_means_the_same_in_each_axis_and_whole_numbers_stay_whole():
    y, _ = layers.adaptive_max_pool(2).apply({}, {}, np.arange(35, dtype=np.uint8).reshape(1, 5, 7, 1))
    assert y.dtype == np.uint8
    np.testing.assert_array_equal(y[0, :, :, 0], [[17, 20], [31, 34]])


def test_wrong_arguments_and_inputs_are_refused():
    with pytest.raises(ValueError, match=r"^adaptive_avg_pool: expected output_size of at least 1, got 0"):
        layers.adaptive_avg_pool((2, 0))
    for kind in ("adaptive_avg_pool", "adaptive_max_pool"):
        layer = getattr(layers, kind)((2, 2))
        for shape, message in (
            ((2, 9, 3), "expected (batch, *spatial, features) with 2 spatial axes, got shape (2, 9, 3); if the axis"),
            ((2, 0, 3, 4), "expected spatial axes that are not empty, got shape (2, 0, 3, 4); pass a larger input"),
        ):
            with pytest.raises(ValueError, match="^" + re.escape(f"{kind}: {message}")):
                layer.init(jax.random.key(0), jnp.ones(shape))
