"""Cost against size: width, depth, batch, members of a sweep and devices, by funcnn and by hand; docs/size_times.md.

    python benchmarks/sizes.py            writes the page, about five minutes
    python benchmarks/sizes.py --quick    the smallest and the largest of each, and prints the page

A network of dense blocks with residual connections is trained on random numbers with Adam. Each measurement is a fresh
process: one run for the first call, and more of them for about a second; the least time of a step counts.
"""

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from against_scan import ROOT, in_process, machine
from one_run import peak

PAGE = ROOT / "docs" / "size_times.md"
SECONDS = 1
BATCHES = 8
WRITTEN_OUT = 4  # blocks that a person writes one after the other; more are a loop
OURS, HAND = "funcnn", "by hand"


class Size(NamedTuple):
    """A network of ``depth`` blocks of ``width``, ``batch`` rows in a step, and how many are trained side by side."""

    width: int = 128
    depth: int = 4
    batch: int = 64
    members: int = 1
    devices: int = 1
    epochs: int = 4

    @property
    def steps(self) -> int:
        """Of a run."""
        return self.epochs * BATCHES


VARIED = {
    "width": (32, 128, 512, 1024),
    "depth": (2, 8, 32),
    "batch": (8, 64, 512),
    "members": (1, 16, 256),
    "devices": (1, 2, 4, 8),
}
# What is swept over many members is small; what is spread over devices is large.
OTHERS = {"members": Size(width=16, depth=2, batch=32, epochs=64), "devices": Size(width=512, batch=512)}


def size(what: str, value: int) -> Size:
    return OTHERS.get(what, Size())._replace(**{what: value})


# ---- in a process of its own -----------------------------------------------------------------------------------------

Run = Callable[[Any, Any, Any], Any]


def by_funcnn(of: Size) -> Run:
    import jax
    import optax

    from funcnn import layers, losses, training

    block = layers.residual(layers.dense(of.width), layers.relu)
    model = layers.serial(layers.repeat(block, of.depth), layers.dense(1))
    options = {"epochs": of.epochs, "batch_size": of.batch}

    def trainer(rate: Any) -> training.Trainer:
        return training.supervised(model, losses.squared_error, optax.adam(rate))

    alone, rates = trainer(1e-3), np.full(1, 1e-3, np.float32)
    run = jax.jit(lambda key, x, y: training.run(alone, (x, y), key=key, **options).state)

    def swept(key: Any, x: Any, y: Any) -> Any:
        return training.sweep(trainer, rates, (x, y), key=key, seeds=of.members, progress=False, **options).state

    return run if of.members == 1 else swept


def by_hand(of: Size) -> Run:
    import jax
    import jax.numpy as jnp
    import optax
    from by_hand import ByHand, squared, trained

    glorot = jax.nn.initializers.glorot_uniform()

    def init(key: Any) -> Any:
        last_key, *keys = jax.random.split(key, of.depth + 1)
        blocks = [(glorot(k, (of.width, of.width)), jnp.zeros(of.width)) for k in keys]
        if of.depth > WRITTEN_OUT:
            blocks = jax.tree.map(lambda *parts: jnp.stack(parts), *blocks)
        return blocks, (glorot(last_key, (of.width, 1)), jnp.zeros(1))

    def after(x: Any, block: Any) -> tuple[Any, None]:
        kernel, bias = block
        return x + jax.nn.relu(x @ kernel + bias), None

    def outputs(params: Any, x: Any) -> Any:
        blocks, (kernel, bias) = params
        if of.depth > WRITTEN_OUT:
            x, _ = jax.lax.scan(after, x, blocks)
        else:
            for block in blocks:
                x, _ = after(x, block)
        return x @ kernel + bias

    net = ByHand(init, outputs, squared, optax.adam(1e-3))

    def run(key: Any, x: Any, y: Any) -> Any:
        init_key, shuffle_key = jax.random.split(key)
        return trained(net, net.init(init_key), shuffle_key, x, y, of.epochs, of.batch)

    def swept(key: Any, x: Any, y: Any) -> Any:
        return jax.vmap(run, in_axes=(0, None, None))(jax.random.split(key, of.members), x, y)

    return jax.jit(run if of.members == 1 else swept)


def spread(devices: int) -> Any:
    """Where the data lie: on the one device, or their rows on all of them."""
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    if devices == 1:
        return jax.devices()[0]
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("batch"))


def one(side: str, of: Size) -> dict[str, float]:
    """Seconds of a step of all members and of the first call, and the most memory, in megabytes."""
    random = np.random.default_rng(0)
    rows = of.batch * BATCHES
    x = random.standard_normal((rows, of.width), np.float32)
    y = random.standard_normal((rows, 1), np.float32)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={of.devices}"  # before JAX begins
    import jax

    run, key = (by_funcnn if side == OURS else by_hand)(of), jax.random.key(0)
    begin = time.perf_counter()
    x, y = jax.device_put((x, y), spread(of.devices))
    jax.block_until_ready(run(key, x, y))
    first = time.perf_counter() - begin
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < SECONDS:
        begin = time.perf_counter()
        jax.block_until_ready(run(key, x, y))
        taken.append(time.perf_counter() - begin)
    return {"step": min(taken) / of.steps, "first": first, "peak": peak()}


# ---- the page --------------------------------------------------------------------------------------------------------


def head(what: str) -> str:
    return f"""\
| {what} | a step, µs | by hand, µs | ratio | first call, s | by hand, s | ratio | peak, MB | by hand, MB | ratio |
|---|---|---|---|---|---|---|---|---|---|"""


def row(value: int, ours: dict[str, float], theirs: dict[str, float]) -> str:
    cells = [str(value)]
    for key, scale, digits in (("step", 1e6, 1), ("first", 1, 2), ("peak", 1, 0)):
        cells += [f"{side[key] * scale:,.{digits}f}" for side in (ours, theirs)] + [f"{ours[key] / theirs[key]:.2f}"]
    return "| " + " | ".join(cells) + " |"


def measured(what: str, values: tuple[int, ...]) -> str:
    """The table of one size, printed as it comes."""
    lines = [head(what)]
    print(lines[0], flush=True)
    for value in values:
        command = ("--one", json.dumps(size(what, value)))
        lines.append(row(value, *(in_process(__file__, *command, side) for side in (OURS, HAND))))
        print(lines[-1], flush=True)
    return "\n".join(lines)


def page(tables: dict[str, str], load: float) -> str:
    parts = "\n\n".join(f"## {what.capitalize()}\n\n{table}" for what, table in tables.items())
    standard, small, large = Size(), OTHERS["members"], OTHERS["devices"]
    return f"""\
# Cost against size

How do time and memory grow with the network, the batch and the number of members of a sweep? A network of residual
dense blocks, as many as `depth` says, is trained with Adam on random numbers by `jit(run)`, and beside it by a `jit` of
a scan written by hand. Several members are a `sweep`, beside a `vmap` of the scan. Unless the table says otherwise the
width is {standard.width}, the depth {standard.depth}, the batch {standard.batch}; for members they are {small.width},
{small.depth} and {small.batch}, for devices {large.width}, {large.depth} and {large.batch}. The devices are parts of
one CPU, over which the rows of the data are spread while each has all params: the table says what it costs to have more
of them, not what it brings.

```sh
python benchmarks/sizes.py
```

wrote this page on {datetime.date.today()}: {machine()}; load of the machine before it began {load:.1f}. Each
measurement is a fresh process. Runs of {standard.steps} steps, {small.steps} for members, are repeated for about a
second; the fastest, divided by its steps, is a step, of all members together. A call of `sweep` traces a step anew and
checks the data, which takes the same time for many steps as for few, and is a part of these. By hand, {WRITTEN_OUT}
blocks are written one after the other, and more are a loop. The first call has tracing, compilation and one run; the
peak is of the whole process.

{parts}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest and the largest alone, and no page")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # what a fresh process is started with
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one[1], Size(*json.loads(options.one[0])))))
        return
    load = os.getloadavg()[0]
    chosen = {what: (values[0], values[-1]) if options.quick else values for what, values in VARIED.items()}
    text = page({what: measured(what, values) for what, values in chosen.items()}, load)
    if options.quick:
        sys.stdout.write(text)
        return
    PAGE.write_text(text, encoding="utf-8")
    print(f"written to {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
