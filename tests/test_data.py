"""Arrays, splits, standardization and labels, against scikit-learn, pandas and counting by hand."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler

from funcnn import data, layers


@contextlib.contextmanager
def x64():
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


# ---- as_arrays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [
        ("float64", "float32"),
        ("float32", "float32"),
        ("float16", "float16"),
        (">f4", "float32"),
        ("longdouble", "float32"),
        ("int64", "int32"),
        ("uint8", "uint8"),
        ("bool", "bool"),
        ("complex128", "complex64"),
        (jnp.bfloat16, "bfloat16"),
    ],
)
def test_dtypes_become_those_that_jax_computes_in(given_dtype, dtype):
    array = np.arange(6).reshape(3, 2).astype(given_dtype)
    taken = data.as_arrays(array)
    assert taken.dtype == dtype
    np.testing.assert_array_equal(taken.astype(complex), array.astype(complex))


def test_with_x64_nothing_is_narrowed():
    with x64():
        x, y = data.as_arrays((np.ones((3, 2)), [1, 2, 3]))
    assert (x.dtype, y.dtype) == (np.float64, np.int64)


def test_an_array_that_needs_no_conversion_is_not_copied():
    x = np.ones((5, 2), np.float32)
    assert data.as_arrays(x) is x
    strided = x[::2]
    assert data.as_arrays({"x": strided})["x"] is strided


def test_jax_arrays_and_tracers_are_handed_on():
    x = jnp.ones((5, 2))
    assert data.as_arrays(x) is x
    assert jax.jit(lambda x: data.as_arrays((x, x))[1] + 1.0)(x).shape == (5, 2)


def test_lists_are_arrays_and_tuples_and_dicts_are_trees():
    tree = data.as_arrays({"x": [[1, 2], [3, 4]], "y": (np.zeros(2), [True, False]), "nothing": None})
    assert jax.tree.map(lambda a: (a.shape, str(a.dtype)), tree) == {
        "x": ((2, 2), "int32"),
        "y": (((2,), "float32"), ((2,), "bool")),
        "nothing": None,
    }


def test_data_frames_and_series():
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [True, False, True], "c": [0.5, 1.5, 2.5]})
    x, y = data.as_arrays((frame, frame["a"]))
    np.testing.assert_array_equal(x, np.array([[1, 1, 0.5], [2, 0, 1.5], [3, 1, 2.5]], np.float32))
    assert x.dtype == np.float32
    assert y.dtype == np.int32
    assert data.as_arrays(frame[["a"]]).shape == (3, 1)
    doubled = pd.concat([frame[["a"]], frame[["a"]] + 1], axis=1)  # two columns of one name
    assert data.as_arrays(doubled).tolist() == [[1, 2], [2, 3], [3, 4]]


FRAME = pd.DataFrame({"age": [1, 2], "town": ["x", "y"], "name": ["a", "b"], "day": pd.to_datetime(["2020", "2021"])})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            FRAME[["age", "town", "name"]],
            TypeError,
            r"of numbers, got .* in the columns \['town', 'name'\]; number the",
        ),
        (FRAME[["day"]], TypeError, r"got dates in the columns \['day'\]; count from a fixed time"),
        (FRAME[[]], ValueError, "a DataFrame with columns"),
        (FRAME["town"], TypeError, r"expected numbers, got .* in a Series; number the labels"),
        (["cat", "dog"], TypeError, r"^data: expected numbers, got strings in a list; number the labels: np.unique"),
        (np.array([b"cat"]), TypeError, "got bytes in a ndarray; number the labels"),
        (np.array(["2020-01-01"], "datetime64[D]"), TypeError, r"got dates in a ndarray; count from a fixed time"),
        (np.ones(2, "timedelta64[s]"), TypeError, "got time differences in a ndarray; count from"),
        ([[1.0, None]], TypeError, r"got objects in a list; fill or leave out what is missing"),
        (pd.Series([1, None], dtype="object"), TypeError, "got objects in a Series; fill or leave out"),
        (np.ones(2, [("a", float)]), TypeError, "expected numbers, got"),
        ((value for value in [1.0]), TypeError, "got an iterator .generator."),
        ([[1.0, 2.0], [3.0]], ValueError, r"expected rows of one shape, got a ragged list; pad them"),
        ({"x": [np.ones((2, 2)), np.ones(2)]}, ValueError, r"^data at \['x'\]: .*several arrays go into a tuple"),
        (np.ma.ones(3), TypeError, "got a masked array; fill the masked ones"),
        (3.0, ValueError, r"expected an axis of examples, got a single number"),
        ((np.ones(3), np.float32(1)), ValueError, r"^data at \[1\]: expected an axis of examples"),
        ({}, ValueError, "expected at least one array, got dict without any"),
        (([], []), ValueError, r"^data at \[0\]: expected 1 or more examples, got empty data"),
        (np.zeros((0, 3)), ValueError, "got empty data; check what loads or selects them"),
        ((np.ones((3, 2)), [1, 2]), ValueError, r"as many examples in every array, got 3 at \[0\] and 2 at \[1\]"),
        (
            {"x": np.ones(2), "y": np.ones(3)},
            ValueError,
            r"got 2 at \['x'\] and 3 at \['y'\]; give every example a row",
        ),
        (
            np.array([1e300]),
            ValueError,
            "range of float32, got larger ones in float64; rescale them, or set jax.config",
        ),
        (np.array([2**40]), ValueError, "range of int32, got larger ones in int64"),
        (np.array([2**33], np.uint64), ValueError, "range of uint32, got larger ones in uint64"),
    ],
)
def test_what_is_not_numbers_says_so(given, error, message):
    with pytest.raises(error, match=message):
        data.as_arrays(given)


def test_infinity_is_not_out_of_range():
    assert data.as_arrays(np.array([np.inf, -np.inf, np.nan])).dtype == np.float32


def test_the_caller_is_named_and_decides_about_lengths():
    with pytest.raises(ValueError, match=r"^training.fit at \[1\]: expected 1 or more examples"):
        data.as_arrays((np.ones(3), []), where="training.fit")
    x, y = data.as_arrays((np.ones(3), np.ones(4)), one_length=False)
    assert (len(x), len(y)) == (3, 4)
    assert data.as_arrays(np.ones((0, 2)), minimum=0).shape == (0, 2)


# ---- split -----------------------------------------------------------------------------------------------------------


SIZES = st.sampled_from([2, 3, 5, 8, 21, 60])  # a few, for each is compiled
LABELS = SIZES.flatmap(lambda n: st.lists(st.integers(0, 5), min_size=n, max_size=n))


@pytest.mark.slow
@given(labels=LABELS, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1), stratified=st.booleans())
def test_a_split_loses_no_example_and_takes_none_twice(labels, fraction, seed, stratified):
    rows = np.arange(len(labels))
    stratify = labels if stratified else None
    train, test = data.split({"a": rows, "b": rows[:, None] * 2}, fraction, key=jax.random.key(seed), stratify=stratify)
    assert sorted([*train["a"].tolist(), *test["a"].tolist()]) == rows.tolist()
    assert len(test["a"]) == min(max(round(len(rows) * fraction), 1), len(rows) - 1)
    for part in (train, test):
        np.testing.assert_array_equal(part["b"], part["a"][:, None] * 2)


@pytest.mark.slow
@given(labels=LABELS, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_every_class_keeps_its_share_to_within_one_example(labels, fraction, seed):
    train, test = data.split(labels, fraction, key=jax.random.key(seed), stratify=labels)
    counts, in_train, in_test = (np.bincount(part, minlength=6) for part in (labels, train, test))
    np.testing.assert_array_equal(in_train + in_test, counts)
    shares = np.floor(counts * fraction + 1e-9)
    assert ((in_test == shares) | (in_test == shares + 1)).all()
    # A class is missing on one side only where every other that could give or take an example has done so.
    several = counts >= 2
    rounded_up = in_test > shares
    if (several & (in_test == 0)).any():
        assert (shares[rounded_up] == 0).all()
    if (several & (in_train == 0)).any():
        assert rounded_up[shares + 1 < counts].all()


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.25, 1 / 3, 0.5, 0.7])
def test_stratified_shares_are_those_of_scikit_learn(fraction, key):
    labels = np.repeat([0, 1, 2, 3], [100, 60, 30, 17])
    _, test = data.split(labels, fraction, key=key, stratify=labels)
    splitter = StratifiedShuffleSplit(1, test_size=len(test), random_state=0)
    _, rows = next(splitter.split(labels, labels))
    assert np.abs(np.bincount(test) - np.bincount(labels[rows])).max() <= 1
    assert np.abs(np.bincount(test) - np.bincount(labels) * fraction).max() <= 1


def test_shares_that_come_out_even_are_exact(key):
    labels = np.repeat([0, 1], [100, 200])
    for fraction in (0.29, 0.57, 0.07):  # products such as 100 * 0.29 are not whole in floating point
        _, test = data.split(labels, fraction, key=key, stratify=labels)
        assert np.bincount(test).tolist() == [round(100 * fraction), round(200 * fraction)]


def test_the_largest_remainder_gives_one_more(key):
    labels = np.repeat([0, 1, 2], [16, 14, 15])  # a fifth of them: 3.2, 2.8 and 3.0
    _, test = data.split(labels, 0.2, key=key, stratify=labels)
    assert np.bincount(test).tolist() == [3, 3, 3]


def test_a_rare_class_has_an_example_on_either_side(key):
    labels = np.array([0] * 13 + [1] * 2)
    for fraction in (0.2, 0.8):  # the largest remainder alone would give 13 * 0.2 = 2.6 the third test example
        train, test = data.split(labels, fraction, key=key, stratify=labels)
        assert set(train.tolist()) == set(test.tolist()) == {0, 1}


def test_a_class_of_one_is_for_learning(key):
    labels = np.array([0] * 9 + [1])
    for fraction in (0.2, 0.5, 0.7):
        train, _ = data.split(labels, fraction, key=key, stratify=labels)
        assert 1 in train


@pytest.mark.parametrize("kind", [list, np.array, jnp.array, pd.Series, lambda labels: [f"class {i}" for i in labels]])
def test_labels_may_be_of_any_kind(kind, key):
    labels = [0, 1, 2] * 10
    expected = data.split(np.arange(30), 0.2, key=key, stratify=np.array(labels))
    found = data.split(np.arange(30), 0.2, key=key, stratify=kind(labels))
    assert jax.tree.map(lambda a: a.tolist(), found) == jax.tree.map(lambda a: a.tolist(), expected)


def test_the_same_key_gives_the_same_split_and_another_key_another(key):
    x = np.arange(100)
    first, again, other = (data.split(x, 0.3, key=k)[1].tolist() for k in (key, jax.random.key(0), jax.random.key(1)))
    assert first == again
    assert first != other
    assert first != sorted(first)


def test_a_split_shares_no_randomness_with_what_is_done_with_the_same_key(key):
    order = np.concatenate(data.split(np.arange(50), 0.5, key=key)[::-1])
    for used in (key, *jax.random.split(key, 3)):
        assert order.tolist() != jax.random.permutation(used, 50).tolist()


def test_every_example_is_as_likely_as_any_other_to_be_for_testing():
    times = np.zeros(20)
    for seed in range(400):
        times[data.split(np.arange(20), 0.25, key=jax.random.key(seed))[1]] += 1
    # 400 draws of probability 1/4: mean 100, standard deviation 8.7; five of those, for twenty examples
    assert np.abs(times - 100).max() < 44


def test_data_frames_split_like_arrays(key):
    frame = pd.DataFrame({"a": np.arange(10.0), "b": np.arange(10)}, index=list("abcdefghij"))
    train, test = data.split((frame, frame["b"].tolist()), 0.3, key=key)
    assert isinstance(train[0], np.ndarray)
    np.testing.assert_array_equal(test[0][:, 1], test[1])
    assert (train[0].shape, test[0].shape) == ((7, 2), (3, 2))


def test_jax_arrays_stay_jax_arrays(key):
    train, test = data.split((jnp.arange(10), np.arange(10)), 0.3, key=key)
    assert isinstance(train[0], jax.Array)
    np.testing.assert_array_equal(test[0], test[1])


@pytest.mark.parametrize("fraction", [0, 1, 0.0, 1.0, -0.2, 1.2, 20, True, float("nan")])
def test_a_fraction_is_between_0_and_1(fraction, key):
    with pytest.raises(ValueError, match=r"^data.split: expected a fraction between 0 and 1, got .*; 0.2 is a fifth"):
        data.split(np.arange(10), fraction, key=key)


@pytest.mark.parametrize(
    ("given", "labels", "error", "message"),
    [
        (([1, 2, 3], [1, 2]), None, ValueError, r"^data.split: expected as many examples .*, got 3 at \[0\] and 2 at"),
        ([], None, ValueError, r"^data.split: expected 2 or more examples, got empty data"),
        ([1], None, ValueError, r"^data.split: expected 2 or more examples, got 1; "),
        ([1, 2, 3], [0, 1], ValueError, r"a label in stratify for every example, got 3 examples and 2 labels"),
        ([1, 2, 3], np.eye(3), ValueError, r"expected stratify with one axis, got shape \(3, 3\); .*argmax"),
        ([1, 2, 3], np.array(["a", None, "b"], object), TypeError, r"expected labels of one type in stratify"),
    ],
)
def test_what_cannot_be_split(given, labels, error, message, key):
    with pytest.raises(error, match=message):
        data.split(given, 0.5, key=key, stratify=labels)


def test_the_key_of_a_split_is_a_key():
    for wrong in (0, jnp.zeros(2, jnp.uint32)):
        with pytest.raises(TypeError, match=r"^data.split: expected a JAX key, got .*; pass jax.random.key\(0\)"):
            data.split(np.arange(10), 0.2, key=wrong)
    with pytest.raises(TypeError, match="a key that is known, got a traced one; split the data before jit"):
        jax.jit(lambda key: data.split(np.arange(10), 0.2, key=key))(jax.random.key(0))


# ---- standardize -----------------------------------------------------------------------------------------------------


def standardized(layer, x, **options):
    params, state = layer.init(jax.random.key(0), x)
    y, after = layer.apply(params, state, x, **options)
    assert params == {}
    jax.tree.map(np.testing.assert_array_equal, after, state)
    return y


@pytest.mark.parametrize("training", [False, True])
def test_standardize_against_scikit_learn(training):
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 5)) * [1, 10, 0.01, 1000, 1] + [0, 5, -3, 100, 1e4]
    x[:, 2] = 0.1
    scaler = StandardScaler().fit(x.astype(np.float32).astype(np.float64))
    layer = data.standardize(x)
    _, state = layer.init(jax.random.key(0), x)
    np.testing.assert_allclose(state["mean"], scaler.mean_, rtol=1e-6)
    np.testing.assert_allclose(state["std"], scaler.scale_, rtol=1e-6)
    y = standardized(layer, x, training=training)
    np.testing.assert_allclose(y, scaler.transform(x.astype(np.float32)), atol=2e-3, rtol=1e-5)
    np.testing.assert_array_equal(y[:, 2], 0.0)


def test_statistics_of_many_rows_far_from_zero_are_right_to_float32():
    random = np.random.default_rng(0)
    x = (random.normal(size=(200_001, 2)) + 1000.0).astype(np.float32)  # more than two blocks, and a rest
    _, state = data.standardize(x).init(jax.random.key(0), x)
    np.testing.assert_allclose(state["mean"], x.astype(np.float64).mean(0), rtol=1e-7)
    np.testing.assert_allclose(state["std"], x.astype(np.float64).std(0), rtol=1e-6)


def test_all_axes_but_the_last_are_averaged():
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    layer = data.standardize(images)
    y = standardized(layer, images)
    expected = StandardScaler().fit_transform(images.reshape(-1, 3).astype(float)).reshape(images.shape)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert y.dtype == jnp.float32


def test_x64_is_kept():
    x = np.random.default_rng(0).normal(size=(50, 3))
    x[:, 1] = 0.1  # constant, but the variance of fifty of them in float64 is not 0
    assert x[:, 1].var() > 0
    with x64():
        y = standardized(data.standardize(x), x)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, StandardScaler().fit_transform(x), atol=1e-14)
        np.testing.assert_array_equal(y[:, 1], 0.0)


def test_half_precision_is_kept_and_computed_in_float32():
    x = (np.random.default_rng(0).normal(size=(100, 2)) + 50.0).astype(jnp.bfloat16)
    layer = data.standardize(x)
    y = standardized(layer, x)
    assert y.dtype == jnp.bfloat16
    expected = StandardScaler().fit_transform(x.astype(np.float64))
    np.testing.assert_allclose(np.asarray(y).astype(np.float64), expected, rtol=2**-8, atol=1e-6)


def test_standardize_is_a_layer_like_any_other(key):
    x = np.random.default_rng(0).normal(3.0, 2.0, (40, 3)).astype(np.float32)
    model = layers.serial(data.standardize(x), layers.dense(2))
    assert str(model) == "serial\n├── standardize_0\n└── dense_0"
    params, state = model.init(key, x)
    assert sorted(state["standardize_0"]) == ["mean", "std"]

    def loss(params, x):
        return model.apply(params, state, x, training=True)[0].sum()

    slope = jax.jit(jax.grad(loss, argnums=1))(params, x)
    kernel = np.asarray(params["dense_0"]["kernel"])
    np.testing.assert_allclose(slope, np.tile(kernel.sum(1) / x.std(0), (40, 1)), rtol=1e-4)
    batched = jax.vmap(lambda row: model.apply(params, state, row[None])[0][0])(x)
    np.testing.assert_allclose(batched, model.apply(params, state, x)[0], rtol=1e-5, atol=1e-6)


def test_the_statistics_used_are_those_in_the_state():
    x = np.array([[0.0], [2.0]], np.float32)
    y, _ = data.standardize(x).apply({}, {"mean": jnp.array([1.0]), "std": jnp.array([4.0])}, x)
    assert y.tolist() == [[-0.25], [0.25]]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            [[1.0, np.nan], [np.inf, 2.0], [0.0, 0.0]],
            ValueError,
            r"finite numbers, got NaN or infinity in the features \[0, 1\]",
        ),
        (np.zeros((0, 2)), ValueError, "got empty data"),
        ([1.0, 2.0], ValueError, r"at least 2 axes, \(examples, ..., features\), got shape \(2,\); .* x\[:, None\]"),
        ((np.ones((2, 2)), np.ones(2)), TypeError, r"expected one array of inputs, got a tuple; .*train\[0\]"),
        (FRAME[["town"]], TypeError, r"\['town'\]"),
    ],
)
def test_what_cannot_be_standardized(given, error, message):
    with pytest.raises(error, match="^data.standardize: .*" + message):
        data.standardize(given)


def test_a_traced_input_cannot_be_measured():
    with pytest.raises(TypeError, match="expected inputs that are known, got traced ones; make the layer before jit"):
        jax.jit(lambda x: data.standardize(x))(jnp.ones((2, 2)))


def test_other_features_than_were_measured(key):
    layer = data.standardize(np.eye(3))
    message = r"^standardize: expected 3 features, as in the data it was made from, got 2 in an input of shape \(5, 2\)"
    with pytest.raises(ValueError, match=message):
        layer.init(key, jnp.ones((5, 2)))
    _, state = layer.init(key, jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=message):
        layer.apply({}, state, jnp.ones((5, 2)))


# ---- one_hot ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (2, 3), (0,), ()])
def test_one_hot_against_rows_of_the_identity(shape):
    labels = np.random.default_rng(0).integers(0, 4, shape)
    rows = data.one_hot(labels, 4)
    assert rows.dtype == jnp.float32
    np.testing.assert_array_equal(rows, np.eye(4, dtype=np.float32)[labels])


def test_one_hot_under_jit():
    assert jax.jit(lambda labels: data.one_hot(labels, 3))(jnp.array([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("labels", "classes", "error", "message"),
    [
        ([0, 3], 3, ValueError, r"labels from 0 to 2, got labels from 0 to 3; count from 0; are there 3 classes\?"),
        ([-1, 2], 3, ValueError, "got labels from -1 to 2"),
        ([0.0, 1.0], 3, TypeError, "expected whole numbers as labels, got float32; convert"),
        ([True, False], 2, TypeError, "expected whole numbers as labels, got bool"),
        (["a", "b"], 2, TypeError, "expected numbers, got strings in a list; number the labels"),
        ([0], 0, ValueError, "classes of at least 1"),
        ([0], 2.0, TypeError, "classes as a whole number"),
    ],
)
def test_what_is_not_a_label(labels, classes, error, message):
    with pytest.raises(error, match="^data.one_hot: .*" + message):
        data.one_hot(labels, classes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            [(np.ones((4, 2)), np.ones(4)), (np.ones((4, 2)), np.ones(4))],
            r"a list of tuples of arrays; .*iter\(batches\)",
        ),
        ([{"x": np.ones((4, 2))}], "a list of dicts of arrays"),
        ((lambda: 1, np.ones(3)), r"data at \[0\]: expected an array, got a function \(<lambda>\)"),
        ((iter([1.0]), iter([2.0])), r"expected an array, got an iterator .*zip\(xs, ys\)"),
    ],
)
def test_what_is_a_stream_is_no_array(given, message):
    with pytest.raises(TypeError, match=message):
        data.as_arrays(given)


def test_a_data_set_of_another_library_is_no_array():
    class Examples:
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return np.ones(2), 1

    with pytest.raises(TypeError, match=r"got a data set \(Examples\); .*DataLoader\(dataset, batch_size=64\)"):
        data.as_arrays(Examples())


def test_rows_of_numbers_are_an_array_still():
    assert data.as_arrays([(1, 2), (3, 4)]).shape == (2, 2)
    assert data.as_arrays([np.ones(2), np.zeros(2)]).shape == (2, 2)
    assert data.as_arrays(range(3)).shape == (3,)
