"""``training.sweep`` side by side and one after the other, against a hand-written ``vmap``: docs/sweep_times.md.

    python benchmarks/sweeps.py            writes the page, some minutes
    python benchmarks/sweeps.py --quick    prints it

Steady state: everything is compiled and warm, the sides take turns, each call waits for its result; medians. The loop
that is one kernel needs a process of its own, in which XLA reads its flag.
"""

import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from against_scan import machine
from workloads import WORKLOADS, data

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "sweep_times.md"
FUSED = "map, small loops fused"
# Rates and seeds of each: W7 of 256 runs of XOR, and enough of the others to keep two cores busy.
MEMBERS = {"XOR": (64, 4), "digits": (16, 4), "wide digits": (8, 1), "CNN": (8, 1)}


def sides(name: str) -> dict[str, Callable[[], Any]]:
    import jax
    import jax.numpy as jnp
    import optax
    from by_funcnn import mlp, xor
    from by_hand import NETWORKS, trained

    from funcnn import losses, models, training

    x, y = data("W1" if name == "XOR" else "W3")
    work = WORKLOADS["W1"] if name == "XOR" else WORKLOADS["W3"]._replace(epochs=2)
    small = models.convnet([8, 16], 10)
    model = {"XOR": xor, "digits": mlp(128, 64, 10), "wide digits": mlp(512, 512, 10), "CNN": small}[name]
    if name == "CNN":
        x, y = x[:512].reshape(-1, 8, 8, 1), y[:512]
    loss = losses.squared_error if name == "XOR" else losses.softmax_cross_entropy

    def trainer(rate: Any) -> training.Trainer:
        optimizer = optax.sgd(rate) if name == "XOR" else optax.adam(rate)
        return training.supervised(model, loss, optimizer)

    (points, seeds), key = MEMBERS[name], jax.random.key(0)
    rates = jnp.linspace(0.1, 1.0, points) if name == "XOR" else jnp.logspace(-4, -2, points)

    def swept(how: str) -> Any:
        options = {"epochs": work.epochs, "batch_size": work.batch_size, "seeds": seeds, "progress": False}
        found = training.sweep(trainer, rates, (x, y), key=key, how=how, **options)
        return jax.block_until_ready(found.state.params)

    calls: dict[str, Callable[[], Any]] = {"vmap": lambda: swept("vmap"), "map": lambda: swept("map")}
    calls["auto"] = lambda: swept("auto")
    if name == "XOR":
        net, x, y = NETWORKS["W1"], jnp.asarray(x), jnp.asarray(y)

        def one(key: Any, rate: Any) -> Any:
            return trained(net._replace(optimizer=optax.sgd(rate)), net.init(key), key, x, y, work.epochs, None)

        whole, keys = jax.jit(jax.vmap(one)), jax.random.split(key, points * seeds)
        calls["by hand"] = lambda: jax.block_until_ready(whole(keys, jnp.repeat(rates, seeds)))
    return calls


def steady(name: str, repeats: int, chosen: tuple[str, ...] = ()) -> dict[str, list[float]]:
    calls = sides(name)
    calls = {side: calls[side] for side in chosen} if chosen else calls
    times: dict[str, list[float]] = {side: [] for side in calls}
    for round_number in range(repeats + 1):
        for side, call in calls.items():
            begin = time.perf_counter()
            call()
            if round_number:  # the first one compiles
                times[side].append(time.perf_counter() - begin)
    return times


def fused(repeats: int) -> list[float]:
    """In a process of its own: the setting comes before JAX starts."""
    command = [sys.executable, __file__, "--fused", str(repeats)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def rows(repeats: int) -> list[str]:
    lines = []
    for name, (points, seeds) in MEMBERS.items():
        times = steady(name, repeats)
        if name == "XOR":
            times[FUSED] = fused(repeats)
        middle = {side: statistics.median(taken) for side, taken in times.items()}
        base = middle.get("by hand", middle["vmap"])
        cells = [
            f"{1e3 * middle[side]:.0f} ms ({middle[side] / base:.2f})" if side in middle else ""
            for side in ("by hand", "vmap", "map", "auto", FUSED)
        ]
        lines.append(f"| {name}, {points * seeds} runs | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def page(lines: list[str], repeats: int, load: float) -> str:
    return (
        f"""# Times of sweeps

```sh
python benchmarks/sweeps.py
```

wrote this page on {datetime.date.today()}: {machine()}; load of the machine before it began {load:.1f}. Medians of
{repeats} whole sweeps, compiled and warm; in brackets the ratio to the first cell of the row. XOR trains 2000 epochs
with SGD, beside a hand-written `vmap` of a scan; the others two epochs with Adam in batches of 32: digits 64-128-64-10
and 64-512-512-10 on 1437 images, and a network of two convolutions of 8 and 16 features on 512.

| | by hand | `how="vmap"` | `how="map"` | `how="auto"` | `"map"` after `training.fuse_small_loops()` |
|---|---|---|---|---|---|
"""
        + "\n".join(lines)
        + "\n"
    )


def main() -> None:
    if "--fused" in sys.argv:
        from funcnn import training

        training.fuse_small_loops()
        print(json.dumps(steady("XOR", int(sys.argv[-1]), ("map",))["map"]))
        return
    load = os.getloadavg()[0]
    repeats = 3 if "--quick" in sys.argv else 11
    text = page(rows(repeats), repeats, load)
    if "--quick" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
