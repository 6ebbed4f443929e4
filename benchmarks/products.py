"""What a step of W6 consists of: its matrix products and its other parts, each alone, by JAX and by PyTorch.

    python benchmarks/products.py            some minutes; writes docs/product_times.md
    python benchmarks/products.py --quick    one round, printed

Each side is a process of its own, and the sides take turns.
"""

import datetime
import tempfile
from typing import Any, NamedTuple

import numpy as np
from against_scan import ROOT, in_process, machine
from one_run import RUN, TORCH
from performance import Job
from performance import measured as measured_job
from sided import called, command, median_seconds

PAGE = ROOT / "docs" / "product_times.md"
SIDES = ("jax", "torch")
STEPS = {"jax": RUN, "torch": TORCH}  # the sides of performance.py whose whole step is measured
SECONDS, LEAST = 0.3, 5  # for how long each part is repeated, and how often at least

BATCH, LENGTH, WIDTH, HEADS, BLOCKS, VOCABULARY = 32, 64, 128, 4, 4, 64
ROWS, PARAMS = BATCH * LENGTH, 809_728


class Product(NamedTuple):
    """``(batch, rows, inner) @ (batch, inner, columns)``, and how often a step has it going forward."""

    title: str
    batch: int
    rows: int
    inner: int
    columns: int
    count: int

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.batch * self.rows * self.inner * self.columns


PRODUCTS = (
    Product("query, key and value", 1, ROWS, WIDTH, 3 * WIDTH, BLOCKS),
    Product("scores", BATCH * HEADS, LENGTH, WIDTH // HEADS, LENGTH, BLOCKS),
    Product("weighted values", BATCH * HEADS, LENGTH, LENGTH, WIDTH // HEADS, BLOCKS),
    Product("output of attention", 1, ROWS, WIDTH, WIDTH, BLOCKS),
    Product("wide", 1, ROWS, WIDTH, 4 * WIDTH, BLOCKS),
    Product("narrow", 1, ROWS, 4 * WIDTH, WIDTH, BLOCKS),
    Product("scores of characters", 1, ROWS, WIDTH, VOCABULARY, 1),
)
PASSES = ("forward", "gradient of the first", "gradient of the second")

# The other parts, forward and their gradient together: title, shape of the input, how often a step has it.
PARTS = (
    ("causal softmax", (BATCH, HEADS, LENGTH, LENGTH), BLOCKS),
    ("GELU", (ROWS, 4 * WIDTH), BLOCKS),
    ("layer norm", (ROWS, WIDTH), 2 * BLOCKS + 1),
    ("cross entropy", (ROWS, VOCABULARY), 1),
    ("embedding", (VOCABULARY, WIDTH), 1),
    ("AdamW", (PARAMS,), 1),
)


def drawn(*shapes: tuple[int, ...]) -> list[Any]:
    random = np.random.default_rng(0)
    return [random.standard_normal(shape, np.float32) for shape in shapes]


def arrays(product: Product) -> list[Any]:
    """The two factors, and a gradient of their product."""
    b, m, k, n = product[1:5]
    return drawn((b, m, k), (b, k, n), (b, m, n)) if b > 1 else drawn((m, k), (k, n), (m, n))


def forms(swapped: Any) -> tuple[Any, ...]:
    """Forward, and the gradient of either factor; ``swapped`` transposes the last two axes."""
    return (
        lambda left, right, gradient: left @ right,
        lambda left, right, gradient: gradient @ swapped(right),
        lambda left, right, gradient: swapped(left) @ gradient,
    )


def tokens() -> Any:
    return np.random.default_rng(1).integers(0, VOCABULARY, ROWS)


# ---- in a process of its own -----------------------------------------------------------------------------------------


def by_jax() -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import optax

    chosen, mask = jnp.asarray(tokens()), jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    functions = {
        "causal softmax": lambda x: jax.nn.softmax(jnp.where(mask, x, -jnp.inf)),
        "GELU": jax.nn.gelu,
        "layer norm": jax.nn.standardize,
        "cross entropy": lambda x: optax.losses.softmax_cross_entropy_with_integer_labels(x, chosen),
        "embedding": lambda table: table[chosen],
    }
    optimizer = optax.adamw(1e-3)

    def updated(params: Any, gradient: Any, memory: Any) -> Any:
        updates, memory = optimizer.update(gradient, memory, params)
        return optax.apply_updates(params, updates), memory

    def timed(call: Any, *given: Any) -> float:
        given = jax.device_put(given)
        return median_seconds(lambda: jax.block_until_ready(call(*given)), SECONDS, LEAST)

    def in_place(x: Any) -> float:
        """As in a loop, and by PyTorch: what was updated takes no memory anew, which would cost more than the rest."""
        step, gradient = jax.jit(updated, donate_argnums=(0, 2)), jax.device_put(x)
        now = jax.device_put(x), optimizer.init(jax.device_put(x))

        def once() -> None:
            nonlocal now
            now = jax.block_until_ready(step(now[0], gradient, now[1]))

        return median_seconds(once, SECONDS, LEAST)

    def both_ways(name: str, shape: tuple[int, ...]) -> float:
        [x] = drawn(shape)
        if name == "AdamW":
            return in_place(x)

        def pulled(x: Any, gradient: Any) -> Any:
            y, back = jax.vjp(functions[name], x)
            return y, back(gradient)

        return timed(jax.jit(pulled), x, *drawn(jax.eval_shape(functions[name], x).shape))

    transposed = forms(lambda x: x.swapaxes(-1, -2))
    return {
        "products": [[timed(jax.jit(form), *arrays(product)) for form in transposed] for product in PRODUCTS],
        "parts": [both_ways(name, shape) for name, shape, _ in PARTS],
    }


def by_torch() -> dict[str, Any]:
    import torch
    from torch.nn import functional as F

    chosen, mask = torch.from_numpy(tokens()), torch.ones(LENGTH, LENGTH).triu(1).bool()
    functions = {
        "causal softmax": lambda x: x.masked_fill(mask, -torch.inf).softmax(-1),
        "GELU": lambda x: F.gelu(x, approximate="tanh"),
        "layer norm": lambda x: F.layer_norm(x, x.shape[-1:]),
        "cross entropy": lambda x: F.cross_entropy(x, chosen, reduction="none"),
        "embedding": lambda table: F.embedding(chosen, table),
    }

    def both_ways(name: str, shape: tuple[int, ...]) -> float:
        x = torch.from_numpy(drawn(shape)[0]).requires_grad_()
        if name == "AdamW":
            x.grad = x.detach().clone()
            return median_seconds(torch.optim.AdamW([x], lr=1e-3, fused=True).step, SECONDS, LEAST)
        gradient = torch.from_numpy(drawn(tuple(functions[name](x).shape))[0])
        return median_seconds(lambda: torch.autograd.grad(functions[name](x), x, gradient), SECONDS, LEAST)

    transposed = forms(lambda x: x.transpose(-1, -2))
    products = [[torch.from_numpy(array) for array in arrays(product)] for product in PRODUCTS]
    return {
        "products": [
            [median_seconds(lambda f=f, g=given: f(*g), SECONDS, LEAST) for f in transposed] for given in products
        ],
        "parts": [both_ways(name, shape) for name, shape, _ in PARTS],
    }


# ---- the page --------------------------------------------------------------------------------------------------------

Found = dict[str, dict[str, Any]]


def measured(rounds: int) -> Found:
    """Of each side the medians over the rounds: ``products``, ``parts`` and the whole ``step``."""
    found: dict[str, dict[str, list[Any]]] = {side: {"products": [], "parts": [], "step": []} for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for side, of in found.items():
                for kind, seconds in in_process(__file__, "--side", side).items():
                    of[kind].append(seconds)
                record = measured_job(Job("train", STEPS[side], "W6", number), folder, 0)
                of["step"].append(record["steady"] / record["steps"])
    return {side: {kind: np.median(all_, axis=0).tolist() for kind, all_ in of.items()} for side, of in found.items()}


def cells(ours: float, theirs: float) -> str:
    return f"{1e3 * ours:.3f} | {1e3 * theirs:.3f} | {ours / theirs:.2f} |"


def product_rows(found: Found) -> list[str]:
    made: list[str] = []
    for i, product in enumerate(PRODUCTS):
        for j, name in enumerate(PASSES):
            taken = cells(*(found[side]["products"][i][j] for side in SIDES))
            made.append(f"| {product.title}, {name} | {product.count} | {product.operations / 1e6:.1f} | {taken}")
    return made


def sums(found: Found) -> list[str]:
    """The parts of a step: all its products, the others, what is left of the whole."""
    products = [sum(p.count * sum(s) for p, s in zip(PRODUCTS, found[of]["products"], strict=True)) for of in SIDES]
    rows = [f"| matrix products | {cells(*products)}"]
    total = list(products)
    for i, (name, _, count) in enumerate(PARTS):
        seconds = [count * found[side]["parts"][i] for side in SIDES]
        total = [a + b for a, b in zip(total, seconds, strict=True)]
        often = "once" if count == 1 else f"{count} times"
        rows.append(f"| {name}, {often} | {cells(*seconds)}")
    rows.append(f"| together | {cells(*total)}")
    rows.append(f"| the whole step | {cells(*(found[side]['step'] for side in SIDES))}")
    return rows


def speeds(found: Found) -> list[float]:
    """Billions of operations a second in the products of a step."""
    operations = 3 * sum(product.operations * product.count for product in PRODUCTS)
    seconds = [sum(p.count * sum(s) for p, s in zip(PRODUCTS, found[of]["products"], strict=True)) for of in SIDES]
    return [operations / 1e9 / each for each in seconds]


def page(found: Found, rounds: int, load: float) -> str:
    ours, theirs = speeds(found)
    return f"""\
# Where a step of a transformer goes

A step of W6 ([performance.md](performance.md)), taken apart: its matrix products and its other parts, each alone, with
all arrays in memory, by `jax.jit` and by PyTorch, in float32; beside the whole step of `jit(run)` and of PyTorch.

```sh
.bench/bin/{called("products", rounds)}
```

wrote this page on {datetime.date.today()}: {machine(("torch",))}; load of the machine before it began {load:.1f};
medians of {rounds} rounds, each side in a process of its own.

| a step, forward and gradients | JAX, ms | PyTorch, ms | JAX / PyTorch |
|---|---|---|---|
{chr(10).join(sums(found))}

In the whole step parts are fused with others, and attention is an operation of its own in PyTorch, so that the sum of
the parts is not the whole. The products are {ours:.0f} billion operations a second by JAX and {theirs:.0f} by PyTorch.

## Each product

Once; a step has it so many times.

| product | in a step | million operations | JAX, ms | PyTorch, ms | JAX / PyTorch |
|---|---|---|---|---|---|
{chr(10).join(product_rows(found))}
"""


def one(side: str) -> dict[str, Any]:
    return {"jax": by_jax, "torch": by_torch}[side]()


if __name__ == "__main__":
    command(__doc__.splitlines()[0], SIDES, one, measured, page, PAGE)
