"""Prefix caches in files: what is written is found again as it was, and what is not whole is not used."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import cache as mlx_cache

from ollmlx.runner.mlx import prefix_files
from ollmlx.runner.mlx.mlxlm import CacheCodec, CacheOperations
from ollmlx.runner.mlx.prefix_cache import Prefix, PrefixCache
from ollmlx.runner.mlx.prefix_files import PrefixFiles
from ollmlx.runner.mlx.prefix_trie import as_tokens

IDENTITY = {"model": "m1", "mlx": "1", "mlx-lm": "2"}
TOKENS = as_tokens(range(300))


def kv_caches(length: int = 300, dtype: mx.Dtype = mx.bfloat16) -> list[mlx_cache.KVCache]:
    cache = mlx_cache.KVCache()
    cache.update_and_fetch(
        mx.random.normal((1, 2, length, 8)).astype(dtype), mx.random.normal((1, 2, length, 4)).astype(dtype)
    )
    return [cache]


def rotating() -> list[mlx_cache.RotatingKVCache]:
    cache = mlx_cache.RotatingKVCache(max_size=16, keep=4)
    cache.update_and_fetch(mx.random.normal((1, 2, 300, 8)), mx.random.normal((1, 2, 300, 8)))
    return [cache]


def hybrid() -> list[object]:
    state = mlx_cache.ArraysCache(3)
    state[0], state[2] = mx.random.normal((1, 4, 4)), mx.array([7], mx.int32)
    return [mlx_cache.CacheList(*kv_caches(), *rotating()), state]


def files(directory: Path, max_bytes: int = 10 << 20, **identity: str) -> PrefixFiles:
    return PrefixFiles(directory / "prefixes", max_bytes, {**IDENTITY, **identity}, CacheCodec())


def write(
    store: PrefixFiles, tokens: np.ndarray = TOKENS, caches: list[object] | None = None, key: str = ""
) -> None:
    caches = kv_caches(len(tokens)) if caches is None else caches
    for _ in store.write(key, tokens, caches, CacheOperations.cuttable(caches)):
        pass


def on_disk(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file())


def flat(caches: list[object]) -> list[object]:
    return [v.tolist() if isinstance(v, mx.array) else v for _, v in tree_flatten([c.state for c in caches])]


@pytest.mark.parametrize(
    "caches",
    [kv_caches(), kv_caches(dtype=mx.float32), rotating(), hybrid()],
    ids=["bf16", "f32", "window", "hybrid"],
)
def test_what_is_written_is_read_by_the_next_runner(tmp_path: Path, caches: list[object]) -> None:
    write(files(tmp_path), caches=caches, key="adapter")
    again = files(tmp_path)
    longer = as_tokens([*TOKENS, 5, 6])
    assert again.length("adapter", longer) == 300
    assert again.length("", longer) == 0
    tokens, read = again.read("adapter", longer)
    assert tokens.tolist() == TOKENS.tolist()
    assert [type(c) for c in read] == [type(c) for c in caches]
    assert flat(read) == flat(caches)


def test_only_the_user_can_read(tmp_path: Path) -> None:
    os.umask(old := os.umask(0))
    try:
        os.umask(0)
        write(files(tmp_path))
    finally:
        os.umask(old)
    [file] = on_disk(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert all(stat.S_IMODE(d.stat().st_mode) == 0o700 for d in (file.parent, file.parent.parent))


@pytest.mark.parametrize("change", [{"model": "m2"}, {"mlx": "1.1"}, {"mlx-lm": "2.1"}])
def test_other_models_and_versions_do_not_see_it(tmp_path: Path, change: dict[str, str]) -> None:
    write(files(tmp_path))
    other = files(tmp_path, **change)
    assert other.length("", TOKENS) == 0
    assert len(on_disk(tmp_path)) == 1, "it is another's, so it stays"


def test_a_file_of_another_version_in_our_place_is_removed(tmp_path: Path) -> None:
    write(files(tmp_path))
    [file] = on_disk(tmp_path)
    ours = files(tmp_path, mlx="1.1")
    directory = next(d for d in file.parent.parent.iterdir() if d != file.parent)
    file.rename(directory / file.name)
    assert ours.length("", TOKENS) == 0
    assert on_disk(tmp_path) == []


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 10)


def flip(position: int) -> object:
    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[position] ^= 0x40
        file.write_bytes(data)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip(-1000),
        flip(-2),
        flip(3),
        flip(40),
        lambda f: f.write_bytes(b""),
        lambda f: f.write_text("hello"),
    ],
    ids=["truncated", "array", "sums", "header length", "header", "empty", "foreign"],
)
def test_what_is_damaged_is_removed_and_not_used(tmp_path: Path, damage: object) -> None:
    write(files(tmp_path))
    [file] = on_disk(tmp_path)
    damage(file)
    again = files(tmp_path)
    assert again.length("", TOKENS) == 0 or again.read("", TOKENS) is None
    assert on_disk(tmp_path) == []
    assert again.length("", TOKENS) == 0


def test_damage_after_the_index_was_read(tmp_path: Path) -> None:
    store = files(tmp_path)
    write(store)
    [file] = on_disk(tmp_path)
    truncate(file)
    cache = PrefixCache(1 << 20, CacheOperations(), store)
    assert cache.find("", [*TOKENS.tolist(), 1]) is None
    assert on_disk(tmp_path) == []


def test_a_longer_prefix_replaces_a_shorter_one(tmp_path: Path) -> None:
    store = files(tmp_path)
    write(store)
    write(store, as_tokens(range(400)))
    write(store)
    assert len(on_disk(tmp_path)) == len(store) == 1
    assert store.length("", as_tokens(range(500))) == 400


def test_the_least_recently_used_goes_whatever_model_it_is_of(tmp_path: Path) -> None:
    write(files(tmp_path))
    [first] = on_disk(tmp_path)
    room = int(first.stat().st_size * 2.5)
    store = files(tmp_path, room, model="m2")
    write(store, as_tokens(range(1000, 1300)))
    [second] = set(on_disk(tmp_path)) - {first}
    os.utime(second, (1, 1))
    assert store.read("", as_tokens(range(1000, 1300))) is not None, "which makes it the most recently used"
    write(store, as_tokens(range(2000, 2300)))
    assert first not in on_disk(tmp_path)
    assert second in on_disk(tmp_path)
    assert sum(p.stat().st_size for p in on_disk(tmp_path)) <= room


def test_what_is_larger_than_the_bound_is_not_written(tmp_path: Path) -> None:
    write(files(tmp_path, 1000))
    assert on_disk(tmp_path) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = files(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        write(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert on_disk(tmp_path) == []
    assert "could not be written" in caplog.text
    write(store)
    assert len(on_disk(tmp_path)) == 1


def test_some_space_is_left_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    write(files(tmp_path))
    assert on_disk(tmp_path) == []


def test_a_runner_that_is_killed_while_it_writes(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from tests.runner.test_prefix_files import *
        writing = files(Path(sys.argv[1])).write("", TOKENS, kv_caches(), True)
        next(writing), next(writing)
        print("writing", flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "writing\n"
            [half] = on_disk(tmp_path)
            alive = files(tmp_path)
            assert on_disk(tmp_path) == [half], "it is still being written"
            assert alive.length("", TOKENS) == 0
        finally:
            process.send_signal(signal.SIGKILL)
    again = files(tmp_path)
    assert on_disk(tmp_path) == []
    assert again.length("", TOKENS) == 0


def test_two_runners_share_a_directory(tmp_path: Path) -> None:
    one, two = files(tmp_path), files(tmp_path)
    write(one)
    assert two.length("", TOKENS) == 300, "a file that another runner has written meanwhile"
    both = [s.write("", as_tokens(range(5000, 5300)), kv_caches(), True) for s in (one, two)]
    for _ in zip(*both, strict=True):
        pass
    assert len(on_disk(tmp_path)) == 2
    assert one.read("", as_tokens(range(5000, 5300))) is not None
    two._make_room(10 << 20)
    assert on_disk(tmp_path) == []
    assert one.read("", TOKENS) is None


def test_a_directory_that_is_cleared_meanwhile(tmp_path: Path) -> None:
    store = files(tmp_path)
    write(store)
    shutil.rmtree(tmp_path / "prefixes")
    assert store.length("", TOKENS) == 0
    write(store)
    assert store.length("", TOKENS) == 300


def test_a_directory_that_cannot_be_looked_at_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = files(tmp_path)
    write(store)
    stat_of = Path.stat

    def refusing(self: Path, **fields: object) -> os.stat_result:
        if self.name.startswith(("prefixes", store._directory.name)):
            raise PermissionError(13, "injected")
        return stat_of(self, **fields)

    monkeypatch.setattr(Path, "stat", refusing)
    assert store.length("", TOKENS) == 0
    monkeypatch.undo()
    assert store.length("", TOKENS) == 300


def test_a_cache_that_cannot_be_read_from_the_device_is_not_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: CacheCodec, array: mx.array) -> memoryview:
        raise RuntimeError("injected: out of memory")

    monkeypatch.setattr(CacheCodec, "data", failing)
    write(files(tmp_path))
    assert "could not be written" in caplog.text
    assert not on_disk(tmp_path)


def test_a_directory_of_others_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "prefixes").mkdir(mode=0o777)
    (tmp_path / "prefixes").chmod(0o777)
    with pytest.raises(ValueError, match="writable by nobody else"):
        files(tmp_path)


# ---- together with memory


def fill(cache: PrefixCache, *starts: int) -> None:
    for start in starts:
        cache.add("", Prefix(range(start, start + 300), kv_caches()))


def test_what_memory_has_no_room_for_is_found_in_files(tmp_path: Path) -> None:
    size = CacheOperations.nbytes(kv_caches())
    cache = PrefixCache(2 * size, CacheOperations(), files(tmp_path))
    fill(cache, 0, 1000)
    assert not cache.leaving
    fill(cache, 2000)
    assert cache.leaving
    cache.write(1 << 30)
    assert not cache.leaving
    assert len(cache.find("", range(301)).tokens) == 300
    assert (cache.files, len(cache)) == (3, 2)


def test_writing_all_takes_the_most_recently_used_first(tmp_path: Path) -> None:
    cache = PrefixCache(1 << 30, CacheOperations(), files(tmp_path))
    fill(cache, 0, 1000)
    cache.find("", range(301))
    cache.write(1)
    cache.write_all(0)
    assert on_disk(tmp_path) == [], "what was begun is not left half-written"
    cache = PrefixCache(1 << 30, CacheOperations(), files(tmp_path))
    fill(cache, 0, 1000)
    cache.add("", Prefix(range(9000, 9100), kv_caches(100)))
    assert cache.unwritten
    cache.write_all(60)
    assert not cache.unwritten
    assert cache.files == 2, "what is short is computed again faster"


def test_a_prefix_from_a_file_is_not_written_again(tmp_path: Path) -> None:
    write(files(tmp_path))
    cache = PrefixCache(1 << 30, CacheOperations(), files(tmp_path))
    assert cache.find("", range(301)) is not None
    assert (len(cache), cache.unwritten) == (1, False)


@pytest.fixture(autouse=True)
def _small_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that run tests may have little room left."""
    monkeypatch.setattr(prefix_files, "_RESERVED_BYTES", 1 << 20)
