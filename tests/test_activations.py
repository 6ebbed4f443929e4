"""The table of activations, each against PyTorch where PyTorch has it and against NumPy where it does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnn import layers
from funcnn.core import Layer

# Corners, saturation, and what lies between.
X = np.concatenate([np.linspace(-8, 8, 200), [-100, -20, -3, -1, 0, 1, 3, 6, 20, 80]]).astype(np.float32).reshape(7, 30)

IN_TORCH = {
    "relu": (layers.relu, "relu", {}),
    "relu6": (layers.relu6, "relu6", {}),
    "selu": (layers.selu, "selu", {}),
    "gelu": (layers.gelu, "gelu", {}),
    "gelu_tanh": (layers.gelu_tanh, "gelu", {"approximate": "tanh"}),
    "silu": (layers.silu, "silu", {}),
    "mish": (layers.mish, "mish", {}),
    "hard_silu": (layers.hard_silu, "hardswish", {}),
    "sigmoid": (layers.sigmoid, "sigmoid", {}),
    "log_sigmoid": (layers.log_sigmoid, "logsigmoid", {}),
    "hard_sigmoid": (layers.hard_sigmoid, "hardsigmoid", {}),
    "tanh": (layers.tanh, "tanh", {}),
    "hard_tanh": (layers.hard_tanh, "hardtanh", {}),
    "softplus": (layers.softplus, "softplus", {"threshold": 100}),
    "softsign": (layers.softsign, "softsign", {}),
    "softmax": (layers.softmax, "softmax", {"dim": -1}),
    "log_softmax": (layers.log_softmax, "log_softmax", {"dim": -1}),
    "glu": (layers.glu, "glu", {}),
    "leaky_relu": (layers.leaky_relu(), "leaky_relu", {}),
    "leaky_relu(0.3)": (layers.leaky_relu(0.3), "leaky_relu", {"negative_slope": 0.3}),
    "elu": (layers.elu(), "elu", {}),
    "elu(0.5)": (layers.elu(0.5), "elu", {"alpha": 0.5}),
    "celu": (layers.celu(), "celu", {}),
    "celu(0.5)": (layers.celu(0.5), "celu", {"alpha": 0.5}),
}

IN_NUMPY = {
    "sin": (layers.sin, np.sin, np.cos),
    "cos": (layers.cos, np.cos, lambda x: -np.sin(x)),
    "exp": (layers.exp, np.exp, np.exp),
    "absolute": (layers.absolute, np.abs, np.sign),
    "square": (layers.square, np.square, lambda x: 2 * x),
    "squareplus": (
        layers.squareplus(2.0),
        lambda x: (x + np.sqrt(x**2 + 2)) / 2,
        lambda x: (1 + x / np.sqrt(x**2 + 2)) / 2,
    ),
    "identity": (layers.identity, lambda x: x, np.ones_like),
}


def computed(layer, x):
    return jax.jit(
        jax.value_and_grad(lambda x: (lambda y: (jnp.sum(y * y), y))(layer.apply({}, {}, x)[0]), has_aux=True)
    )(x)


def test_every_activation_has_an_oracle():
    tested = {name.split("(")[0] for name in (*IN_TORCH, *IN_NUMPY)}
    values = {name for name in layers.__all__ if isinstance(getattr(layers, name), Layer)}
    assert values <= tested | {"flatten", "global_avg_pool", "global_max_pool"}


@pytest.mark.parametrize("name", IN_TORCH)
def test_it_is_that_of_pytorch_and_so_is_its_gradient(torch, name):
    layer, function, options = IN_TORCH[name]
    given = torch.tensor(X, requires_grad=True)
    expected = getattr(torch.nn.functional, function)(given, **options)
    (expected * expected).sum().backward()
    (_, y), gradient = computed(layer, X)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=2e-5, atol=1e-6)
    away = ~np.isin(X, [-3, 0, 3, 6, -1, 1])  # corners, where each library chooses a slope of its own
    np.testing.assert_allclose(gradient[away], given.grad.numpy()[away], rtol=5e-5, atol=5e-6)


@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 5, 6), (1, 6), (6,)])
def test_prelu_and_its_gradients_are_those_of_pytorch(torch, shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    layer = layers.prelu(alpha_init=jax.nn.initializers.normal(1.0))
    params, state = layer.init(jax.random.key(0), x)
    alpha, leaf = (torch.tensor(np.array(a), requires_grad=True) for a in (params["alpha"], x))
    rows = leaf.reshape(-1, 6)  # PyTorch has the features second
    expected = torch.nn.functional.prelu(rows, alpha).reshape(shape)
    torch.sin(expected).sum().backward()

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def gradients_and_output(params, x):
        y, _ = layer.apply(params, state, x)
        return jnp.sin(y).sum(), y

    (gradient, x_gradient), y = gradients_and_output(params, x)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(x_gradient, leaf.grad.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient["alpha"], alpha.grad.numpy(), rtol=1e-5, atol=1e-5)
    half, wide = jnp.asarray(x, jnp.bfloat16), np.float64(jnp.asarray(x, jnp.bfloat16))
    slopes = np.float64(params["alpha"].astype(jnp.bfloat16))
    y, _ = layer.apply(params, state, half)
    np.testing.assert_allclose(np.float64(y), np.where(wide >= 0, wide, slopes * wide), rtol=2**-8)


def test_prelu_starts_as_in_pytorch_and_refuses_other_features(torch):
    params, state = layers.prelu().init(jax.random.key(0), jnp.ones((2, 3)))
    np.testing.assert_array_equal(params["alpha"], torch.nn.PReLU(3).weight.detach().numpy())
    with pytest.raises(
        ValueError, match=r"^prelu: expected 3 input features, as its alpha \(3,\) has, got 4 in an input of shape"
    ):
        layers.prelu().apply(params, state, jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"^prelu: expected at least 1 axes"):
        layers.prelu().init(jax.random.key(0), jnp.ones(()))


@pytest.mark.parametrize("name", IN_NUMPY)
def test_it_is_that_of_numpy_and_so_is_its_gradient(name):
    layer, function, derivative = IN_NUMPY[name]
    x = X[np.abs(X) < 30].astype(np.float64)
    (_, y), gradient = computed(layer, x.astype(np.float32))
    np.testing.assert_allclose(y, function(x), rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, 2 * function(x) * derivative(x), rtol=5e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_softmax_in_half_precision_is_rounded_once(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 300)), dtype)
    whole = np.exp(np.float64(x))
    whole /= whole.sum(-1, keepdims=True)
    for layer, expected in ((layers.softmax, whole), (layers.log_softmax, np.log(whole))):
        y, _ = layer.apply({}, {}, x)
        assert y.dtype == dtype
        # One rounding is half a unit in the last place; softmax in float16 ends where numbers lose bits, at 6e-5.
        np.testing.assert_allclose(np.float64(y), expected, rtol=0.501 * float(jnp.finfo(dtype).eps), atol=3e-8)


def test_softmax_survives_large_numbers():
    x = jnp.array([[1e30, 0.0, -1e30]])
    np.testing.assert_array_equal(layers.softmax.apply({}, {}, x)[0], [[1, 0, 0]])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_no_gradient_is_nan_far_out(dtype):
    x = jnp.array([-6e4, -300.0, -40.0, 0.0, 40.0, 300.0, 6e4, 1.0], dtype)

    @jax.jit
    def slopes(x):
        def total(x):
            outputs = {name: layer.apply({}, {}, x)[0] for name, (layer, *_) in {**IN_TORCH, **IN_NUMPY}.items()}
            return jax.tree.map(lambda y: y.astype(jnp.float32).sum(), outputs)

        names = jax.eval_shape(total, x)
        return {name: jax.grad(lambda x, name=name: total(x)[name])(x) for name in names}

    assert not [name for name, slope in slopes(x).items() if np.isnan(slope).any()]


def test_hyperparameters_and_shapes_are_checked():
    with pytest.raises(ValueError, match=r"celu: expected alpha above 0, got 0\.0; x is divided by it"):
        layers.celu(0.0)
    with pytest.raises(ValueError, match="squareplus: expected roundness from"):
        layers.squareplus(-1.0)
    with pytest.raises(
        ValueError, match=r"glu: expected an even number of features, got shape \(4, 3\); give the layer before"
    ):
        layers.glu.apply({}, {}, jnp.ones((4, 3)))
    for layer in (layers.softmax, layers.log_softmax, layers.glu):
        with pytest.raises(ValueError, match=rf"{layer.kind}: expected at least 1 axes"):
            layer.init(jax.random.key(0), jnp.ones(()))
