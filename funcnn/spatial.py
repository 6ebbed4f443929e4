"""What layers over spatial axes have in common: the checks of inputs and arguments, and the layer that is a function.

A spatial axis is one between the batch and the features: a sequence has one, an image two, a volume three.
"""

from collections.abc import Callable
from typing import Any

import jax

from funcnn import checks, primitives
from funcnn.core import Layer, Tree, array_layer

_MISSING = "if the axis of features is missing, add it: x[..., None]; if that of the batch is, x[None]"


def expect_axes(where: str, x: Any, sized: Any = 1) -> None:
    """Raise unless ``x`` has spatial axes, and as many as ``sized`` has entries where it is not one number."""
    checks.expect_rank(where, x, 3, "(batch, *spatial, features)", _MISSING)
    if isinstance(sized, (tuple, list)) and len(x.shape) != len(sized) + 2:
        expected = f"(batch, *spatial, features) with {len(sized)} spatial axes"
        checks.fail(where, expected, f"shape {tuple(x.shape)}", _MISSING)


def expect_elements(where: str, x: Any) -> None:
    """Raise where a spatial axis of ``x`` is empty."""
    if 0 in x.shape[1:-1]:
        checks.fail(where, "spatial axes that are not empty", f"shape {tuple(x.shape)}", "pass a larger input")


def expect_convolvable(where: str, x: Any, kernel_size: Any) -> None:
    """Raise unless ``x`` is floating and has one, two or three spatial axes, and as many as ``kernel_size`` fixes."""
    checks.expect_floating(where, x)
    ranks = (len(kernel_size),) if isinstance(kernel_size, (tuple, list)) else (1, 2, 3)
    rank, shape = len(x.shape) - 2, tuple(x.shape)
    if rank not in ranks or rank > 3:
        axes = " or ".join(str(r) for r in ranks)
        fix = _MISSING if rank + 1 in ranks else "reshape the input"
        checks.fail(where, f"(batch, *spatial, features) with {axes} spatial axes", f"shape {shape}", fix)


def expect_kernel(where: str, x: Any, kernel: Any, kernel_size: Any, groups: int, features: int) -> None:
    """Raise unless ``x`` is the input that ``kernel`` was made for, and this the kernel of such an input."""
    sized = isinstance(kernel_size, (tuple, list))
    expect_convolvable(where, x, kernel_size if sized else kernel.shape[:-2])
    if kernel.ndim == x.ndim:
        expect_features(where, x, kernel.shape, groups)
    window = primitives.per_axis(where, "kernel_size", kernel_size, x.ndim - 2)
    checks.expect_shape(where, "kernel", kernel, (*window, x.shape[-1] // groups, features))


def expect_features(where: str, x: Any, kernel_shape: tuple[int, ...], groups: int) -> None:
    """Raise unless ``x`` has the features for which a kernel ``(*window, n // groups, features)`` was made."""
    expected, got = kernel_shape[-2] * groups, x.shape[-1]
    if got == expected:
        return
    fix = "pass inputs of the shape that init was given, or init again"
    if x.shape[1] == expected:
        fix = "features come last, here and at init: jnp.moveaxis(x, 1, -1) where they come first"
    of = f" in {groups} groups" if groups > 1 else ""
    checks.fail(
        where,
        f"{expected} input features{of}, as its kernel {tuple(kernel_shape)} has",
        f"{got} in an input of shape {tuple(x.shape)}, {expected} against {got} features",
        fix,
    )


def expect_groups(where: str, features: int, groups: int) -> None:
    """Raise unless the output features fall into so many groups."""
    if features % groups:
        checks.fail(where, f"features that {groups} groups divide", str(features), "choose a multiple of groups")


def of_each_group(where: str, x: Any, groups: int) -> int:
    """How many input features each of so many groups has."""
    inputs = x.shape[-1]
    if inputs % groups:
        got = f"{inputs} in an input of shape {tuple(x.shape)}"
        checks.fail(where, f"input features that {groups} groups divide", got, "choose groups that divide both")
    return inputs // groups


def expect_counts(where: str, counts: dict[str, Any]) -> None:
    """Raise unless each is one count, or one for each spatial axis, as many as the first of them that has several."""
    sized = next((value for value in counts.values() if isinstance(value, (tuple, list))), (1,))
    for name, value in counts.items():
        primitives.per_axis(where, name, value, len(sized))


def plain(kind: str, function: Callable[[Any], Any], *, floating: bool = False) -> Layer:
    """The layer without params of a function of one array, which checks its shape; ``floating`` refuses the rest."""

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del params, key, training
        if floating:
            checks.expect_floating(kind, x)
        return function(x), state

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        del key
        jax.eval_shape(lambda a: apply({}, {}, a)[0], x)  # so that a wrong shape is an error already here
        return {}, {}

    return array_layer(init, apply, kind)
