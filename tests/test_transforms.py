"""From layer to layer: other weights, another precision, less memory, nothing trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import layers, losses, training, trees

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(5, 6)), jnp.float32)
MODEL = layers.serial(layers.dense(8), layers.batch_norm(), layers.tanh, layers.dropout(0.3), layers.dense(3))


def close(found, expected, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), found, expected)


# ---- reparametrized, with_initializers, remat ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_layer_is_computed_with_a_function_of_its_params_and_trained_through_it():
    layer = layers.reparametrized(layers.dense(3), lambda p: trees.replace(p, {"kernel": jnp.exp}))
    params, state = layer.init(KEY, X)
    y, _ = layer.apply(params, state, X)
    close(y, X @ jnp.exp(params["kernel"]) + params["bias"][None])
    slope = jax.grad(lambda p: layer.apply(p, state, X)[0].sum())(params)
    close(slope["kernel"], X.sum(0)[:, None] * jnp.exp(params["kernel"]))


def test_what_is_kept_may_be_another_tree():
    layer = layers.reparametrized(
        layers.dense(3, bias=False),
        lambda p: {"kernel": p["left"] @ p["right"]},
        start=lambda p: {"left": p["kernel"][:, :2], "right": jnp.ones((2, 3))},
    )
    params, state = layer.init(KEY, X)
    assert trees.paths(params) == ["left", "right"]
    close(layer.apply(params, state, X)[0], X @ (params["left"] @ params["right"]))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: layers.reparametrized(layers.dense, jnp.sin), TypeError, "got the factory dense; call it"),
        (lambda: layers.reparametrized(layers.dense(3), layers.relu), TypeError, "expected f as a function, got Layer"),
        (
            lambda: layers.reparametrized(layers.dense(3), lambda p: {"kernel": p["kernel"]}).init(KEY, X),
            ValueError,
            r"reparametrized: expected \(3,\) at 'bias', got nothing; give params",
        ),
        (
            lambda: layers.reparametrized(layers.dense(3), lambda p: jax.tree.map(lambda a: a.T, p)).init(KEY, X),
            ValueError,
            r"expected \(6, 3\) at 'kernel', got \(3, 6\)",
        ),
        (
            lambda: layers.with_initializers(layers.dense(3), {"kernels": jax.nn.initializers.ones}).init(KEY, X),
            ValueError,
            "with_initializers: expected a pattern that matches a path, got 'kernels'; the nearest are 'kernel'",
        ),
        (lambda: layers.with_initializers(layers.dense(3), {"kernel": 0.5}), TypeError, "an initializer for 'kernel'"),
        (lambda: layers.mixed_precision(layers.relu, compute=jnp.int8), TypeError, "compute as a floating dtype"),
        (lambda: layers.lora(MODEL, 0), ValueError, "rank of at least 1"),
        (lambda: layers.lora(MODEL, 2, where="**/kernels").init(KEY, X), ValueError, r"lora: expected a pattern that"),
        (lambda: layers.lora(MODEL, 2, where="**/bias").init(KEY, X), ValueError, r"at least 2 axes, got shape \(8,\)"),
        (
            lambda: layers.weight_norm(MODEL, where="a").init(KEY, X),
            ValueError,
            r"weight_norm: expected a pattern that",
        ),
        (lambda: layers.spectral_norm(MODEL, where="a").init(KEY, X), ValueError, r"spectral_norm: expected a pattern"),
        (
            lambda: layers.frozen(layers.dense(3), {"kernel": jnp.ones((7, 3)), "bias": jnp.ones(3)}).init(KEY, X),
            ValueError,
            r"frozen: expected \(6, 3\) at 'kernel', got \(7, 3\)",
        ),
        (
            lambda: layers.frozen(layers.dense(3), {"kernel": jnp.ones((6, 3), int), "bias": jnp.ones(3)}).init(KEY, X),
            ValueError,
            r"frozen: expected \(6, 3\) at 'kernel', got int32\(6, 3\)",
        ),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_initializers_by_path():
    rules = {"dense_0/kernel": jax.nn.initializers.ones, "**/kernel": jax.nn.initializers.orthogonal()}
    model = layers.with_initializers(MODEL, rules)
    params, state = model.init(KEY, X)
    plain, plain_state = MODEL.init(KEY, X)
    close(state, plain_state)
    np.testing.assert_array_equal(params["dense_0"]["kernel"], 1)
    kernel = params["dense_1"]["kernel"]
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(3), atol=1e-5)
    close(params["batch_norm_0"], plain["batch_norm_0"])


def test_remat_changes_no_value_and_keeps_less():
    block = layers.serial(*[layer for _ in range(8) for layer in (layers.dense(64), layers.tanh)])
    x = jnp.ones((512, 64))
    params, state = block.init(KEY, x)

    def slope(layer):
        return jax.jit(jax.grad(lambda p, x: layer.apply(p, state, jnp.sin(x))[0].sum(), argnums=(0, 1)))

    again = layers.remat(block)
    close(slope(block)(params, x), slope(again)(params, x))
    text = str(jax.make_jaxpr(slope(again))(params, x))
    assert "remat" in text or "checkpoint" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: layers.reparametrized(layer, lambda p: p),
        lambda layer: layers.mixed_precision(layer, compute=jnp.float32),
        layers.remat,
        lambda layer: layers.with_initializers(layer, {}),
        lambda layer: layers.lora(layer, 2),
        layers.weight_norm,
    ],
)
def test_a_layer_in_another_trains_and_draws_as_it_did(wrap):
    layer = wrap(MODEL)
    params, state = layer.init(KEY, X)
    plain, plain_state = MODEL.init(KEY, X)
    expected = MODEL.apply(plain, plain_state, X, key=jax.random.key(3), training=True)
    close(layer.apply(params, state, X, key=jax.random.key(3), training=True), expected)


def test_remat_keeps_what_its_policy_says():
    def products(policy):
        layer = layers.remat(layers.serial(layers.dense(6), layers.sin), policy=policy)
        params, state = layer.init(KEY, X)
        slope = jax.grad(lambda p, x: layer.apply(p, state, x)[0].sum(), argnums=(0, 1))
        return str(jax.make_jaxpr(slope)(params, X)).count("dot_general[")

    # Forward and two for the gradients; without a policy, forward once more.
    assert (products(jax.checkpoint_policies.everything_saveable), products(None)) == (3, 4)


def test_initializers_draw_each_weight_from_a_key_of_its_own_in_its_dtype():
    model = layers.mixed_precision(layers.serial(layers.dense(6), layers.dense(6)), params=jnp.bfloat16)
    params, _ = layers.with_initializers(model, {"**/kernel": jax.nn.initializers.normal(1.0)}).init(KEY, X)
    kernels = [params[name]["kernel"] for name in ("dense_0", "dense_1")]
    assert {kernel.dtype for kernel in kernels} == {jnp.dtype("bfloat16")}
    assert not np.isclose(*kernels, atol=1e-2).all(axis=0).any()


# ---- frozen ----------------------------------------------------------------------------------------------------------


def test_what_is_frozen_is_not_trained_and_not_even_there_for_the_optimizer():
    trained, state = MODEL.init(jax.random.key(5), X)
    state = jax.tree.map(lambda a: a + 0.5, state)
    model = layers.serial(layers.frozen(MODEL, trained, state), layers.tanh, layers.dense(1))
    line = training.supervised(model, losses.squared_error, optax.adamw(0.1, weight_decay=0.5))
    data = X, jnp.ones((5, 1))
    before = line.init(KEY, data)
    assert trees.paths(before.params) == ["dense_0/bias", "dense_0/kernel"]
    assert len(jax.tree.leaves(before.opt_state)) == 1 + 2 * 2
    after = training.fit(line, data, key=KEY, epochs=5, state=before, progress=False).state
    close(after.model_state, before.model_state, rtol=0)
    close(after.model_state["serial_0"]["params"], trained, rtol=0)
    close(after.model_state["serial_0"]["state"], state, rtol=0)
    assert not np.allclose(after.params["dense_0"]["kernel"], before.params["dense_0"]["kernel"])


@pytest.mark.slow
def test_what_is_frozen_computes_as_at_rest_and_lets_gradients_through():
    frozen = layers.frozen(MODEL)
    params, state = frozen.init(KEY, X)
    assert params == {}
    y, same = frozen.apply(params, state, X, key=KEY, training=True)
    close(y, MODEL.apply(*MODEL.init(KEY, X), X)[0])
    close(same, state, rtol=0)
    assert jnp.abs(jax.grad(lambda x: frozen.apply(params, state, x)[0].sum())(X)).max() > 0
    slope = jax.grad(lambda s: frozen.apply(params, s, X)[0].sum())(state)
    assert all(not leaf.any() for leaf in jax.tree.leaves(slope))


# ---- mixed precision -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("compute", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_mixed_precision_computes_in_one_dtype_and_keeps_another(compute):
    seen = []
    spy = layers.function(lambda x: (seen.append(x.dtype), x)[1])
    inside = layers.serial(layers.dense(8), spy, layers.batch_norm(), spy, layers.dense(3), spy)
    model = layers.mixed_precision(inside, compute=compute)
    params, state = model.init(KEY, X)
    seen.clear()
    (y, new), slope = (
        model.apply(params, state, X, training=True),
        jax.grad(lambda p: model.apply(p, state, X, training=True)[0].sum())(params),
    )
    assert set(seen) == {jnp.dtype(compute)}
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state, new, y, slope))} == {jnp.dtype("float32")}
    plain, _ = inside.apply(params, state, X, training=True)
    np.testing.assert_allclose(y, plain, atol=0.05)
    assert not np.array_equal(y, plain)


@pytest.mark.slow
def test_tokens_come_out_of_an_embedding_in_the_dtype_of_computation():
    seen = []
    spy = layers.function(lambda x: (seen.append(x.dtype), x)[1])
    model = layers.mixed_precision(layers.serial(layers.embedding(5, 4), spy, layers.dense(2)))
    params, state = model.init(KEY, jnp.zeros((2, 3), jnp.int32))
    seen.clear()
    y, _ = model.apply(params, state, jnp.zeros((2, 3), jnp.int32))
    assert set(seen) == {jnp.dtype("bfloat16")}
    assert y.dtype == jnp.float32
    small = layers.mixed_precision(layers.dense(2), params=jnp.bfloat16, output=jnp.float16)
    params, state = small.init(KEY, X)
    assert params["kernel"].dtype == jnp.bfloat16
    assert small.apply(params, state, X)[0].dtype == jnp.float16


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_mixed_precision_gives_back_the_dtype_that_came_in(dtype):
    model = layers.mixed_precision(layers.dense(2), compute=jnp.float32)
    params, state = model.init(KEY, X)
    assert model.apply(params, state, X.astype(dtype))[0].dtype == dtype


def test_scales_and_biases_reach_the_layers_with_all_their_digits():
    seen = {}

    def apply(params, state, x, *, key=None, training=False):
        seen.update(params)
        return x, state

    made = {name: jnp.ones(6) + 1e-6 for name in ("kernel", "scale", "bias")}
    model = layers.mixed_precision(layers.identity._replace(init=lambda key, x: (made, {}), apply=apply))
    model.apply(*model.init(KEY, X), X)
    found = {name: str(a.dtype) for name, a in seen.items()}
    assert found == {"kernel": "bfloat16", "scale": "float32", "bias": "float32"}


# ---- lora ------------------------------------------------------------------------------------------------------------


def adapted(where="**/kernel"):
    layer = layers.lora(MODEL, 2, where=where)
    params, state = layer.init(KEY, X)
    drawn = jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape), a.dtype), params["lora"])
    return layer, params, {"base": params["base"], "lora": drawn}, state


def test_lora_starts_as_the_layer_was():
    layer, params, _, state = adapted()
    base, plain_state = MODEL.init(KEY, X)
    close(params["base"], base, rtol=0)
    close(layer.apply(params, state, X)[0], MODEL.apply(base, plain_state, X)[0], rtol=0)


def test_a_low_rank_update_is_one_and_merging_it_changes_nothing():
    layer, _, params, state = adapted()
    y, _ = layer.apply(params, state, X)
    plain = layers.merged(params)
    close(y, MODEL.apply(plain, state, X)[0])
    assert trees.paths(plain) == trees.paths(params["base"])
    for name in ("dense_0", "dense_1"):
        update = np.asarray(plain[name]["kernel"] - params["base"][name]["kernel"])
        assert np.linalg.matrix_rank(update, tol=1e-4) == 2
        np.testing.assert_allclose(plain[name]["bias"], params["base"][name]["bias"])


def test_weights_of_one_shape_have_updates_that_are_drawn_apart():
    params, _ = layers.lora(layers.serial(layers.dense(6), layers.dense(6)), 2).init(KEY, X)
    first, second = (params["lora"][name]["kernel"] for name in ("dense_0", "dense_1"))
    assert not np.isclose(first["a"], second["a"]).any()


def test_an_update_without_its_weight_is_refused():
    layer, params, _, state = adapted()
    params["lora"]["dense_7"] = params["lora"].pop("dense_1")
    with pytest.raises(ValueError, match=r"an a and a b for weights that base has, got \['dense_7/kernel'\]"):
        layer.apply(params, state, X)


@pytest.mark.slow
def test_lora_of_some_weights_of_convolutions_and_inside_other_layers():
    images = jnp.asarray(RNG.normal(size=(2, 5, 5, 3)), jnp.float32)
    inside = layers.serial(layers.lora(layers.conv(4, 3), 2), layers.flatten, layers.dense(2))
    params, state = inside.init(KEY, images)
    assert params["conv_0"]["lora"]["kernel"]["a"].shape == (3, 3, 3, 2)
    params = jax.tree.map(lambda a: a + 0.1, params)
    plain = layers.merged(params)
    model = layers.serial(layers.conv(4, 3), layers.flatten, layers.dense(2))
    close(inside.apply(params, state, images)[0], model.apply(plain, state, images)[0], rtol=1e-4)
    _, some, _, _ = adapted("dense_1/kernel")
    assert trees.paths(some["lora"]) == ["dense_1/kernel/a", "dense_1/kernel/b"]


# ---- norms of weights ------------------------------------------------------------------------------------------------


def test_weight_norm_starts_as_the_layer_was_and_is_pytorchs(torch):
    layer = layers.weight_norm(layers.dense(3))
    params, state = layer.init(KEY, X)
    close(layer.apply(params, state, X)[0], layers.dense(3).apply(layers.dense(3).init(KEY, X)[0], {}, X)[0])
    params["kernel"]["scale"] = params["kernel"]["scale"] * jnp.array([0.5, 1.0, 2.0])
    twin = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(6, 3))
    with torch.no_grad():
        twin.parametrizations.weight.original0.copy_(torch.tensor(np.array(params["kernel"]["scale"]))[:, None])
        twin.parametrizations.weight.original1.copy_(torch.tensor(np.array(params["kernel"]["direction"]).T))
        twin.bias.copy_(torch.tensor(np.array(params["bias"])))
    theirs = twin(torch.tensor(np.array(X)))
    close(layer.apply(params, state, X)[0], theirs.detach().numpy())
    (theirs**2).sum().backward()
    slope = jax.grad(lambda p: (layer.apply(p, state, X)[0] ** 2).sum())(params)
    close(slope["kernel"]["scale"], twin.parametrizations.weight.original0.grad[:, 0].numpy(), rtol=1e-4)
    close(slope["kernel"]["direction"], twin.parametrizations.weight.original1.grad.T.numpy(), rtol=1e-4)


def test_spectral_norm_is_pytorchs(torch):
    layer = layers.spectral_norm(layers.dense(3))
    params, state = layer.init(KEY, X)
    twin = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(6, 3))
    norm = twin.parametrizations.weight[0]
    with torch.no_grad():
        twin.parametrizations.weight.original.copy_(torch.tensor(np.array(params["kernel"]).T))
        norm._u.copy_(torch.tensor(np.array(state["spectral_norm"]["kernel"]["u"])))
        norm._v.copy_(torch.tensor(np.array(state["spectral_norm"]["kernel"]["v"])))
        twin.bias.copy_(torch.tensor(np.array(params["bias"])))
    x = torch.tensor(np.array(X))
    for _ in range(3):
        y, state = layer.apply(params, state, X, training=True)
        close(y, twin(x).detach().numpy(), rtol=1e-4)
    twin.eval()
    (twin(x) ** 2).sum().backward()
    slope = jax.grad(lambda p: (layer.apply(p, state, X)[0] ** 2).sum())(params)
    close(slope["kernel"], twin.parametrizations.weight.original.grad.T.numpy(), rtol=1e-3)


def test_children_named_as_the_parts_of_a_normed_weight_are_children():
    inside = layers.network(
        lambda x, direction, scale: direction(x) * scale(x), direction=layers.dense(3), scale=layers.dense(3)
    )
    layer = layers.weight_norm(inside)
    params, state = layer.init(KEY, X)
    close(layer.apply(params, state, X)[0], inside.apply(*inside.init(KEY, X), X)[0])


@pytest.mark.slow
def test_spectral_norm_is_its_formula_while_training():
    epsilon = 2.0  # more than any length here, so that it counts
    inside = layers.serial(layers.dense(4), layers.batch_norm(), layers.dropout(0.3))
    layer = layers.spectral_norm(inside, iterations=2, epsilon=epsilon)
    params, state = layer.init(KEY, X)
    key = jax.random.key(3)
    u, v = (np.asarray(state["spectral_norm"]["dense_0"]["kernel"][name], np.float64) for name in ("u", "v"))
    matrix = np.asarray(params["dense_0"]["kernel"], np.float64).T
    for _ in range(2):
        v = matrix.T @ u / max(np.linalg.norm(matrix.T @ u), epsilon)
        u = matrix @ v / max(np.linalg.norm(matrix @ v), epsilon)
    u, v = jnp.asarray(u, jnp.float32), jnp.asarray(v, jnp.float32)
    inner = {"batch_norm_0": state["batch_norm_0"]}

    def expected(params):
        kernel = params["dense_0"]["kernel"]
        divided = trees.replace(params, {"dense_0/kernel": lambda k: k / (u @ kernel.T @ v)})
        y, new = inside.apply(divided, inner, X, key=key, training=True)
        return (y**2).sum(), (y, {**new, "spectral_norm": {"dense_0": {"kernel": {"u": u, "v": v}}}})

    def found(params):
        y, new = layer.apply(params, state, X, key=key, training=True)
        return (y**2).sum(), (y, new)

    slopes = [jax.jit(jax.grad(f, has_aux=True))(params) for f in (found, expected)]
    close(*slopes, rtol=1e-3)


def test_the_largest_singular_value_is_found_at_init_and_kept_when_not_training():
    values = jnp.array([2.0, 1.0, 0.5])
    layer = layers.spectral_norm(layers.dense(3, bias=False, kernel_init=lambda *_: jnp.diag(values)))
    x = jnp.eye(3)
    params, state = layer.init(KEY, x)
    y, new = layer.apply(params, state, x)
    close(y, jnp.diag(values / 2), rtol=1e-6)
    tilted = trees.replace(params, {"kernel": lambda k: k + 0.3})
    _, new = layer.apply(tilted, state, x)
    close(new, state, rtol=0)


@pytest.mark.slow
def test_spectral_norm_makes_the_largest_singular_value_one():
    model = layers.spectral_norm(layers.serial(layers.conv(4, 3), layers.batch_norm()))
    images = jnp.asarray(RNG.normal(size=(2, 5, 5, 3)), jnp.float32)
    params, state = model.init(KEY, images)
    for _ in range(60):
        _, state = model.apply(params, state, images, training=True)
    assert sorted(state) == ["batch_norm_0", "spectral_norm"]
    u, v = (state["spectral_norm"]["conv_0"]["kernel"][name] for name in ("u", "v"))
    sigma = u @ params["conv_0"]["kernel"].reshape(-1, 4).T @ v
    np.testing.assert_allclose(
        sigma, np.linalg.svd(np.asarray(params["conv_0"]["kernel"]).reshape(-1, 4))[1][0], rtol=1e-4
    )


# ---- one inside the other --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mixed_precision_takes_side_inputs_along_and_hands_them_on():
    layer = layers.mixed_precision(layers.attention(2, cross=True))
    given = {"x": X[None], "context": 2 * X[None]}
    params, state = layer.init(KEY, given)
    y, _ = layer.apply(params, state, given)
    assert y["x"].dtype == jnp.float32
    np.testing.assert_array_equal(y["context"], given["context"])


@pytest.mark.slow
def test_mixed_precision_of_a_normed_weight():
    layer = layers.mixed_precision(layers.spectral_norm(layers.dense(4)))
    params, state = layer.init(KEY, X)
    y, new = layer.apply(params, state, X, training=True)
    assert {leaf.dtype for leaf in jax.tree.leaves((y, new))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("norm", [layers.weight_norm, layers.spectral_norm])
def test_weights_of_zeros_have_finite_gradients(norm):
    layer = norm(layers.dense(3, kernel_init=jax.nn.initializers.zeros))
    params, state = layer.init(KEY, X)
    slope = jax.grad(lambda p: layer.apply(p, state, X, training=True)[0].sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_what_would_be_ignored_is_refused():
    with pytest.raises(ValueError, match="lora: expected a layer without another lora inside"):
        layers.lora(layers.serial(layers.lora(layers.dense(4), 2), layers.dense(4)), 1).init(KEY, X)
    with pytest.raises(ValueError, match="spectral_norm: expected a layer without another"):
        layers.spectral_norm(layers.spectral_norm(layers.dense(4))).init(KEY, X)
    layer, params, _, state = adapted()
    del params["lora"]["dense_0"]["kernel"]["a"]
    with pytest.raises(ValueError, match="lora: expected an a and a b for weights that base has"):
        layer.apply(params, state, X)


def test_children_with_such_names_are_children():
    model = layers.network(lambda x, base, lora: base(x) + lora(x), base=layers.dense(4), lora=layers.dense(4))
    params, _ = model.init(KEY, X)
    assert trees.paths(layers.merged(params)) == trees.paths(params)


@pytest.mark.slow
def test_losses_that_layers_add_are_summed_over_what_is_repeated():
    def apply(params, state, x, *, key=None, training=False):
        return x, {"auxiliary_loss": jnp.float32(0.5)}

    adding = layers.identity._replace(init=lambda key, x: ({}, {"auxiliary_loss": jnp.zeros(())}), apply=apply)
    model = layers.serial(layers.repeat(layers.serial(adding, layers.dense(6)), 3), layers.dense(1))
    line = training.supervised(model, losses.squared_error, optax.sgd(0.0))
    batch = X, jnp.ones((5, 1))
    _, info = line.step(line.init(KEY, batch), batch)
    np.testing.assert_allclose(line.report(info)["penalty"], 1.5)


# ---- params that are stacked -----------------------------------------------------------------------------------------

STACKED = layers.serial(layers.repeat(layers.dense(6), 4), layers.ensemble(layers.repeat(layers.dense(6), 3), 2))
AT = "repeat_0/dense_0/kernel"
DEEP = "ensemble_0/repeat_0/dense_0/kernel"


def test_stacked_weights_are_drawn_each_for_itself():
    wide = jnp.ones((2, 64))
    model = layers.ensemble(layers.repeat(layers.dense(64), 8), 3)
    model = layers.with_initializers(model, {"**/kernel": jax.nn.initializers.he_normal()})
    ((_, kernels),) = trees.select(jax.jit(model.init)(KEY, wide)[0], "**/kernel").items()
    assert kernels.shape == (3, 8, 64, 64)
    # The spread is that of 64 inputs in each of the 24, and no two are the same.
    np.testing.assert_allclose(np.std(kernels, axis=(2, 3)), (2 / 64) ** 0.5, rtol=0.06)
    assert len(np.unique(np.asarray(kernels).reshape(24, -1)[:, 0])) == 24


@pytest.mark.slow
def test_stacked_weights_have_an_update_each():
    adapted = layers.lora(STACKED, rank=2)
    params, state = jax.jit(adapted.init)(KEY, X)
    updates = trees.select(params["lora"], "**")
    assert updates[f"{AT}/a"].shape == (4, 6, 2)
    assert updates[f"{AT}/b"].shape == (4, 2, 6)
    assert updates[f"{DEEP}/b"].shape == (2, 3, 2, 6)
    assert len(np.unique(updates[f"{DEEP}/a"][..., 0, 0])) == 6
    close(adapted.apply(params, state, X)[0], STACKED.apply(params["base"], state, X)[0])
    params = jax.tree.map(lambda a: a + 0.1, params)
    plain = layers.merged(params)
    updates, base = trees.select(params["lora"], "**"), trees.select(params["base"], "**")
    for path, whole in trees.select(plain, AT, DEEP).items():
        for at in np.ndindex(whole.shape[:-2]):
            close(whole[at], base[path][at] + updates[f"{path}/a"][at] @ updates[f"{path}/b"][at])


@pytest.mark.slow
def test_windows_that_are_stacked_have_an_update_each():
    image = jnp.asarray(RNG.normal(size=(2, 5, 5, 3)), jnp.float32)
    model = layers.repeat(layers.conv(3, 3, padding="SAME"), 4)
    params, _ = jax.jit(layers.lora(model, rank=2).init)(KEY, image)
    params = jax.tree.map(lambda a: a + 0.1, params)
    update = params["lora"]["conv_0"]["kernel"]
    assert (update["a"].shape, update["b"].shape) == ((4, 3, 3, 3, 2), (4, 2, 3))
    whole = layers.merged(params)["conv_0"]["kernel"]
    base = params["base"]["conv_0"]["kernel"]
    close(whole, base + np.einsum("nhwir,nro->nhwio", update["a"], update["b"]))


@pytest.mark.slow
def test_stacked_weights_have_a_length_each():
    model = layers.repeat(layers.dense(6), 4)
    within = layers.repeat(layers.weight_norm(layers.dense(6)), 4)
    around = layers.weight_norm(model)
    params, state = around.init(KEY, X)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, within.init(KEY, X)[0])
    params = jax.tree.map(lambda a: a * 1.5 + 0.1, params)
    close(around.apply(params, state, X)[0], within.apply(params, state, X)[0])
    deep, _ = layers.weight_norm(STACKED).init(KEY, X)
    assert trees.select(deep, f"{DEEP}/scale")[f"{DEEP}/scale"].shape == (2, 3, 6)


@pytest.mark.slow
def test_stacked_weights_have_a_largest_singular_value_each():
    model = layers.spectral_norm(STACKED)
    params, state = jax.jit(model.init)(KEY, X)
    params = jax.tree.map(lambda a: a * jnp.arange(1.0, 1 + a.shape[0]).reshape(-1, *(1,) * (a.ndim - 1)), params)
    again = jax.jit(lambda s: model.apply(params, s, X, training=True)[1])
    for _ in range(60):
        state = again(state)
    vectors = trees.select(state["spectral_norm"], "**")
    for path, weight in trees.select(params, "**/kernel").items():
        u, v = vectors[f"{path}/u"], vectors[f"{path}/v"]
        sigma = np.einsum("...o,...io,...i->...", u, weight, v)
        np.testing.assert_allclose(sigma, np.linalg.svd(weight)[1][..., 0], rtol=1e-3)


@pytest.mark.slow
def test_a_vector_is_no_matrix_however_many_are_stacked():
    with pytest.raises(ValueError, match="at least 2 axes"):
        layers.lora(layers.repeat(layers.dense(6), 4), rank=2, where="**/bias").init(KEY, X)


# ---- patterns, one or several ----------------------------------------------------------------------------------------

BOTH = ("query/kernel", "value/kernel")


def attending():
    return layers.attention(2), jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("where", [BOTH, list(BOTH)])
def test_several_patterns_name_the_weights_together(where):
    layer, x = attending()
    params, _ = layers.lora(layer, 2, where=where).init(KEY, x)
    assert sorted(params["lora"]) == ["query", "value"]
    params, _ = layers.weight_norm(layer, where=where).init(KEY, x)
    assert [name for name in params if isinstance(params[name]["kernel"], dict)] == ["query", "value"]
    normed = layers.spectral_norm(layer, where=where)
    params, state = normed.init(KEY, x)
    assert sorted(state["spectral_norm"]) == ["query", "value"]
    _, new = normed.apply(params, state, x, training=True)
    assert jax.tree.structure(new) == jax.tree.structure(state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda where: layers.lora(layers.dense(3), 2, where=where),
        lambda where: layers.weight_norm(layers.dense(3), where=where),
        lambda where: layers.spectral_norm(layers.dense(3), where=where),
    ],
)
def test_patterns_that_are_none_are_refused(wrap):
    for where, error, message in (
        ((), ValueError, "expected at least one pattern, got none"),
        (("**/kernel", ""), ValueError, "got an empty one"),
        (3, TypeError, "expected a pattern such as '.*', got int 3"),
        (["**/kernel", 3], TypeError, "got int 3"),
    ):
        with pytest.raises(error, match=message):
            wrap(where)
    with pytest.raises(ValueError, match="expected a pattern that matches a path, got 'nothing'"):
        wrap(("kernel", "nothing")).init(KEY, X)


# ---- initializers that are none --------------------------------------------------------------------------------------


def narrow(key, shape, dtype):
    return jnp.zeros((shape[0], 1), dtype)


INITIALIZERS = {
    "not called": (
        jax.nn.initializers.he_normal,
        TypeError,
        r"an initializer that returns float32\(6, 6\) for '{}', got one that returns a function; an initializer is "
        r"made by a call: he_normal\(\)",
    ),
    "a number": (
        lambda key, shape, dtype: 0.5,
        TypeError,
        r"an initializer that returns float32\(6, 6\) for '{}', got one that returns a float; return an array",
    ),
    "another shape": (
        narrow,
        ValueError,
        r"float32\(6, 6\) from the initializer of '{}', got float32\(6, 1\); return an array of the shape and dtype",
    ),
    "another dtype": (
        lambda key, shape, dtype: jnp.zeros(shape, jnp.bfloat16),
        ValueError,
        r"float32\(6, 6\) from the initializer of '{}', got bfloat16\(6, 6\); return",
    ),
}


@pytest.mark.parametrize("case", INITIALIZERS)
@pytest.mark.parametrize(
    ("model", "path"),
    [
        (layers.dense(6), "kernel"),
        (layers.serial(layers.dense(6)), "dense_0/kernel"),
        (layers.repeat(layers.dense(6), 2), "dense_0/kernel"),
    ],
)
def test_what_an_initializer_returns_is_checked(case, model, path):
    initializer, error, message = INITIALIZERS[case]
    with pytest.raises(error, match="^with_initializers: expected " + message.replace("{}", path)):
        layers.with_initializers(model, {"**/kernel": initializer}).init(KEY, X)


def test_the_error_of_an_initializer_names_the_weight():
    model = layers.with_initializers(layers.serial(layers.dense(6)), {"**/bias": jax.nn.initializers.he_normal()})
    with pytest.raises(ValueError, match="1-dimensional weights") as error:
        model.init(KEY, X)
    assert "with_initializers: from the initializer of 'dense_0/bias', float32(6,)" in error.value.__notes__
    with pytest.raises(TypeError, match=r"lora: expected an initializer that returns .* for 'kernel', got one that"):
        layers.lora(layers.dense(3), 2, a_init=jax.nn.initializers.he_normal).init(KEY, X)
