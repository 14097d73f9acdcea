"""Which clients there are to compare, what each needs, and the environments that they are found in.

Clients exclude one another: transformers 4 and 5 cannot be installed together, nor can optimum-onnx or FastEmbed beside
what this project pins. So they are looked for in this environment and in a second one, `.venv-compat` (`make compat`),
or wherever COMPAT_PYTHON points; transformers.js in `node_modules` of the second one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

CLIENTS_FOLDER = Path(__file__).parent / "clients"
COMPAT_VARIABLE = "COMPAT_PYTHON"
COMPAT_FOLDER = Path(__file__).parents[1] / ".venv-compat"
NODE_PACKAGE = "@huggingface/transformers"
LIST_PACKAGES = """
import json
from importlib import metadata
print(json.dumps({found.metadata["Name"]: found.version for found in metadata.distributions()}))
"""


@dataclass(frozen=True, kw_only=True)
class Client:
    """A tool that loads release folders, as one script in `clients/` uses it."""

    name: str
    """In the table."""
    script: str
    needs: dict[str, str]
    """Packages and the versions of them that will do; the first one's version is shown."""
    argument: str = ""
    """The script's last word."""
    graphs: bool = False
    """Whether each graph of the folder has its turn."""
    without: str = ""
    """Texts that it changes before they reach the model, on which it is not compared; said in the table."""
    pools_as_told: bool = True
    """Whether its script pools as the folder says; else by mean."""
    not_for: tuple[str, ...] = ()
    """Kinds of model, as config.json names them, that its script does not know."""


@dataclass(frozen=True)
class Environment:
    """Where clients are installed."""

    command: tuple[str, ...]
    """That runs a script there."""
    packages: dict[str, str] = field(default_factory=dict)
    """Version by name, in lower case with hyphens."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables that scripts need there."""

    def version(self, client: Client) -> str | None:
        """Version of a client's package; None where it, or something it needs, is not installed."""
        found = [self.packages.get(name) for name in client.needs]
        fitting = zip(client.needs.values(), found, strict=True)
        if not all(version and SpecifierSet(wanted, prereleases=True).contains(version) for wanted, version in fitting):
            return None
        return found[0]


REMOTE_CODE = "remote-code"
TORCH = {"torch": ""}
CUT_TEXTS = "cut texts"  # transformers.js and llama.cpp cut EOS off together with what is too long
OUTER_SPACE = "texts with outer white space"  # sentence-transformers 5 strips it
CLIENTS = (
    Client(name="automodel", script="automodel.py", needs={"transformers": ">=5.2"} | TORCH),
    Client(
        name="automodel, remote code",
        script="automodel.py",
        argument=REMOTE_CODE,
        needs={"transformers": "<5.2"} | TORCH,
    ),
    Client(
        name="sentence_transformers",
        script="sentence_transformers.py",
        needs={"sentence-transformers": ">=5", "transformers": ">=5.2"} | TORCH,
    ),
    Client(
        name="sentence_transformers, remote code",
        script="sentence_transformers.py",
        argument=REMOTE_CODE,
        needs={"sentence-transformers": ">=5", "transformers": "<5"} | TORCH,
        without=OUTER_SPACE,
    ),
    Client(
        name="sentence_transformers, onnx",
        script="sentence_transformers.py",
        argument="onnx",
        needs={"sentence-transformers": ">=5", "optimum-onnx": "", "onnxruntime": ""},
        without=OUTER_SPACE,
    ),
    Client(name="onnxruntime", script="onnxruntime.py", needs={"onnxruntime": "", "tokenizers": ""}, graphs=True),
    Client(name="openvino", script="openvino.py", needs={"openvino": "", "tokenizers": ""}, graphs=True),
    Client(name="fastembed", script="fastembed.py", needs={"fastembed": ""}, graphs=True, pools_as_told=False),
    Client(
        name="llama.cpp",
        script="llama_cpp.py",
        needs={"llama-cpp-python": "", "gguf": "", "safetensors": ""},
        without=CUT_TEXTS,
        pools_as_told=False,
        not_for=("bert",),
    ),
    Client(
        name="transformers.js",
        script="transformers_js.mjs",
        needs={NODE_PACKAGE: ">=3"},
        graphs=True,
        without=CUT_TEXTS,
        pools_as_told=False,
    ),
)


def without_remote_code(client: Client) -> Client:
    """The client as it is used on a folder that brings no code: BERTs and causal Llamas need none anywhere."""
    if client.argument != REMOTE_CODE:
        return client
    return replace(client, name=client.name.replace("remote code", "older transformers"), argument="")


def this_environment() -> Environment:
    """The one that runs now."""
    return Environment((sys.executable,), _by_name({found.name: found.version for found in metadata.distributions()}))


def all_environments() -> list[Environment]:
    """The one that runs now, the second one if it is there, and node's packages in it."""
    python = Path(os.environ.get(COMPAT_VARIABLE, COMPAT_FOLDER / "bin" / "python"))
    if not python.is_file():
        return [this_environment()]
    listed = subprocess.run([str(python), "-c", LIST_PACKAGES], capture_output=True, text=True, check=False)  # noqa: S603
    packages = _by_name(json.loads(listed.stdout)) if listed.returncode == 0 else {}
    found = [this_environment(), Environment((str(python),), packages)]
    node, modules = shutil.which("node"), python.parents[1] / "node_modules"
    package = modules / NODE_PACKAGE / "package.json"
    if node and package.is_file():
        version = json.loads(package.read_text(encoding="utf-8"))["version"]
        found.append(Environment((node,), {NODE_PACKAGE: version}, {"NODE_MODULES": str(modules)}))
    return found


def _by_name(packages: dict[str, str]) -> dict[str, str]:
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in packages.items() if name}
