"""What vLLM, TEI and llama.cpp's converter read from a release, none of which runs here, and whether it is there.

A server that finds a field missing falls back without a word: to causal attention, to the last token, to the whole
vector. So each field is compared with the profile that our encoder uses. It is no proof that the server agrees; that
takes the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

from drama_models.model_folder import ONNX_GRAPH, read_json
from drama_models.profile import POOLING_MODES, Profile
from drama_models.rotary import rotary_settings
from export.client_files import OLD_POOLING_KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

POOLING = "1_Pooling/config.json"
GRAPH_INPUTS = {"input_ids", "attention_mask"}


def contract_lines(folder: Path) -> list[str]:
    """One line for each server: what is wrong with the fields that it reads, or that they are as they should be.

    Args:
        folder: a release folder.

    Raises:
        ModelFolderError: a file that every release has is missing or damaged.
    """
    return [
        f"{server}, not run: {'; '.join(problems) if problems else 'the fields that it reads are right'}"
        for server, problems in contract_problems(folder).items()
    ]


def contract_problems(folder: Path) -> dict[str, list[str]]:
    """What is missing or wrong in the files that each server reads, by server; nothing where all is right."""
    profile, config = Profile.from_folder(folder), read_json(folder / "config.json")
    return {server: list(check(folder, profile, config)) for server, check in SERVERS.items()}


def _vllm(folder: Path, profile: Profile, config: dict[str, Any]) -> Iterator[str]:
    """Direction, pooling of sentence-transformers' old schema, and sizes that a request may ask for."""
    if config.get("is_causal") is not (not profile.bidirectional):
        yield f"config.json: is_causal is {config.get('is_causal')}, so attention would be of the other direction"
    sizes = config.get("matryoshka_dimensions") or []
    if profile.dims and sorted(sizes) != sorted(profile.dims):
        yield "config.json: matryoshka_dimensions does not name the trained sizes, so `dimensions` would be refused"
    yield from _old_pooling(folder, profile)
    yield from _length(folder, profile)


def _tei(folder: Path, profile: Profile, config: dict[str, Any]) -> Iterator[str]:
    """text-embeddings-inference: its own flag for the direction, pooling, prompts; on a CPU the graph."""
    if bool(config.get("use_bidirectional_attention")) is not profile.bidirectional:
        yield "config.json: use_bidirectional_attention does not say what the model does"
    prompts = read_json(folder / "config_sentence_transformers.json").get("prompts", {})
    if prompts.get("query") != profile.query_prompt:
        yield "config_sentence_transformers.json: the query prompt is missing"
    yield from _old_pooling(folder, profile)
    yield from _length(folder, profile)
    if _graph_inputs(folder / ONNX_GRAPH) != GRAPH_INPUTS:
        yield f"{ONNX_GRAPH}: its CPU path gives {' and '.join(sorted(GRAPH_INPUTS))} to it"
    if config.get("model_type") == "bert":
        return
    if rotary_settings(config)["rope_type"] != "default":
        yield "its CUDA path does not know Llama 3's rotary scaling; its CPU path runs the graph"
    if config["hidden_size"] != config["num_attention_heads"] * config["head_dim"]:
        yield "its CUDA path needs hidden_size = num_attention_heads * head_dim; its CPU path runs the graph"


def _llama_cpp(folder: Path, profile: Profile, config: dict[str, Any]) -> Iterator[str]:
    """Its converter: class and direction; the kind of tokenizer."""
    architecture = str(config.get("architectures", [""])[0])
    if not architecture.startswith(("Llama", "Bert")):
        yield f"config.json: its converter does not know {config.get('architectures')}"
    if config.get("is_causal") is not (not profile.bidirectional):
        yield "config.json: its converter takes the direction from is_causal"
    kind = read_json(folder / "tokenizer.json").get("model", {}).get("type")
    if kind != (wanted := "WordPiece" if architecture.startswith("Bert") else "BPE"):
        yield f"tokenizer.json: its converter reads vocabularies of the kind {wanted}, and this is {kind}"


def _graph_inputs(path: Path) -> set[str]:
    """Names of the inputs; none where the file cannot be read."""
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # that of protobuf, or of the file system
        return set()
    return {value.name for value in graph.input}


def _old_pooling(folder: Path, profile: Profile) -> Iterator[str]:
    stored = read_json(folder / POOLING)
    chosen = [key for key in OLD_POOLING_KEYS.values() if stored.get(key)]
    if chosen != [OLD_POOLING_KEYS[POOLING_MODES[profile.pooling]]]:
        yield f"{POOLING}: it says {', '.join(chosen) or 'nothing'}, and the model pools by {profile.pooling}"


def _length(folder: Path, profile: Profile) -> Iterator[str]:
    if read_json(folder / "sentence_bert_config.json").get("max_seq_length") != profile.max_length:
        yield "sentence_bert_config.json: max_seq_length is not the model's"


SERVERS: dict[str, Callable[[Path, Profile, dict[str, Any]], Iterator[str]]] = {
    "vLLM": _vllm,
    "text-embeddings-inference": _tei,
    "llama.cpp": _llama_cpp,
}
