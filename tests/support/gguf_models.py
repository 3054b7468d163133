"""A GGUF model in this process, run by the engine's own code, and llama.cpp's own server beside it to compare with."""

from __future__ import annotations

import concurrent.futures
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from ollmlx.runner.gguf.generation import Generation
from ollmlx.runner.gguf.loading import load_model
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.runner_process import Answer


class InProcess:
    """Use as a context manager. Keyword arguments are fields of the LoadRequest."""

    def __init__(self, path: Path, **fields: Any) -> None:
        self._request = pb.LoadRequest(model_path=str(path), **{"num_ctx": 2048, "num_thread": 1, **fields})

    def __enter__(self) -> InProcess:
        self.model = load_model(self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self.model.library.close()

    def run(self, **fields: Any) -> Answer:
        answer = Answer()
        Generation(1, pb.GenerateRequest(**fields), answer.add).run(self.model)
        assert answer.failed is None, answer.failed
        return answer

    def run_together(self, requests: list[dict[str, Any]]) -> list[Answer]:
        with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(lambda fields: self.run(**fields), requests))


@contextlib.contextmanager
def own_server(path: Path, *, projector: Path | None = None, **settings: Any) -> Iterator[httpx.Client]:
    """llama.cpp's server as xllamacpp starts it, on a port of this machine; `settings` are parameters of it."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    if projector is not None:
        params.mmproj.path = str(projector)
    params.hostnames = ["127.0.0.1"]
    params.port = _free_port()
    params.n_ctx = 2048
    params.verbosity = 0
    params.ui = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    for name, value in settings.items():
        setattr(params, name, value)
    server = xllamacpp.Server(params)
    with httpx.Client(base_url=server.listening_address, timeout=60, trust_env=False) as client:
        yield client
    del server


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
