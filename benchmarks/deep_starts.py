"""How long XLA compiles what draws the weights of a model, apart and together: docs/deep_start_times.md.

    python benchmarks/deep_starts.py            writes the page, some minutes
    python benchmarks/deep_starts.py --quick    one round, and prints it

The parameters of each model as one compiled program: traced, lowered and compiled. Each side is a process of its own.
"""

import datetime
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from against_scan import ROOT, machine
from sided import called, command, medians

from funcnn import draws

PAGE = ROOT / "docs" / "deep_start_times.md"
APART, TOGETHER = "apart", "together"
SIDES = (APART, TOGETHER)
FEWEST = draws._FEWEST  # pyright: ignore[reportPrivateUsage]


class Case(NamedTuple):
    """A model, by the name of its factory and what that is called with, and the shape and dtype of its input."""

    factory: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    shape: tuple[int, ...]
    dtype: str = "float32"

    def shown(self) -> str:
        """The call, lists of more than six numbers by their length."""
        texts = [f"[{a[0]}] * {len(a)}" if isinstance(a, list) and len(a) > 6 else repr(a) for a in self.arguments]
        texts += [f"{name}={value!r}" for name, value in self.options.items()]
        return f"models.{self.factory}({', '.join(texts)})"


CASES = (
    Case("mlp", ([4], 1), {}, (4, 2)),
    Case("mlp", ([128, 64], 10), {}, (32, 64)),
    Case("mlp", ([64] * 10, 10), {}, (32, 64)),
    Case("mlp", ([64] * 40, 10), {}, (32, 64)),
    Case("transformer", (64, 128), {"heads": 4, "blocks": 4, "length": 64}, (32, 64), "int32"),
    Case("resnet", (18, 10), {"small": True}, (8, 32, 32, 3)),
    Case("resnet", (50, 10), {"small": True}, (8, 32, 32, 3)),
)


def compiled(case: Case, side: str) -> tuple[float, Any]:
    """Seconds until the parameters can be made, and the program that makes them."""
    import jax

    from funcnn import models

    model = getattr(models, case.factory)(*case.arguments, **case.options)
    x = jax.ShapeDtypeStruct(case.shape, case.dtype)
    init: Callable[[Any], Any] = lambda key: model.init(key, x)  # noqa: E731  # of each call its own
    draws._FEWEST = 1  # pyright: ignore[reportPrivateUsage]  # both sides, also of a small model
    program = jax.jit(draws.together(init) if side == TOGETHER else init)
    begin = time.perf_counter()
    made = program.lower(jax.random.key(0)).compile()
    return time.perf_counter() - begin, made


def one(side: str) -> list[float]:
    """Each case, on one side, after a first one that is not counted."""
    compiled(CASES[0], side)
    return [compiled(case, side)[0] for case in CASES]


def measured(rounds: int) -> dict[str, list[float]]:
    return medians(__file__, SIDES, rounds)


def rows(found: dict[str, list[float]]) -> list[str]:
    return [
        f"| `{case.shown()}` | {apart:.2f} | {together:.2f} | {together / apart:.2f} |"
        for case, apart, together in zip(CASES, found[APART], found[TOGETHER], strict=True)
    ]


def page(found: dict[str, list[float]], rounds: int, load: float) -> str:
    return f"""\
# Times of deep starts

The weights of a model are drawn layer by layer, each from a key of its own, which is folded from that of the layer
above. XLA on a CPU compiles a loop of its own for each key and each array, so that a deep model is slow to begin with.
`training.run` and all that drives it draw them together: all keys of one level of the model in one operation, and then
all numbers. The weights are the same to the bit. (Fewer than {FEWEST} operations that draw are left apart: there is
nothing to gain.)

Seconds to trace, lower and compile the parameters of a model as a program of their own, drawn apart
(`jax.jit(model.init)`) and together:

```sh
{called("deep_starts", rounds)}
```

wrote this page on {datetime.date.today()}: {machine()}; load of the machine before it began {load:.1f}; medians of
{rounds} rounds, each side in a process of its own.

| model | apart, s | together, s | ratio |
|---|---|---|---|
{chr(10).join(rows(found))}
"""


if __name__ == "__main__":
    command(__doc__.splitlines()[0], SIDES, one, measured, page, PAGE)
