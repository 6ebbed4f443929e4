"""Batches that come one after the other, from a file or a loader: read ahead by a thread, used in pieces of many."""

import collections
import contextlib
import math
import queue
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from funcnn import checks
from funcnn import data as datasets
from funcnn.core import Tree, shown
from funcnn.training.sources import begun, is_once, length_of, position_of

# A piece is as large as is worth a call of a compiled program, and waits for more batches no longer than this.
_BYTES, _BATCHES, _SECONDS = 2**23, 1024, 0.2
_ALIGNED = 64


class Buffer(NamedTuple):
    """What a compiled program is given of a stream."""

    batches: Tree  # along an axis in front; only the first ones count
    base: Any  # the number of the first one among all steps of the run
    last: Any  # the number of steps after which the epoch ends; -1 where it goes on


class Piece(NamedTuple):
    """Batches that were read, and what came after them."""

    batches: Tree  # on the device, along an axis in front; None where there are none
    size: int  # how many there are
    is_rest: bool = False  # whether it is one smaller batch
    ends: bool = False  # whether the pass ended here
    positions: tuple[Any, ...] = ()  # of the iterator behind each of the batches, where it knows
    error: BaseException | None = None
    room: Any = None  # the memory that they are in, to be used again


class Form(NamedTuple):
    """The structure of a whole batch, and the shape and dtype of each array in it."""

    structure: Any = None  # not known before the first batch
    shapes: tuple[tuple[int, ...], ...] = ()
    dtypes: tuple[Any, ...] = ()

    @property
    def spec(self) -> Tree:
        """The batch as shapes."""
        pairs = zip(self.shapes, self.dtypes, strict=True)
        return jax.tree.unflatten(self.structure, [jax.ShapeDtypeStruct(*pair) for pair in pairs])

    @property
    def names(self) -> str:
        """The dtypes, in words."""
        return ", ".join(map(str, self.dtypes))

    def buffers(self, count: int) -> list[Any]:
        """Room for so many batches, and for two at least: XLA makes another program of the choice among one."""
        return [_room((max(count, 2), *s), dtype) for s, dtype in zip(self.shapes, self.dtypes, strict=True)]


def _room(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array that is not filled, at a place in memory at which a CPU takes it as it is, without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNED, np.uint8)
    begin = -memory.ctypes.data % _ALIGNED
    return memory[begin : begin + size].view(dtype).reshape(shape)


class StreamError(RuntimeError):
    """A stream raised, ended too early, or gave a batch that cannot be used.

    ``result`` is the ``Result`` after all batches that came before, ``step`` how many these were. What the stream
    itself raised is the ``__cause__``.
    """

    def __init__(self, message: str, result: Any, step: int) -> None:
        super().__init__(message)
        self.result = result
        self.step = step


class Reader:
    """A stream under way: a thread reads, checks and stacks batches and moves them to the device.

    It reads ``passes`` times through the source, or until there are ``total`` batches; at most two pieces ahead.
    """

    def __init__(self, where: str, source: Any, passes: int | None, total: int | None) -> None:
        self.where, self.source, self.passes, self.total = where, source, passes, total
        self.form = Form()
        self._capacity = 1
        self._first: Piece | None = None
        self._free: collections.deque[list[Any]] = collections.deque()  # fresh memory costs as much as a copy
        self._pieces: queue.Queue[Piece | None] = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        self._position = position_of(source)
        config: Any = jax.config
        settings = config.jax_enable_x64, config.jax_default_device  # a thread has its own
        self._thread = threading.Thread(target=self._run, args=settings, name="funcnn stream", daemon=True)
        self._thread.start()

    def begin(self) -> tuple[Buffer, int]:
        """The first batches, and how many examples are in a whole one; what goes wrong with the first one is raised."""
        first = self._first = self._pieces.get()
        if first is None or not first.size:
            error = None if first is None else first.error
            error = RuntimeError("the thread that reads has ended") if error is None else error
            error.add_note(f"{self.where}: while the first batch of the stream was read")
            raise error
        return Buffer(first.batches, np.int32(0), np.int32(-1)), self.form.shapes[0][0]

    def __iter__(self) -> Generator[Piece]:
        """The pieces; ``None`` from the thread is the end."""
        piece, self._first = self._first, None
        while piece is not None:
            yield piece
            if piece.room is not None:
                self._free.append(piece.room)  # who asks for the next one has done with this one
            piece = self._pieces.get()

    def trained(self, position: Any) -> None:
        """Note where the iterator stood after the last batch that was trained on."""
        self._position = position

    def close(self) -> None:
        """End the thread, and set an iterator that was given back to where training ended."""
        if self._closed.is_set():
            return
        self._closed.set()
        with contextlib.suppress(queue.Empty):
            self._pieces.get_nowait()
        self._thread.join(timeout=2 * _SECONDS)  # it may be waiting for a batch that never comes
        if is_once(self.source) and self._position is not None and not self._thread.is_alive():
            self.source.set_state(self._position)

    # ---- in the thread -----------------------------------------------------------------------------------------------

    def _run(self, x64: bool, device: Any) -> None:
        with jax.enable_x64(x64), jax.default_device(device):
            try:
                for piece in self._read():
                    if not self._put(piece):
                        return
            except BaseException as error:  # whatever it is, it is for the thread that waits for a batch
                self._put(Piece(None, 0, error=error))
        self._put(None)

    def _put(self, piece: Piece | None) -> bool:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._pieces.put(piece, timeout=_SECONDS)
                return True
        return False

    def _read(self) -> Iterator[Piece]:
        """The pieces. Each is held back until it is known what comes after it: the end of a pass is part of it."""
        room: list[Any] = []
        positions: list[Any] = []
        begin, due = time.monotonic(), False

        def piece(ends: bool = False, error: BaseException | None = None) -> Piece:
            nonlocal room, positions, begin, due
            is_rest = bool(room) and room[0].shape[1:] != self.form.shapes[0]
            again = None if is_rest or not room else room
            made = Piece(self._moved(room), len(positions), is_rest, ends, tuple(positions), error, again)
            room, positions, begin, due = [], [], time.monotonic(), False
            return made

        for read in self._batches():
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
        count, passes, smaller = 0, 0, None
        while passes != self.passes and count != self.total:
            before, passes = count, passes + 1
            try:
                iterator = begun(self.source)
                while count != self.total and (batch := next(iterator, _END)) is not _END:
                    leaves = self._checked(batch, count)
                    smaller = self._expect_form([leaf.shape for leaf in leaves], smaller, count)
                    count += 1
                    yield leaves, position_of(iterator)
                if count == before:
                    self._fail_ended(count)
            except (Exception, SystemExit) as error:
                yield error
                return
            if self.passes is not None:
                yield None

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
        batch = tuple(batch) if isinstance(batch, list) and _is_list_of_arrays(batch) else batch
        where = f"{self.where}: batch {number} of the stream"
        arrays = jax.tree.map(np.asarray, datasets.as_arrays(batch, where=where, one_length=False))
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


def _is_list_of_arrays(batch: list[Any]) -> bool:
    """Whether a list is what PyTorch's loaders make of a tuple, and not rows of numbers."""
    return any(hasattr(part, "__array__") or isinstance(part, (dict, tuple)) for part in batch)
