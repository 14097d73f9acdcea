"""An encoder behind the protocol of mteb, and retrieval tasks for mteb from BEIR folders.

mteb brings torch and datasets, so nothing here is imported before `drama evaluate --mteb` asks for it. Texts that a
task calls queries get the query prompt, all others the document prompt; a model of instructions gets the task's words.

Muennighoff et al., 2022, https://arxiv.org/abs/2210.07316.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from drama_models.collection import Collection, titled
from drama_models.encoder import Encoder
from drama_models.errors import CollectionError, MissingExtraError
from drama_models.model_folder import ONNX_GRAPH, has_weights, stated_license, tensor_shapes, weight_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mteb.abstasks import AbsTask
    from mteb.models.model_meta import ModelMeta
    from numpy.typing import NDArray

OURS = "drama-models"  # owner of the name of a model that is not on the hub; mteb wants owner/name
SCORES = {"ndcg@10": "ndcg_at_10", "recall@100": "recall_at_100", "mrr@10": "mrr_at_10", "map": "map_at_1000"}


class MtebEncoder:
    """An `Encoder` as mteb calls it. Build it with `of`, or let mteb load it through `model_meta`.

    Args:
        model_name: folder or hub name; of a folder that `model_meta` describes, the name that tables show.
        revision: branch, tag or commit on the hub; of such a folder, the beginning of its fingerprint.
        folder: where it is, if it is a folder.
        device: for torch, such as "cuda".
        settings: further arguments of `Encoder.from_pretrained`.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        folder: str | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        revision = None if folder else revision
        encoder = Encoder.from_pretrained(folder or model_name, revision=revision, device=device, **settings)
        self.encoder, self.mteb_model_meta = encoder, model_meta(encoder, folder or model_name)

    @classmethod
    def of(cls, encoder: Encoder, name: str) -> MtebEncoder:
        """Wrap an encoder that is already loaded from the folder or hub name."""
        made = cls.__new__(cls)
        made.encoder, made.mteb_model_meta = encoder, model_meta(encoder, name)
        return made

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,  # noqa: ARG002
        hf_subset: str,  # noqa: ARG002
        prompt_type: Any = None,
        **_: Any,
    ) -> NDArray[np.float32]:
        """Embed what mteb's data loader gives.

        Args:
            inputs: batches with a list `text`, for documents of retrieval tasks also `title` and `body`.
            task_metadata: of the task; its prompt is the instruction of models that read one.
            hf_split: not needed.
            hf_subset: not needed.
            prompt_type: whether these are queries or documents; None where the task makes no difference.

        Returns:
            (number of texts, dim), float32, in input order.
        """
        encoder = self.encoder
        if getattr(prompt_type, "value", prompt_type) == "query":
            queries = [text for batch in inputs for text in batch["text"]]
            return encoder.encode_queries(queries, instruction=_instruction(encoder, task_metadata))
        separator = encoder.document_encoder.profile.title_separator
        return encoder.encode_documents([text for batch in inputs for text in _document_texts(batch, separator)])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> NDArray[np.float32]:
        """Inner products, (n, m); cosines where the model normalises."""
        scores: NDArray[np.float32] = np.asarray(embeddings1) @ np.asarray(embeddings2).T
        return scores

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> NDArray[np.float32]:
        """Inner product of each row with the same row of the other, (n,)."""
        scores: NDArray[np.float32] = (np.asarray(embeddings1) * np.asarray(embeddings2)).sum(axis=-1)
        return scores


def model_meta(encoder: Encoder, name: str) -> ModelMeta:
    """What mteb's tables say of a model, read from its folder.

    Args:
        encoder: loaded from it.
        name: folder or hub name.

    Raises:
        MissingExtraError: mteb is not installed.
    """
    _mteb()
    from mteb.models.model_meta import FRAMEWORKS, ModelMeta, ScoringFunction
    from mteb.types import Licenses

    profile, folder = encoder.profile, encoder.layout.backbone
    weights = weight_files(folder) if has_weights(folder) else []
    shapes = {name: shape for path in weights for name, shape in tensor_shapes(path).items()}
    embedding = [
        shape for name, shape in shapes.items() if name.endswith(("embed_tokens.weight", "word_embeddings.weight"))
    ]
    licence, local = stated_license(encoder.folder), Path(name).exists()
    loading: dict[str, Any] = {"dim": encoder.dim}
    if local:
        loading["folder"] = str(Path(name).resolve())
    if encoder.document_encoder.folder != encoder.folder:
        loading["document_model"] = str(encoder.document_encoder.folder.resolve())
    frameworks: list[FRAMEWORKS] = ["Sentence Transformers"]
    if weights:
        frameworks += ["Transformers", "safetensors"]
    graphs = sorted(folder.glob(f"{ONNX_GRAPH}*"))  # weights may lie beside it
    if graphs:
        frameworks.append("ONNX")
    return ModelMeta(
        loader=MtebEncoder,
        loader_kwargs=loading,
        name=f"{OURS}/{Path(name).resolve().name}" if local else name,
        revision=encoder.fingerprint()[:12] if local else _commit(encoder.folder),
        release_date=None,
        languages=None,
        n_parameters=sum(map(prod, shapes.values())) or None,
        n_embedding_parameters=sum(map(prod, embedding)) or None,
        memory_usage_mb=round(sum(path.stat().st_size for path in weights or graphs) / 2**20, 1),
        max_tokens=profile.max_length,
        embed_dim=sorted(profile.dims) or profile.hidden_size,
        license=licence if licence in get_args(Licenses) else None,
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=frameworks,
        similarity_fn_name=ScoringFunction.COSINE if profile.normalise else ScoringFunction.DOT_PRODUCT,
        use_instructions=bool(profile.query_prompt or profile.instruct),
        training_datasets=None,
        experiment_kwargs=None if encoder.dim == profile.hidden_size else {"dim": encoder.dim},
    )


def evaluate_on_mteb(
    encoder: Encoder, name: str, tasks: Sequence[str], *, split: str = "test"
) -> dict[str, dict[str, float]]:
    """Scores of an encoder on tasks of mteb.

    Args:
        encoder: to evaluate.
        name: folder or hub name that it was loaded from.
        tasks: names that mteb knows, whose data it fetches from the hub; or BEIR folders.
        split: judgements of BEIR folders; mteb's own tasks know theirs.

    Returns:
        By task its main score, and nDCG@10, Recall@100, MRR@10 and MAP where it is a retrieval task.

    Raises:
        MissingExtraError: mteb is not installed.
        CollectionError: a task that mteb does not know and that is no folder, a malformed one, or two of one name.
    """
    mteb = _mteb()
    chosen = [beir_task(Path(task), split) if Path(task).is_dir() else _known_task(task) for task in tasks]
    names = Counter(task.metadata.name for task in chosen)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise CollectionError(f"Two of the tasks are called {twice!r}; evaluate them one by one, or rename a folder.")
    quiet = {"co2_tracker": False, "cache": None, "show_progress_bar": False}
    results = mteb.evaluate(MtebEncoder.of(encoder, name), chosen, encode_kwargs={"show_progress_bar": False}, **quiet)
    return {result.task_name: _scores(result) for result in results.task_results}


def beir_task(folder: Path, split: str = "test") -> AbsTask:
    """A BEIR folder as a retrieval task of mteb, of the folder's name; nothing is fetched.

    Raises:
        MissingExtraError: mteb is not installed.
    """
    _mteb()
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class BeirFolder(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=folder.resolve().name,
            description="A collection on this machine.",
            dataset={"path": str(folder), "revision": "local"},
            type="Retrieval",
            category="t2t",
            eval_splits=[split],
            eval_langs=["und-Zyyy"],
            main_score="ndcg_at_10",
        )

        def load_data(self, num_proc: int | None = None, *, timer: Any = None, **_: Any) -> None:  # noqa: ARG002
            collection = Collection(folder)
            qrels, queries = collection.qrels(split), collection.queries()
            documents = [{"id": row.id, "title": row.title, "text": row.text} for row in collection.documents()]
            asked = [{"id": query, "text": queries[query]} for query in qrels]
            parts = {"corpus": Dataset.from_list(documents), "queries": Dataset.from_list(asked)}
            self.dataset = {"default": {split: {**parts, "relevant_docs": qrels, "top_ranked": None}}}  # type: ignore[typeddict-item]
            self.data_loaded = True

    return BeirFolder()


def _mteb() -> Any:
    try:
        import mteb
    except ImportError:
        raise MissingExtraError("Evaluating on tasks of mteb", "mteb") from None
    return mteb


def _known_task(name: str) -> AbsTask:
    try:
        return _mteb().get_task(name)
    except (KeyError, ValueError) as error:
        reason = str(error).strip("'\"").split(". ")[0]
        raise CollectionError(f"{name!r} is no task of mteb and no BEIR folder ({reason}).") from None


def _instruction(encoder: Encoder, task_metadata: Any) -> str | None:
    """The task in words, for a model that reads instructions."""
    prompt = task_metadata.prompt
    if encoder.profile.instruct is None or not prompt:
        return None
    return prompt.get("query") if isinstance(prompt, dict) else str(prompt)


def _document_texts(batch: Mapping[str, Any], separator: str) -> list[str]:
    """Title and body around the separator, where there are titles; for a space, what mteb makes of them itself."""
    if "title" not in batch:
        return list(batch["text"])
    return [titled(title, body, separator) for title, body in zip(batch["title"], batch["body"], strict=True)]


def _scores(result: Any) -> dict[str, float]:
    figures = {"main_score": float(result.get_score())}
    rows = [row for rows in result.scores.values() for row in rows]
    for name, key in SCORES.items():
        values = [row[key] for row in rows if key in row]
        if values:
            figures[name] = float(np.mean(values))
    return figures


def _commit(folder: Path) -> str | None:
    """Commit of a folder in the hub's cache, which names it so; None of another one."""
    return folder.name if folder.parent.name == "snapshots" else None
