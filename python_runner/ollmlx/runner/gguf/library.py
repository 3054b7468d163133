"""The only contact with xllamacpp: one llama.cpp server inside this process.

Generation, embeddings and ranking are calls within the process, with a callback for each piece of an answer.
What the library offers over HTTP alone (tokenizing, the chat template) goes over a unix socket in the runtime
directory, which only this user can enter, with a key that only this process knows; it listens on no port.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from ollmlx.runner.errors import RunnerError, internal, invalid

# Takes one JSON piece of an answer; true ends the answer.
OnPiece = Callable[[dict[str, Any]], bool]


def _bound_spinning() -> None:
    """Let threads that wait for each other spin for a moment only, and then sleep.

    GNU's OpenMP lets them spin for milliseconds. Where other programs want the cores too, one spins while the other
    cannot run: 9 tokens a second instead of 42. Threads that sleep at once are as bad where they have the cores for
    themselves: 36 instead of 103, and 100 with this bound. It is read once, when the library is loaded.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "100000"


# Before anything imports the library.
_bound_spinning()
# Where the library gives up, it would let a debugger print where each thread is, for seconds.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")


class _Connection(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("llama")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


class Library:
    """A loaded model. The methods block; they may be called by several threads at once."""

    def __init__(self, params: Any) -> None:
        """Load the model that `params` (xllamacpp's CommonParams) name. Raises RuntimeError when that fails."""
        import xllamacpp

        # The working directory of a runner is the host's runtime directory. Short, for a socket's path has a limit.
        self._directory = tempfile.TemporaryDirectory(prefix="l", dir=Path.cwd(), ignore_cleanup_errors=True)
        self._socket = os.path.relpath(Path(self._directory.name) / "s.sock")
        key = secrets.token_urlsafe(32)
        params.hostnames = [self._socket]
        params.port = 0
        params.api_keys = [key]
        params.ui = False
        params.offline = True
        params.endpoint_slots = False
        self._server = xllamacpp.Server(params)
        self._headers = {"Authorization": f"Bearer {key}", "Connection": "close"}

    def close(self) -> None:
        """Unload the model. No call may be running."""
        del self._server
        self._directory.cleanup()

    def complete(self, body: dict[str, Any], on_piece: OnPiece) -> None:
        if self.sees and not isinstance(body["prompt"], str):
            # The call within the process takes nothing but text once there is a projector.
            self._stream_http("/completion", body, on_piece)
        else:
            self._stream(self._server.handle_completions, body, on_piece)

    def chat(self, body: dict[str, Any], on_piece: OnPiece) -> None:
        self._stream(self._server.handle_chat_completions, body, on_piece)

    def embed(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._answer(self._server.handle_embeddings, body)

    def rerank(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._answer(self._server.handle_rerank, body)

    def tokenize(self, text: str | Sequence[int | str], *, add_special: bool) -> list[int]:
        return self.post("/tokenize", content=text, add_special=add_special, parse_special=True)["tokens"]

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self.post("/detokenize", tokens=list(tokens))["content"]

    def render(self, body: dict[str, Any]) -> str:
        return self.post("/apply-template", **body)["prompt"]

    @functools.cached_property
    def sees(self) -> bool:
        """Whether a projector is loaded, for images or for sound."""
        return any(self.properties()["modalities"].values())

    def properties(self) -> dict[str, Any]:
        return self._get("/props")

    @functools.cached_property
    def marker(self) -> str:
        """What stands for an image in a prompt's text; random, and not to be told."""
        return self.properties()["media_marker"]

    def count(self, body: dict[str, Any]) -> int:
        """How many tokens the prompt of a chat has, its images included."""
        return self.post("/v1/chat/completions/input_tokens", **body)["input_tokens"]

    def model(self) -> dict[str, Any]:
        return self._get("/v1/models")["data"][0]["meta"]

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        with self._call("POST", path, body) as response:
            return json.load(response)

    def _get(self, path: str) -> dict[str, Any]:
        with self._call("GET", path) as response:
            return json.load(response)

    @contextlib.contextmanager
    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Iterator[HTTPResponse]:
        """A call over the socket, on a connection of its own: one that waits for another call may be closed just when
        that comes."""
        data = None if body is None else json.dumps(body).encode()
        with contextlib.closing(_Connection(self._socket)) as connection:
            connection.request(method, path, data, {**self._headers, "Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise failure(json.load(response).get("error"))
            yield response

    def _stream(self, handler: Callable[..., None], body: dict[str, Any], on_piece: OnPiece) -> None:
        """Run a streamed call. What the callback raises is raised here: the library would swallow it."""
        raised: list[BaseException] = []

        def piece(data: bytes) -> bool:
            try:
                return on_piece(json.loads(data))
            except BaseException as err:
                raised.append(err)
                return True

        try:
            handler(json.dumps(body).encode(), piece)
        except (ValueError, RuntimeError) as err:
            raise invalid(f"the request cannot be served: {err}") from err
        if raised:
            raise raised[0]

    def _stream_http(self, path: str, body: dict[str, Any], on_piece: OnPiece) -> None:
        """The same over the socket, for pieces of the library's own form."""
        with self._call("POST", path, body) as response:
            for line in response:
                kind, _, data = line.rstrip().partition(b": ")
                if kind in (b"data", b"error") and data != b"[DONE]":
                    piece = json.loads(data)
                    if on_piece({"error": piece} if kind == b"error" else _as_choice(piece)):
                        # Hanging up ends the answer.
                        return

    @staticmethod
    def _answer(handler: Callable[[bytes], bytes], body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = json.loads(handler(json.dumps(body).encode()))
        except (ValueError, RuntimeError) as err:
            raise invalid(f"the request cannot be served: {err}") from err
        if isinstance(answer, dict) and "error" in answer:
            raise failure(answer["error"])
        return answer


def _as_choice(piece: dict[str, Any]) -> dict[str, Any]:
    """A piece of the library's own form in that of the calls within the process."""
    if "error" in piece:
        return piece
    choice: dict[str, Any] = {
        "text": piece.get("content", ""),
        "finish_reason": "stop" if "stop_type" in piece else None,
    }
    if probabilities := piece.get("completion_probabilities"):
        choice["logprobs"] = {"content": probabilities}
    return {**piece, "choices": [choice], "__verbose": piece}


def failure(error: Any) -> RunnerError:
    """An error of the library as one of ours: what it calls the request's fault is INVALID_ARGUMENT."""
    if not isinstance(error, dict):
        return internal(f"llama.cpp failed: {error}")
    message = str(error.get("message", "unknown error"))
    code = error.get("code")
    if code == 400:
        return invalid(message)
    return internal(f"llama.cpp failed: {message}")
