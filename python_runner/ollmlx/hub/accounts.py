"""Who the user is on the hub. Tokens are kept by the library, where its other users find them too."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import grpc
import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import get_token

from ollmlx.hub import client
from ollmlx.runner.errors import RunnerError, invalid, precondition
from ollmlx.runner.v1 import hub_pb2 as pb


def whoami() -> pb.Account:
    """The account of the current token. Raises RunnerError."""
    return _account(None)


def login(token: str) -> pb.Account:
    """Check a token and keep it. A token that the hub does not know is not kept. Raises RunnerError."""
    token = token.strip()
    if not token:
        raise invalid(f"there is no token; make one at {client.endpoint()}/settings/tokens")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise invalid("this is no token: it has characters that no token has")
    account = _account(token)
    try:
        huggingface_hub.login(token=token, add_to_git_credential=False, skip_if_logged_in=False)
    except Exception as err:
        raise client.explained(err) from err
    return account


def logout() -> pb.LogoutResponse:
    """Remove the kept tokens. Raises RunnerError."""
    kept = any(Path(path).exists() for path in (constants.HF_TOKEN_PATH, constants.HF_STORED_TOKENS_PATH))
    if not kept and not _from_environment():
        raise precondition("not logged in")
    # The library raises OSError when a token of the environment stays in force, which the answer tells.
    with contextlib.suppress(OSError):
        huggingface_hub.logout()
    if Path(constants.HF_TOKEN_PATH).exists():
        raise RunnerError(grpc.StatusCode.INTERNAL, "the kept token cannot be removed")
    return pb.LogoutResponse(from_environment=_from_environment())


def _account(token: str | None) -> pb.Account:
    try:
        found = client.attempt(lambda: client.api().whoami(token=token))
        return pb.Account(
            name=found["name"],
            full_name=found.get("fullname") or "",
            organizations=[org["name"] for org in found.get("orgs") or []],
            endpoint=client.endpoint(),
            from_environment=_from_environment(),
        )
    except errors.HfHubHTTPError as err:
        if token and err.response is not None and err.response.status_code == 401:
            raise RunnerError(
                grpc.StatusCode.UNAUTHENTICATED,
                f"{client.endpoint()} does not know this token; nothing was changed",
            ) from err
        raise client.explained(err) from err
    except Exception as err:
        raise client.explained(err) from err


def _from_environment() -> bool:
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    return bool(token) and get_token() == token
