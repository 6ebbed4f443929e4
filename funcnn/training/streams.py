"""Batches that come one after the other, from a file or a loader: read ahead by a thread, used in pieces of many."""

import collections
import queue
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

import jax
import numpy as np

from funcnn import checks
from funcnn import data as datasets
from funcnn.core import Tree, shown
from funcnn.training.fingerprints import digest
from funcnn.training.pieces import Buffer, Form, Piece
from funcnn.training.positions import Position
from funcnn.training.sources import begun, is_list_of_arrays, is_once, length_of, numbers_of, position_of

# A piece is as large as is worth a call of a compiled program, and waits for more batches no longer than this.
_BYTES, _BATCHES, _SECONDS = 2**23, 1024, 0.2
# So long is waited for a reader in the middle of a batch, where its iterator is then to be set back.
_PATIENCE = 10.0


class Reader:
    """A stream under way: a thread reads, checks and stacks batches and moves them to the device.

    It reads ``passes`` times through the source, or until there are ``total`` batches; at most two pieces ahead.
    ``at`` is where it begins, of a run that goes on; with ``notes_states`` the state of every iterator that knows it is
    noted, and not only of one that is to be set back.
    """

    def __init__(
        self,
        where: str,
        source: Any,
        passes: int | None,
        total: int | None,
        *,
        one_length: bool = True,
        at: Position | None = None,
        notes_states: bool = False,
    ) -> None:
        self.where, self.source, self.passes, self.total, self.one_length = where, source, passes, total, one_length
        self.at, self._notes_states = at, notes_states or is_once(source)
        self.form = Form()
        self._capacity = 1
        self._first: Piece | None = None
        self._sample: list[Any] = []  # a whole batch
        self._free: collections.deque[list[Any]] = collections.deque()  # fresh memory costs as much as a copy
        # Queues and a flag without a lock of Python's own, which Ctrl-C may leave locked.
        self._pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._asked.put(None)
        self._closed = False
        self._position = position_of(source) if is_once(source) else None
        if at is not None and self._position is not None:
            self._position = at.state
        config: Any = jax.config
        settings = config.jax_enable_x64, config.jax_default_device  # a thread has its own
        self._thread = threading.Thread(target=self._run, args=settings, name="funcnn stream", daemon=True)

    def again(self, at: Position | None) -> "Reader":
        """Another one like this, before its beginning."""
        options: dict[str, Any] = {"one_length": self.one_length, "at": at, "notes_states": self._notes_states}
        return Reader(self.where, self.source, self.passes, self.total, **options)

    def begin(self) -> tuple[Buffer, int]:
        """The first batches, and how many examples are in a whole one; what goes wrong with the first one is raised."""
        self._thread.start()  # not before somebody is there to close it, who may be interrupted
        first = self._first = self._next()
        if self.at is not None and self.form.structure is not None and (first is None or first.error is None):
            # Only the form counts: this one may be smaller, or the end.
            rooms = self.form.buffers(self._capacity)
            for room, leaf in zip(rooms, self._sample, strict=True):
                room[:] = leaf
            return Buffer(self._moved(rooms), np.int32(0), np.int32(-1)), self.form.size
        if first is None or not first.size:
            error = None if first is None else first.error
            error = RuntimeError("the thread that reads has ended") if error is None else error
            error.add_note(f"{self.where}: while the first batch of the stream was read")
            raise error
        return Buffer(first.batches, np.int32(0), np.int32(-1)), self.form.size

    def __iter__(self) -> Generator[Piece]:
        """The pieces; ``None`` from the thread is the end."""
        piece, self._first = self._first, None
        while piece is not None:
            yield piece
            if piece.room is not None:
                self._free.append(piece.room)  # who asks for the next one has done with this one
            piece = self._next()

    def _next(self) -> Piece | None:
        piece = self._pieces.get()
        self._asked.put(None)
        return piece

    def begins_at(self) -> Position:
        """Where the run begins; what of it cannot be written down is to be known before it does."""
        return Position(state=position_of(self.source)) if self.at is None else self.at

    def trained(self, position: Position) -> None:
        """Note where the iterator stood after the last batch that was trained on."""
        if self._position is not None:
            self._position = position.state

    def close(self) -> None:
        """End the thread, and set an iterator that was given back to where training ended."""
        if self._closed:
            return
        self._closed = True
        self._asked.put(None)
        if self._thread.ident is not None:
            # The next batch may never come.
            self._thread.join(timeout=2 * _SECONDS if self._position is None else _PATIENCE)
        if not self._thread.is_alive():
            self._go_back()

    def _go_back(self) -> None:
        if self._position is not None:
            self.source.set_state(self._position)

    # ---- in the thread -----------------------------------------------------------------------------------------------

    def _run(self, x64: bool, device: Any) -> None:
        with jax.enable_x64(x64), jax.default_device(device):
            try:
                for piece in self._read():
                    if not self._put(piece):
                        break
            except BaseException as error:  # whatever it is, it is for the thread that waits for a batch
                self._put(Piece(None, 0, error=error))
        if not self._put(None):
            self._go_back()

    def _put(self, piece: Piece | None) -> bool:
        self._asked.get()
        if self._closed:
            self._asked.put(None)  # so that nothing waits again
            return False
        self._pieces.put(piece)
        return True

    def _read(self) -> Iterator[Piece]:
        """The pieces. Each is held back until it is known what comes after it: the end of a pass is part of it."""
        room: list[Any] = []
        positions: list[Position] = []
        begin, due = time.monotonic(), False

        def piece(ends: bool = False, error: BaseException | None = None) -> Piece:
            nonlocal room, positions, begin, due
            is_rest = bool(room) and tuple(place.shape[1:] for place in room) != self.form.shapes
            again = None if is_rest or not room else room
            made = Piece(self._moved(room), len(positions), is_rest, ends, tuple(positions), error, again)
            room, positions, begin, due = [], [], time.monotonic(), False
            return made

        for read in self._batches():
            if self._closed:
                return
            if isinstance(read, BaseException):
                yield piece(error=read)
                return
            if read is None:
                yield piece(ends=True)
                continue
            leaves, position = read
            is_whole = tuple(leaf.shape for leaf in leaves) == self.form.shapes
            if positions and (due or not is_whole):
                yield piece()
            if not is_whole:
                room, positions, due = [np.stack([leaf, leaf]) for leaf in leaves], [position], True
                continue
            if not positions:
                room = self._free.popleft() if self._free else self.form.buffers(self._capacity)
            for place, leaf in zip(room, leaves, strict=True):
                place[len(positions)] = leaf
            positions.append(position)
            due = len(positions) == self._capacity or time.monotonic() - begin > _SECONDS
        if positions:
            yield piece()

    def _moved(self, leaves: list[Any]) -> Tree:
        """A copy on the device."""
        if not leaves:
            return None
        return jax.tree.unflatten(self.form.structure, jax.device_put(leaves))

    def _batches(self) -> Iterator[tuple[list[Any], Any] | BaseException | None]:
        """The leaves of each batch and the position behind it; ``None`` at the end of an epoch that is a pass."""
        at = Position() if self.at is None else self.at
        count, passes, smaller, first = at.taken, at.passes, None, ""
        most = None if self.passes is None else numbers_of(self.passes) - 1
        if at.taken and not self._is_under_way(at):
            self._skip(begun(self.source), at._replace(batches=1, state=None))  # for its form alone
            at = at._replace(first="")
        while passes != self.passes and count != self.total:
            before, passes = count, passes + 1
            try:
                iterator = begun(self.source)
                if self._is_under_way(at):
                    self._skip(iterator, at)
                    before, first, at = count - at.batches, at.first, Position()
                while count != self.total and (batch := next(iterator, _END)) is not _END:
                    leaves = self._checked(batch, count)
                    if count - before == most:
                        fix = "pass steps_per_epoch, or fewer epochs"
                        checks.fail(self.where, f"passes of at most {most} batches, to have {self.passes}", "more", fix)
                    smaller = self._expect_form([leaf.shape for leaf in leaves], smaller, count)
                    count += 1
                    state = position_of(iterator) if self._notes_states else None
                    if self._notes_states and state is None and count - before == 1:
                        first = digest(leaves)
                    yield leaves, Position(count, passes - 1, count - before, state, first)
                if count == before:
                    self._fail_ended(count)
            except GeneratorExit:
                raise
            except BaseException as error:
                yield error
                return
            if self.passes is not None:
                yield None

    def _is_under_way(self, at: Position) -> bool:
        """Whether a run that goes on does so within a pass that is yet to be read to its end."""
        return at.batches > 0 and at.passes != self.passes and at.taken != self.total

    def _skip(self, iterator: Any, at: Position) -> None:
        """Bring a fresh iterator to where the run was; the first batch is read for its form."""
        for index in range(at.batches):
            batch = next(iterator, _END)
            if batch is _END:
                fix = "pass the stream that the run was begun with"
                checks.fail(self.where, f"a stream of at least {at.batches} batches, to go on", f"{index}", fix)
            if not index:
                self._sample = self._checked(batch, 0)
                if at.first and at.first != digest(self._sample):
                    fix = "pass a stream whose passes are all the same, or a Grain iterator, which knows its state"
                    fix += ', or resume="changed" to go on with these batches'
                    got = "another one: the data or their order have changed"
                    checks.fail(self.where, "a pass that begins with the batch that it began with", got, fix)
            if at.state is not None and hasattr(iterator, "set_state"):
                iterator.set_state(at.state)
                return
            if self._closed:
                return

    def _fail_ended(self, count: int) -> None:
        expected = "a stream of batches" if self.total is None else f"a stream of {self.total} batches"
        got = f"the end after {count}" if count else "one without any"
        fix = "pass what can be iterated again, such as a generator function without calling it, or fewer steps"
        checks.fail(self.where, expected, got, fix if count else "check what it reads")

    def _checked(self, batch: Any, number: int) -> list[Any]:
        """The arrays of a batch, of the structure and dtypes of the first one, and finite."""
        leaves, structure = jax.tree.flatten(batch)
        form = self.form
        is_like = form.structure is not None and structure == form.structure
        if not is_like or any(map(_differs, leaves, form.shapes, form.dtypes)):
            leaves = self._converted(batch, number)
        for index, leaf in enumerate(leaves):
            if leaf.dtype.kind in "fcV" and not np.isfinite(leaf).all():
                paths = jax.tree_util.tree_leaves_with_path(jax.tree.unflatten(self.form.structure, leaves))
                got = f"NaN or infinity in array{jax.tree_util.keystr(paths[index][0])}"
                fix = "leave these rows out, or fill them in"
                checks.fail(f"{self.where}: batch {number} of the stream", "finite numbers", got, fix)
        return leaves

    def _converted(self, batch: Any, number: int) -> list[Any]:
        """The arrays of a batch that is not yet of what arrays are of, or the first, or cannot be used."""
        batch = tuple(batch) if isinstance(batch, list) and is_list_of_arrays(batch) else batch
        where = f"{self.where}: batch {number} of the stream"
        given = datasets.as_arrays(batch, where=where, one_length=self.one_length)
        devices = max((len(a.devices()) for a in jax.tree.leaves(given) if isinstance(a, jax.Array)), default=1)
        if devices > 1:
            fix = "batches of a stream are not spread yet: leave them on the host, or give arrays, which are"
            checks.fail(where, "arrays of NumPy or of one device", f"arrays that lie on {devices}", fix)
        arrays = jax.tree.map(np.asarray, given)
        leaves, structure = jax.tree.flatten(arrays)
        form = self.form
        if form.structure is None:
            shapes = tuple(leaf.shape for leaf in leaves)
            self.form = Form(structure, shapes, tuple(leaf.dtype for leaf in leaves))
            size = max(1, sum(leaf.nbytes for leaf in leaves))
            known = [n for n in (self.total, length_of(self.source)) if n]
            self._capacity = max(1, min(_BATCHES, _BYTES // size, *known))
        elif structure != form.structure or [leaf.dtype for leaf in leaves] != list(form.dtypes):
            got = shown(arrays) if structure == form.structure else f"{structure}"
            got = got if got != shown(form.spec) else ", ".join(str(leaf.dtype) for leaf in leaves)
            fix = "give every batch the structure and dtypes of the first one"
            checks.fail(where, f"batches like the first one, {shown(form.spec)} of {form.names}", got, fix)
        return leaves

    def _expect_form(self, shapes: list[tuple[int, ...]], smaller: Any, number: int) -> Any:
        """The shapes of the smaller batches, of which there may be one kind, as at the end of each pass."""
        form = self.form
        if tuple(shapes) == form.shapes:
            return smaller
        fits = all(a[1:] == b[1:] and a[0] <= b[0] for a, b in zip(shapes, form.shapes, strict=True))
        if not fits or smaller not in (None, shapes):
            like = f"batches like the first one, {shown(form.spec)}"
            like += "" if not fits else f", and smaller ones of {smaller}"
            fix = "a program is compiled for each shape: cut or fill batches to one size, but for a smaller last one"
            checks.fail(f"{self.where}: batch {number} of the stream", like, f"shapes {shapes}", fix)
        return shapes


_END = object()


def _differs(leaf: Any, shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether this is anything else than an array of the dtype of the first batch and the shape of a whole one."""
    return type(leaf) is not np.ndarray or leaf.dtype != dtype or leaf.shape != shape
