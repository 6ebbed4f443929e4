"""What a fresh process of accelerators.py does: one side trains one workload, and prints what that took as JSON.

    python benchmarks/one_large.py train SIDE WORKLOAD SETTINGS
    python benchmarks/one_large.py operations WORKLOAD SETTINGS

SETTINGS is JSON: ``seed``; ``small`` for tiny sizes; ``operations`` of a step and ``peak`` of the device, in operations
a second, for the share of the peak; ``trace``, a directory for a profile of the JAX sides; ``seconds`` of steady state.
"""

import contextlib
import importlib
import json
import pathlib
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from clock import seconds_of
from one_run import result
from workloads import WORKLOADS, data

# ---- what is trained -------------------------------------------------------------------------------------------------


class Large(NamedTuple):
    """A network and how its data are gone through; the smaller last batch of an epoch is left out."""

    title: str
    shape: tuple[int, ...]  # of one example
    classes: int  # or tokens
    width: int
    examples: int
    batch_size: int
    epochs: int  # of a measured call
    heads: int = 1
    blocks: tuple[int, ...] = (1,)  # of each stage
    rates: int = 1  # learning rates, each with so many seeds
    seeds: int = 1
    compute: str = "bfloat16"

    @property
    def steps(self) -> int:
        """Steps of a measured call."""
        return self.epochs * (self.examples // self.batch_size)

    @property
    def members(self) -> int:
        """Networks that are trained side by side."""
        return self.rates * self.seeds


LARGE = {
    "GPT": Large(
        "GPT-2 of 124 million parameters, context 1024, AdamW, batches of 8, bfloat16",
        *((1024,), 50257, 768, 80, 8, 2),
        heads=12,
        blocks=(12,),
    ),
    "ResNet-50": Large(
        "ResNet-50, 224x224x3, 1000 classes, SGD with momentum, batches of 64, bfloat16",
        *((224, 224, 3), 1000, 64, 640, 64, 2),
        blocks=(3, 4, 6, 3),
    ),
    "MLPs": Large(
        "4,096 MLPs 64-32-10 side by side, 64 learning rates each with 64 seeds, Adam, 1437 rows in batches of 128",
        *((64,), 10, 32, 1437, 128, 50),
        rates=64,
        seeds=64,
        compute="float32",
    ),
}

SMALL = {
    "GPT": LARGE["GPT"]._replace(
        shape=(16,), classes=64, width=32, heads=2, blocks=(2,), examples=24, batch_size=4, epochs=2
    ),
    "ResNet-50": LARGE["ResNet-50"]._replace(
        shape=(32, 32, 3), classes=10, width=4, examples=32, batch_size=16, epochs=2
    ),
    "MLPs": LARGE["MLPs"]._replace(rates=4, seeds=2, examples=300, epochs=4),
}

NAMES = (*LARGE, *WORKLOADS)
FEW = 64  # rows of the other seven, where all is small


def rates(size: Large) -> Any:
    """The learning rates of the MLPs."""
    return np.logspace(-4, -2, size.rates, dtype=np.float32)


def large_data(name: str, size: Large) -> tuple[Any, Any]:
    """Inputs and targets with something to learn: frequent tokens, or a color or direction for each class."""
    random = np.random.default_rng(0)
    if name == "GPT":
        drawn = size.classes * random.random((size.examples, size.shape[0] + 1)) ** 3
        tokens = drawn.astype(np.int32)
        return tokens[:, :-1], tokens[:, 1:]
    x = random.random((size.examples, *size.shape), np.float32)
    if name == "MLPs":
        return x, (x @ random.standard_normal((*size.shape, size.classes))).argmax(1).astype(np.int32)
    y = random.integers(0, size.classes, size.examples).astype(np.int32)
    x += random.random((size.classes, 1, 1, size.shape[-1]), np.float32)[y]
    return x, y


def seven(name: str, small: bool) -> tuple[Any, Any, Any]:
    """One of the other seven workloads: how it is gone through, and its data."""
    work, (x, y) = WORKLOADS[name], data(name)
    if not small:
        return work, x, y
    return work._replace(epochs=min(work.epochs, 2), members=min(work.members, 8)), x[:FEW], y[:FEW]


# ---- by whom ---------------------------------------------------------------------------------------------------------


class Side(NamedTuple):
    """Who trains: the modules of this directory for the larger workloads and for the other seven."""

    title: str
    large: str
    others: str
    names: tuple[str, ...] = NAMES
    compiled: bool = False


FUNCNN, HAND, TORCH, COMPILED = "funcnn", "hand", "torch", "compiled"
SIDES = {
    FUNCNN: Side("funcnn", "large_by_funcnn", "by_funcnn"),
    HAND: Side("JAX by hand", "large_by_hand", "by_hand"),
    TORCH: Side("PyTorch, eager", "large_by_torch", "by_torch"),
    COMPILED: Side("PyTorch, `torch.compile`", "large_by_torch", "by_torch", compiled=True),
}
OF_JAX = (FUNCNN, HAND)

# Operations a second of products of bfloat16, without sparsity, of one device. Of NVIDIA: the data sheets of H100, H200
# and A100, whose numbers with sparsity are twice these. Of TPUs: the page of each version in the docs of Cloud TPU.
PEAKS = {
    r"H[12]00 NVL": 835e12,
    r"H100 PCIe": 756e12,
    r"H[12]00": 989e12,
    r"A100": 312e12,
    r"TPU v4$": 275e12,
    r"TPU v5( lite|e)$": 197e12,
    r"TPU v5p?$": 459e12,
    r"TPU v6( lite|e)$": 918e12,
}


def peak_of(kind: str) -> float | None:
    """Operations a second of such a device, where they are known."""
    return next((peak for pattern, peak in PEAKS.items() if re.search(pattern, kind)), None)


class Started(NamedTuple):
    """``train()`` is a measured call of so many steps, waited for, which gives the losses of its epochs.

    Of the other seven it gives none; ``loss()`` is that of what was trained.
    """

    train: Callable[[], Any]
    steps: int
    loss: Callable[[], float] | None = None


def prepared(side: str, name: str, small: bool, seed: int) -> Callable[[], Started]:
    """The imports and the data of a side; what is left begins the training, and is part of the first call."""
    who = SIDES[side]
    options = {} if side in OF_JAX else {"compiled": who.compiled}
    if name in LARGE:
        size = (SMALL if small else LARGE)[name]
        module, (x, y) = importlib.import_module(who.large), large_data(name, size)
        return lambda: Started(module.started(name, size, x, y, seed, **options), size.steps)
    module, (work, x, y) = importlib.import_module(who.others), seven(name, small)
    if side not in OF_JAX:
        module = importlib.import_module(who.large).on_device(module)

    def start() -> Started:
        train, predict = module.started(name, work, x, y, seed, **options)
        return Started(train, work.steps(len(x)), lambda: result(name, predict, x, y)[0])

    return start


def device(side: str) -> dict[str, Any]:
    """Platform and kind of the device of this side, and the most bytes that were in use there, where it says so."""
    if side in OF_JAX:
        import jax

        first = jax.local_devices()[0]
        memory = (first.memory_stats() or {}).get("peak_bytes_in_use")
        return {"platform": first.platform, "device": first.device_kind, "memory": memory}
    import torch

    if not torch.cuda.is_available():
        return {"platform": "cpu", "device": "cpu", "memory": None}
    return {"platform": "gpu", "device": torch.cuda.get_device_name(), "memory": torch.cuda.max_memory_allocated()}


# ---- what is measured ------------------------------------------------------------------------------------------------

LEAST = 3  # timed calls


def traced(side: str, directory: str | None) -> Any:
    """A profile of what is inside, where there is a directory for it and the side is JAX."""
    if directory is None or side not in OF_JAX:
        return contextlib.nullcontext()
    import jax

    return jax.profiler.trace(directory)


_TO_HOST = re.compile(r"D2H|DtoH|device.?to.?host", re.IGNORECASE)


def copies_to_host(directory: str) -> int:
    """How often a device copied something to the host, as a profile says: each time somebody waited for it."""
    import jax

    files = pathlib.Path(directory).rglob("*.xplane.pb")
    planes = [plane for file in files for plane in jax.profiler.ProfileData.from_file(str(file)).planes]
    lines = [line for plane in planes if plane.name.startswith("/device:") for line in plane.lines]
    return sum(bool(_TO_HOST.search(event.name)) for line in lines for event in line.events)


def trained(
    side: str,
    name: str,
    *,
    seed: int = 0,
    small: bool = False,
    operations: float | None = None,
    peak: float | None = None,
    trace: str | None = None,
    seconds: float = 3.0,
) -> dict[str, Any]:
    """Steps a second in the steady state, seconds of the first call, losses, and what the device says."""
    start = prepared(side, name, small, seed)
    begin = time.perf_counter()
    train, steps, loss = start()
    losses = [train()]
    first_call = time.perf_counter() - begin
    with traced(side, trace):
        taken = seconds_of(lambda: losses.append(train()), 0 if trace else seconds, LEAST)
    found = {"steps_per_second": steps / statistics.median(taken), "steps": steps, "first_call": first_call}
    found |= device(side)
    if trace and side in OF_JAX:
        found["copies_to_host"] = copies_to_host(trace) / len(taken)  # of a call
    peak = peak or peak_of(found["device"])
    share = found["steps_per_second"] * operations / peak if operations and peak else None
    first, last = (None, loss()) if loss else (float(losses[0][0]), float(losses[-1][-1]))
    return found | {"share": share, "first_loss": first, "last_loss": last}


def operations(name: str, *, small: bool = False) -> dict[str, float]:
    """Floating-point operations of a step, forward and backward, by ``inspection.summary``: the same for all sides."""
    ours = importlib.import_module("large_by_funcnn")
    if name in LARGE:
        return {"operations": ours.operations(name, (SMALL if small else LARGE)[name])}
    work, x, _ = seven(name, small)
    rows = min(work.batch_size or len(x), len(x))
    of_batch = ours.operations_of(importlib.import_module("by_funcnn").MODELS["W1" if name == "W7" else name], x[:rows])
    return {"operations": of_batch * work.members * work.epochs * len(x) / (work.steps(len(x)) * rows)}


def reason(error: Exception) -> str:
    """Why a side failed, in a few words that fit into a table."""
    if isinstance(error, ModuleNotFoundError):
        return f"not installed: {error.name}"
    if isinstance(error, MemoryError) or re.search(r"RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE):
        return "out of memory"
    first = (str(error).strip().splitlines() or [""])[0].replace("|", "/")
    return f"{type(error).__name__}: {first[:80]}"


def main() -> None:
    what, *given, settings = sys.argv[1:]
    try:
        found = {"train": trained, "operations": operations}[what](*given, **json.loads(settings))
    except Exception as error:  # of the library that is measured; the others go on
        traceback.print_exc()
        found = {"failed": reason(error)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
