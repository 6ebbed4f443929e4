"""Weights in a file: what was saved comes back to the bit, or one error names the file and what is wrong with it."""

import json
import os
import random
import resource
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from funcnn import models, training, weights

KEY = jax.random.key(0)
SMALL = {"dense_0": {"kernel": jnp.arange(6, dtype=jnp.float32).reshape(2, 3), "bias": jnp.ones(3, jnp.bfloat16)}}
CARD = "A small one: µ."
STATE = {"norm": {"mean": jnp.zeros(3), "count": jnp.int32(7)}, "key": jax.random.key(5)}


def same(found, expected):
    """Whether two trees have the same paths, dtypes and bytes."""

    def leaves(tree):
        pairs = jax.tree_util.tree_leaves_with_path(tree)
        is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for _, leaf in pairs]
        data = [jax.random.key_data(leaf) if key else leaf for (_, leaf), key in zip(pairs, is_key, strict=True)]
        return {
            jax.tree_util.keystr(path): (str(leaf.dtype), np.asarray(a).shape, np.asarray(a).tobytes())
            for (path, leaf), a in zip(pairs, data, strict=True)
        }

    return leaves(found) == leaves(expected)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save(path, SMALL, STATE, card=CARD)
    return path


def test_without_safetensors_it_says_what_to_install(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: weights.load(saved), lambda: weights.save(saved, SMALL)):
        with pytest.raises(ImportError, match=r"^weights\.\w+: expected safetensors, .*'funcnn\[weights\]'"):
            call()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a path in a folder that is there, got .*nowhere/a.safetensors"):
        weights.save(tmp_path / "nowhere" / "a.safetensors", SMALL)


def test_what_was_saved_comes_back(saved):
    found = weights.load(saved)
    assert same(found.params, SMALL)
    assert same(found.state, STATE)
    assert found.card == CARD
    assert set(found.versions) == {"funcnn", "jax", "numpy", "safetensors"}
    assert os.listdir(saved.parent) == [saved.name]  # nothing is left beside it


WHOLE = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int4", "uint4")
FLOATING = ("float16", "bfloat16", "float32", "complex64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz")


@pytest.mark.parametrize("dtype", [*WHOLE, *FLOATING])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4), (1,)], ids=str)
def test_every_dtype_comes_back(tmp_path, dtype, shape):
    values = np.asarray(np.random.default_rng(0).integers(0, 2, shape))
    tree = {"a": jnp.asarray(values).astype(dtype)}
    weights.save(tmp_path / "a", tree)
    assert same(weights.load(tmp_path / "a").params, tree)


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
        np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-3],
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.broadcast_to(np.float32(3), (2, 2)),
    ],
    ids=["by columns", "strided", "big-endian", "broadcast"],
)
def test_how_an_array_lies_in_memory_does_not_matter(tmp_path, array):
    weights.save(tmp_path / "a", {"a": array})
    np.testing.assert_array_equal(weights.load(tmp_path / "a").params["a"], array)


def test_a_network_comes_back(tmp_path):
    model = models.resnet(18, 10)
    params, state = jax.eval_shape(model.init, KEY, jnp.zeros((1, 8, 8, 3)))
    drawn = iter(range(10**6))
    params, state = jax.tree.map(lambda a: np.full(a.shape, next(drawn), a.dtype), (params, state))
    weights.save(tmp_path / "a", params, state)
    found = weights.load(tmp_path / "a", like=params)
    assert same((found.params, found.state), (params, state))


def test_other_libraries_read_it(saved):
    with safetensors.safe_open(saved, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys() if "bias" not in name}  # noqa: SIM118
        assert file.metadata()["card"] == CARD
    np.testing.assert_array_equal(arrays["params/dense_0/kernel"], SMALL["dense_0"]["kernel"])


def test_pytorch_reads_it(saved):
    torch = pytest.importorskip("torch", reason="the oracles extra is not installed")
    with safetensors.safe_open(saved, framework="pt") as file:
        bias = file.get_tensor("params/dense_0/bias")
    assert bias.dtype == torch.bfloat16
    assert bias.tolist() == [1, 1, 1]


def test_files_of_other_libraries_are_read_where_asked(tmp_path):
    path = tmp_path / "theirs.safetensors"
    safetensors.numpy.save_file({"encoder.0.weight": np.ones((2, 3), np.float32)}, path)
    with pytest.raises(weights.WeightsError, match=r"a file of weights\.save, with checksums.*pass verify=False"):
        weights.load(path)
    found = weights.load(path, verify=False, rename={"encoder/*/weight": "body/*/kernel"})
    assert found.params["body"]["0"]["kernel"].shape == (2, 3)


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_parts_are_read_by_pattern_and_put_in_other_places(saved):
    like = {"body": {"kernel": jnp.zeros((2, 3))}, "head": {"kernel": jnp.full((5, 2), 8.0)}}
    found = weights.load(saved, "dense_0/kernel", rename={"dense_0/*": "body/*"}, like=like)
    np.testing.assert_array_equal(found.params["body"]["kernel"], SMALL["dense_0"]["kernel"])
    np.testing.assert_array_equal(found.params["head"]["kernel"], like["head"]["kernel"])
    assert found.state == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patterns": ("dense_9/**",)}, "dense_9"),
        (
            {"like": {"dense_0": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}},
            r"\(3,\) of float32, as in like, got",
        ),
        ({"like": {"dense_0": {"kernel": jnp.zeros((3, 3))}}, "patterns": ("**/kernel",)}, r"\(3, 3\).*got \(2, 3\)"),
        ({"like": {"dense_1": {"kernel": jnp.zeros((2, 3))}}}, "one of the paths of like, dense_1/kernel, got none"),
        ({"rename": {"dense_3/**": "a/**"}}, "dense_3"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_path(saved, arguments, message):
    with pytest.raises(ValueError, match=message):
        weights.load(saved, *arguments.pop("patterns", ()), **arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": 3.0}, "a: expected an array, got float"),
        ({"a": np.array(["x"])}, "expected an array of numbers, got <U1"),
        ({"a": jax.ShapeDtypeStruct((2,), jnp.float32)}, "expected an array, got ShapeDtypeStruct"),
    ],
)
def test_what_is_no_array_is_refused(tmp_path, given, message):
    with pytest.raises(TypeError, match=message):
        weights.save(tmp_path / "a", given)
    assert os.listdir(tmp_path) == []


def test_inside_jit_it_says_so(tmp_path):
    with pytest.raises(TypeError, match="got a tracer; save outside of jit"):
        jax.jit(lambda a: weights.save(tmp_path / "a", {"a": a}))(jnp.ones(2))


def test_double_precision_is_not_cut(tmp_path):
    weights.save(tmp_path / "a", {"a": np.ones(2, np.float64)})
    with pytest.raises(ValueError, match="jax_enable_x64"):
        weights.load(tmp_path / "a")
    with jax.enable_x64(True):
        assert weights.load(tmp_path / "a").params["a"].dtype == np.float64


# ---- damage ----------------------------------------------------------------------------------------------------------


def outcome(path, content):
    """What becomes of a file with this content: refused by our own error, the same, or other numbers."""
    path.write_bytes(content)
    try:
        found = weights.load(path)
    except weights.WeightsError as error:
        return "refused" if str(path) in str(error) and error.path == str(path) else f"without the path: {error}"
    return "same" if same((found.params, found.state), (SMALL, STATE)) and found.card == CARD else "other"


def flipped(content, places, masks):
    for place in places:
        for mask in masks:
            yield content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :]


def test_a_changed_byte_is_never_other_numbers(saved):
    content = saved.read_bytes()
    found = [outcome(saved, c) for c in flipped(content, range(0, len(content), 7), (1, 0x20))]
    assert set(found) <= {"refused", "same"}
    assert found.count("refused") > 0.9 * len(found)


@pytest.mark.slow
def test_every_changed_bit_is_never_other_numbers(saved):
    content = saved.read_bytes()
    masks = [1 << bit for bit in range(8)]
    assert {outcome(saved, c) for c in flipped(content, range(len(content)), masks)} <= {"refused", "same"}


def test_a_file_that_was_cut_off_is_refused_at_every_length(saved):
    content = saved.read_bytes()
    assert {outcome(saved, content[:n]) for n in range(len(content))} == {"refused"}
    assert outcome(saved, content + b"\0") == "refused"


def framed(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


TWICE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" + bytes(100),
        b"\x80\x04\x95" + bytes(100),
        framed({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)),
        framed({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}}, bytes(4)),
        (2**62).to_bytes(8, "little") + b"{}",
        framed(b'{"a":' + b"[" * 100_000),
        framed(b"{" + TWICE + b"," + TWICE + b"}", bytes(4)),
        framed({"__metadata__": {"format": "funcnn 1", "sha256": "0", "leaves": "[" * 10_000}}),
        framed({"__metadata__": {"format": "funcnn 1"}}),
    ],
    ids=["zip", "pickle", "shape", "offset", "header length", "deep", "twice", "metadata", "no checksum"],
)
def test_files_made_to_harm_are_refused(tmp_path, content):
    assert outcome(tmp_path / "a.safetensors", content) == "refused"


@pytest.mark.slow
def test_ten_thousand_mutants_are_refused_or_the_same(saved):
    content, draw = saved.read_bytes(), random.Random(0)
    for _ in range(10_000):
        mutant = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(mutant))
            what = draw.randrange(4)
            if what == 0:
                mutant[place] = draw.randrange(256)
            elif what == 1:
                del mutant[place : place + draw.randint(1, 20)]
            elif what == 2:
                mutant[place:place] = draw.randbytes(draw.randint(1, 20))
            else:
                mutant[place : place + 8] = draw.randbytes(8)
            mutant = mutant or bytearray(b"\0")
        assert outcome(saved, bytes(mutant)) in ("refused", "same")


@pytest.mark.parametrize(
    "change",
    [
        {"leaves": "[]"},
        {"leaves": "3"},
        {"leaves": '{"params/dense_0/bias": 3}'},
        {"leaves": "[" * 100_000},
        {"versions": "[1]"},
        {"versions": "no"},
        *(
            {"leaves": json.dumps({"params/dense_0/kernel": {"dtype": "f4", "shape": [1], "sha256": "", **wrong}})}
            for wrong in ({"dtype": "nothing"}, {"shape": 3}, {"shape": [1.5]}, {"sha256": 7}, {"key": []})
        ),
        {"leaves": json.dumps({"other/a": {"dtype": "f4", "shape": [1], "sha256": ""}})},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_description_that_no_save_writes_is_refused_though_its_checksum_is_right(saved, change):
    with safetensors.safe_open(saved, framework="numpy") as file:
        metadata = file.metadata() | change
    content = saved.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = metadata | {"sha256": weights._digest(metadata)}
    assert outcome(saved, framed(header, content[8 + length :])) == "refused"


def test_nothing_in_a_file_is_executed(saved):
    script = f"""
        import sys
        from funcnn import weights
        weights.load({str(saved)!r})  # what is imported when it is used first
        seen = []
        bad = ("exec", "compile", "import", "subprocess.Popen", "os.system", "socket.connect", "pickle.find_class")
        sys.addaudithook(lambda event, args: seen.append(event) if event in bad else None)
        weights.load({str(saved)!r})
        print(seen)
    """
    assert run(script) == "[]"


def run(script):
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- whole or not at all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["serialize_file", "open", "fsync", "replace", "close"])
def test_whatever_fails_the_old_file_stays(saved, monkeypatch, call):
    def fails(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors if call == "serialize_file" else os, call, fails)
        with pytest.raises(OSError, match="No space left"):
            weights.save(saved, {"other": jnp.ones(3)})
    assert same(weights.load(saved).params, SMALL)
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_what_was_there(saved):
    script = f"""
        import resource, signal
        import numpy as np
        from funcnn import weights
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            weights.save({str(saved)!r}, {{"a": np.ones(10_000, np.float32)}})
        except OSError as error:
            print(type(error).__name__)
    """
    assert run(script) == "OSError"
    assert same(weights.load(saved).params, SMALL)
    assert os.listdir(saved.parent) == [saved.name]


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        weights.save(tmp_path / "nowhere" / "a", SMALL)
    with pytest.raises(FileNotFoundError):
        weights.load(tmp_path / "nothing")


def test_a_name_that_is_there_twice_is_refused_without_checksums_too(tmp_path):
    (tmp_path / "a").write_bytes(framed(b"{" + TWICE + b"," + TWICE + b"}", bytes(4)))
    with pytest.raises(weights.WeightsError, match="a name that is there twice"):
        weights.load(tmp_path / "a", verify=False)


def test_a_file_that_says_that_it_is_large_is_not_read(tmp_path):
    """Neither a header of 2**60 bytes, nor a file of 64 GB of nothing."""
    header = tmp_path / "header.safetensors"
    header.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    sparse = tmp_path / "sparse.safetensors"
    with sparse.open("wb") as file:
        file.truncate(2**36)
    told = tmp_path / "told.safetensors"
    content = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    told.write_bytes(len(content).to_bytes(8, "little") + content)
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in (header, sparse, told):
        with pytest.raises(weights.WeightsError, match="a file of safetensors") as caught:
            weights.load(path)
        assert caught.value.path == str(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin < 100_000  # kB


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(weights.WeightsError, match="a file, got a folder or a device"):
            weights.load(path)


def test_no_array_is_lost_under_the_path_of_another(tmp_path):
    with pytest.raises(ValueError, match="expected a path of its own for each array, got two of the same"):
        weights.save(tmp_path / "a", {"a/b": jnp.ones(1), "a": {"b": jnp.zeros(1)}})
    safetensors.numpy.save_file({"a.b": np.ones(1, "f"), "a/b": np.zeros(1, "f")}, tmp_path / "b")
    with pytest.raises(weights.WeightsError, match="a path of its own for each array"):
        weights.load(tmp_path / "b", verify=False)


def test_a_result_is_not_taken_for_params(tmp_path):
    state = training.TrainState({"a": jnp.ones(1)}, {}, {}, jax.random.key(0), 0)
    with pytest.raises(TypeError, match=r"got TrainState; pass result\.state\.params"):
        weights.save(tmp_path / "a", state)


def test_threads_that_save_at_once_leave_one_of_the_files(tmp_path):
    def save(number):
        for _ in range(20):
            weights.save(tmp_path / "a", {"a": jnp.full(100, number)})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(save, range(4)))
    assert len(set(weights.load(tmp_path / "a").params["a"].tolist())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
