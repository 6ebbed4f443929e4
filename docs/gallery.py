"""Writes docs/gallery.md and its pictures: what each section of the page shows is what was run to draw it.

``python docs/gallery.py`` runs the sections in their order, in about a minute, and writes the page; ``page`` alone runs
nothing. A section is a function here: its docstring is the text, its body the code, its arguments come from the
sections before it, and where it returns a figure there is a picture.
"""

import ast
import hashlib
import inspect
import pathlib
import re
import textwrap

PAGE = pathlib.Path(__file__).with_name("gallery.md")
PICTURES = PAGE.with_name("pictures")

HEAD = """# Gallery

Every picture of `plotting`, each with the code that drew it; the code runs from top to bottom. A picture is a
matplotlib `Figure`, which is returned and never shown by force: a notebook shows it, `figure.savefig("name.png")` keeps
it, and `figure.axes` are there to change what you like. Colours are those of Okabe and Ito and of the maps cividis and
viridis, which colour-blind eyes tell apart; where it matters, dashes and shapes differ too. `python docs/gallery.py`
draws all of them anew and writes this page.
"""

IMPORTS = """import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits, load_iris, make_moons

from funcnn import data, layers, losses, metrics, plotting, training, trees

key = jax.random.key(0)"""


def digits(data, jax, key, layers, load_digits, losses, metrics, optax, training, trees):
    """A small convolutional network learns to read digits.

    At every step it is asked for its kernels and their gradients, of which the histograms further down are made.
    """
    images, labels = load_digits(return_X_y=True)
    train, test = data.split((images.reshape(-1, 8, 8, 1) / 16, labels), 0.2, key=key, stratify=labels)
    model = layers.serial(
        layers.conv(16, 3),
        layers.relu,
        layers.max_pool(2),
        layers.flatten,
        layers.dense(32),
        layers.relu,
        layers.dense(10),
    )
    trainer = training.supervised(
        model,
        losses.softmax_cross_entropy,
        optax.adam(0.01),
        {"accuracy": metrics.accuracy, "confusion": metrics.confusion_matrix(10)},
        telemetry={
            "weights": lambda params, gradient, updates: trees.select(params, "**/kernel"),
            "gradients": lambda params, gradient, updates: trees.select(gradient, "**/kernel"),
        },
    )
    result = training.fit(trainer, train, key=key, epochs=20, batch_size=64, validation=test, progress=False)
    return model, test, trainer, result


def history(plotting, result):
    """One picture for each quantity, and in all of them the epoch in which the validation loss was least.

    Another column may say what is best: `monitor="validation_accuracy", mode="max"`.
    """
    return plotting.history(result)


def learning_rates(jax, jnp, key, layers, load_digits, losses, optax, plotting, training):
    """The loss of single batches while the rate grows from step to step."""

    def at_rate(rate):
        network = layers.serial(layers.dense(64), layers.relu, layers.dense(10))
        return training.supervised(network, losses.softmax_cross_entropy, optax.adam(rate))

    pixels, numbers = load_digits(return_X_y=True)
    tried = training.find_learning_rate(at_rate, (pixels / 16, numbers), key=key)
    return plotting.learning_rates(tried)


def confusion(plotting, result, test, trainer, training):
    """The darker, the more; a single mistake is seen all the same.

    From the matrix that the metric measured, as here, or from classes: `plotting.confusion_matrix(labels, predicted)`.
    With `shares=True` the rows are in percent.
    """
    measured = training.evaluate(trainer, result.state, test)
    return plotting.confusion_matrix(measured["confusion"])


def filters(plotting, result):
    """What the first convolution looks for."""
    return plotting.filters(result.state.params["conv_0"]["kernel"])


def weights(plotting, result):
    """Each column is a histogram of one step, with its median and the range of nine tenths.

    A sequence of params does as well as telemetry: those of several checkpoints, or of the events of a run.
    """
    return plotting.histograms(result.telemetry["weights"], quantity="weight")


def gradients(plotting, result):
    """They shrink by orders of magnitude, so it is their size that is drawn."""
    return plotting.histograms(result.telemetry["gradients"], "dense_*/*", quantity="gradient", scale="log")


def boundary(key, layers, losses, make_moons, optax, plotting, training):
    """Where a network of two inputs says yes, how sure it is, and the points that it learned from."""
    x, y = make_moons(200, noise=0.2, random_state=0)
    small = layers.serial(layers.dense(16), layers.relu, layers.dense(16), layers.relu, layers.dense(1), layers.sigmoid)
    moons = training.supervised(small, losses.binary_cross_entropy, optax.adam(0.01))
    moons_result = training.fit(moons, (x, y[:, None]), key=key, epochs=200, batch_size=None, progress=False)
    return plotting.decision_boundary(lambda x: training.predict(small, moons_result.state, x), x, y)


def regions(data, key, layers, load_iris, losses, optax, plotting, training):
    """Three irises by two measurements. Shapes tell the points apart as well as colours do."""
    iris = load_iris()
    petals = iris.data[:, 2:]
    flowers = layers.serial(data.standardize(petals), layers.dense(16), layers.tanh, layers.dense(3))
    species = training.supervised(flowers, losses.softmax_cross_entropy, optax.adam(0.05))
    iris_result = training.fit(species, (petals, iris.target), key=key, epochs=60, progress=False)
    return plotting.decision_boundary(
        lambda x: training.predict(flowers, iris_result.state, x),
        petals,
        iris.target,
        class_names=iris.target_names,
        input_names=("petal length (cm)", "petal width (cm)"),
    )


def sweep(key, layers, losses, make_moons, jnp, optax, training):
    """Seven learning rates, five momenta and four seeds: 140 runs in one program."""
    points, kinds = make_moons(200, noise=0.2, random_state=0)

    def make_trainer(h):
        network = layers.serial(layers.dense(8), layers.tanh, layers.dense(1), layers.sigmoid)
        return training.supervised(network, losses.binary_cross_entropy, optax.sgd(h["rate"], h["momentum"]))

    grid = {"rate": jnp.logspace(-2, 1, 7), "momentum": jnp.array([0.0, 0.5, 0.8, 0.9, 0.95])}
    found = training.sweep(make_trainer, grid, (points, kinds[:, None]), key=key, seeds=4, epochs=30, progress=False)
    return found, grid


def curves(found, plotting):
    """All members, their median, and where the middle four fifths of them are."""
    return plotting.sweep_curves(found, "loss")


def curves_by(found, plotting):
    """The same with a colour and a median for each learning rate."""
    return plotting.sweep_curves(found, "loss", by="rate", scale="log")


def sweep_map(found, plotting):
    """And the loss at the end over both hyperparameters, the mean of the seeds of each point; the best has a ring."""
    return plotting.sweep_map(found, "loss", "rate", "momentum", scale="log")


def activations(layers, plotting):
    """With their derivatives by `jax.grad`. Layers have their names; a dict names functions of your own."""
    return plotting.activations(
        [layers.relu, layers.leaky_relu(0.1), layers.gelu, layers.silu, layers.tanh, layers.sigmoid]
    )


def attention(jax, jnp, key, layers, losses, np, optax, plotting, training):
    """A layer of attention learns to write words of eight letters backwards.

    Its weights are computed from its params, as its formula says: each place looks at the opposite one.
    """
    letters = jax.random.randint(key, (2000, 8), 0, 26)
    before = layers.serial(layers.embedding(26, 32), layers.learned_positions(8))
    reader = layers.serial(before, layers.attention(2), layers.dense(26))
    backwards = training.supervised(reader, losses.softmax_cross_entropy, optax.adam(0.01))
    read = training.fit(backwards, (letters, letters[:, ::-1]), key=key, epochs=10, progress=False).state

    word = "function"
    x = jnp.array([[ord(letter) - ord("a") for letter in word]])
    z, _ = before.apply(read.params["serial_0"], {}, x)
    maps = read.params["attention_0"]
    q, k = ((z @ maps[name]["kernel"] + maps[name]["bias"][None, None]).reshape(8, 2, 16) for name in ("query", "key"))
    looks = jax.nn.softmax(jnp.einsum("qhf,khf->hqk", q, k) / np.sqrt(16))
    return plotting.attention(looks, query_names=list(word))


def landscape(jax, jnp, key, losses, model, plotting, result, test):
    """On a plane through the params of the first run, in two random directions with the norms of its filters."""
    images, labels = jax.tree.map(jnp.asarray, test)

    def loss(params):
        outputs, _ = model.apply(params, result.state.model_state, images)
        return losses.softmax_cross_entropy(outputs, labels).mean()

    return plotting.landscape(loss, result.state.params, key=key, batch_size=25, scale="log")


def line(jax, key, loss, model, plotting, result, test):
    """From where the run began to where it ended."""
    start, _ = model.init(jax.random.split(key, 3)[0], test[0])
    return plotting.interpolation(loss, start, result.state.params)


# Each with its heading; without one it goes on with the section before.
SECTIONS = {
    digits: "A run",
    history: "The history",
    learning_rates: "Which learning rate?",
    confusion: "The confusion matrix",
    filters: "Filters",
    weights: "Weights over time",
    gradients: "Gradients over time",
    boundary: "The boundary between two classes",
    regions: "The regions of several classes",
    sweep: "A sweep",
    curves: "",
    curves_by: "",
    sweep_map: "",
    activations: "Activation functions",
    attention: "Attention",
    landscape: "The loss around a solution",
    line: "The loss between two params",
}


def code(section) -> str:
    """The body of a section as it stands on the page: what it returns is the figure, or of use further down."""
    source = inspect.getsource(section)
    said, *body = ast.parse(source).body[0].body
    lines = source.splitlines()
    kept, last = lines[said.end_lineno : body[-1].lineno - 1], lines[body[-1].lineno - 1 :]
    if has_picture(section):
        kept += [last[0].replace("return ", "figure = ", 1), *last[1:]]
    return textwrap.dedent("\n".join(kept)).strip()


def has_picture(section) -> bool:
    """Whether what a section returns is a figure: what ``plotting`` gave."""
    return re.search(r"^    return plotting\.", inspect.getsource(section), re.MULTILINE) is not None


def picture(section) -> pathlib.Path:
    """Where the picture of a section is."""
    return PICTURES / f"{section.__name__}.png"


def mark(section) -> str:
    """What a picture says of the code that drew it: a sum over that of its section and of all before it."""
    every = list(SECTIONS)
    before = [IMPORTS, *map(code, every[: every.index(section) + 1])]
    return hashlib.sha256("\n".join(before).encode()).hexdigest()[:16]


def page() -> str:
    """The page as text."""
    parts = [HEAD, f"```python\n{IMPORTS}\n```"]
    for section, heading in SECTIONS.items():
        first, *rest = inspect.getdoc(section).split("\n\n")
        parts += [f"## {heading}"] if heading else []
        parts += [" ".join([first, *rest]), f"```python\n{code(section)}\n```"]
        if has_picture(section):
            parts.append(f"![{first.rstrip('.')}](pictures/{picture(section).name})")
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def draw() -> None:
    """Run all of the code, and save each picture with the mark of what drew it."""
    space: dict[str, object] = {}
    exec(IMPORTS, space)
    for section in SECTIONS:
        exec(code(section), space)
        if has_picture(section):
            drawn = {"dpi": 80, "metadata": {"Source": mark(section), "Software": None}}
            space["figure"].savefig(picture(section), **drawn)


if __name__ == "__main__":
    draw()
    PAGE.write_text(page(), encoding="utf-8")
