"""A hub on this machine that serves and takes files as the real one does, and misbehaves as told."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPOSITORY = "someone/some-export"
ALWAYS = 100


class StandInHub(ThreadingHTTPServer):
    """Serves files as the hub does, and misbehaves as told: `faults[method, name]` is used up, one a request.

    It takes models from the one who has the token: `models` holds each repository's files.
    """

    daemon_threads = True

    def __init__(self, repository: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repository = repository
        self.files: dict[str, bytes] = {}
        self.faults: dict[tuple[str, str], list[str]] = {}
        self.requests: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.token = "hf_ada"
        self.owner = "ada"
        self.models: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}
        """What was uploaded as a large file and is in no repository yet, by its SHA-256."""

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

    def do_PUT(self) -> None:
        """A large file."""
        content = self.body()
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self.say({})

    def do_POST(self) -> None:
        """What an upload asks for, as huggingface_hub's client asks it."""
        body = self.body()
        self.server.requests.append(("POST", self.path))
        fault = next(iter(self.server.faults.get(("POST", self.path), [])), "")
        if fault or self.headers["Authorization"] != f"Bearer {self.server.token}":
            self.say({"error": "no"}, int(fault or 401))
            return
        match self.path.removeprefix("/").split("/"):
            case ["api", "validate-yaml"]:
                self.say({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                self.create(json.loads(body))
            case ["api", "models", owner, name, "preupload", "main"]:
                files = json.loads(body)["files"]
                modes = [("lfs" if file["path"].endswith(".golf") else "regular", file["path"]) for file in files]
                self.say({"files": [{"path": path, "uploadMode": m, "shouldIgnore": False} for m, path in modes]})
            case [owner, name, "info", "lfs", "objects", "batch"]:
                upload = {"upload": {"href": f"{self.server.url}/large"}}
                self.say({"objects": [{**one, "actions": upload} for one in json.loads(body)["objects"]]})
            case ["api", "models", owner, name, "commit", "main"]:
                self.commit(f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])
            case _:
                self.say_not_found("RepoNotFound")

    def create(self, asked: dict[str, str]) -> None:
        owner = asked.get("organization") or self.server.owner
        if owner != self.server.owner:
            self.say({"error": "not yours"}, 403)
            return
        name = f"{owner}/{asked['name']}"
        exists = name in self.server.models
        self.server.models.setdefault(name, {})
        if asked.get("visibility") == "private":
            self.server.private.add(name)
        self.say({"url": f"{self.server.url}/{name}"}, 409 if exists else 200)

    def commit(self, name: str, lines: list[dict[str, dict[str, str]]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.models[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.models[name][value["path"]] = self.server.large[value["oid"]]
        self.say({"commitUrl": f"{self.server.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})

    def body(self) -> bytes:
        """A request's content, given by its length or in chunks."""
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def say(self, answer: dict[str, object], status: int = 200) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

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
