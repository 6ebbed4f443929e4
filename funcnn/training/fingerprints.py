"""What makes a run the run that it is, in a form that can be written down and compared."""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn.core import Tree

# Parameters of an operation that say how it is called or where it runs, and nothing of what is computed.
_NAMES = re.compile(r"name|debug_info|inline|keep_unused|symbolic_zeros|.*(sharding|layout|donated|options|mesh).*")
_ADDRESS = re.compile(r"0x[0-9a-f]+")


def digest(tree: Tree) -> str:
    """The SHA-256 of all arrays of a tree, with their paths, dtypes and shapes."""
    sums = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not checks.is_concrete(leaf):
            fix = "use training.run inside jit, vmap or grad: it is the same run as a pure function"
            checks.fail("checkpoint", "values, to be saved", "a tracer", fix, TypeError)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf, order="C")
        sums.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        sums.update(array.view(np.uint8).data if array.size and array.ndim else array.tobytes())
    return sums.hexdigest()


def operations(closed: Any, *, everything: bool = False) -> list[str]:
    """A program as lines of text: its operations in order, one within the other, with the numbers written in it.

    Names of variables, functions and places in memory are left out, so that the same program gives the same lines in
    another process. With ``everything`` only places in memory are, and not of what the host is called back for: what is
    called how, where it runs and under which settings stands there.
    """
    return list(_lines(closed.jaxpr, closed.consts, "", everything))


def _lines(jaxpr: Any, consts: Any, indent: str, everything: bool) -> Iterator[str]:
    names: dict[Any, str] = {}
    for variable, const in zip(jaxpr.constvars, consts, strict=False):
        names[variable] = f"c{len(names)}"
        yield f"{indent}{names[variable]} = {_const(const)}"
    for variable in jaxpr.invars:
        names[variable] = f"v{len(names)}"
    for equation in jaxpr.eqns:
        given = [_operand(operand, names) for operand in equation.invars]
        for variable in equation.outvars:
            names[variable] = f"v{len(names)}"
        made = " ".join(f"{names[variable]}:{variable.aval}" for variable in equation.outvars)
        options, inner = _options(equation, everything)
        place = _ADDRESS.sub("0x", f" in {equation.ctx}") if everything else ""
        yield f"{indent}{made} = {equation.primitive.name}{options} {' '.join(given)}{place}"
        for name, (part, part_consts) in inner:
            yield f"{indent}  {name}:"
            yield from _lines(part, part_consts, indent + "    ", everything)
    yield f"{indent}gives {' '.join(_operand(operand, names) for operand in jaxpr.outvars)}"


def _operand(operand: Any, names: dict[Any, str]) -> str:
    if hasattr(operand, "val"):  # a number in the program
        return f"{_const(operand.val)}:{operand.aval}"
    return names.get(operand, "?")


def _const(value: Any) -> str:
    if hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    if not array.ndim:
        return str(array[()])
    return f"{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()}"


def _options(equation: Any, everything: bool) -> tuple[str, list[tuple[str, tuple[Any, Any]]]]:
    """The parameters of an operation as a text, and the programs among them."""
    params, is_callback = equation.params, everything and "callback" in equation.primitive.name
    texts: list[str] = []
    inner: list[tuple[str, tuple[Any, Any]]] = []
    for name in sorted(params):
        value = params[name]
        parts = value if isinstance(value, (tuple, list)) else [value]
        programs = [part for part in parts if hasattr(part, "eqns")]
        if programs:
            # An open program has no constants of its own.
            inner += [(name, (getattr(part, "jaxpr", part), getattr(part, "consts", ()))) for part in programs]
        elif everything or not (_NAMES.fullmatch(name) or any(callable(p) and not isinstance(p, type) for p in parts)):
            text = str(value) if is_callback else _ADDRESS.sub("0x", str(value))  # which function it calls is its place
            texts.append(f"{name}={text}")
    return f"[{' '.join(texts)}]" if texts else "", inner
