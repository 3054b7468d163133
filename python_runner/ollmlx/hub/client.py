"""The library's HTTP client with bounds, and its errors in words for users."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import grpc
import httpx2
import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import get_token, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from ollmlx.runner.errors import RunnerError, invalid, unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

# The library's own client waits for ever.
_TIMEOUT = httpx2.Timeout(10.0, connect=5.0)
# Pauses before another try, in seconds, after an answer of 5xx, a broken connection or a timeout.
_PAUSES = (0.3, 1.0, 2.0)


def set_up() -> None:
    """Give the library a client that does not wait for ever. Called once, before the first call."""

    # Each request would be a line of the server's log.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    def factory() -> httpx2.Client:
        client = default_client_factory()
        client.timeout = _TIMEOUT
        return client

    set_client_factory(factory)


def api() -> huggingface_hub.HfApi:
    return huggingface_hub.HfApi(library_name="ollmlx")


def endpoint() -> str:
    return constants.ENDPOINT


def is_unreachable(err: Exception) -> bool:
    """Whether the hub was not asked at all, for want of a network or because that is not wished."""
    return isinstance(err, (errors.OfflineModeIsEnabled, httpx2.TransportError))


def attempt(call: Callable[[], T]) -> T:
    """The result of a call that may be repeated; passing faults of the hub are waited for."""
    for pause in _PAUSES:
        try:
            return call()
        except (errors.HfHubHTTPError, httpx2.TransportError) as err:
            if not _is_passing(err):
                raise
            log.info("the hub is asked again in %.1f s: %s", pause, one_line(err))
            time.sleep(pause)
    return call()


def _is_passing(err: Exception) -> bool:
    if isinstance(err, errors.HfHubHTTPError):
        return _status(err) >= 500 or _status(err) == 429
    # Without a route, a name or a listener, the next try will not find one either.
    return not isinstance(err, (httpx2.ConnectError, httpx2.ConnectTimeout, errors.OfflineModeIsEnabled))


def explained(err: Exception, repository: str = "", revision: str = "") -> RunnerError:
    """What an error of the library comes to."""
    hub = endpoint()
    match err:
        case RunnerError():
            return err
        case errors.GatedRepoError():
            return gated(repository)
        case errors.DisabledRepoError():
            return _denied(f"access to {repository} is disabled on {hub}")
        case errors.RevisionNotFoundError():
            return _missing(f'{repository} has no revision "{revision}" on {hub}')
        case errors.RepositoryNotFoundError():
            hint = "" if get_token() else '; for a private one, log in with "ollmlx login"'
            return _missing(f'there is no model "{repository}" on {hub}, or it is private{hint}')
        case errors.HFValidationError():
            return invalid(f'"{repository}" is no name of a model on {hub}')
        case errors.OfflineModeIsEnabled():
            return unavailable("HF_HUB_OFFLINE is set, so that the hub is not asked")
        case errors.LocalTokenNotFoundError():
            return RunnerError(grpc.StatusCode.UNAUTHENTICATED, 'not logged in; run "ollmlx login"')
        case errors.HfHubHTTPError():
            return _by_status(err, repository)
        case httpx2.TimeoutException():
            return unavailable(f"{hub} does not answer in time")
        case httpx2.TransportError():
            return unavailable(f"{hub} cannot be reached: {one_line(err)}")
        case ValueError() | KeyError() | TypeError():
            log.exception("an answer was not understood")
            return unavailable(f"{hub} gave an answer that is none of the hub's (is HF_ENDPOINT right?)")
    raise err


def gated(repository: str) -> RunnerError:
    page = f"{endpoint()}/{repository}"
    if get_token():
        return _denied(
            f"{repository} is gated and this account has no access: visit {page} and ask for it there"
        )
    return _denied(
        f'{repository} is gated: visit {page} and accept its conditions, then run "ollmlx login" with a token '
        f"from {endpoint()}/settings/tokens"
    )


def _by_status(err: errors.HfHubHTTPError, repository: str) -> RunnerError:
    hub, status = endpoint(), _status(err)
    if status == 401:
        return RunnerError(
            grpc.StatusCode.UNAUTHENTICATED,
            f'{hub} does not accept the token; run "ollmlx login" with another one, or "ollmlx logout"',
        )
    if status == 403:
        return _denied(f"{hub} refuses access to {repository or 'this'}: the token lacks the permission")
    if status == 429:
        return unavailable(f"{hub} has had too many requests from here; try again in some minutes")
    return unavailable(f"{hub} answered {status}; try again later")


def _status(err: errors.HfHubHTTPError) -> int:
    return err.response.status_code if err.response is not None else 0


def _denied(message: str) -> RunnerError:
    return RunnerError(grpc.StatusCode.PERMISSION_DENIED, message)


def _missing(message: str) -> RunnerError:
    return RunnerError(grpc.StatusCode.NOT_FOUND, message)


def one_line(err: Exception) -> str:
    return " ".join((str(err) or type(err).__name__).split())
