"""`python -m export trim-vocab`: drop the tokens that a corpus or a set of languages never needs.

A multilingual vocabulary is half of a small model (47% of drama-base). Texts whose tokens are all kept get the same
embeddings as before, which is checked on the corpus before the folder is written; how, is in `vocabulary`. What the
folder itself puts around a text, its prompts, tags and examples, is always kept.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file

from drama_models.collection import Collection
from drama_models.encoder import Encoder
from drama_models.errors import CollectionError, ModelFolderError
from drama_models.evaluation import evaluate
from drama_models.folders import atomic_folder, check_apart
from drama_models.model_folder import check_llama_weights, read_json, weight_files
from drama_models.profile import Profile
from drama_models.prompts import examples_prefix
from drama_models.provenance import write_provenance
from drama_models.retriever import Retriever
from drama_models.tokenisation import TextTokenizer
from export.release import LLAMA
from export.verification import FILE_NAME as VERIFICATION
from export.vocabulary import LATIN, SCRIPTS, kept_tokens, smaller_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

EMBEDDING = "embed_tokens.weight"
ID_SETTINGS = ("bos_token_id", "eos_token_id", "pad_token_id")
TEXTS_AT_ONCE = 1024
PROOF_TEXTS = 256  # of the corpus whose embeddings are compared before and after
TOLERANCE = 1e-5
UNCUT = 1 << 20  # tokens
DEPTH = 100  # hits of each query that are looked at


@dataclass(frozen=True, kw_only=True)
class TrimRecipe:
    """Settings of a cut of the vocabulary."""

    model: Path
    """Retriever or release folder."""
    out: Path
    """Retriever folder to make; `python -m export release` makes a release of it."""
    corpus: tuple[Path, ...] = ()
    """What the model will read: text files, one text a line, and BEIR folders."""
    languages: tuple[str, ...] = ()
    """Two-letter codes; every token of their scripts is kept."""
    least_count: int = 1
    """Occurrences in the corpus below which a token is dropped."""
    evaluate: Path | None = None
    """BEIR folder to measure nDCG@10 on, before and after."""
    split: str = "test"
    """Whose judgements."""

    def __post_init__(self) -> None:
        if not self.corpus and not self.languages:
            raise ValueError("Say what to keep: set corpus to text files or BEIR folders, or languages to codes.")
        unknown = [code for code in self.languages if code not in SCRIPTS and code not in LATIN]
        if unknown:
            known = ", ".join(sorted([*SCRIPTS, *LATIN]))
            raise ValueError(f"languages={unknown} are not known here; choose among {known}, or pass a corpus.")


def trim_vocabulary(recipe: TrimRecipe) -> dict[str, Any]:
    """Write the folder with fewer tokens.

    Returns:
        The provenance record; its figures are tokens and megabytes before and after, the share of the corpus' tokens
        that are kept, the largest difference of embeddings, and the metrics if a collection was given.

    Raises:
        ModelFolderError: not a complete Llama folder, or a tokenizer that is not byte-pair encoding.
        CollectionError: the corpus has no text.
        OutputError: the place to write to is taken, by the model or by what was not made here.
    """
    check_apart(recipe.out, recipe.model)
    config = read_json(recipe.model / "config.json")
    if config.get("model_type", LLAMA) != LLAMA:
        raise ModelFolderError(
            f"{recipe.model} is a {config['model_type']}, and vocabularies of Llamas are cut here; keep it as it is."
        )
    check_llama_weights(recipe.model, config)
    tokenizer = read_json(recipe.model / "tokenizer.json")
    counts = _counts(recipe)
    used = {number for number, count in counts.items() if count >= recipe.least_count}
    kept = kept_tokens(tokenizer, used | _named_ids(config) | _prompt_ids(recipe.model), recipe.languages)
    if kept[-1] >= config["vocab_size"]:
        raise ModelFolderError(
            f"{recipe.model / 'tokenizer.json'} has a token of number {kept[-1]} where the embedding has "
            f"{config['vocab_size']} rows; use weights and tokenizer of one model."
        )
    with atomic_folder(recipe.out) as partial:
        _copy_settings(recipe.model, partial)
        (partial / "tokenizer.json").write_text(
            json.dumps(smaller_tokenizer(tokenizer, kept), ensure_ascii=False), encoding="utf-8"
        )
        _write_config(partial, config, kept)
        _write_weights(recipe.model, partial, kept)
        figures = _figures(recipe, partial, config, kept, counts)
        return write_provenance(
            partial,
            stage="export.trim_vocab",
            recipe=recipe,
            inputs={"model": recipe.model},
            figures=figures,
            parent=recipe.model,
        )


def _named_ids(config: dict[str, Any]) -> set[int]:
    """Rows of the embedding that the configuration names; numbers such as -1, for none, are no rows."""
    values = [config.get(name) for name in ID_SETTINGS]
    numbers = {number for value in values for number in (value if isinstance(value, list) else [value])}
    return {number for number in numbers if number is not None and 0 <= number < config["vocab_size"]}


def _prompt_ids(model: Path) -> set[int]:
    """Tokens of whatever the folder may put around a text: every prompt, the tags of instructions, solved examples."""
    profile = Profile.from_folder(model)
    texts = {profile.query_prompt, profile.document_prompt, profile.title_separator, *profile.prompts.values()}
    if profile.instruct is not None:
        texts |= {profile.instruct.before(""), profile.instruct.end}
        for task, examples in profile.examples.items():
            texts.add(examples_prefix(examples, profile.prompts.get(task, profile.query_prompt), profile.instruct))
    ids, _ = TextTokenizer(model, profile, UNCUT).encode(sorted(texts))
    return set(np.concatenate(ids).tolist())


def _counts(recipe: TrimRecipe) -> Counter[int]:
    """Occurrences of each token in the corpus, ends included."""
    profile = Profile.from_folder(recipe.model)
    tokenizer = TextTokenizer(recipe.model, profile, UNCUT)  # a word that is cut in half counts with both halves
    counts: Counter[int] = Counter()
    for portion in _portions(recipe.corpus, profile.title_separator):
        for prompt in {profile.query_prompt, profile.document_prompt}:  # a text may be asked for, or asked with
            ids, _ = tokenizer.encode(portion, prompt)
            counts.update(np.concatenate(ids).tolist())
    if recipe.corpus and not counts:
        raise CollectionError(
            f"There is no text in {', '.join(map(str, recipe.corpus))}; pass text files or BEIR folders."
        )
    return counts


def _portions(corpus: Iterable[Path], title_separator: str) -> Iterator[list[str]]:
    portion: list[str] = []
    for path in corpus:
        for text in _texts(path, title_separator):
            portion.append(text)
            if len(portion) == TEXTS_AT_ONCE:
                yield portion
                portion = []
    if portion:
        yield portion


def _texts(path: Path, title_separator: str) -> Iterator[str]:
    if path.is_dir():
        collection = Collection(path)
        yield from (document.joined(title_separator) for document in collection.documents())
        yield from collection.queries().values()
        return
    try:
        with path.open(encoding="utf-8") as file:
            yield from (line.rstrip("\n") for line in file if line.strip())
    except FileNotFoundError:
        raise CollectionError(f"There is no text file or BEIR folder at {path}; check the path.") from None
    except UnicodeDecodeError as error:
        raise CollectionError(f"{path} is not UTF-8 text ({error}); convert it first.") from None


def _copy_settings(model: Path, out: Path) -> None:
    """The small files that say how the model is used; configuration and tokenizer are written anew."""
    left = ("tokenizer.json", "provenance.json", VERIFICATION)
    for path in model.rglob("*.json"):
        name = path.relative_to(model)
        if str(name) != "config.json" and name.name not in left and ".index." not in name.name:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, out / name)


def _write_config(out: Path, config: dict[str, Any], kept: list[int]) -> None:
    new = {old: number for number, old in enumerate(kept)}

    def renumbered(value: Any) -> Any:
        return [new.get(number, number) for number in value] if isinstance(value, list) else new.get(value, value)

    changed = {name: renumbered(config[name]) for name in ID_SETTINGS if config.get(name) is not None}
    settings = config | changed | {"vocab_size": len(kept)}
    (out / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    path = out / "tokenizer_config.json"
    if path.is_file():
        named = read_json(path)
        decoder = named.get("added_tokens_decoder")
        if decoder:
            named["added_tokens_decoder"] = {
                str(new[int(number)]): token for number, token in decoder.items() if int(number) in new
            }
        path.write_text(json.dumps(named, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(model: Path, out: Path, kept: list[int]) -> None:
    state = {}
    for path in weight_files(model):
        for name, tensor in load_file(path).items():
            short = name.removeprefix("model.")
            if short != "lm_head.weight":
                state[short] = tensor[kept].contiguous() if short == EMBEDDING else tensor
    save_torch_state_dict(state, out)


def _figures(
    recipe: TrimRecipe, made: Path, config: dict[str, Any], kept: list[int], counts: Counter[int]
) -> dict[str, Any]:
    total = counts.total()
    figures: dict[str, Any] = {
        "tokens_before": config["vocab_size"],
        "tokens_after": len(kept),
        "megabytes_before": _megabytes(recipe.model),
        "megabytes_after": _megabytes(made),
    }
    if total:
        present = set(kept)
        figures["coverage"] = sum(count for number, count in counts.items() if number in present) / total
    if total and recipe.least_count == 1:
        figures["largest_difference"] = _checked_difference(recipe, made)
    if recipe.evaluate:
        figures |= {
            f"ndcg@10_{when}": _ndcg(folder, recipe.evaluate, recipe.split)
            for when, folder in (("before", recipe.model), ("after", made))
        }
    return figures


def _checked_difference(recipe: TrimRecipe, made: Path) -> float:
    separator = Profile.from_folder(recipe.model).title_separator
    texts = next(_portions(recipe.corpus, separator))[:PROOF_TEXTS]
    before, after = (
        Encoder.from_pretrained(folder, runtime="torch").encode_documents(texts) for folder in (recipe.model, made)
    )
    difference = float(np.abs(before - after).max())
    if difference > TOLERANCE:
        raise ModelFolderError(
            f"Embeddings of the corpus differ by {difference:.1e} after the cut, beyond rounding ({TOLERANCE}); "
            "this tokenizer merges in a way that cannot be cut, keep the folder as it is."
        )
    return difference


def _megabytes(folder: Path) -> float:
    files = [*weight_files(folder), folder / "tokenizer.json"]
    return round(sum(path.stat().st_size for path in files) / 1e6, 2)


def _ndcg(folder: Path, collection_folder: Path, split: str) -> float:
    encoder, collection = Encoder.from_pretrained(folder, runtime="torch"), Collection(collection_folder)
    qrels, queries = collection.qrels(split), collection.queries()
    retriever = Retriever.of_documents(encoder, collection.documents())
    run = retriever.run({query: queries[query] for query in qrels}, DEPTH)
    return evaluate(run, qrels)["ndcg@10"]
