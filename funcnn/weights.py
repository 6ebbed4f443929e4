"""Params and state in one file of the safetensors format, which other libraries read as well.

The format has no checksum. So the file says of every array what it is and what its bytes come to, and ``load`` looks.
That is against damage, not against malice: who changes a file on purpose can change the checksum with it. Nothing in a
file is ever executed.
"""

import hashlib
import json
import operator
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks, disk, trees
from funcnn.core import Tree

__all__ = ["Weights", "WeightsError", "load", "save"]

_FORMAT = "funcnn 1"
_PARTS = ("params", "state")
# Bytes of a header; safetensors has the same bound.
_MOST = 100_000_000
# What safetensors calls the dtypes that it knows; all others are kept as bytes, with an axis more.
_CODES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}


class Weights(NamedTuple):
    """What is in a file: ``params`` and ``state``, nested dicts of arrays; the ``card``; ``versions`` by package."""

    params: Tree
    state: Tree
    card: str
    versions: dict[str, str]


class WeightsError(ValueError):
    """A file that is damaged, or none of weights; ``path`` is where it is."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


def save(path: str | os.PathLike[str], params: Tree, state: Tree | None = None, *, card: str = "") -> None:
    """Write params and state into a file, whole or not at all.

    The file is written beside its place, flushed to the disk, and moved there: who reads at the same time finds the old
    one or the new one. bfloat16, float8 and typed keys come back as they were.

    Args:
        path: of the file, conventionally ``.safetensors``; one that is there is replaced.
        params: nested dicts of arrays, as ``result.state.params``.
        state: the same, as ``result.state.model_state``; none otherwise.
        card: a text for people: what this is, from which data, for what.

    Raises:
        TypeError: something is no array, or ``card`` no text.
        OSError: the disk is full, or the folder is not there or may not be written to. What was there stays.

    Example:
        >>> import pathlib, tempfile, jax, jax.numpy as jnp
        >>> from funcnn import layers, weights
        >>> params, state = layers.dense(2).init(jax.random.key(0), jnp.ones((1, 3)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     weights.save(f"{folder}/dense.safetensors", params, state, card="not trained")
        ...     found = weights.load(f"{folder}/dense.safetensors")
        >>> (found.params["kernel"] == params["kernel"]).all().item(), found.card
        (True, 'not trained')

    Reference: https://github.com/huggingface/safetensors
    """
    _expect_safetensors("weights.save")
    import safetensors

    if not isinstance(card, str):
        checks.fail("weights.save", "card as a text", type(card).__name__, "pass a string", TypeError)
    if hasattr(params, "_fields"):
        fix = "pass result.state.params and result.state.model_state"
        checks.fail("weights.save", "params, nested dicts of arrays", type(params).__name__, fix, TypeError)
    leaves: dict[str, dict[str, Any]] = {}
    arrays: dict[str, Any] = {}
    for part, tree in zip(_PARTS, (params, {} if state is None else state), strict=True):
        for name, leaf in _by_path(tree, f"weights.save: {part}").items():
            arrays[f"{part}/{name}"], leaves[f"{part}/{name}"] = _described(f"weights.save: {part}/{name}", leaf)
    metadata = {
        "format": _FORMAT,
        "card": card,
        "summary": f"{sum(a.size for a in arrays.values()):,} numbers in {len(arrays)} arrays",
        "versions": json.dumps(disk.versions_of("funcnn", "jax", "numpy", "safetensors")),
        "leaves": json.dumps(leaves),
    }
    metadata["sha256"] = _digest(metadata)
    specs = {
        name: safetensors.TensorSpec(dtype=a.dtype.name, shape=a.shape, data_ptr=a.ctypes.data, data_len=a.nbytes)
        for name, a in arrays.items()
    }
    target = os.path.abspath(os.fspath(path))
    if not os.path.isdir(os.path.dirname(target)):
        fix = "make it before: os.makedirs(folder)"
        checks.fail("weights.save", "a path in a folder that is there", f"{target}", fix, FileNotFoundError)
    try:
        with disk.beside(target) as place:
            safetensors.serialize_file(specs, place, metadata)
    except safetensors.SafetensorError as error:
        raise OSError(f"weights.save: {target} could not be written: {error}") from error


def load(
    path: str | os.PathLike[str],
    *patterns: str,
    rename: Mapping[str, str] | None = None,
    like: Tree | None = None,
    verify: bool = True,
) -> Weights:
    """Read params and state from a file, all or those whose paths match.

    Args:
        path: of the file.
        patterns: of the paths to read, such as ``"encoder/**"``; all where there are none.
        rename: new paths of params by old ones, as for ``trees.rename``; before ``like`` looks.
        like: params with which those of the file have to agree in path, shape and dtype. What was not read is taken
            from here.
        verify: ``False`` for files of other libraries, which have no checksums: all that is in them is ``params``, with
            ``"."`` in names as ``"/"``. One that has checksums is verified all the same.

    Raises:
        WeightsError: the file is damaged, cut off, or of another kind.
        ValueError: a pattern matches nothing, or what is read is unlike ``like``.
        OSError: there is no such file, or it may not be read.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from funcnn import weights
        >>> trained = {"encoder": {"kernel": jnp.ones(2)}, "head": {"kernel": jnp.ones(3)}}
        >>> model = {"body": {"kernel": jnp.zeros(2)}, "new": {"kernel": jnp.zeros(5)}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     weights.save(f"{folder}/a.safetensors", trained)
        ...     begun = weights.load(
        ...         f"{folder}/a.safetensors", "encoder/**", rename={"encoder/**": "body/**"}, like=model
        ...     ).params
        >>> begun["body"]["kernel"].tolist(), begun["new"]["kernel"].shape
        ([1.0, 1.0], (5,))
    """
    target = os.path.abspath(os.fspath(path))
    arrays, metadata = _read(target)
    leaves = _verified(target, arrays, metadata) if verify or "sha256" in metadata else None
    found: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
    for name, array in arrays.items():
        if leaves is None:
            if name.replace(".", "/") in found["params"]:
                _fail(target, "a path of its own for each array", f"{name!r} twice", "rename one of them")
            found["params"][name.replace(".", "/")] = _as_jax(target, name, array)
        else:
            part, _, place = name.partition("/")
            found[part][place] = _restored(target, name, array, leaves[name])
    params, state = (trees.nested(found[part]) for part in _PARTS)
    if patterns:
        chosen = trees.select({"params": params, "state": state}, *(f"*/{p}" for p in patterns), where="weights.load")
        both = trees.nested(chosen)
        params, state = both.get("params", {}), both.get("state", {})
    if rename:
        params = trees.rename(params, rename)
    if like is not None:
        params = _merged(target, params, like)
    return Weights(params, state, metadata.get("card", ""), {} if leaves is None else _versions(target, metadata))


# ---- writing ---------------------------------------------------------------------------------------------------------


def _by_path(tree: Tree, where: str) -> dict[str, Any]:
    found = trees.select(tree, "**", where=where) if jax.tree.leaves(tree) else {}
    if len(found) < len(jax.tree.leaves(tree)):
        checks.fail(
            where, "a path of its own for each array", "two of the same", "leave '/' out of the names of params"
        )
    for name, leaf in found.items():
        if not hasattr(leaf, "dtype") or isinstance(leaf, jax.ShapeDtypeStruct):
            checks.fail(f"{where}/{name}", "an array", type(leaf).__name__, "pass trained params", TypeError)
    return found


def _described(where: str, leaf: Any) -> tuple[Any, dict[str, Any]]:
    """An array as safetensors takes it, and what ``load`` has to know of it."""
    if not checks.is_concrete(leaf):
        checks.fail(where, "an array", "a tracer", "save outside of jit", TypeError)
    about: dict[str, Any] = {}
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        about["key"] = str(jax.random.key_impl(leaf))
        leaf = jax.random.key_data(leaf)
    # In the order of rows: safetensors writes memory as it lies there.
    array = np.asarray(np.asarray(leaf), order="C")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    about |= {"dtype": array.dtype.name, "shape": list(array.shape)}
    if array.dtype.name not in _CODES.values():
        if array.dtype.kind not in "fciuV" or array.dtype.hasobject:
            checks.fail(where, "an array of numbers", str(array.dtype), "leave it out", TypeError)
        array = np.frombuffer(array.tobytes(), np.uint8).reshape(*array.shape, array.dtype.itemsize)
    about["sha256"] = hashlib.sha256(array.tobytes()).hexdigest()
    return array, about


def _digest(metadata: Mapping[str, str]) -> str:
    """What all metadata but this come to."""
    kept = {name: text for name, text in metadata.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


# ---- reading ---------------------------------------------------------------------------------------------------------


def _expect_safetensors(where: str) -> None:
    checks.expect_package(where, "safetensors", "safetensors, which writes and reads the file", "weights")


def _fail(path: str, expected: str, got: str, fix: str = "take another copy of the file") -> NoReturn:
    raise WeightsError(f"weights.load: {path}: expected {expected}, got {got}; {fix}", path)


def _read(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays of a file as they are stored, and its metadata; checked as the format asks."""
    _expect_safetensors("weights.load")
    import safetensors

    if os.path.exists(path) and not os.path.isfile(path):
        _fail(path, "a file", "a folder or a device", "pass the path of a file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        # Before anything of that size is in memory.
        if length > min(size - 8, _MOST):
            _fail(path, "a file of safetensors", f"{size} bytes that say to begin with a header of {length}")
        head = file.read(length)
        try:
            header = json.loads(head, object_pairs_hook=disk.once)
            ends = [about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"]
            if 8 + length + max(ends, default=0) != size:
                raise ValueError("its arrays end elsewhere")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError) as error:
            _fail(path, "a file of safetensors", f"{size} bytes that are none ({error})")
        file.seek(0)
        content = file.read()
    try:
        stored = safetensors.deserialize(content)
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        _fail(path, "a file of safetensors", f"{len(content)} bytes that are none ({error})")
    arrays = {}
    for name, entry in stored:
        if entry["dtype"] not in _CODES:
            _fail(path, f"a dtype of {', '.join(_CODES)}", f"{entry['dtype']} at {name}", "convert it")
        dtype = jnp.dtype(_CODES[entry["dtype"]])
        arrays[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    return arrays, header.get("__metadata__", {})


def _verified(path: str, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the file says of its arrays, all of it found to be true."""
    if metadata.get("format") != _FORMAT or "sha256" not in metadata:
        fix = "of a file of another library pass verify=False"
        _fail(path, "a file of weights.save, with checksums", f"the format {metadata.get('format')!r}", fix)
    if _digest(metadata) != metadata["sha256"]:
        _fail(path, "metadata of the checksum that it holds", "others: the file is damaged")
    leaves = _leaves(path, metadata)
    if set(leaves) != set(arrays):
        _fail(path, f"the arrays {sorted(leaves)}", f"{sorted(arrays)}: the file is damaged")
    for name, about in leaves.items():
        if hashlib.sha256(arrays[name].tobytes()).hexdigest() != about["sha256"]:
            _fail(path, f"{name} of the checksum that was saved with it", "another: the file is damaged")
    return leaves


def _leaves(path: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the file says of each of its arrays, if it is of the form in which ``save`` says it."""
    try:
        leaves = json.loads(metadata["leaves"])
        for name, about in leaves.items():
            known = jnp.dtype(about["dtype"]), [operator.index(size) for size in about["shape"]]
            texts = about["sha256"], about.get("key", "")
            if not all(isinstance(text, str) for text in texts) or name.partition("/")[0] not in _PARTS:
                raise ValueError(f"{name} with {known} and {texts}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _fail(path, "a description of each array", f"one that cannot be read ({error!r})")
    return leaves


def _versions(path: str, metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        return dict(json.loads(metadata["versions"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        _fail(path, "the versions that wrote it", f"what cannot be read ({error!r})")


def _restored(path: str, name: str, array: Any, about: Mapping[str, Any]) -> Any:
    """An array as it was saved."""
    dtype, shape = jnp.dtype(about["dtype"]), tuple(about["shape"])
    raw = array.dtype != dtype
    expected = (*shape, dtype.itemsize) if raw else shape
    if array.shape != expected or (raw and array.dtype != np.uint8):
        _fail(path, f"{name} of shape {shape} and {dtype}", f"{array.shape} and {array.dtype}: the file is damaged")
    array = array.tobytes() if raw else array
    restored = np.frombuffer(array, dtype).reshape(shape) if raw else array
    leaf = _as_jax(path, name, restored)
    return jax.random.wrap_key_data(leaf, impl=about["key"]) if "key" in about else leaf


def _as_jax(path: str, name: str, array: Any) -> Any:
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        fix = "set jax.config.update('jax_enable_x64', True)"
        checks.fail(f"weights.load: {path}: {name}", "numbers of at most 32 bits", str(array.dtype), fix)
    return jnp.asarray(array)


def _merged(path: str, params: Tree, like: Tree) -> Tree:
    """``like``, with what was read in its places."""
    wanted, found = _by_path(like, "weights.load: like"), _by_path(params, "weights.load")
    for name, leaf in found.items():
        where = f"weights.load: {path}: {name}"
        if name not in wanted:
            fix = "give its new path in rename, or name what is to be read by patterns"
            checks.fail(where, f"one of the paths of like, {', '.join(wanted)}", "none of them", fix)
        a, b = wanted[name], leaf
        if a.shape != b.shape or a.dtype != b.dtype:
            fix = "init the model that was saved, or leave this out by patterns"
            checks.fail(where, f"{a.shape} of {a.dtype}, as in like", f"{b.shape} of {b.dtype}", fix)
    return trees.replace(like, found) if found else like
