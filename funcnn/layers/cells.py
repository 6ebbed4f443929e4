"""Recurrent cells: one step in time, from ``(carry, x)`` to ``(carry, y)``; ``recurrent`` runs one over a sequence.

The carry is what a cell hands to its own next step. Without one, where it is ``None`` or the input is ``x`` alone, a
cell starts from zeros, whose shape it knows from ``x``. So a cell is a layer like any other, and needs no second type.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform, orthogonal, zeros

from funcnn import bits, checks, primitives
from funcnn.core import Layer, Tree, expect_entries, expect_key, features, param_dtype, shown, spec, with_features

Initializer = Callable[..., Any]


def elman_cell(
    features: int,
    *,
    activation: Callable[[Any], Any] = jnp.tanh,
    bias: bool = True,
    kernel_init: Initializer = glorot_uniform(),
    recurrent_kernel_init: Initializer = orthogonal(),
    bias_init: Initializer = zeros,
) -> Layer:
    """The simple recurrent cell: a dense layer over the input and its own last output.

    Formula: ``h' = activation(x @ kernel + h @ recurrent_kernel + bias)``, ``y = h'``

    Shapes: ``(h, x)``, with ``x (batch, ..., n)`` and ``h (batch, ..., features)``, ``-> (h', y)`` of the shape of
    ``h``. The carry ``h`` may be ``None`` or missing, which means zeros.

    Params: ``kernel (n, features)``, ``recurrent_kernel (features, features)``, ``bias (features,)`` unless
    ``bias=False``. State: none.

    Args:
        features: the number of output features.
        activation: a function of an array, such as ``jnp.tanh`` or ``jax.nn.relu``.
        bias: whether to add one.
        kernel_init: from ``jax.nn.initializers``.
        recurrent_kernel_init: likewise; an orthogonal matrix lets neither signal nor gradient grow or vanish at first.
        bias_init: likewise.

    Raises:
        TypeError: the input is not floating, or ``activation`` is not a function.
        ValueError: the input has other features than the kernel was made for, the carry does not fit it, or the params
            have other sizes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> cell, x = layers.elman_cell(3), jnp.ones((5, 2))
        >>> params, state = cell.init(jax.random.key(0), x)
        >>> (h, y), _ = cell.apply(params, state, x)  # from zeros
        >>> (h, y), _ = cell.apply(params, state, (h, x))
        >>> h.shape, y.shape
        ((5, 3), (5, 3))

    Reference: Elman, "Finding structure in time", 1990. Differs from PyTorch: (1) one bias and not two that are added.
    """
    features = checks.expect_count("elman_cell", "features", features)
    if not callable(activation) or isinstance(activation, Layer):
        got, fix = type(activation).__name__, "pass a function such as jnp.tanh or jax.nn.relu"
        checks.fail("elman_cell", "activation as a function of an array", got, fix, TypeError)

    def step(params: Tree, h: Any, x: Any) -> tuple[Any, Any]:
        h = activation(_sum(primitives.matmul, params, h, x, bias))
        return h, h

    def init(key: Any, x: Any) -> Tree:
        inits = (kernel_init, recurrent_kernel_init, bias_init if bias else None)
        return _weights(key, inits, x, features, 1)

    return _cell("elman_cell", ("bias",) if bias else (), _expect_vectors, init, step, features, 1)


def lstm_cell(
    features: int,
    *,
    bias: bool = True,
    forget_bias: Any = 1.0,
    kernel_init: Initializer = glorot_uniform(),
    recurrent_kernel_init: Initializer = orthogonal(),
    bias_init: Initializer = zeros,
) -> Layer:
    """Long short-term memory: a cell ``c`` that gates write, keep and read, so that what it holds can last.

    Formula: ``i, f, g, o = split(x @ kernel + h @ recurrent_kernel + bias)``, in this order (input, forget, candidate,
    output); ``c' = sigmoid(f) * c + sigmoid(i) * tanh(g)``, ``h' = sigmoid(o) * tanh(c')``, ``y = h'``

    Shapes: ``((h, c), x)``, with ``x (batch, ..., n)`` and ``h`` and ``c`` ``(batch, ..., features)``,
    ``-> ((h', c'), y)``. The carry ``(h, c)`` may be ``None`` or missing, which means zeros.

    Params: ``kernel (n, 4 * features)``, ``recurrent_kernel (features, 4 * features)``, ``bias (4 * features,)`` unless
    ``bias=False``. State: none.

    Args:
        features: the number of output features.
        bias: whether to add one.
        forget_bias: added to the initial bias of the forget gate, so that at first the cell keeps what it holds.
        kernel_init: from ``jax.nn.initializers``; each gate draws a matrix of its own, as if it stood alone.
        recurrent_kernel_init: likewise.
        bias_init: likewise, for all gates at once.

    Raises:
        TypeError: the input is not floating.
        ValueError: the input has other features than the kernel was made for, the carry does not fit it, or the params
            have other sizes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> cell, x = layers.lstm_cell(3), jnp.ones((5, 2))
        >>> params, state = cell.init(jax.random.key(0), x)
        >>> jax.tree.map(jnp.shape, params)
        {'bias': (12,), 'kernel': (2, 12), 'recurrent_kernel': (3, 12)}
        >>> ((h, c), y), _ = cell.apply(params, state, x)
        >>> h.shape, c.shape, y.shape
        ((5, 3), (5, 3), (5, 3))

    Reference: Hochreiter and Schmidhuber, "Long short-term memory", 1997; with the forget gate of Gers, Schmidhuber and
    Cummins, 2000, and its bias of Jozefowicz, Zaremba and Sutskever, 2015. Differs from PyTorch: (1) one bias and not
    two that are added; (2) the forget gate starts open.
    """
    features = checks.expect_count("lstm_cell", "features", features)

    def init(key: Any, x: Any) -> Tree:
        inits = (kernel_init, recurrent_kernel_init, bias_init if bias else None)
        return _open_forget_gate(_weights(key, inits, x, features, 4), features, forget_bias)

    step = _long_short_term(primitives.matmul, bias)
    return _cell("lstm_cell", ("bias",) if bias else (), _expect_vectors, init, step, features, 4, carried=2)


def gru_cell(
    features: int,
    *,
    bias: bool = True,
    kernel_init: Initializer = glorot_uniform(),
    recurrent_kernel_init: Initializer = orthogonal(),
    bias_init: Initializer = zeros,
) -> Layer:
    """A gated recurrent unit: one gate blends old and new, another decides what of the old the new one sees.

    Formula: ``r, z, n = split(x @ kernel + bias)`` and ``R, Z, N = split(h @ recurrent_kernel)``, in this order (reset,
    update, candidate); ``n' = tanh(n + sigmoid(r + R) * (N + recurrent_bias))``, ``z' = sigmoid(z + Z)``,
    ``h' = (1 - z') * n' + z' * h``, ``y = h'``

    Shapes: ``(h, x)``, with ``x (batch, ..., n)`` and ``h (batch, ..., features)``, ``-> (h', y)`` of the shape of
    ``h``. The carry ``h`` may be ``None`` or missing, which means zeros.

    Params: ``kernel (n, 3 * features)``, ``recurrent_kernel (features, 3 * features)``; unless ``bias=False``
    ``bias (3 * features,)`` and ``recurrent_bias (features,)``. State: none.

    Args:
        features: the number of output features.
        bias: whether to add them.
        kernel_init: from ``jax.nn.initializers``; each gate draws a matrix of its own, as if it stood alone.
        recurrent_kernel_init: likewise.
        bias_init: likewise, for both biases.

    Raises:
        TypeError: the input is not floating.
        ValueError: the input has other features than the kernel was made for, the carry does not fit it, or the params
            have other sizes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> cell, x = layers.gru_cell(3), jnp.ones((5, 2))
        >>> params, state = cell.init(jax.random.key(0), x)
        >>> jax.tree.map(jnp.shape, params)
        {'bias': (9,), 'kernel': (2, 9), 'recurrent_bias': (3,), 'recurrent_kernel': (3, 9)}
        >>> (h, y), _ = cell.apply(params, state, x)
        >>> h.shape, y.shape
        ((5, 3), (5, 3))

    Reference: Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014. Differs from it, as
    PyTorch and cuDNN do: (1) the reset gate acts after the recurrent product, which then is one for all gates. Differs
    from PyTorch: (2) only the candidate, inside the reset gate, needs a recurrent bias of its own.
    """
    features = checks.expect_count("gru_cell", "features", features)

    def init(key: Any, x: Any) -> Tree:
        params = _weights(key, (kernel_init, recurrent_kernel_init, bias_init if bias else None), x, features, 3)
        recurrent_bias = {"recurrent_bias": bias_init(jax.random.fold_in(key, 3), (features,), param_dtype(x))}
        return {**params, **recurrent_bias} if bias else params

    def step(params: Tree, h: Any, x: Any) -> tuple[Any, Any]:
        of_x = primitives.matmul(x, params["kernel"].astype(x.dtype))
        of_h = primitives.matmul(h, params["recurrent_kernel"].astype(x.dtype))
        if bias:
            of_x = of_x + primitives.along_last(params["bias"].astype(x.dtype), x.ndim)
        (r, z, n), (h_r, h_z, h_n) = (jnp.split(a, 3, axis=-1) for a in (of_x, of_h))
        if bias:
            h_n = h_n + primitives.along_last(params["recurrent_bias"].astype(x.dtype), x.ndim)
        z = jax.nn.sigmoid(z + h_z)
        h = (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + h_r) * h_n) + z * h
        return h, h

    return _cell("gru_cell", ("bias", "recurrent_bias") if bias else (), _expect_vectors, init, step, features, 3)


def conv_lstm_cell(
    features: int,
    kernel_size: int | Sequence[int],
    *,
    bias: bool = True,
    forget_bias: Any = 1.0,
    kernel_init: Initializer = glorot_uniform(),
    recurrent_kernel_init: Initializer = orthogonal(),
    bias_init: Initializer = zeros,
) -> Layer:
    """Long short-term memory over maps: that of ``lstm_cell`` with convolutions in the place of matrix products.

    Formula: that of ``lstm_cell`` with ``i, f, g, o = split(conv(x, kernel) + conv(h, recurrent_kernel) + bias)``

    Shapes: ``((h, c), x)``, with ``x (batch, *spatial, n)`` and ``h`` and ``c`` ``(batch, *spatial, features)``,
    ``-> ((h', c'), y)``, for one, two or three spatial axes; both convolutions keep their sizes (``"SAME"``). The
    carry ``(h, c)`` may be ``None`` or missing, which means zeros.

    Params: ``kernel (*kernel_size, n, 4 * features)``, ``recurrent_kernel (*kernel_size, features, 4 * features)``,
    ``bias (4 * features,)`` unless ``bias=False``. State: none.

    Args:
        features: the number of output features.
        kernel_size: of both convolutions: a number, the same for all spatial axes, or one for each.
        bias: whether to add one.
        forget_bias: added to the initial bias of the forget gate, so that at first the cell keeps what it holds.
        kernel_init: from ``jax.nn.initializers``; each gate draws a kernel of its own, as if it stood alone.
        recurrent_kernel_init: likewise.
        bias_init: likewise, for all gates at once.

    Raises:
        TypeError: the input is not floating.
        ValueError: the input has other axes or features than the kernel was made for, the carry does not fit it, or the
            params have other sizes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> cell, x = layers.conv_lstm_cell(3, 3), jnp.ones((5, 8, 8, 2))
        >>> params, state = cell.init(jax.random.key(0), x)
        >>> ((h, c), y), _ = cell.apply(params, state, x)
        >>> y.shape
        (5, 8, 8, 3)

    Reference: Shi et al., "Convolutional LSTM network", 2015. Differs from it, as Keras does: (1) the gates do not see
    ``c`` (no peepholes).
    """
    features = checks.expect_count("conv_lstm_cell", "features", features)
    sized = kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size,)
    primitives.per_axis("conv_lstm_cell", "kernel_size", kernel_size, len(sized))

    def expect(kind: str, x: Any) -> None:
        _expect_maps(kind, x, kernel_size)

    def init(key: Any, x: Any) -> Tree:
        window = primitives.per_axis("conv_lstm_cell", "kernel_size", kernel_size, len(x.shape) - 2)
        inits = (kernel_init, recurrent_kernel_init, bias_init if bias else None)
        return _open_forget_gate(_weights(key, inits, x, features, 4, window), features, forget_bias)

    step = _long_short_term(_same_size, bias)
    biases = ("bias",) if bias else ()
    return _cell("conv_lstm_cell", biases, expect, init, step, features, 4, carried=2, kernel_size=kernel_size)


# ---- what cells share ------------------------------------------------------------------------------------------------


def _cell(
    kind: str,
    biases: tuple[str, ...],
    expect: Callable[[str, Any], None],
    init: Callable[[Any, Any], Tree],
    step: Callable[[Tree, Any, Any], tuple[Any, Any]],
    size: int,
    gates: int,
    *,
    carried: int = 1,
    kernel_size: Any = None,
) -> Layer:
    """A layer from a step ``(params, carry, x) -> (carry, y)`` whose carry is one array, or a tuple of ``carried``."""

    def read(where: Any) -> tuple[Any, Any]:
        carry, x = _pair(kind, where)
        expect(kind, x)
        shape = (*x.shape[:-1], size)
        _expect_carry(kind, carry, shape if carried == 1 else (shape,) * carried)
        return carry, x

    def expect_weights(params: Tree, x: Any) -> None:
        expect_entries(kind, "params", params, ("kernel", "recurrent_kernel", *biases))
        if params["kernel"].ndim >= 2:
            _expect_features(kind, x, params["kernel"].shape)
        window = () if kernel_size is None else primitives.per_axis(kind, "kernel_size", kernel_size, x.ndim - 2)
        for name, inputs in (("kernel", x.shape[-1]), ("recurrent_kernel", size)):
            checks.expect_shape(kind, name, params[name], (*window, inputs, gates * size))
        for name in biases:
            checks.expect_shape(kind, name, params[name], (gates * size if name == "bias" else size,))

    def lifted_init(key: Any, x: Any) -> tuple[Tree, Tree]:
        expect_key(f"{kind}.init", key)
        _, x = read(spec(features(kind, x)))
        return init(key, x), {}

    def lifted_apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key, training
        carry, a = read(jax.tree.map(jnp.asarray, features(kind, x)))
        expect_weights(params, a)
        if carry is None:
            start = jnp.zeros((*a.shape[:-1], size), a.dtype)
            carry = start if carried == 1 else (start,) * carried
        return with_features(x, step(params, jax.tree.map(lambda c: c.astype(a.dtype), carry), a)), state

    return Layer(lifted_init, lifted_apply, kind)


def _weights(
    key: Any,
    inits: tuple[Initializer, Initializer, Initializer | None],
    x: Any,
    features: int,
    gates: int,
    window: tuple[int, ...] = (),
) -> Tree:
    """The weights of all gates side by side, each drawn on its own: the fans and the orthogonality are those of one."""
    dtype = param_dtype(x)

    def drawn(index: int, init: Initializer, inputs: int) -> Any:
        keys = jax.random.split(jax.random.fold_in(key, index), gates)
        kernels = jax.vmap(lambda k: bits.draw(init, k, (*window, inputs, features), dtype))(keys)
        return jnp.moveaxis(kernels, 0, -2).reshape(*window, inputs, gates * features)

    kernel_init, recurrent_kernel_init, bias_init = inits
    params = {
        "kernel": drawn(0, kernel_init, x.shape[-1]),
        "recurrent_kernel": drawn(1, recurrent_kernel_init, features),
    }
    if bias_init is not None:
        params["bias"] = bias_init(jax.random.fold_in(key, 2), (gates * features,), dtype)
    return params


def _open_forget_gate(params: Tree, features: int, forget_bias: Any) -> Tree:
    if "bias" not in params:
        return params
    bias = params["bias"]
    return {**params, "bias": bias.at[features : 2 * features].add(jnp.asarray(forget_bias).astype(bias.dtype))}


def _sum(product: Callable[[Any, Any], Any], params: Tree, h: Any, x: Any, bias: bool) -> Any:
    """What comes from the input, plus what comes from the carry, plus the bias."""
    kernel, recurrent_kernel = (params[name].astype(x.dtype) for name in ("kernel", "recurrent_kernel"))
    y = product(x, kernel) + product(h, recurrent_kernel)
    return y + primitives.along_last(params["bias"].astype(x.dtype), y.ndim) if bias else y


def _long_short_term(product: Callable[[Any, Any], Any], bias: bool) -> Callable[[Tree, Any, Any], tuple[Any, Any]]:
    def step(params: Tree, carry: Any, x: Any) -> tuple[Any, Any]:
        h, c = carry
        i, f, g, o = jnp.split(_sum(product, params, h, x, bias), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    return step


def _same_size(x: Any, kernel: Any) -> Any:
    window, ones = kernel.shape[:-2], (1,) * (kernel.ndim - 2)
    pads = primitives.pads("conv_lstm_cell", "SAME", x.shape[1:-1], window, ones)
    return primitives.conv(x, kernel, strides=ones, padding=pads, dilation=ones)


def _pair(kind: str, x: Any) -> tuple[Any, Any]:
    """The carry, or ``None``, and the input."""
    carry, x = x if isinstance(x, tuple) and len(x) == 2 else (None, x)
    if isinstance(x, (tuple, dict)) or x is None:
        got = f"a {type(x).__name__} of shapes {shown(x)}"
        checks.fail(kind, "(carry, x), or x alone, with x one array", got, "pass (None, x) to start", TypeError)
    return carry, x


def _expect_vectors(kind: str, x: Any) -> None:
    fix = "if the axis of features is missing, add it: x[..., None]; if that of the batch is, x[None]"
    checks.expect_rank(kind, x, 2, "(batch, ..., features)", fix)
    checks.expect_floating(kind, x)


def _expect_maps(kind: str, x: Any, kernel_size: Any) -> None:
    checks.expect_floating(kind, x)
    ranks = (len(kernel_size),) if isinstance(kernel_size, (tuple, list)) else (1, 2, 3)
    if len(x.shape) - 2 not in ranks:
        axes = " or ".join(str(rank) for rank in ranks)
        fix = "give each step of the sequence these axes, or kernel_size one number for each spatial axis"
        checks.fail(kind, f"(batch, *spatial, features) with {axes} spatial axes", f"shape {tuple(x.shape)}", fix)


def _expect_features(kind: str, x: Any, kernel_shape: tuple[int, ...]) -> None:
    if x.shape[-1] != kernel_shape[-2] or (len(kernel_shape) > 2 and len(kernel_shape) != x.ndim):
        expected = f"{kernel_shape[-2]} input features, as its kernel {tuple(kernel_shape)} has"
        got = f"{x.shape[-1]} in an input of shape {tuple(x.shape)}"
        checks.fail(kind, expected, got, "pass inputs of the shape that init was given, or init again")


def _expect_carry(kind: str, carry: Any, expected: tuple[Any, ...]) -> None:
    if carry is not None and jax.tree.map(jnp.shape, carry) != expected:
        fix = "pass the carry that this cell gave for a batch of this size, or None to start"
        checks.fail(kind, f"a carry of shape {expected}", str(jax.tree.map(jnp.shape, carry)), fix)
