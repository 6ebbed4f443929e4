"""The readers of examples/files.py: the numbers that are in a file, and an error for whatever is damaged in one.

The oracles are ``struct``, which writes the files, and NumPy, which reads its own.
"""

import gzip
import importlib
import itertools
import re
import struct
import sys
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funcnn import layers, losses, training

ROOT = Path(__file__).parent.parent
FORM = re.compile(r"[\w.]+: expected .+, got .+; .+", re.DOTALL)
NUMBERS = {  # of each type of IDX: its name for struct, the dtype, and numbers at the ends of its range
    0x08: ("B", np.uint8, [0, 1, 127, 128, 254, 255]),
    0x09: ("b", np.int8, [-128, -1, 0, 1, 2, 127]),
    0x0B: ("h", np.int16, [-(2**15), -2, 0, 1, 256, 2**15 - 1]),
    0x0C: ("i", np.int32, [-(2**31), -2, 0, 1, 2**16, 2**31 - 1]),
    0x0D: ("f", np.float32, [-1.5, 0.0, 1e-3, 3.0, 1e38, float("inf")]),
    0x0E: ("d", np.float64, [-1.5, 0.0, 1e-300, 1 / 3, 1e300, float("inf")]),
}


@pytest.fixture(scope="module")
def example():
    """The module of an example; it does nothing when it is imported."""
    sys.path.insert(0, str(ROOT / "examples"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "examples"))


@pytest.fixture(scope="module")
def idx(example):
    return example("mapped_files").idx


@pytest.fixture(scope="module")
def npy(example):
    return example("mapped_files").npy


def idx_bytes(code, shape, numbers):
    """An IDX file, as its format is described."""
    header = struct.pack(">BBBB", 0, 0, code, len(shape)) + struct.pack(f">{len(shape)}i", *shape)
    return header + struct.pack(f">{len(numbers)}{NUMBERS[code][0]}", *numbers)


def npy_bytes(path, array):
    np.save(path, array)
    return path.read_bytes()


def with_header(text, content=b"", length=None):
    """A ``.npy`` file whose dict is any text."""
    text = text.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) if length is None else length) + text + content


def refused(read, path, content):
    """The message of the error that a file with this content raises."""
    path.write_bytes(content)
    with pytest.raises(ValueError, match=": expected ") as found:
        read(path)
    assert FORM.fullmatch(str(found.value)), found.value
    assert str(found.value).startswith(path.name)
    return str(found.value)


def opened(read, path):
    """An array that fills its file, or ``None`` where an error says why there is none."""
    try:
        array = read(path)
    except ValueError as error:
        message = str(error)
    else:
        assert array.size
        assert array.offset + array.nbytes == path.stat().st_size
        return array
    assert FORM.fullmatch(message), message
    return None


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", NUMBERS)
@pytest.mark.parametrize("shape", [(6,), (3, 2), (1, 2, 3, 1)])
def test_idx_gives_the_numbers_of_the_file(idx, tmp_path, code, shape):
    _, dtype, numbers = NUMBERS[code]
    (tmp_path / "a").write_bytes(idx_bytes(code, shape, numbers))
    array = idx(tmp_path / "a")
    assert array.shape == shape
    assert array.dtype.newbyteorder("=") == dtype
    assert array.ravel().tolist() == np.array(numbers, dtype).tolist()


@pytest.mark.parametrize("code", NUMBERS)
def test_idx_is_written_as_its_format_says(example, tmp_path, code):
    _, dtype, numbers = NUMBERS[code]
    for order in "<>":
        array = np.array(numbers, dtype).astype(np.dtype(dtype).newbyteorder(order)).reshape(3, 2)
        example("mapped_files").write_idx(tmp_path / "a", array)
        assert (tmp_path / "a").read_bytes() == idx_bytes(code, (3, 2), numbers)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<i8", ">i2", "|u1", "|b1", "<f2"])
@pytest.mark.parametrize("shape", [(24,), (2, 3, 4)])
def test_npy_gives_the_numbers_of_the_file(npy, tmp_path, dtype, shape):
    np.save(tmp_path / "a.npy", (np.arange(24) % 5).reshape(shape).astype(dtype))
    array = npy(tmp_path / "a.npy")
    assert array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array, np.load(tmp_path / "a.npy"), strict=True)


def test_what_other_writers_put_into_a_header_is_read(npy, tmp_path):
    """Another order of the entries, other spaces, no padding, no comma at the end."""
    numbers = np.arange(6, dtype="<i2")
    text = '{"shape":(2,3),"fortran_order":False,"descr":"<i2"}'
    (tmp_path / "a.npy").write_bytes(with_header(text, numbers.tobytes()))
    np.testing.assert_array_equal(npy(tmp_path / "a.npy"), np.load(tmp_path / "a.npy"), strict=True)


def test_an_array_stays_on_disk_and_cannot_be_written(idx, npy, tmp_path):
    (tmp_path / "a").write_bytes(idx_bytes(8, (6,), range(6)))
    np.save(tmp_path / "a.npy", np.ones(6))
    for array in (idx(tmp_path / "a"), npy(tmp_path / "a.npy")):
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


# ---- what is refused -------------------------------------------------------------------------------------------------


def named(value):
    """The part of a test's name that a parameter makes."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else None


WHOLE = idx_bytes(8, (3, 2), range(6))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a header of 4 bytes, got a file of 0, cut off"),
        (b"\0\0", "a header of 4 bytes, got a file of 2, cut off"),
        (WHOLE[:11], "a header of 12 bytes, got a file of 11, cut off"),
        (WHOLE[:12], "18 bytes for uint8 of shape (3, 2), got 12: it was cut off"),
        (WHOLE[:-1], "18 bytes for uint8 of shape (3, 2), got 17: it was cut off"),
        (WHOLE + b"\0", "18 bytes for uint8 of shape (3, 2), got 19: it goes on"),
        (b"\x89PNG" + WHOLE, "a magic number that begins with 00 00, got 89 50 4e 47; is it an IDX file?"),
        (b"\0\1" + WHOLE[2:], "a magic number that begins with 00 00, got 00 01 08 02"),
        (WHOLE[:2] + b"\x0a" + WHOLE[3:], "one of the types of IDX, 08, 09, 0b, 0c, 0d, 0e, got 0a"),
        (WHOLE[:3] + b"\0" + WHOLE[4:], "a shape of 1 to 32 axes, none of them empty, got ()"),
        (idx_bytes(8, (3, 0), []), "a shape of 1 to 32 axes, none of them empty, got (3, 0)"),
        (idx_bytes(8, (1,) * 33, [7]), "a shape of 1 to 32 axes"),
        (idx_bytes(8, (-1,) * 32, [7]), "bytes for uint8 of shape (4294967295, "),
        (gzip.compress(WHOLE), "a file that is not compressed, got one of gzip, as MNIST comes; gunzip images.idx"),
    ],
    ids=named,
)
def test_an_idx_file_that_is_none(idx, tmp_path, content, message):
    assert message in refused(idx, tmp_path / "images.idx", content)


def header(descr="'<f4'", turned="False", shape="(3, 2)"):
    return f"{{'descr': {descr}, 'fortran_order': {turned}, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a header of 10 bytes, got a file of 0, cut off"),
        (b"\x93NUMPY\x01", "a header of 10 bytes, got a file of 7, cut off"),
        (with_header(header())[:-1], "a header of 70 bytes, got a file of 69, cut off"),
        (with_header(header(), length=60000), "a header of 60010 bytes, got a file of 70, cut off"),
        (with_header(header(), bytes(23)), "94 bytes for float32 of shape (3, 2), got 93: it was cut off"),
        (with_header(header(), bytes(25)), "94 bytes for float32 of shape (3, 2), got 95: it goes on"),
        (WHOLE, r"the magic number of .npy, b'\x93NUMPY\x01\x00', got b'\x00\x00\x08\x02"),
        (b"\x93NUMPY\x02" + with_header(header())[7:], "is it a file of np.save?"),
        (gzip.compress(with_header(header(), bytes(24))), "got one of gzip"),
        (with_header(header("'|O'")), "numbers, got the dtype object; convert them"),
        (with_header(header("'<U3'"), bytes(72)), "numbers, got the dtype <U3"),
        (with_header(header("'<c8'"), bytes(48)), "numbers, got the dtype complex64"),
        (with_header(header("[('a', '<f4')]"), bytes(24)), "numbers, got the dtype [('a', '<f4')]"),
        (with_header(header("'3f4'"), bytes(72)), "numbers, got the dtype ('<f4', (3,))"),
        (with_header(header("'<f5'"), bytes(24)), "a dict of descr, shape and fortran_order, got"),
        (with_header(header(turned="True"), bytes(24)), "rows one after the other, fortran_order False, got True"),
        (with_header(header(turned="0"), bytes(24)), "rows one after the other, fortran_order False, got 0"),
        (with_header(header(shape="[3, 2]"), bytes(24)), "none of them empty, got [3, 2]"),
        (with_header(header(shape="(3.0, 2)"), bytes(24)), "none of them empty, got (3.0, 2)"),
        (with_header(header(shape="(-3, -2)"), bytes(24)), "none of them empty, got (-3, -2)"),
        (with_header(header(shape="(True, 6)"), bytes(24)), "none of them empty, got (True, 6)"),
        (with_header(header(shape="()"), bytes(4)), "none of them empty, got ()"),
        (with_header("{'descr': '<f4', 'fortran_order': False}\n"), "a dict of descr, shape and fortran_order, got"),
        (with_header("__import__('os').abort()"), "a dict of descr, shape and fortran_order, got"),
        (with_header("(" * 5000), "a dict of descr, shape and fortran_order, got"),
        (with_header("7"), "a dict of descr, shape and fortran_order, got"),
    ],
    ids=named,
)
def test_a_npy_file_that_is_none(npy, tmp_path, content, message):
    assert message in refused(npy, tmp_path / "images.npy", content)


def test_what_numpy_itself_saves_and_cannot_be_mapped(npy, tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.array([{}, None]), allow_pickle=True)
    assert "the dtype object" in refused(npy, path, path.read_bytes())
    np.save(path, np.asfortranarray(np.ones((3, 2))))
    assert "np.ascontiguousarray" in refused(npy, path, path.read_bytes())
    np.savez(path.with_suffix(".npz"), a=np.ones(3))
    assert "the magic number" in refused(npy, path, path.with_suffix(".npz").read_bytes())


def files_of(tmp_path):
    """Small files of both formats, with the lengths of their headers."""
    image = np.arange(24).reshape(2, 3, 4)
    saved = npy_bytes(tmp_path / "saved.npy", image.astype("<f4"))
    return [("idx", idx_bytes(8, (2, 3, 4), range(24)), 16), ("npy", saved, len(saved) - 96)]


def test_a_file_cut_off_anywhere_is_refused(example, tmp_path):
    for name, whole, _ in files_of(tmp_path):
        read = getattr(example("mapped_files"), name)
        for length in range(len(whole)):
            assert "cut off" in refused(read, tmp_path / "cut", whole[:length])


def damaged(example, tmp_path, changes):
    """Whatever byte of a header is changed: an error, or an array of the same shape, as long as its file."""
    for name, whole, length in files_of(tmp_path):
        read, path = getattr(example("mapped_files"), name), tmp_path / "damaged"
        for place in range(length):
            for change in changes(place):
                content = bytearray(whole)
                content[place] ^= change
                path.write_bytes(content)
                array = opened(read, path)
                if array is not None:
                    assert array.shape == (2, 3, 4), (place, change)


def test_a_damaged_header_is_no_other_shape(example, tmp_path):
    damaged(example, tmp_path, lambda place: {1 << place % 8, 1 + 37 * place % 255})


@pytest.mark.slow
def test_every_damage_of_a_byte_of_a_header_is_no_other_shape(example, tmp_path):
    damaged(example, tmp_path, lambda place: range(1, 256))


@given(st.sampled_from([b"", b"\0\0\x08", b"\0\0\x0c\x02", b"\x93NUMPY\x01\0"]), st.binary(max_size=80))
def test_any_bytes_are_an_error_or_an_array_that_fills_its_file(tmp_path_factory, example, beginning, rest):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(beginning + rest)
    for read in (example("mapped_files").idx, example("mapped_files").npy):
        opened(read, path)


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def stream(example, tmp_path):
    """``stream(n, ...)``: ``Files`` of so many examples, image ``i`` of two numbers ``i``, its label ``i % 7``."""

    def made(n, read=None, **options):
        path, module = tmp_path, example("mapped_files")
        module.write_idx(path / "images", np.repeat(np.arange(n, dtype=np.int32), 2).reshape(n, 2))
        module.write_idx(path / "labels", (np.arange(n) % 7).astype(np.uint8))
        return example("files").Files(read or module.idx, path / "images", path / "labels", **options)

    return made


def rows_of(batches):
    """Which examples there are, in their order, if each has its own label."""
    rows = []
    for x, y in batches:
        assert len(x) == len(y)
        assert (x[:, 0] == x[:, 1]).all()
        assert (x[:, 0] % 7 == y).all()
        rows += x[:, 0].tolist()
    return rows


@pytest.mark.parametrize("n", [1, 7, 8, 9, 63, 64, 65, 200, 257])
@pytest.mark.parametrize(("size", "window", "block"), [(8, 4, 3), (8, 1, 16), (5, 100, 7), (8, 2, 1000)])
def test_each_pass_has_every_example_once(stream, n, size, window, block):
    files = stream(n, batch_size=size, window=window, block=block)
    for _ in range(2):
        batches = list(files)
        assert [len(x) for x, _ in batches] == [size] * (n // size) + [n % size] * (n % size > 0)
        assert len(files) == len(batches)
        assert sorted(rows_of(batches)) == list(range(n))


def test_the_order_is_a_function_of_the_seed_and_the_pass(stream):
    options = {"batch_size": 8, "window": 4, "block": 5}
    files, again, other = stream(200, **options), stream(200, **options), stream(200, seed=1, **options)
    passes = [rows_of(files) for _ in range(3)]
    assert [rows_of(again) for _ in range(3)] == passes
    assert rows_of(files.in_pass(1)) == passes[1]
    orders = {tuple(order) for order in [*passes, rows_of(other), range(200)]}
    assert len(orders) == 5


def test_a_window_has_blocks_from_all_over_the_files_well_mixed(stream):
    files = stream(4096, batch_size=16, window=8, block=16)
    rows = np.array(rows_of(files))
    for window in rows.reshape(-1, 128):
        assert len(set(window // 16)) == 8  # whole blocks
        assert np.ptp(window) > 1024
        assert len(set(window[:16] // 16)) > 3  # and a batch has examples of several


def test_no_map_is_held_longer_than_its_window(stream, idx):
    """What was read of a map is resident until the map is closed."""
    maps = []

    def watched(path):
        array = idx(path)
        maps.append(weakref.ref(array))
        return array

    files = stream(200, watched, batch_size=8, window=4, block=5)
    for _ in files:
        assert sum(found() is not None for found in maps) == 2
    assert len(maps) > 2 * 200 / (8 * 4)
    assert all(found() is None for found in maps)


def test_files_that_do_not_belong_together(example, stream, tmp_path):
    stream(10)
    example("mapped_files").write_idx(tmp_path / "labels", np.zeros(9, np.uint8))
    idx = example("mapped_files").idx
    with pytest.raises(ValueError, match=r"^Files: expected 10 labels, one for each image, got 9; "):
        example("files").Files(idx, tmp_path / "images", tmp_path / "labels")


# ---- training --------------------------------------------------------------------------------------------------------

model = layers.serial(layers.function(lambda x: x.astype(jnp.float32) / 100), layers.dense(7))


@pytest.mark.slow
def test_fit_learns_from_files_what_a_loop_over_them_learns(stream, key):
    trainer = training.supervised(model, losses.softmax_cross_entropy, optax.adam(0.1))
    options = {"batch_size": 16, "window": 2, "block": 5}
    result = training.fit(trainer, stream(100, **options), key=key, epochs=2, progress=False)

    files, step = stream(100, **options), training.compiled_step(trainer)
    init_key, _, step_key = jax.random.split(key, 3)
    state = trainer.init(init_key, next(files.in_pass(0)))._replace(key=step_key)
    for batch in itertools.chain(files, files):
        state, _ = step(state, batch)
    assert int(result.state.step) == 14
    assert result.history["loss"].shape == (2,)
    for ours, theirs in zip(*map(jax.tree.leaves, (result.state.params, state.params)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_file_that_is_damaged_during_training_ends_it(stream, key, tmp_path):
    """The windows before it count, and the error is the reader's own."""
    files = stream(100, batch_size=8, window=2, block=5)

    def batches():
        for i, batch in enumerate(files):
            if i == 1:
                whole = (tmp_path / "images").read_bytes()
                (tmp_path / "images").unlink()  # and not in its place: what is mapped would go under the reader's hands
                (tmp_path / "images").write_bytes(whole[:-1])
            yield batch

    trainer = training.supervised(model, losses.softmax_cross_entropy, optax.adam(0.1))
    with pytest.raises(RuntimeError) as found:
        training.fit(trainer, batches, key=key, epochs=1, progress=False)
    assert "it was cut off" in str(found.value.__cause__)
    assert int(found.value.result.state.step) == found.value.step == 2


# ---- the benchmark ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("streams")
    sys.path.remove(str(ROOT / "benchmarks"))


def test_the_page_of_the_benchmark_marks_what_misses_its_bar(benchmark):
    def measured(*rates, total=100.0):
        return [{"rate": rate, "work": 300 / rate, "total": total, "anonymous": 80.0} for rate in rates]

    rows = benchmark.files_rows(10**6, {"stream": measured(90.0, 95.0, total=401.0), "memory": measured(100.0, 100.0)})
    assert rows == [
        "| a stream of 3,140 MB of files | 92 | 3.25 | **401** | 80 |",
        "| arrays in memory | 100 | 3.00 | 100 | 80 |",
        "| ratio | **0.925** (0.925) | 1.08 | | |",
        "| bar | 0.95 | | 400 | |",
    ]
    good = benchmark.files_rows(10**6, {"stream": measured(95.0), "memory": measured(100.0, total=500.0)})
    assert not any("**" in row for row in good)
    times = {"reader": [1.0, 2.0, 3.0], "training": [1.0, 1.0, 1.0], "both": [2.4, 2.4, 2.4]}
    slow = benchmark.overlap_row(benchmark.WAITS, times)
    assert slow == "| waits | 2.00 | 1.00 | 2.40 | **1.20** | 1.15 | 3 |"
    assert "| 1.20 |" in benchmark.overlap_row(benchmark.COMPUTES, times)
    page = benchmark.page(rows, [slow], 0.5, 2)
    for head, lines in ((benchmark.FILES_HEAD, rows), (benchmark.OVERLAP_HEAD, [slow])):
        table = [*head.splitlines(), *lines]
        assert "\n".join(table) in page
        assert len({text.count("|") for text in table}) == 1


@pytest.mark.slow
def test_the_benchmark_in_small(benchmark, capsys):
    rows = benchmark.files_rows(700, benchmark.from_files(700, 300, 1))
    times = benchmark.overlap(300, 1)
    assert rows[0].startswith("| a stream of 2 MB of files | ")
    assert set(times) == {benchmark.WAITS, benchmark.COMPUTES}
    assert all(len(taken) == 1 for each in times.values() for taken in each.values())
    assert capsys.readouterr().out.count("\n") == 4
