"""The pruning stages from the command line: `python -m pruning COMMAND`, each with `--help`."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules load is no traceback; `run_command` takes over

from drama_models.recipe import parse_recipe, run_command


@dataclass(frozen=True, kw_only=True)
class TokeniseRecipe:
    """Settings of tokenising."""

    text: Path
    """Folder with one sub-folder of text files for each domain."""
    model: Path
    """Model folder whose tokenizer is used."""
    out: Path
    """Folder to make."""


@dataclass(frozen=True, kw_only=True)
class SliceRecipe:
    """Settings of slicing."""

    model: Path
    """Folder made by learn-masks."""
    out: Path
    """Folder to make: a stock Llama folder of the target shape."""
    gates: Literal["soft", "hard"] = "soft"
    """Value of a kept gate: soft as learned, or hard, 1: few steps leave soft ones below it."""
    force: bool = False
    """Cut even if the masks' expected sizes are not near their targets."""


@dataclass(frozen=True, kw_only=True)
class ExpandRecipe:
    """Settings of KV-head expansion."""

    model: Path
    """Llama folder with grouped-query attention."""
    out: Path
    """Folder to make: the same function with more KV heads."""
    num_kv_heads: int
    """Wanted number; the number of query heads makes the model multi-head."""


def _tokenise(arguments: list[str]) -> str:
    from pruning.corpus import tokenise

    recipe = parse_recipe(TokeniseRecipe, arguments, command="python -m pruning tokenise")
    corpus = tokenise(recipe.text, recipe.model, recipe.out)
    tokens = sum(splits["train"].tokens for splits in corpus.domains.values())
    return f"made {recipe.out}: {tokens:,} training tokens in {len(corpus.domains)} domains"


def _drop_layers(arguments: list[str]) -> str:
    from pruning.drop_layers import DropLayersRecipe, drop_layers

    recipe = parse_recipe(DropLayersRecipe, arguments, command="python -m pruning drop-layers")
    kept = ", ".join(map(str, drop_layers(recipe)["figures"]["kept_layers"]))
    return f"made {recipe.out}: layers {kept}; next: python -m pruning learn-masks --model {recipe.out} ..."


def _learn_masks(arguments: list[str]) -> str:
    from pruning.learn_masks import LearnMasksRecipe, learn_masks

    recipe = parse_recipe(LearnMasksRecipe, arguments, command="python -m pruning learn-masks")
    sizes = learn_masks(recipe)["figures"]["expected_sizes"]
    reached = ", ".join(f"{name} {size['expected']:.1f} of {size['target']}" for name, size in sizes.items())
    return f"made {recipe.out} ({reached}); next: python -m pruning slice --model {recipe.out} --out BACKBONE"


def _slice(arguments: list[str]) -> str:
    from pruning.learn_masks import load_masks
    from pruning.slicing import slice_folder

    recipe = parse_recipe(SliceRecipe, arguments, command="python -m pruning slice")
    settings: dict[str, Any] = {"force": recipe.force, "gates": recipe.gates}
    shape = slice_folder(recipe.model, load_masks(recipe.model, **settings), recipe.out, settings)
    return f"made {recipe.out}: {shape}; next: python -m pruning recover --model {recipe.out} ..."


def _recover(arguments: list[str]) -> str:
    from pruning.recover import RecoverRecipe, recover

    recipe = parse_recipe(RecoverRecipe, arguments, command="python -m pruning recover")
    held_out = recover(recipe)["figures"]["held_out"]
    bits = ", ".join(f"{domain} {figures['bits_per_byte']:.3f}" for domain, figures in held_out.items())
    made = f"made {recipe.out} (held-out bits per byte: {bits})"
    return f"{made}; next: python -m training train --backbone {recipe.out} ..."


def _expand_kv_heads(arguments: list[str]) -> str:
    from pruning.kv_heads import expand_folder

    recipe = parse_recipe(ExpandRecipe, arguments, command="python -m pruning expand-kv-heads")
    expand_folder(recipe.model, recipe.out, recipe.num_kv_heads)
    heads = f"made {recipe.out}: {recipe.num_kv_heads} KV heads"
    return f"{heads}; next: python -m pruning learn-masks --model {recipe.out} ..."


def _reference_loss(arguments: list[str]) -> str:
    from pruning.reference_loss import ReferenceLossRecipe, reference_losses

    recipe = parse_recipe(ReferenceLossRecipe, arguments, command="python -m pruning reference-loss")
    losses = ", ".join(f"{domain} {loss:.3f}" for domain, loss in reference_losses(recipe).items())
    return (
        f"made {recipe.out} ({losses}); next: python -m pruning recover ... "
        f"--update_proportions doremi --reference_losses {recipe.out}"
    )


def _plan(arguments: list[str]) -> str:
    from pruning.plan import PlanRecipe, plan

    if arguments and not arguments[0].startswith("-"):
        arguments = ["--model", *arguments]
    recipe = parse_recipe(PlanRecipe, arguments, command="python -m pruning plan SOURCE")
    made = plan(recipe)
    command = "learn-masks" if made.origin == recipe.target else "run"  # a learn-masks recipe is its own origin
    folders = f"--model {recipe.model} --corpus CORPUS --out OUT"
    return "\n".join([*made.lines(), f"next: python -m pruning {command} {recipe.target} {folders}"])


def _run(arguments: list[str]) -> str:
    from pruning.presets import recipe_path
    from pruning.run import RunRecipe, run

    if arguments and not arguments[0].startswith("-"):
        arguments = [str(recipe_path(arguments[0])), *arguments[1:]]
    recipe = parse_recipe(RunRecipe, arguments, command="python -m pruning run PRESET|")
    shape = run(recipe)
    return f"made {recipe.backbone}: {shape}; next: python -m training train --backbone {recipe.backbone} ..."


COMMANDS = {
    "plan": (_plan, "shapes, parameters, memory and tokens, before anything runs"),
    "run": (_run, "all stages from a source to a backbone, by a preset or a recipe"),
    "tokenise": (_tokenise, "text domains to a tokenised corpus"),
    "expand-kv-heads": (_expand_kv_heads, "grouped-query to multi-head, same function"),
    "drop-layers": (_drop_layers, "leave out the layers that are missed least"),
    "learn-masks": (_learn_masks, "learn which units go"),
    "slice": (_slice, "cut a model to its masks"),
    "reference-loss": (_reference_loss, "what each domain's loss should come down to"),
    "recover": (_recover, "continued pretraining"),
}


if __name__ == "__main__":
    sys.exit(run_command("pruning", COMMANDS, sys.argv[1:]))
