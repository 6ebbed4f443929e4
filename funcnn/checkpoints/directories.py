"""A directory that runs are saved in, as an argument of ``fit``."""

import contextlib
import math
import os
import threading
from collections.abc import Generator
from typing import NamedTuple

import jax

from funcnn import checks
from funcnn.checkpoints.keeping import Keeper
from funcnn.checkpoints.locks import locked
from funcnn.checkpoints.stores import expect_orbax, imported


class Directory(NamedTuple):
    """Where a run is saved, and how often; made by ``checkpoints.directory``."""

    path: str
    every: float
    keep: int

    @contextlib.contextmanager
    def opened(self) -> Generator[Keeper]:
        """The directory with its lock, as long as a run goes on; what is under way is waited for at the end."""
        expect_orbax()
        if jax.process_count() > 1:
            got, fix = (
                f"{jax.process_count()}",
                "give each a run and a directory of its own, or save by hand with Orbax",
            )
            checks.fail("checkpoints", "one process", got, fix, NotImplementedError)
        if os.path.exists(self.path) and not os.path.isdir(self.path):
            fix = "choose another path"
            checks.fail("checkpoints.directory", f"a directory at {self.path}", "a file", fix, NotADirectoryError)
        os.makedirs(self.path, exist_ok=True)
        with locked(self.path) as is_ours:
            keeper = Keeper(self.path, self.every, self.keep, is_ours)
            importing = threading.Thread(target=imported, name="funcnn import")  # while XLA compiles
            importing.start()
            try:
                yield keeper
            finally:
                importing.join()
                keeper.close()


def directory(path: str | os.PathLike[str], *, every: float = 60.0, keep: int = 3) -> Directory:
    """A directory for ``fit(..., checkpoint=...)`` and ``sweep`` to save a run in.

    Saved is all that the run carries from one step to the next (the state, the history, the best state where it is
    kept, the order and the sums of the epoch under way) and how far its stream was read: what goes on from there has
    the bits of the run that was never interrupted. A thread writes while training goes on; a save that fails is raised
    at the end of the next chunk. Each step is written beside its place, with a checksum for each file and each array,
    and moved there: it is there as a whole or not at all.

    Args:
        path: of the directory, made where it is not there. One run has it to itself.
        every: seconds from one save to the next, at least; 0 for one after the other. What ends while a save is under
            way is not saved. At the end of a run, and where it breaks off, it is saved in any case.
        keep: how many steps stay, the last ones; and, where numbers went bad, the last with finite params.

    Raises:
        TypeError, ValueError: an argument that cannot be right.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp, optax
        >>> from funcnn import checkpoints, layers, losses, training
        >>> x = jnp.linspace(-1, 1, 20)[:, None]
        >>> line = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.3))
        >>> def train(epochs, **more):
        ...     return training.fit(line, (x, 3 * x + 1), key=jax.random.key(0), epochs=epochs, progress=False, **more)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     runs = checkpoints.directory(f"{folder}/a")
        ...     half = train(20, checkpoint=runs, observers=[lambda event: event.epoch >= 10], every=1)
        ...     whole = train(20, checkpoint=runs, resume=True)
        >>> len(half.history["loss"]), len(whole.history["loss"])
        (10, 20)
        >>> bool((whole.state.params["kernel"] == train(20).state.params["kernel"]).all())
        True

    Reference: Orbax, https://orbax.readthedocs.io, which writes the arrays.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        checks.fail("checkpoints.directory", "a path", repr(path), 'pass one such as "runs/a"', TypeError)
    if isinstance(every, bool) or not isinstance(every, (int, float)) or not 0 <= every < math.inf:
        checks.fail("checkpoints.directory", "every in seconds, from 0 on", repr(every), "pass for instance 60.0")
    keep = checks.expect_count("checkpoints.directory", "keep", keep)
    return Directory(os.path.abspath(os.path.expanduser(os.fspath(path))), float(every), keep)
