"""python -m scripts.bench.own_server <model> <slots> <context> <threads> --port <port>: llama.cpp's own HTTP server."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from ollmlx.runner.gguf.loading import make_params
from ollmlx.runner.gguf.metadata import read_metadata
from ollmlx.runner.v1 import runner_pb2 as pb


def main() -> None:
    import xllamacpp

    model, slots, context, threads = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    request = pb.LoadRequest(model_path=str(model), num_thread=threads)
    params = make_params(request, read_metadata(model), model, context, slots, "f16", gpu=False)
    params.hostnames, params.port, params.ui = ["127.0.0.1"], int(sys.argv[6]), False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait([signal.SIGTERM, signal.SIGINT])


if __name__ == "__main__":
    main()
