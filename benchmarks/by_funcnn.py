"""Our side: the same networks, as a user of funcnn writes them."""

import optax

from funcnn import layers, losses, training

xor = layers.serial(layers.dense(4), layers.tanh, layers.dense(4), layers.sigmoid, layers.dense(1), layers.sigmoid)


def mlp(*sizes: int):
    *hidden, outputs = sizes
    return layers.serial(
        *(part for size in hidden for part in (layers.dense(size), layers.relu)), layers.dense(outputs)
    )


images = layers.serial(
    layers.conv(32, 3),
    layers.relu,
    layers.max_pool(2),
    layers.conv(64, 3),
    layers.relu,
    layers.max_pool(2),
    layers.flatten,
    layers.dense(128),
    layers.relu,
    layers.dense(10),
)

TRAINERS = {
    "W1": training.supervised(xor, losses.squared_error, optax.sgd(0.4)),
    "W2": training.supervised(mlp(16, 8, 1), losses.sigmoid_cross_entropy, optax.adam(0.01)),
    "W3": training.supervised(mlp(128, 64, 10), losses.softmax_cross_entropy, optax.adam(1e-3)),
    "W4": training.supervised(mlp(512, 512, 10), losses.softmax_cross_entropy, optax.adam(1e-3)),
    "W5": training.supervised(images, losses.softmax_cross_entropy, optax.adam(1e-3)),
}
