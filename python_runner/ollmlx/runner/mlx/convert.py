"""The task of a converter process: quantizing models and checking adapters, with mlx-lm's own functions.

All MLX work happens on one thread, as in the engine. See proto/ollmlx/runner/v1/converter.proto for what is promised.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc

from ollmlx.runner.errors import RunnerError, cancelled, exists, invalid, unavailable, unsupported
from ollmlx.runner.task import Task, answer
from ollmlx.runner.v1 import converter_pb2 as cpb
from ollmlx.runner.v1 import converter_pb2_grpc as cpb_grpc

log = logging.getLogger(__name__)

# Takes one message of progress, on the worker's thread.
Report = Callable[[cpb.QuantizeProgress], None]


class ConvertTask(Task, cpb_grpc.ConverterServicer):
    """One conversion at a time: it may need most of the memory."""

    def __init__(self) -> None:
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "mlx")
        self._abandoned = threading.Event()
        self._running: asyncio.Future | None = None

    def add_services(self, server: grpc.aio.Server) -> None:
        cpb_grpc.add_ConverterServicer_to_server(self, server)

    async def drain(self, seconds: float) -> None:
        if self._busy() and seconds > 0:
            await asyncio.wait([self._running], timeout=seconds)
        self._abandoned.set()

    def close(self) -> None:
        self._abandoned.set()
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def Quantize(
        self, request: cpb.QuantizeRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[cpb.QuantizeProgress]:
        loop = asyncio.get_running_loop()
        outbox: asyncio.Queue[cpb.QuantizeProgress | None] = asyncio.Queue()
        ended = threading.Event()

        def report(message: cpb.QuantizeProgress) -> None:
            if ended.is_set():
                raise cancelled("the quantization was canceled")
            if self._abandoned.is_set():
                raise unavailable("the converter is stopping")
            loop.call_soon_threadsafe(outbox.put_nowait, message)

        work = asyncio.ensure_future(self._run(_quantize, request, report))
        work.add_done_callback(lambda _: outbox.put_nowait(None))
        try:
            while (message := await outbox.get()) is not None:
                yield message
            await answer(work, context)
        finally:
            ended.set()

    async def ImportAdapter(
        self, request: cpb.ImportAdapterRequest, context: grpc.aio.ServicerContext
    ) -> cpb.ImportAdapterResponse:
        return await answer(self._run(_import_adapter, request), context)

    def _busy(self) -> bool:
        return self._running is not None and not self._running.done()

    async def _run(self, do: Callable[..., Any], *arguments: Any) -> Any:
        if self._abandoned.is_set():
            raise unavailable("the converter is stopping")
        if self._busy():
            raise exists("this process converts something already")
        self._running = asyncio.wrap_future(self._worker.submit(do, *arguments))
        # Shielded: a call that ends leaves the work to see that by itself, between two parts.
        return await asyncio.shield(self._running)


def _quantize(request: cpb.QuantizeRequest, report: Report) -> None:
    name = request.model_name or "the model"
    model_path, output = Path(request.model_path), Path(request.output_path)
    config = _read_config(model_path, name)
    # Only after the cheap checks: it takes seconds.
    from ollmlx.runner.mlx import mlxlm

    wish = request.scheme
    try:
        scheme = mlxlm.Scheme(wish.mode, wish.bits, wish.group_size, wish.recipe)
    except ValueError as err:
        raise invalid(str(err)) from err
    try:
        model, config = _build(model_path)
    except Exception as err:
        log.exception("reading the model failed")
        raise invalid(f"{name} cannot be read: {_one_line(err)}") from err
    try:
        plan = mlxlm.quantize(model, config, scheme)
    except ValueError as err:
        raise unsupported(f"{name} cannot be quantized so: {err}") from err
    del model
    total = plan.bytes_total
    done = 0

    def advance(bytes_done: int) -> None:
        nonlocal done
        done = bytes_done
        report(cpb.QuantizeProgress(bytes_done=done, bytes_total=total))

    advance(0)
    try:
        for file in plan.write(output, advance):
            report(cpb.QuantizeProgress(bytes_done=done, bytes_total=total, file=file))
    except OSError as err:
        if err.errno == errno.ENOSPC:
            raise RunnerError(
                grpc.StatusCode.FAILED_PRECONDITION, "the disk is full; free some space and try again"
            ) from err
        raise


def _build(path: Path) -> tuple[Any, dict[str, Any]]:
    """The model, its weights not read yet, and its configuration: of mlx-lm or one of the encoders."""
    from ollmlx.runner.mlx import mlxlm
    from ollmlx.runner.mlx.embedding.encoders import make_encoder
    from ollmlx.runner.mlx.embedding.modules import ENCODERS

    config = mlxlm.load_config(path)
    module = ENCODERS.get(config.get("model_type", ""))
    if module is None:
        return mlxlm.build(path)
    return make_encoder(module, config, path), config


def _read_config(path: Path, name: str) -> dict[str, Any]:
    """config.json of a model that is not quantized."""
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as err:
        raise invalid(f"{name} has no usable config.json: {_one_line(err)}") from err
    for part in (config, config.get("text_config") or {}):
        if part.get("quantization") or part.get("quantization_config"):
            raise invalid(f"{name} is quantized already; quantize the model that it was made from")
    return config


def _import_adapter(request: cpb.ImportAdapterRequest) -> cpb.ImportAdapterResponse:
    name = request.model_name or "the model"
    path, output = Path(request.adapter_path), Path(request.output_path)
    from ollmlx.runner.mlx import mlxlm

    try:
        model, _ = _build(Path(request.model_path))
    except Exception as err:
        log.exception("reading the model failed")
        raise invalid(f"{name} cannot be read: {_one_line(err)}") from err
    files: list[str] = []
    try:
        if not (path / "adapters.safetensors").is_file() and (path / "adapter_model.safetensors").is_file():
            files = mlxlm.convert_peft(path, output)
            path = output
        mlxlm.try_on(model, path)
    except RunnerError:
        raise
    except Exception as err:
        # Whatever a library says about unusable files.
        log.info("the adapter does not fit", exc_info=True)
        text = _one_line(err).replace(str(path), "").replace("Adapter at  contains", "it has")
        raise invalid(f"the adapter does not fit {name}: {text}") from err
    return cpb.ImportAdapterResponse(files=files)


def _one_line(err: Exception) -> str:
    return " ".join((str(err).strip() or type(err).__name__).split())
