"""The model card, written from the provenance chain and from nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from drama_models.model_folder import read_json, tensor_shapes, weight_files
from drama_models.provenance import chain
from drama_models.runtimes.bert_shape import WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from drama_models.pooling import Pooling
    from drama_models.profile import Profile

CARD_FILE = "README.md"
TAGS = ("drama-models", "sentence-transformers", "sentence-similarity")
EMBEDDINGS = ("embed_tokens.weight", WORDS)  # of a Llama, of a BERT
POOLED: dict[Pooling, str] = {
    "mean": "the mean of all last hidden states", "cls": "the last hidden state of the first token",
    "last": "the last hidden state of the last token",
}  # fmt: skip
JS_POOLINGS: dict[Pooling, str] = {"mean": "mean", "cls": "cls", "last": "last_token"}
"""What transformers.js calls each pooling."""
TEMPLATE = Path(__file__).parents[1] / "model_cards" / "template.md"
PARITY_HEADING = "## Do all clients agree?"
LIMITS = (
    "It knows what its source model and its training examples taught it, and no more: expect little in languages and "
    "subjects that the stages above did not see. It compares texts; it does not check whether what they say is true."
)


def write_card(
    path: Path,
    record: dict[str, Any],
    profile: Profile,
    *,
    name: str,
    license_id: str,
    languages: Sequence[str],
    base_model: str = "",
) -> None:
    """Write the README.md of a release.

    Args:
        path: file to write, inside the release folder.
        record: the release's provenance, its ancestors included.
        profile: how the release encodes.
        name: of the model, as its users will load it.
        license_id: SPDX identifier, or "other".
        languages: two-letter codes.
        base_model: hub name of published weights that the release passes on; empty for a model of our own.
    """
    stages = chain(record)
    sizes = _parameter_counts(path.parent)
    data = ModelCardData(
        license=license_id,
        language=list(languages) or None,
        base_model=base_model if "/" in base_model else None,  # the hub accepts no other name
        library_name="sentence-transformers",
        pipeline_tag="feature-extraction",
        tags=[*TAGS, *["matryoshka"] * bool(profile.dims), "onnx"],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        base_model=base_model,
        license_id=license_id,
        parameters=f"{sizes['all']:,}",
        non_embedding=f"{sizes['non_embedding']:,}",
        hidden_size=profile.hidden_size,
        dims=", ".join(map(str, profile.dims)),
        max_length=profile.max_length,
        query_prompt=profile.query_prompt,
        document_prompt=profile.document_prompt,
        bert=read_json(path.parent / "config.json").get("model_type") == "bert",
        built_with_llama=asks_for_llama(license_id),
        graphs=", ".join(f"`{graph.name}`" for graph in sorted((path.parent / "onnx").glob("*.onnx"))),
        pooled=POOLED[profile.pooling],
        pooling=profile.pooling,
        js_pooling=JS_POOLINGS[profile.pooling],
        normalise=profile.normalise,
        stages=[
            {"number": number, "stage": stage["stage"], "text": _stage_text(stage)}
            for number, stage in enumerate(stages, start=1)
        ],
        parity=parity_table(record["figures"]["parity"]),
        limits=LIMITS,
    )
    path.write_text(str(card) + "\n", encoding="utf-8")


def asks_for_llama(license_id: str) -> bool:
    """Whether a licence is one of Llama's, which want "Built with Llama" on the card and "Llama" before the name."""
    return license_id.lower().startswith("llama")


def parity_table(parity: list[dict[str, Any]]) -> str:
    """Markdown table of how far each client is from our encoder."""
    rows = ["| client | largest difference | smallest cosine | mean cosine |", "|---|---|---|---|"]
    for entry in parity:
        name = " ".join(filter(None, (entry["client"], entry["version"])))
        figures = [_cell(entry.get("largest_difference"), ".1e")]
        figures += [_cell(entry.get(key), ".6f") for key in ("smallest_cosine", "mean_cosine")]
        if "problem" in entry:
            figures[0] = f"{figures[0]} {entry['problem']}".strip()
        rows.append(f"| {name} | {' | '.join(figures)} |")
    return "\n".join(rows)


def replace_parity(card: str, parity: list[dict[str, Any]]) -> str:
    """A card with another table of clients; a text without that section stays as it is."""
    before, heading, after = card.partition(f"{PARITY_HEADING}\n")
    _, next_heading, rest = after.partition("\n## ")
    if not heading or not next_heading:
        return card
    return f"{before}{heading}\n{parity_table(parity)}\n{next_heading}{rest}"


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _stage_text(stage: dict[str, Any]) -> str:
    """Inputs, settings and figures of one stage as a short list."""
    lines = [
        f"- {role}: `{entry['name']}` (SHA-256 `{entry['sha256'][:12]}`)" for role, entry in stage["inputs"].items()
    ]
    settings = ", ".join(f"{key} {value}" for key, value in stage["recipe"].items() if _is_setting(key, value))
    lines.append(f"- settings: {settings}")
    lines += [f"- {name}: {_figure(value)}" for name, value in stage["figures"].items() if name != "parity"]
    versions = ", ".join(f"{package} {version}" for package, version in stage["versions"].items())
    return "\n".join([*lines, f"- versions: {versions}"])


def _is_setting(key: str, value: object) -> bool:
    """Settings that shape the result; paths are inputs, empty values are defaults."""
    return key not in ("model", "corpus", "out", "backbone", "collection", "examples", "retriever") and value not in (
        None, "", {}, [],
    )  # fmt: skip


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_figure(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return " ".join(map(_figure, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _parameter_counts(folder: Path) -> dict[str, int]:
    shapes = {name: shape for path in weight_files(folder) for name, shape in tensor_shapes(path).items()}
    sizes = {name: int(shape[0]) * int(shape[1] if len(shape) > 1 else 1) for name, shape in shapes.items()}
    embedding = next(shapes[name][0] * shapes[name][1] for name in EMBEDDINGS if name in shapes)
    return {"all": sum(sizes.values()), "non_embedding": sum(sizes.values()) - embedding}
