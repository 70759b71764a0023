"""Server on 127.0.0.1 that speaks the few calls of the Hugging Face Hub that the package uses."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """Files of each commit, and the commit of each branch and tag."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes that the server claims, in place of the real ones."""

    def commit(self, files: dict[str, bytes], revision: str = "main") -> str:
        digest = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[digest] = files
        self.revisions[revision] = digest
        return digest

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.revisions["main"]]


@dataclass
class Hub:
    """Repositories by name, and the paths of all requests."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    broken: bool = False
    url: str = ""

    def add(self, name: str, **files: bytes) -> Repository:
        repository = self.repositories[name] = Repository()
        repository.commit({file.replace("__", "/"): content for file, content in files.items()})
        return repository


class Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def may_read(self, repository: Repository | None) -> bool:
        token = self.headers.get("Authorization")
        if repository is None or (repository.private and token is None):
            self.fail(404 if token else 401, "RepoNotFound")
        elif repository.gated:
            self.fail(403, "GatedRepo")
        else:
            return True
        return False

    def do_GET(self) -> None:
        self.hub.requests.append(self.path)
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if self.hub.broken:
            self.fail(503, "Maintenance")
        elif parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            self.send_listing(name, self.hub.repositories.get(name), "/".join(parts[5:]) or "main")
        elif parts[2:3] != ["resolve"]:
            self.fail(404, "NotFound")
        else:
            repository = self.hub.repositories.get("/".join(parts[:2]))
            if self.may_read(repository):
                assert repository is not None
                content = repository.commits[parts[3]]["/".join(parts[4:])]
                self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=parts[3])

    do_HEAD = do_GET

    def send_listing(self, name: str, repository: Repository | None, revision: str) -> None:
        if not self.may_read(repository):
            return
        assert repository is not None
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            self.fail(404, "RevisionNotFound")
            return
        sizes = {file: len(content) for file, content in repository.commits[commit].items()} | repository.sizes
        siblings = [{"rfilename": file, "size": size, "blobId": "0" * 40} for file, size in sizes.items()]
        self.answer({"id": name, "sha": commit, "private": repository.private, "siblings": siblings})

    def do_POST(self) -> None:
        self.hub.requests.append(self.path)
        content = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.strip("/").partition("?")[0].split("/")
        if self.headers.get("Authorization") == "Bearer read-only":
            self.fail(403, "Forbidden")
        elif parts[:3] == ["api", "repos", "create"]:
            body = json.loads(content)
            name = f"{body.get('organization') or 'me'}/{body['name']}"
            if name not in self.hub.repositories:
                private = body.get("private") or body.get("visibility") == "private"
                self.hub.add(name, **{".gitattributes": b""}).private = private
            self.answer({"url": f"{self.hub.url}/{name}", "name": name, "id": "0"})
        elif parts == ["api", "validate-yaml"]:  # of the front matter of a card
            self.answer({"errors": [], "warnings": []})
        elif parts[4] == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(content)["files"]]
            self.answer({"files": [{**file, "shouldIgnore": False} for file in files]})
        elif parts[4] == "commit":
            name = "/".join(parts[2:4])
            repository = self.hub.repositories[name]
            files = dict(repository.files)
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            commit = repository.commit(files)
            self.answer({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a Hub without repositories."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
