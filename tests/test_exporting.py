"""Models and runs in files: they compute what they computed here, elsewhere too, or one error says what is wrong.

The oracle is the same function, jitted here: an export has to give its bits. That no changed byte gets into
``jax.export.deserialize`` is asserted where that is called.
"""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import LAYERS

from funcnn import data, disk, exporting, layers, losses, metrics, models, training
from funcnn.core import Layer

ROOT = Path(__file__).parent.parent
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 4)).astype(np.float32)
FORM = re.compile(r"[^\n]+: expected [^\n]+, got [^\n]+; [^\n]+")


def hashes(tree):
    """The SHA-256 of every leaf, by path."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found[name] = f"{leaf.dtype}{leaf.shape}{hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()}"
    return found


def network():
    return layers.serial(layers.dense(5), layers.batch_norm(), layers.relu, layers.dropout(0.3), layers.dense(3))


def started(model, x):
    """Params and state as after training: none of them as they began."""
    shapes = jax.eval_shape(model.init, KEY, x)
    if all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(shapes)):
        # Any numbers will do, above zero for variances, and those of NumPy need no program.
        numbers = np.random.default_rng(1)

        def drawn(a):
            return jnp.asarray(numbers.uniform(0.1, 0.5, a.shape) / max(1, np.prod(a.shape[:-1])), a.dtype)

        return jax.tree.map(drawn, shapes)
    params, state = jax.jit(lambda key: model.init(key, x))(KEY)
    return jax.tree.map(
        lambda a: a + jnp.asarray(0.1, a.dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, (params, state)
    )


def here(model, params, state, x):
    return jax.jit(lambda p, s, a: model.apply(p, s, a)[0])(params, state, x)


def saved_and_loaded(path, model, params, state, x, **options):
    return exporting.load(path, sha256=exporting.save_model(path, model, params, state, x, **options))


def stateless(function):
    """A layer of two lines, ``function(params, x)``."""
    return Layer(lambda key, x: ({}, {}), lambda p, s, x, **_: (function(p, x), s), "stateless")


def texts(path):
    """What each platform gets, in StableHLO."""
    return {name: program.mlir_module() for name, program in exporting.load(path).programs.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.export"


@pytest.fixture(scope="module")
def small_content(tmp_path_factory):
    """A file of a small model."""
    path, model = tmp_path_factory.mktemp("small") / "a", network()
    exporting.save_model(path, model, *started(model, X), X, card="A small one: µ.")
    return path.read_bytes()


@pytest.fixture
def small(path, small_content):
    path.write_bytes(small_content)
    return path


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("examples", [1, 3, 7])
def test_a_model_computes_what_it_computed_here(path, examples):
    model = network()
    params, state = started(model, X)
    found = saved_and_loaded(path, model, params, state, X[:2], card="µ")
    assert hashes(found(X[:examples])) == hashes(here(model, params, state, X[:examples]))
    assert hashes(found.params) == hashes(params)
    assert hashes(found.state) == hashes(state)
    assert (found.kind, found.arguments, found.card) == ("model", ("x",), "µ")
    assert (found.takes, found.returns) == ({"x": "float32 (batch, 4)"}, {"y": "float32 (batch, 3)"})
    assert found.platforms == ("cpu", "cuda", "tpu")
    assert set(found.versions) == {"funcnn", "jax", "jaxlib", "numpy", "optax"}
    assert os.listdir(path.parent) == [path.name]  # nothing is left beside it


def test_what_save_returns_is_the_checksum_of_the_file(small):
    model = network()
    digest = exporting.save_model(small, model, *started(model, X), X)
    assert digest == hashlib.sha256(small.read_bytes()).hexdigest()
    assert exporting.load(small, sha256=digest).sha256 == digest
    with pytest.raises(exporting.ExportError, match=f"expected a file of the SHA-256 {'0' * 64}, got {digest}"):
        exporting.load(small, sha256="0" * 64)


EVERYDAY = {"embedding", "conv(groups)", "batch_norm(images)", "recurrent", "condition", "repeat", "parallel"}


def when(index, row):
    """Every second of the others is left to ``pytest -m long``."""
    later = [pytest.mark.slow, *([pytest.mark.long] if index % 2 else [])]
    return [] if row.name in EVERYDAY else later


@pytest.mark.parametrize("row", [pytest.param(r, id=r.name, marks=when(i, r)) for i, r in enumerate(LAYERS)])
def test_every_layer_takes_any_number_of_examples_on_all_platforms(path, row):
    model, x = row.layer(), row.input()
    params, state = started(model, x)
    found = saved_and_loaded(path, model, params, state, x)
    for a in (x[:1], np.concatenate([x, x, x[:1]])):
        assert hashes(found(a)) == hashes(here(model, params, state, a))


IMAGES = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
TOKENS = RNG.integers(0, 11, (2, 6)).astype(np.int32)
SIZE = {"heads": 2, "blocks": 2, "length": 8}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: models.mlp([5], 3, dropout=0.1), X),
        (lambda: models.convnet([4, 8], 3), IMAGES),
        (lambda: models.resnet(18, 10, width=4, small=True), IMAGES),
        pytest.param(lambda: models.resnet(50, 10, width=4), IMAGES, marks=pytest.mark.long),
        (lambda: models.transformer(11, 16, **SIZE), TOKENS),
        (lambda: models.transformer(11, 16, kind="encoder", dropout=0.1, **SIZE), TOKENS),
        (
            lambda: models.transformer(11, 16, kind="both", **SIZE),
            {"source": {"x": TOKENS, "mask": TOKENS > 2}, "target": TOKENS},
        ),
        (lambda: models.autoencoder([5], 2, 4), X),
    ],
    ids=["mlp", "convnet", "resnet 18", "resnet 50", "decoder", "encoder", "both", "autoencoder"],
)
def test_every_model_takes_any_number_of_examples_on_all_platforms(path, make, x):
    model = make()
    params, state = started(model, x)
    found = saved_and_loaded(path, model, params, state, x)
    for count in (1, 5):
        a = jax.tree.map(lambda leaf, n=count: np.concatenate([leaf] * 3)[:n], x)
        assert hashes(found(a)) == hashes(here(model, params, state, a))


@pytest.mark.slow
def test_large_images_go_through_one_by_one(path):
    model, x = layers.conv(16, 3), RNG.normal(size=(3, 256, 256, 16)).astype(np.float32)
    params, state = started(model, x)
    found = saved_and_loaded(path, model, params, state, x)
    np.testing.assert_allclose(found(x), here(model, params, state, x), rtol=1e-5, atol=1e-5)
    memory = jax.jit(found.functions["cpu"]).lower(x).compile().memory_analysis().temp_size_in_bytes
    assert memory < 5 * x.nbytes  # the patches of all three would be 9 times the input


@pytest.mark.slow
def test_side_inputs_and_trees_go_in_and_out(path):
    model = layers.network(
        lambda x, body: (body({"x": x["x"], "lengths": x["lengths"]})["x"], {"sum": x["x"].sum()}),
        body=layers.attention(2),
    )
    x = {"x": RNG.normal(size=(3, 5, 4)).astype(np.float32), "lengths": np.array([5, 3, 1], np.int32)}
    params, state = started(model, x)
    found = saved_and_loaded(path, model, params, state, x)
    assert found.takes == {"x/lengths": "int32 (batch,)", "x/x": "float32 (batch, 5, 4)"}
    assert found.returns == {"y/0": "float32 (batch, 5, 4)", "y/1/sum": "float32 ()"}
    assert hashes(found(x)) == hashes(here(model, params, state, x))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "int4", "bool", "complex64"])
def test_weights_of_every_dtype_are_taken(path, dtype):
    params = {"a": jnp.arange(4).astype(dtype), "none": jnp.zeros((0, 4), dtype), "one": jnp.ones((), dtype)}
    model = stateless(lambda p, x: x * p["a"].real.astype(x.dtype)[None])
    found = saved_and_loaded(path, model, params, {}, X)
    assert hashes(found.params) == hashes(params)
    assert hashes(found(X)) == hashes(here(model, params, {}, X))


@pytest.mark.slow
def test_half_precision_goes_through(path):
    model, x = layers.attention(2), RNG.normal(size=(2, 5, 4)).astype(np.float16)
    params, state = started(model, x)
    found = saved_and_loaded(path, model, params, state, x)
    assert hashes(found(x)) == hashes(here(model, params, state, x))


def noisy():
    """A layer with a key in its state."""

    def apply(params, state, x, *, key=None, training=False):
        del key, training
        return x + jax.random.normal(state["key"], x.shape[1:])[None], state

    return Layer(lambda key, x: ({}, {"key": key}), apply, "noisy")


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_key_in_the_state_stays_one(path, impl):
    state = {"key": jax.random.key(5, impl=impl)}
    found = saved_and_loaded(path, noisy(), {}, state, X)
    assert found.state["key"].dtype == state["key"].dtype
    assert hashes(found.state) == hashes(state)
    assert hashes(found(X)) == hashes(here(noisy(), {}, state, X))


def test_what_the_data_were_standardized_by_is_in_the_file(path):
    x = 100 + 7 * X
    model = layers.serial(data.standardize(x), layers.dense(3))
    params, state = model.init(KEY, x)
    assert jax.tree.leaves(state)
    found = saved_and_loaded(path, model, params, state, x)
    assert hashes(found(x)) == hashes(here(model, params, state, x))


def test_what_a_model_closes_over_is_in_the_file(path):
    constant = jnp.arange(4.0)
    model = layers.function(lambda x: x + jnp.sin(constant)[None] + np.arange(4, dtype=np.float32)[None])
    found = saved_and_loaded(path, model, {}, {}, X)
    assert hashes(found(X)) == hashes(here(model, {}, {}, X))


def test_weights_lie_beside_the_program_and_not_in_it(path):
    model, x = layers.dense(1000), jax.ShapeDtypeStruct((1, 1000), jnp.float32)
    params, state = model.init(KEY, x)
    exporting.save_model(path, model, params, state, x)
    size = path.stat().st_size - sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert 0 < size < 10_000


def test_it_is_compiled_once_for_each_shape_and_goes_into_other_programs(path, compilations):
    model = layers.dense(3)
    params, state = started(model, X)
    found = saved_and_loaded(path, model, params, state, X)
    expected = here(model, params, state, X)
    a = jnp.asarray(X)
    compilations.clear()
    for _ in range(3):
        found(a)
    assert len(compilations) == 1
    np.testing.assert_array_equal(jax.jit(found)(X), expected)
    # One row at a time: on some processors a product of one row is summed in another order.
    np.testing.assert_allclose(jax.lax.map(lambda b: found(b[None])[0], a), expected, rtol=1e-6)


def test_double_precision_is_not_cut(path):
    with jax.enable_x64(True):
        x = X.astype(np.float64)
        model = layers.dense(3)
        params, state = started(model, x)
        expected = hashes(here(model, params, state, x))
        assert hashes(saved_and_loaded(path, model, params, state, x)(x)) == expected
    with pytest.raises(exporting.ExportError, match=r"of at most 32 bits, got float64; set jax\.config\.update"):
        exporting.load(path)


def test_the_number_of_examples_can_be_fixed(path):
    found = saved_and_loaded(path, layers.tanh, {}, {}, X, batch=2)
    assert found.takes == {"x": "float32 (2, 4)"}
    assert hashes(found(X[:2])) == hashes(here(layers.tanh, {}, {}, X[:2]))
    with pytest.raises(ValueError, match=r"a\.export: x: expected float32 \(2, 4\), got float32 \(7, 4\)"):
        found(X)


# ---- platforms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "platforms",
    [
        ("cuda", "cpu", "tpu"),
        *(pytest.param(p, marks=pytest.mark.slow) for p in (("cpu",), ("cuda",), ("rocm", "tpu"))),
    ],
    ids=lambda names: "-".join(names),
)
def test_each_platform_gets_the_form_that_is_fast_there(path, platforms):
    """On CPU convolution is a product over patches, elsewhere it is XLA's, wherever it was saved."""
    model = layers.conv(4, 3)
    exporting.save_model(path, model, *started(model, IMAGES), IMAGES, platforms=platforms)
    found = texts(path)
    assert set(found) == set(platforms)
    for platform, text in found.items():
        assert ("stablehlo.convolution" in text) is (platform != "cpu")
        assert ("stablehlo.dot_general" in text) is (platform == "cpu")


def test_a_program_that_is_the_same_everywhere_is_there_once(path):
    found = saved_and_loaded(path, network(), *started(network(), X), X)
    assert len({id(program) for program in found.programs.values()}) == 1
    assert found.programs["cpu"].platforms == ("cpu", "cuda", "tpu")


def test_where_it_was_not_saved_for_it_says_so(path):
    found = saved_and_loaded(path, layers.tanh, {}, {}, X, platforms=("cuda",))
    with pytest.raises(ValueError, match=r"a\.export: expected one of the platforms cuda, got cpu; save it for"):
        found(X)


# ---- runs ------------------------------------------------------------------------------------------------------------

OPTIONS = {"epochs": 3, "batch_size": 16}
BEST = {"monitor": "validation_loss", "keep_best": True}


def trainer(model):
    optimizer = optax.adam(1e-2)
    return training.supervised(model, losses.softmax_cross_entropy, optimizer, metrics={"accuracy": metrics.accuracy})


def examples(shape, count):
    """So many examples that a batch of 16 leaves some over."""
    return RNG.normal(size=(count, *shape)).astype(np.float32), RNG.integers(0, 3, count).astype(np.int32)


def images():
    inside = (layers.conv(4, 3), layers.batch_norm(), layers.relu, layers.max_pool(2), layers.dropout(0.2))
    return layers.serial(*inside, layers.flatten, layers.dense(3))


def run(script, cwd, blocked=("funcnn", "optax")):
    """What a script prints in a process of its own, where these cannot be imported."""
    lines = ["import sys", *(f"sys.modules[{name!r}] = None" for name in blocked), textwrap.dedent(script)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "error", "-c", "\n".join(lines)]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# As docs/exporting.md shows it; a test below holds the two together.
READER = """
import hashlib, json
import jax, jax.numpy as jnp, numpy as np
from jax import export

def load(path):
    with open(path, "rb") as file:
        first, rest = file.readline(), file.read()
    if json.loads(first)["sha256"] != hashlib.sha256(rest).hexdigest():
        raise ValueError(f"{path} is damaged")
    header, _, body = rest.partition(b"\\n")
    header = json.loads(header)
    platform = export.default_export_platform()
    at = next(about for about in header["programs"] if platform in about["platforms"])
    program = export.deserialize(bytearray(body[at["offset"] : at["offset"] + at["size"]]))
    weights = {
        name: np.ndarray(about["shape"], jnp.dtype(about["dtype"]), body, about["offset"])
        for name, about in header["arrays"].items()
    }
    return jax.jit(program.call), weights
"""
HASHES = """
def hashes(tree):
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found[name] = f"{leaf.dtype}{leaf.shape}{hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()}"
    return found

for name in ("funcnn", "optax"):
    try:
        __import__(name)
        raise SystemExit(f"{name} can be imported")
    except ImportError:
        pass
"""


def test_the_page_shows_how_to_read_without_funcnn():
    page = (ROOT / "docs" / "exporting.md").read_text()
    shown = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "deserialize" in block]
    assert [ast_of(block) for block in shown] == [ast_of(READER)]


def ast_of(text):
    return ast.dump(ast.parse(text))


def test_a_model_is_read_without_funcnn(path, tmp_path):
    model = layers.serial(network(), noisy())
    params, state = started(model, X)
    exporting.save_model(path, model, params, state, X)
    np.save(tmp_path / "x.npy", X)
    script = f"{READER}{HASHES}\nfunction, weights = load('a.export')\nx = np.load('x.npy')\n"
    found = run(script + "print(json.dumps(hashes(function(weights, x))))", tmp_path)
    assert json.loads(found) == hashes(here(model, params, state, X))


@pytest.mark.parametrize(
    ("make", "shape", "more"),
    [
        pytest.param(network, (4,), {}, marks=pytest.mark.slow),
        pytest.param(network, (4,), BEST | {"patience": 1}, marks=pytest.mark.slow),
        pytest.param(images, (8, 8, 1), BEST, marks=pytest.mark.slow),
        pytest.param(network, (4,), {"shuffle": False, "drop_last": True}, marks=pytest.mark.slow),
    ],
    ids=["network", "early stop", "images", "in order"],
)
def test_a_whole_run_gives_the_same_bits_without_funcnn(path, tmp_path, make, shape, more):
    """Dropout, batch norm, a ragged last batch, Adam and validation."""
    train, test = examples(shape, 50), examples(shape, 21)
    ours, options, key = trainer(make()), OPTIONS | more, jax.random.key(7)

    @jax.jit
    def direct(key, train, test):
        return training.run(ours, train, key=key, validation=test, **options)

    specs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (train, test))
    exporting.save_run(path, ours, specs[0], validation=specs[1], **options)
    np.savez(tmp_path / "data.npz", *train, *test)
    script = f"""{READER}{HASHES}
function, weights = load("a.export")
with np.load("data.npz") as file:
    a, b, c, d = (file[name] for name in file.files)
print(json.dumps(hashes(function(jax.random.key(7), (a, b), (c, d)))))
"""
    expected = hashes(direct(key, train, test))
    assert {"state/params/dense_0/bias", "history/validation_accuracy"} <= set(expected) or shape != (4,)
    assert ("best/params/dense_0/bias" in expected) is ("keep_best" in more)
    assert json.loads(run(script, tmp_path)) == expected


def test_a_run_on_a_function_takes_a_key_alone(path):
    ours = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.1))

    def points(key):
        x = jax.random.uniform(key, (8, 1))
        return x, 3 * x

    exporting.save_run(path, ours, points, steps=5, platforms=("cpu",))
    found = exporting.load(path)
    assert found.arguments == ("key",)
    expected = jax.jit(lambda key: training.run(ours, points, key=key, steps=5))(KEY)
    assert hashes(found(KEY)) == hashes(expected)


def test_a_run_is_described(path):
    x = np.ones((6, 2))  # of double precision, which JAX cuts
    ours = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.1))
    exporting.save_run(path, ours, (x, x[:, :1]), epochs=2, card="line")
    found = exporting.load(path)
    assert found.takes == {"data/0": "float32 (6, 2)", "data/1": "float32 (6, 1)", "key": "key<fry> ()"}
    assert found.returns["history/loss"] == "float32 (2,)"
    assert (found.kind, found.card, found.params) == ("run", "line", {})
    assert repr(found).startswith("Export(run for cpu, cuda, tpu: data/0: float32 (6, 2), ")
    result = found(KEY, (x, x[:, :1]))
    assert set(result) == {"state", "history", "best", "telemetry"}
    assert set(result["state"]) == {"params", "model_state", "opt_state", "key", "step"}
    assert result["state"]["step"] == 2
    assert type(result["state"]["opt_state"]) is tuple


# ---- what is refused -------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    x: object


def needs_to_know():
    """A layer that asks in Python how many examples there are."""

    def apply(params, state, x, *, key=None, training=False):
        del key, training
        return (x * 2 if x.shape[0] > 3 else x), state

    return Layer(lambda key, x: ({}, {}), apply, "curious")


def model_of(layer, x=X, **options):
    params, state = layer.init(KEY, x)
    return lambda path: exporting.save_model(path, layer, params, state, x, **options)


def run_of(given=(X, X), **options):
    ours = training.supervised(layers.dense(4), losses.squared_error, optax.sgd(0.1))
    return lambda path: exporting.save_run(path, ours, given, **{"epochs": 1, **options})


def calling_python(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


REFUSED = {
    "not a layer": (
        lambda path: exporting.save_model(path, 3, {}, {}, X),
        TypeError,
        "exporting.save_model: expected a layer, got int",
    ),
    "params of another model": (
        lambda path: exporting.save_model(path, layers.dense(3), {"kernel": jnp.ones((5, 3))}, {}, X),
        ValueError,
        "pass the params that init of this very model returned",
    ),
    "params of another size": (
        lambda path: exporting.save_model(path, layers.dense(3, bias=False), {"kernel": jnp.ones((5, 3))}, {}, X),
        ValueError,
        r"dense: expected 5 input features.*got 4",
    ),
    "numbers": (
        lambda path: exporting.save_model(path, layers.dense(3), {"kernel": 3.0}, {}, X),
        TypeError,
        "exporting.save_model: params/kernel: expected an array, got float",
    ),
    "strings": (
        lambda path: exporting.save_model(path, layers.tanh, {"a": np.array(["b"])}, {}, X),
        TypeError,
        "params/a: expected an array of numbers, got <U1",
    ),
    "tracers": (
        lambda path: jax.jit(lambda a: exporting.save_model(path, layers.tanh, {"a": a}, {}, X))(X),
        TypeError,
        "params/a: expected an array, got a tracer; save outside of jit",
    ),
    "an unknown platform": (model_of(layers.tanh, platforms=("cpu", "cpux")), ValueError, "got 'cpux'"),
    "gpu": (model_of(layers.tanh, platforms=("gpu",)), ValueError, "got 'gpu'; say whose: cuda, or rocm"),
    "a platform alone": (model_of(layers.tanh, platforms="cpu"), ValueError, r"pass several, or one as platforms="),
    "no platform": (model_of(layers.tanh, platforms=()), ValueError, "platforms, of cpu, cuda, rocm, tpu, got ()"),
    "a card": (model_of(layers.tanh, card=3), TypeError, "expected card as a text, got int"),
    "no examples": (model_of(layers.tanh, batch=0), ValueError, "batch of at least 1, got 0"),
    "a class": (
        lambda path: exporting.save_model(path, stateless(lambda p, x: x.x), {}, {}, Batch(X)),
        TypeError,
        "expected x of dicts, tuples, lists and arrays, got a Batch",
    ),
    "a layer that has to know": (
        model_of(layers.serial(layers.dense(3), layers.named("head", layers.serial(needs_to_know())))),
        ValueError,
        r"got head / curious_0, which has to know it \(InconclusiveDimensionOperation: .*; pass batch=",
    ),
    "such a layer alone": (model_of(needs_to_know()), ValueError, "got curious, which has to know it"),
    "a cache": (
        model_of(layers.attention(2, causal=True, cache=8), np.ones((2, 1, 4), np.float32)),
        ValueError,
        r"got attention, which has to know it \(ValueError: attention: expected 2 examples.*; pass batch=",
    ),
    "what calls Python": (model_of(layers.function(calling_python)), ValueError, "leave out what calls Python"),
    "not a trainer": (
        lambda path: exporting.save_run(path, 3, (X, X), epochs=1),
        TypeError,
        "expected a Trainer, got int",
    ),
    "a stream": (run_of(iter([(X, X)])), TypeError, "exporting.save_run: data: expected an array, got an iterator"),
    "data of two lengths": (run_of((X, X[:3])), ValueError, "expected as many examples in every array, got 7.* and 3"),
    "neither epochs nor steps": (run_of(epochs=None), ValueError, "run: expected either epochs or steps, got neither"),
    "no mode": (run_of(monitor="accuracy", patience=1), ValueError, "expected mode for 'accuracy', got none"),
    "data of a class": (run_of(Batch(X)), TypeError, "expected data of dicts, tuples, lists and arrays, got a Batch"),
}


@pytest.mark.parametrize(("save", "error", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_saved_is_refused_before_there_is_a_file(path, save, error, message):
    with pytest.raises(error, match=message) as found:
        save(path)
    assert FORM.fullmatch(str(found.value).partition("\n")[0]), found.value  # JAX adds lines of its own
    assert os.listdir(path.parent) == []


def test_the_fix_for_a_layer_that_has_to_know_is_one(path):
    model_of(needs_to_know(), batch=2)(path)
    np.testing.assert_array_equal(exporting.load(path)(X[:2]), X[:2])


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """A model of two inputs and a run, loaded."""
    folder = tmp_path_factory.mktemp("functions")
    pair = {"x": X, "flags": np.ones(7, bool)}
    model = stateless(lambda p, x: x["x"] * x["flags"][:, None])
    exporting.save_model(folder / "model", model, {}, {}, pair, platforms=("cpu",))
    ours = training.supervised(layers.dense(4), losses.squared_error, optax.sgd(0.1))
    exporting.save_run(folder / "run", ours, (X, X), epochs=1, platforms=("cpu",))
    return exporting.load(folder / "model"), exporting.load(folder / "run")


FLAGS = np.ones(7, bool)


@pytest.mark.parametrize(
    ("which", "arguments", "error", "message"),
    [
        (0, (), TypeError, "model: expected the arguments x, got 0 arguments"),
        (0, (X,), ValueError, r"model: expected x/flags: bool \(batch,\), x/x: float32 \(batch, 4\), got x: float32"),
        (0, ({"x": X, "flags": X},), TypeError, r"model: x/flags: expected bool \(batch,\), got float32 \(7, 4\)"),
        (
            0,
            ({"x": X[:, :3], "flags": FLAGS},),
            ValueError,
            r"x/x: expected float32 \(batch, 4\), got float32 \(7, 3\)",
        ),
        (0, ({"x": X[0], "flags": FLAGS},), ValueError, r"x/x: expected float32 \(batch, 4\), got float32 \(4,\)"),
        (0, ({"x": X[None], "flags": FLAGS},), ValueError, r"x/x: expected float32 \(batch, 4\), got .*\(1, 7, 4\)"),
        (0, ({"x": X, "flags": FLAGS[:3]},), ValueError, "one number of examples, from 1 on, .*, got 3 and 7"),
        (0, ({"x": X[:0], "flags": FLAGS[:0]},), ValueError, "one number of examples, from 1 on, .*, got 0"),
        (1, (KEY,), TypeError, "run: expected the arguments key, data, got 1 arguments"),
        (1, (0, (X, X)), TypeError, r"run: key: expected a JAX key, got int 0; pass jax\.random\.key\(0\)"),
        (1, (jax.random.key(0, impl="rbg"), (X, X)), TypeError, r"run: key: expected key<fry> \(\), got key<rbg> \(\)"),
        (1, (KEY, X), ValueError, r"run: expected data/0: float32 \(7, 4\)"),
        (1, (KEY, (X[:6], X[:6])), ValueError, r"run: data/0: expected float32 \(7, 4\), got float32 \(6, 4\)"),
        (
            1,
            (KEY, (X, X.astype(int))),
            TypeError,
            r"data/1: expected float32 \(7, 4\), got int32 .*astype\('float32'\)",
        ),
    ],
)
def test_wrong_arguments_are_refused_before_jax_sees_them(functions, which, arguments, error, message):
    with pytest.raises(error, match=message) as found:
        functions[which](*arguments)
    assert FORM.fullmatch(str(found.value)), found.value


def test_double_precision_is_taken_as_jax_takes_it(functions):
    given = {"x": X.astype(np.float64), "flags": FLAGS}
    np.testing.assert_array_equal(functions[0](given), X)


def test_without_flatbuffers_it_says_what_to_install(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ImportError, match=r"pip install 'funcnn\[exporting\]'"):
        exporting.load(small)
    with pytest.raises(ImportError, match=r"pip install 'funcnn\[exporting\]'"):
        exporting.save_model(small, layers.tanh, {}, {}, X)


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def deserialized(monkeypatch):
    """All that ``jax.export.deserialize`` is called with."""
    called = []
    original = jax.export.deserialize

    def watched(blob):
        called.append(bytes(blob))
        return original(blob)

    monkeypatch.setattr(jax.export, "deserialize", watched)
    return called


def outcome(path, content):
    """What becomes of a file with this content."""
    path.write_bytes(content)
    try:
        exporting.load(path)
    except exporting.ExportError as error:
        named = error.path == str(path) and FORM.fullmatch(str(error)) and str(path) in str(error)
        return "refused" if named else f"not in our words: {error}"
    return "read"


def flipped(content, places, masks):
    for place in places:
        for mask in masks:
            yield content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :]


def test_a_changed_byte_is_refused_before_anything_is_deserialized(small, deserialized):
    content = small.read_bytes()
    assert len(content) < 10_000
    assert {outcome(small, c) for c in flipped(content, range(0, len(content), 5), (0x20,))} == {"refused"}
    assert deserialized == []
    assert outcome(small, content) == "read"
    assert len(deserialized) == 1


@pytest.mark.slow
def test_a_bit_of_every_byte_is_refused_before_anything_is_deserialized(small, deserialized):
    content = small.read_bytes()
    for bit in range(8):
        places = range(bit, len(content), 8)
        assert {outcome(small, c) for c in flipped(content, places, (1 << bit,))} == {"refused"}
    assert deserialized == []


@pytest.mark.long
def test_every_changed_bit_is_refused_before_anything_is_deserialized(small, deserialized):
    content = small.read_bytes()
    masks = [1 << bit for bit in range(8)]
    assert {outcome(small, c) for c in flipped(content, range(len(content)), masks)} == {"refused"}
    assert deserialized == []


def test_a_file_that_was_cut_off_is_refused_at_every_length(small, deserialized):
    content = small.read_bytes()
    assert {outcome(small, content[:n]) for n in range(len(content))} == {"refused"}
    assert {outcome(small, content + more) for more in (b"\0", b"\n", content)} == {"refused"}
    assert outcome(small, b"PK\x03\x04" + bytes(100)) == "refused"
    assert deserialized == []


def with_header(content, change):
    """The file with another header, and the checksum that is right for it."""
    _, header, body = content.split(b"\n", 2)
    return signed(change(json.loads(header)), body)


def signed(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    rest = text + b"\n" + body
    digest = hashlib.sha256(rest).hexdigest()
    return json.dumps({"format": "funcnn export 1", "sha256": digest}).encode() + b"\n" + rest


def leaf(**changes):
    """A change of what the header says of one array."""

    def changed(header):
        header["arrays"]["params/dense_0/bias"].update(changes)
        return header

    return changed


def place(**changes):
    """A change of what the header says of the program."""
    return lambda header: header | {"programs": [header["programs"][0] | changes]}


def without(name):
    return lambda header: {key: value for key, value in header.items() if key != name}


def renamed(header):
    arrays = {
        f"params/dense_0/bias/{i}" if i else "params/dense_0/bias": a for i, a in enumerate(header["arrays"].values())
    }
    return header | {"arrays": arrays}


MALFORMED = {
    **{f"no {name}": without(name) for name in ("kind", "card", "arguments", "arrays", "versions", "programs")},
    "kind": lambda header: header | {"kind": "other"},
    "another kind": lambda header: header | {"kind": "run"},
    "card": lambda header: header | {"card": 3},
    "versions": lambda header: header | {"versions": ["jax"]},
    "a version": lambda header: header | {"versions": {"jax": 3}},
    "arguments": lambda header: header | {"arguments": 3},
    "an argument": lambda header: header | {"arguments": [3]},
    "no arguments": lambda header: header | {"arguments": []},
    "more arguments": lambda header: header | {"arguments": ["x", "y"]},
    "arrays": lambda header: header | {"arrays": []},
    "no arrays": lambda header: place(offset=0)(header | {"arrays": {}}),
    "fewer arrays": lambda header: header | {"arrays": dict(list(header["arrays"].items())[:-1])},
    "one beneath another": renamed,
    "programs": lambda header: header | {"programs": 3},
    "no programs": lambda header: header | {"programs": []},
    "further": lambda header: place(offset=header["programs"][0]["offset"] + 1)(header),
    "before": place(offset=-1),
    "text": lambda header: place(offset=str(header["programs"][0]["offset"]))(header),
    "shorter": lambda header: place(size=header["programs"][0]["size"] - 1)(header),
    "longer": lambda header: place(size=header["programs"][0]["size"] + 1)(header),
    "of nothing": place(size=0),
    "backwards": place(size=-1),
    "platforms": place(platforms=3),
    "a platform": place(platforms=[3]),
    "other platforms": place(platforms=["cuda", "cpu"]),
    "dtype": leaf(dtype="nothing"),
    "objects": leaf(dtype="object"),
    "records": leaf(dtype="V4"),
    "dates": leaf(dtype="datetime64[s]"),
    "whole numbers": leaf(dtype="int32"),
    "no dtype": leaf(dtype=None),
    "shape": leaf(shape=3),
    "half": leaf(shape=[2.5]),
    "less": leaf(shape=[4]),
    "negative": leaf(shape=[-1]),
    "other axes": leaf(shape=[5, 1]),
    "huge": leaf(shape=[2**40, 2**40]),
    "large": leaf(shape=[2**20]),
    "offset": leaf(offset=4),
    "far": leaf(offset=2**70),
    "key": leaf(key="threefry2x32"),
    "another key": leaf(key="nothing"),
    "a list": lambda header: [header],
    "a number": lambda header: 3,
    "nothing": lambda header: b"",
    "deep": lambda header: b"[" * 100_000,
    "not a text": lambda header: b"\xff",
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=list(MALFORMED))
def test_a_header_that_no_save_writes_is_refused_though_its_checksum_is_right(small, change):
    assert outcome(small, with_header(small.read_bytes(), change)) == "refused"


def test_a_run_with_arrays_is_refused(path):
    ours = training.supervised(layers.dense(4), losses.squared_error, optax.sgd(0.1))
    exporting.save_run(path, ours, (X, X), epochs=1, platforms=("cpu",))
    arrays = {name: {"dtype": "int8", "shape": [0], "offset": 0} for name in ("a", "a/b")}
    assert outcome(path, with_header(path.read_bytes(), lambda header: header)) == "read"
    assert outcome(path, with_header(path.read_bytes(), lambda header: header | {"arrays": arrays})) == "refused"


def test_a_header_of_other_order_of_keys_is_read(small):
    """So that the test above is about what is malformed."""
    assert outcome(small, with_header(small.read_bytes(), lambda header: dict(reversed(header.items())))) == "read"


def test_without_a_second_line_or_a_program_it_is_refused(small):
    content = small.read_bytes()
    assert outcome(small, signed(b"{}", b"").removesuffix(b"\n")) == "refused"
    assert outcome(small, with_header(content, lambda header: header)) == "read"
    _, header, body = content.split(b"\n", 2)
    end = json.loads(header)["programs"][0]["offset"]
    assert outcome(small, signed(header, body[:end])) == "refused"
    assert outcome(small, signed(header, body + b"\0")) == "refused"


def test_what_a_newer_jax_wrote_is_said(small, monkeypatch):
    content = with_header(small.read_bytes(), lambda header: header | {"versions": {"jax": "9.9.9"}})
    assert outcome(small, content) == "read"

    def fails(self):
        raise ValueError("Failed to deserialize StableHLO\nat great length")

    monkeypatch.setattr(jax.export.Exported, "mlir_module", fails)
    message = (
        rf"a program that jax {re.escape(jax.__version__)} can read, got one of jax 9\.9\.9 \(ValueError: Failed to"
    )
    with pytest.raises(exporting.ExportError, match=message):
        exporting.load(small)


@pytest.mark.parametrize("what", ["text", [["a"]], object()], ids=["text", "texts", "an object"])
def test_what_is_no_array_is_refused(small, what):
    with pytest.raises(TypeError, match=r"^\S+: x.*: expected an array, got (str|object); pass arrays"):
        exporting.load(small)(what)


# ---- whole or not at all ---------------------------------------------------------------------------------------------


def test_whichever_operation_fails_there_is_a_whole_file(small, monkeypatch):
    old = small.read_bytes()
    monkeypatch.setattr(disk.uuid, "uuid4", lambda: uuid.UUID(int=1))
    states = []
    for n in range(1, 100):
        count = 0

        def counted(name, original, n=n):
            def call(*arguments, **options):
                nonlocal count
                count += 1
                if count == n:
                    if name == "close":
                        original(*arguments)
                    raise OSError(28, "No space left on device")
                return original(*arguments, **options)

            return call

        small.write_bytes(old)
        with monkeypatch.context() as patch:
            for name in ("open", "write", "fsync", "close", "replace"):
                patch.setattr(os, name, counted(name, getattr(os, name)))
            try:
                exporting.save_model(small, layers.tanh, {}, {}, X)
                break
            except OSError:
                pass
        exporting.load(small)
        states.append(small.read_bytes() == old)
        assert os.listdir(small.parent) == [small.name]
    # open, three parts written, close; open, fsync, close, replace; then the folder: opened, flushed, closed.
    assert len(states) == 12
    assert states == [True] * (len(states) - 3) + [False] * 3


def test_a_short_write_is_gone_on_with(small, monkeypatch):
    original = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: original(handle, content[:100]))
    model = network()
    params, state = started(model, X)
    found = saved_and_loaded(small, model, params, state, X)
    assert hashes(found.params) == hashes(params)


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_what_was_there(small):
    old = small.read_bytes()
    script = f"""
        sys.path.insert(0, {str(ROOT)!r})
        import resource, signal
        import jax
        from funcnn import exporting, layers
        model, x = layers.dense(100), jax.ShapeDtypeStruct((1, 100), "float32")
        params, state = model.init(jax.random.key(0), x)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            exporting.save_model({str(small)!r}, model, params, state, x)
        except OSError as error:
            print(type(error).__name__)
    """
    assert run(script, small.parent, blocked=()) == "OSError"
    assert small.read_bytes() == old
    assert os.listdir(small.parent) == [small.name]


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        exporting.save_model(tmp_path / "nowhere" / "a", layers.tanh, {}, {}, X)
    with pytest.raises(FileNotFoundError):
        exporting.load(tmp_path / "nothing")


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(exporting.ExportError, match="a file, got a folder or a device"):
            exporting.load(path)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**36)  # is not read
    with pytest.raises(exporting.ExportError, match="one that begins otherwise"):
        exporting.load(tmp_path / "sparse")
