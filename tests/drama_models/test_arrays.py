"""Arrays on a full disk: a limit on the size of files stands for it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drama_models import Index
from drama_models.arrays import check_arrays, write_array
from drama_models.folders import sha256_of_folder

CODE = """
import resource, sys
from pathlib import Path
import numpy as np
from drama_models.arrays import write_array
from drama_models.console import disk_trouble
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
try:
    write_array(Path(sys.argv[1]), np.zeros(int(sys.argv[2]), np.float32))
except OSError as error:
    print(disk_trouble(error))
"""


@pytest.mark.parametrize("numbers", [1_000, 1_500, 100_000])
def test_what_does_not_fit_is_an_error_however_small(tmp_path: Path, numbers: int) -> None:
    command = [sys.executable, "-c", CODE, str(tmp_path / "a.npy"), str(numbers)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ("there is no room left on the disk" in result.stdout) == (numbers > 1_000)


@pytest.mark.parametrize("shape", [(0, 3), (5,), (70_000, 3)])
def test_files_are_those_of_numpy(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    write_array(tmp_path / "ours.npy", array)
    np.save(tmp_path / "numpys.npy", array)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpys.npy").read_bytes()
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_array(tmp_path / "objects.npy", np.array([{}], dtype=object))


def test_a_cut_file_of_somebody_else_is_found(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", np.zeros(100))
    check_arrays(tmp_path)
    path = tmp_path / "cut.npy"
    path.write_bytes((tmp_path / "whole.npy").read_bytes()[:-1])
    with pytest.raises(OSError, match="No space left on device"):
        check_arrays(tmp_path)


SAVE = """
import resource, sys
import numpy as np
from drama_models import Index
from drama_models.console import disk_trouble
folder, kind, limit, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
index = Index(16, kind=kind)
index.add([f"d{n}" for n in range(count)], np.random.default_rng(1).normal(size=(count, 16)).astype(np.float32))
index.search(np.ones((1, 16), np.float32))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    index.save(folder)
except OSError as error:
    print(disk_trouble(error))
"""


@pytest.mark.parametrize("count", [20, 3_000])
@pytest.mark.parametrize("kind", ["flat", "int8", "binary", "hnsw"])
def test_an_index_that_does_not_fit_leaves_the_old_one(tmp_path: Path, kind: str, count: int) -> None:
    folder = tmp_path / "my.index"
    index = Index(16, kind=kind)
    index.add([f"d{n}" for n in range(count)], np.random.default_rng(0).normal(size=(count, 16)).astype(np.float32))
    index.save(folder)
    before = sha256_of_folder(folder)
    largest = max(path.stat().st_size for path in folder.iterdir())
    for limit in (largest - 1, largest // 2):
        words = [str(folder), kind, str(limit), str(count)]
        result = subprocess.run([sys.executable, "-c", SAVE, *words], capture_output=True, text=True, check=True)
        assert "there is no room left on the disk" in result.stdout
        assert sha256_of_folder(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["my.index"]
