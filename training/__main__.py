"""The training stages from the command line: `python -m training COMMAND`, each with `--help`."""

from __future__ import annotations

import sys

from drama_models.recipe import parse_recipe, run_command


def _train(arguments: list[str]) -> str:
    from training.recipe import TrainRecipe
    from training.train import train

    recipe = parse_recipe(TrainRecipe, arguments, command="python -m training train")
    figures = train(recipe)["figures"]
    made = f"made {recipe.out} from {figures['examples']:,} examples in {figures['steps']:,} steps"
    return f"{made}; next: python -m export release --retriever {recipe.out} --out RELEASE"


COMMANDS = {"train": (_train, "contrastive training of a retriever from a backbone")}


if __name__ == "__main__":
    sys.exit(run_command("training", COMMANDS, sys.argv[1:]))
