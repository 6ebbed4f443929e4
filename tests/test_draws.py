"""Random numbers drawn together: the numbers of JAX, whatever is drawn, in few operations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.nn import initializers

from funcnn import bits, draws, layers, losses, models, training

KEY = jax.random.key(7)


@pytest.fixture(autouse=True)
def _however_few(monkeypatch):
    monkeypatch.setattr(draws, "_FEWEST", 1)


def same(f, *args):
    """That ``f`` gives the same bits when its numbers are drawn together."""
    expected, found = jax.jit(f)(*args), jax.jit(draws.together(f))(*args)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def loops(f, *args):
    """How many times the generator stands in a compiled program."""
    return jax.jit(f).lower(*args).compile().as_text().count(" while(")


MODELS = {
    "dense": (models.mlp([5, 4, 3], 2), (8, 6)),
    "convolutions": (models.convnet([3, 4], 2), (2, 8, 8, 3)),
    "resnet": (models.resnet(18, 3, width=4, small=True), (2, 8, 8, 3)),
    "repeated": (layers.serial(layers.dense(4), layers.repeat(layers.residual(layers.dense(4)), 6)), (2, 3)),
    "recurrent": (
        layers.serial(layers.recurrent(layers.lstm_cell(4)), layers.recurrent(layers.gru_cell(3))),
        (2, 5, 3),
    ),
    "normal": (layers.serial(layers.dense(4, kernel_init=initializers.orthogonal()), layers.dense(3)), (2, 3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_begins_with_the_same_weights(name):
    model, shape = MODELS[name]
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    same(lambda key: model.init(key, x), KEY)


def test_a_transformer_begins_with_the_same_weights():
    model = models.transformer(16, 8, heads=2, blocks=2, length=4)
    same(lambda key: model.init(key, jax.ShapeDtypeStruct((2, 4), jnp.int32)), KEY)


def of_everything(key):
    a, b, c = jax.random.split(key, 3)
    grid = jax.random.split(a, (2, 3))
    folded = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(b, jnp.arange(4))
    again = jax.vmap(jax.random.fold_in, in_axes=(0, None))(folded, 9)
    each = jax.vmap(jax.random.fold_in)(again, jnp.arange(4, dtype=jnp.uint32) + jnp.uint32(2**31))
    row = jax.vmap(lambda k: jax.random.normal(k, (3, 2)))(each)
    chosen = jnp.where(row[0, 0, 0] > 0, 1, 2)
    return {
        "keys": (grid, each, jax.random.fold_in(c, chosen)),  # a key of what was drawn before
        "bytes": jax.random.bits(a, (5,), jnp.uint8),
        "halves": jax.random.uniform(b, (5, 3), jnp.bfloat16),
        "none": jax.random.normal(c, (0, 4)),
        "row": row,
        "number": jax.random.uniform(grid[1, 2]),
        "order": jax.random.permutation(c, 9),
        "chance": jax.random.bernoulli(jax.random.fold_in(a, 3), 0.3, (4,)),
    }


@pytest.mark.parametrize("most", [2**20, 4])
def test_whatever_is_drawn_is_the_same(most, monkeypatch):
    monkeypatch.setattr(draws, "_MOST", most)
    same(of_everything, KEY)
    same(lambda key: of_everything(bits.flat(key)) | {"keys": ()}, KEY)


@pytest.mark.parametrize("written", [0, 2**12])
def test_the_key_of_a_number_is_written_or_computed(written, monkeypatch):
    monkeypatch.setattr(draws, "_WRITTEN", written)
    shapes = [(3,), (1,), (2, 2), (7,), (1, 1, 5)]
    same(lambda key: [jax.random.uniform(k, s) for k, s in zip(jax.random.split(key, 5), shapes, strict=True)], KEY)


def test_side_by_side_and_with_64_bits():
    keys = jax.random.split(KEY, 3)
    expected = jax.jit(jax.vmap(of_everything))(keys)["row"]
    np.testing.assert_array_equal(jax.jit(jax.vmap(draws.together(of_everything)))(keys)["row"], expected)
    with jax.enable_x64(True):
        same(lambda key: [jax.random.normal(k, (3,)) for k in jax.random.split(key, 5)], KEY)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_other_generators_stay(impl):
    same(of_everything, jax.random.key(3, impl=impl))


def test_other_ways_to_count_stay():
    with jax.threefry_partitionable(False):
        same(of_everything, KEY)


def test_functions_loops_and_branches_around_draws():
    def f(key):
        one, two, three, four = jax.random.split(key, 4)
        inside = jax.lax.scan(lambda k, _: (jax.random.fold_in(k, 1), jax.random.uniform(k)), one, None, length=3)[1]
        branch = jax.lax.cond(inside[0] > 0.5, jax.random.normal, jax.random.uniform, two)
        smooth = jax.nn.relu(jax.random.normal(three, (4,))), jax.nn.silu(branch)
        kept = jax.checkpoint(lambda k: jax.random.normal(k, (2,)))(four)
        return inside, branch, smooth, kept, jax.jit(lambda k: jax.jit(jax.random.normal)(k))(four)

    same(f, KEY)


def test_what_is_drawn_can_be_differentiated():
    def drawn(scale):
        a, b, c, d = jax.random.split(KEY, 4)
        parts = [jax.nn.softplus(scale * jax.random.normal(k, (3,))).sum() for k in (a, b, c)]
        return sum(parts) + jax.random.normal(d)

    gradient = jax.grad(draws.together(drawn))(0.7)
    np.testing.assert_array_equal(gradient, jax.grad(drawn)(0.7))
    assert gradient != 0


def test_a_model_twice_as_deep_mixes_no_more_often():
    x = jnp.ones((1, 3))
    shallow, deep = (lambda key, n=n: models.mlp([4] * n, 2).init(key, x) for n in (4, 8))
    assert loops(draws.together(shallow), KEY) == loops(draws.together(deep), KEY) <= 3
    assert loops(deep, KEY) >= 2 * loops(shallow, KEY) - 6 > 6


def test_few_are_drawn_apart(monkeypatch):
    monkeypatch.setattr(draws, "_FEWEST", 6)
    joined = []
    monkeypatch.setattr(draws, "_compute", lambda values, nodes: joined.append(len(nodes)))

    def f(key):
        return [jax.random.uniform(k) for k in jax.random.split(key, 4)]

    same(f, KEY)
    assert not joined


def test_no_more_is_drawn_together_than_there_is_room_for(monkeypatch):
    sizes, groups = [], draws._groups

    def seen(nodes):
        for group in groups(nodes):
            sizes.append([draws._size(node) for node in group])
            yield group

    monkeypatch.setattr(draws, "_groups", seen)
    monkeypatch.setattr(draws, "_MOST", 10)
    shapes = (4, 4, 4, 11, 10)
    same(lambda key: [jax.random.uniform(k, (n,)) for k, n in zip(jax.random.split(key, 5), shapes, strict=True)], KEY)
    assert sizes == [[5], [4, 4], [4], [10]]  # the array of 11 is drawn by itself


@pytest.mark.parametrize(("members", "depth"), [(256, 3), (1, 60)])
def test_drawn_together_it_takes_little_memory(members, depth):
    """Not of the number of keys times that of numbers."""
    model, x = models.mlp([16] * depth, 4), jnp.ones((1, 8))
    keys = jax.random.split(KEY, members)
    together = jax.jit(jax.vmap(draws.together(lambda key: model.init(key, x)[0]))).lower(keys).compile()
    made = together.memory_analysis()
    assert made.temp_size_in_bytes < 20 * made.output_size_in_bytes + 2**20


def test_settings_that_hold_inside_are_kept():
    def drawn(key):
        with jax.threefry_partitionable(False):
            return jax.random.normal(key, (3, 3))

    same(lambda key: [drawn(k) for k in jax.random.split(key, 8)], KEY)


def test_a_function_that_says_where_its_results_lie_is_not_taken_apart():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    there = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    placed = jax.jit(lambda key: jax.random.normal(key, (4,)), out_shardings=there)

    def f(key):
        return [placed(k) for k in jax.random.split(key, 6)]

    for a in jax.jit(draws.together(f))(KEY):
        assert isinstance(a.sharding, jax.sharding.NamedSharding)
        assert a.sharding.mesh == mesh
    same(f, KEY)


def test_under_a_mesh_nothing_is_drawn_together():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:1])
    spec = jax.sharding.PartitionSpec("x")
    with jax.set_mesh(mesh):
        same(lambda key: [jax.random.normal(k, (4,), out_sharding=spec) for k in jax.random.split(key, 6)], KEY)


def test_no_keys_side_by_side():
    same(lambda key: (jax.vmap(jax.random.normal)(jax.random.split(key, 0)), jax.random.uniform(key, (3,))), KEY)


def test_a_chain_of_keys_is_followed(monkeypatch):
    monkeypatch.setattr(draws, "_draw", lambda values, nodes: pytest.fail("nothing is drawn beside another"))

    def f(key):
        for _ in range(30):
            key = jax.random.fold_in(key, 1)
        return jax.random.key_data(key)

    same(f, KEY)


def test_a_print_in_init_is_seen(capfd):
    def f(key):
        for k in jax.random.split(key, 4):
            jax.debug.print("drawn {}", jax.random.randint(k, (), 0, 1))

    draws.together(f)(KEY)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("drawn 0") == 4


def test_a_run_begins_with_what_its_trainer_makes():
    line = training.supervised(models.mlp([4, 3], 1), losses.squared_error, optax.sgd(0.0))
    x = jnp.linspace(-1, 1, 8).reshape(4, 2)
    data = x, x[:, :1]
    run = jax.jit(lambda key: training.run(line, data, key=key, epochs=1, batch_size=4).state.params)
    expected = line.init(jax.random.split(KEY, 3)[0], data).params
    for a, b in zip(jax.tree.leaves(run(KEY)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert loops(run, KEY) <= 5  # of the generator four, and the epochs


def test_on_other_platforms_nothing_is_drawn_together(monkeypatch):
    monkeypatch.setattr(draws, "together", lambda f: pytest.fail("drawn together"))
    monkeypatch.setattr("funcnn.primitives.platform", lambda: "gpu")
    line = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.1))
    training.run(line, (jnp.ones((4, 2)), jnp.ones((4, 1))), key=KEY, epochs=1)


def test_what_was_drawn_under_a_mesh_changes_nothing_later():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])

    def f(key):
        return [jax.random.normal(k, (4,)) for k in jax.random.split(key, 20)]

    draws._plain_call.cache_clear()
    with jax.set_mesh(mesh):
        same(f, KEY)
    assert loops(draws.together(f), KEY) < loops(f, KEY)
    assert draws._is_call(jax.make_jaxpr(jax.jit(lambda a: a + 1))(0.0).eqns[0])
