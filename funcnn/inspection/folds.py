"""A graph whose nodes are layers: operations of one layer that follow one another, put together and taken apart."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from funcnn.inspection.passes import Passed
from funcnn.inspection.slots import ARGUMENT, CONSTANT, LAYER, OUTPUT, Slot, Traced


class Part(NamedTuple):
    """Some slots of a program, with all that both passes gave."""

    program: Traced
    found: Passed
    cotangents: tuple[Any, ...]
    numbers: tuple[int, ...]


class _New(NamedTuple):
    """What is built up: new slots, with what was found of each, and where the old ones went."""

    slots: list[Slot]
    found: Passed
    names: dict[str, tuple[int, ...]]
    place: dict[int, int]

    def add(self, slot: Slot, value: Any, gradient: Any, sent: tuple[Any, ...]) -> int:
        self.slots.append(slot)
        self.found.values.append(value)
        self.found.gradients.append(gradient)
        self.found.sent.append(sent)
        return len(self.slots) - 1

    def copy(self, number: int, program: Traced, found: Passed) -> None:
        """Take an old slot over as it is."""
        slot = program.slots[number]
        slot = slot._replace(inputs=tuple(self.place[i] for i in slot.inputs))
        self.place[number] = self.add(slot, found.values[number], found.gradients[number], found.sent[number])


def _begun() -> _New:
    return _New([], Passed([], [], []), {}, {})


def folded(program: Traced, found: Passed, cotangents: tuple[Any, ...], depth: int) -> tuple[Traced, Passed]:
    """The program in which runs of slots with the same first names in their paths are one slot each."""
    new, counts = _begun(), dict[str, int]()
    for path, run in _runs(program, depth):
        if not path:
            new.copy(run[0], program, found)
            continue
        counts[path] = counts.get(path, 0) + 1
        label = path if counts[path] == 1 else f"{path} ({counts[path]})"
        new.names[label] = (_group(new, Part(program, found, cotangents, tuple(run)), path),)
    for name, numbers in program.names.items():
        kept = tuple(new.place[i] for i in numbers if i in new.place)
        if kept and name not in new.names:
            new.names[name] = kept
    return Traced(tuple(new.slots), tuple(new.place[i] for i in program.outputs), new.names), new.found


def _runs(program: Traced, depth: int) -> list[tuple[str, list[int]]]:
    """The slots in order, those of a layer that follow one another together; others, without a path, one by one."""
    runs: list[tuple[str, list[int]]] = []
    for number, slot in enumerate(program.slots):
        path = "/".join("/".join(slot.place.scopes).split("/")[:depth])
        if path and runs and runs[-1][0] == path:
            runs[-1][1].append(number)
        elif slot.operation == CONSTANT and not path:
            runs.insert(0, ("", [number]))
        else:
            runs.append((path, [number]))
    return runs


def _group(new: _New, part: Part, path: str) -> int:
    """A run as one slot, and one for each of its outputs where there are several."""
    program, found, _, numbers = part
    outputs, inside = _read_outside(program, numbers), set(numbers)
    sent: dict[int, Any] = {}
    for number in numbers:
        for i, share in zip(program.slots[number].inputs, found.sent[number], strict=True):
            if i not in inside:
                stands = new.place[i]
                before = sent.get(stands)
                sent[stands] = share if before is None else before if share is None else before + share
    values, gradients = (tuple(column[i] for i in outputs) for column in (found.values, found.gradients))
    one = len(outputs) == 1
    place = program.slots[numbers[0]].place._replace(scopes=tuple(path.split("/")))
    slot = Slot(LAYER, tuple(sent), place=place, within=part)
    group = new.add(slot, values[0] if one else values, gradients[0] if one else gradients, tuple(sent.values()))
    for i, number in enumerate(outputs):
        if one:
            new.place[number] = group
        else:
            each = Slot(OUTPUT, (group,), output=i, place=place)
            new.place[number] = new.add(each, values[i], gradients[i], (gradients[i],))
    return group


def _read_outside(program: Traced, numbers: Sequence[int]) -> list[int]:
    """The slots among these that others read, or that the function returns."""
    inside = set(numbers)
    read = {i for number, slot in enumerate(program.slots) if number not in inside for i in slot.inputs}
    return [number for number in numbers if number in read or number in program.outputs]


def unfolded(part: Part) -> tuple[Traced, Passed, tuple[Any, ...]]:
    """The slots of a part as a program of their own, what came in from outside as its arguments."""
    program, found, _, numbers = part
    new, inside, outside = _begun(), set(numbers), set[int]()
    name_of = {number: name for name, given in program.names.items() for number in given}
    for number in numbers:
        for i in program.slots[number].inputs:
            if i in inside or i in new.place:
                continue
            slot = program.slots[i]
            kept = Slot(CONSTANT, value=slot.value) if slot.operation == CONSTANT else Slot(ARGUMENT, place=slot.place)
            new.place[i] = new.add(kept, found.values[i], None, ())
            outside.add(new.place[i])
            if kept.operation == ARGUMENT:
                name = name_of.get(i, f"{slot.operation} {i}")
                new.names[name] = (*new.names.get(name, ()), new.place[i])
        new.copy(number, program, found)
        if number in name_of:
            new.names[name_of[number]] = (*new.names.get(name_of[number], ()), new.place[number])
    _add_up(new, outside)
    outputs = _read_outside(program, numbers)
    came = tuple(_from_outside(part, inside, number) for number in outputs)
    return Traced(tuple(new.slots), tuple(new.place[i] for i in outputs), new.names), new.found, came


def _add_up(new: _New, outside: set[int]) -> None:
    """Of what came in from outside the gradient is what this part sends back."""
    for slot, sent in zip(new.slots, new.found.sent, strict=True):
        for i, share in zip(slot.inputs, sent, strict=True):
            if i in outside and share is not None:
                before = new.found.gradients[i]
                new.found.gradients[i] = share if before is None else before + share


def _from_outside(part: Part, inside: set[int], number: int) -> Any:
    """What the rest of the program sends to a slot of a part."""
    program, found, cotangents, _ = part
    shares = [c for i, c in zip(program.outputs, cotangents, strict=True) if i == number]
    for other, slot in enumerate(program.slots):
        if other not in inside:
            shares += [s for i, s in zip(slot.inputs, found.sent[other], strict=True) if i == number]
    total = None
    for share in shares:
        total = share if total is None else total if share is None else total + share
    return total
