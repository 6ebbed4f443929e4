"""Keeping a run between two chunks, where it can go on from."""

import contextlib
from typing import Any, NamedTuple

from funcnn import checks
from funcnn.training.chunks import Chunk
from funcnn.training.driving import Driver
from funcnn.training.identities import Identity, described
from funcnn.training.keepers import Found, Keeper, ResumeError, SaveError
from funcnn.training.positions import Position, read_position, written
from funcnn.training.resuming import expect_values_of, flattened, going_on, keys_of


class Kept(NamedTuple):
    """A run and the place where it is kept."""

    run: Driver
    keeper: Keeper
    identity: Identity

    def offer(self, chunk: Chunk) -> None:
        """Keep the run after this chunk, if it is time to."""
        if self.keeper.due():
            self.keep(chunk, wait=False)

    def keep(self, chunk: Chunk, *, wait: bool) -> None:
        """Keep the run after this chunk."""
        if not chunk.step:
            return  # as good as nothing: it begins again
        try:
            self.keeper.keep(chunk.step, self.about(chunk), flattened(chunk.carry), wait=wait)
        except Exception as error:  # whatever it is, it must not cost anybody the run
            steps = checks.counted(chunk.step, "step")
            message = (
                f"{self.run.name}: expected to save in {self.keeper.path}, got {str(error) or repr(error)}; "
                f"make room, then resume; the .result of this error holds the state after {steps}"
            )
            raise SaveError(message, self.run.result(chunk.carry, chunk.number), chunk.step) from error

    def about(self, chunk: Chunk) -> dict[str, Any]:
        """What is kept beside the arrays, as JSON has it."""
        size = self.run.plan.epoch_steps
        return {
            "number": [chunk.number // size, chunk.number % size],
            "step": chunk.step,
            "position": None if chunk.position is None else written(chunk.position),
            "rows": self.run.rows(chunk.number),
            "rows_axis": self.run.rows_axis,
            "is_done": chunk.stopped or chunk.number >= self.run.plan.steps,
            "keys": keys_of(chunk.carry),
            "run": self.identity.run,
            "versions": self.identity.versions,
        }

    def last(self, chunk: Chunk) -> None:
        """Keep the run after this chunk if that can be done, where something else has gone wrong already."""
        with contextlib.suppress(Exception):
            self.keep(chunk, wait=True)


def found_in(where: str, keeper: Keeper | None, resume: Any) -> Found | None:
    """What was kept of the run that is to go on; ``None`` where it begins."""
    if keeper is None:
        return None
    found = keeper.newest()
    if found is not None and not resume:
        fix = "pass resume=True to go on with it, or choose another directory"
        got = f"a run that was saved after {checks.counted(found.about['step'], 'step')}"
        raise ResumeError(f"{where}: expected no run in {keeper.path}, got {got}; {fix}")
    return found


def position_of(found: Found | None, resume: Any) -> Position | None:
    """Where a stream stood, of which something was kept."""
    if found is None or found.about["position"] is None:
        return None
    position = read_position(found.about["position"])
    return position._replace(first="") if resume == "changed" else position


def begun(
    run: Driver,
    keeper: Keeper | None,
    found: Found | None,
    key: Any,
    state: Any,
    resume: Any,
    extra: dict[str, Any] | None = None,
    keys: Any = None,
) -> tuple[Chunk, Kept | None]:
    """Where a run begins, or goes on, and what it is to be kept in; ``keys`` are those of members."""
    carry = run.start(key if keys is None else keys, state)
    if keeper is None:
        return Chunk(0, 0, carry, {}, {}), None
    expect_values_of(run.name, (carry, key))
    identity = described(run, carry, key, state, extra or {})
    chunk = Chunk(0, 0, carry, {}, {}) if found is None else going_on(run, keeper, found, carry, identity, resume)
    keeper.note(identity.run["step"], identity.step)
    kept = Kept(run, keeper, identity)
    kept.about(chunk._replace(position=None if run.reader is None else run.reader.begins_at()))  # or it fails now
    return chunk, kept
