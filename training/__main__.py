"""The training stages from the command line: `python -m training COMMAND`, each with `--help`."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules load is no traceback; `run_command` takes over

from drama_models.model_folder import read_json
from drama_models.recipe import parse_recipe, run_command
from training.augment.commands import COMMANDS as AUGMENT_COMMANDS

if TYPE_CHECKING:
    from pathlib import Path

DRY_RUN = "--dry-run"
RELEASED = ("llama", "bert")


def _train(arguments: list[str]) -> str:
    from training.recipe import TrainRecipe
    from training.train import train

    words = [word for word in arguments if word != DRY_RUN]
    recipe = parse_recipe(TrainRecipe, words, command="python -m training train")
    if words != arguments:
        from training.dry_run import forecast

        return f"{forecast(recipe)}\nnothing was trained; next: the same command without {DRY_RUN}"
    figures = train(recipe)["figures"]
    made = f"made {recipe.out} from {figures['examples']:,} examples in {figures['steps']:,} steps"
    if _can_be_released(recipe.out):
        return f"{made}; next: python -m export release --retriever {recipe.out} --out RELEASE"
    return f"{made}; next: drama index COLLECTION INDEX --model {recipe.out}"


def _can_be_released(folder: Path) -> bool:
    """Whether a retriever is of a family that releases are made of; one with two encoders has no config.json."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") in RELEASED


def _specialise(arguments: list[str]) -> str:
    from training.specialise.settings import SpecialiseRecipe
    from training.specialise.specialise import specialise
    from training.specialise.verdict import summary

    recipe = parse_recipe(SpecialiseRecipe, arguments, command="python -m training specialise")
    return summary(specialise(recipe), recipe.out)


COMMANDS = {
    "specialise": (_specialise, "documents in, a retriever for them and a report out: all of the below in one"),
    "train": (_train, f"train a retriever from a backbone; {DRY_RUN} only says what it would be"),
    **AUGMENT_COMMANDS,
}


if __name__ == "__main__":
    sys.exit(run_command("training", COMMANDS, sys.argv[1:]))
