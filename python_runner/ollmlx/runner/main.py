"""Arguments, signals and wiring of a runner process."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys

import grpc

from ollmlx.runner import handshake, logs
from ollmlx.runner.engines import ENGINES, EngineMissingError, make_engine
from ollmlx.runner.service import RunnerService
from ollmlx.runner.task import Task, TaskService
from ollmlx.runner.v1 import runner_pb2_grpc as pb_grpc

EXIT_NO_HOST = 3
EXIT_INTERNAL = 70
EXIT_NO_ENGINE = 75

log = logging.getLogger("ollmlx.runner")

# Prompts with images and long histories pass the default of 4 MiB.
_MAX_MESSAGE_BYTES = 512 * 1024 * 1024

# How long a thread that prepares or sends something may keep the interpreter from the engine's: less than a step takes.
_SWITCH_SECONDS = 0.0005

# Packages that transformers imports where they are installed, and that a runner has no use for: PyTorch alone costs
# seven seconds and half a gigabyte.
_UNWANTED = ("torch",)


def hide_unwanted() -> None:
    """Let this process find no such package, as if it were not installed."""
    for name in _UNWANTED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ollmlx.runner",
        description="Holds one model and generates with it, or does one task of the host. "
        "Started by `ollmlx serve`, not by hand.",
    )
    parser.add_argument(
        "--engine", choices=sorted(ENGINES), default="mlx", help="what generates (default: mlx)"
    )
    parser.add_argument("--socket", required=True, metavar="PATH", help="unix socket to listen on")
    parser.add_argument("--warm", action="store_true", help="import the engine's libraries ahead of the load")
    parser.add_argument("--log-level", choices=("debug", "info", "warn", "error"), default="info")
    return parser.parse_args()


async def serve(engine_name: str, socket: str, warm: bool = False) -> None:
    """Listen, announce, and serve until Shutdown or SIGTERM."""
    engine = make_engine(engine_name)
    service = TaskService(engine) if isinstance(engine, Task) else RunnerService(engine)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ]
    )
    pb_grpc.add_RunnerServicer_to_server(service, server)
    if isinstance(engine, Task):
        engine.add_services(server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()

    terminated = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, terminated.set)
    handshake.announce(engine_name)
    if warm:
        engine.warm_up()

    waiters = [asyncio.create_task(event.wait()) for event in (service.stopped, terminated)]
    await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    if terminated.is_set():
        await engine.drain(0)
    await server.stop(grace=0.5)
    engine.close()


def main() -> int:
    arguments = parse_arguments()
    logs.setup(arguments.log_level)
    # grpcio gives its socket mode 0755; the directory is private already, the mask keeps the socket private
    # too.
    os.umask(0o077)
    hide_unwanted()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        asyncio.run(serve(arguments.engine, arguments.socket, arguments.warm))
    except EngineMissingError as err:
        log.error(str(err))
        return EXIT_NO_ENGINE
    except OSError as err:
        log.error("cannot start: %s", err)
        return EXIT_NO_HOST if err.errno == 9 else EXIT_INTERNAL
    except Exception:
        log.exception("the runner failed")
        return EXIT_INTERNAL
    return 0
