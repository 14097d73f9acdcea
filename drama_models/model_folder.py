"""Finding a model's files and making sure they are whole before anything is computed with them.

Only JSON, safetensors, tokenizer and ONNX files are ever fetched or read: no pickle, no code. Weights are checked by
the header of the safetensors file alone, so a truncated or misshapen file is named before a runtime touches it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from drama_models.errors import ModelFolderError
from drama_models.integrity import known_sha256
from drama_models.setting_kinds import SENTENCE_SETTINGS, check_kinds, check_llama_settings, without_nulls

FETCHED = (  # * also matches subfolders; of several graphs only the one that can be run here
    "*.json", "*.safetensors", "onnx/model.onnx*", "tokenizer*", "*vocab.txt", "README.md"
)  # fmt: skip
REFUSED = ("*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.h5", "*.msgpack")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ONNX_GRAPH = "onnx/model.onnx"
CARD = "README.md"
MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, as in its specification


def find_model_folder(name_or_path: str | Path, revision: str | None = None) -> Path:
    """A local folder as it is, or a hub repository fetched without its code and pickle files.

    Args:
        name_or_path: folder, or `owner/name` on the hub.
        revision: branch, tag or commit on the hub.

    Raises:
        ModelFolderError: neither a folder nor a repository that can be reached.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            str(name_or_path), revision=revision, allow_patterns=list(FETCHED), ignore_patterns=list(REFUSED)
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFolderError(
            f"{name_or_path} is not a folder here and could not be fetched from the hub ({reason}); "
            "pass the path of a model folder, or check name and connection."
        ) from None
    return Path(found)


def stated_license(folder: Path) -> str | None:
    """Licence that a folder's own card states in its metadata; None where there is no card, or it does not say."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    if not (folder / CARD).is_file():
        return None
    try:
        stated = ModelCard.load(folder / CARD).data.get("license")
    except (ValueError, YAMLError):  # metadata that the hub would refuse as well
        return None
    return stated if isinstance(stated, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder, without known settings that are null.

    Raises:
        ModelFolderError: missing or unreadable file, invalid JSON, another kind of value, or a known setting of the
            wrong kind.
    """
    value = read_json_value(path)
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path} must hold a JSON object, found {type(value).__name__}; fetch the folder again.")
    check_kinds(path, value)
    return without_nulls(path, value)


def read_json_value(path: Path) -> Any:
    """Any JSON value from a model folder.

    Raises:
        ModelFolderError: missing or unreadable file, or invalid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFolderError(f"{path} is missing; the folder is not a complete model, fetch it again.") from None
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read ({error.strerror}); check it and its permissions.") from None
    except (ValueError, RecursionError) as error:  # a number of a thousand digits, a thousand brackets
        raise ModelFolderError(f"{path} is not valid JSON ({error}); fetch the folder again.") from None


def sentence_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file of sentence-transformers' Transformer, under its present or an older name, and its settings.

    Raises:
        ModelFolderError: the file is damaged.
    """
    paths = [folder / name for name in SENTENCE_SETTINGS]
    path = next((path for path in paths if path.is_file()), paths[0])
    return path, read_json(path) if path.is_file() else {}


def tokenizer_arguments(folder: Path) -> dict[str, Any]:
    """What sentence-transformers gives its tokenizer beyond its own files; settings as of tokenizer_config.json.

    Raises:
        ModelFolderError: the file is damaged.
    """
    _, settings = sentence_settings(folder)
    arguments: dict[str, Any] = settings.get("processor_kwargs") or settings.get("tokenizer_args") or {}
    return arguments


def has_weights(folder: Path) -> bool:
    """Whether there are safetensors, or a list of them; a folder may hold a graph alone."""
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in shard order; a single file goes before shards, as in transformers.

    Raises:
        ModelFolderError: there are none (saying so if there are pickles), or a shard is missing.
    """
    files = [folder / WEIGHTS]
    if not files[0].is_file() and (folder / INDEX).is_file():
        shards = (read_json(folder / INDEX).get("weight_map") or {}).values()
        files = [folder / Path(shard).name for shard in sorted(filter(None, set(shards)))]
        if not files:
            raise ModelFolderError(f"{folder / INDEX} names no file in its weight_map; fetch the folder again.")
    for path in files:
        if not path.is_file():
            pickles = [other.name for other in folder.iterdir() if other.suffix in PICKLES]
            if pickles:
                raise ModelFolderError(
                    f"{folder} has its weights as pickle ({pickles[0]}), which is never loaded since it can run code; "
                    "convert them to safetensors first."
                )
            raise ModelFolderError(
                f"{path} is missing; the folder is not a complete model, fetch it again. If its weights are published "
                "only as pickle, pass a revision that has safetensors, such as refs/pr/1."
            )
    return files


def tokenizer_file(folder: Path) -> Path:
    """tokenizer.json, or the vocab.txt of a BERT published before there was one.

    Raises:
        ModelFolderError: neither is there.
    """
    for name in ("tokenizer.json", "vocab.txt"):
        if (folder / name).is_file():
            return folder / name
    raise ModelFolderError(
        f"{folder / 'tokenizer.json'} is missing; the folder is not a complete model, fetch it again."
    )


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes from the header of a safetensors file, its size checked against them.

    Raises:
        ModelFolderError: not a safetensors file, truncated, or tensors that overlap, leave room between them or are
            not as long as their shapes.
    """
    header, first = _safetensors_header(path)
    reached = 0
    for name, (_, begin, end) in sorted(header.items(), key=lambda entry: entry[1][1:]):
        if begin != reached:
            raise ModelFolderError(f"{path} has a damaged safetensors header at {name!r}; fetch it again.")
        reached = end
    size = path.stat().st_size
    if first + reached != size:
        raise ModelFolderError(
            f"{path} has {size:,} bytes where its header announces {first + reached:,}; fetch it again."
        )
    try:
        with safe_open(path, framework="np"):  # what the library itself refuses, such as an unknown dtype
            pass
    except SafetensorError as error:
        raise ModelFolderError(f"{path} has a damaged safetensors header ({error}); fetch it again.") from None
    return {name: shape for name, (shape, _, _) in header.items()}


def _safetensors_header(path: Path) -> tuple[dict[str, tuple[tuple[int, ...], int, int]], int]:
    """Shape, first byte and end of each tensor, counted from the byte that the second value gives."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 2 <= header_bytes <= min(size - 8, MAX_HEADER_BYTES):
                raise ModelFolderError(f"{path} is not a safetensors file, or is truncated; fetch it again.")
            header = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        return {name: _placed(entry) for name, entry in header.items()}, 8 + header_bytes
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read ({error.strerror}); check it and its permissions.") from None
    except ModelFolderError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelFolderError(f"{path} has a damaged safetensors header; fetch it again.") from None


def _placed(entry: Any) -> tuple[tuple[int, ...], int, int]:
    """Shape, first byte and end of one tensor.

    Raises:
        ValueError, KeyError, TypeError: something else is there.
    """
    (begin, end), shape, kind = entry["data_offsets"], entry["shape"], entry["dtype"]
    numbers = [begin, end, *shape]
    if not isinstance(kind, str) or any(type(number) is not int or number < 0 for number in numbers) or end < begin:
        raise ValueError(entry)
    return tuple(shape), begin, end


def check_llama_weights(folder: Path, config: dict[str, Any]) -> None:
    """Compare every tensor a Llama of this configuration needs with what the files announce.

    Raises:
        ModelFolderError: a size is missing in the configuration, or a tensor is missing or has another shape; the
            message names the file.
    """
    check_llama_settings(folder / "config.json", config)
    shapes, home = {}, {}
    for path in weight_files(folder):
        for name, shape in tensor_shapes(path).items():
            shapes[name.removeprefix("model.")], home[name.removeprefix("model.")] = shape, path
    for name, wanted in llama_tensor_shapes(config).items():
        if name not in shapes:
            files = ", ".join(sorted({path.name for path in home.values()}) or [WEIGHTS])
            raise ModelFolderError(
                f"{folder} has no tensor {name!r} in {files}; use weights and config.json of one model."
            )
        if shapes[name] != wanted:
            raise ModelFolderError(
                f"{home[name]}: tensor {name!r} has shape {shapes[name]} where config.json asks for {wanted}; "
                "the file belongs to another model, fetch the folder again."
            )


def llama_tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of a LlamaModel, from its config.json."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    kv = (config.get("num_key_value_heads") or heads) * head_dim
    per_layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (heads * head_dim, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, heads * head_dim),
        "mlp.gate_proj.weight": (intermediate, hidden),
        "mlp.up_proj.weight": (intermediate, hidden),
        "mlp.down_proj.weight": (hidden, intermediate),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    for setting, part in (("attention_bias", "self_attn."), ("mlp_bias", "mlp.")):
        if config.get(setting):
            biases = {name.replace(".weight", ".bias"): shape[:1] for name, shape in per_layer.items() if part in name}
            per_layer |= biases
    shapes: dict[str, tuple[int, ...]] = {
        f"layers.{layer}.{name}": shape
        for layer in range(config["num_hidden_layers"])
        for name, shape in per_layer.items()
    }
    return {"embed_tokens.weight": (config["vocab_size"], hidden), "norm.weight": (hidden,)} | shapes


def fingerprint(folder: Path) -> str:
    """SHA-256 over configuration, tokenizer and weights: what decides in which space a model's vectors lie.

    The same for every runtime of one folder; a folder without safetensors is told by its ONNX graph.
    """
    graph = folder / ONNX_GRAPH
    weights = weight_files(folder) if has_weights(folder) else [graph]
    digest = hashlib.sha256()
    for path in (folder / "config.json", tokenizer_file(folder), *weights):
        digest.update(known_sha256(path).encode())
    return digest.hexdigest()
