"""Convolutions and pooling, case by case, beside the plain operations of JAX and of PyTorch, and the bound of patches.

    python benchmarks/convolutions.py            some minutes; writes docs/convolution_times.md
    python benchmarks/convolutions.py --quick    one round, printed

Value and gradients, in a ``lax.scan`` as in training; each side is a process of its own, and the sides take turns.
"""

import datetime
import math
import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from against_scan import ROOT, in_process, machine
from sided import called, command, median_seconds

PAGE = ROOT / "docs" / "convolution_times.md"
OURS, PLAIN, TORCH = "funcnn", "plain", "torch"
SIDES = (OURS, PLAIN, TORCH)
STEPS = 4
SECONDS, LEAST = 0.5, 3  # for how long a case is repeated, and how often at least


class Case(NamedTuple):
    """A kernel or window of equal sides over a batch of images, ``(batch, size, size, inputs)`` in two dimensions."""

    kind: str  # conv, depthwise, transposed, max or average
    size: int
    inputs: int
    features: int
    window: int = 3
    strides: int = 1
    dilation: int = 1
    groups: int = 1
    batch: int = 32
    dimensions: int = 2

    @property
    def title(self) -> str:
        """What the table says."""
        extras = [f"{self.along(self.size)}x{self.inputs}"]
        if self.kind in ("conv", "transposed"):
            extras[0] += f" to {self.features}"
        given = (("stride", self.strides, 1), ("dilation", self.dilation, 1), ("groups", self.groups, 1))
        extras += [f"{name} {value}" for name, value, usual in given if value != usual]
        extras += [f"batch {self.batch}"] if self.batch != 32 else []
        return f"{TITLES[self.kind]} {self.along(self.window)}: {', '.join(extras)}"

    def along(self, size: int) -> str:
        """Of each spatial axis the same."""
        return "x".join([str(size)] * self.dimensions)

    @property
    def pools(self) -> bool:
        """Whether there is no kernel."""
        return self.kind in ("max", "average")


TITLES = {
    "conv": "convolution",
    "depthwise": "depthwise",
    "transposed": "transposed",
    "max": "maximum",
    "average": "average",
}
CASES = (
    Case("conv", 28, 1, 32),
    Case("conv", 14, 32, 64),
    Case("conv", 28, 32, 64, strides=2),
    Case("conv", 14, 32, 64, dilation=2),
    Case("conv", 14, 64, 64, groups=8),
    Case("conv", 32, 3, 64, window=7, strides=2),
    Case("conv", 16, 1, 8, window=15),
    Case("conv", 14, 64, 64, window=1),
    Case("conv", 256, 32, 64, window=5, dimensions=1),
    Case("conv", 256, 32, 64, dilation=4, dimensions=1),
    Case("conv", 1024, 1, 16, window=256, strides=8, dimensions=1),
    Case("conv", 12, 8, 16, dimensions=3),
    Case("depthwise", 28, 32, 32),
    Case("depthwise", 28, 32, 32, strides=2),
    Case("depthwise", 256, 32, 32, window=5, dimensions=1),
    Case("transposed", 14, 32, 32, strides=2),
    Case("transposed", 14, 32, 32, dilation=2),
    Case("transposed", 14, 32, 32, strides=2, groups=4),
    Case("max", 28, 32, 32, window=2, strides=2),
    Case("max", 28, 32, 32, strides=2),
    Case("max", 28, 32, 32),
    Case("max", 12, 16, 16, window=2, strides=2, dimensions=3),
    Case("average", 28, 32, 32, window=2, strides=2),
    Case("average", 28, 32, 32),
)
# Patches of 14 to 221 MiB: those of 3x3x64 float32 under 28x28 windows are 1.7 MiB an image.
BATCHES = (8, 16, 32, 64, 128)
WHOLE, CHUNKS = "whole", "chunks"


def arrays(case: Case) -> tuple[Any, Any]:
    """Images, and a kernel where there is one, in the layout of JAX."""
    random = np.random.default_rng(0)
    x = random.standard_normal((case.batch, *[case.size] * case.dimensions, case.inputs), np.float32)
    inputs = 1 if case.kind == "depthwise" else case.inputs // case.groups
    shape = (*[case.window] * case.dimensions, inputs, case.features)
    return x, np.zeros(0, np.float32) if case.pools else random.standard_normal(shape, np.float32)


# ---- in a process of its own -----------------------------------------------------------------------------------------


def by_funcnn(case: Case) -> Callable[[Any, Any], Any]:
    from funcnn import layers

    options = {"strides": case.strides} | ({} if case.pools else {"dilation": case.dilation, "bias": False})
    if case.pools:
        layer = {"max": layers.max_pool, "average": layers.avg_pool}[case.kind](case.window, **options, padding="SAME")
        return lambda x, kernel: layer.apply({}, {}, x)[0]
    if case.kind == "depthwise":
        layer = layers.depthwise_conv(case.window, **options)
    else:
        make = {"conv": layers.conv, "transposed": layers.conv_transpose}[case.kind]
        layer = make(case.features, case.window, groups=case.groups, **options)
    return lambda x, kernel: layer.apply({"kernel": kernel}, {}, x)[0]


def by_lax(case: Case) -> Callable[[Any, Any], Any]:
    from jax import lax

    each = [1] * case.dimensions
    window, strides = (1, *[case.window] * case.dimensions, 1), (1, *[case.strides] * case.dimensions, 1)
    if case.kind == "max":
        return lambda x, kernel: lax.reduce_window(x, -np.inf, lax.max, window, strides, "SAME")
    if case.kind == "average":
        return lambda x, kernel: lax.reduce_window(x, 0.0, lax.add, window, strides, "SAME") / math.prod(window)
    axes = "DHW"[3 - case.dimensions :]
    options = {
        "rhs_dilation": [case.dilation] * case.dimensions,
        "feature_group_count": case.inputs if case.kind == "depthwise" else case.groups,
        "dimension_numbers": (f"N{axes}C", f"{axes}IO", f"N{axes}C"),
    }
    if case.kind == "transposed":  # as lax.conv_transpose, which has no groups
        extent = case.dilation * (case.window - 1) + 1
        low = extent - 1 - max(extent - case.strides, 0) // 2
        pads = [(low, extent + case.strides - 2 - low)] * case.dimensions
        spread = {"lhs_dilation": strides[1:-1], **options}
        return lambda x, kernel: lax.conv_general_dilated(x, lax.rev(kernel, range(len(each))), each, pads, **spread)
    return lambda x, kernel: lax.conv_general_dilated(x, kernel, strides[1:-1], "SAME", **options)


def by_torch(case: Case) -> tuple[Callable[[Any, Any], Any], Any, Any]:
    """The operation, and its arrays with the channels first."""
    import torch
    from torch.nn import functional as F

    x, kernel = (torch.from_numpy(array) for array in arrays(case))
    x, spatial = x.movedim(-1, 1).contiguous(), range(case.dimensions)
    pad, form = case.dilation * (case.window - 1) // 2, f"{case.dimensions}d"
    if case.pools:
        pool = {"max": getattr(F, f"max_pool{form}"), "average": getattr(F, f"avg_pool{form}")}[case.kind]
        return lambda x, kernel: pool(x, case.window, case.strides, pad), x, kernel
    groups = case.inputs if case.kind == "depthwise" else case.groups
    options = {"stride": case.strides, "padding": pad, "dilation": case.dilation, "groups": groups}
    if case.kind == "transposed":
        # (window, inputs of a group, groups times features) as (inputs, features of a group, window)
        kernel = kernel.reshape(*kernel.shape[:-1], groups, -1).movedim(-2, 0).movedim((-2, -1), (1, 2)).flatten(0, 1)
        transpose, options["output_padding"] = getattr(F, f"conv_transpose{form}"), case.strides - 1
        return lambda x, kernel: transpose(x, kernel, **options), x, kernel.contiguous()
    conv = getattr(F, f"conv{form}")
    return lambda x, kernel: conv(x, kernel, **options), x, kernel.permute(-1, -2, *spatial).contiguous()


def in_scan(operation: Callable[[Any, Any], Any], case: Case) -> dict[str, float]:
    """Seconds of value and gradients in a step of a scan that changes images and kernel; megabytes that it needs."""
    import jax

    def step(given: Any, _: None) -> tuple[Any, Any]:
        value, slopes = jax.value_and_grad(lambda given: (operation(*given) ** 2).mean())(given)
        return jax.tree.map(lambda a, slope: a - 1e-3 * slope, given, slopes), value

    given = jax.device_put(arrays(case))
    program = jax.jit(lambda given: jax.lax.scan(step, given, length=STEPS)).lower(given).compile()
    memory = program.memory_analysis()
    seconds = median_seconds(lambda: jax.block_until_ready(program(given)), SECONDS, LEAST) / STEPS
    return {"seconds": seconds, "megabytes": memory.temp_size_in_bytes / 1e6}


def eagerly(case: Case) -> dict[str, float]:
    import torch

    operation, x, kernel = by_torch(case)
    given = [a.requires_grad_() for a in (x, kernel) if a.numel()]

    def call() -> None:
        slopes = torch.autograd.grad(operation(x, kernel).square().mean(), given)
        with torch.no_grad():
            for a, slope in zip(given, slopes, strict=True):
                a.sub_(slope, alpha=1e-3)

    return {"seconds": median_seconds(call, SECONDS, LEAST)}


def one(side: str) -> list[dict[str, float]]:
    """What one process measures: all cases, or the bound over batches."""
    if side in (WHOLE, CHUNKS):
        from funcnn import primitives

        primitives._WHOLE_BYTES = sys.maxsize if side == WHOLE else 0
        cases = [Case("conv", 28, 64, 64, batch=batch) for batch in BATCHES]
        return [in_scan(by_funcnn(case), case) for case in cases]
    if side == TORCH:
        return [eagerly(case) for case in CASES]
    return [in_scan({OURS: by_funcnn, PLAIN: by_lax}[side](case), case) for case in CASES]


# ---- the page --------------------------------------------------------------------------------------------------------

Found = dict[str, list[dict[str, float]]]


def measured(rounds: int) -> Found:
    """Of each side and case the medians over the rounds."""
    found: dict[str, list[Any]] = {side: [] for side in (*SIDES, WHOLE, CHUNKS)}
    for _ in range(rounds):
        for side, of in found.items():
            of.append(in_process(__file__, "--side", side))
    return {
        side: [{key: statistics.median(one[key] for one in case) for key in case[0]} for case in zip(*of, strict=True)]
        for side, of in found.items()
    }


def case_rows(found: Found) -> list[str]:
    made: list[str] = []
    for case, ours, plain, torch in zip(CASES, *(found[side] for side in SIDES), strict=True):
        times = [1e3 * each["seconds"] for each in (ours, plain, torch)]
        shown = " | ".join(f"{milliseconds:.2f}" for milliseconds in times)
        ratios = f"{times[0] / times[1]:.2f} | {times[0] / times[2]:.2f}"
        memory = f"{ours['megabytes']:.1f} | {plain['megabytes']:.1f}"
        made.append(f"| {case.title} | {shown} | {ratios} | {memory} |")
    return made


def patch_megabytes(batch: int) -> float:
    return batch * 28 * 28 * 9 * 64 * 4 / 1e6


def bound_rows(found: Found) -> list[str]:
    made: list[str] = []
    for batch, whole, chunks in zip(BATCHES, found[WHOLE], found[CHUNKS], strict=True):
        times = [1e3 * each["seconds"] for each in (whole, chunks)]
        memory = f"{whole['megabytes']:.0f} | {chunks['megabytes']:.0f}"
        made.append(
            f"| {batch} | {patch_megabytes(batch):.0f} | {times[0]:.1f} | {times[1]:.1f} | {times[1] / times[0]:.2f} "
            f"| {memory} |"
        )
    return made


def page(found: Found, rounds: int, load: float) -> str:
    from funcnn import primitives

    return f"""\
# Times of convolutions and pooling

On a CPU a convolution of funcnn is a matrix product over patches, a grouped one a batch of them, a depthwise one a sum
of products by element, and pooling of windows that do not overlap is a reshape and a maximum. Is that faster than the
operations of JAX, whose gradients XLA compiles to plain loops inside a `scan` on a CPU, and there alone? The mean of
the squared outputs and its gradients by images and kernel, which are changed at every step, batches of 32 where nothing
is said, float32, padding `"SAME"`.

```sh
.bench/bin/{called("convolutions", rounds)}
```

wrote this page on {datetime.date.today()}: {machine(("torch",))}; load of the machine before it began {load:.1f};
medians of {rounds} rounds, each side in a process of its own. Milliseconds a step: of funcnn and of
`lax.conv_general_dilated` and `lax.reduce_window` in a scan of {STEPS} steps, of PyTorch eager; megabytes that the
compiled scan needs beside what it is given.

| | funcnn, ms | lax, ms | PyTorch, ms | funcnn / lax | funcnn / PyTorch | funcnn, MB | lax, MB |
|---|---|---|---|---|---|---|---|
{chr(10).join(case_rows(found))}

## Patches whole or in chunks

Patches of up to {primitives._WHOLE_BYTES / 2**20:.0f} MiB are made at once; more of them in chunks of about
{primitives._CHUNK_BYTES / 2**20:.0f} MiB, made anew for the gradient, so that memory stays bounded. What either
takes, for a convolution 3x3 of 28x28x64 to 64:

| batch | patches, MB | whole, ms | chunks, ms | chunks / whole | whole, MB | chunks, MB |
|---|---|---|---|---|---|---|
{chr(10).join(bound_rows(found))}
"""


if __name__ == "__main__":
    command(__doc__.splitlines()[0], (*SIDES, WHOLE, CHUNKS), one, measured, page, PAGE)
