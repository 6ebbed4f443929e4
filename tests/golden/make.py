"""Golden files: what this version writes, kept so that every later version is held to reading it.

python tests/golden/make.py        writes a folder for this version; one that is there is never changed
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnn
from funcnn import checkpoints, layers, losses, training, weights

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(12, 2)
Y = X.sum(axis=1, keepdims=True)


def trainer():
    model = layers.serial(layers.dense(3), layers.batch_norm(), layers.tanh, layers.dropout(0.1), layers.dense(1))
    return training.supervised(model, losses.squared_error, optax.adam(0.1))


def batches():
    for begin in range(0, 12, 5):
        yield X[begin : begin + 5], Y[begin : begin + 5]


OPTIONS = {"key": jax.random.key(0), "epochs": 6, "monitor": "validation_loss", "keep_best": True, "progress": False}


def run(folder, resume=False, **more):
    """A run on a stream, with validation and the best state kept."""
    kept = checkpoints.directory(folder)
    return training.fit(trainer(), batches, validation=(X, Y), checkpoint=kept, resume=resume, **OPTIONS, **more)


def params():
    """A leaf of each kind."""
    values = jnp.arange(6.0).reshape(2, 3)
    dtypes = ("float32", "bfloat16", "float16", "float8_e4m3fn", "int8", "uint32", "bool", "int4")
    return {name: {"a": values.astype(name)} for name in dtypes} | {"key": jax.random.key(7), "scalar": jnp.int32(3)}


def plain(tree):
    """Arrays as lists of numbers that JSON holds to the bit, by path."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        values = np.asarray(leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf).tolist()
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = [str(leaf.dtype), values]
    return json.loads(json.dumps(found))


def main():
    folder = Path(__file__).parent / funcnn.__version__
    if folder.exists():
        sys.exit(f"{folder} is there")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:  # which Orbax writes down
        made = Path(place) / "made"
        run(made / "run", observers=[lambda event: event.epoch >= 3], every=1)
        for name in (".passing", "programs"):  # of no use to a reader
            shutil.rmtree(made / "run" / name)
        (made / "run" / "LOCK").unlink()
        weights.save(made / "weights.safetensors", params(), {"seen": jnp.int32(5)}, card="golden")
        found = checkpoints.load(made / "run")
        expected = {"state": plain(found.state), "best": plain(found.best), "history": plain(found.history)}
        (made / "expected.json").write_text(json.dumps({**expected, "params": plain(params())}))
        shutil.copytree(made, folder)


if __name__ == "__main__":
    main()
