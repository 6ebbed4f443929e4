"""The other side: each network and its run as a person writes them in plain JAX and Optax, ``jax.jit`` of ``lax.scan``.

It needs nothing of funcnn. The epochs are one scan and the steps of an epoch another; the smaller last batch is a step
of its own; an epoch is a permutation and each batch a gather; the history holds the loss and nothing else. The runs of
W7 are side by side, ``jax.vmap`` of the whole run over keys and rates.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import transformer_by_hand
from workloads import Workload, rates, seeds

Params = Any


class ByHand(NamedTuple):
    """A network: ``init(key) -> params``, ``outputs(params, x)``, the loss of those, and its optimizer."""

    init: Callable[[Any], Params]
    outputs: Callable[[Params, Any], Any]
    loss_of: Callable[[Any, Any], Any]
    optimizer: optax.GradientTransformation

    def loss(self, params: Params, x: Any, y: Any) -> Any:
        """What the optimizer makes small."""
        return self.loss_of(self.outputs(params, x), y)


def trained(net: ByHand, params: Params, shuffle_key: Any, x: Any, y: Any, epochs: int, batch_size: int | None) -> Any:
    """The whole run: ``(params, opt_state), losses`` with one loss for each epoch."""
    n = len(x)

    def step(carry: Any, x: Any, y: Any) -> Any:
        params, opt_state = carry
        loss, gradient = jax.value_and_grad(net.loss)(params, x, y)
        updates, opt_state = net.optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def epoch(carry: Any, number: Any) -> Any:
        if batch_size is None:
            return step(carry, x, y)
        order = jax.random.permutation(jax.random.fold_in(shuffle_key, number), n)
        whole = n // batch_size * batch_size
        carry, losses = jax.lax.scan(
            lambda carry, rows: step(carry, x[rows], y[rows]), carry, order[:whole].reshape(-1, batch_size)
        )
        total = losses.sum() * batch_size
        if whole < n:
            carry, loss = step(carry, x[order[whole:]], y[order[whole:]])
            total += loss * (n - whole)
        return carry, total / n

    return jax.lax.scan(epoch, (params, net.optimizer.init(params)), jnp.arange(epochs))


# ---- dense networks --------------------------------------------------------------------------------------------------


def dense_init(*sizes: int) -> Callable[[Any], Params]:
    def init(key: Any) -> Params:
        glorot = jax.nn.initializers.glorot_uniform()
        keys = jax.random.split(key, len(sizes) - 1)
        return [(glorot(k, (a, b)), jnp.zeros(b)) for k, a, b in zip(keys, sizes, sizes[1:], strict=False)]

    return init


def dense(params: Params, x: Any) -> Any:
    *hidden, (w, b) = params
    for weights, bias in hidden:
        x = jax.nn.relu(x @ weights + bias)
    return x @ w + b


def xor(params: Params, x: Any) -> Any:
    (w1, b1), (w2, b2), (w3, b3) = params
    return jax.nn.sigmoid(jax.nn.sigmoid(jnp.tanh(x @ w1 + b1) @ w2 + b2) @ w3 + b3)


def squared(outputs: Any, y: Any) -> Any:
    return jnp.mean((outputs - y) ** 2)


def binary(logits: Any, y: Any) -> Any:
    return optax.sigmoid_binary_cross_entropy(logits, y).mean()


def classes(logits: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


# ---- the convolutional network ---------------------------------------------------------------------------------------

LAYOUT = ("NHWC", "HWIO", "NHWC")


@jax.custom_vjp
def conv(x: Any, kernel: Any) -> Any:
    """A convolution of stride 1 with an odd kernel and ``SAME`` padding."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)


def conv_forward(x: Any, kernel: Any) -> Any:
    return conv(x, kernel), (x, kernel)


def conv_backward(residuals: Any, dy: Any) -> Any:
    # Both gradients as forward convolutions in the one layout that XLA runs fast inside a loop on CPU.
    x, kernel = residuals
    dx = jax.lax.conv_general_dilated(
        dy, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), (1, 1), "SAME", dimension_numbers=LAYOUT
    )
    h, w = kernel.shape[0] // 2, kernel.shape[1] // 2
    dk = jax.lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), (1, 1), ((h, h), (w, w)), dimension_numbers=LAYOUT
    )
    return dx, dk.transpose(1, 2, 0, 3)


conv.defvjp(conv_forward, conv_backward)


def pool(x: Any) -> Any:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def images_init(key: Any) -> Params:
    glorot = jax.nn.initializers.glorot_uniform()
    shapes = [(3, 3, 1, 32), (3, 3, 32, 64), (7 * 7 * 64, 128), (128, 10)]
    keys = jax.random.split(key, len(shapes))
    return [(glorot(k, shape), jnp.zeros(shape[-1])) for k, shape in zip(keys, shapes, strict=True)]


def images(params: Params, x: Any) -> Any:
    (k1, b1), (k2, b2), *rest = params
    x = pool(jax.nn.relu(conv(x, k1) + b1))
    x = pool(jax.nn.relu(conv(x, k2) + b2))
    return dense(rest, x.reshape(len(x), -1))


NETWORKS = {
    "W1": ByHand(dense_init(2, 4, 4, 1), xor, squared, optax.sgd(0.4)),
    "W2": ByHand(dense_init(2, 16, 8, 1), dense, binary, optax.adam(0.01)),
    "W3": ByHand(dense_init(64, 128, 64, 10), dense, classes, optax.adam(1e-3)),
    "W4": ByHand(dense_init(784, 512, 512, 10), dense, classes, optax.adam(1e-3)),
    "W5": ByHand(images_init, images, classes, optax.adam(1e-3)),
    "W6": ByHand(transformer_by_hand.init, transformer_by_hand.scores, classes, optax.adamw(1e-3, weight_decay=1e-4)),
}

WORKLOADS = (*NETWORKS, "W7")

# ---- as the other libraries are called -------------------------------------------------------------------------------


@cache
def program(name: str, work: Workload) -> Callable[[Any, Any, Any], Params]:
    """The compiled run, initialisation included: ``(key, x, y) -> params``; of all members for W7."""
    net = NETWORKS["W1" if name == "W7" else name]

    def run(net: ByHand, key: Any, x: Any, y: Any) -> Any:
        init_key, shuffle_key = jax.random.split(key)
        (params, _), losses = trained(net, net.init(init_key), shuffle_key, x, y, work.epochs, work.batch_size)
        return params, losses

    def member(key: Any, rate: Any, x: Any, y: Any) -> Any:
        return run(net._replace(optimizer=optax.sgd(rate)), key, x, y)

    @jax.jit
    def ensemble(key: Any, x: Any, y: Any) -> Any:
        keys = jax.random.split(key, 4)[seeds(work.members)]
        return jax.vmap(member, in_axes=(0, 0, None, None))(keys, rates(work.members), x, y)

    return ensemble if name == "W7" else jax.jit(partial(run, net))


@cache
def forward(name: str) -> Callable[[Params, Any], Any]:
    """The compiled outputs of a network; of all members for W7."""
    if name == "W7":
        return jax.jit(jax.vmap(xor, in_axes=(0, None)))
    return jax.jit(NETWORKS[name].outputs)


def started(
    name: str, work: Workload, x: np.ndarray, y: np.ndarray, seed: int
) -> tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
    """``train()``: a whole run from its initialisation on, waited for; and ``predict(x)``: raw outputs."""
    run, key, inputs, targets = program(name, work), jax.random.key(seed), jnp.asarray(x), jnp.asarray(y)
    params: Params = None

    def train() -> None:
        nonlocal params
        params, _ = jax.block_until_ready(run(key, inputs, targets))

    return train, lambda x: np.asarray(forward(name)(params, x))
