"""Path patterns over trees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funcnn import trees

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
