"""The export stages from the command line: `python -m export COMMAND`, each with `--help`."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules load is no traceback; `run_command` takes over

from drama_models.recipe import field_name, parse_recipe, run_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from export.verify import Parity

Recipe = TypeVar("Recipe")


@dataclass(frozen=True, kw_only=True)
class VerifyRecipe:
    """Settings of a parity check."""

    release: Path
    """Release folder to load with every installed client; `verification.json` and the card's table are written anew."""
    others: bool = True
    """Also clients of the second environment, `.venv-compat` or that of COMPAT_PYTHON."""
    max_tokens: int | None = None
    """Of the longest text; the release's own limit by default. ONNX graphs need its square of memory."""

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens} must be above 0; leave it out for the release's own limit.")


def parsed(recipe_class: type[Recipe], command: str, arguments: Sequence[str], *positional: str) -> Recipe:
    """A recipe from words as people type them: `publish DIR owner/name --pull-request`, `--onnx fp32,fp16`.

    Args:
        recipe_class: of the command.
        command: its name.
        arguments: words after it: perhaps a recipe file, values by position, and flags.
        positional: fields whose values need no flag, in order.

    Raises:
        RecipeError: as in `parse_recipe`.
    """
    kinds = {field.name: str(field.type) for field in fields(recipe_class)}  # type: ignore[arg-type]
    words, named = list(arguments), list(positional)
    found = [words.pop(0)] if words and words[0].endswith((".yaml", ".yml")) else []
    while words and named and not words[0].startswith("-"):
        found += [f"--{named.pop(0)}", words.pop(0)]
    while words:
        flag, sign, value = words.pop(0).partition("=")
        name = field_name(recipe_class, flag.removeprefix("--"))
        if flag.startswith("--") and name in kinds:
            if not sign and words and not words[0].startswith("--"):
                sign, value = "=", words.pop(0)
            if kinds[name].startswith("tuple") and value and not value.startswith("["):
                # quoted, since YAML takes the language `no` for a falsehood
                value = f"[{value}]" if "int" in kinds[name] else json.dumps(value.split(","), ensure_ascii=False)
        found.append(flag + sign + value)
    return parse_recipe(recipe_class, found, command=f"python -m export {command}")


def _release(arguments: list[str]) -> str:
    from export.release import ReleaseRecipe, release

    recipe = parsed(ReleaseRecipe, "release", arguments, "retriever")
    return _made(release(recipe), recipe.out)


def _adopt(arguments: list[str]) -> str:
    from export.adopt import AdoptRecipe, adopt

    recipe = parsed(AdoptRecipe, "adopt", arguments, "model")
    return _made(adopt(recipe), recipe.out)


def _made(parity: list[Parity], out: Path) -> str:
    from export.card import parity_table

    table = parity_table([client.as_json() for client in parity])
    return f"{table}\nmade {out}; next: drama index COLLECTION MY.INDEX --model {out}"


def _verify(arguments: list[str]) -> str:
    from drama_models.profile import Profile
    from export.card import parity_table
    from export.client_environments import all_environments, this_environment
    from export.contracts import contract_lines
    from export.parity_texts import parity_texts
    from export.verification import verify_and_record

    recipe = parsed(VerifyRecipe, "verify", arguments, "release")
    texts = parity_texts(recipe.max_tokens or Profile.from_folder(recipe.release).max_length)
    environments = all_environments() if recipe.others else [this_environment()]
    parity = verify_and_record(recipe.release, texts, environments)
    lines = [parity_table([client.as_json() for client in parity]), *contract_lines(recipe.release)]
    if any(client.failed for client in parity):
        print("\n".join(lines))
        print("error: clients disagree; do not publish this folder.", file=sys.stderr)
        raise SystemExit(1)
    return "\n".join(lines)


def _publish(arguments: list[str]) -> str:
    from export.publish import PublishRecipe, publish

    return publish(parsed(PublishRecipe, "publish", arguments, "release", "repo"))


def _trim_vocab(arguments: list[str]) -> str:
    from export.trim_vocab import TrimRecipe, trim_vocabulary

    recipe = parsed(TrimRecipe, "trim-vocab", arguments, "model")
    figures = trim_vocabulary(recipe)["figures"]
    lines = [f"{name.replace('_', ' '):20} {value:,.6g}" for name, value in figures.items()]
    next_command = f"python -m export release {recipe.out} --out RELEASE"
    return "\n".join([*lines, f"made {recipe.out}; next: {next_command}"])


COMMANDS = {
    "release": (_release, "retriever folder to release folder"),
    "adopt": (_adopt, "published drama folder to release folder"),
    "verify": (_verify, "load a release with every installed client and compare"),
    "publish": (_publish, "a verified release to the model hub; only a list of what would be done without --really"),
    "trim-vocab": (_trim_vocab, "drop the tokens that a corpus or some languages never need"),
}


def main() -> int:
    """Run the command of this process; returns its exit code."""
    return run_command("export", COMMANDS, sys.argv[1:], interrupted="no folder was made or replaced")


if __name__ == "__main__":
    sys.exit(main())
