"""Path patterns over trees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funcnn import layers, trees

PARAMS = {
    "encoder": {f"dense_{i}": {"kernel": np.ones((2, 3)), "bias": np.zeros(3)} for i in (0, 2, 10)},
    "head": {"kernel": np.ones((3, 1))},
    "scale": np.ones(()),
}
PATHS = [
    *(f"encoder/dense_{i}/{name}" for i in (0, 2, 10) for name in ("bias", "kernel")),
    *("head/kernel", "scale"),
]


def test_paths_are_in_natural_order():
    assert trees.paths(PARAMS) == PATHS
    assert trees.paths({f"a_{i}": 0 for i in range(12)}) == [f"a_{i}" for i in range(12)]
    assert trees.paths({"a": {"2b": 0, "b2": 0, "": 0}, "a1": 0, "": 0, "10": 0, "9": 0}) == [
        *("", "9", "10", "a/", "a/2b", "a/b2", "a1")
    ]


def test_paths_go_through_lists_tuples_and_named_tuples():
    state = optax.EmptyState(), optax.TraceState({"w": [1.0, 2.0]})
    assert trees.paths(state) == ["1/trace/w/0", "1/trace/w/1"]
    assert trees.paths(3.0) == [""]
    assert trees.paths({}) == []


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a", "a/b", False),
        ("*", "a", True),
        ("*", "a/b", False),
        ("*/b", "a/b", True),
        ("*/b", "b", False),
        ("dense_*/kernel", "dense_10/kernel", True),
        ("dense_*", "dense_", True),
        ("*e*_*1", "dense_0_1", True),
        ("dense_*", "conv_0", False),
        ("**", "a", True),
        ("**", "a/b/c", True),
        ("**/kernel", "kernel", True),
        ("**/kernel", "a/b/kernel", True),
        ("**/kernel", "a/kernel/b", False),
        ("a/**", "a", True),
        ("a/**", "a/b/c", True),
        ("a/**", "ab/c", False),
        ("a/**/d", "a/d", True),
        ("a/**/d", "a/b/c/d", True),
        ("**/b/**", "a/b/c", True),
        ("**/b/**", "a/c", False),
        ("**/**", "a", True),
        ("a**", "ab", True),
        ("a**", "ab/c", False),
        ("a.c", "abc", False),
        ("a[b]", "a[b]", True),
        ("a[b]", "ab", False),
        ("a?", "ab", False),
        ("A", "a", False),
    ],
)
def test_a_pattern_is_read_segment_by_segment(pattern, path, expected):
    assert trees.matches(pattern, path) is expected


names = st.text("ab_0", min_size=1, max_size=4)


@settings(max_examples=60)
@given(st.lists(names, min_size=1, max_size=5), st.data())
def test_stars_in_place_of_what_they_stand_for_match(path, data):
    i = data.draw(st.integers(0, len(path)))
    j = data.draw(st.integers(i, len(path)))
    assert trees.matches("/".join([*path[:i], "**", *path[j:]]), "/".join(path))
    assert trees.matches("/".join("*" if k == i else name for k, name in enumerate(path)), "/".join(path))
    assert not trees.matches("/".join([*path, "*"]), "/".join(path))


def test_select_gives_leaves_by_path_once_and_in_natural_order():
    chosen = trees.select(PARAMS, "**/kernel", "head/*")
    assert list(chosen) == [path for path in PATHS if path.endswith("kernel")]
    assert chosen["head/kernel"] is PARAMS["head"]["kernel"]


def test_mask_keeps_the_structure():
    mask = trees.mask(PARAMS, "encoder/dense_2/**", "scale")
    assert jax.tree.structure(mask) == jax.tree.structure(PARAMS)
    assert trees.select(mask, "**") == {path: path.startswith(("encoder/dense_2/", "scale")) for path in PATHS}


def test_the_first_pattern_decides_the_label():
    labels = trees.labels(PARAMS, {"encoder/dense_0/*": "frozen", "**/kernel": "slow"}, default="fast")
    expected = ["frozen", "frozen", "fast", "slow", "fast", "slow", "slow", "fast"]
    assert trees.select(labels, "**") == dict(zip(PATHS, expected, strict=True))
    assert trees.labels({"a": 1.0}, {}, default="x") == {"a": "x"}


def test_labels_are_what_optax_partitions_by():
    params = jax.tree.map(jnp.asarray, PARAMS)
    labels = trees.labels(params, {"encoder/**": "frozen"}, default="trained")
    optimizer = optax.partition({"frozen": optax.set_to_zero(), "trained": optax.sgd(1.0)}, labels)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params))
    moved = trees.select(jax.tree.map(lambda u: bool((u != 0).any()), updates), "**")
    assert moved == {path: not path.startswith("encoder") for path in PATHS}


def test_masks_and_labels_of_traced_trees_need_no_values():
    total = jax.jit(lambda p: sum(leaf.sum() for leaf in trees.select(p, "**/kernel").values()))
    assert total(PARAMS) == 3 * 6 + 3
    shapes = jax.eval_shape(lambda p: p, PARAMS)
    assert trees.mask(shapes, "**/bias") == trees.mask(PARAMS, "**/bias")


def test_count_reads_shapes_alone():
    assert trees.count(PARAMS) == 3 * (6 + 3) + 3 + 1
    assert trees.count(jax.ShapeDtypeStruct((10**6, 10**6), np.float32)) == 10**12
    assert trees.count({"a": 1.0, "b": {}}) == 1
    assert type(trees.count(PARAMS)) is int


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: trees.select(PARAMS, "head/kernal"),
            ValueError,
            "select: expected a pattern that matches a path, got 'head/kernal'; the nearest are 'head/kernel', ",
        ),
        (lambda: trees.select(PARAMS, "**/kernel", "typo"), ValueError, "got 'typo'; the nearest are "),
        (
            lambda: trees.mask(PARAMS, "encodr/**"),
            ValueError,
            "mask: expected a pattern that matches a path, got 'encodr",
        ),
        (lambda: trees.mask(PARAMS, "encoder"), ValueError, "got 'encoder'; for all beneath it write 'encoder/**'"),
        (lambda: trees.labels(PARAMS, {"typo/**": 1}, 0), ValueError, "labels: expected a pattern that matches a path"),
        (
            lambda: trees.labels(PARAMS, {"head/*": 1}),
            ValueError,
            "labels: expected a pattern for every leaf, got none for 'encoder/dense_0/bias', 'encoder/dense_0/kernel', "
            "'encoder/dense_2/bias', 'encoder/dense_2/kernel', 'encoder/dense_10/bias' and 2 more; add a pattern",
        ),
        (
            lambda: trees.select(PARAMS),
            ValueError,
            "select: expected at least one pattern, got none; pass one such as '**'",
        ),
        (lambda: trees.select({}, "**"), ValueError, "got '**'; the tree has no leaves"),
        (
            lambda: trees.select(PARAMS, ["**"]),
            TypeError,
            "expected a pattern such as '**/kernel', got list ['**']; pass",
        ),
        (
            lambda: trees.matches("", "a"),
            ValueError,
            "matches: expected a pattern such as '**/kernel', got an empty one",
        ),
        (lambda: trees.select(PARAMS, "typo", where="freeze"), ValueError, "freeze: expected a pattern"),
    ],
)
def test_a_pattern_without_a_match_is_an_error_that_helps(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


# ---- cast, replace, rename, nested -----------------------------------------------------------------------------------

WEIGHTS = {
    "encoder": {"dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, "count": jnp.zeros((), jnp.int32)},
    "head": {"kernel": jnp.ones((3, 1)), "key": jax.random.key(0)},
}


def test_cast_changes_floating_leaves_alone():
    found = {path: leaf.dtype for path, leaf in trees.select(trees.cast(WEIGHTS, jnp.bfloat16), "**").items()}
    floating = {"encoder/dense_0/kernel", "encoder/dense_0/bias", "head/kernel"}
    assert {path for path, dtype in found.items() if dtype == jnp.bfloat16} == floating
    assert found["encoder/count"] == jnp.int32
    some = trees.cast(WEIGHTS, jnp.float16, "encoder/**")
    assert some["encoder"]["dense_0"]["kernel"].dtype == jnp.float16
    assert some["head"]["kernel"].dtype == jnp.float32
    assert trees.cast({}, jnp.float16) == {}


def test_replace_takes_values_and_functions():
    new = trees.replace(WEIGHTS, {"**/bias": jnp.ones(3), "head/kernel": lambda a: 2 * a})
    np.testing.assert_array_equal(new["encoder"]["dense_0"]["bias"], np.ones(3))
    np.testing.assert_array_equal(new["head"]["kernel"], 2 * np.ones((3, 1)))
    assert new["encoder"]["dense_0"]["kernel"] is WEIGHTS["encoder"]["dense_0"]["kernel"]
    np.testing.assert_array_equal(WEIGHTS["head"]["kernel"], np.ones((3, 1)))  # what was given has not changed


INSIDE = ("dense_0/kernel", "dense_0/bias", "count")


@pytest.mark.parametrize(
    ("rules", "moved"),
    [
        ({"encoder/**": "body/**"}, {f"encoder/{path}": f"body/{path}" for path in INSIDE}),
        ({"**/kernel": "**/weight"}, {f"{path}/kernel": f"{path}/weight" for path in ("encoder/dense_0", "head")}),
        (
            {"encoder/dense_*/*": "layers/*/*"},
            {f"encoder/dense_0/{name}": f"layers/0/{name}" for name in ("kernel", "bias")},
        ),
        ({"head/key": "key", "head/kernel": "out/kernel"}, {"head/key": "key", "head/kernel": "out/kernel"}),
        ({"**": "all/**"}, {path: f"all/{path}" for path in trees.paths(WEIGHTS)}),
    ],
)
def test_rename_moves_leaves(rules, moved):
    renamed = trees.select(trees.rename(WEIGHTS, rules), "**")
    expected = {moved.get(path, path): leaf for path, leaf in trees.select(WEIGHTS, "**").items()}
    assert {path: id(leaf) for path, leaf in renamed.items()} == {path: id(leaf) for path, leaf in expected.items()}


def test_to_and_fro_is_the_same_tree():
    back = trees.rename(trees.rename(WEIGHTS, {"encoder/**": "a/b/**"}), {"a/b/**": "encoder/**"})
    assert trees.paths(back) == trees.paths(WEIGHTS)
    again = trees.nested(trees.select(WEIGHTS, "**"))
    assert jax.tree.structure(again) == jax.tree.structure(WEIGHTS)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda: trees.cast(WEIGHTS, jnp.int8), TypeError, "cast: expected a floating dtype"),
        (lambda: trees.cast(WEIGHTS, jnp.float16, "**/kernels"), ValueError, "cast: expected a pattern that matches"),
        (
            lambda: trees.replace(WEIGHTS, {"**/kernels": 0}),
            ValueError,
            "replace: expected a pattern that matches a path",
        ),
        (
            lambda: trees.replace(WEIGHTS, {"head/kernel": jnp.ones(3)}),
            ValueError,
            r"replace: expected float32\(3, 1\) at 'head/kernel', got float32\(3,\)",
        ),
        (lambda: trees.replace(WEIGHTS, {"head/kernel": lambda a: a.astype(int)}), ValueError, "got int32"),
        (
            lambda: trees.replace(WEIGHTS, {"head/*": lambda a: a, "**/kernel": lambda a: a}),
            ValueError,
            "two for 'head/ker",
        ),
        (
            lambda: trees.rename(WEIGHTS, {"enc**/**": "a**/**"}),
            ValueError,
            r"'\*\*' between slashes, got",
        ),
        (lambda: trees.rename(WEIGHTS, {"encodr/**": "a/**"}), ValueError, "rename: expected a pattern that matches"),
        (lambda: trees.rename(WEIGHTS, {"encoder": "a"}), ValueError, r"for all beneath it write 'encoder/\*\*'"),
        (
            lambda: trees.rename(WEIGHTS, {"encoder/**": "a"}),
            ValueError,
            r"the wildcards of 'encoder/\*\*' in the new path",
        ),
        (
            lambda: trees.rename(WEIGHTS, {"head/kernel": "head/key"}),
            ValueError,
            "different new paths, got 'head/key' for",
        ),
        (
            lambda: trees.rename(WEIGHTS, {"head/kernel": "head/key/a"}),
            ValueError,
            "none of which lies beneath another",
        ),
        (lambda: trees.rename([1, 2], {"**": "a/**"}), TypeError, "rename: expected nested dicts with names, got list"),
        (
            lambda: trees.nested({"a": 1, "a/b": 2}),
            ValueError,
            "nested: expected paths none of which lies beneath another",
        ),
        (lambda: trees.nested({"a//b": 1}), ValueError, "nested: expected paths"),
    ],
)
def test_changes_that_cannot_be_meant_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        change()


@pytest.mark.parametrize(
    ("tree", "got"),
    [
        (layers.dense(3), "a function at 'init'"),
        ({"a": jnp.ones(3), "b": {"c": "kernel"}}, "a str at 'b/c'"),
        ("params.safetensors", "a str"),
        (object(), "a object"),
    ],
)
def test_what_holds_no_numbers_is_not_counted(tree, got):
    with pytest.raises(TypeError, match=f"^count: expected arrays or numbers, got {got}; pass params, such as those"):
        trees.count(tree)


def test_numbers_and_shapes_are_counted():
    shape = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    assert trees.count([1, 2.0, True, np.float32(3), np.ones((2, 2)), shape, jax.random.key(0), {}]) == 15
