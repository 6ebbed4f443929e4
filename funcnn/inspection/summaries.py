"""A network as a table: its layers in order, what comes out of each, what it holds, and what it costs to compute."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcnn import checks
from funcnn.core import Layer, expect_layer, shown, spec
from funcnn.inspection import tables
from funcnn.inspection.layerwise import Program, bytes_of, is_trained, read

_NUMBERS = ("params", "state", "bytes", "forward", "backward", "activations")


class SummaryRow(NamedTuple):
    """A layer, by its ``path``: what it gives, holds and computes; ``summary`` says what is counted.

    ``outputs`` are the shapes and dtypes of what comes out of it, ``params`` and ``state`` how many numbers it holds,
    in so many ``bytes``; ``forward`` and ``backward`` are floating-point operations, ``activations`` bytes. ``times``
    says how often it runs where it stands inside a loop; all numbers are those of all times together.
    """

    path: str
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    params: int
    state: int
    bytes: int
    forward: int
    backward: int
    activations: int
    times: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the output, of the first one where there are several; ``()`` where none is known."""
        return self.outputs[0].shape if self.outputs else ()

    @property
    def dtype(self) -> Any:
        """The dtype of the output, of the first one where there are several; ``None`` where none is known."""
        return self.outputs[0].dtype if self.outputs else None


class Summary(NamedTuple):
    """The ``rows`` of a network in order of execution, and the totals; printed as a table.

    The totals are those of the rows. ``gradients`` and ``optimizer`` are bytes, the latter ``None`` without an
    optimizer, and ``notes`` say what could not be counted exactly, and where.
    """

    rows: tuple[SummaryRow, ...]
    params: int
    state: int
    bytes: int
    forward: int
    backward: int
    activations: int
    gradients: int
    optimizer: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def memory(self) -> int:
        """The bytes that a training step needs: params, state, gradients, activations, and the optimizer's state."""
        return self.bytes + self.gradients + self.activations + (self.optimizer or 0)

    def shares(self, column: str) -> tuple[float, ...]:
        """The share that each row has of the total of a column, such as ``"params"``; ``"operations"`` are all of them.

        Without anything to share each has 0.
        """
        checks.expect_option("shares", "column", column, (*_NUMBERS, "operations"))
        names = ("forward", "backward") if column == "operations" else (column,)
        of_each = [sum(getattr(row, name) for name in names) for row in self.rows]
        total = sum(of_each)
        return tuple(number / total if total else 0.0 for number in of_each)

    def markdown(self) -> str:
        """The table in Markdown."""
        return tables.markdown(self._table())

    def html(self) -> str:
        """The table in HTML, as a notebook shows it."""
        return tables.as_html(self._table())

    def csv(self) -> str:
        """The rows as comma-separated values, with all their digits, and the share that each has in every column."""
        names = (*_NUMBERS, "operations")
        columns = ("path", "times", "shape", "dtype", *_NUMBERS, *(f"share_of_{name}" for name in names))
        shares = zip(*map(self.shares, names), strict=True)
        rows = [
            (
                *(row.path, row.times, "; ".join(str(a.shape) for a in row.outputs)),
                *("; ".join(str(a.dtype) for a in row.outputs), *(getattr(row, name) for name in _NUMBERS), *share),
            )
            for row, share in zip(self.rows, shares, strict=True)
        ]
        return tables.as_csv(columns, rows)

    def _repr_html_(self) -> str:
        return self.html()

    def __rich__(self) -> Any:
        return tables.drawn(self._table())

    def __repr__(self) -> str:
        return tables.text(self._table())

    def _table(self) -> tables.Table:
        columns = ("layer", "output", "params", "%", "state", "bytes", "forward", "backward", "%", "activations")
        shares = zip(self.shares("params"), self.shares("operations"), strict=True)
        lines = [_cells(row, *share) for row, share in zip(self.rows, shares, strict=True)]
        total = ("total", "", *_numbers(self, "", ""))
        if not self.state:
            columns, total, *lines = (line[:4] + line[5:] for line in (columns, total, *lines))
        beneath = (self._memory(), *self.notes)
        return tables.Table(columns, tuple(lines), total, beneath)

    def _memory(self) -> str:
        parts = {"params and state": self.bytes, "gradients": self.gradients, "activations": self.activations}
        if self.optimizer is not None:
            parts["optimizer"] = self.optimizer
        listed = ", ".join(f"{name} {tables.scaled(number, 'B')}" for name, number in parts.items())
        listed += ", no optimizer given" if self.optimizer is None else ""
        return f"memory to train: {listed}; together {tables.scaled(self.memory, 'B')}"


def _cells(row: SummaryRow, params: float, operations: float) -> tuple[str, ...]:
    outputs = ", ".join(f"{tuple(a.shape)} {a.dtype}" for a in row.outputs) or "-"
    path = f"{row.path} ×{row.times}" if row.times != 1 else row.path
    return path, outputs, *_numbers(row, tables.percent(params), tables.percent(operations))


def _numbers(of: Any, params: str, operations: str) -> tuple[str, ...]:
    held = f"{of.params:,}", params, f"{of.state:,}", tables.scaled(of.bytes, "B")
    computed = tables.scaled(of.forward), tables.scaled(of.backward), operations
    return *held, *computed, tables.scaled(of.activations, "B")


def summary(
    model: Layer, x: Any, *, depth: int | None = None, training: bool = False, optimizer: Any = None
) -> Summary:
    """The layers of a model and what each of them costs, from shapes alone: nothing is initialised or computed.

    All is read off three programs that JAX traces and does not compile: ``apply``, its linearisation, which keeps what
    the gradient needs, and the gradient. What no output needs is left away, as a compiler would.

    Operations are floating-point ones: one for each element that is added, multiplied, compared, chosen, or sent
    through a function such as ``exp`` (XLA lists these apart, as transcendentals), two for each product of a matrix
    product or a convolution, of which padding has none, and ``n - 1`` for the sum or maximum of ``n``. Moving,
    converting and drawing numbers is free, and so is all arithmetic of integers. What runs in a loop counts each time,
    also what ``remat`` computes again. ``backward`` is what the gradient by the params costs beyond ``forward``: there
    is none before the first layer with params. The form counts that ``primitives`` chooses for this platform: on CPU a
    convolution is a product over patches, whose padding is multiplied.

    Activations are the bytes that the forward pass hands to the backward pass, the residuals of ``jax.vjp``: all of
    them at once, each once, however often it is read, and no params, state or ``x``, which are there anyway. They
    belong to the layer that made them. It is a bound from the program as it is written: XLA fuses operations, and
    computes some of them again instead.

    Args:
        model: any layer.
        x: an input, or its shape as ``jax.ShapeDtypeStruct``, or a pytree of either.
        depth: of how many names a path may have; what stands deeper is summed. Without it each layer without children
            has a row, and what a group computes itself, the sum of a ``residual``, has one after them, under the
            group's path. No number is in two rows.
        training: whether to count what ``apply`` does when training: dropout, the statistics of batch norm.
        optimizer: an Optax optimizer, to see the bytes of its state.

    Raises:
        TypeError: ``model`` is not a layer, ``x`` is not of arrays, ``depth`` is not a whole number, or ``optimizer``
            is no optimizer.
        ValueError: ``x`` does not fit; the note of the error names the layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import inspection, layers
        >>> model = layers.serial(layers.dense(8), layers.relu, layers.named("head", layers.dense(2)))
        >>> table = inspection.summary(model, jax.ShapeDtypeStruct((32, 3), jnp.float32))
        >>> [(row.path, row.shape, row.params) for row in table.rows]
        [('dense_0', (32, 8), 32), ('relu_0', (32, 8), 0), ('head', (32, 2), 18)]
        >>> table.params, table.forward, [row.forward for row in table.rows]
        (50, 3136, [1792, 256, 1088])

    Reference: ``nnx.tabulate`` of Flax, ``torchinfo`` for PyTorch; Griewank and Walther, "Evaluating derivatives",
    2008.
    """
    expect_layer("summary", model)
    if depth is not None:
        depth = checks.expect_count("summary", "depth", depth)
    _expect_input(x)
    _expect_optimizer(optimizer)
    program = read(model, spec(x), training)
    rows = tuple(_rows(program, depth))
    totals = {name: sum(getattr(row, name) for row in rows) for name in _NUMBERS}
    gradients = sum(bytes_of(leaf) for leaf in jax.tree.leaves(program.params) if is_trained(leaf))
    if optimizer is not None:
        optimizer = sum(map(bytes_of, jax.tree.leaves(jax.eval_shape(optimizer.init, program.params))))
    return Summary(rows, **totals, gradients=gradients, optimizer=optimizer, notes=program.notes)


def _expect_input(x: Any) -> None:
    leaves = jax.tree.leaves(x)
    if isinstance(x, tuple) and leaves and all(type(leaf) is int for leaf in leaves):
        fix = f"for an input of this shape pass jax.ShapeDtypeStruct({x}, jnp.float32)"
        checks.fail("summary", "an input", f"the numbers {x}", fix, TypeError)
    for leaf in leaves:
        if not hasattr(leaf, "shape") and not isinstance(leaf, (bool, int, float, complex)):
            fix = "pass an array, or its shape as a jax.ShapeDtypeStruct"
            checks.fail("summary", "an input of arrays", f"a {type(leaf).__name__} in it", fix, TypeError)
        if not all(isinstance(size, int) for size in jnp.shape(leaf)):
            fix = "pass numbers in place of the symbols"
            checks.fail("summary", "an input of a known shape", shown(leaf), fix)


def _expect_optimizer(optimizer: Any) -> None:
    if optimizer is not None and not callable(getattr(optimizer, "init", None)):
        fix = "call it: optax.adam(1e-3)" if callable(optimizer) else "pass one such as optax.adam(1e-3)"
        checks.fail("summary", "an optimizer", f"a {type(optimizer).__name__}", fix, TypeError)


def _rows(program: Program, depth: int | None) -> Iterator[SummaryRow]:
    """A row for each layer without children or at this depth, and for each other one that has anything of its own."""
    numbers: dict[tuple[str, ...], list[int]] = {}
    for path, is_group in program.paths:
        own = [column[path] for column in program.columns]
        if not is_group or any(own) or len(path) == depth:
            at = numbers.setdefault(path[:depth], [0] * len(own))
            numbers[path[:depth]] = [a + b for a, b in zip(at, own, strict=True)]
    for path, (params, state, held, forward, backward, activations) in numbers.items():
        name, outputs = "/".join(path) or program.name, program.outputs.get(path, ())
        yield SummaryRow(name, outputs, params, state, held, forward, backward, activations, program.times.get(path, 1))
