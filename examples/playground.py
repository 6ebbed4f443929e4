"""Backpropagation to look at: one neuron drawn with all its numbers, and a network of single numbers that learns XOR.

Every number is a value that never changes. ``backward`` gives a graph in which each has its gradient, and an update is
a new network: there is nothing to set to zero, and nothing to forget to. The set-up of XOR is that of micrograd in
Elixir (luisgabrielroldan/micrograd), whose text this follows: 2-4-4-1, SGD at 0.1 on the sum of the squared errors;
so is the second one, the four rows of Karpathy's micrograd by 3-4-4-1.
"""

import itertools
import pathlib
import random

import jax

from funcnn.inspection import Value, backward, value

XOR = [((0.0, 0.0), 0.0), ((0.0, 1.0), 1.0), ((1.0, 0.0), 1.0), ((1.0, 1.0), 0.0)]
FOUR = [((2.0, 3.0, -1.0), 1.0), ((3.0, -1.0, 0.5), -1.0), ((0.5, 1.0, 1.0), -1.0), ((1.0, 1.0, -1.0), 1.0)]
SIGMOIDS, TANHS = ("tanh", "sigmoid", "sigmoid"), ("tanh", "tanh", "tanh")
FIGURE = pathlib.Path("figures/neuron.svg")


def new(sizes, draw):
    """The weights and the bias of every neuron of every layer, drawn anew."""
    return [
        [{"weights": [value(draw()) for _ in range(n)], "bias": value(0.0)} for _ in range(m)]
        for n, m in itertools.pairwise(sizes)
    ]


def neuron(params, inputs, activation):
    """One number from several: a weighted sum, and what the activation makes of it."""
    weighted = [w * x for w, x in zip(params["weights"], inputs, strict=True)]
    return getattr(sum(weighted) + params["bias"], activation)()


def layer(params, inputs, activation):
    """What several neurons make of the same inputs."""
    return [neuron(each, inputs, activation) for each in params]


def forward(network, inputs, activations):
    """The outputs of layer after layer."""
    for params, activation in zip(network, activations, strict=True):
        inputs = layer(params, inputs, activation)
    return inputs


def loss(network, rows, activations):
    """The sum of the squared errors over the rows."""
    return sum((forward(network, inputs, activations)[0] - target) ** 2 for inputs, target in rows)


def update(network, graph, rate):
    """A new network, a little further down the slope."""
    return jax.tree.map(lambda w: value(w.item() - rate * graph[w].gradient.item()), network)


def trained(network, steps, *task, rate=0.1):
    """The network after so many updates."""
    for _ in range(steps):
        network = update(network, backward(loss(network, *task)), rate)
    return network


def one_neuron() -> Value:
    """The neuron of the text: two inputs, two weights, a bias."""
    x1, x2 = value(2.0, "x1"), value(0.0, "x2")
    w1, w2, b = value(-3.0, "w1"), value(1.0, "w2"), value(4.0, "b")
    n = (x1 * w1 + x2 * w2 + b).named("n")
    return n.tanh().named("o")


def main():
    graph = backward(one_neuron())
    print(graph, end="\n\n")
    for step in graph.steps():
        print(step)
    FIGURE.parent.mkdir(exist_ok=True)
    FIGURE.write_text(graph.to_svg(), encoding="utf-8")
    print(f"\ndrawn in {FIGURE}\n")

    chance = random.Random(12)
    network = trained(new([2, 4, 4, 1], lambda: chance.uniform(-1, 1)), 800, XOR, SIGMOIDS)
    for inputs, target in XOR:
        output = forward(network, inputs, SIGMOIDS)[0].item()
        print(f"{inputs[0]:.0f} xor {inputs[1]:.0f} = {output:.3f}, and should be {target:.0f}")
    network = trained(new([3, 4, 4, 1], lambda: chance.uniform(-1, 1)), 120, FOUR, TANHS)
    for inputs, target in FOUR:
        print(f"{inputs} -> {forward(network, inputs, TANHS)[0].item():.3f}, and should be {target:.0f}")


if __name__ == "__main__":
    main()
