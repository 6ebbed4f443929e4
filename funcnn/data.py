"""From what people have (NumPy arrays, lists, DataFrames) to what programs take: arrays of one length and known dtypes.

All but the arithmetic of ``standardize`` and ``one_hot`` happens on the host, before anything is compiled. A tuple or a
dict of arrays is a tree; a list is an array.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks, primitives
from funcnn.core import Layer, Tree, array_layer, child_key, expect_key, param_dtype

__all__ = ["as_arrays", "folds", "one_hot", "split", "standardize"]


def as_arrays(data: Tree, *, where: str = "data", minimum: int = 1, one_length: bool = True) -> Tree:
    """The same tree with an array of numbers in the place of every array, list, Series or DataFrame.

    float64 becomes float32 and int64 int32, unless x64 is on; integers stay integers and booleans booleans. A NumPy
    array that already has such a dtype is not copied, and a JAX array, traced or not, is handed on as it is.

    Shapes: ``(n, ...)`` for every array, with one ``n``.

    Args:
        data: an array, or a tuple or dict of them.
        where: how errors name the caller.
        minimum: the least number of examples.
        one_length: whether all arrays must have the same length.

    Raises:
        TypeError: something is not numbers: strings, dates, objects, a column of a DataFrame.
        ValueError: a ragged list, different lengths, too few examples, or a number that the smaller dtype cannot hold.

    Example:
        >>> import numpy as np
        >>> from funcnn import data
        >>> x, y = data.as_arrays((np.ones((2, 3)), [0, 1]))
        >>> x.dtype, y.dtype
        (dtype('float32'), dtype('int32'))
    """
    pairs, treedef = jax.tree_util.tree_flatten_with_path(data, is_leaf=lambda leaf: isinstance(leaf, (list, Iterator)))
    if not pairs:
        checks.fail(where, "at least one array", f"{type(data).__name__} without any", "pass arrays, such as (x, y)")
    places = [f" at {jax.tree_util.keystr(path)}" if path else "" for path, _ in pairs]
    arrays = [_array(where + place, leaf) for place, (_, leaf) in zip(places, pairs, strict=True)]
    for place, array in zip(places, arrays, strict=True):
        if not array.shape:
            checks.fail(where + place, "an axis of examples", "a single number", "pass an array, a list or a DataFrame")
        if array.shape[0] < minimum:
            got = str(array.shape[0] or "empty data")
            checks.fail(where + place, f"{minimum} or more examples", got, "check what loads or selects them")
        if one_length and array.shape[0] != arrays[0].shape[0]:
            got = f"{arrays[0].shape[0]}{places[0]} and {array.shape[0]}{place}"
            checks.fail(where, "as many examples in every array", got, "give every example a row in each of them")
    return jax.tree.unflatten(treedef, arrays)


def _array(where: str, leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf
    if isinstance(leaf, Iterator):
        fix = "load it; or, for training.fit, make one stream of batches, zip(xs, ys)"
        checks.fail(where, "an array", f"an iterator ({type(leaf).__name__})", fix, TypeError)
    if callable(leaf):
        fix = "call it; or, for training.fit, pass one function that yields batches (x, y)"
        checks.fail(where, "an array", f"a function ({getattr(leaf, '__name__', type(leaf).__name__)})", fix, TypeError)
    if hasattr(leaf, "__getitem__") and hasattr(leaf, "__len__") and not hasattr(leaf, "__array__"):
        _expect_no_dataset(where, leaf)
    if hasattr(leaf, "columns") and hasattr(leaf, "items"):
        return _canonical(where, _columns(where, leaf))
    if isinstance(leaf, np.ma.MaskedArray):
        checks.fail(where, "plain numbers", "a masked array", "fill the masked ones: array.filled(0)", TypeError)
    try:
        array = np.asarray(leaf)
    except ValueError:
        fix = "pad them to one length; several arrays go into a tuple, not a list"
        checks.fail(where, "rows of one shape", f"a ragged {type(leaf).__name__}", fix)
    if not _numeric(array.dtype):
        checks.fail(where, "numbers", f"{_described(array)} in a {type(leaf).__name__}", _advice(array), TypeError)
    return _canonical(where, array)


def _expect_no_dataset(where: str, leaf: Any) -> None:
    """Raise where this is a data set of another library, or a list of batches, rather than numbers."""
    if not isinstance(leaf, (list, tuple, str, bytes, range)) and not hasattr(leaf, "columns"):
        fix = "for training.fit make a stream of batches of it, as PyTorch's DataLoader(dataset, batch_size=64) does"
        checks.fail(where, "an array", f"a data set ({type(leaf).__name__})", fix, TypeError)
    first = leaf[0] if isinstance(leaf, list) and leaf else None
    if isinstance(first, (tuple, dict)) and any(np.ndim(part) > 0 for part in jax.tree.leaves(first)):
        fix = "a list is one array; for training.fit pass them as a stream, iter(batches)"
        checks.fail(where, "an array", f"a list of {type(first).__name__}s of arrays", fix, TypeError)


def _columns(where: str, frame: Any) -> Any:
    columns = [(str(name), np.asarray(column)) for name, column in frame.items()]
    wrong = {name: column for name, column in columns if not _numeric(column.dtype)}
    if wrong:
        column = next(iter(wrong.values()))
        got = f"{_described(column)} in the columns {list(wrong)}"
        checks.fail(where, "a DataFrame of numbers", got, _advice(column), TypeError)
    if not columns:
        checks.fail(where, "a DataFrame with columns", "none", "select the columns to learn from")
    return np.column_stack([column for _, column in columns])


def _numeric(dtype: Any) -> bool:
    # bfloat16 and its like are of kind V, as records are; time differences count as integers for issubdtype.
    return dtype.kind in "biufc" or (dtype.kind == "V" and jnp.issubdtype(dtype, jnp.number))


def _described(array: Any) -> str:
    names = {"U": "strings", "S": "bytes", "M": "dates", "m": "time differences", "O": "objects"}
    return names.get(array.dtype.kind, str(array.dtype))


def _advice(array: Any) -> str:
    if array.dtype.kind in "Mm":
        return "count from a fixed time: (t - t.min()) / np.timedelta64(1, 'D')"
    if array.size and all(isinstance(value, (str, bytes)) for value in array.ravel()[:8]):
        return "number the labels: np.unique(labels, return_inverse=True)[1]"
    return "fill or leave out what is missing, and convert the rest to numbers"


def _canonical(where: str, array: Any) -> Any:
    native = np.float64 if array.dtype == np.longdouble else array.dtype.newbyteorder("=")
    dtype = jax.dtypes.canonicalize_dtype(native)
    with np.errstate(over="ignore"):
        converted = array.astype(dtype, copy=False)
    if dtype.itemsize < array.dtype.itemsize:
        whole = dtype.kind in "iu"
        if (converted != array if whole else np.isinf(converted) & np.isfinite(array)).any():
            fix = "rescale them, or set jax.config.update('jax_enable_x64', True)"
            checks.fail(where, f"numbers in the range of {dtype}", f"larger ones in {array.dtype}", fix)
    return converted


def split(data: Tree, fraction: float, *, key: Any, stratify: Any = None) -> tuple[Tree, Tree]:
    """Examples to learn from and examples to test with: every row is in one of them, in an order that the key decides.

    Formula: of ``n`` examples ``round(n * fraction)`` are for testing, at least one and never all.

    Shapes: ``(n, ...) -> (n - k, ...), (k, ...)`` for every array.

    Args:
        data: an array, a list or a DataFrame, or a tuple or dict of them.
        fraction: the share of the test examples, between 0 and 1.
        key: a JAX key; the same key gives the same split.
        stratify: a label for every example, numbers or strings. Each class is then divided like the whole, to within
            one example, and a class of two or more has an example on either side if there is room for it.

    Raises:
        TypeError: ``key`` is not a key, or the data are not numbers.
        ValueError: the lengths differ, there are fewer than two examples, or ``fraction`` is not between 0 and 1.

    Example:
        >>> import jax, numpy as np
        >>> from funcnn import data
        >>> labels = np.array([0] * 8 + [1] * 4)
        >>> train, test = data.split((np.eye(12), labels), 0.25, key=jax.random.key(0), stratify=labels)
        >>> train[0].shape, test[0].shape, sorted(test[1].tolist())
        ((9, 12), (3, 12), [0, 0, 1])
    """
    where = "data.split"
    expect_key(where, key)
    if not checks.is_concrete(key):
        checks.fail(where, "a key that is known", "a traced one", "split the data before jit, vmap or grad", TypeError)
    if isinstance(fraction, bool) or not 0 < fraction < 1:
        checks.fail(where, "a fraction between 0 and 1", str(fraction), "0.2 is a fifth of the examples for testing")
    arrays = as_arrays(data, where=where, minimum=2)
    n = jax.tree.leaves(arrays)[0].shape[0]
    count = min(max(round(n * fraction), 1), n - 1)
    # The key is folded first, so that a run which is then given the same key shares no randomness with the split.
    order = np.asarray(jax.random.permutation(child_key(key, "data.split"), n))
    chosen = np.arange(n) < count
    if stratify is not None:
        classes = _classes(where, stratify, n)[order]
        chosen = _first_of_each(classes, _quotas(np.bincount(classes), fraction, count))
    parts = (order[~chosen], order[chosen])
    train, test = (jax.tree.map(lambda array, rows=rows: array[rows], arrays) for rows in parts)
    return train, test


def folds(n: int, count: int, *, key: Any, stratify: Any = None) -> Any:
    """The number of the fold that each of ``n`` examples is in: parts whose sizes differ by one at most.

    Formula: of the examples in an order that the key decides, the ``i``-th is in fold ``i mod count``; with
    ``stratify`` they are ordered by their class before.

    Args:
        n: how many examples there are.
        count: how many folds, from 2 to ``n``.
        key: a JAX key; the same key gives the same folds.
        stratify: a label for every example, numbers or strings. Each class is then spread evenly, to within one.

    Raises:
        TypeError: ``key`` is not a key, or a count not a whole number.
        ValueError: there are more folds than examples, or fewer than two.

    Example:
        >>> import jax, numpy as np
        >>> from funcnn import data
        >>> labels = np.array([0] * 6 + [1] * 3)
        >>> numbers = data.folds(9, 3, key=jax.random.key(0), stratify=labels)
        >>> np.bincount(numbers).tolist(), sorted(numbers[6:].tolist())
        ([3, 3, 3], [0, 1, 2])
    """
    where = "data.folds"
    expect_key(where, key)
    n, count = checks.expect_count(where, "n", n, 2), checks.expect_count(where, "count", count, 2)
    if count > n:
        checks.fail(where, f"at most {n} folds, one for each example", str(count), "take fewer folds")
    order = np.asarray(jax.random.permutation(child_key(key, "data.folds"), n))
    if stratify is not None:
        order = order[np.argsort(_classes(where, stratify, n)[order], kind="stable")]
    numbers = np.empty(n, np.int32)
    numbers[order] = np.arange(n) % count
    return numbers


def _classes(where: str, labels: Any, n: int) -> Any:
    """Every example's class as a number from 0."""
    labels = np.asarray(labels)
    if labels.ndim != 1:
        fix = "pass one label for each example: labels.ravel(), or one_hot.argmax(-1)"
        checks.fail(where, "stratify with one axis", f"shape {labels.shape}", fix)
    if len(labels) != n:
        got = f"{n} examples and {len(labels)} labels"
        checks.fail(where, "a label in stratify for every example", got, "pass the labels of these very examples")
    try:
        return np.unique(labels, return_inverse=True)[1]
    except TypeError:  # not to be sorted, as None among strings
        checks.fail(where, "labels of one type in stratify", "several types", "fill what is missing", TypeError)


def _first_of_each(classes: Any, quotas: Any) -> Any:
    chosen = np.zeros(len(classes), bool)
    by_class = np.argsort(classes, kind="stable")
    for rows, quota in zip(np.split(by_class, np.cumsum(np.bincount(classes))[:-1]), quotas, strict=True):
        chosen[rows[:quota]] = True
    return chosen


def _quotas(counts: Any, fraction: float, total: int) -> Any:
    """How many test examples each class gives: its share rounded down, and one more where the largest remainders are.

    A class that would otherwise be missing among the test examples comes first; one that would then be missing among
    the others comes last.
    """
    shares = counts * fraction
    quotas = np.floor(shares).astype(int)
    room = quotas + 1 < counts
    priority = np.lexsort((quotas - shares, ~(room & (quotas == 0)), ~room))
    quotas[priority[: total - quotas.sum()]] += 1
    return quotas


def standardize(x: Any) -> Layer:
    """A layer that gives every feature mean 0 and standard deviation 1, as measured on ``x``, once and for all.

    Its statistics are part of the model's state: saved and exported with it, and not changed by training.

    Formula: ``y = (x - mean) / std``, with ``std = 1`` for a feature that is constant.

    Shapes: ``(batch, ..., features) -> (batch, ..., features)``

    Params: none. State: ``mean (features,)``, ``std (features,)``.

    Args:
        x: the training inputs, ``(n, ..., features)``: all axes but the last are averaged, in float64.

    Raises:
        TypeError: ``x`` is not numbers, or is traced.
        ValueError: ``x`` is empty, has one axis, or holds NaN or infinity; later, an input has other features.

    Example:
        >>> import jax, numpy as np
        >>> from funcnn import data, layers
        >>> x = np.array([[0.0, 5.0], [2.0, 5.0]])
        >>> model = layers.serial(data.standardize(x), layers.dense(3))
        >>> params, state = model.init(jax.random.key(0), x)
        >>> {name: value.tolist() for name, value in state["standardize_0"].items()}
        {'mean': [1.0, 5.0], 'std': [1.0, 1.0]}
        >>> layer = data.standardize(x)
        >>> layer.apply({}, state["standardize_0"], x)[0].tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """
    measured_mean, measured_std = _statistics("data.standardize", x)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        del key
        _expect_features(measured_mean, x)
        dtype = param_dtype(x)
        return {}, {"mean": jnp.asarray(measured_mean, dtype), "std": jnp.asarray(measured_std, dtype)}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del params, key, training
        _expect_features(state["mean"], x)
        dtype = jnp.promote_types(x.dtype, state["mean"].dtype)
        mean, std = (primitives.along_last(state[name].astype(dtype), x.ndim) for name in ("mean", "std"))
        y = (x.astype(dtype) - mean) / std
        return y.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else y, state

    return array_layer(init, apply, "standardize", (), ("mean", "std"))


def _statistics(where: str, x: Any) -> tuple[Any, Any]:
    """Mean and standard deviation of every feature, in float64, of the numbers as the model will see them."""
    if not checks.is_concrete(x):
        checks.fail(where, "inputs that are known", "traced ones", "make the layer before jit, vmap or grad", TypeError)
    if isinstance(x, (tuple, dict)):
        checks.fail(where, "one array of inputs", f"a {type(x).__name__}", "pass the inputs alone: train[0]", TypeError)
    x = np.asarray(as_arrays(x, where=where))
    checks.expect_rank(where, x, 2, "(examples, ..., features)", "a single feature is x[:, None]")
    rows = x.reshape(-1, x.shape[-1])
    wrong = np.flatnonzero(~np.isfinite(rows).all(0))
    if len(wrong):
        got = f"NaN or infinity in the features {wrong.tolist()}"
        checks.fail(where, "finite numbers", got, "fill them, or leave those rows out")
    mean = rows.mean(0, dtype=np.float64)
    # Block by block, for the differences in float64 take twice the memory of float32 data.
    blocks = np.split(rows, range(65536, len(rows), 65536))
    variance = sum(np.square(block - mean).sum(0) for block in blocks) / len(rows)
    # Asked of the numbers themselves: the variance of a constant feature is a rounding error away from zero.
    constant = rows.max(0) == rows.min(0)
    return np.where(constant, rows[0], mean), np.where(constant, 1.0, np.sqrt(variance))


def _expect_features(mean: Any, x: Any) -> None:
    checks.expect_rank("standardize", x, 1, "(batch, ..., features)", "pass an array with a last axis of features")
    if x.shape[-1] != len(mean):
        expected = f"{len(mean)} features, as in the data it was made from"
        got = f"{x.shape[-1]} in an input of shape {tuple(x.shape)}"
        checks.fail("standardize", expected, got, "pass the same features, or measure these: data.standardize(x)")


def one_hot(labels: Any, classes: int) -> Any:
    """Labels as rows with a one in the place of the class and zeros elsewhere.

    Formula: ``y[i, c] = 1 if labels[i] == c else 0``

    Shapes: ``(...) -> (..., classes)``

    Args:
        labels: whole numbers from 0 to ``classes - 1``.
        classes: how many there are.

    Raises:
        TypeError: the labels are not whole numbers.
        ValueError: a label is out of range. Traced labels are not checked; those out of range give rows of zeros.

    Example:
        >>> from funcnn import data
        >>> data.one_hot([0, 2], 3).tolist()
        [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    where = "data.one_hot"
    classes = checks.expect_count(where, "classes", classes)
    labels = _array(where, labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        checks.fail(where, "whole numbers as labels", str(labels.dtype), "convert: labels.astype(int)", TypeError)
    values = checks.known(labels)
    if values is not None and values.size and not 0 <= values.min() <= values.max() < classes:
        got = f"labels from {values.min()} to {values.max()}"
        checks.fail(where, f"labels from 0 to {classes - 1}", got, f"count from 0; are there {classes} classes?")
    return jax.nn.one_hot(labels, classes)
