"""Arrays that stay on disk: MNIST's format, IDX, and NumPy's, as read-only memory maps.

A map costs no memory until it is read. A header says how long its file has to be, so one that was damaged or cut off is
refused when it is opened, and not in the middle of a training.
"""

import ast
import math
import struct
from pathlib import Path

import numpy as np

from funcnn import checks

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}  # of IDX, by their code
MAGIC = b"\x93NUMPY\x01\x00"  # with the version of the format, 1.0: that of all arrays of numbers
AGAIN = "get or write it again"


def idx(path: Path) -> np.memmap:
    """The array of an IDX file: two zeros, a type, how many axes; the length of each; the numbers, high bytes first."""
    start = _head(path, 4)
    if start[:2] != b"\0\0":
        checks.fail(path.name, "a magic number that begins with 00 00", start.hex(" "), "is it an IDX file?")
    code, axes = start[2:]
    if code not in TYPES:
        known = ", ".join(f"{known:02x}" for known in TYPES)
        checks.fail(path.name, f"one of the types of IDX, {known}", f"{code:02x}", AGAIN)
    length = 4 + 4 * axes
    return _mapped(path, np.dtype(TYPES[code]), struct.unpack(f">{axes}I", _head(path, length)[4:]), length)


def npy(path: Path) -> np.memmap:
    """The array of a ``.npy`` file: a magic number, the length of a text, this text, which is a dict; the numbers."""
    start = _head(path, 10)
    if start[:8] != MAGIC:
        checks.fail(path.name, f"the magic number of .npy, {MAGIC}", str(start[:8]), "is it a file of np.save?")
    length = 10 + int.from_bytes(start[8:], "little")
    text = _head(path, length)[10:].decode("latin1").strip()
    try:
        entries = ast.literal_eval(text)
        dtype, shape, turned = np.dtype(entries["descr"]), entries["shape"], entries["fortran_order"]
    except Exception:  # there are many ways to be no dict, or not that of an array
        checks.fail(path.name, "a dict of descr, shape and fortran_order", repr(text[:80]), AGAIN)
    if dtype.kind not in "biuf":
        checks.fail(path.name, "numbers", f"the dtype {dtype}", "convert them: np.save(path, array.astype(np.float32))")
    if turned is not False:
        fix = "turn it: np.save(path, np.ascontiguousarray(array))"
        checks.fail(path.name, "rows one after the other, fortran_order False", str(turned), fix)
    return _mapped(path, dtype, shape, length)


def write_idx(path: Path, array: np.ndarray) -> None:
    """An array of numbers as an IDX file."""
    code = {np.dtype(name): code for code, name in TYPES.items()}[array.dtype.newbyteorder(">")]
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.astype(TYPES[code]).tobytes())


def _head(path: Path, length: int) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as file:
        found = file.read(length)
    if found.startswith(b"\x1f\x8b"):
        checks.fail(path.name, "a file that is not compressed", "one of gzip, as MNIST comes", f"gunzip {path.name}")
    if len(found) < length:
        checks.fail(path.name, f"a header of {length} bytes", f"a file of {len(found)}, cut off", AGAIN)
    return found


def _mapped(path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.memmap:
    """The numbers behind the header, if there are as many as it says."""
    is_shape = isinstance(shape, tuple) and all(type(size) is int and size > 0 for size in shape)
    if not is_shape or not 0 < len(shape) <= 32:
        checks.fail(path.name, "a shape of 1 to 32 axes, none of them empty", str(shape), AGAIN)
    expected, size = offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if size != expected:
        got = f"{size}: it was cut off" if size < expected else f"{size}: it goes on behind them"
        checks.fail(path.name, f"{expected} bytes for {dtype.name} of shape {shape}", got, AGAIN)
    return np.memmap(path, dtype, "r", offset, shape)
