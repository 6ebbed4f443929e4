"""What can be known of a sweep before anything is compiled, from the jaxpr of one step."""

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from funcnn import checks, primitives
from funcnn.core import Tree
from funcnn.training import cores
from funcnn.training.driving import Driver
from funcnn.training.fingerprints import operations
from funcnn.training.kernels import fuses_small_loops
from funcnn.training.plans import Plan
from funcnn.training.programs import Program
from funcnn.training.trainers import Trainer, TrainState, expect_trainer


def concrete_trainer(make_trainer: Any, first: Any) -> Trainer:
    """The trainer of the first member, its hyperparameters known."""
    if not callable(make_trainer) or isinstance(make_trainer, Trainer):
        got, fix = type(make_trainer).__name__, "pass a function from hyperparameters to a trainer"
        checks.fail("sweep", "a function that makes a trainer", got, fix, TypeError)
    try:
        trainer: Any = make_trainer(first)
    except Exception as error:
        h = jax.tree.map(_number, first)
        fix = f", a dict: read h[{next(iter(h))!r}]" if isinstance(h, dict) else ""
        error.add_note(f"sweep: while the trainer of the first member was made, from {h}{fix}")
        raise
    expect_trainer("sweep", trainer)
    return trainer


def _number(value: Any) -> Any:
    return value.item() if value.ndim == 0 else value


def step_of(make_trainer: Callable[[Any], Trainer], first: Any, run: Driver, state: TrainState | None) -> Any:
    """The jaxpr of a beginning and one step of a member with traced hyperparameters.

    What decides shapes or is branched on raises here, and what nothing reads. It is traced anew at each call.
    """
    given = run.arrays, run.held_out, jax.random.key(0), state
    try:
        jaxpr = jax.make_jaxpr(lambda h, *rest: _begun(make_trainer, run.plan, h, *rest))(first, *given)
    except (TypeError, jax.errors.JAXTypeError) as error:
        # With numbers that are known it goes through: then it is the tracers that do not.
        known = jax.tree.map(lambda a: np.asarray(a)[()], first)
        jax.eval_shape(lambda *args: _begun(make_trainer, run.plan, known, *args), *given)
        names = list(first) if isinstance(first, dict) else []
        names = [name for name in names if not _takes(name, make_trainer, run, known, given)]
        raise TypeError(
            "sweep: expected hyperparameters that are computed with, got one that decides a shape or a branch of the "
            f"program{', ' + ' and '.join(map(repr, names)) if names else ''}; sweep over it in a loop, one sweep for "
            f"each value, or write the branch with jnp.where ({str(error).splitlines()[0]})"
        ) from error
    _expect_read(first, jaxpr.jaxpr)
    return jaxpr


def _takes(name: str, make_trainer: Callable[[Any], Trainer], run: Driver, known: Any, given: Any) -> bool:
    """Whether this hyperparameter may be a tracer, where the others are known."""

    def begun(value: Any, *rest: Any) -> Any:
        return _begun(make_trainer, run.plan, known | {name: value}, *rest)

    try:
        jax.eval_shape(begun, known[name], *given)
    except (TypeError, jax.errors.JAXTypeError):
        return False
    return True


def same_maker(make_trainer: Callable[[Any], Trainer], jaxpr: Any) -> Callable[[Any], Trainer]:
    """``make_trainer`` under a name that depends on what it does, by which compiled programs are found again.

    By itself it would be found again also where a variable that it reads has another value by now.
    """
    lines = operations(jaxpr, everything=True)
    return _maker(_Itself(make_trainer), hashlib.sha256("\n".join(lines).encode()).hexdigest())


class _Itself:
    """A function, or an object that is called, equal to what its ``==`` says, or without a hash to itself alone."""

    def __init__(self, called: Callable[[Any], Trainer]) -> None:
        self.called = called
        try:
            self.name: Any = hash(called), called
        except TypeError:
            self.name = id(called), None

    def __hash__(self) -> int:
        return hash(self.name[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.name == other.name


@functools.lru_cache(maxsize=64)
def _maker(make_trainer: _Itself, digest: str) -> Callable[[Any], Trainer]:
    del digest
    return lambda h: make_trainer.called(h)


def _begun(
    make_trainer: Callable[[Any], Trainer], plan: Plan, h: Any, arrays: Tree, held_out: Tree, key: Any, state: Any
) -> Any:
    program = Program(make_trainer(h), plan, arrays, held_out)
    carry = program.start(key, state, compiled=False)
    carry = program.step(carry, jnp.int32(0), jnp.int32(0), plan.batch_size)
    return carry.state, program.row(carry)


def _expect_read(first: Any, jaxpr: Any) -> None:
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(first)]
    read = _read(jaxpr)
    unread = [path for path, var in zip(paths, jaxpr.invars, strict=False) if var not in read]
    if unread:
        what = f"h{unread[0]}" if unread[0] else "h"
        fix = "use it, or take it out of the grid"
        checks.fail("sweep", "a make_trainer(h) that uses all of the grid", f"nothing that depends on {what}", fix)


def _read(jaxpr: Any) -> set[Any]:
    """The variables that the outputs of a jaxpr depend on, or that a loop or a branch takes."""
    needed = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    for equation in reversed(jaxpr.eqns):
        if not needed.intersection(equation.outvars) and not equation.effects:
            continue
        taken = [v for v in equation.invars if not isinstance(v, Literal)]
        inner = equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit") else None
        if inner is not None:
            read = _read(inner.jaxpr)
            pairs = zip(equation.invars, inner.jaxpr.invars, strict=True)
            taken = [v for v, own in pairs if own in read and not isinstance(v, Literal)]
        needed.update(taken)
    return needed


# Multiplications of one product in a step of one member, on CPU: benchmarks/sweeps.py measures it, docs/sweep_times.md.
_LARGE = 4_000_000


def fastest(jaxpr: Any, plan: Plan) -> str:
    """``"vmap"`` or ``"map"``: what is faster for a step of this kind on this platform.

    Side by side is, as long as the products of one member do not fill the machine. On CPU those of large networks do;
    and loops of tiny ones are a single kernel each, where ``fuse_small_loops`` was called and nothing is drawn.
    """
    if primitives.platform() != "cpu":
        return "vmap"
    largest = max(_products(jaxpr), default=0)
    return "map" if _is_one_kernel(jaxpr, plan) or largest > _LARGE else "vmap"


def cores_for(jaxpr: Any, plan: Plan, how: str) -> int:
    """On how many cores members that come one after the other are computed at once: all, where each is one kernel.

    Otherwise XLA divides the operations of each among the cores; and what has effects keeps to its order.
    """
    alone = how == "map" and primitives.platform() == "cpu" and _is_one_kernel(jaxpr.jaxpr, plan)
    return cores.usable() if alone and not jaxpr.effects else 1


def _is_one_kernel(jaxpr: Any, plan: Plan) -> bool:
    return fuses_small_loops() and not plan.draws and not _calls_a_library(jaxpr)


def _calls_a_library(jaxpr: Any) -> bool:
    """Whether products are left that were not written out: large ones, those of batches, and in half precision."""
    names = {equation.primitive.name for equation in jaxpr.eqns}
    left = not names.isdisjoint(("dot_general", "conv_general_dilated"))
    return left or any(_calls_a_library(inner) for equation in jaxpr.eqns for inner in _inner(equation))


def _products(jaxpr: Any) -> Iterator[int]:
    """How many multiplications each matrix product and convolution of a jaxpr makes, those in inner ones included."""
    for equation in jaxpr.eqns:
        inputs = [v.aval.shape for v in equation.invars if hasattr(v.aval, "shape")]
        made = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            yield made * math.prod(inputs[0][axis] for axis in contracted)
        elif equation.primitive.name == "small_product":
            yield made * inputs[0][1]
        elif equation.primitive.name == "conv_general_dilated":
            yield made * math.prod(inputs[1]) // max(inputs[1][equation.params["dimension_numbers"].rhs_spec[0]], 1)
        for inner in _inner(equation):
            yield from _products(inner)


def made_bytes(jaxpr: Any) -> int:
    """The bytes of all that the operations of a jaxpr make, those of inner ones included, each once."""
    total = 0
    for equation in jaxpr.eqns:
        total += bytes_of(v.aval for v in equation.outvars) + sum(made_bytes(inner) for inner in _inner(equation))
    return total


def bytes_of(values: Iterable[Any]) -> int:
    """The bytes of arrays, or of what has their shapes and dtypes; of what has none, none."""
    arrays = [value for value in values if hasattr(value, "shape") and hasattr(value, "dtype")]
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)


def _inner(equation: Any) -> Iterator[Any]:
    """The jaxprs among the parameters of an operation."""
    params = list(equation.params.values())
    for inner in jax.tree.leaves(params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
        if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
            yield getattr(inner, "jaxpr", inner)
