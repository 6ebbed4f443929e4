"""The setting for loops of tiny networks: before JAX starts, refused afterwards, and beside the flags of others."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from funcnn import training
from funcnn.training.kernels import _with_threshold

FUSE = "training.fuse_small_loops(5000)"
PROGRAM = """
import os
from funcnn import training
training.fuse_small_loops(5000)
print(os.environ.get("XLA_FLAGS"))
import jax, jax.numpy as jnp, numpy as np, optax
from funcnn import layers, losses
x, y = np.float32([[0, 0], [0, 1], [1, 0], [1, 1]]), np.float32([[0], [1], [1], [0]])
def xor(rate):
    model = layers.serial(layers.dense(4), layers.tanh, layers.dense(1))
    return training.supervised(model, losses.squared_error, optax.sgd(rate))
options = {"key": jax.random.key(0), "epochs": 300, "batch_size": None, "progress": False}
found = training.sweep(xor, [0.05, 0.1], (x, y), **options)
print(found.history["loss"][:, -1].tolist())
from funcnn.training import cores, sweeps
begins, waited = [], cores._waited
cores._waited = lambda *given: begins.append(int(given[-1])) or waited(*given)
cores.usable = lambda: 2
divided = training.sweep(xor, [0.05, 0.1, 0.2], (x, y), **options)
sweeps.cores_for = lambda *given: 1
alone = training.sweep(xor, [0.05, 0.1, 0.2], (x, y), **options)
print(sorted(set(begins)), np.array_equal(divided.history["loss"], alone.history["loss"]))
training.fuse_small_loops(5000)  # as in a cell of a notebook that is executed again
"""


def executed(program, flags):
    settings = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=settings, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.slow
def test_it_changes_no_loss_beyond_rounding():
    flags, fused, several = executed(PROGRAM, "--xla_cpu_enable_fast_math=false")
    assert flags.startswith("--xla_cpu_enable_fast_math=false --xla_backend_extra_options=xla_cpu_small")
    _, plain, one = executed(PROGRAM.replace(FUSE, ""), "")
    assert several == "[0, 1] True"  # members on two cores, the same bits
    assert one == "[] True"
    assert ast.literal_eval(fused) == pytest.approx(ast.literal_eval(plain), rel=1e-4)


def test_the_flags_of_others_stay():
    kind, option = "--xla_backend_extra_options", "xla_cpu_small_while_loop_byte_threshold"
    assert _with_threshold("", 5) == f"{kind}={option}=5"
    assert _with_threshold(f"--a=b {kind}=other=1,{option}=7 --c", 5) == f"--a=b --c {kind}=other=1,{option}=5"


def test_it_comes_too_late_once_jax_has_started():
    jnp.ones(1)
    with pytest.raises(RuntimeError, match="a JAX that has not started, got one that has; call it at the beginning"):
        training.fuse_small_loops()
    with pytest.raises(ValueError, match="byte_threshold of at least 1"):
        training.fuse_small_loops(0)
