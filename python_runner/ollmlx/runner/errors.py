"""The one error type that crosses the boundary: a canonical gRPC status code and a message written for the
user."""

from __future__ import annotations

import grpc


class RunnerError(Exception):
    """A failure with a status code; its message names the thing and the remedy."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def number(self) -> int:
        """The code as an integer of google.rpc.Code, as Failed.code carries it."""
        return self.code.value[0]


def invalid(message: str) -> RunnerError:
    """The request itself is wrong, whatever the state of the runner."""
    return RunnerError(grpc.StatusCode.INVALID_ARGUMENT, message)


def unsupported(message: str) -> RunnerError:
    """The request is sound, but this engine or model cannot honour it."""
    return RunnerError(grpc.StatusCode.UNIMPLEMENTED, message)


def precondition(message: str) -> RunnerError:
    """The runner is not in the state that the call needs, for example has no model."""
    return RunnerError(grpc.StatusCode.FAILED_PRECONDITION, message)


def exhausted(message: str) -> RunnerError:
    """The request is sound, but there is not enough of something for it, memory for example."""
    return RunnerError(grpc.StatusCode.RESOURCE_EXHAUSTED, message)


def exists(message: str) -> RunnerError:
    return RunnerError(grpc.StatusCode.ALREADY_EXISTS, message)


def cancelled(message: str = "request canceled") -> RunnerError:
    return RunnerError(grpc.StatusCode.CANCELLED, message)


def unavailable(message: str) -> RunnerError:
    """The runner is stopping or broken; another runner may serve the request."""
    return RunnerError(grpc.StatusCode.UNAVAILABLE, message)


def internal(message: str) -> RunnerError:
    return RunnerError(grpc.StatusCode.INTERNAL, message)
