"""A Hugging Face Hub of one machine: the few requests that ``snapshot_download`` makes, served from a directory."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class Hub:
    """What is served, and what was asked for.

    Attributes:
      repositories: ``organisation/name`` -> revision -> directory of its files.
      gated: names of those that need terms accepted.
      broken: paths of files whose transfer breaks off half way.
      endpoint: for HF_ENDPOINT.
      asked: paths of all requests so far.
    """

    def __init__(self, repositories: dict[str, dict[str, Path]]):
        self.repositories = repositories
        self.gated: set[str] = set()
        self.broken: set[str] = set()
        self.endpoint = ""
        self.asked: list[str] = []

    def downloaded(self) -> set[str]:
        """Names of the files whose content was asked for."""
        return {path.split("/")[-1] for path in self.asked if "/resolve/" in path and not path.startswith("HEAD")}


@contextlib.contextmanager
def serve(repositories: dict[str, dict[str, Path]]) -> Iterator[Hub]:
    """A Hub on the loopback interface while the block runs."""
    hub = Hub(repositories)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.answer(body=True)

        def do_HEAD(self):
            self.answer(body=False)

        def log_message(self, *_):
            pass

        def answer(self, body: bool) -> None:
            path = unquote(urlparse(self.path).path).strip("/")
            hub.asked.append(path if body else f"HEAD {path}")
            parts = path.split("/")
            api = parts[:2] in (["api", "models"], ["api", "datasets"])
            parts = parts[2:] if api else parts[parts[0] == "datasets" :]
            name, action, rest = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "", parts[3:]
            revisions = hub.repositories.get(name)
            if revisions is None:
                return self.fail(401, "RepoNotFound", "Repository not found")
            commits = {COMMIT: revisions.get("main"), OTHER_COMMIT: revisions.get("v1")}
            wanted = rest[0] if rest else "main"
            commit = {"main": COMMIT, "v1": OTHER_COMMIT}.get(wanted, wanted)
            directory = commits.get(commit)
            if directory is None:
                return self.fail(404, "RevisionNotFound", "Invalid rev id")
            if api and action == "tree":
                files = sorted(file for file in directory.iterdir())
                return self.send_json([self.entry(file) for file in files])
            if api:
                return self.send_json({"id": name, "modelId": name, "sha": commit, "siblings": [], "tags": []})
            file = directory / "/".join(rest[1:])
            if name in hub.gated:
                return self.fail(403, "GatedRepo", "Access to this model is restricted")
            if not file.is_file():
                return self.fail(404, "EntryNotFound", "Entry not found")
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body and file.name in hub.broken:
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            elif body:
                self.wfile.write(content)

        def entry(self, file: Path) -> dict:
            content = file.read_bytes()
            return {
                "type": "file",
                "path": file.name,
                "size": len(content),
                "oid": hashlib.sha1(content).hexdigest(),
            }

        def send_json(self, value) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def fail(self, status: int, code: str, message: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
