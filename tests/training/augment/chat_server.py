"""A real chat endpoint on loopback that misbehaves on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test-0123456789"
Fault = str | int | None
WRONG_SHAPES: dict[Fault, str] = {
    "list": "[1, 2]",
    "text": '"yes"',
    "null": "null",
    "choices are a mapping": '{"choices": {"a": 1}}',
    "choice is a text": '{"choices": ["yes"]}',
    "message is null": '{"choices": [{"message": null}]}',
    "content in parts": '{"choices": [{"message": {"content": [{"type": "text", "text": "yes"}]}}]}',
    "tokens without end": '{"choices": [{"message": {"content": "yes"}}], "usage": {"prompt_tokens": Infinity}}',
    "usage is a text": '{"choices": [{"message": {"content": "yes"}}], "usage": "many"}',
    "deep": "[" * 100_000,
    "error inside": '{"error": {"message": "upstream is overloaded"}}',
}


class ChatServer(ThreadingHTTPServer):
    """Answers `reply(messages)`; `faults(number, body)` names what goes wrong with the request of that number."""

    daemon_threads = True

    def __init__(self, reply: Callable[[list[dict[str, str]]], str], faults: Callable[[int, dict[str, Any]], Fault]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply, self.faults = reply, faults
        self.bodies: list[dict[str, Any]] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


@contextmanager
def serving(
    reply: Callable[[list[dict[str, str]]], str] = lambda messages: f"answer to {messages[-1]['content'][-20:]}",
    faults: Callable[[int, dict[str, Any]], Fault] = lambda *_: None,
) -> Iterator[ChatServer]:
    """Run the server in a thread."""
    server = ChatServer(reply, faults)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
        try:
            self._respond(body, self.server.faults(number, body))
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def _respond(self, body: dict[str, Any], fault: Fault) -> None:
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None}}
        if self.path != "/v1/chat/completions":
            self._send(404, b"<html>not here</html>", "text/html")
        elif fault == "key":
            said = {"error": {"message": f"Incorrect API key provided: {self.headers.get('authorization')}"}}
            self._send(401, json.dumps(said).encode())
        elif fault == "page":
            self._send(200, b"<!doctype html><title>Welcome</title>", "text/html")
        elif fault in WRONG_SHAPES:
            self._send(200, WRONG_SHAPES[fault].encode())
        elif fault == "redirect":
            self._send(302, b"", headers={"location": "https://example.invalid/login"})
        elif fault == "garbage":
            self._send(200, b'{"choices": [{"mess')
        elif fault == "hang":
            time.sleep(1.5)
        elif fault == "cut":
            self._send(200, b'{"choices": [', length=1000)
        elif fault == "empty choice":
            self._send(200, json.dumps({"choices": [choice]}).encode())
        elif fault == "no choice":
            self._send(200, json.dumps({"choices": []}).encode())
        elif isinstance(fault, int):
            retry = {"retry-after": "0"} if fault == 429 else {}
            self._send(fault, b'{"error": {"message": "context too long"}}', headers=retry)
        else:
            choice["message"] = {"role": "assistant", "content": self.server.reply(body["messages"])}
            self._send(200, json.dumps({"choices": [choice], "usage": usage}).encode())

    def _send(
        self,
        status: int,
        content: bytes,
        kind: str = "application/json",
        length: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(length or len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        with suppress(ConnectionError):  # tests kill clients
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""
