"""How much a server takes from one caller, and from all of them together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a request, those of OpenAI's endpoint, and of what may wait. Beyond them: a status code."""

    inputs: int = 2048
    """Texts in a request; 413."""
    tokens_each: int = 8192
    """Tokens of a text, its ends included, or the model's own limit where that is lower; 413."""
    tokens: int = 300_000
    """Tokens of all texts of a request together; 413."""
    body_bytes: int = 16 << 20
    """Of a request; 413 without reading on."""
    hits: int = 1000
    """Documents that a search may ask for; 400."""
    waiting_requests: int = 512
    """Requests that may be read, wait or be computed at the same time; 429."""
    waiting_tokens: int = 1_000_000
    """Tokens of all these together; 429."""
    timeout_s: float = 120.0
    """From a request's arrival, its body not yet read, to its answer; 503."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name}={value} must be above 0.")
