"""One kernel for the whole loop of a tiny network: a setting of XLA on CPU, made before JAX starts."""

import os
from typing import Any

import jax

from funcnn import checks, small_products

_OPTIONS = "--xla_backend_extra_options"
_FLAG = small_products.FLAG

# The thresholds that were set in time.
_set: list[int] = []


def fuse_small_loops(byte_threshold: int = 1_000_000) -> None:
    """Let XLA compile each loop on CPU whose data are small into one kernel: for tiny networks many times as fast.

    It is for networks of a few hundred weights, trained on all examples at once, alone or with ``sweep(how="map")``:
    between the operations of a step, which take nanoseconds, no time is lost, and such a sweep has all cores. So that
    no library is called inside, products of up to 65,536 multiplications are written out as multiplications and sums.
    Loops with larger ones, with shuffling, or with more data stay what they are, and may be slower for it where some of
    their products are small. The same bits as without are not promised, nor that a run in one program and one with
    looks between agree in all.

    Formula: ``x @ w`` becomes ``sum over i of x[:, i] w[i, :]``, and the environment variable ``XLA_FLAGS`` gains
    ``--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=<byte_threshold>``

    Args:
        byte_threshold: the bytes of what a loop carries and reads, up to which it is one kernel.

    Raises:
        RuntimeError: JAX has started, for the flag is read when it does; a call that was made before may be repeated.

    Example:
        >>> from funcnn import training
        >>> training.fuse_small_loops()  # doctest: +SKIP

    Notes:
        1. Call it first in a program: making any array, or a key, starts JAX.
        2. Other platforms ignore it.
        3. What is exported afterwards has these products written out as well, and wants the setting where it runs.

    Reference: XLA, ``xla_cpu_small_while_loop_byte_threshold``.
    """
    byte_threshold = checks.expect_count("fuse_small_loops", "byte_threshold", byte_threshold)
    config: Any = jax.config
    devices = config.jax_num_cpu_devices
    try:
        # JAX cannot be asked whether it has started; but then it refuses to change this setting.
        config.update("jax_num_cpu_devices", 1 if devices != 1 else 2)
        config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        if _set[-1:] == [byte_threshold]:
            return  # a cell of a notebook that is executed again
        fix = "call it at the beginning of the program, before any array or key is made"
        checks.fail("fuse_small_loops", "a JAX that has not started", "one that has", fix, RuntimeError)
    os.environ["XLA_FLAGS"] = _with_threshold(os.environ.get("XLA_FLAGS", ""), byte_threshold)
    _set.append(byte_threshold)


def _with_threshold(given: str, byte_threshold: int) -> str:
    """The flags with this one, the others as they were; it is one of several in a list of options."""
    flags: list[str] = []
    options: list[str] = []
    for flag in given.split():
        name, _, value = flag.partition("=")
        if name == _OPTIONS:
            options += [option for option in value.split(",") if option.partition("=")[0] != _FLAG]
        else:
            flags.append(flag)
    return " ".join([*flags, f"{_OPTIONS}={','.join([*options, f'{_FLAG}={byte_threshold}'])}"])


def fuses_small_loops() -> bool:
    """Whether the setting is made, here or in the environment."""
    return _FLAG in os.environ.get("XLA_FLAGS", "")
