"""What a fresh process of performance.py does: one side trains one workload, and prints what that took as JSON.

    python benchmarks/one_run.py train SIDE WORKLOAD ARRAYS SEED STARTED SECONDS
    python benchmarks/one_run.py losses SIDE WORKLOAD ARRAYS SEEDS
    python benchmarks/one_run.py compile BLOCKS

ARRAYS is an .npz with ``x``, ``y``, ``epochs`` and ``members``; STARTED is when the process was started, in seconds of
``time.time()``; SECONDS is for how long it goes on training for the steady state, and 0 leaves that out.
"""

import importlib
import json
import pathlib
import statistics
import sys
import time
from typing import Any, NamedTuple

import numpy as np
from clock import seconds_of
from workloads import WORKLOADS, Workload


class Side(NamedTuple):
    """Who trains: a module of this directory with ``started``, and the workloads that are measured of it."""

    title: str
    module: str
    names: tuple[str, ...] = tuple(WORKLOADS)
    settings: dict[str, str] = {}  # noqa: RUF012  of the environment; never changed
    members: int = 256  # runs of W7 that are trained at most; the time of the others is that of these


RUN, FIT, FUSED, SCAN, TORCH = "run", "fit", "fused", "scan", "torch"

SIDES = {
    RUN: Side("funcnn, `jit(run)`", "by_funcnn"),
    FIT: Side("funcnn, `fit`", "by_fit", ("W1", "W2", "W3", "W4", "W5", "W6")),  # W7 is `sweep` in any case
    FUSED: Side("funcnn, fused", "by_funcnn", ("W1", "W2", "W7"), {"FUNCNN_BENCH_FUSED": "1"}),
    SCAN: Side("scan by hand", "by_hand"),
    "loop": Side("loop by hand", "by_loop"),
    "linen": Side("Flax Linen", "by_linen"),
    "nnx": Side("Flax NNX", "by_nnx"),
    "equinox": Side("Equinox", "by_equinox"),
    "keras": Side("Keras on JAX", "by_keras", members=4),
    TORCH: Side("PyTorch, eager", "by_torch"),
    "sklearn": Side("scikit-learn", "by_sklearn", ("W1", "W2", "W3", "W4")),
}
OURS = (RUN, FIT, FUSED)
LIBRARIES = ("linen", "nnx", "equinox", "keras", TORCH, "sklearn")

AT_ONCE = {"W4": 10_000, "W5": 250, "W6": 240}  # rows that are predicted together, so that memory stays small
LEAST = 3  # runs of the steady state

# ---- proof of equal work, the same NumPy for all sides ---------------------------------------------------------------


def judged(name: str, outputs: Any, y: Any) -> tuple[float, float]:
    """The mean loss of raw outputs, and the part of the targets that they get right."""
    z = np.asarray(outputs, np.float64)
    if name in ("W1", "W7"):
        return float(np.mean((z - y) ** 2)), float(np.mean((z > 0.5) == (y > 0.5)))
    if name == "W2":
        return float(np.mean(np.logaddexp(0, z) - z * y)), float(np.mean((z > 0) == (y > 0.5)))
    z = z - z.max(-1, keepdims=True)
    found = np.take_along_axis(z, np.asarray(y)[..., None], -1)[..., 0]
    return float(np.mean(np.log(np.exp(z).sum(-1)) - found)), float(np.mean(z.argmax(-1) == y))


def result(name: str, predict: Any, x: Any, y: Any) -> tuple[float, float]:
    """Loss and accuracy of what was trained, over all rows."""
    rows = AT_ONCE.get(name, len(x))
    parts = [
        (judged(name, predict(x[i : i + rows]), y[i : i + rows]), len(x[i : i + rows])) for i in range(0, len(x), rows)
    ]
    loss, right = (sum(part[i] * count for part, count in parts) / len(x) for i in (0, 1))
    return loss, right


def peak() -> float:
    """The most memory that this process has had so far, in megabytes.

    Of the process itself where Linux says so: what ``getrusage`` says begins with that of the one that started it.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


# ---- what is measured ------------------------------------------------------------------------------------------------


def loaded(side: str, name: str, arrays: str) -> tuple[Any, Workload, Any, Any]:
    """The module of a side, the workload as it is to be gone through, and its data."""
    module = importlib.import_module(SIDES[side].module)
    with np.load(arrays) as found:
        x, y, epochs, members = found["x"], found["y"], int(found["epochs"]), int(found["members"])
    return module, WORKLOADS[name]._replace(epochs=epochs, members=min(members, SIDES[side].members)), x, y


def trained(side: str, name: str, arrays: str, seed: int, started: float, seconds: float) -> dict[str, Any]:
    """Seconds of the process up to the trained network, of the first run and of one more run; loss, memory."""
    memory = {"begin": peak()}
    module, work, x, y = loaded(side, name, arrays)
    memory["imported"] = peak()
    begin = time.perf_counter()
    train, predict = module.started(name, work, x, y, seed)
    train()
    first, process = time.perf_counter() - begin, time.time() - started
    memory["trained"] = peak()
    loss, accuracy = result(name, predict, x, y)
    taken = seconds_of(train, seconds, LEAST) if seconds else []
    memory["end"] = peak()
    found = {"process": process, "first": first, "steady": statistics.median(taken) if taken else None}
    steps = work.steps(len(x))
    return found | {"steps": steps, "members": work.members, "loss": loss, "accuracy": accuracy, "memory": memory}


def losses(side: str, name: str, arrays: str, seeds: int) -> dict[str, Any]:
    """The final loss of each of so many seeds."""
    module, work, x, y = loaded(side, name, arrays)
    found: list[float] = []
    for seed in range(seeds):
        train, predict = module.started(name, work, x, y, seed)
        train()
        found.append(result(name, predict, x, y)[0])
    return {"losses": found}


def compiled(blocks: int) -> dict[str, Any]:
    """Seconds to trace and compile the gradient of a network of equal residual blocks."""
    import jax

    from funcnn import layers

    model = layers.repeat(layers.residual(layers.dense(64), layers.relu), blocks)
    x = jax.ShapeDtypeStruct((32, 64), "float32")
    params, state = jax.eval_shape(model.init, jax.random.key(0), x)

    def loss(params: Any, x: Any) -> Any:
        return (model.apply(params, state, x)[0] ** 2).mean()

    begin = time.perf_counter()
    jax.jit(jax.value_and_grad(loss)).lower(params, x).compile()
    return {"seconds": time.perf_counter() - begin}


def main() -> None:
    what, *given = sys.argv[1:]
    try:
        if what == "train":
            side, name, arrays, seed, started, seconds = given
            found = trained(side, name, arrays, int(seed), float(started), float(seconds))
        elif what == "losses":
            side, name, arrays, seeds = given
            found = losses(side, name, arrays, int(seeds))
        else:
            found = compiled(int(given[0]))
    except ModuleNotFoundError as error:
        found = {"failed": f"not installed: {error.name}"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
