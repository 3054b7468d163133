"""python -m scripts.bench.own_server <model> <slots> <context> <threads> --port <port>: llama.cpp's own HTTP server.

Nothing of ollmlx is imported here, so that its memory is that of the library alone.
"""

from __future__ import annotations

import signal
import sys


def settings(model: str, slots: int, context: int, threads: int):
    """What our engine sets for a model that gives text, on a CPU; `library` checks that it is the same."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {"model"}
    params.verbosity = 2
    params.n_parallel, params.n_ctx = slots, slots * context
    params.n_batch = params.n_ubatch = 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.ctx_shift = True
    params.prefill_assistant = False
    params.cache_ram_mib = 0
    params.embedding, params.embd_normalize = True, -1
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    params.fit_params, params.n_gpu_layers = False, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F16
    params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_AUTO
    return params


def main() -> None:
    import xllamacpp

    params = settings(sys.argv[1], *map(int, sys.argv[2:5]))
    params.hostnames, params.port, params.ui = ["127.0.0.1"], int(sys.argv[6]), False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait([signal.SIGTERM, signal.SIGINT])


if __name__ == "__main__":
    main()
