"""Observers to give to ``fit`` and ``sweep``: functions of an event, which are called between two pieces of a run."""

import json
import math
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from funcnn import checks
from funcnn.training.events import Event


def json_lines(path: str | os.PathLike[str]) -> Callable[[Event], None]:
    """An observer that appends a line of JSON to a file for each event: time, epoch, step and metrics.

    Each line is written and the file closed again, so that what was seen is on disk whatever becomes of the process,
    and others can read along. Where that fails, on a full disk for instance, ``fit`` warns and goes on without.

    Args:
        path: of the file; its folder has to be there. Lines are added to what it holds.

    Raises:
        TypeError: ``path`` is no path.
        ValueError: there is no such folder.

    Example:
        >>> import json, pathlib, tempfile, jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, training
        >>> line = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.1))
        >>> data = jnp.ones((10, 1)), jnp.ones((10, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = pathlib.Path(folder) / "log.jsonl"
        ...     options = {"epochs": 3, "every": 1, "progress": False, "observers": [training.json_lines(log)]}
        ...     result = training.fit(line, data, key=jax.random.key(0), **options)
        ...     lines = [json.loads(text) for text in log.read_text().splitlines()]
        >>> [line["epoch"] for line in lines], sorted(lines[0])
        ([1, 2, 3], ['epoch', 'loss', 'step', 'time'])

    Notes:
        1. Numbers that are not finite are ``null``, for JSON has none. Metrics that are arrays are lists, and in a
           ``sweep`` all are: one entry for each member.
    """
    if not isinstance(path, (str, os.PathLike)):
        checks.fail("json_lines", "a path", type(path).__name__, 'pass one such as "log.jsonl"', TypeError)
    file = os.path.abspath(os.fspath(path))  # the process may change its folder
    if not os.path.isdir(os.path.dirname(file)):
        checks.fail("json_lines", "a folder that is there", os.path.dirname(file), "make it first: Path.mkdir")

    def written(event: Event) -> None:
        row = {"time": time.time(), "epoch": event.epoch, "step": event.step}
        row |= {name: _plain(np.asarray(value).tolist()) for name, value in event.metrics.items()}
        with open(file, "a", encoding="utf-8") as log:
            log.write(json.dumps(row, allow_nan=False) + "\n")

    return written


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
