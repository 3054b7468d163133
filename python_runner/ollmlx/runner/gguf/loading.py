"""From a LoadRequest to a loaded model: the library's parameters, the checks before, what is told after."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from ollmlx.runner.errors import invalid, unsupported
from ollmlx.runner.gguf import infill, media, projector
from ollmlx.runner.gguf.library import Library
from ollmlx.runner.gguf.metadata import Metadata, read_metadata
from ollmlx.runner.v1 import runner_pb2 as pb

# Bytes of one value in each type of KV cache that the library has code for.
KV_TYPES = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32,
    "q4_0": 18 / 32, "iq4_nl": 18 / 32,
}  # fmt: skip
# Context where none is asked for, by the memory of the GPU, as Ollama chooses it: the cache is allocated at once.
_CONTEXTS = ((47 << 30, 262144), (23 << 30, 32768), (0, 4096))
# Requests at once where no number is asked for, and the share of the free memory that their caches may take.
_PARALLEL = 4
_KV_SHARE = 1 / 4
# Tokens of prompts computed at once, as in Ollama; an encoder sees its whole input at once.
_BATCH = 512
_ENCODER_CONTEXT = 8192
# Bytes of KV caches that are kept for prompts which come again, beside those of running requests.
_PREFIX_CACHE_MIB = 2048
_LOG_WARNINGS = 2
# What the library says last when a load failed, and how long to wait for it.
_LAST_COMPLAINT, _LOG_SECONDS = "exiting due to", 0.5


class LoadedModel:
    """A model with what the engine needs to know of it."""

    def __init__(
        self,
        request: pb.LoadRequest,
        library: Library,
        metadata: Metadata,
        info: pb.ModelInfo,
        slots: int,
        kv_bytes: int,
        prefix_bytes: int,
    ) -> None:
        self.name = request.model_name or "this model"
        # Names of the adapters that everything is computed with.
        self.adapters = {a.name for a in request.adapters}
        self.library = library
        self.metadata = metadata
        self.info = info
        # Requests at once, and the bytes of their caches together.
        self.slots = slots
        self.kv_bytes = kv_bytes
        # What prefixes of ended requests may take beside them.
        self.prefix_bytes = prefix_bytes
        self.image_tokens = media.Counter(library)
        self.infill = infill.find_form(library) if metadata.gives_text else None
        if self.infill:
            info.capabilities.append("insert")


def load_model(request: pb.LoadRequest) -> LoadedModel:
    """Raises RunnerError: INVALID_ARGUMENT for files that cannot be used, UNIMPLEMENTED for wishes that cannot
    be met."""
    name = request.model_name or "the model"
    for field in ("cache_dir", "wide_weights"):
        if getattr(request, field):
            raise unsupported(f"{field} is not supported by the gguf engine")
    path = _only_file(Path(request.model_path))
    metadata = read_metadata(path)
    if request.projector_path:
        projector.check(Path(request.projector_path), metadata, name)
    import xllamacpp

    devices = [d for d in xllamacpp.get_device_info() if "GPU" in str(d["type"])]
    if request.device == "gpu" and not devices:
        raise unsupported(
            "this machine has no GPU that the installed xllamacpp can use; leave the device to the engine"
        )
    gpu = (
        bool(devices)
        and request.device != "cpu"
        and not (request.HasField("num_gpu") and request.num_gpu == 0)
    )
    context = _context_length(request, metadata, devices if gpu else [])
    kv_type = _kv_type(request)
    kv_per_token = metadata.kv_bytes_per_token(KV_TYPES[kv_type]) if metadata.gives_text else 0
    slots = request.num_parallel or _parallel(kv_per_token * context, request.kv_cache_bytes)
    params = make_params(request, metadata, path, context, slots, kv_type, gpu)
    with _tail_of_stderr() as tail:
        try:
            library = Library(params)
        except RuntimeError as err:
            raise invalid(f"{name} cannot be loaded: {tail() or err}") from err
    info = _model_info(metadata, library, context, kv_per_token, devices[0]["name"] if gpu else "cpu")
    prefixes = params.cache_ram_mib << 20
    return LoadedModel(request, library, metadata, info, slots, kv_per_token * context * slots, prefixes)


def make_params(
    request: pb.LoadRequest, metadata: Metadata, path: Path, context: int, slots: int, kv_type: str, gpu: bool
) -> Any:
    """The library's parameters for a request."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {"model"}
    params.verbosity = _LOG_WARNINGS
    params.n_parallel = slots
    params.n_ctx = context * slots
    params.n_batch = params.n_ubatch = context if not metadata.gives_text else request.num_batch or _BATCH
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = request.num_thread or default_threads()
    params.ctx_shift = True
    # A request says itself whether its last message is to be continued.
    params.prefill_assistant = False
    params.cache_ram_mib = _PREFIX_CACHE_MIB
    if request.kv_cache_bytes:
        # What the slots leave of it.
        kept = request.kv_cache_bytes - metadata.kv_bytes_per_token(KV_TYPES[kv_type]) * context * slots
        params.cache_ram_mib = min(max(kept, 0) >> 20, _PREFIX_CACHE_MIB)
    # Vectors of a model that gives text are those of its last token, as in Ollama.
    params.embedding = True
    params.embd_normalize = -1
    pooling = xllamacpp.llama_pooling_type
    if metadata.gives_text:
        params.pooling_type = pooling.LLAMA_POOLING_TYPE_LAST
    elif metadata.reranks:
        params.pooling_type = pooling.LLAMA_POOLING_TYPE_RANK
    params.fit_params = gpu and not request.HasField("num_gpu")
    params.n_gpu_layers = (request.num_gpu if request.HasField("num_gpu") else -1) if gpu else 0
    if request.HasField("main_gpu"):
        params.main_gpu = request.main_gpu
    params.cache_type_k = params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{kv_type.upper()}")
    flash = xllamacpp.llama_flash_attn_type
    if request.HasField("flash_attention"):
        params.flash_attn_type = (
            flash.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if request.flash_attention
            else flash.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
    params.load_mode = _load_mode(request)
    if request.adapters:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(a.path, 1.0) for a in request.adapters]
    if request.projector_path:
        params.mmproj.path = request.projector_path
        params.mmproj_use_gpu = gpu
    if request.draft_model_path:
        draft = params.speculative.draft
        draft.mparams.path = request.draft_model_path
        draft.n_gpu_layers = params.n_gpu_layers
        if request.draft_num_predict:
            draft.n_max = request.draft_num_predict
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    return params


def default_threads() -> int:
    """One for each physical core: a second thread on a core only takes turns with the first."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(psutil.cpu_count(logical=False) or usable, usable), 1)


def _only_file(path: Path) -> Path:
    """The GGUF file that a path means: a file, or the first one of a directory."""
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if not files:
            raise invalid(f"there is no GGUF file in {path}")
        return files[0]
    return path


def _context_length(request: pb.LoadRequest, metadata: Metadata, devices: list[dict[str, Any]]) -> int:
    longest = metadata.number("context_length") or _CONTEXTS[-1][1]
    if not metadata.gives_text:
        return min(request.num_ctx or longest, longest, _ENCODER_CONTEXT)
    memory = sum(d["memory_total"] for d in devices)
    chosen = next(context for least, context in _CONTEXTS if memory >= least)
    return min(request.num_ctx or chosen, longest)


def _kv_type(request: pb.LoadRequest) -> str:
    kv_type = request.kv_cache_type or "f16"
    if kv_type not in KV_TYPES:
        raise unsupported(
            f"KV cache type {kv_type!r} is not supported by the gguf engine, use one of {', '.join(KV_TYPES)}"
        )
    if request.HasField("flash_attention") and not request.flash_attention and KV_TYPES[kv_type] < 2:
        raise unsupported(f"KV cache type {kv_type!r} needs flash attention, which is switched off")
    return kv_type


def _load_mode(request: pb.LoadRequest) -> Any:
    import xllamacpp

    mode = xllamacpp.llama_load_mode
    if request.use_mlock:
        mapped = not request.HasField("use_mmap") or request.use_mmap
        return mode.LLAMA_LOAD_MODE_MMAP_MLOCK if mapped else mode.LLAMA_LOAD_MODE_MLOCK
    if request.HasField("use_mmap"):
        return mode.LLAMA_LOAD_MODE_MMAP if request.use_mmap else mode.LLAMA_LOAD_MODE_NONE
    return mode.LLAMA_LOAD_MODE_AUTO


def _parallel(kv_bytes: int, bound: int) -> int:
    """How many caches of that size fit within the bound, or else well within the free memory; at least one."""
    if not kv_bytes:
        return _PARALLEL
    room = bound or psutil.virtual_memory().available * _KV_SHARE
    return max(min(int(room / kv_bytes), _PARALLEL), 1)


def _model_info(
    metadata: Metadata, library: Library, context: int, kv_per_token: int, device: str
) -> pb.ModelInfo:
    model, properties = library.model(), library.properties()
    capabilities = ["completion" if metadata.gives_text else "rerank" if metadata.reranks else "embedding"]
    template = properties.get("chat_template_caps", {}) if metadata.chat_template else {}
    if metadata.gives_text and template.get("supports_tools"):
        capabilities.append("tools")
    if metadata.gives_text and "enable_thinking" in metadata.chat_template:
        capabilities.append("thinking")
    if properties.get("modalities", {}).get("vision"):
        capabilities.append("vision")
    return pb.ModelInfo(
        architecture=metadata.architecture,
        max_context_length=model["n_ctx_train"],
        # The library rounds it up.
        context_length=context,
        vocab_size=model["n_vocab"],
        parameter_count=model["n_params"],
        weight_bytes=model["size"],
        kv_bytes_per_token=kv_per_token,
        capabilities=capabilities,
        device=device.lower(),
        batches=True,
    )


@contextlib.contextmanager
def _tail_of_stderr() -> Iterator[Callable[[], str]]:
    """Copies what is written to stderr meanwhile, and gives the last complaint in it: the library's exceptions say only
    that something failed."""
    saved = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    lines: list[str] = []

    def copy() -> None:
        with os.fdopen(reading, "rb") as pipe:
            for line in pipe:
                os.write(saved, line)
                lines.append(line.decode(errors="replace"))
                del lines[:-200]

    thread = threading.Thread(target=copy, name="stderr", daemon=True)
    thread.start()

    def restore() -> None:
        nonlocal saved
        if saved is not None:
            os.dup2(saved, 2)
            thread.join(2)
            os.close(saved)
            saved = None

    def tail() -> str:
        # The library writes on a thread of its own, this line last.
        deadline = time.monotonic() + _LOG_SECONDS
        while not any(_LAST_COMPLAINT in line for line in lines) and time.monotonic() < deadline:
            time.sleep(0.005)
        restore()
        complaints = [
            line.split(" E ", 1)[1] for line in lines if " E " in line and _LAST_COMPLAINT not in line
        ]
        # The one with the reason in it, if there is one; it comes before those of its callers as a rule.
        chosen = next((c for c in complaints if c.startswith("clip_init: failed")), (complaints or [""])[0])
        return " ".join(chosen.split())[:500]

    try:
        yield tail
    finally:
        restore()
