"""Paths into a pytree of parameters, such as ``encoder/dense_0/kernel``, and patterns over them.

A pattern is read segment by segment: ``*`` stands for any characters within one, ``**`` for any number of segments,
none included. ``encoder/**`` is all that lies beneath ``encoder``, ``**/kernel`` every kernel, ``dense_*/bias`` the
biases of the dense layers at the top. All other characters mean themselves. Where a tree is at hand, a pattern that
matches nothing is an error, since a misspelt one would otherwise do nothing without a word.
"""

import difflib
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np


def paths(tree: Any) -> list[str]:
    """The paths of all leaves in natural order: ``dense_2`` before ``dense_10``.

    Example:
        >>> from funcnn import trees
        >>> trees.paths({"dense_10": {"kernel": 0}, "dense_2": {"kernel": 0, "bias": 0}})
        ['dense_2/bias', 'dense_2/kernel', 'dense_10/kernel']
    """
    return sorted((path for path, _ in _leaves(tree)), key=_natural)


def matches(pattern: str, path: str) -> bool:
    """Whether the whole of a path fits a pattern.

    Example:
        >>> from funcnn import trees
        >>> trees.matches("encoder/**", "encoder/dense_0/kernel"), trees.matches("*/kernel", "encoder/dense_0/kernel")
        (True, False)

    Raises:
        TypeError: the pattern is not a string.
        ValueError: the pattern is empty.
    """
    _expect_pattern("matches", pattern)
    return _fits(pattern.split("/"), path.split("/"))


def select(tree: Any, *patterns: str, where: str = "select") -> dict[str, Any]:
    """The leaves whose path matches one of the patterns, by path and in natural order.

    Args:
        tree: a pytree.
        patterns: at least one.
        where: who asks; errors begin with it.

    Raises:
        ValueError: a pattern matches nothing, or there is none.

    Example:
        >>> from funcnn import trees
        >>> params = {"dense_0": {"kernel": 1.0, "bias": 2.0}, "dense_1": {"kernel": 3.0}}
        >>> trees.select(params, "**/kernel")
        {'dense_0/kernel': 1.0, 'dense_1/kernel': 3.0}
        >>> trees.select(params, "dense0/*")
        Traceback (most recent call last):
        ...
        ValueError: select: expected a pattern that matches a path, got 'dense0/*'; the nearest are 'dense_0/bias', ...
    """
    leaves = dict(_leaves(tree))
    wanted = chosen(where, list(leaves), patterns)
    return {path: leaves[path] for path in sorted(leaves, key=_natural) if path in wanted}


def mask(tree: Any, *patterns: str, where: str = "mask") -> Any:
    """The same tree with ``True`` where a path matches one of the patterns: a mask for ``optax.masked``.

    Args:
        tree: a pytree.
        patterns: at least one.
        where: who asks; errors begin with it.

    Raises:
        ValueError: a pattern matches nothing, or there is none.

    Example:
        >>> from funcnn import trees
        >>> trees.mask({"dense_0": {"kernel": 1.0, "bias": 2.0}}, "**/kernel")
        {'dense_0': {'bias': False, 'kernel': True}}
    """
    names = [path for path, _ in _leaves(tree)]
    wanted = chosen(where, names, patterns)
    return jax.tree.unflatten(jax.tree.structure(tree), [path in wanted for path in names])


def labels(tree: Any, rules: Mapping[str, Hashable], default: Hashable = None, where: str = "labels") -> Any:
    """The same tree with a label for each leaf, that of the first pattern that matches, for ``optax.partition``.

    Args:
        tree: a pytree.
        rules: labels by pattern; the order decides where several match.
        default: the label of leaves that no pattern matches; without one they are an error.
        where: who asks; errors begin with it.

    Raises:
        ValueError: a pattern matches nothing, or a leaf is left without a label.

    Example:
        >>> from funcnn import trees
        >>> params = {"encoder": {"kernel": 1.0}, "head": {"bias": 2.0, "kernel": 3.0}}
        >>> trees.labels(params, {"encoder/**": "frozen", "**/kernel": "decayed"}, default="plain")
        {'encoder': {'kernel': 'frozen'}, 'head': {'bias': 'plain', 'kernel': 'decayed'}}
    """
    names = [path for path, _ in _leaves(tree)]
    found: dict[str, Hashable] = {}
    for pattern, label in rules.items():
        for path in chosen(where, names, (pattern,)):
            found.setdefault(path, label)
    left = sorted(set(names) - set(found), key=_natural)
    if default is None and left:
        _fail(where, "a pattern for every leaf", f"none for {_listed(left)}", "add a pattern, or pass default=")
    return jax.tree.unflatten(jax.tree.structure(tree), [found.get(path, default) for path in names])


def count(tree: Any) -> int:
    """How many numbers the arrays of a tree hold together; only shapes are read.

    Raises:
        TypeError: a leaf is neither an array nor a number, as in a layer or a trainer.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import trees
        >>> trees.count({"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)})
        16
    """
    for path, leaf in _leaves(tree):
        is_array = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
        if not is_array and not isinstance(leaf, (int, float, complex)):
            got = f"a {type(leaf).__name__} at {path!r}" if path else f"a {type(leaf).__name__}"
            fix = "pass params, such as those that init returned"
            _fail("count", "arrays or numbers", got, fix, TypeError)
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))


def cast(tree: Any, dtype: Any, *patterns: str) -> Any:
    """The same tree with its floating leaves in another dtype; whole numbers, booleans and keys stay as they are.

    Args:
        tree: a pytree of arrays.
        dtype: a floating one, such as ``jnp.bfloat16``.
        *patterns: which leaves; without any, all.

    Raises:
        TypeError: the dtype is not floating.
        ValueError: a pattern matches nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import trees
        >>> params = {"dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
        >>> small = trees.cast(params, jnp.bfloat16, "**/kernel")
        >>> small["dense_0"]["kernel"].dtype, small["dense_0"]["bias"].dtype
        (dtype(bfloat16), dtype('float32'))
    """
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        _fail("cast", "a floating dtype", str(dtype), "pass one such as jnp.bfloat16", TypeError)
    chosen = mask(tree, *(patterns or ("**",)), where="cast") if jax.tree.leaves(tree) or patterns else tree

    def leaf(a: Any, is_chosen: bool) -> Any:
        if not is_chosen or not jnp.issubdtype(jnp.result_type(a), jnp.floating):
            return a
        if isinstance(a, jax.ShapeDtypeStruct):
            return a.update(dtype=jnp.dtype(dtype))
        return a.astype(dtype) if hasattr(a, "astype") else jnp.asarray(a, dtype)

    return jax.tree.map(leaf, tree, chosen)


def replace(tree: Any, rules: Mapping[str, Any]) -> Any:
    """The same tree with other leaves where a path matches: those that are given, or functions of the old ones.

    Args:
        tree: a pytree of arrays.
        rules: an array, or a function from the old leaf to the new one, by pattern.

    Raises:
        ValueError: a pattern matches nothing, two match one leaf, or a new leaf has another shape or dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import trees
        >>> params = {"dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
        >>> print(trees.replace(params, {"**/bias": jnp.zeros_like})["dense_0"]["bias"])
        [0. 0. 0.]
    """
    leaves = dict(_leaves(tree))
    new: dict[str, Any] = {}
    for pattern, value in rules.items():
        for path in sorted(chosen("replace", list(leaves), (pattern,)), key=_natural):
            if path in new:
                _fail("replace", "one rule for each leaf", f"two for {path!r}", "make the patterns narrower")
            new[path] = value(leaves[path]) if callable(value) else value
            _expect_like(path, leaves[path], new[path])
    return jax.tree.unflatten(jax.tree.structure(tree), [new.get(path, leaf) for path, leaf in leaves.items()])


def rename(tree: Any, rules: Mapping[str, str]) -> Any:
    """The same leaves under other paths; what is not named keeps its own.

    Args:
        tree: nested dicts.
        rules: new paths by old ones. Both may hold the same wildcards in the same order: what they stood for in the old
            path, they stand for in the new one.

    Raises:
        TypeError: the tree is not made of dicts with names.
        ValueError: a pattern matches nothing, wildcards differ, or two leaves would have one path.

    Example:
        >>> from funcnn import trees
        >>> params = {"fc": {"weight": 1, "bias": 2}, "norm": {"gamma": 3}}
        >>> trees.rename(params, {"fc/**": "dense_0/**", "**/gamma": "**/scale"})
        {'dense_0': {'bias': 2, 'weight': 1}, 'norm': {'scale': 3}}
    """
    leaves = dict(_leaves(tree))
    _expect_dicts("rename", tree)
    new = {path: path for path in leaves}
    for old, target in rules.items():
        expect_patterns("rename", (old, target))
        if any("**" in segment and segment != "**" for pattern in (old, target) for segment in pattern.split("/")):
            _fail("rename", "'**' between slashes", f"{old!r}: {target!r}", "within a name write '*'")
        if re.findall(r"\*+", old) != re.findall(r"\*+", target):
            _fail(
                "rename", f"the wildcards of {old!r} in the new path", repr(target), "write the same in the same order"
            )
        for path in chosen("rename", list(leaves), (old,)):
            if new[path] != path:
                _fail("rename", "one rule for each leaf", f"two for {path!r}", "make the patterns narrower")
            new[path] = _filled(target, _captured(old.split("/"), path.split("/")) or [])
    found: dict[str, str] = {}
    for path, target in new.items():
        if target in found:
            _fail(
                "rename", "different new paths", f"{target!r} for {found[target]!r} and {path!r}", "choose another name"
            )
        found[target] = path
    return nested({new[path]: leaf for path, leaf in sorted(leaves.items(), key=lambda pair: _natural(new[pair[0]]))})


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from leaves by path: what ``select(tree, "**")`` takes apart.

    Raises:
        ValueError: one path lies beneath another, or has an empty name.

    Example:
        >>> from funcnn import trees
        >>> trees.nested({"dense_0/kernel": 1, "dense_0/bias": 2})
        {'dense_0': {'kernel': 1, 'bias': 2}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node: Any = tree
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict) or name in node or "" in (*parents, name):
            _fail("nested", "paths none of which lies beneath another", repr(path), "give each leaf a path of its own")
        node[name] = leaf
    return tree


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    """Paths and leaves in the order of ``jax.tree.leaves``."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in pairs]


def _natural(path: str) -> list[list[str | int]]:
    # split keeps the numbers at odd places, so that numbers meet numbers and words meet words.
    return [[int(s) if i % 2 else s for i, s in enumerate(re.split(r"(\d+)", name))] for name in path.split("/")]


def _captured(pattern: list[str], path: list[str]) -> list[Any] | None:
    """What each wildcard stands for, in order: names for ``**``, characters for ``*``; ``None`` where nothing fits."""
    if not pattern:
        return None if path else []
    head, rest = pattern[0], pattern[1:]
    if head == "**":
        for i in range(len(path) + 1):
            after = _captured(rest, path[i:])
            if after is not None:
                return [path[:i], *after]
        return None
    if not path:
        return None
    found = re.fullmatch("(.*)".join(re.escape(part) for part in head.split("*")), path[0], re.DOTALL)
    after = _captured(rest, path[1:])
    return None if found is None or after is None else [*found.groups(), *after]


def _filled(target: str, captured: list[Any]) -> str:
    given, names = iter(captured), []
    for segment in target.split("/"):
        if segment == "**":
            names.extend(next(given))
        else:
            names.append(re.sub(r"\*", lambda _: next(given), segment))
    return "/".join(names)


def _expect_like(path: str, old: Any, new: Any) -> None:
    shapes = [f"{getattr(a, 'dtype', type(a).__name__)}{tuple(np.shape(a))}" for a in (old, new)]
    if shapes[0] != shapes[1]:
        _fail("replace", f"{shapes[0]} at {path!r}", shapes[1], "give the new leaf the shape and dtype of the old one")


def _expect_dicts(where: str, tree: Any) -> None:
    ends = jax.tree_util.tree_flatten_with_path(tree)[0]
    if not all(isinstance(key, jax.tree_util.DictKey) and isinstance(key.key, str) for path, _ in ends for key in path):
        _fail(where, "nested dicts with names", type(tree).__name__, "pass params as init made them", TypeError)


def _fits(pattern: list[str], path: list[str]) -> bool:
    if not pattern:
        return not path
    head, rest = pattern[0], pattern[1:]
    if head == "**":
        return any(_fits(rest, path[i:]) for i in range(len(path) + 1))
    return bool(path) and _segment(head, path[0]) and _fits(rest, path[1:])


def _segment(pattern: str, name: str) -> bool:
    return re.fullmatch(".*".join(re.escape(part) for part in pattern.split("*")), name, re.DOTALL) is not None


def chosen(where: str, names: list[str], patterns: tuple[str, ...]) -> set[str]:
    """The names that match one of the patterns; each has to match one."""
    expect_patterns(where, patterns)
    wanted: set[str] = set()
    for pattern in patterns:
        found = {path for path in names if _fits(pattern.split("/"), path.split("/"))}
        if not found:
            _fail(where, "a pattern that matches a path", repr(pattern), _advice(pattern, names))
        wanted |= found
    return wanted


def _advice(pattern: str, names: list[str]) -> str:
    if not names:
        return "the tree has no leaves"
    if any(_fits([*pattern.split("/"), "**"], name.split("/")) for name in names):
        return f"for all beneath it write {pattern + '/**'!r}"
    nearest = difflib.get_close_matches(pattern, sorted(names, key=_natural), n=5, cutoff=0.0)
    return f"the nearest are {_listed(nearest)}"


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def patterns_of(where: str, given: Any) -> tuple[str, ...]:
    """The patterns of an argument that is one of them, or a sequence of them.

    Raises:
        TypeError: it is neither.
        ValueError: there is none, or one is empty.
    """
    patterns = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    expect_patterns(where, patterns)
    return patterns


def expect_patterns(where: str, patterns: Sequence[Any]) -> None:
    """Raise unless these are patterns, at least one; whether they match shows when a tree is at hand."""
    if not patterns:
        _fail(where, "at least one pattern", "none", "pass one such as '**' for all or '**/kernel'")
    for pattern in patterns:
        _expect_pattern(where, pattern)


def _expect_pattern(where: str, pattern: Any) -> None:
    if not isinstance(pattern, str):
        got = f"{type(pattern).__name__} {pattern!r}"
        _fail(where, "a pattern such as '**/kernel'", got, "pass one string for each pattern", TypeError)
    if not pattern:
        _fail(where, "a pattern such as '**/kernel'", "an empty one", "for all leaves write '**'")


def _fail(where: str, expected: str, got: str, fix: str, error: type[Exception] = ValueError) -> NoReturn:
    # The format of checks.fail, which stands in the same row of the house and is not imported here.
    raise error(f"{where}: expected {expected}, got {got}; {fix}")
