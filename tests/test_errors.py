"""Each mistake that a newcomer makes, and what the library says: where, what was expected, what came, and what to do.

Every message is matched from its first word to its last, with the notes that say where in the network and in which
of the data it happened.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import layers, losses, metrics, training

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
N = 20
X = RNG.normal(size=(N, 7)).astype(np.float32)
LABELS = RNG.integers(0, 3, N)
LABELS[:3] = 0, 1, 2
IMAGES = RNG.integers(0, 255, (N, 8, 8, 1)).astype(np.uint8)
CLASSIFIER = layers.serial(layers.dense(8), layers.relu, layers.dense(3))
CONVOLUTIONAL = layers.serial(layers.conv(4, 3), layers.relu, layers.flatten, layers.dense(3))


def trainer(model=CLASSIFIER, loss=losses.softmax_cross_entropy, optimizer=None, **options):
    return training.supervised(model, loss, optax.sgd(0.1) if optimizer is None else optimizer, **options)


def fit(line=None, data=(X, LABELS), **options):
    line = trainer() if line is None else line
    return training.fit(line, data, **{"key": KEY, "epochs": 1, "progress": False, **options})


@functools.cache
def trained():
    """A state of ``trainer()``, and the trainer."""
    line = trainer()
    return line, jax.jit(line.init)(KEY, (X, LABELS))


def notes(error):
    """The notes that are ours."""
    return [note for note in getattr(error, "__notes__", []) if "JAX" not in note and not note.startswith("-")]


def assert_raises(call, error, message, *expected_notes):
    """The whole message, in which ``...`` stands for anything."""
    with pytest.raises(error) as caught:
        call()
    assert caught.type is error
    found = str(caught.value)
    assert _matches(found, message), found
    assert notes(caught.value) == list(expected_notes)


def _matches(found, pattern):
    parts, at = pattern.split("..."), 0
    for i, part in enumerate(parts):
        place = found.find(part, at)
        if place < 0 or (i == 0 and place):
            return False
        at = place + len(part)
    return at == len(found) or not parts[-1]


def test_the_matcher_of_messages_is_strict():
    assert _matches("a b c", "a b c")
    assert _matches("a b c", "a ... c")
    assert not any(_matches("a b c", pattern) for pattern in ("a b", "b c", "a ... d", "a b c d", "c ... a"))


# ---- shapes ----------------------------------------------------------------------------------------------------------

WRONG = "pass inputs of the shape that init was given, or init again"


def nested():
    model = layers.serial(
        layers.named("encoder", layers.serial(layers.dense(8), layers.relu, layers.dense(4))), layers.dense(3)
    )
    params, state = model.init(KEY, X)
    params["encoder"]["dense_1"]["kernel"] = jnp.ones((6, 4))
    return model, params, state


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, lambda f: jax.grad(lambda *a: f(*a)[0].sum())])
def test_wrong_features_into_the_second_layer_of_a_nested_model(transform):
    model, params, state = nested()
    assert_raises(
        lambda: transform(lambda params, x: model.apply(params, state, x))(params, X),
        ValueError,
        f"dense: expected 6 input features, as its kernel (6, 4) has, got 8 in an input of shape (20, 8); {WRONG}",
        "encoder / dense_1: input (20, 8)",
    )


def test_wrong_features_into_the_second_layer_through_predict_and_fit(compilations):
    model, params, state = nested()
    bad = trained()[1]._replace(params=params, model_state=state)
    message = (
        f"dense: expected 6 input features, as its kernel (6, 4) has, got 8 in an input of shape (..., 8); {WRONG}"
    )
    path = "encoder / dense_1: input ({}, 8)"
    where = "predict: in x of shape (20, 7), cut into batches of 32 rows"
    assert_raises(lambda: training.predict(model, bad, X), ValueError, message, path.format(32), where)
    compilations.clear()
    where = "fit: in data of shapes ((20, 7), (20,))"
    assert_raises(lambda: fit(trainer(model), state=bad), ValueError, message, path.format(20), where)
    assert not compilations


@pytest.mark.parametrize("where", ["validation", "evaluate", "predict", "predict none"])
def test_other_features_than_in_training(where):
    line, state = trained()
    call, rows, last = {
        "validation": (
            lambda: fit(validation=(X[:, :5], LABELS)),
            20,
            "fit: in validation of shapes ((20, 5), (20,))",
        ),
        "evaluate": (
            lambda: training.evaluate(line, state, (X[:, :5], LABELS)),
            20,
            "evaluate: in data of shapes ((20, 5), (20,))",
        ),
        "predict": (
            lambda: training.predict(CLASSIFIER, state, X[:, :5], batch_size=4),
            4,
            "predict: in x of shape (20, 5), cut into batches of 4 rows",
        ),
        "predict none": (lambda: training.predict(CLASSIFIER, state, X[:0, :5]), 1, None),
    }[where]
    message = (
        f"dense: expected 7 input features, as its kernel (7, 8) has, got 5 in an input of shape ({rows}, 5); {WRONG}"
    )
    assert_raises(call, ValueError, message, f"dense_0: input ({rows}, 5)", *([last] if last else []))


def test_one_row_without_its_batch_axis():
    assert_raises(
        lambda: training.predict(CLASSIFIER, trained()[1], X[0]),
        ValueError,
        f"dense: expected 7 input features, as its kernel (7, 8) has, got 32 in an input of shape (32,); {WRONG}",
        "dense_0: input (32,)",
        "predict: in x of shape (7,), cut into batches of 32 rows, which are 7 examples of one number each; "
        "a single example is x[None]",
    )


def test_targets_of_n_against_outputs_of_n_and_1(compilations):
    assert_raises(
        lambda: fit(trainer(layers.dense(1), losses.squared_error), (X, X[:, 0])),
        ValueError,
        "squared_error: expected a target of the prediction's shape (20, 1), got (20,); "
        "add the last axis: target[..., None], for shapes are never broadcast",
        "fit: in data of shapes ((20, 7), (20,))",
    )
    assert not compilations


def test_a_loss_of_your_own_that_broadcasts():
    line = trainer(layers.dense(1), lambda outputs, targets: (outputs - targets[None]) ** 2)
    assert_raises(
        lambda: fit(line, (X, X[:, 0])),
        ValueError,
        "supervised: expected losses whose shape begins that of the outputs (20, 1) or of the targets (20,), "
        "got (20, 20); the two were broadcast against each other: give them equal shapes, for instance y[:, None]",
        "fit: in data of shapes ((20, 7), (20,))",
    )


def test_a_loss_that_was_reduced_to_a_scalar():
    assert_raises(
        lambda: fit(trainer(loss=lambda y, t: losses.softmax_cross_entropy(y, t).mean())),
        ValueError,
        "supervised: expected losses with a leading axis of examples, got a scalar; "
        "return one loss for each example; the trainer takes the mean",
        "fit: in data of shapes ((20, 7), (20,))",
    )


def test_images_with_channels_first(compilations):
    last, first = np.zeros((N, 28, 28, 3), np.float32), np.zeros((N, 3, 28, 28), np.float32)
    line = trainer(CONVOLUTIONAL)
    state = jax.jit(line.init)(KEY, (last, LABELS))
    compilations.clear()
    message = (
        "conv: expected 3 input features, as its kernel (3, 3, 3, 4) has, got 28 in an input of shape ({}, 3, 28, 28), "
        "3 against 28 features; features come last, here and at init: jnp.moveaxis(x, 1, -1) where they come first"
    )
    for call, rows, where in (
        (
            lambda: training.predict(CONVOLUTIONAL, state, first),
            32,
            "predict: in x of shape (20, 3, 28, 28), cut into batches of 32 rows",
        ),
        (
            lambda: training.evaluate(line, state, (first, LABELS)),
            20,
            "evaluate: in data of shapes ((20, 3, 28, 28), (20,))",
        ),
        (
            lambda: fit(line, (last, LABELS), validation=(first, LABELS)),
            20,
            "fit: in validation of shapes ((20, 3, 28, 28), (20,))",
        ),
        (lambda: fit(line, (first, LABELS), state=state), 20, "fit: in data of shapes ((20, 3, 28, 28), (20,))"),
    ):
        assert_raises(call, ValueError, message.format(rows), f"conv_0: input ({rows}, 3, 28, 28)", where)
    assert not compilations


# ---- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training_call", [False, True])
def test_dropout_without_a_key(training_call):
    model = layers.serial(layers.dense(4), layers.named("head", layers.serial(layers.dropout(0.5))))
    params, state = model.init(KEY, X)
    if not training_call:
        assert model.apply(params, state, X)[0].shape == (N, 4)
        return
    assert_raises(
        lambda: model.apply(params, state, X, training=True),
        TypeError,
        "dropout: expected a key when training, got None; pass key=jax.random.key(0) to apply, a new one for each step",
        "head / dropout_0: input (20, 4)",
    )


@pytest.mark.parametrize(
    ("key", "got"),
    [
        (0, "int 0; pass jax.random.key(0)"),
        (None, "NoneType None; pass jax.random.key(0)"),
        (
            np.zeros(2, np.uint32),
            "a raw array uint32(2,); pass jax.random.key(0), or jax.random.wrap_key_data(key) for an old-style key",
        ),
        (
            "raw",
            "a raw array uint32(2,); pass jax.random.key(0), or jax.random.wrap_key_data(key) for an old-style key",
        ),
        ("several", "an array of (3,) keys; use one of them, or jax.vmap over them"),
    ],
    ids=str,
)
def test_what_is_no_key(key, got, compilations):
    line = trainer()
    if isinstance(key, str):
        key = jax.random.PRNGKey(0) if key == "raw" else jax.random.split(KEY, 3)
        compilations.clear()
    options = {"key": key, "epochs": 1}
    for where, call in (
        ("fit", lambda: fit(key=key)),
        ("run", lambda: training.run(line, (X, LABELS), **options)),
        ("steps", lambda: training.steps(line, (X, LABELS), **options)),
        ("trainer.init", lambda: line.init(key, (X, LABELS))),
        ("serial.init", lambda: CLASSIFIER.init(key, X)),
    ):
        assert_raises(call, TypeError, f"{where}: expected a JAX key, got {got}")
    assert not compilations


# ---- targets ---------------------------------------------------------------------------------------------------------

RANGE = "softmax_cross_entropy: expected labels from 0 to 2 for 3 classes, got labels from {} to {}; " + (
    "count classes from 0, or give the last layer more features"
)
FLOATS = "softmax_cross_entropy: expected integer labels, got float32(20,); convert them: target.astype(int)"
IN_DATA = "fit: in data of shapes ((20, 7), (20,))"


@pytest.mark.parametrize("batch_size", [8, None])
@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (LABELS + 1, ValueError, RANGE.format(1, 3)),
        (LABELS - 1, ValueError, RANGE.format(-1, 1)),
        ((LABELS + 1).tolist(), ValueError, RANGE.format(1, 3)),
        (jnp.asarray(LABELS + 1), ValueError, RANGE.format(1, 3)),
        (np.where(np.arange(N) == 19, 3, LABELS), ValueError, RANGE.format(0, 3)),  # in the last batch alone
        (LABELS.astype(np.float32), TypeError, FLOATS),
        (LABELS.astype(np.float64), TypeError, FLOATS),
        (
            LABELS[:, None],
            ValueError,
            "softmax_cross_entropy: expected integer labels (20,) or rows (20, 3), got a target of shape (20, 1); "
            "drop the last axis: target[..., 0]",
        ),
    ],
    ids=["above", "below", "list", "jax", "one", "float32", "float64", "column"],
)
def test_labels_that_cannot_be_are_found_before_anything_is_compiled(labels, error, message, batch_size, compilations):
    note = IN_DATA if np.ndim(labels) == 1 else "fit: in data of shapes ((20, 7), (20, 1))"
    assert_raises(lambda: fit(data=(X, labels), batch_size=batch_size), error, message, note)
    assert not compilations


def test_labels_that_cannot_be_in_other_places(compilations):
    line, state = trained()
    compilations.clear()
    wrong, message = (X, LABELS + 1), RANGE.format(1, 3)
    validation = IN_DATA.replace("data", "validation")
    assert_raises(lambda: fit(validation=wrong), ValueError, message, validation)
    assert_raises(
        lambda: training.evaluate(line, state, wrong), ValueError, message, IN_DATA.replace("fit", "evaluate")
    )
    steps = IN_DATA.replace("fit", "steps")
    assert_raises(lambda: training.steps(line, wrong, key=KEY, epochs=1), ValueError, message, steps)
    smoothed = functools.partial(losses.softmax_cross_entropy, label_smoothing=0.1)
    assert_raises(lambda: fit(trainer(loss=smoothed), wrong), ValueError, message, IN_DATA)
    assert not compilations


def test_labels_for_a_loss_of_numbers():
    assert_raises(
        lambda: fit(trainer(loss=losses.squared_error)),
        ValueError,
        "squared_error: expected a target of the prediction's shape (20, 3), got (20,); "
        "give one target for each output, or for integer labels choose a function over classes",
        IN_DATA,
    )


@pytest.mark.parametrize(("labels", "kind"), [(np.array(["a"] * N), "ndarray"), (["a"] * N, "list")])
def test_names_of_classes_as_targets(labels, kind):
    assert_raises(
        lambda: fit(data=(X, labels)),
        TypeError,
        f"fit at [1]: expected numbers, got strings in a {kind}; "
        "number the labels: np.unique(labels, return_inverse=True)[1]",
    )


# ---- data ------------------------------------------------------------------------------------------------------------


def test_empty_data():
    message = "{}: expected 1 or more examples, got empty data; check what loads or selects them"
    line, state = trained()
    nothing = (X[:0], LABELS[:0])
    assert_raises(lambda: fit(data=nothing), ValueError, message.format("fit at [0]"))
    assert_raises(lambda: fit(data=nothing, batch_size=None), ValueError, message.format("fit at [0]"))
    assert_raises(lambda: fit(data=([], [])), ValueError, message.format("fit at [0]"))
    assert_raises(lambda: fit(validation=nothing), ValueError, message.format("fit: validation at [0]"))
    assert_raises(lambda: training.evaluate(line, state, nothing), ValueError, message.format("evaluate at [0]"))
    assert_raises(lambda: training.run(line, nothing, key=KEY, epochs=1), ValueError, message.format("run at [0]"))
    assert training.predict(CLASSIFIER, state, X[:0]).shape == (0, 3)


@pytest.mark.parametrize(("data", "kind"), [((), "tuple"), (None, "NoneType"), ({}, "dict")])
def test_no_data(data, kind):
    message = f"fit: expected at least one array, got {kind} without any; pass arrays, such as (x, y)"
    assert_raises(lambda: fit(data=data), ValueError, message)


def test_x_and_y_of_different_lengths():
    message = "{}: expected as many examples in every array, got {}; give every example a row in each of them"
    got = "20 at [0] and 19 at [1]"
    line, state = trained()
    short = (X, LABELS[:-1])
    assert_raises(lambda: fit(data=short), ValueError, message.format("fit", got))
    assert_raises(lambda: fit(data=short, batch_size=8), ValueError, message.format("fit", got))
    assert_raises(lambda: fit(validation=short, batch_size=8), ValueError, message.format("fit: validation", got))
    assert_raises(lambda: training.run(line, short, key=KEY, epochs=1), ValueError, message.format("run", got))
    assert_raises(lambda: training.evaluate(line, state, short), ValueError, message.format("evaluate", got))
    weights = (X, LABELS, np.ones(19, np.float32))
    assert_raises(lambda: fit(data=weights), ValueError, message.format("fit", "20 at [0] and 19 at [2]"))


def spoilt(value, *index):
    x = X.copy()
    x[index] = value
    return x


def test_nan_and_infinity_in_the_data(compilations):
    line, state = trained()
    compilations.clear()
    message = "{}: expected finite numbers, got {} in {} at [{}], and {} in all; leave these rows out, or fill them in"
    nan, infinite = spoilt(np.nan, 5, 2), spoilt(-np.inf, slice(3, 6), 1)
    assert_raises(lambda: fit(data=(nan, LABELS)), ValueError, message.format("fit", "nan", "data[0]", "5, 2", 1))
    assert_raises(
        lambda: fit(validation=(infinite, LABELS)),
        ValueError,
        message.format("fit", "-inf", "validation[0]", "3, 1", 3),
    )
    regression = trainer(layers.dense(1), losses.squared_error)
    targets = (X, nan[:, 2:3])
    assert_raises(lambda: fit(regression, targets), ValueError, message.format("fit", "nan", "data[1]", "5, 0", 1))
    assert_raises(
        lambda: training.steps(line, (nan, LABELS), key=KEY, epochs=1),
        ValueError,
        message.format("steps", "nan", "data[0]", "5, 2", 1),
    )
    assert_raises(
        lambda: training.evaluate(line, state, (infinite, LABELS)),
        ValueError,
        message.format("evaluate", "-inf", "data[0]", "3, 1", 3),
    )
    assert_raises(
        lambda: training.predict(CLASSIFIER, state, nan), ValueError, message.format("predict", "nan", "x", "5, 2", 1)
    )
    weights = np.where(np.arange(N) == 4, np.nan, 1.0)
    assert_raises(lambda: fit(data=(X, LABELS, weights)), ValueError, message.format("fit", "nan", "data[2]", "4", 1))
    assert not compilations


def test_integers_where_a_layer_computes(compilations):
    for model, data, at, shown in (
        (CLASSIFIER, RNG.integers(0, 9, (N, 7)).astype(np.int32), "dense_0: input (20, 7)", "int32(20, 7)"),
        (CONVOLUTIONAL, IMAGES, "conv_0: input (20, 8, 8, 1)", "uint8(20, 8, 8, 1)"),
        (layers.serial(layers.flatten, layers.dense(3)), IMAGES, "dense_0: input (20, 64)", "uint8(20, 64)"),
    ):
        kind = at.split("_")[0]
        assert_raises(
            lambda model=model, data=data: fit(trainer(model), (data, LABELS)),
            TypeError,
            f"{kind}: expected a floating input, got {shown}; convert it: x.astype(jnp.float32), and images also / 255",
            at,
            f"fit: in data of shapes ({data.shape}, (20,))",
        )
    assert not compilations


@pytest.mark.parametrize(
    ("data", "error", "message", "where"),
    [
        (X, TypeError, "one of shape (20, 7)", None),
        ({"x": X, "y": LABELS}, TypeError, "one of shape {'x': (20, 7), 'y': (20,)}", None),
        ((X,), TypeError, "1 elements", None),
        ((X, LABELS, LABELS, LABELS), TypeError, "4 elements", "((20, 7), (20,), (20,), (20,))"),
        (lambda key: None, TypeError, "one of shape None", None),
        (lambda key: jnp.zeros((3, 7)), TypeError, "one of shape (3, 7)", None),
        (lambda key: (jnp.zeros((3, 7)),), TypeError, "1 elements", None),
    ],
    ids=["array", "dict", "one", "four", "function of none", "function of an array", "function of one"],
)
def test_data_that_are_no_pair(data, error, message, where):
    assert_raises(
        lambda: fit(data=data),
        error,
        f"supervised: expected batches (x, y) or (x, y, weights), got {message}; "
        "pass data=(x, y), or write an Objective",
        *([f"fit: in data of shapes {where}"] if where else []),
    )


def test_a_list_of_arrays_is_no_tuple():
    assert_raises(
        lambda: fit(data=[X, LABELS]),
        ValueError,
        "fit: expected rows of one shape, got a ragged list; "
        "pad them to one length; several arrays go into a tuple, not a list",
    )


def test_a_single_number_as_data():
    assert_raises(
        lambda: fit(data=(X, LABELS, 1.0)),
        ValueError,
        "fit at [2]: expected an axis of examples, got a single number; pass an array, a list or a DataFrame",
    )
    assert_raises(
        lambda: fit(validation=0.2),
        TypeError,
        "fit: expected validation as arrays, got the number 0.2; "
        "split first: train, test = data.split(everything, 0.2, key=key)",
    )


def test_batches_of_a_function_whose_parts_do_not_meet():
    assert_raises(
        lambda: fit(data=lambda key: (jnp.zeros((3, 7)), jnp.zeros((4,), jnp.int32))),
        ValueError,
        "softmax_cross_entropy: expected integer labels (3,) or rows (3, 3), got a target of shape (4,); "
        "give one label for each row of the prediction",
    )


def test_a_function_that_gives_other_features_at_each_call():
    sizes = itertools.count(7)
    assert_raises(
        lambda: fit(data=lambda key: (jnp.zeros((4, next(sizes))), jnp.zeros((4,), jnp.int32))),
        ValueError,
        f"dense: expected 7 input features, as its kernel (7, 8) has, got 8 in an input of shape (4, 8); {WRONG}",
        "dense_0: input (4, 8)",
    )


def test_what_belongs_to_functions_and_what_to_arrays():
    assert_raises(
        lambda: fit(steps_per_epoch=3),
        ValueError,
        "fit: expected steps_per_epoch only where data is a function, got arrays; an epoch uses every example once",
    )
    assert_raises(
        lambda: fit(validation=lambda key: (X, LABELS)),
        TypeError,
        "fit: expected validation as arrays, got a function; draw the validation data once, before the run",
    )


@pytest.mark.parametrize("shape", [(N, 1), (N, 3)])
def test_weights_of_another_shape(shape):
    assert_raises(
        lambda: fit(data=(X, LABELS, np.ones(shape, np.float32))),
        ValueError,
        f"trainer: expected weights whose shape begins that of the losses, (20,), got {shape}; "
        "give one weight for each example, or for each of its parts",
        f"fit: in data of shapes ((20, 7), (20,), {shape})",
    )


@pytest.mark.slow
def test_lists_series_and_data_frames_are_taken():
    pandas = pytest.importorskip("pandas")
    expected = fit().history["loss"]
    for data in (
        (X.tolist(), LABELS.tolist()),
        (X.astype(np.float64), LABELS.astype(np.int64)),
        (pandas.DataFrame(X), pandas.Series(LABELS)),
        (jnp.asarray(X), jnp.asarray(LABELS)),
        (X, LABELS.astype(np.uint8)),
    ):
        np.testing.assert_array_equal(fit(data=data).history["loss"], expected)
    assert_raises(
        lambda: fit(data=(pandas.DataFrame({"colour": ["red"] * N, "size": np.ones(N)}), LABELS)),
        TypeError,
        "fit at [0]: expected a DataFrame of numbers, got objects in the columns ['colour']; "
        "number the labels: np.unique(labels, return_inverse=True)[1]",
    )


# ---- counts and options ----------------------------------------------------------------------------------------------

COUNT = "{}: expected {} as a whole number, got {} {}; pass an int"


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_size_below_one(batch_size, compilations):
    line, state = trained()
    compilations.clear()
    end = f"expected batch_size of at least 1, got {batch_size}; choose 1 or more"
    everything = ", or None for all examples at once"
    options = {"batch_size": batch_size}
    assert_raises(lambda: fit(**options), ValueError, f"fit: {end}{everything}")
    assert_raises(
        lambda: training.run(line, (X, LABELS), key=KEY, epochs=1, **options), ValueError, f"run: {end}{everything}"
    )
    assert_raises(
        lambda: training.evaluate(line, state, (X, LABELS), **options), ValueError, f"evaluate: {end}{everything}"
    )
    assert_raises(lambda: training.predict(CLASSIFIER, state, X, **options), ValueError, f"predict: {end}{everything}")
    assert not compilations


@pytest.mark.parametrize("batch_size", [2.0, True, "32", np.float32(4)])
def test_a_batch_size_that_is_no_whole_number(batch_size):
    kind = type(batch_size).__name__
    message = COUNT.format("fit", "batch_size", kind, batch_size)
    assert_raises(lambda: fit(batch_size=batch_size), TypeError, message)


@pytest.mark.slow
def test_a_batch_size_of_none_and_one_above_the_examples_are_one_batch():
    line = trainer()
    alone = [fit(line, batch_size=b, epochs=3, shuffle=False) for b in (None, N, N + 1, 1000, np.int64(30))]
    assert [int(result.state.step) for result in alone] == [3] * 5
    for result in alone[1:]:
        np.testing.assert_array_equal(result.history["loss"], alone[0].history["loss"])
    assert int(fit(line, batch_size=1000, epochs=3, drop_last=True).state.step) == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 3}, ValueError, "fit: expected either epochs or steps, got epochs=1 and steps=3; pass one of them"),
        ({"epochs": None}, ValueError, "fit: expected either epochs or steps, got neither; pass one of them"),
        ({"epochs": 0}, ValueError, "fit: expected epochs of at least 1, got 0; choose 1 or more"),
        ({"epochs": -1}, ValueError, "fit: expected epochs of at least 1, got -1; choose 1 or more"),
        ({"epochs": None, "steps": 0}, ValueError, "fit: expected steps of at least 1, got 0; choose 1 or more"),
        ({"epochs": 1.5}, TypeError, COUNT.format("fit", "epochs", "float", 1.5)),
        ({"epochs": "3"}, TypeError, COUNT.format("fit", "epochs", "str", 3)),
        ({"every": 0}, ValueError, "fit: expected every of at least 1, got 0; choose 1 or more"),
        (
            {"epochs": None, "steps": 2**31},
            ValueError,
            "fit: expected fewer than 2**31 steps in all, got 2147483648; "
            "train in several runs, each from the state of the last",
        ),
        (
            {"on_nonfinite": "stop"},
            ValueError,
            "fit: expected on_nonfinite to be one of ['raise', 'skip', 'continue'], got 'stop'; check the spelling",
        ),
        ({"observers": print}, TypeError, "fit: expected observers in a list, got a function; pass observers=[...]"),
        (
            {"observers": [3]},
            TypeError,
            "fit: expected observers that are functions of an event, got int; pass functions",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_options_that_cannot_be(options, error, message, compilations):
    assert_raises(lambda: fit(**options), error, message)
    assert not compilations


def test_an_unknown_keyword():
    unknown = "{}() got an unexpected keyword argument '{}'"
    assert_raises(lambda: fit(epoch=3), TypeError, unknown.format("fit", "epoch") + "...")
    assert_raises(lambda: layers.dense(3, use_bias=False), TypeError, unknown.format("dense", "use_bias") + "...")
    assert_raises(lambda: trainer(metric={}), TypeError, unknown.format("supervised", "metric") + "...")
    assert_raises(
        lambda: training.run(trainer(), (X, LABELS), key=KEY, epochs=1, progress=True),
        TypeError,
        unknown.format("run", "progress") + "...",
    )


# ---- what was meant as something else --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: layers.serial(layers.dense(3), jnp.tanh),
            "serial: expected a layer, got the function tanh; wrap it: layers.function(tanh)",
        ),
        (
            lambda: layers.serial(layers.dense(3), jax.nn.relu),
            "serial: expected a layer, got the function relu; wrap it: layers.function(relu)",
        ),
        (
            lambda: trainer(lambda x: x),
            "supervised: expected a layer, got the function <lambda>; wrap it: layers.function(<lambda>)",
        ),
        (
            lambda: layers.serial(layers.dense, layers.relu),
            "serial: expected a layer, got the factory dense; call it: layers.dense(...)",
        ),
        (
            lambda: layers.serial(layers.dense(3), layers.batch_norm),
            "serial: expected a layer, got the factory batch_norm; call it: layers.batch_norm(...)",
        ),
        (
            lambda: trainer(layers.dense),
            "supervised: expected a layer, got the factory dense; call it: layers.dense(...)",
        ),
        (
            lambda: layers.serial([layers.dense(3), layers.relu]),
            "serial: expected a layer, got list [dense, relu]; unpack it: *layers",
        ),
        (
            lambda: layers.serial(layers.dense(3), layers.relu()),
            "relu: a layer is a value and is not called, got relu(...); write it without parentheses where a layer is "
            "meant, or layer.apply(params, state, x) to compute",
        ),
    ],
)
def test_what_is_no_layer(call, message):
    assert_raises(call, TypeError, message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: trainer(optimizer=optax.adam),
            "trainer: expected an Optax optimizer, got the factory adam; pass one such as optax.adam(1e-3)",
        ),
        (
            lambda: trainer(optimizer=0.1),
            "trainer: expected an Optax optimizer, got float; pass one such as optax.adam(1e-3)",
        ),
        (
            lambda: trainer(metrics={"precision": metrics.precision}),
            "trainer: expected a Metric under 'precision', got the function precision; "
            "call it, or wrap a function: metrics.mean(f)",
        ),
        (
            lambda: trainer(metrics={"error": losses.squared_error}),
            "trainer: expected a Metric under 'error', got the function squared_error; "
            "call it, or wrap a function: metrics.mean(f)",
        ),
        (
            lambda: trainer(metrics={"accuracy": 0.9}),
            "trainer: expected a Metric under 'accuracy', got float; call it, or wrap a function: metrics.mean(f)",
        ),
        (
            lambda: trainer(metrics=metrics.accuracy),
            'trainer: expected metrics as a dict, got Metric; give each a name: {"accuracy": metrics.accuracy}',
        ),
        (
            lambda: trainer(metrics=[metrics.accuracy]),
            'trainer: expected metrics as a dict, got list; give each a name: {"accuracy": metrics.accuracy}',
        ),
        (
            lambda: trainer(loss="mse"),
            "supervised: expected a loss, (prediction, target) -> losses, got str; pass one of funcnn.losses",
        ),
        (
            lambda: trainer(loss=layers.relu),
            "supervised: expected a loss, (prediction, target) -> losses, got Layer; pass one of funcnn.losses",
        ),
        (
            lambda: training.supervised(CLASSIFIER, optax.sgd(0.1), losses.squared_error),
            "supervised: expected a loss, (prediction, target) -> losses, got GradientTransformation...; "
            "pass one of funcnn.losses",
        ),
        (
            lambda: trainer(penalty=0.1),
            "supervised: expected a penalty, params -> scalar, got float; pass one of funcnn.penalties",
        ),
        (
            lambda: training.trainer(CLASSIFIER, optax.sgd(0.1)),
            "trainer: expected an Objective, got Layer; for a model and a loss write supervised",
        ),
        (
            lambda: fit(CLASSIFIER),
            "fit: expected a Trainer, got Layer; make one with training.supervised(model, loss, optimizer)",
        ),
    ],
)
def test_what_a_trainer_is_not_made_of(call, message):
    assert_raises(call, TypeError, message)


@pytest.mark.parametrize("name", ["loss", "validation_loss", "", 3])
def test_a_metric_under_a_name_that_it_cannot_have(name):
    assert_raises(
        lambda: trainer(metrics={name: metrics.accuracy}),
        ValueError,
        f"trainer: expected metrics named otherwise than 'loss' and 'validation_...', got {name!r}; "
        "rename the metric: the history has these names of its own",
    )


def test_a_metric_under_the_name_of_a_term_of_the_loss():
    line = trainer(metrics={"penalty": metrics.accuracy}, penalty=lambda params: jnp.float32(1))
    assert_raises(
        lambda: fit(line),
        ValueError,
        "trainer: expected metrics with names of their own, got ['penalty'] twice; "
        "rename the metric or the term of the loss",
        IN_DATA,
    )


def test_a_state_that_is_none():
    line, state = trained()
    end = "pass result.state, or trainer.init(key, batch)._replace(params=...)"
    for wrong in (state.params, training.Result(state, {})):
        kind = type(wrong).__name__
        assert_raises(
            lambda w=wrong: fit(state=w), TypeError, f"fit: expected state as a TrainState, got {kind}; {end}"
        )
        assert_raises(
            lambda w=wrong: training.evaluate(line, w, (X, LABELS)),
            TypeError,
            f"evaluate: expected state as a TrainState, got {kind}; {end}",
        )
        assert_raises(
            lambda w=wrong: training.predict(CLASSIFIER, w, X),
            TypeError,
            f"predict: expected state as a TrainState, got {kind}; "
            "pass result.state, or take model.apply(params, state, x)[0] of what a file held",
        )
    assert_raises(
        lambda: training.evaluate(line, None, (X, LABELS)),
        TypeError,
        "evaluate: expected state as a TrainState, got None; pass result.state",
    )


def test_the_state_of_another_model_or_another_optimizer():
    state = trained()[1]
    other = trainer(layers.serial(layers.named("encoder", layers.dense(8)), layers.dense(3)))
    assert_raises(
        lambda: fit(other, state=state),
        ValueError,
        "serial: expected params for ['dense_0', 'encoder'], got ['dense_1'] as well; "
        "pass the params that init of this very model returned",
        IN_DATA,
    )
    adam = trainer(optimizer=optax.adam(0.1))
    message = (
        "state: expected the opt_state of this trainer's optimizer and model, got that of another; "
        "to go on from its params alone: trainer.init(key, batch)._replace(params=state.params)"
    )
    for call in (
        lambda: fit(adam, state=state),
        lambda: training.run(adam, (X, LABELS), key=KEY, epochs=1, state=state),
    ):
        assert_raises(call, ValueError, message)
    kept = adam.init(KEY, (X, LABELS))._replace(params=state.params)
    assert int(fit(adam, state=kept).state.step) == 1


def test_fit_inside_a_transformation():
    assert_raises(
        lambda: jax.jit(lambda key: fit(key=key).history["loss"])(KEY),
        TypeError,
        "fit: expected values, for it is driven from the host, got a tracer; "
        "use training.run inside jit, vmap or grad: it is the same run as a pure function",
    )


# ---- numbers that go bad ---------------------------------------------------------------------------------------------


def test_a_batch_that_is_bad_is_said_to_be():
    """A lower learning rate would not help."""
    line = trainer(layers.dense(1), losses.squared_error)

    def batch(key):
        return jnp.log(jax.random.normal(key, (5, 3))), jnp.ones((5, 1))

    with pytest.raises(training.NonFiniteError) as caught:
        fit(line, batch, steps=3, epochs=None)
    assert re.search(
        r"first by \d+ of 15 numbers in the argument, batch/0, are NaN; "
        "leave such examples out of the batches, or fill them in; the .result of this error holds",
        str(caught.value),
    )


def test_a_loss_that_becomes_nan_names_epoch_and_step_and_hands_the_last_good_state_back():
    line = trainer(layers.dense(1), losses.squared_error, optax.sgd(1e6))
    with pytest.raises(training.NonFiniteError) as caught:
        fit(line, (X, X[:, :1]), epochs=9, batch_size=8)
    error = caught.value
    assert isinstance(error, FloatingPointError)
    assert str(error) == (
        f"fit: expected finite numbers, got {str(error).split('got ')[1].split(' in epoch')[0]} "
        f"in epoch {error.epoch} of 9, step {error.step} (counted from 0), "
        f"first by {str(error).split('first by ')[1].split(';')[0]}; "
        "lower the learning rate, or clip the gradient with optax.clip_by_global_norm; "
        f"the .result of this error holds the last good state, after {error.step} step{'s' * (error.step != 1)}"
    )
    assert "a loss that is NaN or infinite" in str(error) or "an update that made a parameter NaN or infinite" in str(
        error
    )
    assert 0 < error.step < 27
    assert error.epoch == error.step // 3 + 1
    assert int(error.result.state.step) == error.step
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(error.result.state.params))
