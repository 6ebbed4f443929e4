"""Small products written out: the numbers, every derivative and batch against matrix products, and when they are."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from funcnn import inspection, layers, primitives, small_products

SETTING = f"--xla_backend_extra_options={small_products.FLAG}=1000000"
SIZES = (1, 2, 3, 5, 8, 9, 16, 33)


@pytest.fixture(autouse=True)
def written_out(monkeypatch):
    """The setting as ``fuse_small_loops`` leaves it: what is chosen is read from the environment."""
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {SETTING}")
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
    jax.clear_caches()  # what was traced under the setting


def matrices(m, k, n, *batch, dtype=np.float64):
    random = np.random.default_rng(m + 100 * k + 10_000 * n)
    return random.normal(size=(*batch, m, k)).astype(dtype), random.normal(size=(*batch, k, n)).astype(dtype)


def names(f, *args):
    return str(jax.make_jaxpr(f)(*args))


# ---- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [*SIZES, 7, 17, 100, 131, 136, 300])
def test_it_is_the_product(k):
    for m, n in itertools.product((1, 2, 9, 40), (1, 3, 16)):
        x, w = matrices(m, k, n)
        np.testing.assert_allclose(small_products.product(x, w), x @ w, rtol=1e-12, atol=1e-13)


def test_float32_is_as_exact_as_a_matrix_product():
    for m, k, n in ((100, 16, 8), (16, 100, 8), (4, 2, 4), (8, 300, 1)):
        x, w = matrices(m, k, n, dtype=np.float32)
        found, exact = small_products.product(x, w), x.astype(np.float64) @ w.astype(np.float64)
        assert found.dtype == jnp.float32
        bound = k * np.finfo(np.float32).eps * (np.abs(x) @ np.abs(w))
        assert (np.abs(found - exact) <= bound).all()


def test_numbers_that_are_none_reach_what_depends_on_them():
    x, w = matrices(5, 20, 3)
    x[2, 7] = np.nan
    found = np.isnan(small_products.product(x, w))
    assert found[2].all()
    assert found.sum() == 3


# ---- derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 2, 4), (20, 5, 2), (2, 19, 3), (2, 3, 17), (1, 1, 1), (6, 34, 2)])
def test_it_has_every_derivative(shape):
    x, w = matrices(*shape)
    check_grads(lambda a, b: jnp.tanh(small_products.product(a, b)), (x, w), order=2, modes=["fwd", "rev"])


def test_derivatives_are_those_of_a_matrix_product():
    x, w = matrices(7, 18, 3)

    def of(product):
        def loss(a, b):
            return jnp.sum(jnp.sin(product(a, b)) ** 2)

        hessian = jax.hessian(loss, argnums=(0, 1))(x, w)
        tangent = jax.jvp(jax.grad(loss), (x, w), (x + 1, w - 1))
        return jax.grad(loss, argnums=(0, 1))(x, w), hessian, tangent, jax.linearize(loss, x, w)[1](w.T[:1] + x, w)

    for found, expected in zip(*map(jax.tree.leaves, (of(small_products.product), of(jnp.matmul))), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11)


def test_gradients_are_written_out_as_well():
    x, w = matrices(10, 4, 3)
    text = names(jax.grad(lambda a, b: small_products.product(a, b).sum(), argnums=(0, 1)), x, w)
    assert text.count("small_product") >= 2
    assert "dot_general" not in text


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0), (1, 2), (2, None), (None, 1), (None, 2)])
def test_it_is_mapped_over_any_axis(axes):
    x, w = matrices(6, 5, 4, 3)
    x = np.moveaxis(x, 0, axes[0]) if axes[0] is not None else x[0]
    w = np.moveaxis(w, 0, axes[1]) if axes[1] is not None else w[0]

    def of(product):
        value = jax.vmap(product, in_axes=axes)(x, w)
        slopes = jax.grad(lambda a, b: jnp.sum(jax.vmap(product, in_axes=axes)(a, b) ** 2), argnums=(0, 1))(x, w)
        return value, *slopes

    for found, expected in zip(of(small_products.product), of(jnp.matmul), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_maps_in_maps_and_gradients_of_each():
    x, w = matrices(4, 5, 3, 2, 3)

    def of(product):
        slope = jax.grad(lambda a, b: jnp.sum(jnp.cos(product(a, b))), argnums=1)
        return jax.vmap(jax.vmap(slope))(x, w), jax.lax.map(lambda pair: jax.vmap(slope)(*pair), (x, w))

    for found, expected in zip(of(small_products.product), of(jnp.matmul), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_many_members_side_by_side_are_a_product_of_a_library():
    x, w = matrices(100, 16, 8, 30)
    assert "small_product" not in names(jax.vmap(small_products.product), x, w)
    assert "small_product" not in names(jax.vmap(small_products.product, in_axes=(0, None)), x, w[0])


# ---- when ------------------------------------------------------------------------------------------------------------


def test_small_products_are_written_out_where_the_setting_is_made(monkeypatch):
    x, w = matrices(4, 2, 3)
    assert "small_product" in names(primitives.matmul, x, w)
    assert "small_product" in names(primitives.matmul, x[None], w)
    np.testing.assert_allclose(primitives.matmul(x[None], w), (x @ w)[None], rtol=1e-12)
    monkeypatch.setenv("XLA_FLAGS", "")
    jax.clear_caches()
    assert "small_product" not in names(primitives.matmul, x, w)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((64, 65, 16), "float32"),
        ((0, 2, 3), "float32"),
        ((4, 0, 3), "float32"),
        ((4, 2, 3), "bfloat16"),
        ((4, 2, 3), "int32"),
    ],
)
def test_other_products_are_not(shape, dtype):
    x, w = (jnp.asarray(a).astype(dtype) for a in matrices(*shape))
    assert "small_product" not in names(primitives.matmul, x, w)
    assert primitives.matmul(x, w).shape == (shape[0], shape[2])


def test_nor_where_a_type_says_how_an_array_lies_on_devices():
    """There the primitive would have to say the same of what it makes."""
    x, w = (jnp.asarray(a) for a in matrices(4, 2, 3))
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def spread(x, w):
        return jax.shard_map(primitives.matmul, mesh=mesh, in_specs=(spec("d"), spec()), out_specs=spec("d"))(x, w)

    assert "small_product" in names(primitives.matmul, x, w)
    assert "small_product" not in names(spread, x, w)
    slope = jax.grad(lambda w: spread(x, w).sum())(w)
    np.testing.assert_allclose(slope, jax.grad(lambda w: (x @ w).sum())(w), rtol=1e-6)
    explicit = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    placed = jax.device_put(x, jax.sharding.NamedSharding(explicit, spec("d")))
    with jax.set_mesh(explicit):
        assert "small_product" not in names(primitives.matmul, placed, w)


def test_a_table_counts_them(monkeypatch):
    x = matrices(10, 2, 3)[0].astype(np.float32)
    model = layers.dense(16)
    with_it = inspection.summary(model, x)
    monkeypatch.setenv("XLA_FLAGS", "")
    jax.clear_caches()
    without = inspection.summary(model, x)
    assert (with_it.forward, with_it.backward) == (without.forward, without.backward)
    assert without.forward > 10 * 2 * 16 * 2


def test_nor_on_other_platforms(monkeypatch):
    monkeypatch.setattr(primitives, "platform", lambda: "gpu")
    assert "small_product" not in names(primitives.matmul, *matrices(4, 2, 3))


# ---- whole runs, in processes that make the setting before JAX starts ------------------------------------------------

PROGRAM = """
import sys
from funcnn import training
if sys.argv[1] == "fused":
    training.fuse_small_loops()
import jax, numpy as np, optax
from funcnn import layers, losses, models
random = np.random.default_rng(0)
x = random.normal(size=(100, 2)).astype(np.float32)
y = (x[:, :1] * x[:, 1:] > 0).astype(np.float32)
trainer = training.supervised(models.mlp([16, 8], 1), losses.sigmoid_cross_entropy, optax.adam(0.01))
options = {"key": jax.random.key(0), "epochs": 300, "batch_size": None}
run = jax.jit(lambda x, y: training.run(trainer, (x, y), **options))
fitted = training.fit(trainer, (x, y), progress=False, **options)
text = run.lower(x, y).compile().as_text()
bits = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
xor = layers.serial(layers.dense(4), layers.tanh, layers.dense(4), layers.sigmoid, layers.dense(1), layers.sigmoid)

def of_xor(rate):
    line = training.supervised(xor, losses.squared_error, optax.sgd(rate))
    return training.run(line, (bits, (bits[:, :1] != bits[:, 1:]).astype(np.float32)), **options).history

others = [jax.jit(of_xor), jax.jit(lambda rates: jax.lax.map(of_xor, rates))]
given = np.float32(0.4), np.linspace(0.1, 1, 8, dtype=np.float32)
texts = [text, *(other.lower(rate).compile().as_text() for other, rate in zip(others, given))]
print(*("kind=kCustom" in each or " dot(" in each for each in texts))
losses = [np.asarray(result.history["loss"])[[0, 50, -1]] for result in (run(x, y), fitted)]
print("kind=kCustom" in text or " dot(" in text, *losses[0], *losses[1])
"""


@pytest.mark.slow
def test_a_run_is_one_kernel_and_the_same_to_rounding():
    found = {}
    for setting in ("fused", "plain"):
        environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(Path(__file__).parent.parent)}
        command = [sys.executable, "-c", PROGRAM, setting]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        called, last = done.stdout.splitlines()
        # Whether a library is called, in a run of moons, in one of XOR, in a map over runs of XOR.
        assert called.split() == [str(setting == "plain")] * 3
        kernel, *losses = last.split()
        found[setting] = kernel, np.array(losses, float)
    assert (found["fused"][0], found["plain"][0]) == ("False", "True")  # whether a library is called
    fused, plain = found["fused"][1], found["plain"][1]
    np.testing.assert_array_equal(plain[:3], plain[3:])  # the law: run and fit, bit for bit
    np.testing.assert_allclose(fused[:3], fused[3:], rtol=1e-3)  # and to rounding where the loop is one kernel
    np.testing.assert_allclose(fused, plain, rtol=1e-3)
    assert plain[2] < 0.5 * plain[0]


@pytest.mark.parametrize("columns", [2, 7])
def test_matrices_that_do_not_meet_are_refused_as_ever(columns):
    with pytest.raises(TypeError, match="contracting dimension"):
        primitives.matmul(np.ones((4, 3)), np.ones((columns, 5)))
