"""A run before its beginning: arguments, shapes and values, checked before anything is compiled."""

from typing import Any

import jax
import numpy as np

from funcnn import checks
from funcnn.core import expect_key
from funcnn.training.driving import Driver
from funcnn.training.plans import planned, streamed, validation_arrays
from funcnn.training.positions import Position
from funcnn.training.sources import is_stream
from funcnn.training.states import expect_state
from funcnn.training.stopping import Monitor
from funcnn.training.streams import Reader
from funcnn.training.trainers import Trainer, expect_trainer
from funcnn.training.values import expect_values


def prepared(
    where: str,
    trainer: Trainer,
    data: Any,
    validation: Any,
    key: Any,
    state: Any,
    *,
    epochs: int | None,
    steps: int | None,
    batch_size: int | None,
    shuffle: bool,
    drop_last: bool,
    steps_per_epoch: int | None,
    stops_at_nonfinite: bool,
    monitor: Monitor | None,
    takes_streams: bool = True,
    at: Position | None = None,
    is_kept: bool = False,
    skips_nonfinite: bool = False,
) -> Driver:
    """A run before its beginning: every argument and every number checked, the data on the device.

    Of a stream it is the first batches; the reader has to be closed. One that goes on does so ``at`` this position, and
    one that ``is_kept`` in checkpoints notes it.
    """
    expect_key(where, key)
    expect_trainer(where, trainer)
    expect_state(where, state)
    options: dict[str, Any] = {
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "drop_last": drop_last,
        "steps_per_epoch": steps_per_epoch,
        "stops_at_nonfinite": stops_at_nonfinite,
        "monitor": monitor,
        "where": where,
    }
    reader = None
    if takes_streams and is_stream(data):
        plan, reader, arrays = streamed(data, **options, at=at, notes_states=is_kept)
    else:
        plan, arrays = planned(data, shuffle=shuffle, **options)
    plan = plan._replace(skips_nonfinite=skips_nonfinite)
    try:
        held_out = validation_arrays(plan, validation, where)
        batch = arrays if reader is None else jax.tree.map(lambda a: np.asarray(a[0]), arrays.batches)
        expect_values(where, trainer, batch, held_out, state)
        _expect_rows(where, trainer, reader, batch)
        _expect_one_place(where, {"data": arrays, "validation": held_out, "state": state, "key": key})
        arrays, held_out = jax.device_put((arrays, held_out))
    except BaseException:
        if reader is not None:
            reader.close()
        raise
    return Driver(trainer, plan, arrays, held_out, reader=reader)


def _expect_one_place(where: str, given: dict[str, Any]) -> None:
    """Raise where something was put on one device, and something else on another."""
    places: dict[frozenset[Any], str] = {}
    for name, tree in given.items():
        for leaf in jax.tree.leaves(tree):
            if isinstance(leaf, jax.Array) and checks.is_concrete(leaf) and leaf.committed:
                places.setdefault(frozenset(leaf.sharding.device_set), name)
    if len(places) > 1:
        got = " and ".join(
            f"{name} on {f'{len(devices)} devices' if len(devices) > 1 else next(iter(devices))}"
            for devices, name in places.items()
        )
        checks.fail(where, "all that is given on the same devices", got, "put it in one place with jax.device_put")


def _expect_rows(where: str, trainer: Trainer, reader: Reader | None, batch: Any) -> None:
    """Raise where telemetry has no place: the rows of a run whose steps nobody has counted."""
    if reader is None or reader.passes is None:
        return
    info = jax.eval_shape(lambda key, b: trainer.step(trainer.init(key, b), b)[1], jax.random.key(0), batch)
    if jax.tree.leaves(jax.eval_shape(trainer.telemetry, info)[1]):
        fix = "pass steps_per_epoch, or steps instead of epochs"
        checks.fail(where, "a known number of steps, for telemetry", "epochs that are passes over a stream", fix)
