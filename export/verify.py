"""Parity over clients: each loads the release in a process of its own, without our package, and must agree with us.

Texts are given in padded batches that mix their lengths, and some of them again alone. Pooling here is the mean, so
only folders that pool by the mean are compared; what each client reads is in `client_files`.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drama_models.encoder import Encoder
from drama_models.errors import ModelFolderError, TextsCutWarning
from drama_models.model_folder import ONNX_GRAPH, read_json
from drama_models.pooling import cosines
from drama_models.profile import Profile
from drama_models.tokenisation import TextTokenizer
from export.client_environments import (
    CLIENTS,
    CLIENTS_FOLDER,
    CUT_TEXTS,
    NODE_PACKAGE,
    OUTER_SPACE,
    REMOTE_CODE,
    Client,
    Environment,
    this_environment,
    without_remote_code,
)
from export.int8_onnx import INT8_GRAPHS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

MIN_COSINE = 0.9999
INT8_MIN_COSINE = 0.995
JS_TYPES = {"model": "fp32", "model_fp16": "fp16", "model_int8": "int8", "model_quantized": "q8"}
MODEL_CODE = Path(__file__).parents[1] / "drama_models" / "modeling_drama.py"
BATCH_TEXTS = 8
UNCUT = 1 << 20  # tokens
LONG_TOKENS = 512  # beyond it a text is given alone, since attention in a padded batch needs length squared of memory
EVERY = slice(None)
EACH_ALONE = 5  # every fifth of the others is given alone too


@dataclass(frozen=True)
class Parity:
    """How far one client's embeddings are from our own encoder's on the same texts."""

    client: str
    version: str
    largest_difference: float = math.nan
    """Over all coordinates of all texts, absolute; NaN where the client was not run, as below."""
    smallest_cosine: float = math.nan
    mean_cosine: float = math.nan
    problem: str = ""
    """Why it was not run, or what is wrong with its vectors; empty where it agrees."""

    def as_json(self) -> dict[str, str | float]:
        """Plain values for a provenance record."""
        return {key: value for key, value in asdict(self).items() if key == "version" or not _is_empty(value)}

    @property
    def failed(self) -> bool:
        """Whether the client is installed and does not agree."""
        return bool(self.problem) and self.problem != NOT_INSTALLED


NOT_INSTALLED = "not installed"


def verify(folder: Path, texts: Sequence[str]) -> list[Parity]:
    """Compare every client of this environment with `Encoder(runtime="torch")`.

    Args:
        folder: a release folder.
        texts: encoded as documents.

    Raises:
        ModelFolderError: a client fails to load the folder or one of its graphs, or its smallest cosine is below
            0.9999, or 0.995 with a graph in eight bits.
    """
    parity = [entry for entry in compare(folder, texts, [this_environment()]) if entry.problem != NOT_INSTALLED]
    check(parity, folder)
    return parity


def check(parity: Sequence[Parity], folder: Path) -> None:
    """Refuse a folder that a client disagrees on.

    Raises:
        ModelFolderError: naming the first such client.
    """
    for entry in parity:
        if entry.failed:
            raise ModelFolderError(f"{entry.client} {entry.version} {entry.problem}; do not publish {folder.name}.")


def compare(folder: Path, texts: Sequence[str], environments: Sequence[Environment]) -> list[Parity]:
    """Compare every client that is installed in one of the environments; the others are listed as not installed.

    Clients that pool by mean alone are left out where the folder pools in another way, and those whose scripts do not
    know this kind of model.

    Args:
        folder: a release folder.
        texts: encoded as documents.
        environments: to look for clients in.
    """
    profile, config = Profile.from_folder(folder), read_json(folder / "config.json")
    clients = [
        client if "auto_map" in config else without_remote_code(client)
        for client in CLIENTS
        if (client.pools_as_told or profile.pooling == "mean") and config.get("model_type") not in client.not_for
    ]
    ids, _ = TextTokenizer(folder, profile, UNCUT).encode(texts, profile.document_prompt)
    texts = [text for text, row in zip(texts, ids, strict=True) if len(row)]  # the others have no vector anywhere
    ids = [row for row in ids if len(row)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextsCutWarning)  # one of the texts is there to be cut
        ours = Encoder.from_pretrained(folder, runtime="torch").encode_documents(list(texts))
    batches = padded_and_alone([min(len(row), profile.max_length) for row in ids])
    given = [[profile.document_prompt + texts[position] for position in batch] for batch in batches]
    order = [position for batch in batches for position in batch]
    kept = {
        "": np.ones(len(order), dtype=bool),
        CUT_TEXTS: np.array([len(ids[position]) <= profile.max_length for position in order]),
        OUTER_SPACE: np.array([texts[position] == texts[position].strip() for position in order]),
    }
    return [
        entry
        for client in clients
        for entry in _client_parity(client, folder, given, ours[order], kept[client.without], environments)
    ]


def padded_and_alone(lengths: Sequence[int]) -> list[list[int]]:
    """Positions of texts in batches: all but the long ones padded together, then those and some others alone."""
    together = [position for position, length in enumerate(lengths) if length <= LONG_TOKENS]
    alone = together[::EACH_ALONE] + [position for position, length in enumerate(lengths) if length > LONG_TOKENS]
    padded = [together[start : start + BATCH_TEXTS] for start in range(0, len(together), BATCH_TEXTS)]
    return [*padded, *([position] for position in alone)]


def _client_parity(
    client: Client,
    folder: Path,
    batches: list[list[str]],
    expected: NDArray[np.float32],
    kept: NDArray[np.bool_],
    environments: Sequence[Environment],
) -> Iterator[Parity]:
    """One entry for each version of the client that is found, and for each graph."""
    found: dict[str, Environment] = {}
    for environment in environments:
        version = environment.version(client)
        if version is not None:
            found.setdefault(version, environment)
    if not found:
        yield Parity(client.name, "", problem=NOT_INSTALLED)
    for version, environment in found.items():
        for graph in _graphs(folder) if client.graphs else [ONNX_GRAPH]:
            label = ", ".join(filter(None, (client.name, "" if graph == ONNX_GRAPH else Path(graph).stem)))
            label += f", without {client.without}" if client.without else ""
            try:
                vectors = _run_client(client, environment, folder, batches, graph)
                largest, reached = difference(vectors, expected, kept)
                problem = _problem(reached, graph, folder)
                yield Parity(label, version, largest, float(reached.min()), float(reached.mean()), problem)
            except ModelFolderError as error:
                yield Parity(label, version, problem=str(error))


def _graphs(folder: Path) -> list[str]:
    """The default graph, then the others."""
    others = sorted(path.relative_to(folder).as_posix() for path in folder.glob("onnx/*.onnx"))
    return [ONNX_GRAPH, *(name for name in others if name != ONNX_GRAPH)]


def _run_client(
    client: Client, environment: Environment, folder: Path, batches: list[list[str]], graph: str
) -> NDArray[np.float32]:
    """Vectors of all texts in the order of the batches.

    Raises:
        ModelFolderError: the client cannot load the folder, or would run code that is not ours.
    """
    code = folder / MODEL_CODE.name
    if client.argument == REMOTE_CODE and not (code.is_file() and code.read_bytes() == MODEL_CODE.read_bytes()):
        raise ModelFolderError(f"was not run: {MODEL_CODE.name} of {folder.name} is not the one of this project")
    with tempfile.TemporaryDirectory() as work:
        source, target = Path(work) / "batches.json", Path(work) / "vectors.npy"
        plain = Path(work) / "release"  # transformers.js takes a folder's name for one on the hub, of few characters
        plain.symlink_to(folder.resolve())
        source.write_text(json.dumps(batches), encoding="utf-8")
        script = str(CLIENTS_FOLDER / client.script)
        command = [*environment.command, script, str(plain), str(source), str(target)]
        command += [_last_word(client, graph)]
        variables = {**os.environ, **environment.variables, "HF_HUB_OFFLINE": "1", "HF_HOME": work}
        variables.pop("PYTHONPATH", None)
        result = subprocess.run(  # noqa: S603
            [word for word in command if word], capture_output=True, text=True, check=False, cwd=work, env=variables
        )
        if result.returncode:
            raise ModelFolderError(f"cannot load {folder.name}: {_last_line(result.stderr)}")
        if NODE_PACKAGE in client.needs:
            return np.array(json.loads(target.read_text(encoding="utf-8")), dtype=np.float32)
        vectors: NDArray[np.float32] = np.load(target, allow_pickle=False)
        return vectors


def _last_word(client: Client, graph: str) -> str:
    """The script's last argument: that of the client, or a graph other than the default one."""
    if NODE_PACKAGE in client.needs:
        return JS_TYPES.get(Path(graph).stem, Path(graph).stem)
    return client.argument or ("" if graph == ONNX_GRAPH else graph)


def _last_line(stderr: str) -> str:
    """What a failed process said last: its error, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith("Node.js v")]
    errors = [line for line in lines if re.match(r"[\w.]*Error\b", line)]
    return (errors or lines or ["no message"])[-1]


def difference(
    vectors: NDArray[np.float32], expected: NDArray[np.float32], kept: NDArray[np.bool_] | slice = EVERY
) -> tuple[float, NDArray[np.floating]]:
    """Largest difference of a coordinate at length 1, and the cosine of each text that is kept.

    Most scripts of clients scale to length 1 whether or not the model does.

    Raises:
        ModelFolderError: vectors of another shape.
    """
    if vectors.shape != expected.shape:
        raise ModelFolderError(f"gives vectors of shape {vectors.shape}, not {expected.shape}")
    vectors, expected = (rows[kept] / np.linalg.norm(rows[kept], axis=1, keepdims=True) for rows in (vectors, expected))
    return float(np.abs(vectors - expected).max()), cosines(vectors, expected)


def _is_empty(value: str | float) -> bool:
    return value == "" or (isinstance(value, float) and math.isnan(value))


def _problem(reached: NDArray[np.floating], graph: str, folder: Path) -> str:
    smallest, wanted = float(reached.min()), INT8_MIN_COSINE if graph in INT8_GRAPHS else MIN_COSINE
    if smallest >= wanted:  # a NaN is not
        return ""
    return f"disagrees on {folder.name}: smallest cosine {smallest:.6f}, at least {wanted} is expected"
