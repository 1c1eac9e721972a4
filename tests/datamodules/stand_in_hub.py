"""A hub on this machine that serves files as the real one does, and misbehaves as told."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPOSITORY = "someone/some-export"
ALWAYS = 100


class StandInHub(ThreadingHTTPServer):
    """Serves files as the hub does, and misbehaves as told: `faults[method, name]` is used up, one a request."""

    daemon_threads = True

    def __init__(self, repository: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repository = repository
        self.files: dict[str, bytes] = {}
        self.faults: dict[tuple[str, str], list[str]] = {}
        self.requests: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: StandInHub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        root = f"/datasets/{self.server.repository}/resolve/main/"
        if not self.path.startswith(root):
            self.say_not_found("RepoNotFound")
            return
        name = self.path.removeprefix(root)
        self.server.requests.append((self.command, name))
        faults = self.server.faults.get((self.command, name), [])
        fault = faults.pop(0) if faults else ""
        if fault == "drop":
            self.close_connection = True
            return
        if fault in ("429", "503"):
            self.send_response(int(fault))
            if fault == "429":
                self.send_header("Retry-After", "7")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if name not in self.server.files:
            self.say_not_found("EntryNotFound")
            return
        whole = self.server.files[name]
        body = b"" if fault == "empty" else whole[: len(whole) // 2] if fault == "short" else whole
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if "Range" in self.headers else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(whole).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[start : len(body) // 2] if fault == "break off" else body[start:])
        self.close_connection = True

    def say_not_found(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def served(server: StandInHub) -> Iterator[StandInHub]:
    """Answer requests in a thread."""
    with server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
