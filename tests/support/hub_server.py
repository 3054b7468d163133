"""A Hugging Face hub on the loopback interface: enough of its HTTP protocol for the unmodified huggingface_hub client,
with faults on demand. Large files are redirected to another host, as the hub does."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

# What git keeps of files that Git LFS keeps is a small pointer.
LFS = re.compile(r"\.(safetensors|gguf|bin|pt|model)$")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """One repository; `revisions` maps branches, tags and commits to files."""

    name: str
    private: bool = False
    # Names of users who have access; None: everyone has.
    gated: set[str] | None = None
    card: dict[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ("mlx",)
    downloads: int = 100
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    # Sizes that are announced instead of the real ones.
    sizes: dict[str, int] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        digest = hashlib.sha1(repr((self.name, branch, len(self.revisions))).encode())
        for path in sorted(files):
            digest.update(path.encode() + files[path])
        commit = digest.hexdigest()
        self.revisions[commit] = dict(files)
        self.heads[branch] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        commit = self.heads.get(revision, revision)
        return commit if commit in self.revisions else None


@dataclass
class Request:
    method: str
    host: str
    path: str
    range: str | None
    authorization: str | None
    status: int = 0
    sent: int = 0


@dataclass
class Fault:
    """What goes wrong with requests whose path matches, `times` times."""

    pattern: str
    # Answers this status instead.
    status: int = 0
    # Closes the connection after that many bytes of the body.
    drop: int | None = None
    # Changes the bytes, and not the length.
    corrupt: bool = False
    # Waits for this event in the middle of the body.
    hold: threading.Event | None = None
    # Seconds between pieces of the body.
    slow: float = 0
    times: int = 1


class HubServer:
    """Use as a context manager. `url` is for HF_ENDPOINT; large files are at `cdn_url`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        # Tokens and their users.
        self.users: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self._lock = threading.Lock()
        self._blobs: dict[str, bytes] = {}
        self._servers = [_Listener(("127.0.0.1", 0), _handler(self)) for _ in range(2)]
        # Two names of one interface are two hosts.
        self.url = f"http://127.0.0.1:{self._servers[0].server_port}"
        self.cdn_url = f"http://localhost:{self._servers[1].server_port}"

    def __enter__(self) -> HubServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, name: str, directory: Path | dict[str, bytes], **fields: object) -> Repository:
        repository = Repository(name, **fields)
        repository.commit(read(directory))
        self.repositories[name] = repository
        return repository

    def fail(self, pattern: str, **what: object) -> None:
        with self._lock:
            self.faults.append(Fault(pattern, **what))

    def reset(self) -> None:
        with self._lock:
            self.faults.clear()
            self.log.clear()

    def requests(self, pattern: str) -> list[Request]:
        with self._lock:
            return [r for r in self.log if re.search(pattern, r.path)]

    def body_bytes(self, pattern: str = r"/cdn/") -> int:
        """Bytes of content that left for requests that match."""
        return sum(r.sent for r in self.requests(pattern))

    def _fault(self, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return None


def read(directory: Path | dict[str, bytes]) -> dict[str, bytes]:
    if isinstance(directory, dict):
        return directory
    return {
        f.relative_to(directory).as_posix(): f.read_bytes()
        for f in sorted(directory.rglob("*"))
        if f.is_file()
    }


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients go away; that is part of the tests."""


def _handler(hub: HubServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            self.entry = Request(
                self.command,
                self.headers["Host"],
                parts.path,
                self.headers["Range"],
                self.headers["Authorization"],
            )
            with hub._lock:
                hub.log.append(self.entry)
            self.fault = hub._fault(parts.path)
            if self.fault and self.fault.drop == 0:
                self.connection.close()
                self.close_connection = True
                return
            if self.fault and self.fault.status:
                self.answer(self.fault.status, {"error": "fault on demand"})
                return
            self.route(unquote(parts.path), {k: v[0] for k, v in parse_qs(parts.query).items()})

        def route(self, path: str, query: dict[str, str]) -> None:
            routes: list[tuple[str, Callable[..., None]]] = [
                (r"/api/whoami-v2", self.whoami),
                (r"/api/models", self.search),
                (r"/api/models/([^/]+/[^/]+)/auth-check", self.auth_check),
                (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self.tree),
                (r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self.info),
                (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve),
                (r"/api/resolve-cache/models/([^/]+/[^/]+)/([^/]+)/(.+)", self.small),
                (r"/cdn/([0-9a-f]{64})", self.cdn),
            ]
            for pattern, handle in routes:
                if m := re.fullmatch(pattern, path):
                    handle(query, *m.groups())
                    return
            self.answer(404, {"error": "not found"})

        def user(self) -> str | None:
            return hub.users.get((self.headers["Authorization"] or "").removeprefix("Bearer "))

        def repository(self, name: str) -> Repository | None:
            """The repository that this user may see; answers and returns None if there is none."""
            if self.headers["Authorization"] and self.user() is None:
                message = "Invalid credentials in Authorization header"
                self.answer(401, {"error": message}, {"X-Error-Message": message})
                return None
            found = next((r for r in hub.repositories.values() if r.name.lower() == name.lower()), None)
            if found is None or (found.private and self.user() is None):
                status, message = (
                    (404, "Repository not found") if self.user() else (401, "Invalid username or password.")
                )
                self.answer(
                    status, {"error": message}, {"X-Error-Code": "RepoNotFound", "X-Error-Message": message}
                )
                return None
            return found

        def allowed(self, found: Repository) -> bool:
            if found.gated is None or self.user() in found.gated:
                return True
            message = f"Access to model {found.name} is restricted."
            status = 403 if self.user() else 401
            self.answer(status, {"error": message}, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
            return False

        def whoami(self, _: dict[str, str]) -> None:
            if (user := self.user()) is None:
                self.answer(401, {"error": "Invalid credentials"})
                return
            auth = {"accessToken": {"displayName": "laptop", "role": "read"}}
            self.answer(
                200, {"type": "user", "name": user, "fullname": user.title(), "orgs": [], "auth": auth}
            )

        def search(self, query: dict[str, str]) -> None:
            text, limit = query.get("search", "").lower(), int(query.get("limit", 100))
            found = [
                r
                for r in hub.repositories.values()
                if text in r.name.lower() and not r.private and query.get("filter") in (None, *r.tags)
            ]
            found.sort(key=lambda r: -r.downloads)
            self.answer(
                200,
                [
                    {
                        "id": r.name, "modelId": r.name, "downloads": r.downloads, "likes": 3, "tags": r.tags,
                        "gated": "auto" if r.gated is not None else False,
                        "lastModified": "2026-01-02T03:04:05.000Z",
                    }
                    for r in found[:limit]
                ],
            )  # fmt: skip

        def auth_check(self, _: dict[str, str], name: str) -> None:
            if (found := self.repository(name)) and self.allowed(found):
                self.answer(200, {})

        def tree(self, _: dict[str, str], name: str, revision: str) -> None:
            if (found := self.repository(name)) is None:
                return
            entries = []
            for path, content in sorted(found.revisions[found.resolve(revision)].items()):
                entry = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
                if LFS.search(path):
                    entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
                entries.append(entry)
            self.answer(200, entries)

        def info(self, query: dict[str, str], name: str, revision: str | None) -> None:
            if (found := self.repository(name)) is None:
                return
            commit = found.resolve(revision or "main")
            if commit is None:
                message = f"Invalid rev id: {revision}"
                self.answer(
                    404, {"error": message}, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": message}
                )
                return
            siblings = []
            for path, content in sorted(found.revisions[commit].items()):
                sibling: dict[str, object] = {"rfilename": path}
                if query.get("blobs"):
                    sibling |= {"size": found.sizes.get(path, len(content)), "blobId": git_sha1(content)}
                    if LFS.search(path):
                        pointer = f"oid sha256:{sha256(content)}".encode()
                        sibling["blobId"] = git_sha1(pointer)
                        sibling["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
                siblings.append(sibling)
            self.answer(
                200,
                {
                    "id": found.name, "modelId": found.name, "sha": commit, "private": found.private,
                    "gated": "auto" if found.gated is not None else False, "tags": found.tags,
                    "cardData": found.card, "siblings": siblings,
                },
            )  # fmt: skip

        def resolve(self, _: dict[str, str], name: str, revision: str, path: str) -> None:
            if (found := self.repository(name)) is None or not self.allowed(found):
                return
            commit = found.resolve(revision)
            content = found.revisions.get(commit or "", {}).get(path)
            if content is None:
                self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
                return
            headers = {"X-Repo-Commit": commit, "X-Linked-Size": str(len(content))}
            if LFS.search(path):
                digest = sha256(content)
                hub._blobs[digest] = content
                headers |= {
                    "X-Linked-Etag": f'"{digest}"',
                    "Location": f"{hub.cdn_url}/cdn/{digest}?signature=secret",
                }
                self.answer(302, None, headers)
                return
            headers |= {"X-Linked-Etag": f'"{git_sha1(content)}"'}
            # The hub's own redirects are relative.
            headers["Location"] = f"/api/resolve-cache/models/{found.name}/{commit}/{quote(path)}"
            self.answer(307, None, headers)

        def small(self, _: dict[str, str], name: str, commit: str, path: str) -> None:
            found = self.repository(name)
            if found and self.allowed(found):
                content = found.revisions[commit][path]
                self.content(content, {"ETag": f'"{git_sha1(content)}"', "X-Repo-Commit": commit})

        def cdn(self, _: dict[str, str], digest: str) -> None:
            if self.headers["Authorization"]:
                # Storage of this kind refuses a second way to sign in.
                self.answer(400, {"error": "only one way to sign in is allowed"})
                return
            self.content(hub._blobs[digest], {"ETag": f'"{digest}"'})

        def content(self, content: bytes, headers: dict[str, str]) -> None:
            status = 200
            whole = len(content)
            if m := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or ""):
                first, last = int(m[1]), min(int(m[2] or whole - 1), whole - 1)
                if first > last:
                    self.answer(416, None, {"Content-Range": f"bytes */{whole}"})
                    return
                status, content = 206, content[first : last + 1]
                headers["Content-Range"] = f"bytes {first}-{last}/{whole}"
            if self.fault and self.fault.corrupt:
                content = bytes(len(content))
            self.entry.status = status
            self.send_response(status)
            for key, value in {
                **headers,
                "Accept-Ranges": "bytes",
                "Content-Length": str(len(content)),
            }.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.body(content)

        def body(self, content: bytes) -> None:
            fault = self.fault or Fault("")
            end = len(content) if fault.drop is None else min(fault.drop, len(content))
            held = False
            while self.entry.sent < end:
                if fault.hold and not held and self.entry.sent >= end // 2:
                    held = True
                    fault.hold.wait(60)
                piece = content[self.entry.sent : min(self.entry.sent + 4096, end)]
                self.wfile.write(piece)
                self.entry.sent += len(piece)
                if fault.slow:
                    time.sleep(fault.slow)
            if fault.drop is not None:
                # What was sent must have been read, or the reset takes it away.
                time.sleep(0.1)
                # With this the kernel sends a reset and not an orderly end.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True

        def answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
            self.entry.status = status
            raw = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            for key, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(raw)),
                **(headers or {}),
            }.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(raw)

    return Handler
