"""Up to which size a training loop is faster as one kernel, its products written out: docs/tiny_loop_times.md.

    python benchmarks/tiny_loops.py            writes the page, some minutes
    python benchmarks/tiny_loops.py --quick    one round, and prints it

Whole runs of small networks, all rows at once, compiled and warm; each side is a process of its own, for XLA reads the
flag when it starts.
"""

import datetime
import itertools
import sys
from typing import NamedTuple

import numpy as np
from against_scan import ROOT, machine
from sided import called, command, median_seconds, medians

from funcnn import small_products

PAGE = ROOT / "docs" / "tiny_loop_times.md"
PLAIN, FUSED = "plain", "fused"
HAND, HAND_FUSED = "by hand", "by hand, fused"  # with the flag of XLA, and with products as they are
SIDES = (PLAIN, FUSED, HAND, HAND_FUSED)
STEPS = 500
SECONDS, LEAST = 0.5, 3  # for how long a run is repeated, and how often at least


class Case(NamedTuple):
    """A network, by the features of its layers, and the rows that it learns from."""

    features: tuple[int, ...]
    rows: int

    @property
    def largest(self) -> int:
        """Multiplications of the largest product, forward or backward: they have the same sizes."""
        return max(self.rows * i * o for i, o in itertools.pairwise(self.features))


CASES = (
    Case((2, 4, 4, 1), 4),
    Case((2, 16, 8, 1), 100),
    Case((2, 16, 16, 1), 100),
    Case((2, 32, 16, 1), 64),
    Case((2, 32, 32, 1), 64),
    Case((2, 32, 32, 1), 128),
    Case((2, 64, 32, 1), 128),
    Case((2, 64, 64, 1), 128),
)


def microseconds(case: Case, by_hand: bool) -> float:
    """Of one step, in a whole run by Adam."""
    import jax
    import optax
    from by_funcnn import mlp
    from by_hand import ByHand, binary, dense, dense_init, trained

    from funcnn import losses, training

    random = np.random.default_rng(0)
    x = random.standard_normal((case.rows, case.features[0]), np.float32)
    x, y = data = jax.device_put((x, (x[:, :1] > 0).astype(np.float32)))
    optimizer = optax.adam(1e-2)
    if by_hand:
        net = ByHand(dense_init(*case.features), dense, binary, optimizer)
        run = jax.jit(lambda key: trained(net, net.init(key), key, x, y, STEPS, None))
    else:
        trainer = training.supervised(mlp(*case.features[1:]), losses.sigmoid_cross_entropy, optimizer)
        run = jax.jit(lambda key: training.run(trainer, data, key=key, epochs=STEPS, batch_size=None).state)
    key = jax.random.key(0)
    return 1e6 * median_seconds(lambda: jax.block_until_ready(run(key)), SECONDS, LEAST) / STEPS


def one(side: str) -> list[float]:
    """Each case, on one side: as it is, or as one kernel, however large its products are."""
    from funcnn import training

    if side in (FUSED, HAND_FUSED):
        training.fuse_small_loops()
        small_products.MOST = sys.maxsize
    return [microseconds(case, side in (HAND, HAND_FUSED)) for case in CASES]


def measured(rounds: int) -> dict[str, list[float]]:
    return medians(__file__, SIDES, rounds)


def rows(found: dict[str, list[float]]) -> list[str]:
    """A row for each case; whether a program that began with ``fuse_small_loops()`` takes the one kernel."""
    shown: list[str] = []
    for case, plain, fused, *hand in zip(CASES, *(found[side] for side in SIDES), strict=True):
        taken = "yes" if case.largest <= small_products.MOST else "no"
        name = f"{'-'.join(map(str, case.features))} on {case.rows} rows"
        ours = f"{plain:.1f} | {fused:.1f} | {fused / plain:.2f} | {taken}"
        shown.append(f"| {name} | {case.largest:,} | {ours} | {' | '.join(f'{each:.1f}' for each in hand)} |")
    return shown


def page(found: dict[str, list[float]], rounds: int, load: float) -> str:
    return f"""\
# Times of tiny loops

After `training.fuse_small_loops()` the training loop of a tiny network is one kernel on a CPU, in which no library is
called: its matrix products are written out as multiplications and sums. For large products a library of matrix
products is faster. From which size on? Whole runs of {STEPS} steps of Adam, all rows at once, float32, microseconds a
step; the largest product in multiplications. Beside it the same as a scan written by hand, as it is and with the
setting of XLA that `fuse_small_loops` makes, but with products that are calls of the library.

```sh
{called("tiny_loops", rounds)}
```

wrote this page on {datetime.date.today()}: {machine()}; load of the machine before it began {load:.1f}; medians of
{rounds} rounds, each side in a process of its own.

| network | largest product | as it is, µs | one kernel, µs | ratio | done | by hand, µs | with the setting, µs |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows(found))}

"Done" is what `fuse_small_loops()` does: products of up to {small_products.MOST:,} multiplications are written out, and
a loop whose products all are becomes one kernel.
"""


if __name__ == "__main__":
    command(__doc__.splitlines()[0], SIDES, one, measured, page, PAGE)
