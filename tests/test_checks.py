"""Every check: what passes, and the message of what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnn import checks


def test_the_format_is_where_expected_got_and_fix():
    with pytest.raises(TypeError) as caught:
        checks.fail("here", "this", "that", "do so", TypeError)
    assert str(caught.value) == "here: expected this, got that; do so"


def test_only_a_tracer_is_not_concrete():
    seen = []
    jax.jit(lambda rate: seen.append(checks.is_concrete(rate)) or rate)(0.5)
    assert seen == [False]
    assert all(checks.is_concrete(value) for value in (0.5, np.float32(1), jnp.ones(()), None))


@pytest.mark.parametrize("value", [3, np.int64(3), np.array(3), jnp.array(3)])
def test_a_count_comes_back_as_an_int(value):
    count = checks.expect_count("pool", "size", value)
    assert count == 3
    assert type(count) is int


@pytest.mark.parametrize("value", [True, 3.0, "3", None, np.array([1.5])])
def test_what_is_not_a_whole_number_is_no_count(value):
    with pytest.raises(TypeError, match=r"^pool: expected size as a whole number, got .*; pass an int$"):
        checks.expect_count("pool", "size", value)


def test_a_traced_count_is_refused_before_a_shape_depends_on_it():
    with pytest.raises(TypeError, match="pass an int, for it has to be known before compilation"):
        jax.jit(lambda n: checks.expect_count("pool", "size", n))(3)


def test_a_count_has_a_minimum():
    assert checks.expect_count("pool", "size", 0, minimum=0) == 0
    with pytest.raises(ValueError, match=r"^pool: expected size of at least 1, got 0; "):
        checks.expect_count("pool", "size", 0)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, np.float32(1)])
def test_both_ends_of_a_range_are_in_it(value):
    checks.expect_between("dropout", "rate", value, 0.0, 1.0)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_out_of_range(value):
    with pytest.raises(ValueError, match=r"^dropout: expected rate from 0.0 to 1.0, got .*; choose rate in this range"):
        checks.expect_between("dropout", "rate", value, 0.0, 1.0)


def test_the_range_of_a_tracer_is_not_asked():
    assert jax.jit(lambda rate: checks.expect_between("dropout", "rate", rate, 0.0, 1.0) or rate)(7.0) == 7.0


def test_options():
    checks.expect_option("fit", "mode", "max", ("min", "max"))
    with pytest.raises(ValueError, match=r"^fit: expected mode to be one of \['min', 'max'\], got 'Max'; "):
        checks.expect_option("fit", "mode", "Max", ("min", "max"))


def test_rank():
    checks.expect_rank("dense", jnp.ones((2, 3)), 2, "(batch, features)")
    with pytest.raises(ValueError, match=r"^dense: expected at least 2 axes, \(batch, features\), got shape \(3,\); "):
        checks.expect_rank("dense", jnp.ones(3), 2, "(batch, features)")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_floating_dtypes_pass(dtype):
    checks.expect_floating("dense", jnp.ones(3, dtype))


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, jnp.bool_, jnp.complex64])
def test_other_dtypes_do_not(dtype):
    with pytest.raises(TypeError, match=r"^dense: expected a floating input, got .*\(3,\); convert it"):
        checks.expect_floating("dense", jnp.ones(3, dtype))


@pytest.mark.parametrize("array", [np.ones((3, 2)), jnp.ones((3, 2)), jax.ShapeDtypeStruct((3, 2), jnp.float32)])
def test_shapes_of_weights(array):
    checks.expect_shape("dense", "kernel", array, (3, 2))
    for shape in ((3,), (2, 3), (3, 2, 1), ()):
        with pytest.raises(ValueError, match=r"^embedding: expected an embedding of shape .*, got \(3, 2\); pass the "):
            checks.expect_shape("embedding", "embedding", array, shape)
