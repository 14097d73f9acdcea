"""Listening: uvicorn on the loopback address unless told otherwise, ended without cutting anybody off."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from drama_models.errors import AddressError, MissingExtraError

if TYPE_CHECKING:
    from drama_models.server.app import Served

LARGEST_PORT = 65_535
BACKLOG = 2048  # connections that the system holds until they are accepted
GRACE_S = 30  # for requests that are being answered when the server is told to end


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def check_installed() -> None:
    """Refuse to begin without the packages.

    Raises:
        MissingExtraError: Starlette or uvicorn is not installed.
    """
    try:
        import starlette
        import uvicorn
    except ImportError:
        raise MissingExtraError("drama serve", "serve") from None
    del starlette, uvicorn


def serve(served: Served, host: str, port: int) -> None:
    """Answer requests until the process is told to end (SIGTERM, Ctrl-C); those that have begun are answered first.

    Args:
        served: what to answer with.
        host: address to listen on.
        port: 0 takes a free one.

    Raises:
        AddressError: the address cannot be listened on.
    """
    import uvicorn

    from drama_models.server.app import make_app

    settings: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    config = uvicorn.Config(make_app(served), timeout_graceful_shutdown=GRACE_S, **settings)
    listening = listen(host, port)
    name = f"[{host}]" if ":" in host else host
    place = f"http://{name}:{listening.getsockname()[1]}"
    print(f"serving {served.name} at {place}/v1/embeddings", file=sys.stderr, flush=True)  # noqa: T201
    with suppress(KeyboardInterrupt):  # raised once more when all that had begun is answered
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that says that it is TCP, or asyncio would not turn Nagle's algorithm off: 40 ms for each answer.

    Raises:
        AddressError: the address cannot be listened on.
    """
    if not 0 <= port <= LARGEST_PORT:  # getaddrinfo would take the rest of a division
        raise AddressError(f"--port {port} must be from 1 to {LARGEST_PORT}; 0 takes a free one.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
        return listening
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise AddressError(f"{host} cannot be listened on at port {port} ({reason}); choose another one.") from None
