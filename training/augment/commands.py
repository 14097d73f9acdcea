"""The commands of this folder, for `python -m training`: each reads a recipe and calls one function."""

from __future__ import annotations

from pathlib import Path

from drama_models.errors import RecipeError
from drama_models.recipe import parse_recipe

PROGRAM = "python -m training"


def _chunk(arguments: list[str]) -> str:
    from training.augment.chunk import ChunkRecipe, chunk
    from training.augment.read_documents import SkippedFiles

    recipe = parse_recipe(ChunkRecipe, arguments, command=f"{PROGRAM} chunk")
    figures = chunk(recipe)["figures"]
    made = f"made {recipe.out}: {figures['passages']:,} passages of {figures['documents']:,} documents"
    skipped = SkippedFiles(figures["skipped"])
    return f"{made}, {skipped}; next: {PROGRAM} deduplicate --collection {recipe.out} --out UNIQUE"


def _deduplicate(arguments: list[str]) -> str:
    from training.augment.deduplicate import DeduplicateRecipe, deduplicate

    recipe = parse_recipe(DeduplicateRecipe, arguments, command=f"{PROGRAM} deduplicate")
    figures = deduplicate(recipe)["figures"]
    made = f"made {recipe.out}: {figures['kept']:,} passages, {figures['removed']:,} removed"
    return f"{made}; next: {PROGRAM} crop --collection {recipe.out} --out CROPS.jsonl"


def _crop(arguments: list[str]) -> str:
    from training.augment.crop import CropRecipe, crop

    recipe = parse_recipe(CropRecipe, arguments, command=f"{PROGRAM} crop")
    made = f"made {recipe.out}: {crop(recipe):,} queries"
    return f"{made}; next: {PROGRAM} mine --collection {recipe.collection} --examples {recipe.out} --out RUN"


def _find(arguments: list[str]) -> str:
    from training.augment.find_queries import FindRecipe, find_queries

    recipe = parse_recipe(FindRecipe, arguments, command=f"{PROGRAM} find")
    figures = find_queries(recipe)["figures"]
    kept = ", ".join(f"{count:,} {kind}s" for kind, count in figures["kept"].items()) or "no queries"
    dropped = "; ".join(f"{reason}: {count:,}" for reason, count in figures["dropped"].items()) or "none"
    examples = recipe.out / "examples.jsonl"
    made = f"made {recipe.out}: {kept}, and the passages without them (left out: {dropped})"
    return f"{made}; next: {PROGRAM} mine --collection {recipe.out} --examples {examples} --out RUN"


def _generate(arguments: list[str]) -> str:
    from training.augment.generate import GenerateRecipe, generate

    recipe = parse_recipe(GenerateRecipe, arguments, command=f"{PROGRAM} generate")
    figures = generate(recipe)["figures"]
    kept, rejected = sum(figures["kept"].values()), sum(figures["rejected"].values())
    made = f"made {recipe.out}: {kept:,} queries, {rejected:,} answers kept aside in rejected.jsonl"
    examples = recipe.out / "examples.jsonl"
    return f"{made}; next: {PROGRAM} mine --collection {recipe.collection} --examples {examples} --out RUN"


def _mine(arguments: list[str]) -> str:
    from training.augment.mine import MineRecipe, mine

    recipe = parse_recipe(MineRecipe, arguments, command=f"{PROGRAM} mine")
    made = f"made {recipe.out}: {recipe.teacher}'s lists for {mine(recipe):,} queries"
    queries = f" --examples {recipe.examples}" if recipe.examples else ""
    folders = f"--collection {recipe.collection}{queries} --run {recipe.out}"
    return f"{made}; next: {PROGRAM} rerank {folders} --cross_encoder MODEL --out RERANKED"


def _rerank(arguments: list[str]) -> str:
    from training.augment.rerank import RerankRecipe, rerank

    recipe = parse_recipe(RerankRecipe, arguments, command=f"{PROGRAM} rerank")
    figures = rerank(recipe)
    made = f"made {recipe.out}: {figures.queries - figures.unanswered:,} lists"
    if recipe.llm is not None:
        made += (
            f", {figures.incomplete:,} of {figures.windows:,} answers incomplete, {figures.unanswered:,} lists left out"
        )
    folders = f"--collection {recipe.collection} --examples {recipe.examples or 'EXAMPLES'}"
    runs = f"--retriever_run {recipe.run} --teacher_run {recipe.out}"
    return f"{made}; next: {PROGRAM} filter {folders} {runs} --out FILTERED"


def _filter(arguments: list[str]) -> str:
    from training.augment.filter import FilterRecipe, filter_examples

    recipe = parse_recipe(FilterRecipe, arguments, command=f"{PROGRAM} filter")
    figures = filter_examples(recipe)["figures"]
    made = f"made {recipe.out}: {figures.pop('examples'):,} examples"
    drops = "; ".join(f"{name}: {counts['dropped']:,} dropped" for name, counts in figures.items())
    return f"{made} ({drops}; samples in report.json); {_to_train(recipe.collection, recipe.out / 'examples.jsonl')}"


def _triplets(arguments: list[str]) -> str:
    from training.augment.triplets import TripletsRecipe, make_triplets

    recipe = parse_recipe(TripletsRecipe, arguments, command=f"{PROGRAM} triplets")
    figures = make_triplets(recipe)["figures"]
    made = f"made {recipe.out}: {figures['examples']:,} triplets of {figures['tasks']:,} tasks"
    return f"{made}; {_to_train(recipe.out, recipe.out / 'examples.jsonl')}"


def _to_train(collection: Path, examples: Path) -> str:
    named = f"{{name: mine, task: retrieval, collection: {collection}, examples: {examples}}}"
    return f"next: {PROGRAM} train --backbone BACKBONE --out RETRIEVER --datasets '[{named}]'"


def _augment(arguments: list[str]) -> str:
    from training.augment.templates import show_prompts

    if arguments[:1] != ["--show-prompts"] or len(arguments) > 2:
        commands = ", ".join(COMMANDS)
        raise RecipeError(
            f"Use `{PROGRAM} augment --show-prompts [PROMPTS_FOLDER]` to read the prompts; to make data, use one of "
            f"{commands}."
        )
    return show_prompts(Path(arguments[1]) if arguments[1:] else None)


COMMANDS = {
    "chunk": (_chunk, "documents to a collection of passages"),
    "deduplicate": (_deduplicate, "take passages away that others contain"),
    "crop": (_crop, "sentences of passages as queries"),
    "find": (_find, "titles, headings and questions of the documents as queries"),
    "generate": (_generate, "queries for passages, by a large model"),
    "mine": (_mine, "what a teacher ranks for each query"),
    "rerank": (_rerank, "lists in the order of a large model or a cross-encoder"),
    "filter": (_filter, "keep the queries that are worth training on"),
    "triplets": (_triplets, "tasks, queries and passages, all by a large model"),
    "augment": (_augment, "--show-prompts: what a large model is asked"),
}
