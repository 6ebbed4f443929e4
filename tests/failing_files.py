"""A save whose n-th file operation fails, or at which the process ends, for each n: a script of its own.

``python failing_files.py FOLDER fail|exit [STRIDE]`` tries every n, or every STRIDE-th, and prints how many there were;
it ends with an error where a directory is left that does not hold what was once true.
"""

import errno
import os
import shutil
import sys
import traceback
import warnings

import ml_dtypes
import numpy as np
from orbax.checkpoint import v1  # noqa: F401  before the process is doubled

from funcnn import checkpoints
from funcnn.training.keepers import SaveError  # noqa: F401

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "os.symlink", "os.fsync")
ABOUT = {"keys": {}, "rows": 0, "rows_axis": 0}


def leaves(step):
    return {
        "state/params/kernel": np.full((3, 2), step, np.float32),
        "state/params/half": np.full(5, step, ml_dtypes.bfloat16),
        "state/step": np.int32(step),
    }


def save(folder, step):
    with checkpoints.directory(folder, keep=2).opened() as keeper:
        keeper.keep(step, {"step": step, **ABOUT}, leaves(step), wait=True)


def newest(folder):
    """The step that is found, if all its arrays are those of it."""
    with checkpoints.directory(folder, keep=2).opened() as keeper:
        found = keeper.newest()
    step = found.about["step"]
    wanted = leaves(step)
    assert set(found.leaves) == set(wanted)
    for path, array in wanted.items():
        assert found.leaves[path].tobytes() == array.tobytes(), path
        assert found.leaves[path].dtype == array.dtype, path
    return step


def in_child(function, *given):
    """What a function returns in a process of its own, as its exit code."""
    pid = os.fork()
    if not pid:
        try:
            code = function(*given)
        except BaseException:
            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def broken_save(folder, how, n):
    """Exit code 0 where the save was done before its n-th operation, 1 where it failed, 2 where the process ended."""
    count = 0

    def hook(event, given):
        nonlocal count
        if event not in EVENTS or (event == "open" and not _writes(given)):
            return
        if not any(isinstance(part, str) and part.startswith(folder) for part in given) and event != "os.fsync":
            return
        count += 1
        if count == n:
            if how == "exit":
                os._exit(2)
            raise OSError(errno.ENOSPC, "no space left")

    whole = os.fsync

    def fsync(handle):
        hook("os.fsync", (folder,))
        whole(handle)

    os.fsync = fsync
    sys.addaudithook(hook)
    try:
        save(folder, 3)
    except OSError:
        return 1
    except ValueError as error:  # what Orbax makes of it
        return 1 if "no space left" in str(error) else 98
    # What is only cleaned up may fail.
    return 0 if count < n else 3


def _writes(given):
    _, mode, flags = given
    return (isinstance(mode, str) and set(mode) & set("wxa+")) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)


def main(folder, how, stride="1"):
    warnings.simplefilter("ignore")  # of a process with threads that is doubled
    start = os.path.join(folder, "start")
    for step in (1, 2):
        assert in_child(lambda step=step: save(start, step) or 0) == 0
    n, codes = 1 - int(stride), []
    while not codes or codes[-1] != 0:
        n += int(stride)
        place = os.path.join(folder, "broken")
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(start, place)
        codes.append(in_child(broken_save, place, how, n))
        assert codes[-1] in (0, 1, 2, 3), (n, codes[-1])
        there = in_child(newest, place)
        assert there in ((3,) if codes[-1] in (0, 3) else (2, 3)), (n, codes[-1], there)
        assert in_child(lambda: save(place, 4) or 0) == 0, n  # noqa: B023
        assert in_child(newest, place) == 4, n
        left = os.listdir(os.path.join(place, ".passing"))
        assert not left or codes[-1] == 3, (n, left)
    print(len(codes) - 1, {code: codes.count(code) for code in sorted(set(codes))})


if __name__ == "__main__":
    main(*sys.argv[1:])
