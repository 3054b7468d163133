"""Prefix caches in files, so that a long conversation survives the runner that computed it.

One file holds one prefix: a safetensors file whose first array is the tokens and whose metadata says what it was
computed with. Files never change. They appear whole, by a rename, and their names come from their content, so
any number of runners may share a directory; one that disappears meanwhile is a prefix not found. All files of
the directory together stay below a bound, the least recently used go first, whatever model they belong to.

What is read is not trusted: a file that is truncated, damaged, or of another version is removed and its prefix
computed again.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ollmlx.runner.mlx.prefix_trie import PrefixTrie
from ollmlx.runner.v1 import runner_pb2 as pb

if TYPE_CHECKING:
    from ollmlx.runner.mlx import mlxlm as mlxlm_module

log = logging.getLogger(__name__)

# Changes with everything that would make a reader misunderstand a file.
FORMAT = "1"
SUFFIX = ".kv.safetensors"
_TEMP_PREFIX = "writing-"

# The first array and the last; between them those of the caches, by their numbers. The sums are of what was written
# before them: the description with the tokens, then each array.
_TOKENS = "tokens"
_SUMS = "sums"
# Bounds for what is believed of a file before it is known to be ours.
_MAX_HEADER_BYTES = 16 << 20
# Bytes written between two looks at whether something else is to be done.
_PIECE_BYTES = 1 << 20
# What is left free on the disk.
_RESERVED_BYTES = 512 << 20


class Codec(Protocol):
    """Takes caches apart into arrays and puts them together again; see mlxlm.CacheCodec."""

    def describe(self, caches: list[Any]) -> tuple[str, list[Any]]: ...
    def restore(self, structure: str, arrays: list[Any]) -> list[Any]: ...
    def header(self, array: Any) -> dict[str, Any]: ...
    def data(self, array: Any) -> memoryview: ...
    def load(self, path: Path) -> dict[str, Any]: ...


@dataclass(eq=False)
class _File:
    path: Path
    key: str
    tokens: np.ndarray
    cuttable: bool


class _Unusable(Exception):
    """A file is not what this module wrote, or not any more."""


def open_files(request: pb.LoadRequest, mlxlm: mlxlm_module, model: Any, device: str) -> PrefixFiles | None:
    """The files that a load asks for; none where their directory cannot be used, which is no reason not to run."""
    if not request.cache_dir:
        return None
    identity = {"model": request.model_digest, **mlxlm.identity(model, device)}
    try:
        return PrefixFiles(Path(request.cache_dir), request.cache_bytes, identity, mlxlm.CacheCodec())
    except (OSError, ValueError) as err:
        log.warning("prefix caches are not kept in files", extra={"error": str(err)})
        return None


class PrefixFiles:
    """The files of one model, in a directory of their own below the one that all models share.

    `identity` is all that decides whether a cache fits besides its tokens and its key. Raises OSError or
    ValueError where the directory cannot be used or others could write to it.
    """

    def __init__(
        self, directory: Path, max_bytes: int, identity: dict[str, str], codec: Codec, min_tokens: int = 256
    ) -> None:
        self.min_tokens = min_tokens
        self._root = directory
        self._max_bytes = max_bytes
        self._codec = codec
        self._identity = {**identity, "format": FORMAT}
        name = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:32]
        self._directory = directory / name
        _make_private(directory)
        _make_private(self._directory)
        self._tries: dict[str, PrefixTrie[_File]] = collections.defaultdict(PrefixTrie)
        self._known: dict[str, _File] = {}
        self._seen_ns = 0
        self._remove_abandoned()
        self._scan()

    def __len__(self) -> int:
        return len(self._known)

    def length(self, key: str, tokens: np.ndarray) -> int:
        self._scan()
        found = self._tries[key].longest(tokens)
        return found[1] if found is not None else 0

    def read(self, key: str, tokens: np.ndarray) -> tuple[np.ndarray, list[Any]] | None:
        found = self._tries[key].longest(tokens)
        if found is None:
            return None
        file = found[0]
        try:
            caches = self._load(file)
            os.utime(file.path)
        except FileNotFoundError:
            self._forget(file)
            return None
        except Exception as err:
            # Whatever a damaged file makes of the reader, the prefix can be computed again.
            log.warning(
                "a stored prefix cache is damaged and removed",
                extra={"file": file.path.name, "error": str(err)},
            )
            self._remove(file)
            return None
        return file.tokens, caches

    def write(self, key: str, tokens: np.ndarray, caches: list[Any], cuttable: bool) -> Iterator[int]:
        temp: Path | None = None
        try:
            name = hashlib.sha256(json.dumps(key).encode() + tokens.tobytes()).hexdigest()[:40] + SUFFIX
            self._scan()
            if self._tries[key].covering(tokens) is not None:
                return
            structure, arrays = self._codec.describe(caches)
            header = self._header(key, tokens, cuttable, structure, arrays)
            size = len(header) + tokens.nbytes + sum(a.nbytes for a in arrays) + 4 * (len(arrays) + 1)
            if not self._make_room(size):
                return
            temp = self._directory / f"{_TEMP_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
            with open(temp, "xb", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600)) as out:
                # Tells others that somebody is still writing it.
                fcntl.flock(out, fcntl.LOCK_EX)
                yield _write_whole(out, header + tokens.tobytes())
                sums = [_sum_of_description(key, cuttable, structure, tokens)]
                for array in arrays:
                    data = self._codec.data(array)
                    sums.append(0)
                    for start in range(0, len(data), _PIECE_BYTES):
                        piece = data[start : start + _PIECE_BYTES]
                        sums[-1] = zlib.crc32(piece, sums[-1])
                        yield _write_whole(out, piece)
                _write_whole(out, np.asarray(sums, np.uint32).tobytes())
                final = self._directory / name
                temp.rename(final)
                temp = None
            self._learn(_File(final, key, tokens, cuttable))
        except Exception as err:
            # Also what the device says when its memory is full: it is computed again.
            log.warning(
                "a prefix cache could not be written", extra={"tokens": len(tokens), "error": str(err)}
            )
        finally:
            if temp is not None:
                temp.unlink(missing_ok=True)

    def _header(
        self, key: str, tokens: np.ndarray, cuttable: bool, structure: str, arrays: list[Any]
    ) -> bytes:
        """The beginning of the file, up to its data."""
        parts = [
            (_TOKENS, {"dtype": "I32", "shape": [len(tokens)]}, tokens.nbytes),
            *((str(i), self._codec.header(a), a.nbytes) for i, a in enumerate(arrays)),
            (_SUMS, {"dtype": "U32", "shape": [len(arrays) + 1]}, 4 * (len(arrays) + 1)),
        ]
        entries: dict[str, Any] = {
            "__metadata__": {
                **self._identity, "key": key, "cuttable": json.dumps(cuttable), "structure": structure
            }
        }  # fmt: skip
        start = 0
        for name, header, nbytes in parts:
            entries[name] = {**header, "data_offsets": [start, start + nbytes]}
            start += nbytes
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _load(self, file: _File) -> list[Any]:
        arrays = self._codec.load(file.path)
        metadata, _, sums = self._read_header(file.path, with_sums=True)
        ordered = [arrays[str(i)] for i in range(len(sums) - 1)]
        found = [_sum_of_description(file.key, file.cuttable, metadata["structure"], file.tokens)]
        found += [zlib.crc32(self._codec.data(a)) for a in ordered]
        if found != sums:
            raise _Unusable("its content does not match its checksums")
        return self._codec.restore(metadata["structure"], ordered)

    def _read_header(
        self, path: Path, with_sums: bool = False
    ) -> tuple[dict[str, str], np.ndarray, list[int] | None]:
        """Metadata, tokens and, if asked for, checksums of a file, without its arrays; raises what shows that it is not
        a whole file of ours."""
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            length = int.from_bytes(file.read(8), "little")
            if not stat.S_ISREG(info.st_mode) or not 0 < length <= min(_MAX_HEADER_BYTES, info.st_size):
                raise _Unusable("it has no header")
            entries = json.loads(file.read(length))
            metadata = entries["__metadata__"]
            if any(metadata.get(name) != value for name, value in self._identity.items()):
                raise _Unusable("it was made with something else")
            begin, end = entries[_SUMS]["data_offsets"]
            if info.st_size != 8 + length + end:
                raise _Unusable(f"it has {info.st_size} bytes of {8 + length + end}")
            first, last = entries[_TOKENS]["data_offsets"]
            if first != 0:
                raise _Unusable("its tokens are not at its start")
            tokens = np.frombuffer(file.read(last), dtype=np.int32)
            if not with_sums:
                return metadata, tokens, None
            file.seek(8 + length + begin)
            return metadata, tokens, np.frombuffer(file.read(end - begin), dtype=np.uint32).tolist()

    # ---- the directory

    def _scan(self) -> None:
        """Learn of files that are new, from an earlier runner or from another one."""
        try:
            changed = self._directory.stat().st_mtime_ns
        except OSError:
            # Cleared meanwhile, or out of reach: nothing is found then, which costs time and nothing else.
            changed = 0
        if changed == self._seen_ns:
            return
        self._seen_ns = changed
        present = {p.name: p for p in self._directory.glob("*" + SUFFIX)} if changed else {}
        for gone in [f for name, f in self._known.items() if name not in present]:
            self._forget(gone)
        for name, path in present.items():
            if name in self._known:
                continue
            try:
                metadata, tokens, _ = self._read_header(path)
                self._learn(_File(path, metadata["key"], tokens, json.loads(metadata["cuttable"])))
            except FileNotFoundError:
                continue
            except Exception as err:
                log.warning(
                    "a stored prefix cache is unusable and removed", extra={"file": name, "error": str(err)}
                )
                _unlink(path)

    def _learn(self, file: _File) -> None:
        trie = self._tries[file.key]
        if file.cuttable:
            # Those that the new one makes superfluous.
            for shorter in trie.shorter(file.tokens):
                self._remove(shorter)
        trie.add(file)
        self._known[file.path.name] = file

    def _forget(self, file: _File) -> None:
        if self._known.pop(file.path.name, None) is not None:
            self._tries[file.key].remove(file)

    def _remove(self, file: _File) -> None:
        self._forget(file)
        _unlink(file.path)

    def _make_room(self, size: int) -> bool:
        """Remove the least recently used files, of whatever model, until `size` more bytes fit; whether they do."""
        if size > self._max_bytes:
            log.warning("a prefix cache is larger than all that may be stored", extra={"bytes": size})
            return False
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(self._directory).free
        files = []
        for path in self._root.glob("*/*" + SUFFIX):
            with contextlib.suppress(FileNotFoundError):
                info = path.stat()
                files.append((info.st_mtime_ns, info.st_size, path))
        total = sum(nbytes for _, nbytes, _ in files)
        for _, nbytes, path in sorted(files):
            if total + size <= self._max_bytes and free - size >= _RESERVED_BYTES:
                break
            known = self._known.get(path.name)
            if known is not None and known.path == path:
                self._forget(known)
            _unlink(path)
            total -= nbytes
            free += nbytes
        if free - size < _RESERVED_BYTES:
            log.warning("the disk is too full to store a prefix cache", extra={"bytes": size, "free": free})
            return False
        return True

    def _remove_abandoned(self) -> None:
        """What runners that were killed have left: nobody holds the lock of such a file any more."""
        for path in self._root.glob(f"*/{_TEMP_PREFIX}*"):
            with contextlib.suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _sum_of_description(key: str, cuttable: bool, structure: str, tokens: np.ndarray) -> int:
    return zlib.crc32(json.dumps([key, cuttable, structure]).encode() + tokens.tobytes())


def _make_private(directory: Path) -> None:
    """Make a directory that only this user can enter: what is in it tells what was said."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = directory.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
        raise ValueError(
            f"{directory} must be a directory that belongs to you and is writable by nobody else"
        )


def _write_whole(out: Any, data: bytes | memoryview) -> int:
    """Write all of it: one call writes what fits."""
    done = 0
    while done < len(data):
        done += out.write(data[done:])
    return done


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
