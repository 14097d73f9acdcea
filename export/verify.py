"""Parity over clients: each loads the release in a process of its own, without our package, and must agree with us.

Pooling here is the mean, so only folders that pool by the mean are compared; what each client reads is in
`client_files`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drama_models.encoder import Encoder
from drama_models.errors import ModelFolderError
from drama_models.model_folder import ONNX_GRAPH
from drama_models.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Sequence

CLIENTS = Path(__file__).parent / "clients"
NEEDED = {"automodel": "transformers", "sentence_transformers": "sentence_transformers", "onnxruntime": "onnxruntime"}
MIN_COSINE = 0.9999


@dataclass(frozen=True)
class Parity:
    """How far one client's embeddings are from our own encoder's on the same texts."""

    client: str
    version: str
    largest_difference: float
    """Over all coordinates of all texts, absolute."""
    smallest_cosine: float
    mean_cosine: float

    def as_json(self) -> dict[str, str | float]:
        """Plain values for a provenance record."""
        return asdict(self)


def verify(folder: Path, texts: Sequence[str]) -> list[Parity]:
    """Compare every installed client with `Encoder(runtime="torch")`.

    Args:
        folder: a release folder.
        texts: encoded as documents.

    Raises:
        ModelFolderError: a client fails to load the folder or one of its graphs, or its smallest cosine is below
            0.9999.
    """
    if Profile.from_folder(folder).pooling != "mean":
        return []
    ours = Encoder.from_pretrained(folder, runtime="torch").encode_documents(list(texts))
    found = []
    for client, package, graph in _runs(folder):
        label = f"{client}, {Path(graph).stem}" if graph else client
        parity = _compare(label, package, ours, _run_client(client, folder, texts, graph))
        if not parity.smallest_cosine >= MIN_COSINE:
            raise ModelFolderError(
                f"{label} {parity.version} disagrees on {folder.name}: smallest cosine {parity.smallest_cosine:.6f}, "
                f"at least {MIN_COSINE} is expected; do not publish this folder."
            )
        found.append(parity)
    return found


def largest_difference(parity: Sequence[Parity], client: str) -> float:
    """Largest difference of a client, NaN if it was not installed."""
    return next((entry.largest_difference for entry in parity if entry.client == client), float("nan"))


def _runs(folder: Path) -> list[tuple[str, str, str]]:
    """Client, its package, and the graph it is given instead of its default one: each of the others has its turn."""
    others = sorted(path.relative_to(folder).as_posix() for path in folder.glob("onnx/*.onnx"))
    graphs = {"onnxruntime": ["", *(name for name in others if name != ONNX_GRAPH)]}
    installed = {client: package for client, package in NEEDED.items() if find_spec(package) is not None}
    return [(client, package, graph) for client, package in installed.items() for graph in graphs.get(client, [""])]


def _run_client(client: str, folder: Path, texts: Sequence[str], graph: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as work:
        source, target = Path(work) / "texts.json", Path(work) / "vectors.npy"
        source.write_text(json.dumps(list(texts)), encoding="utf-8")
        command = [sys.executable, str(CLIENTS / f"{client}.py"), str(folder), str(source), str(target)]
        command += [graph] if graph else []
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise ModelFolderError(f"{client} cannot load {folder.name}: {last}")
        vectors: np.ndarray = np.load(target, allow_pickle=False)
        return vectors


def _compare(client: str, package: str, ours: np.ndarray, theirs: np.ndarray) -> Parity:
    from importlib import metadata

    cosine = (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    version = metadata.version(package.replace("_", "-"))
    return Parity(client, version, float(np.abs(ours - theirs).max()), float(cosine.min()), float(cosine.mean()))
