"""One pass forward through the operations of a jaxpr, and one back: every value, every gradient, and what each sent."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnn.inspection.equations import computed
from funcnn.inspection.slots import ARGUMENT, Slot, Traced


class Passed(NamedTuple):
    """What both passes gave, by slot; ``sent`` goes with its inputs, and is ``None`` where nothing can be sent."""

    values: list[Any]
    gradients: list[Any]
    sent: list[tuple[Any, ...]]


def passed(
    program: Traced,
    arguments: Sequence[Any],
    cotangents: Sequence[Any] | None,
    computes: Callable[[Slot, list[Any], bool, bool], tuple[Any, Any]] | None = None,
) -> Passed:
    """Both passes; without cotangents of the outputs the forward one alone. ``None`` is one of zeros.

    ``computes`` gives what an operation makes, and what takes the gradients of that to those of its operands; it is
    told whether there is a pass back, and whether an argument asks for the gradient.
    """
    values: list[Any] = []
    backs: list[Callable[[Any], Iterator[Any]] | None] = []
    given = iter(arguments)
    asked = _asked(program) if cotangents is not None else [False] * len(program.slots)
    for number, slot in enumerate(program.slots):
        back = None
        if slot.equation is not None:
            operands = [values[i] for i in slot.inputs]
            value, back = (computes or _computed)(slot, operands, cotangents is not None, asked[number])
        elif slot.output is not None:
            value = values[slot.inputs[0]][slot.output]
        else:
            value = next(given) if slot.operation == ARGUMENT else jnp.asarray(slot.value)
        values.append(value)
        backs.append(back)
    if cotangents is None:
        nothing = [None] * len(values)
        return Passed(values, nothing, [(None,) * len(slot.inputs) for slot in program.slots])
    gradients = [jax.tree.map(_zeros, value) for value in values]
    reached = [False] * len(values)
    for number, cotangent in zip(program.outputs, cotangents, strict=True):
        if cotangent is not None and gradients[number] is not None:
            gradients[number], reached[number] = gradients[number] + cotangent, True
    sent: list[tuple[Any, ...]] = [()] * len(values)
    for number in reversed(range(len(values))):
        slot = program.slots[number]
        sent[number] = _sent(slot, values, gradients[number], reached[number], backs[number])
        for i, share in zip(slot.inputs, sent[number], strict=True):
            if share is None or not reached[number]:
                continue
            reached[i] = True
            if slot.output is None:
                gradients[i] = gradients[i] + share
            else:
                gradients[i] = tuple(share if k == slot.output else g for k, g in enumerate(gradients[i]))
    return Passed(values, gradients, sent)


def evaluated(
    program: Traced,
    arguments: Sequence[Any],
    look: Callable[[int, list[Any], Any], Any],
    skips: Callable[[int], bool],
) -> list[Any]:
    """The values of all slots, each as ``look(number, operands, value)`` gives it back.

    What is skipped is not computed, and ``look`` makes it.
    """
    values: list[Any] = []
    given = iter(arguments)
    for number, slot in enumerate(program.slots):
        operands = [values[i] for i in slot.inputs]
        if slot.equation is not None:
            outputs = [None] if skips(number) else computed(slot.equation, operands)
            value = outputs[0] if len(outputs) == 1 else tuple(outputs)
        elif slot.output is not None:
            value = operands[0][slot.output]
        else:
            value = next(given) if slot.operation == ARGUMENT else jnp.asarray(slot.value)
        values.append(look(number, operands, value))
    return values


def _asked(program: Traced) -> list[bool]:
    """Of each slot whether a gradient by an argument goes through it; what is made of constants alone has none."""
    asked: list[bool] = []
    for slot in program.slots:
        inside = any(asked[i] for i in slot.inputs)
        asked.append(slot.operation == ARGUMENT or (inside and slot.operation != "stop_gradient"))
    return asked


def _zeros(value: Any) -> Any:
    """Where a gradient begins: none for whole numbers, truths and keys."""
    zeros = np.zeros if isinstance(value, np.generic) else jnp.zeros
    return zeros(value.shape, value.dtype) if _is_smooth(value) else None


def _is_smooth(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.inexact))


def _computed(slot: Slot, operands: list[Any], goes_back: bool, is_asked: bool) -> tuple[Any, Any]:
    """What an operation makes, and what takes the gradients of that to those of its operands.

    One without a derivative sends nothing where nobody asks for it.
    """
    smooth = [i for i, operand in enumerate(operands) if _is_smooth(operand)]

    def compute(*chosen: Any) -> tuple[list[Any], list[Any]]:
        every = list(operands)
        for i, operand in zip(smooth, chosen, strict=True):
            every[i] = operand
        outputs = computed(slot.equation, every)
        return [output for output in outputs if _is_smooth(output)], outputs

    if not smooth or not goes_back:
        outputs = computed(slot.equation, operands)
        return outputs[0] if len(outputs) == 1 else tuple(outputs), None
    try:
        _, pull, outputs = jax.vjp(compute, *(operands[i] for i in smooth), has_aux=True)
    except (ValueError, NotImplementedError) as error:
        if not is_asked:
            return _computed(slot, operands, False, False)
        raise _without_gradient(slot, error) from error

    def back(gradients: Any) -> Iterator[Any]:
        try:
            shares = pull([g for g in gradients if g is not None])
        except (ValueError, NotImplementedError) as error:
            if not is_asked:
                return iter([None] * len(operands))
            raise _without_gradient(slot, error) from error
        each = dict(zip(smooth, shares, strict=True))
        return (each.get(i) for i in range(len(operands)))

    return outputs[0] if len(outputs) == 1 else tuple(outputs), back


def _without_gradient(slot: Slot, error: Exception) -> Exception:
    where = "/".join(slot.place.scopes) or "graph"
    first = (str(error).splitlines() or [type(error).__name__])[0]
    source = f" ({slot.place.source})" if slot.place.source else ""
    return ValueError(
        f"{where}: expected operations with a derivative in reverse, got {slot.operation}{source}: {first}; "
        "pass gradients=False to see values alone"
    )


def _sent(slot: Slot, values: list[Any], gradient: Any, is_reached: bool, back: Any) -> tuple[Any, ...]:
    """What a slot sends back to each of its inputs."""
    if slot.output is not None:
        return (gradient,)
    if back is None:
        return (None,) * len(slot.inputs)
    if not is_reached:  # nothing comes of nothing
        return tuple(jax.tree.map(_zeros, values[i]) for i in slot.inputs)
    return tuple(back(gradient if isinstance(gradient, tuple) else (gradient,)))
