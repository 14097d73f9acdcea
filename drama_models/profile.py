"""The profile: everything that turns hidden states into an embedding, as data read from the model folder.

Its stored form is config.json (attention direction, trained dimensions) and sentence-transformers' own files (pooling,
prompts, length, normalisation), so a plain profile needs no file of its own. Models that read solved examples in front
of a query may bring some in `examples.json`: `{task: [{"instruct": …, "query": …, "response": …}, …]}`, where a task is
the name of a prompt; each list is laid out as in the example files of FlagEmbedding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

from drama_models.errors import AttentionDirectionError, ModelFolderError, PromptError
from drama_models.layout import PAIRED_SEPARATOR, EncoderLayout, find_layouts
from drama_models.model_folder import read_json, sentence_settings, tokenizer_arguments
from drama_models.prompts import IN_CONTEXT, INSTRUCTED, InContextExample, InstructFormat, read_format
from drama_models.setting_kinds import SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from drama_models.pooling import Pooling

DRAMA_CLASS = "DramaModel"
DRAMA_QUERY_PROMPT = "Query: "
DRAMA_MAX_LENGTH = 8192
INSTRUCTED_MAX_LENGTH = 512  # of bge-en-icl and bge-multilingual-gemma2, whose folders announce more or nothing
QUERY, DOCUMENT = "query", "document"  # names of the prompts that each side gets where none is asked for
EXAMPLES = "examples.json"
DECODERS = (
    "bloom", "cohere", "cohere2", "falcon", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_neox",
    "granite", "lfm2", "llama", "ministral3", "mistral", "mixtral", "modernbert-decoder", "olmo", "olmo2", "olmo3",
    "opt", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2"
)  # fmt: skip
"""Model types that are causal unless their folder says otherwise; what is in no list counts as bidirectional."""
HIDDEN_SIZE_NAMES = ("hidden_size", "dim", "n_embd")  # the others are DistilBERT's and GPT-2's
LEARNED_POSITIONS = (
    "albert", "bert", "camembert", "distilbert", "electra", "gpt2", "mpnet", "roberta", "xlm-roberta"
)  # fmt: skip
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert")  # their positions start behind the padding's number
POOLING_MODES: dict[Pooling, str] = {"mean": "mean", "last": "lasttoken", "cls": "cls"}
"""What sentence-transformers calls each pooling."""
POOLINGS: dict[str, Pooling] = {
    **{mode: pooling for pooling, mode in POOLING_MODES.items()},
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "cls",
}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How a model folder's hidden states become embeddings."""

    hidden_size: int
    """Size of the full embedding."""
    bidirectional: bool
    """Whether every token sees every other, or only earlier ones."""
    pooling: Pooling
    """mean over all real tokens, last real token, or first token (cls)."""
    query_prompt: str
    """Text put before every query."""
    document_prompt: str
    """Text put before every document."""
    set_ends: bool
    """Put BOS and EOS around every text, whatever the tokenizer's own post-processor does."""
    max_length: int
    """Tokens kept of each text, BOS and EOS included."""
    normalise: bool
    """Scale embeddings to length 1, after cutting to `dim`."""
    dims: tuple[int, ...]
    """Trained Matryoshka sizes, largest first; empty where the folder does not say."""
    instruct: InstructFormat | None = None
    """Tags around an instruction and solved examples; None where the model was not trained with any."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Named prompts, such as one for each task."""
    examples: dict[str, tuple[InContextExample, ...]] = field(default_factory=dict)
    """Solved examples of a task, by the name of its prompt; put before its queries unless others are given."""
    title_separator: str = " "
    """Between title and text of a document."""
    most_tokens: int | None = None
    """Longest text that there are position embeddings for; None where positions are computed, as rotary ones are."""
    default_dim: int | None = None
    """Coordinates kept where no number is asked for; None where that is all of them."""

    @classmethod
    def from_folder(cls, folder: Path, side: Literal["query", "document"] = "query") -> Profile:
        """Read the profile of a model folder.

        Args:
            folder: of the whole model.
            side: which encoder, where the folder has one for queries and one for documents.

        Raises:
            ModelFolderError: a missing or damaged file, or a pooling that is not supported.
            AttentionDirectionError: the folder relies on code of its own that we do not know.
        """
        return cls.of(find_layouts(folder)[side == "document"])

    @classmethod
    def of(cls, layout: EncoderLayout) -> Profile:
        """Read the profile of one encoder of a model folder; errors as of `from_folder`."""
        folder = layout.backbone
        config, tokenizer = read_json(folder / "config.json"), _optional(folder / "tokenizer_config.json")
        drama = is_drama(config)
        stored = _optional(layout.root / "config_sentence_transformers.json")
        prompts = {name: prompt or "" for name, prompt in (stored.get("prompts") or {}).items()}
        instruct = _instruct_format(folder, stored)
        return cls(
            hidden_size=_hidden_size(config, folder),
            bidirectional=attention_is_bidirectional(config, folder),
            pooling=_pooling(layout),
            # as encode_query and encode_document of sentence-transformers, which find both names in every model, so
            # that neither `passage` nor the default prompt's name is ever their fallback
            query_prompt=prompts.get(QUERY, DRAMA_QUERY_PROMPT if drama else ""),
            document_prompt=prompts.get(DOCUMENT, ""),
            set_ends=drama or instruct is not None or tokenizer.get("add_eos_token") is True,
            max_length=_max_length(folder, config, limit=_family_limit(drama=drama, instructed=instruct is not None)),
            normalise=layout.normalise or instruct is not None,  # bge-en-icl lists no Normalize, yet compares cosines
            dims=tuple(sorted(config.get("matryoshka_dimensions") or (), reverse=True)),
            instruct=instruct,
            prompts=prompts,
            examples=_examples(layout.root / EXAMPLES, instruct),
            title_separator=stored.get("title_separator", _title_separator(layout, tokenizer)),
            most_tokens=most_tokens(config),
            default_dim=stored.get("truncate_dim"),
        )


def _title_separator(layout: EncoderLayout, tokenizer: dict[str, Any]) -> str:
    """A pair's separator is its tokenizer's own: `</s>` for a RoBERTa."""
    own = (_optional(layout.backbone / "special_tokens_map.json") | tokenizer).get("sep_token")
    own = own.get("content") if isinstance(own, dict) else own
    return f" {own} " if own and layout.title_separator == PAIRED_SEPARATOR else layout.title_separator


def is_drama(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of a DramaModel: ours, or one of the published folders."""
    remote_class = str((config.get("auto_map") or {}).get("AutoModel", ""))
    return DRAMA_CLASS in (config.get("architectures") or []) or remote_class.endswith(f".{DRAMA_CLASS}")


def attention_is_bidirectional(config: dict[str, Any], folder: Path) -> bool:
    """Attention direction of a folder: its own word, else what its class is known to do.

    Raises:
        AttentionDirectionError: its class comes with code of its own, which is not run, and says nothing.
    """
    if "is_causal" in config:
        return not config["is_causal"]
    if config.get("use_bidirectional_attention"):
        return True
    if is_drama(config):
        return True
    if config.get("is_decoder"):  # of an encoder's class: a BERT that transformers makes causal
        return False
    if (config.get("auto_map") or {}).get("AutoModel"):
        raise AttentionDirectionError(
            f"{folder} brings its own model code ({config['auto_map']['AutoModel']}), which is never run, and its "
            "config.json does not say whether attention is causal; set `is_causal` there if you know it."
        )
    return config.get("model_type") not in DECODERS


def _pooling(layout: EncoderLayout) -> Pooling:
    if isinstance(layout.pooling, str):
        return layout.pooling
    config = read_json(layout.pooling)
    wanted = config.get("pooling_mode") or [key for key in config if key.startswith("pooling_mode_") and config[key]]
    if not any(key.startswith("pooling_mode") for key in config):
        wanted = POOLING_MODES["mean"]  # as sentence-transformers takes it
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if len(names) != 1 or names[0] not in POOLINGS:
        raise ModelFolderError(f"{layout.pooling} asks for pooling {names}; supported are {', '.join(POOLINGS)}.")
    if config.get("include_prompt") is False:
        raise ModelFolderError(f"{layout.pooling} leaves the prompt out of pooling; not supported.")
    return POOLINGS[names[0]]


def _instruct_format(folder: Path, stored: dict[str, Any]) -> InstructFormat | None:
    """As config_sentence_transformers.json says, else known by the tags that the tokenizer has as tokens."""
    path = folder / "tokenizer.json"
    if "instruct_format" in stored:
        try:
            return read_format(stored["instruct_format"])
        except PromptError as error:
            raise ModelFolderError(f"config_sentence_transformers.json of {folder}: {error}") from None
    if not path.is_file():
        return None
    added = set(re.findall(rb'"content":\s*"<(instruct|query|response)>"', path.read_bytes()))
    if not added >= {b"instruct", b"query"}:
        return None
    return IN_CONTEXT if b"response" in added else INSTRUCTED


def _examples(path: Path, instruct: InstructFormat | None) -> dict[str, tuple[InContextExample, ...]]:
    stored = _optional(path)
    if stored and (instruct is None or instruct.response is None):
        raise ModelFolderError(f"{path} holds examples, for which this model has no format; remove the file.")
    try:
        return {
            task: tuple(InContextExample.of(value, position) for position, value in enumerate(values))
            for task, values in stored.items()
        }
    except (PromptError, TypeError) as error:
        raise ModelFolderError(f"{path}: {error} It maps tasks to lists of examples.") from None


def _family_limit(*, drama: bool, instructed: bool) -> int | None:
    return DRAMA_MAX_LENGTH if drama else INSTRUCTED_MAX_LENGTH if instructed else None


def most_tokens(config: dict[str, Any]) -> int | None:
    """Longest text that a model of this config.json has position embeddings for; None where positions are computed."""
    return _positions(config) if config.get("model_type") in LEARNED_POSITIONS else None


def _positions(config: dict[str, Any]) -> int | None:
    """Longest text that a config.json announces positions for."""
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if positions and config.get("model_type") in OFFSET_POSITIONS:
        positions -= config.get("pad_token_id", 1) + 1
    return positions


def _max_length(folder: Path, config: dict[str, Any], *, limit: int | None) -> int:
    """The limit that sentence-transformers' settings set, else the tokenizer's, within the model's positions.

    Raises:
        ModelFolderError: it leaves no room between the two ends of a text, or is set where it is not read.
    """
    path, settings = sentence_settings(folder)
    if settings.get("processing_kwargs"):
        raise ModelFolderError(
            f"{path} sets processing_kwargs, which are not read here; set max_seq_length instead, or use "
            "sentence-transformers for this model."
        )
    own = tokenizer_arguments(folder).get("model_max_length") or settings.get("max_seq_length")
    limits = {
        path.name: own,
        "tokenizer_config.json": own or _optional(folder / "tokenizer_config.json").get("model_max_length"),
        "config.json": _positions(config),
    }
    name, least = min(
        ((name, value) for name, value in limits.items() if value), key=itemgetter(1), default=("", 1 << 20)
    )
    if least <= 2:
        raise ModelFolderError(
            f"{folder / name} limits texts to {least} tokens, which leaves no room between the two ends of a text; "
            "correct it, or fetch the folder again."
        )
    return int(min(least, limit or 1 << 20, 1 << 20))


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _hidden_size(config: dict[str, Any], folder: Path) -> int:
    size: Any = next((config[name] for name in HIDDEN_SIZE_NAMES if name in config), None)
    if not SIZE.holds(size):
        raise ModelFolderError(
            f"{folder / 'config.json'} has no whole number `hidden_size`. Fetch the folder again, unless this "
            f"{config.get('model_type')} is of a family that writes none; then it is not supported."
        )
    return int(size)
