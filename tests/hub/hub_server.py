"""A small Hub on 127.0.0.1 that speaks what huggingface_hub asks of the real one.

Files are served from the commits of in-memory repositories: ``model.safetensors`` through a
redirect to another host, as large files are, everything else directly. Nothing mentions Xet, so
the client takes plain HTTP.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download


@dataclass
class Repository:
    """Commits, oldest first, and the names (branches and tags) that point at them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main", tag: str | None = None) -> str:
        """Add files to a branch; return the hash of the commit."""
        everything = {**self.commits.get(self.names.get(branch, ""), {}), **files}
        digest = hashlib.sha1(repr((len(self.commits), sorted(everything.items()))).encode())
        commit = digest.hexdigest()
        self.commits[commit] = everything
        self.names[branch] = commit
        if tag is not None:
            self.names[tag] = commit
        return commit


@dataclass
class Request:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]


class RefusalError(Exception):
    """An answer that is an error, in the Hub's way of saying it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message


class LocalHub:
    """The server; use it as a context.

    Attributes:
        repositories: What it serves, by ``org/name``.
        readers: Access tokens that may read private and gated repositories.
        writers: Access tokens that may also write.
        large: Whether pushed weights go by git LFS, as on the real Hub, and not in the commit.
        cuts: By part of an address: bytes after which the next answers there break off.
        down: Whether every answer is "service unavailable".
        requests: Everything asked so far.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.readers = {"hf_reader"}
        self.writers = {"hf_writer"}
        self.large = False
        self.cuts: dict[str, list[int]] = {}
        self.down = False
        self.requests: list[Request] = []
        self.blobs: dict[str, bytes] = {}

        class Handler(_Handler):
            hub = self

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        # By another name, since the client takes redirects to another host as the real Hub's.
        self.storage = f"http://localhost:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def __enter__(self) -> LocalHub:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def repository(self, repo_id: str, **options: Any) -> Repository:
        return self.repositories.setdefault(repo_id, Repository(**options))

    def asked(self, method: str) -> list[str]:
        """Return the paths of the requests with this method."""
        return [request.path for request in self.requests if request.method == method]


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on stderr."""

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(Request(self.command, path, dict(self.headers)))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            if self.hub.down:
                raise RefusalError(503, "", "the hub is having a rest")
            for method, pattern, answer in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method:
                    answer(self, **match.groupdict())
                    return
            raise RefusalError(404, "", f"no such page {path}")
        except RefusalError as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self._answer(
                json.dumps({"error": refusal.message}).encode(),
                status=refusal.status,
                headers={**headers, "Content-Type": "application/json"},
            )

    def _answer(
        self, body: bytes = b"", *, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object) -> None:
        self._answer(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    # Who asks, and for what

    @property
    def _token(self) -> str | None:
        header = self.headers.get("Authorization")
        return None if header is None else header.removeprefix("Bearer ")

    def _readable(self, repo: str) -> Repository:
        known = self.hub.readers | self.hub.writers
        if self._token is not None and self._token not in known:
            raise RefusalError(401, "", "Invalid credentials in Authorization header")
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and self._token is None):
            status = 401 if self._token is None else 404
            raise RefusalError(status, "RepoNotFound", "Repository not found")
        return repository

    def _writable(self, repo: str) -> Repository:
        repository = self._readable(repo)
        self._check_writer()
        return repository

    def _check_writer(self) -> None:
        if self._token is None:
            raise RefusalError(401, "", "Invalid username or password.")
        if self._token not in self.hub.writers:
            raise RefusalError(403, "", "You have read access but not the required permissions")

    def _files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self._readable(repo)
        commit = repository.names.get(revision, revision)
        if commit not in repository.commits:
            raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repository.commits[commit]

    # Reading

    def resolve(self, repo: str, revision: str, name: str) -> None:
        commit, files = self._files(repo, revision)
        if self.hub.repositories[repo].gated and self._token is None:
            raise RefusalError(401, "GatedRepo", f"Access to model {repo} is restricted.")
        if name not in files:
            raise RefusalError(404, "EntryNotFound", "Entry not found")
        content = files[name]
        digest = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if not name.endswith(".safetensors"):
            self._content(content, headers)
            return
        self.hub.blobs[digest] = content
        headers |= {
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{self.hub.storage}/large/{digest}",
        }
        self._answer(status=302, headers=headers)

    def large(self, digest: str) -> None:
        self._content(self.hub.blobs[digest], {"Accept-Ranges": "bytes"})

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        cuts = next((cuts for part, cuts in self.hub.cuts.items() if part in self.path), [])
        if cuts and self.command == "GET":
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: cuts.pop()])
            self.close_connection = True
        elif asked:
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._answer(content[start:], status=206, headers=headers)
        elif self.command == "HEAD":
            self._answer(headers={**headers, "Content-Length": str(len(content))})
        else:
            self._answer(content, headers=headers)

    def model(self, repo: str, revision: str = "main") -> None:
        commit, files = self._files(repo, revision)
        siblings = [{"rfilename": name} for name in files]
        self._json({"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": []})

    # Writing

    def create(self) -> None:
        self._check_writer()
        asked = json.loads(self.body)
        owner = asked.get("organization") or "me"
        repo = f"{owner}/{asked['name']}"
        if repo in self.hub.repositories:
            body = json.dumps({"error": "You already created this repo", "url": self._url(repo)})
            self._answer(body.encode(), status=409)
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repository(repo, private=private).commit({".gitattributes": b""})
        self._json({"url": self._url(repo), "name": repo})

    def _url(self, repo: str) -> str:
        return f"{self.hub.url}/{repo}"

    def branch(self, repo: str, branch: str) -> None:
        repository = self._writable(repo)
        if branch in repository.names:
            raise RefusalError(409, "", "Reference already exists")
        repository.names[branch] = repository.names["main"]
        self._json({})

    def validate(self) -> None:
        card = json.loads(self.body)["content"]
        if not card.startswith("---\n"):
            self._json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]})
        else:
            self._json({"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        self._writable(repo)
        self._files(repo, revision)
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {
            path: "lfs" if self.hub.large and path.endswith(".safetensors") else "regular"
            for path in paths
        }
        files = [
            {"path": path, "uploadMode": mode, "shouldIgnore": False}
            for path, mode in modes.items()
        ]
        self._json({"files": files})

    def lfs_batch(self, repo: str) -> None:
        self._writable(repo)
        objects = [
            {
                "oid": item["oid"],
                "size": item["size"],
                "actions": {"upload": {"href": f"{self.hub.storage}/upload/{item['oid']}"}},
            }
            for item in json.loads(self.body)["objects"]
        ]
        self._answer(
            json.dumps({"transfer": "basic", "objects": objects}).encode(),
            headers={"Content-Type": "application/vnd.git-lfs+json"},
        )

    def upload(self, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            raise RefusalError(400, "", "the content does not have this hash")
        self.hub.blobs[digest] = self.body
        self._answer()

    def commit(self, repo: str, revision: str) -> None:
        repository = self._writable(repo)
        files: dict[str, bytes] = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        commit = repository.commit(files, branch=revision)
        self._json({"commitOid": commit, "commitUrl": f"{self._url(repo)}/commit/{commit}"})


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES = [
    (("GET", "HEAD"), rf"/{_REPO}/resolve/(?P<revision>.+)/(?P<name>[^/]+)", _Handler.resolve),
    (("GET", "HEAD"), r"/large/(?P<digest>[0-9a-f]+)", _Handler.large),
    (("GET",), rf"/api/models/{_REPO}", _Handler.model),
    (("GET",), rf"/api/models/{_REPO}/revision/(?P<revision>.+)", _Handler.model),
    (("POST",), r"/api/repos/create", _Handler.create),
    (("POST",), r"/api/validate-yaml", _Handler.validate),
    (("POST",), rf"/api/models/{_REPO}/branch/(?P<branch>.+)", _Handler.branch),
    (("POST",), rf"/api/models/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), r"/upload/(?P<digest>[0-9a-f]+)", _Handler.upload),
    (("POST",), rf"/api/models/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
]


def set_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Do what HF_ENDPOINT does when huggingface_hub is imported."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    for module in (constants, file_download):  # versions before 1 have a copy
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def set_offline(monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    """Do what HF_HUB_OFFLINE does when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    reset = getattr(huggingface_hub.utils, "reset_sessions", None)  # versions before 1
    if reset is not None:
        reset()


@contextlib.contextmanager
def taken_for_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """Run a Hub that huggingface_hub takes for the real one, with an empty cache and no token."""
    with LocalHub() as local:
        set_endpoint(monkeypatch, local.url)
        set_offline(monkeypatch, False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(folder / "tokens"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield local
