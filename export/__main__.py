"""The export stages from the command line: `python -m export COMMAND`, each with `--help`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from drama_models.recipe import parse_recipe, run_command


@dataclass(frozen=True, kw_only=True)
class VerifyRecipe:
    """Settings of a parity check."""

    release: Path
    """Release folder to load with every installed client."""


def _release(arguments: list[str]) -> str:
    from export.card import parity_table
    from export.release import ReleaseRecipe, release

    recipe = parse_recipe(ReleaseRecipe, arguments, command="python -m export release")
    table = parity_table([client.as_json() for client in release(recipe)])
    return f"{table}\nmade {recipe.out}; next: drama index COLLECTION MY.INDEX --model {recipe.out}"


def _verify(arguments: list[str]) -> str:
    from drama_models.sample_texts import SAMPLE_TEXTS
    from export.card import parity_table
    from export.verify import verify

    recipe = parse_recipe(VerifyRecipe, arguments, command="python -m export verify")
    return parity_table([client.as_json() for client in verify(recipe.release, SAMPLE_TEXTS)])


def _trim_vocab(arguments: list[str]) -> str:
    from export.trim_vocab import TrimRecipe, trim_vocabulary

    recipe = parse_recipe(TrimRecipe, arguments, command="python -m export trim-vocab")
    figures = trim_vocabulary(recipe)["figures"]
    lines = [f"{name.replace('_', ' '):20} {value:,.6g}" for name, value in figures.items()]
    next_command = f"python -m export release --retriever {recipe.out} --out RELEASE"
    return "\n".join([*lines, f"made {recipe.out}; next: {next_command}"])


COMMANDS = {
    "release": (_release, "retriever folder to release folder"),
    "verify": (_verify, "load a release with every installed client and compare"),
    "trim-vocab": (_trim_vocab, "drop the tokens that a corpus or some languages never need"),
}


if __name__ == "__main__":
    sys.exit(run_command("export", COMMANDS, sys.argv[1:]))
