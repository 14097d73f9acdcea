"""What callers send, checked field by field: the JSON of OpenAI's embeddings endpoint, and of a search.

Every refusal is a sentence with a status code and the field it is about, in the form that OpenAI's clients show.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drama_models.surrogates import storable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from drama_models.server.limits import Limits

QUERY_TYPES = ("query", "search_query")
DOCUMENT_TYPES = ("document", "search_document", "passage")
FORMATS = ("float", "base64")
EMBEDDING_FIELDS = (
    "input", "model", "dimensions", "encoding_format", "input_type", "prompt_name", "truncate", "user"
)  # fmt: skip
SEARCH_FIELDS = ("query", "model", "k", "prompt_name", "truncate")


class RequestError(Exception):
    """A request that is refused.

    Args:
        status: of HTTP.
        message: a sentence for whoever wrote the request.
        param: field that it is about.
        code: word for programs.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def as_json(self) -> dict[str, Any]:
        """In the form of OpenAI's errors."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, kw_only=True)
class EmbeddingRequest:
    """Texts to embed, and how."""

    texts: tuple[str, ...]
    query: bool
    """Behind the query prompt, or as documents."""
    task: str | None
    """Name of another prompt for queries."""
    dimensions: int | None
    base64: bool
    truncate: bool
    """Cut texts that are too long, instead of refusing them."""


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """Queries to search an index with."""

    texts: tuple[str, ...]
    single: bool
    """Whether the answer is that of one query, and no list of answers."""
    k: int
    task: str | None
    truncate: bool


def read_embedding_request(body: bytes, limits: Limits, served: Collection[str]) -> EmbeddingRequest:
    """What a caller of `/v1/embeddings` asks for.

    Args:
        body: JSON.
        limits: of the server.
        served: names that the model answers to.

    Raises:
        RequestError: it cannot be answered.
    """
    fields = _fields(body, EMBEDDING_FIELDS, served)
    task = _text(fields, "prompt_name")
    kind = _text(fields, "input_type") or ("document" if task is None else "query")
    if kind not in QUERY_TYPES + DOCUMENT_TYPES:
        known = ", ".join(QUERY_TYPES + DOCUMENT_TYPES)
        raise RequestError(400, f"input_type={kind!r} must be one of {known}.", param="input_type")
    if task is not None and kind in DOCUMENT_TYPES:
        raise RequestError(
            400,
            f"prompt_name={task!r} is a prompt of queries, and input_type is {kind}; leave one out.",
            param="prompt_name",
        )
    encoding = _text(fields, "encoding_format") or "float"
    if encoding not in FORMATS:
        raise RequestError(400, f"encoding_format={encoding!r} must be float or base64.", param="encoding_format")
    return EmbeddingRequest(
        texts=_texts(fields, "input", limits),
        query=kind in QUERY_TYPES,
        task=task,
        dimensions=_whole(fields, "dimensions"),
        base64=encoding == "base64",
        truncate=_flag(fields, "truncate"),
    )


def read_search_request(body: bytes, limits: Limits, served: Collection[str]) -> SearchRequest:
    """What a caller of `/search` asks for; arguments and errors as of `read_embedding_request`."""
    fields = _fields(body, SEARCH_FIELDS, served)
    k = _whole(fields, "k")
    if k is not None and k > limits.hits:
        raise RequestError(400, f"k={k} is too many; this server gives up to {limits.hits}.", param="k")
    return SearchRequest(
        texts=_texts(fields, "query", limits),
        single=isinstance(fields.get("query"), str),
        k=10 if k is None else k,
        task=_text(fields, "prompt_name"),
        truncate=_flag(fields, "truncate"),
    )


def _fields(body: bytes, known: Collection[str], served: Collection[str]) -> Mapping[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "The body is not JSON in UTF-8; send one object.") from None
    if not isinstance(fields, dict):
        raise RequestError(400, f"The body must be a JSON object, found {type(fields).__name__}.")
    unknown = next((name for name in fields if name not in known), None)
    if unknown is not None:
        raise RequestError(
            400,
            f"There is no field {storable(unknown)[:60]!r} here; there are {', '.join(known)}.",
            code="unknown_field",
        )
    model = _text(fields, "model")
    if model is not None and model not in served:
        names = " or ".join(served)
        raise RequestError(404, f"This server has no model {model[:200]!r}; ask for {names}.", param="model",
                           code="model_not_found")  # fmt: skip
    return fields


def _texts(fields: Mapping[str, Any], name: str, limits: Limits) -> tuple[str, ...]:
    given = fields.get(name)
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise RequestError(400, f"`{name}` must be a text or a list of texts that is not empty.", param=name)
    if len(texts) > limits.inputs:
        raise RequestError(
            413, f"`{name}` holds {len(texts)} texts, and a request may have {limits.inputs}; send several.", param=name
        )
    for position, text in enumerate(texts):
        if isinstance(text, str):
            continue
        if isinstance(text, int) or (isinstance(text, list) and all(isinstance(token, int) for token in text)):
            raise RequestError(
                422, f"`{name}` holds token ids, of another model's tokenizer perhaps; send texts.", param=name
            )
        raise RequestError(400, f"`{name}` number {position} is {type(text).__name__}; send texts.", param=name)
    return tuple(map(storable, texts))


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise RequestError(400, f"`{name}` must be text.", param=name)
    return None if value is None else storable(value)


def _whole(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is not None and (type(value) is not int or value < 1):
        raise RequestError(400, f"`{name}` must be a whole number above 0.", param=name)
    return value


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(400, f"`{name}` must be true or false.", param=name)
    return bool(value)
