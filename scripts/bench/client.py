"""A client that costs little: one thread, non-blocking sockets, times taken when bytes arrive, parsing afterwards.

Both cores are shared with what is measured, so a client that parses while it reads would be part of the
figure.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

# A piece of text in a line of the native API, or in an event of OpenAI's completions or chat.
_TEXT = re.compile(rb'"(?:response|text|content|reasoning_content)": ?"[^"]')


@dataclass
class Answer:
    """What came back for one request; times are seconds since the first request of its group was sent."""

    first: float = 0.0
    last: float = 0.0
    # When each piece of text arrived.
    times: list[float] = field(default_factory=list)
    tokens: int = 0
    # 0 where the server does not tell.
    prompt_tokens: int = 0
    body: bytes = b""

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


@dataclass(frozen=True)
class Post:
    """A request, sent `after` seconds from the beginning of its group."""

    url: str
    body: dict
    after: float = 0.0


@dataclass
class _Connection:
    post: Post
    answer: Answer
    socket: socket.socket | None = None


def run(posts: Sequence[Post], timeout: float = 300.0) -> list[Answer]:
    """Send the requests and read all answers to their ends."""
    connections = [_Connection(post, Answer()) for post in posts]
    due = sorted(connections, key=lambda c: c.post.after)
    selector = selectors.DefaultSelector()
    started = time.perf_counter()
    open_count = 0
    while due or open_count:
        while due and time.perf_counter() - started >= due[0].post.after:
            _send(due[0])
            selector.register(due[0].socket, selectors.EVENT_READ, due.pop(0))
            open_count += 1
        wait = due[0].post.after - (time.perf_counter() - started) if due else timeout
        events = selector.select(max(wait, 0.0))
        if not events and not due:
            raise TimeoutError(f"no byte came in {timeout:g} s")
        for key, _ in events:
            connection = key.data
            data = key.fileobj.recv(1 << 18)
            now = time.perf_counter() - started
            answer = connection.answer
            if not data:
                selector.unregister(key.fileobj)
                key.fileobj.close()
                open_count -= 1
                continue
            answer.body += data
            answer.last = now
            if _TEXT.search(data):
                answer.first = answer.first or now
                answer.times.append(now)
    for connection in connections:
        _count(connection.answer)
    return [c.answer for c in connections]


def _send(connection: _Connection) -> None:
    parts = urlsplit(connection.post.url)
    body = json.dumps(connection.post.body).encode()
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    connection.socket = socket.create_connection((parts.hostname, parts.port))
    connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.socket.sendall(head.encode() + body)
    connection.socket.setblocking(False)


def _count(answer: Answer) -> None:
    """Take the server's own counts of tokens from what it said."""
    if b" 200 " not in answer.body[:40]:
        raise RuntimeError(f"the server refused: {answer.body[:600].decode(errors='replace')}")
    generated = re.findall(rb'"(?:eval_count|completion_tokens)": ?(\d+)', answer.body)
    if not generated:
        raise RuntimeError(f"the server counted no tokens: {answer.body[-600:].decode(errors='replace')}")
    computed = re.findall(rb'"(?:prompt_eval_count|prompt_tokens)": ?(\d+)', answer.body)
    answer.tokens, answer.prompt_tokens = int(generated[-1]), int(computed[-1]) if computed else 0
