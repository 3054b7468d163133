"""What a repository holds: asked of the hub, or read from the library's cache when the hub cannot be asked."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import ModelInfo, constants, hf_hub_url
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, get_session, get_token, hf_raise_for_status

from ollmlx.hub import client
from ollmlx.runner.errors import RunnerError, unavailable
from ollmlx.runner.v1 import hub_pb2 as pb

_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_FILES = 20_000


def inspect(repository: str, revision: str) -> pb.Repository:
    """The files of a repository. Raises RunnerError."""
    try:
        info = client.attempt(
            lambda: client.api().model_info(repository, revision=revision or None, files_metadata=True)
        )
        if info.gated:
            # The list is public, the files may not be: better told now than after a prompt for a download.
            client.attempt(lambda: client.api().auth_check(info.id))
        return _from_hub(info)
    except Exception as err:
        error = client.explained(err, repository, revision)
        if client.is_unreachable(err) and (cached := _from_cache(repository, revision)):
            cached.from_cache_reason = error.message
            return cached
        raise error from err


def _from_hub(info: ModelInfo) -> pb.Repository:
    if not info.sha or not _SHA1.fullmatch(info.sha) or info.siblings is None:
        raise unavailable(f"{client.endpoint()} does not tell the commit and the files of {info.id}")
    if len(info.siblings) > _MAX_FILES:
        raise unavailable(f"{info.id} has more than {_MAX_FILES} files, too many for a model")
    found = pb.Repository(
        repository=info.id, commit=info.sha, endpoint=client.endpoint(), token=get_token() or ""
    )
    card = info.card_data or {}
    license_, name = card.get("license"), card.get("license_name")
    found.license = str(name if license_ == "other" and name else license_ or "")
    found.license_link = str(card.get("license_link") or "")
    for sibling in info.siblings:
        sha256 = sibling.lfs.sha256 if sibling.lfs else ""
        if sibling.size is None or not sibling.blob_id:
            raise unavailable(
                f"{client.endpoint()} does not tell the size and the digest of {sibling.rfilename}"
            )
        found.files.add(
            path=sibling.rfilename,
            size=sibling.size,
            sha256=sha256,
            git_sha1=sibling.blob_id,
            url=hf_hub_url(info.id, sibling.rfilename, revision=info.sha),
            cache_path=_cached(info.id, info.sha, sibling.rfilename, sha256 or sibling.blob_id),
        )
    return found


def _folder(repository: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def _cached(repository: str, commit: str, path: str, etag: str) -> str:
    """Where the cache has a file of this content; empty if nowhere. Whoever reads it checks its digest."""
    folder = _folder(repository)
    if not (_SHA256.fullmatch(etag) or _SHA1.fullmatch(etag)) or not folder.is_dir():
        return ""
    # The second is for file systems without symbolic links.
    candidates = [folder / "blobs" / etag]
    if ".." not in Path(path).parts and not Path(path).is_absolute():
        candidates.append(folder / "snapshots" / commit / path)
    return next((str(file.resolve()) for file in candidates if file.is_file()), "")


def _from_cache(repository: str, revision: str) -> pb.Repository | None:
    """The newest state of a revision that the cache knows, None if there is none."""
    folder = _folder(repository)
    commit = revision
    if not _SHA1.fullmatch(commit):
        ref = folder / "refs" / (revision or constants.DEFAULT_REVISION)
        if ".." in ref.parts or not ref.is_file():
            return None
        commit = ref.read_text().strip()
    snapshot = folder / "snapshots" / commit
    if not _SHA1.fullmatch(commit) or not snapshot.is_dir():
        return None
    found = pb.Repository(repository=repository, commit=commit, endpoint=client.endpoint(), from_cache=True)
    for file in sorted(snapshot.rglob("*")):
        if not file.is_file():
            continue
        blob = file.resolve()
        digest = blob.name
        found.files.add(
            path=file.relative_to(snapshot).as_posix(),
            size=blob.stat().st_size,
            sha256=digest if _SHA256.fullmatch(digest) else "",
            git_sha1=digest if _SHA1.fullmatch(digest) else "",
            cache_path=str(blob),
        )
    return found if found.files else None


def _search(query: str, limit: int, mlx: bool) -> list[ModelInfo]:
    # Not by list_models: it repeats failed requests for half a minute.
    parameters = {"search": query, "sort": "downloads", "limit": limit}
    parameters["expand"] = ["downloads", "likes", "lastModified", "gated"]
    if mlx:
        parameters["filter"] = "mlx"
    response = get_session().get(
        f"{client.endpoint()}/api/models", params=parameters, headers=build_hf_headers(library_name="ollmlx")
    )
    hf_raise_for_status(response)
    return [ModelInfo(**model) for model in response.json()]


def search(query: str, limit: int, mlx: bool) -> list[pb.HubModel]:
    """Models whose names contain the query, the most downloaded first. Raises RunnerError."""
    try:
        models = client.attempt(lambda: _search(query, limit, mlx))
    except RunnerError:
        raise
    except Exception as err:
        raise client.explained(err) from err
    return [
        pb.HubModel(
            repository=model.id,
            downloads=model.downloads or 0,
            likes=model.likes or 0,
            last_modified=int(model.last_modified.timestamp()) if model.last_modified else 0,
            gated=bool(model.gated),
        )
        for model in models
    ]
