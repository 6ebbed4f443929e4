"""Writes docs/origins.md: what the five projects that funcnn grew from had or promised, and where it works here.

``python docs/origins.py`` writes the page; the tests hold that it is written, and that each place exists and is run.
"""

import pathlib

PAGE = pathlib.Path(__file__).with_name("origins.md")


def chapters(first: int, last: int) -> list[str]:
    """The pages of the course from one number to another."""
    numbers = range(first, last + 1)
    return [f"docs/course/{next(PAGE.parent.glob(f'course/{n:02}_*.md')).name}" for n in numbers]


# What they had, or wanted to have: where it is here. A path is a page or an example, which the tests execute, or one of
# the tests; a name with a dot is one of funcnn or of Optax, which an example of its own, a law or a page executes.
PROJECTS = {
    "Welcome to Neural Networks in Elixir": (
        "https://github.com/Yashaswini-Sharma/NeuralNetwork",
        "Yashaswini Sharma's network in Nx, written to learn both, after a tutorial by Aadi Malik: 2-3-3-1, all "
        "sigmoid, its gradient by hand.",
        {
            "the network on ten rows of weight and height": ["examples/heights.py"],
            "backpropagation written by hand": ["docs/course/09_backpropagation.md"],
            "binary cross-entropy": ["losses.binary_cross_entropy", "docs/course/16_logistic.md"],
            "the cost, every so many steps": ["training.fit", "training.steps"],
            "the lesson: values that are overwritten are lost, values that are returned learn": [
                "docs/course/23_overwritten.md"
            ],
            "wanted: ReLU and leaky ReLU": ["layers.relu", "layers.leaky_relu", "examples/activations.py"],
            "wanted: faster updates of the weights": ["training.run", "training.fuse_small_loops", "docs/sweeps.md"],
            "wanted: deeper networks": ["layers.repeat", "models.mlp", "docs/course/03_layers.md"],
            "wanted: unit tests": ["tests/test_laws.py", "tests/test_seeds.py", "docs/adding_a_layer.md"],
            "an example in Python beside that in Elixir": ["docs/course/23_overwritten.md"],
        },
    ),
    "micrograd in Elixir": (
        "https://github.com/luisgabrielroldan/micrograd",
        "luisgabrielroldan's engine of single numbers that never change, after Andrej Karpathy's micrograd.",
        {
            "a number that knows how it was made: add, sub, mul, div, pow, neg, exp, tanh, sigmoid, relu": [
                "inspection.value",
                "examples/playground.py",
            ],
            "its gradient, each shared node once": ["inspection.backward", "docs/graphs.md"],
            "a neuron, a layer, a network of them": ["examples/playground.py", "docs/course/02_neurons.md"],
            "an update that returns a new network": ["examples/playground.py", "docs/course/18_model.md"],
            "stochastic gradient descent": ["optax.sgd", "docs/course/10_optimizers.md"],
            "the sum of squared errors": ["losses.squared_error", "docs/course/17_regression.md"],
            "XOR, within 0.08 of the targets": ["examples/xor.py", "examples/playground.py"],
            "four rows by 3-4-4-1, all tanh, within 0.08 of 1 and -1 (there in 50 steps, here in 120)": [
                "examples/playground.py"
            ],
        },
    ),
    "Neural networks from scratch": (
        "https://github.com/KoteGotiashvili/Neural-Networks-From-Scratch",
        "Kote Gotiashvili's course in NumPy of 22 chapters, after the book by Harrison Kinsley and Daniel Kukieła.",
        {
            "chapters 1 to 5: what a network is, neurons, layers, activations, loss": chapters(1, 5),
            "chapters 6 to 10: optimization, derivatives, the chain rule, backpropagation, optimizers": chapters(6, 10),
            "chapters 11 to 15: data not seen, validation, preparing data, L1 and L2, dropout": chapters(11, 15),
            "chapters 16 to 18: logistic regression, regression, a model": chapters(16, 18),
            "chapters 19 to 22: a real dataset, evaluation, saving, prediction": chapters(19, 22),
            "training by chance": ["docs/course/06_optimization.md", "examples/random_search.py"],
            "shuffled batches": ["training.run", "docs/course/19_digits.md"],
            "dense layers with L1 and L2": ["layers.dense", "penalties.l1", "penalties.l2", "docs/course/14_l1_l2.md"],
            "ReLU, sigmoid, softmax, linear": ["layers.relu", "layers.sigmoid", "layers.softmax", "layers.identity"],
            "categorical and binary cross-entropy": [
                "losses.softmax_cross_entropy",
                "losses.categorical_cross_entropy",
                "losses.sigmoid_cross_entropy",
            ],
            "mean squared and mean absolute error": ["losses.squared_error", "losses.absolute_error"],
            "the gradient of softmax and cross-entropy in one": ["docs/course/05_loss.md"],
            "SGD with momentum and decay, AdaGrad, RMSProp, Adam": [
                "optax.sgd",
                "optax.adagrad",
                "optax.rmsprop",
                "optax.adam",
                "docs/course/10_optimizers.md",
            ],
            "dropout": ["layers.dropout", "docs/course/15_dropout.md"],
            "accuracy of classes; in place of that of numbers R squared": ["metrics.accuracy", "metrics.r_squared"],
            "a learning rate that decays": ["training.exponential_decay_schedule", "docs/course/10_optimizers.md"],
            "looking at the data first": ["docs/course/13_preparing.md", "docs/course/19_digits.md"],
            "a model: add, train, evaluate, predict": [
                "layers.serial",
                "training.fit",
                "training.evaluate",
                "training.predict",
            ],
            "save and load, there by pickle": ["weights.save", "weights.load", "docs/course/21_saving.md"],
            "a dataset of images, read from files": ["examples/files.py"],
            "prediction of one's own pictures": ["docs/course/22_prediction.md"],
        },
    ),
    "micrograd, five experiments on moons": (
        "https://github.com/karpathy/micrograd",
        "A notebook whose author we do not know, on Andrej Karpathy's micrograd, to which the heading leads: one or "
        "two hidden layers, three rates, two sizes of batches.",
        {
            "a network on two half-circles, and its boundary": ["examples/moons.py", "plotting.decision_boundary"],
            "five networks, of one or two hidden layers and three rates, and their accuracy before training": [
                "training.sweep",
                "examples/experiments.py",
            ],
            "a picture of the graph of one expression": ["examples/playground.py", "docs/graphs.md"],
            "single examples and full batches": ["examples/experiments.py"],
            "curves of training and test": ["plotting.history", "examples/experiments.py"],
        },
    ),
    "SmolML": (
        "https://github.com/rodmarkun/SmolML",
        "rodmarkun's machine learning in plain Python. Its networks and what they stand on are taken up here; its "
        "trees, forests, support vector machines and k-means are not, for scikit-learn has them.",
        {
            "relu, leaky_relu, elu, sigmoid, softmax, tanh, linear": [
                "layers.relu",
                "layers.leaky_relu",
                "layers.elu",
                "layers.sigmoid",
                "layers.softmax",
                "layers.tanh",
                "layers.identity",
            ],
            "uniform, Xavier uniform and normal, He": [
                "layers.with_initializers",
                "layers.dense",
                "docs/course/09_backpropagation.md",
            ],
            "mse, mae, bce, cce, huber": [
                "losses.squared_error",
                "losses.absolute_error",
                "losses.binary_cross_entropy",
                "losses.categorical_cross_entropy",
                "losses.huber",
            ],
            "SGD, momentum, AdaGrad, Adam": ["optax.sgd", "optax.adagrad", "optax.adam"],
            "a number with a gradient, its Value": ["inspection.value", "examples/playground.py"],
            "an array of such numbers, its MLArray": ["inspection.graph", "docs/graphs.md"],
            "linear and polynomial regression": ["layers.dense", "docs/course/17_regression.md"],
            "standard scaling": ["data.standardize", "docs/course/13_preparing.md"],
            "scaling to the least and the largest value": ["docs/course/13_preparing.md"],
            "how much memory a model takes": ["inspection.summary", "docs/summaries.md"],
            "XOR": ["examples/xor.py"],
            "moons": ["examples/moons.py"],
            "iris": ["examples/iris.py"],
            "its comparison with PyTorch and TensorFlow": ["examples/compare.py", "docs/coming_from.md"],
        },
    ),
}

HEAD = """# Where funcnn comes from

Five small projects set out to teach what a neural network is. Each had something that the others lacked, and each left
something for later. This is all of it, and where it works here; the tests look whether each place is there and is run.
To all who wrote them: thank you. `python docs/origins.py` writes this page from its list.
"""


def page() -> str:
    """The page as text."""
    parts = [HEAD]
    for title, (address, words, rows) in PROJECTS.items():
        parts.append(f"\n## [{title}]({address})\n\n{words}\n\n| there | here |\n|---|---|\n")
        for there, here in rows.items():
            parts.append(f"| {there} | {', '.join(map(shown, here))} |\n")
    return "".join(parts)


def shown(place: str) -> str:
    """A path as a link, a name as code."""
    if "/" not in place:
        return f"`{place}`"
    return f"[{place}]({place.removeprefix('docs/') if place.startswith('docs/') else f'../{place}'})"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
