"""The addresses of a server: embeddings, search, the model's name, and whether it lives.

POST /v1/embeddings   as OpenAI's clients call it
POST /search          best documents of an index, where one is served
GET  /v1/models       what is served
GET  /health          200 as long as requests are taken
"""

from __future__ import annotations

import asyncio
import base64
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from drama_models.arguments import checked_dim
from drama_models.errors import DimensionError, PromptError
from drama_models.server.batching import Batcher
from drama_models.server.limits import Limits
from drama_models.server.requests import RequestError, read_embedding_request, read_search_request
from drama_models.server.run import is_loopback

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from starlette.requests import Request

    from drama_models.encoder import Encoder
    from drama_models.index import Index

logger = logging.getLogger(__name__)

RETRY_AFTER_S = "1"
HUNG_UP = 499  # as nginx logs it

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a server answers with."""

    encoder: Encoder
    name: str
    """That callers ask for."""
    other_names: tuple[str, ...] = ()
    """That they may ask for too."""
    index: Index | None = None
    limits: Limits = field(default_factory=Limits)
    together: bool = True
    """Whether requests share batches."""
    loopback: bool = True
    """Whether only this machine is to reach it, so that a page in a browser cannot by another name."""


class Server:
    """The answers to requests; one for each application."""

    def __init__(self, served: Served) -> None:
        self.served, self.names = served, (served.name, *served.other_names)
        self.batcher = Batcher(served.limits, together=served.together)

    async def embeddings(self, request: Request) -> JSONResponse:
        """Vectors of texts, and how many tokens were read."""
        self._check_caller(request)
        async with self.batcher.place():
            asked = read_embedding_request(await self._body(request), self.served.limits, self.names)
            dim = self._dim(asked.dimensions)
            work = self._vectors(asked.texts, query=asked.query, task=asked.task, truncate=asked.truncate, dim=dim)
            vectors, tokens = await _unless_gone(request, work)
        data = [
            {"object": "embedding", "index": number, "embedding": _encoded(row) if asked.base64 else row.tolist()}
            for number, row in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": self.served.name, "usage": usage})

    async def search(self, request: Request) -> JSONResponse:
        """The best documents of one query, or of each of several."""
        index = self.served.index
        if index is None:
            raise RequestError(404, "This server has no index; start it with --index.")
        self._check_caller(request)
        async with self.batcher.place():
            asked = read_search_request(await self._body(request), self.served.limits, self.names)
            work = self._vectors(asked.texts, query=True, task=asked.task, truncate=asked.truncate, dim=index.dim)
            vectors, _ = await _unless_gone(request, work)
            found = await asyncio.to_thread(index.search, vectors, asked.k)
        answers = [[{"id": key, "score": score} for key, score in hits] for hits in found]
        return JSONResponse({"hits": answers[0] if asked.single else answers})

    async def models(self, _: Request) -> JSONResponse:
        """The one model, with what a caller has to know of it."""
        profile = self.served.encoder.profile
        model = {
            "id": self.served.name,
            "object": "model",
            "created": 0,
            "owned_by": "drama-models",
            "dimensions": self.served.encoder.dim,
            "trained_dimensions": list(profile.dims),
            "max_tokens": self._most_tokens(),
            "prompt_names": sorted(profile.prompts),
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def health(self, _: Request) -> JSONResponse:
        """Whether requests are taken, and how many are being answered."""
        return JSONResponse({"status": "ok", "requests": self.batcher.inside})

    async def _body(self, request: Request) -> bytes:
        """What was sent, read no further than the limit."""
        most = self.served.limits.body_bytes
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise RequestError(413, f"The body is larger than {most:,} bytes; send fewer texts at once.")
        return bytes(body)

    def _check_caller(self, request: Request) -> None:
        """Only JSON, and on the loopback address only by its names: neither can a web page forge."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError(415, "Send the body as application/json.")
        if self.served.loopback and not is_loopback(_host_name(request.headers.get("host", ""))):
            raise RequestError(403, "This server answers on the loopback address only; see --host.")

    def _dim(self, dimensions: int | None) -> int:
        encoder = self.served.encoder
        if dimensions is None:
            return encoder.dim
        try:
            return checked_dim(dimensions, encoder.profile, quiet=True)  # /v1/models names those that were trained
        except DimensionError as error:
            raise RequestError(400, str(error).replace("dim=", "dimensions="), param="dimensions") from None

    async def _vectors(
        self, texts: Sequence[str], *, query: bool, task: str | None, truncate: bool, dim: int
    ) -> tuple[NDArray[np.float32], int]:
        """Embeddings, (number of texts, dim), and the tokens that were read for them."""
        served = self.served.encoder
        try:
            rows = await asyncio.to_thread(self._tokenised, texts, query=query, task=task, truncate=truncate)
        except PromptError as error:
            raise RequestError(422, str(error).replace("task=", "prompt_name="), param="prompt_name") from None
        encoder = served if query else served.document_encoder
        pooled = await self.batcher.pooled(encoder, rows)
        return encoder.finished(pooled, dim), sum(map(len, rows))

    def _tokenised(
        self, texts: Sequence[str], *, query: bool, task: str | None, truncate: bool
    ) -> list[NDArray[np.int64]]:
        rows: list[NDArray[np.int64]] = []
        limits, total = self.served.limits, 0
        for position, text in enumerate(texts):
            row, cut = self.served.encoder.tokenise(text, query=query, task=task)
            if len(row) > limits.tokens_each or (cut and not truncate):
                most, way = self._most_tokens(), "" if truncate else ", or send `truncate`: true"
                raise RequestError(413, f"Text number {position} has more than {most} tokens; split it{way}.")
            rows.append(row)
            total += len(row)
            if total > limits.tokens:
                raise RequestError(
                    413, f"The texts have more than {limits.tokens:,} tokens together; send fewer at once."
                )
        return rows

    def _most_tokens(self) -> int:
        return min(self.served.limits.tokens_each, self.served.encoder.max_length)


def make_app(served: Served) -> Starlette:
    """The application that `run.serve` listens with, and that any ASGI server takes."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        server = Server(served)
        app.state.server = server
        yield
        await server.batcher.close()

    def route(path: str, name: str, method: str) -> Route:
        async def answer(request: Request) -> JSONResponse:
            response: JSONResponse = await getattr(request.app.state.server, name)(request)
            return response

        return Route(path, answer, methods=[method])

    routes = [
        route("/v1/embeddings", "embeddings", "POST"),
        route("/embeddings", "embeddings", "POST"),
        route("/search", "search", "POST"),
        route("/v1/models", "models", "GET"),
        route("/health", "health", "GET"),
    ]
    handlers: dict[Any, Any] = {RequestError: _refused, HTTPException: _http_error, Exception: _failed}
    handlers |= {ClientDisconnect: _gone}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result, unless the caller hangs up before: then no more of it is computed.

    Raises:
        ClientDisconnect: the caller has gone.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})


async def _hung_up(request: Request) -> None:
    """Returns when the caller has gone: after a whole body nothing else is to come."""
    if (await request.receive())["type"] != "http.disconnect":
        await asyncio.Event().wait()  # for good, where a server repeats itself


async def _gone(*_: object) -> Response:
    """For nobody: whoever asked has hung up."""
    return Response(status_code=HUNG_UP)


async def _refused(_: Request, error: RequestError) -> JSONResponse:
    headers = {"Retry-After": RETRY_AFTER_S} if error.status in (429, 503) else None
    return JSONResponse(error.as_json(), error.status, headers)


async def _http_error(_: Request, error: HTTPException) -> JSONResponse:
    """No such address, or another method."""
    return JSONResponse(RequestError(error.status_code, f"{error.detail}.").as_json(), error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    """Anything unforeseen: its traceback is for the server's log alone."""
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse(RequestError(500, "This server failed; its log says why.").as_json(), 500)


def _host_name(header: str) -> str:
    """Of the Host header, without its port, in lower case; empty where it has none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:  # brackets that do not close
        return ""


def _encoded(row: NDArray[np.float32]) -> str:
    """Little-endian float32 in base64, as OpenAI's clients decode it."""
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
