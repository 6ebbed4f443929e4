"""Files that earlier versions wrote are read by this one, to the bit."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

import funcnn
from funcnn import checkpoints, weights

FOLDER = Path(__file__).parent / "golden"
GOLDEN = runpy.run_path(str(FOLDER / "make.py"))
VERSIONS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__")

every_version = pytest.mark.parametrize("version", VERSIONS)


def test_this_version_has_files():
    assert funcnn.__version__ in VERSIONS, "python tests/golden/make.py"


def expected(version):
    return json.loads((FOLDER / version / "expected.json").read_text())


@every_version
def test_a_checkpoint_is_read(version):
    wanted, folder = expected(version), FOLDER / version / "run"
    assert [step.fault for step in checkpoints.verify(folder)] == [""]
    found = checkpoints.load(folder)
    assert found.step == 9
    for name in ("state", "best", "history"):
        assert GOLDEN["plain"](getattr(found, name)) == wanted[name]
    assert len(wanted["state"]) > 20


@every_version
def test_a_checkpoint_is_gone_on_with(version, tmp_path):
    """With the explicit word: a later version may compute in another order."""
    shutil.copytree(FOLDER / version / "run", tmp_path / "run")
    result = GOLDEN["run"](tmp_path / "run", resume="changed")
    assert int(result.state.step) == 18
    np.testing.assert_array_equal(result.history["loss"][:3], expected(version)["history"]["loss"][1])
    assert result.history["loss"][-1] < result.history["loss"][0]


@every_version
def test_weights_are_read(version):
    found = weights.load(FOLDER / version / "weights.safetensors")
    assert GOLDEN["plain"](found.params) == expected(version)["params"]
    assert int(found.state["seen"]) == 5
    assert found.card == "golden"
