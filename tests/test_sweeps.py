"""Many runs as one program: each is what it is alone, whatever stands beside it; what cannot be swept is refused."""

import csv
import functools
import io
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_law import assert_same_bytes

from funcnn import layers, losses, metrics, penalties, small_products, training
from funcnn.training import groups, probes
from funcnn.training.grids import expanded

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def drawn(n):
    return RNG.normal(size=(n, 5)).astype(np.float32), RNG.integers(0, 3, n).astype(np.int32)


TRAIN, HELD_OUT = drawn(27), drawn(13)
GRID = {"rate": jnp.array([1e-3, 1e-2, 3e-2]), "dropout": jnp.array([0.0, 0.4])}
OPTIONS = {"epochs": 4, "batch_size": 8, "validation": HELD_OUT}


def made(h):
    """Everything that a run can have: dropout, batch norm, two optimizer states, a penalty, a metric."""
    model = layers.serial(
        layers.dense(6, bias=False), layers.batch_norm(), layers.tanh, layers.dropout(h["dropout"]), layers.dense(3)
    )
    return training.supervised(
        model,
        losses.softmax_cross_entropy,
        optax.adam(h["rate"], eps_root=1e-8),
        {"accuracy": metrics.accuracy},
        penalties.l2(1e-3),
    )


def plain(rate):
    return training.supervised(layers.dense(3), losses.softmax_cross_entropy, optax.sgd(rate))


def sweep(make=made, grid=None, data=TRAIN, **options):
    return training.sweep(make, GRID if grid is None else grid, data, key=KEY, progress=False, **{**OPTIONS, **options})


@functools.cache
def single(make, state=None, **options):
    """The function that a member is a run of, compiled once."""
    return jax.jit(lambda h, k: training.run(make(h), TRAIN, key=k, state=state, **{**OPTIONS, **options}))


def alone(make, member, **options):
    return single(make, **options)(jax.tree.map(jnp.float32, member.hyperparameters), member.key)


@pytest.fixture(scope="module", params=["map", pytest.param("vmap", marks=pytest.mark.slow)])
def found(request):
    return request.param, sweep(how=request.param, seeds=2, keep_best=True, monitor="validation_loss")


# ---- a member is its run ---------------------------------------------------------------------------------------------


def test_a_member_is_the_run_with_its_hyperparameters_and_its_key(found):
    how, whole = found
    for i in (0, 5, 11):
        member = whole.members[i]
        expected = alone(made, member, keep_best=True, monitor="validation_loss")
        if how == "map":
            assert_same_bytes(member.result, expected)
        else:
            for name, column in expected.history.items():
                np.testing.assert_allclose(member.result.history[name], column, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_without_batch_norm_members_side_by_side_are_closer():
    whole = sweep(plain, jnp.array([1e-3, 1e-2]), how="vmap", epochs=5)
    for member in whole.members:
        np.testing.assert_allclose(member.result.history["loss"], alone(plain, member, epochs=5).history["loss"], 1e-5)


def test_members_are_the_product_of_the_grid_and_the_seeds(found):
    _, whole = found
    points = [(m.hyperparameters["rate"], m.hyperparameters["dropout"], m.seed) for m in whole.members]
    rates, dropouts = (np.asarray(GRID[name]).tolist() for name in ("rate", "dropout"))
    assert points == [(rate, dropout, seed) for rate in rates for dropout in dropouts for seed in (0, 1)]
    assert list(whole.members[0].hyperparameters) == ["rate", "dropout"]
    for member in (whole.members[3], whole.members[-1]):
        assert (
            jax.random.key_data(member.key).tolist()
            == jax.random.key_data(jax.random.fold_in(KEY.copy(), member.seed)).tolist()
        )
    assert whole.history["loss"].shape == (12, 4)
    assert list(whole.history) == ["loss", "accuracy", "penalty", "validation_loss", "validation_accuracy"]
    assert len(whole.members) == 12
    assert [m.seed for m in whole.members[:2]] == [0, 1]
    with pytest.raises(IndexError):
        whole.members[12]


@pytest.mark.slow
def test_a_loop_that_calls_a_library_is_no_kernel():
    """By a product that was not written out: of a batch, in half precision, in a loop inside."""
    x = jnp.ones((3, 3))
    assert not probes._calls_a_library(jax.make_jaxpr(lambda x: jnp.tanh(x) + small_products.product(x, x))(x).jaxpr)
    inner = jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=2)[0])(x)
    assert probes._calls_a_library(inner.jaxpr)
    assert probes._calls_a_library(jax.make_jaxpr(lambda x: jnp.einsum("bij,bjk->bik", x[None], x[None]))(x).jaxpr)


def test_where_loops_are_one_kernel_members_take_turns_if_theirs_is_one(monkeypatch):
    x, plan = jnp.ones((3, 3)), SimpleNamespace(draws=False)
    alone = jax.make_jaxpr(lambda x: small_products.product(x, x))(x).jaxpr
    batches = jax.make_jaxpr(lambda x: jnp.einsum("bij,bjk->bik", x[None], x[None]))(x).jaxpr
    assert probes.fastest(alone, plan) == probes.fastest(batches, plan) == "vmap"
    monkeypatch.setattr(probes, "fuses_small_loops", lambda: True)
    assert probes.fastest(alone, plan) == "map"
    assert probes.fastest(alone, SimpleNamespace(draws=True)) == "vmap"
    assert probes.fastest(batches, plan) == "vmap"


def test_a_dict_that_is_taken_for_a_number_is_shown_with_how_to_read_it():
    with pytest.raises(TypeError) as caught:
        sweep(plain, {"rate": [0.1, 0.2]})
    assert any(note.endswith(", a dict: read h['rate']") for note in caught.value.__notes__)


def test_seeds_may_be_named():
    """Each at every point, those of a point side by side."""
    for combine, points in (("zip", [0.0, 0.5]), ("product", [0.0, 0.0, 0.5, 0.5])):
        values, seeds = expanded({"dropout": [0.0, 0.5], "rate": [1e-3, 1e-2]}, combine, (3, 7))
        assert values["dropout"].tolist() == list(np.repeat(points, 2))
        assert seeds.tolist() == [3, 7] * len(points)


def test_a_grid_may_be_zipped_and_seeds_be_named():
    whole = sweep(grid={"dropout": [0.0, 0.5], "rate": [1e-3, 1e-2]}, combine="zip", seeds=(3, 7), epochs=1)
    points = [(m.hyperparameters["dropout"], m.seed) for m in whole.members]
    assert points == [(0.0, 3), (0.0, 7), (0.5, 3), (0.5, 7)]


@pytest.mark.slow
def test_a_hyperparameter_may_have_axes():
    weights = jnp.array([[1.0, 1.0, 1.0], [5.0, 0.0, 0.0]])

    def weighted(w):
        return training.supervised(
            layers.dense(3), lambda p, t: losses.softmax_cross_entropy(p, t) * w[t], optax.sgd(0.1)
        )

    whole = sweep(weighted, weights, epochs=1)
    np.testing.assert_array_equal(whole.members[1].hyperparameters, [5.0, 0.0, 0.0])
    assert whole.table().rows[1][0] == "[5.0, 0.0, 0.0]"
    assert np.isfinite(whole.history["loss"]).all()
    assert whole.history["loss"][0] != whole.history["loss"][1]


@pytest.mark.slow
def test_what_computes_can_be_swept():
    def all_of_it(h):
        init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        model = layers.serial(
            layers.dense(6, kernel_init=lambda *args: h["scale"] * init(*args)), layers.tanh, layers.dense(3)
        )
        schedule = optax.cosine_decay_schedule(h["rate"], 10, h["alpha"])
        optimizer = optax.chain(
            optax.clip_by_global_norm(h["norm"]),
            optax.adamw(schedule, b1=h["b1"], b2=h["b2"], weight_decay=h["decay"], eps_root=1e-8),
        )
        loss = partial(losses.softmax_cross_entropy, label_smoothing=h["smoothing"])
        return training.supervised(model, loss, optimizer, penalty=penalties.l1(h["l1"]))

    lows = {"scale": 0.5, "rate": 1e-3, "alpha": 0.0, "norm": 0.1, "b1": 0.8, "b2": 0.9, "decay": 0.0}
    highs = {"scale": 1.0, "rate": 1e-2, "alpha": 0.5, "norm": 1.0, "b1": 0.9, "b2": 0.999, "decay": 0.1}
    lows, highs = lows | {"smoothing": 0.0, "l1": 0.0}, highs | {"smoothing": 0.1, "l1": 0.1}
    # The first member has all that is low; of each of the others one is high.
    grid = {name: jnp.array([low, *(highs[n] if n == name else low for n in highs)]) for name, low in lows.items()}
    whole = sweep(all_of_it, grid, combine="zip", how="vmap", epochs=2)
    first, *others = whole.history["loss"][:, -1]
    for name, other in zip(highs, others, strict=True):
        assert np.isfinite(other), name
        assert other != first, name


@pytest.mark.slow
@pytest.mark.parametrize("how", ["vmap", "map"])
def test_data_may_be_a_function_or_one_batch(how):
    def draw(key):
        x = jax.random.normal(key, (6, 5))
        return x, (x.sum(1) > 0).astype(jnp.int32)

    rates = jnp.array([0.01, 0.1])
    whole = sweep(plain, rates, draw, how=how, epochs=None, steps=7, steps_per_epoch=3, validation=None, batch_size=32)
    by_itself = jax.jit(
        lambda h, k: training.run(plain(h), draw, key=k, steps=7, steps_per_epoch=3)
    )(rates[1], whole.members[1].key)  # fmt: skip
    np.testing.assert_allclose(whole.history["loss"][1], by_itself.history["loss"], 1e-5)
    whole = sweep(plain, rates, how=how, batch_size=None, epochs=3)
    np.testing.assert_allclose(
        whole.history["loss"][1], alone(plain, whole.members[1], batch_size=None, epochs=3).history["loss"], 1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["vmap", "map"])
def test_all_members_may_begin_with_one_state(how):
    before = training.run(plain(0.1), TRAIN, key=KEY, **OPTIONS)
    whole = sweep(plain, jnp.array([1e-9, 0.1]), how=how, state=before.state, epochs=2)
    np.testing.assert_allclose(whole.state.params["kernel"][0], before.state.params["kernel"], rtol=1e-5)
    after = single.__wrapped__(plain, before.state, epochs=2)(jnp.float32(0.1), whole.members[1].key)
    np.testing.assert_allclose(whole.history["loss"][1], after.history["loss"], 1e-5)
    assert whole.state.step.tolist() == [24, 24]


# ---- early stopping --------------------------------------------------------------------------------------------------

STOPPING = {"monitor": "validation_loss", "patience": 2, "keep_best": True, "epochs": 30}


def ends(column, patience):
    """The rule in Python: after how many epochs a run ends, and the best row until then."""
    best, last = np.inf, -1
    for row, value in enumerate(column):
        if value < best:
            best, last = value, row
        if row - last >= patience:
            return row + 1, last
    return len(column), last


@pytest.mark.slow
@pytest.mark.parametrize("how", ["vmap", "map"])
def test_each_member_stops_where_its_own_rule_says(how):
    whole = sweep(how=how, **STOPPING)
    free = sweep(how=how, epochs=30)
    counts = [ends(column, 2)[0] for column in free.history["validation_loss"]]
    assert len(set(counts)) > 2
    assert min(counts) < 30  # or nothing would be seen here
    assert whole.history["epochs_run"].tolist() == counts
    for member, count, column in zip(whole.members, counts, free.history["validation_loss"], strict=True):
        assert member.result.history["validation_loss"].shape == (count,)
        np.testing.assert_allclose(member.result.history["validation_loss"], column[:count], 1e-5)
    seen = np.isfinite(whole.history["loss"])
    assert seen.sum(axis=1).tolist() == counts


@pytest.mark.slow
def test_the_best_state_of_a_member_is_that_of_its_best_epoch():
    whole = sweep(how="map", **STOPPING)
    member = whole.members[2]
    _, best = ends(member.result.history["validation_loss"], 2)
    until = alone(made, member, epochs=best + 1)
    assert_same_bytes(member.result.best, until.state)


# ---- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["vmap", pytest.param("map", marks=pytest.mark.slow)])
def test_members_that_do_not_fit_are_cut_into_groups(how):
    whole = sweep(plain, jnp.logspace(-3, -1, 7), how=how, epochs=2)
    steps = []
    options = {"max_bytes": 5000, "observers": [lambda event: steps.append(event.step)], "every": 2}
    parts = sweep(plain, jnp.logspace(-3, -1, 7), how=how, epochs=2, **options)
    assert len(steps) > 1
    assert parts.history["loss"].shape == (7, 2)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), parts.history, whole.history)
    np.testing.assert_allclose(parts.state.params["kernel"], whole.state.params["kernel"], 1e-5, 1e-7)


@pytest.mark.slow
def test_a_member_that_does_not_fit_is_tried_all_the_same():
    assert sweep(plain, jnp.array([0.1, 0.2]), epochs=1, max_bytes=1).history["loss"].shape == (2, 1)


@pytest.mark.slow
def test_a_small_network_on_large_images_is_cut_into_groups_too(monkeypatch):
    model = layers.serial(layers.conv(4, 3), layers.relu, layers.global_avg_pool, layers.dense(3))
    images = RNG.normal(size=(8, 48, 48, 1)).astype(np.float32), TRAIN[1][:8]

    def made_here(rate):
        return training.supervised(model, losses.softmax_cross_entropy, optax.sgd(rate))

    sizes, needed, carried = [], [], []
    needed_by = groups._needed
    monkeypatch.setattr(groups, "_needed", lambda *given: needed.append(needed_by(*given)) or needed[-1])
    # Room for 50 times what the members carry, and not for what they make of the images.
    monkeypatch.setattr(groups, "_memory", lambda run: 2_000_000)

    def seen(event):
        sizes.append(len(event.metrics["loss"]))
        carried.append(sum(a.nbytes for a in jax.tree.leaves(event.state)))

    options = {"epochs": 1, "validation": None, "every": 1, "observers": [seen], "how": "vmap"}
    sweep(made_here, [0.1], images, seeds=4, **options)
    assert 50 * 4 * max(carried) < 2_000_000 < needed[0]
    assert max(sizes) < 4
    del sizes[:], needed[:]
    monkeypatch.setattr(groups, "_memory", lambda run: 2_000_000_000)
    sweep(made_here, [0.1], images, seeds=4, **options)
    assert (sizes, needed) == ([4], [])  # nowhere near: nothing is compiled to know


class Known(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(("make", "how"), [(made, "vmap"), (plain, "vmap"), (made, "map")])
def test_a_program_needs_no_more_than_what_it_makes(make, how, monkeypatch):
    needed_by = groups._needed

    def needed(chunk, most):
        assert 0 < needed_by(chunk, most) < most
        raise Known

    monkeypatch.setattr(groups, "_needed", needed)
    with pytest.raises(Known):
        sweep(make, GRID if make is made else GRID["rate"], seeds=10, how=how, epochs=1, max_bytes=1)


def test_what_is_not_said_of_a_compiled_program_is_what_it_makes_at_most():
    class Silent:
        def lower(self):
            return self

        compile = lower

        def memory_analysis(self):
            return None

    assert groups._needed(Silent(), 123) == 123


class Device(NamedTuple):
    stats: dict | None

    def memory_stats(self):
        return self.stats


def test_the_memory_is_that_of_the_device_where_the_data_lie(monkeypatch):
    assert groups._free(Device({"bytes_limit": 1000, "bytes_in_use": 200})) == 720
    assert min(groups._free(Device(None)), groups._free(Device({}))) > 2**20
    texts = {"meminfo": "MemFree: 1 kB\nMemAvailable:    8 kB\n"}
    monkeypatch.setattr(groups, "_text", lambda path: texts.get(path.name, ""))
    assert groups._free(Device(None)) == groups._free(Device({})) == 6144
    monkeypatch.setattr(groups, "_left", lambda mine, root: iter([4000, 2000]))
    assert groups._free(Device(None)) == 1500
    asked = []
    monkeypatch.setattr(groups, "_free", lambda device: asked.append(device) or 100)
    x = jax.device_put(np.zeros((5, 4), np.float32), jax.devices()[-1])
    assert groups._memory(SimpleNamespace(arrays=(x, np.zeros(9)), held_out={"x": x})) == 100 + 80 + 80
    nothing = SimpleNamespace(arrays=None, held_out=None)
    assert groups._memory(nothing) == 100
    for default in (jax.devices()[-1], "cpu"):
        with jax.default_device(default):
            assert groups._memory(nothing) == 100
    assert asked == [jax.devices()[-1], jax.local_devices()[0], jax.devices()[-1], jax.local_devices(backend="cpu")[0]]


def test_what_a_container_may_take_is_no_more_than_its_limit(tmp_path):
    def written(folder, **files):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)

    mine, root = tmp_path / "mine", tmp_path / "root"
    assert list(groups._left(mine, root)) == []
    mine.write_text("0::/outer/inner\n")
    assert list(groups._left(mine, root)) == []
    written(root / "outer" / "inner", memory__max="max\n", memory__current="300\n")
    written(root / "outer", memory__max="1000\n", memory__current="700\n", memory__stat="anon 5\ninactive_file 50\n")
    assert list(groups._left(mine, root)) == [350]
    written(root, memory__max="600\n", memory__current="700\n")  # as a container sees its own
    assert list(groups._left(mine, root)) == [350, 0]
    mine.write_text("5:cpu,cpuacct:/x\n4:hugetlb,memory:/docker/1\n0::/x\n")
    written(root, memory__max="max\n")
    stat = "inactive_file 1\ntotal_inactive_file 7\n"
    of_first = {"memory__limit_in_bytes": "1000\n", "memory__usage_in_bytes": "900\n", "memory__stat": stat}
    written(root / "memory", **of_first)
    assert list(groups._left(mine, root)) == [107]


# ---- numbers that go bad, and what ends a sweep ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["vmap", pytest.param("map", marks=pytest.mark.slow)])
def test_a_member_that_goes_bad_harms_nobody(how):
    rates = jnp.array([0.1, 1e38, 0.2])
    whole = sweep(plain, rates, how=how)
    assert not np.isfinite(whole.history["loss"][1]).all()
    for i in (0, 2):
        np.testing.assert_allclose(whole.history["loss"][i], alone(plain, whole.members[i]).history["loss"], 1e-5)
    assert whole.best("loss").hyperparameters in (pytest.approx(0.1), pytest.approx(0.2))
    assert whole.table(by="loss").rows[-1][0] == pytest.approx(1e38)
    with pytest.raises(ValueError, match="a member with a finite loss, got none; lower the learning rates"):
        sweep(plain, jnp.array([1e38])).best("loss")


@pytest.mark.slow
def test_an_observer_may_end_it_and_what_was_not_run_is_nan():
    whole = sweep(how="map", every=1, observers=[lambda event: event.epoch == 2])
    assert np.isfinite(whole.history["loss"]).sum(axis=1).tolist() == [2] * 6
    assert whole.final("loss").shape == (6,)


@pytest.mark.slow
def test_ctrl_c_keeps_the_members_that_were_begun(capsys):
    def interrupt(event):
        if event.step == 4:
            raise KeyboardInterrupt

    whole = sweep(plain, jnp.logspace(-3, -1, 6), every=1, max_bytes=5000, observers=[interrupt])
    assert 0 < len(whole.members) < 6
    said = capsys.readouterr().err
    assert "sweep: interrupted; this is the result after 4 of 16 steps" in said
    assert "members were begun" in said


@pytest.mark.slow
def test_what_was_ended_early_has_a_last_number_all_the_same():
    whole = sweep(plain, [0.1, 0.2], seeds=2, epochs=6, every=2, observers=[lambda event: True])
    assert whole.history["epochs_run"].tolist() == [2] * 4
    assert whole.members[1].result.history["loss"].shape == (2,)
    assert whole.best("loss").result.history["loss"][-1] == whole.history["loss"][:, 1].min()


@pytest.mark.slow
def test_a_point_that_was_cut_off_is_a_row_too():
    seen = []

    def interrupt(event):
        seen.append(event)
        if len(seen) == 3:
            raise KeyboardInterrupt

    whole = sweep(plain, [0.1, 0.2, 0.3], seeds=2, epochs=1, every=1, max_bytes=1, observers=[interrupt])
    assert len(whole.members) == 3
    assert len(whole.table(over_seeds=True).rows) == 2


@pytest.mark.slow
def test_a_variable_that_make_trainer_reads_may_change():
    width = 4

    def made_here(rate):
        return training.supervised(
            layers.serial(layers.dense(width), layers.dense(3)), losses.softmax_cross_entropy, optax.sgd(rate * factor)
        )

    factor = 1.0
    first = sweep(made_here, [0.1, 0.2], epochs=1)
    width = 7
    second = sweep(made_here, [0.1, 0.2], epochs=1)
    assert [s.state.params["dense_0"]["kernel"].shape[-1] for s in (first, second)] == [4, 7]
    factor = 0.0
    third = sweep(made_here, [0.1, 0.2], epochs=1)
    assert np.isfinite(third.history["validation_loss"]).all()
    assert (third.history["validation_loss"] != second.history["validation_loss"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [jax.jit, lambda f: jax.jit(lambda *given: jax.jit(f)(*given))])
def test_an_array_that_a_loss_holds_may_change(wrap):
    traced = []

    def made_here(rate):
        traced.append(rate)
        return training.supervised(layers.dense(3), loss, optax.sgd(rate))

    def weighted(weights):
        w = jnp.array(weights)
        return wrap(lambda p, t: losses.softmax_cross_entropy(p, t) * w[t])

    loss = weighted([1.0, 5.0, 1.0])
    first = sweep(made_here, [0.1, 0.2], epochs=1)
    loss = weighted([5.0, 1.0, 1.0])
    second = sweep(made_here, [0.1, 0.2], epochs=1)
    assert (first.history["validation_loss"] != second.history["validation_loss"]).all()
    member = second.members[1]
    expected = training.run(made_here(0.2), TRAIN, key=member.key, **{**OPTIONS, "epochs": 1})
    np.testing.assert_allclose(second.history["validation_loss"][1], expected.history["validation_loss"], 1e-5)
    count, loss = len(traced), weighted([1.0, 5.0, 1.0])
    third = sweep(made_here, [0.1, 0.2], epochs=1)
    assert len(traced) - count == 2  # the same numbers in another array are the same program
    assert_same_bytes(third.history, first.history)


def test_what_a_loss_calls_on_the_host_may_change():
    def loss_of(number):
        def on_the_host(p):
            return np.full(p.shape[:-1], number, np.float32)

        def loss(p, t):
            made = jax.ShapeDtypeStruct(p.shape[:-1], jnp.float32)
            more = jax.pure_callback(on_the_host, made, jax.lax.stop_gradient(p), vmap_method="broadcast_all")
            return losses.softmax_cross_entropy(p, t) + more

        return loss

    found = []
    loss = None

    def made_here(rate):
        return training.supervised(layers.dense(3), loss, optax.sgd(rate))

    for number in (0.0, 100.0):
        loss = loss_of(number)
        found.append(sweep(made_here, [0.1, 0.2], epochs=1).history["loss"])
    np.testing.assert_allclose(found[1] - found[0], 100, atol=0.01)


def test_settings_inside_of_a_loss_may_change():
    found, counted = [], True

    def loss(p, t):
        with jax.threefry_partitionable(counted):
            noise = jax.random.uniform(jax.random.key(3), (2,)).sum()
        return losses.softmax_cross_entropy(p, t) + noise

    def made_here(rate):
        return training.supervised(layers.dense(3), loss, optax.sgd(rate))

    for counted in (True, False):
        found.append(sweep(made_here, [0.1, 0.2], epochs=1).history["loss"])
        with jax.threefry_partitionable(counted):
            noise = jax.random.uniform(jax.random.key(3), (2,)).sum()
        found[-1] -= noise
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


@pytest.mark.slow
def test_events_hold_all_members():
    events = []
    sweep(plain, jnp.array([0.1, 0.2]), epochs=2, every=1, observers=[events.append])
    assert [event.epoch for event in events] == [1, 2]
    assert events[-1].metrics["loss"].shape == (2,)
    assert events[-1].state.params["kernel"].shape == (2, 5, 3)


@pytest.mark.slow
def test_progress_shows_the_median_of_the_members(capsys):
    training.sweep(plain, jnp.array([0.1, 1e38, 0.2]), TRAIN, key=KEY, epochs=2)
    assert "median loss " in capsys.readouterr().err


# ---- records ---------------------------------------------------------------------------------------------------------


def test_the_best_member_is_that_of_the_best_last_number(found):
    _, whole = found
    last = whole.history["validation_accuracy"][:, -1]
    assert whole.best("validation_accuracy", "max").result.history["validation_accuracy"][-1] == last.max()
    assert whole.best("validation_accuracy", "min").result.history["validation_accuracy"][-1] == last.min()
    assert whole.best("loss").result.history["loss"][-1] == whole.history["loss"][:, -1].min()


def test_the_best_member_may_be_that_of_the_best_epoch(found):
    _, whole = found
    column = whole.history["validation_accuracy"]
    best = whole.best("validation_accuracy", "max", at="best")
    assert best.result.history["validation_accuracy"].max() == column.max()
    least = whole.best("validation_loss", at="best").result.history["validation_loss"]
    assert least.min() == whole.history["validation_loss"].min()
    # A member that went bad counts by the epochs before.
    dipped = whole.history["validation_loss"].copy()
    dipped[2] = np.nan
    dipped[2, 0] = 0.001
    edited = whole._replace(result=whole.result._replace(history={**whole.history, "validation_loss": dipped}))
    assert edited.best("validation_loss", at="best").result.history["validation_loss"][0] == np.float32(0.001)
    with pytest.raises(ValueError, match="expected at to be one of"):
        whole.best("loss", at="first")


def test_a_table_is_sorted_and_reads_back(found):
    _, whole = found
    table = whole.table("validation_loss")
    assert table.columns[:4] == ("rate", "dropout", "seed", "loss")
    at = table.columns.index("validation_loss")
    np.testing.assert_array_equal([row[at] for row in table.rows], np.sort(whole.history["validation_loss"][:, -1]))
    read = list(csv.reader(io.StringIO(table.csv())))
    assert tuple(read[0]) == table.columns
    np.testing.assert_array_equal(np.float64(read[1:]), np.float64(table.rows))
    lines = table.markdown().split("\n")
    assert lines[0].startswith("| rate | dropout | seed | loss |")
    assert len(lines) == 14
    assert "validation_loss" in repr(table)
    assert [row[:3] for row in whole.table().rows] == [
        (m.hyperparameters["rate"], m.hyperparameters["dropout"], m.seed) for m in whole.members
    ]


def test_seeds_of_a_point_may_be_one_row(found):
    _, whole = found
    table = whole.table("validation_loss", over_seeds=True)
    pairs = whole.history["validation_loss"][:, -1].reshape(6, 2).astype(np.float64)
    order = np.argsort(pairs.mean(1))
    columns = list(table.columns)
    mean, spread = (
        np.float64([row[columns.index(name)] for row in table.rows])
        for name in ("validation_loss", "± validation_loss")
    )
    np.testing.assert_allclose(mean, pairs.mean(1)[order], 1e-6)
    np.testing.assert_allclose(spread, pairs.std(1, ddof=1)[order], 1e-5)
    assert " ± " in repr(table)


def test_what_is_not_finite_comes_last():
    columns = {
        "loss": np.array([[-np.inf], [0.5], [np.nan], [0.2]]),
        "accuracy": np.array([[np.inf], [0.5], [1.0], [0.2]]),
    }
    result = training.Result({"w": np.arange(4)}, columns)
    whole = training.Sweep(np.array([1.0, 1.0, 2.0, 2.0]), np.array([0, 1, 0, 1]), np.arange(4), result, 2)
    assert whole.best("loss").result.state["w"] == 3
    assert whole.best("accuracy", "max").result.state["w"] == 2
    assert [row[0] for row in whole.table("accuracy", "max", over_seeds=True).rows] == [2.0, 1.0]


def test_records_refuse_what_they_do_not_hold(found):
    _, whole = found
    with pytest.raises(ValueError, match=r"sweep: expected a column of the history, .*loss.*got 'lost'; choose one"):
        whole.best("lost")
    with pytest.raises(ValueError, match=r"mode for 'accuracy', got none; pass mode=\"max\""):
        whole.best("accuracy")
    with pytest.raises(ValueError, match=r"mode to be one of \['min', 'max'\], got 'most'"):
        whole.table("loss", "most")


# ---- what is refused -------------------------------------------------------------------------------------------------


def wide(h):
    model = layers.serial(layers.dense(h["width"]), layers.dense(3))
    return training.supervised(model, losses.softmax_cross_entropy, optax.sgd(0.1))


def branching(rate):
    return plain(rate if rate > 0.1 else 0.1)


@pytest.mark.parametrize(
    ("make", "grid", "options", "error", "message"),
    [
        (wide, {"width": [8, 16]}, {}, TypeError, "computed with, got one that decides a shape .* in a loop"),
        (branching, [0.1, 0.2], {}, TypeError, "computed with, got one that decides a shape or a branch"),
        (lambda h: made({"dropout": 0.1, **h}), {"rate": [0.1], "rat": [1.0]}, {}, ValueError, r"h\['rat'\]; use"),
        (lambda h: plain(0.1), [0.1, 0.2], {}, ValueError, "uses all of the grid, got nothing that depends on h; use"),
        (plain, [0.1, float("nan")], {}, ValueError, "the values as numbers, got NaN; look at how they are made"),
        (plain, [], {}, ValueError, "at least one of the values, got none"),
        (made, {}, {}, ValueError, "a grid with a name or more, got an empty one"),
        (made, {"rate": [], "dropout": [0.1]}, {}, ValueError, "at least one of the values of 'rate', got none"),
        (plain, 0.1, {}, ValueError, r"the values with an axis, got a single number; pass a list of it"),
        (plain, ["adam", "sgd"], {}, TypeError, "the values as numbers, got <U4; sweep over what is no"),
        (
            made,
            {"rate": [0.1, 0.2], "dropout": [0.1]},
            {"combine": "zip"},
            ValueError,
            r"as many values under each name, to zip them, got \{'rate': 2, 'dropout': 1\}",
        ),
        (plain, [0.1], {"combine": "cross"}, ValueError, "combine to be one of"),
        (plain, [0.1], {"how": "pmap"}, ValueError, r"how to be one of \['auto', 'vmap', 'map'\], got 'pmap'"),
        (plain, [0.1], {"seeds": 0}, ValueError, "seeds of at least 1"),
        (plain, [0.1], {"seeds": [1, 1]}, ValueError, r"different seeds, at least one, got \[1, 1\]"),
        (plain, [0.1], {"seeds": [-1]}, ValueError, "seeds of at least 0"),
        (plain, [0.1], {"seeds": [0, 2**32]}, ValueError, r"seeds below 2\*\*32, got 4294967296"),
        (plain, [0.1], {"seeds": [0.5]}, TypeError, "seeds as a whole number, got float"),
        (plain, [0.1], {"seeds": "12"}, TypeError, "seeds as whole numbers, got '12'"),
        (plain, [[0.1], [0.2, 0.3]], {}, ValueError, "the values of one shape, got a ragged list"),
        (plain, [0.1 + 1j], {}, TypeError, "the values as numbers, got complex"),
        (made, {"seed": [0.1]}, {}, TypeError, "names of hyperparameters, got 'seed'; for seeds there is"),
        (made, {0: [0.1], "rate": [0.1]}, {}, TypeError, "names of hyperparameters, got 0"),
        (plain(0.1), [0.1], {}, TypeError, "a function that makes a trainer, got Trainer; pass a function"),
        (lambda h: 3, [0.1], {}, TypeError, "sweep: expected a Trainer, got int"),
        (plain, [0.1], {"observers": print}, TypeError, "observers in a list, got a function"),
        (plain, [0.1], {"monitor": "lost", "patience": 2, "mode": "min"}, ValueError, "one of the columns"),
        (plain, [0.1], {"epochs": 0}, ValueError, "sweep: expected epochs of at least 1"),
        (plain, [0.1], {"data": (TRAIN[0], TRAIN[1] + 7)}, ValueError, "class"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused(make, grid, options, error, message):
    with pytest.raises(error, match=message):
        sweep(make, grid, **options)


def test_a_sweep_inside_a_transformation_is_refused():
    with pytest.raises(TypeError, match=r"^sweep: expected values, .* use training\.run inside jit, vmap or grad"):
        jax.jit(lambda k: training.sweep(plain, [0.1], TRAIN, key=k, epochs=1, progress=False))(KEY)


compiled = []  # the names of the programs that XLA was given
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **more: (
        compiled.append(more.get("fun_name", "")) if event.endswith("backend_compile_duration") else None
    )
)


def test_a_sweep_compiles_its_two_programs_and_its_keys():
    """Each operation of its own would be a program of its own, of a few hundredths of a second."""
    jax.clear_caches()
    rates = jnp.array([0.1, 0.2])
    compiled.clear()
    sweep(plain, rates, seeds=3)
    programs = {name.removeprefix("jit(").removesuffix(")") for name in compiled} - {"stage"}  # which is a copy
    own = {"_start", "_advance", "_threefry_seed", "_threefry_fold_in"}
    assert programs == own | {"multiply"}  # by which optax.sgd makes a rate that is an array negative


@pytest.mark.parametrize("how", ["vmap", pytest.param("map", marks=pytest.mark.slow)])
def test_data_that_were_put_on_a_device_are_no_reason_to_compile_a_sweep_twice(how):
    jax.clear_caches()
    data = jax.device_put(TRAIN, jax.devices()[0])
    compiled.clear()
    training.sweep(plain, [0.1, 0.2], data, key=KEY, epochs=3, every=1, how=how, progress=False)
    programs = [name for name in compiled if "_start" in name or "_advance" in name]
    assert sorted(programs) == ["jit(_advance)", "jit(_start)"]


@pytest.mark.slow
def test_a_second_sweep_traces_nothing():
    traced = []

    def counted(rate):
        traced.append(rate)
        return plain(rate)

    sweep(counted, [0.1, 0.2], how="vmap")
    first = len(traced)
    sweep(counted, [0.3, 0.4], how="vmap")
    # Only what looks at the first member before anything is compiled: with numbers, and with tracers.
    assert len(traced) - first == 2
    sweep(counted, [0.5, 0.6, 0.7], how="vmap")
    of_three = len(traced) - first - 4
    assert of_three > 0  # another number of members is another program


class Unhashable:
    """Equal to others, so that Python gives it no hash."""

    def __init__(self, model):
        self.model = model

    def __eq__(self, other):
        return isinstance(other, Unhashable)

    def __call__(self, rate):
        return training.supervised(self.model, losses.softmax_cross_entropy, optax.sgd(rate))


def test_what_makes_trainers_need_not_have_a_hash(compilations):
    options = {"key": KEY, "epochs": 1, "batch_size": 9, "progress": False}
    maker, rates = Unhashable(layers.dense(3)), np.float32([0.1, 0.2])
    first = training.sweep(maker, rates, TRAIN, **options)
    before = len(compilations)
    training.sweep(maker, rates, TRAIN, **options)
    assert len(compilations) == before
    wide = layers.serial(layers.dense(4), layers.dense(3))
    assert not np.array_equal(
        training.sweep(Unhashable(wide), rates, TRAIN, **options).history["loss"], first.history["loss"]
    )


def test_rows_in_half_precision_that_a_member_did_not_reach_are_no_numbers():
    def maker(rate):
        trainer = training.supervised(layers.dense(3), losses.softmax_cross_entropy, optax.sgd(rate))
        narrow = lambda info: {name: value.astype(jnp.bfloat16) for name, value in trainer.report(info).items()}  # noqa: E731
        return trainer._replace(report=narrow)

    options = {"key": KEY, "epochs": 9, "batch_size": None, "monitor": "loss", "patience": 1, "progress": False}
    found = training.sweep(maker, np.float32([1e-9, 0.1]), TRAIN, **options)
    assert found.history["loss"].dtype == jnp.bfloat16
    for row, epochs in zip(found.history["loss"].astype(np.float32), found.history["epochs_run"], strict=True):
        assert np.isnan(row[epochs:]).all()
        assert np.isfinite(row[:epochs]).all()
    assert found.history["epochs_run"][0] < 9
