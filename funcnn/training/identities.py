"""What makes a run the run that it is, and what is said where it is another."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from funcnn.training.driving import Driver
from funcnn.training.fingerprints import digest, operations
from funcnn.training.keepers import Keeper, ResumeError
from funcnn.training.programs import Carry
from funcnn.training.stopping import Monitor


class Identity(NamedTuple):
    """What makes a run the run that it is."""

    run: dict[str, Any]  # arguments, and checksums of data and program
    step: str  # the operations of one, each in a line
    versions: dict[str, Any]  # of what computes it


def described(run: Driver, carry: Carry, key: Any, state: Any, extra: dict[str, Any]) -> Identity:
    """What makes this run the run that it is."""
    plan, monitor = run.plan, run.plan.monitor
    is_stream = run.reader is not None
    is_counted = run.reader is None or run.reader.passes is None
    program = "\n".join(operations(run.traced(carry).jaxpr))
    step = "\n".join(operations(run.traced_step(carry)))
    leaves = [leaf for leaf in jax.tree.leaves((carry, run.arrays)) if isinstance(leaf, jax.Array)]
    platforms = sorted({str(device.platform) for leaf in leaves for device in leaf.devices()})
    versions = {"jax": jax.__version__, "platforms": platforms, "devices": max(len(a.devices()) for a in leaves)}
    about = {
        "epochs": plan.epochs,
        "steps": plan.steps if is_counted else None,
        "steps_per_epoch": plan.epoch_steps if is_counted else None,
        "batch_size": plan.batch_size,
        "shuffle": plan.shuffle,
        "monitor": None if monitor is None else list(monitor),
        "on_nonfinite": "skip" if plan.skips_nonfinite else "raise" if plan.stops_at_nonfinite else "continue",
        "key": digest(key),
        "data": None if is_stream or plan.source else digest(run.arrays),
        "validation": None if run.held_out is None else digest(run.held_out),
        "state": None if state is None else digest(state),
        **extra,
        "step": digest(np.frombuffer(step.encode(), np.uint8)),
        "program": digest(np.frombuffer(program.encode(), np.uint8)),
    }
    return Identity(about, step, versions)


# What is said of what is only known by its checksum.
_SAID = {
    "data": "the data are not the same",
    "validation": "the validation data are not the same",
    "state": "the state that it begins with is not the same",
    "key": "the key is not the same",
    "members": "the members are not the same",
}


def expect_same(where: str, keeper: Keeper, was: dict[str, Any], now: dict[str, Any], program: str) -> None:
    """Raise where hyperparameters, data or the program are others than when the run was begun."""
    changed: list[str] = []
    for name in now:
        if was.get(name) == now[name]:
            continue
        if name in _SAID:
            changed.append(_SAID[name])
        elif name == "step":
            changed.append(_difference(keeper.noted(str(was.get(name))), program))
        elif name != "program":
            shown = _watched if name == "monitor" else str
            changed.append(f"{name} was {shown(was.get(name))} and is {shown(now[name])}")
        elif not changed:  # else it is what shows there too
            changed.append("what is computed beside the steps, as for the validation, is not the same")
    if changed:
        raise ResumeError(
            f"{where}: expected the run that was begun in {keeper.path}, got a changed one: {listed(changed)}; "
            'take it back, or pass resume="changed" to go on all the same, or choose another directory'
        )


def _difference(was: str | None, now: str) -> str:
    """The first operation that differs, for instance by a number that is a hyperparameter."""
    if was is None:
        return "what is computed is not the same"
    before, after = was.split("\n"), now.split("\n")
    match = difflib.SequenceMatcher(None, before, after, autojunk=False) if len(before) + len(after) < 2000 else None
    pairs = zip(before, after, strict=False)
    if len(before) == len(after) or match is None:
        a, b = next(((a, b) for a, b in pairs if a != b), ("its end", "more"))
    else:
        _, i, j, k, m = next(code for code in match.get_opcodes() if code[0] != "equal")
        a, b = " ".join(before[i:j][:1]) or "nothing", " ".join(after[k:m][:1]) or "nothing"
    return f"what is computed is not the same: where there was `{_unnamed(a)}`, there is `{_unnamed(b)}`"


def _unnamed(line: str) -> str:
    """An operation without the numbers of its variables."""
    return " ".join(re.sub(r"\bv\d+(:\S+)?( =)?|\[out_dtype=None\]", "", line).split())[:120]


def listed(faults: list[str], most: int = 8) -> str:
    """The first of them, and how many more there are."""
    rest = [f"and {len(faults) - most} more"] if len(faults) > most else []
    return "; ".join([*faults[:most], *rest])


def reasons_of(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Why there are other arrays than there were, by what their paths begin with."""
    found: dict[str, str] = {}
    if was["monitor"] != now["monitor"]:
        found["watch/"] = f"monitor was {_watched(was['monitor'])} and is {_watched(now['monitor'])}"
    if (was["validation"] is None) != (now["validation"] is None):
        found["history/validation_"] = (
            "there was no validation" if was["validation"] is None else "there is no validation any more"
        )
    return found


def _watched(monitor: Any) -> str:
    """What is watched, as the arguments that say so."""
    if monitor is None:
        return "None"
    options = dict(zip(Monitor._fields, monitor, strict=True))
    name = options.pop("name")
    return f"{name!r} with {', '.join(f'{option}={value!r}' for option, value in options.items())}"
