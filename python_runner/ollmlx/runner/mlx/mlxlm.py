"""The one module that touches mlx-lm.

mlx-lm is pinned exactly because its batching interface changes between patch releases. Everything the engine
needs of it passes through here, and tests/runner/test_mlxlm_contract.py holds the signatures this module
relies on, so that an upgrade fails loudly in one place.

Importing this module imports mlx, mlx-lm and transformers, which takes seconds: only the engine's thread does
it. Streams of MLX are bound to threads, so that thread is also the only one that may call anything here.
"""

from __future__ import annotations

import collections
import functools
import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx_lm.utils as mlx_utils
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models import cache as mlx_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers import PreTrainedTokenizerBase

from ollmlx.runner.mlx.sampling import Processor, Sampler
from ollmlx.runner.v1 import runner_pb2 as pb

# Cache classes whose prompts may be prefilled together though their lengths differ. The padding of a joint
# prefill reaches the state of recurrent layers (wrong text was measured for mamba, rwkv7 and nemotron_h), so
# others go one by one.
_PADDING_SAFE_CACHES = (mlx_cache.KVCache, mlx_cache.RotatingKVCache)

# Model types whose code is wrong for a batch although their caches can be joined: afm7's layers that reuse keys take
# their position from the length of the padded cache, the same for all rows.
_UNBATCHABLE_TYPES = frozenset({"afm7"})

# Most prompts that are prefilled together.
PREFILL_BATCH = 8
# Tokens of a prompt computed in one step, when nothing decodes and when something does: a decoding row waits
# for the whole chunk between two of its tokens.
PREFILL_CHUNK_IDLE = 2048
PREFILL_CHUNK_BUSY = 256

# Weights read between two looks at the progress callback, in bytes.
_LOAD_STEP_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory with its tokenizer and configuration (config.json, eos from
    generation_config.json)."""

    model: Any
    tokenizer: TokenizerWrapper
    config: dict[str, Any]


def select_device(wish: str) -> str:
    """Make the device of LoadRequest.device the default; returns "metal", "cuda" or "cpu".

    Raises ValueError when the wish cannot be met.
    """
    if wish == "cpu":
        mx.set_default_device(mx.cpu)
    elif wish == "gpu" and mx.default_device() != mx.gpu:
        raise ValueError("device gpu was asked for, but this build of MLX has no GPU backend")
    if mx.default_device() != mx.gpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def load_tokenizer(path: Path, config: dict[str, Any]) -> TokenizerWrapper:
    return mlx_utils.load_tokenizer(path, eos_token_ids=config.get("eos_token_id"))


def load_config(path: Path) -> dict[str, Any]:
    return mlx_utils.load_config(path)


def load_weights(path: Path, progress: Callable[[int, int], None]) -> Any:
    """Build the model and read its weights part by part.

    `progress(done, total)` is called in bytes after each part; what it raises abandons the load.
    """
    model, _ = mlx_utils.load_model(path, lazy=True, strict=True, trust_remote_code=False)
    arrays = [array for _, array in tree_flatten(model.parameters())]
    total = sum(a.nbytes for a in arrays)
    done, part, part_bytes = 0, [], 0
    progress(0, total)
    for array in arrays:
        part.append(array)
        part_bytes += array.nbytes
        if part_bytes < _LOAD_STEP_BYTES:
            continue
        mx.eval(part)
        done, part, part_bytes = done + part_bytes, [], 0
        progress(done, total)
    mx.eval(part)
    progress(total, total)
    model.eval()
    return model


def weight_bytes(model: Any) -> int:
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def parameter_count(model: Any) -> int:
    """Parameters of the model, packed quantized weights counted as what they stand for."""
    return int(mlx_utils.get_total_parameters(model))


def limit_wired_memory(model: Any) -> None:
    """Wire the weights and no more.

    mlx-lm wires the whole recommended working set; with KV caches that come and go this has panicked macOS
    kernels (mlx issue 3186). Weights are what every step reads, so they alone are kept resident.
    """
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if recommended:
        mx.set_wired_limit(min(weight_bytes(model), int(recommended)))


@dataclass(frozen=True)
class CacheTraits:
    """What a model and the classes of its cache allow."""

    # Rows can be joined into a batch.
    batches: bool
    # Prompts of different lengths may be prefilled together.
    padding_safe: bool
    # Bytes per token of one row; 0 when they are not proportional.
    bytes_per_token: int


def warm_up(loaded: LoadedModel) -> CacheTraits:
    """Compute one token, which compiles the first graph, and look at the cache it made."""
    caches = mlx_cache.make_prompt_cache(loaded.model)
    logits = loaded.model(mx.array([[0]]), cache=caches)
    mx.eval(logits, [c.state for c in caches])
    plain = list(_leaves(caches))
    kv = [c for c in plain if isinstance(c, mlx_cache.KVCache) and c.keys is not None]
    return CacheTraits(
        batches=(
            loaded.config.get("model_type") not in _UNBATCHABLE_TYPES
            and all(hasattr(c, "merge") for c in caches)
        ),
        padding_safe=all(type(c) in _PADDING_SAFE_CACHES for c in plain),
        bytes_per_token=sum((c.keys.nbytes + c.values.nbytes) // c.keys.shape[2] for c in kv),
    )


def _leaves(caches: list[Any]) -> Iterator[Any]:
    for cache in caches:
        if isinstance(cache, mlx_cache.CacheList):
            yield from _leaves(cache.caches)
        else:
            yield cache


@dataclass(frozen=True)
class Token:
    """One sampled token of one row."""

    uid: int
    id: int
    # Log probabilities over the vocabulary, shape (vocabulary,), of the engine's thread.
    logprobs: mx.array
    # None while the row goes on, "stop" on an end-of-sequence token, "length" at max_tokens.
    finish_reason: str | None


@dataclass(frozen=True)
class PrefillProgress:
    """One chunk of one prompt was computed, counted in tokens."""

    uid: int
    done: int
    total: int


def token_logprob(tokenizer: TokenizerWrapper, token: Token, top: int) -> pb.TokenLogprob:
    """The log probability of a token and of the `top` likeliest ones, likeliest first."""
    entry = _logprob_entry(tokenizer, token.id, token.logprobs[token.id].item())
    if top:
        ids = mx.argpartition(-token.logprobs, kth=top - 1)[:top]
        values = token.logprobs[ids]
        ranked = sorted(zip(values.tolist(), ids.tolist(), strict=True), reverse=True)
        entry.top.extend(_logprob_entry(tokenizer, i, value) for value, i in ranked)
    return entry


def _logprob_entry(tokenizer: TokenizerWrapper, token: int, logprob: float) -> pb.TokenLogprob:
    text = decoder(tokenizer)([token])
    return pb.TokenLogprob(id=token, text=text, bytes=_token_bytes(tokenizer, token, text), logprob=logprob)


def _token_bytes(tokenizer: TokenizerWrapper, token: int, text: str) -> bytes:
    """The bytes of a token that is not UTF-8 on its own, as its vocabulary entry spells them; empty for one
    that is."""
    if "\ufffd" not in text:
        return b""
    spelled = tokenizer.convert_ids_to_tokens(token)
    if spelled.startswith("<0x") and spelled.endswith(">"):
        return bytes([int(spelled[3:-1], 16)])
    table = _byte_of_character()
    if all(c in table for c in spelled):
        return bytes(table[c] for c in spelled)
    return text.encode()


@functools.lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """The characters by which byte-level BPE vocabularies spell bytes: printable ones are themselves, the
    rest follow 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def decoder(tokenizer: TokenizerWrapper) -> Callable[[Sequence[int]], str]:
    """Token ids to text, special tokens included.

    The Rust tokenizer is called directly where the Python class adds nothing: this runs twice for every
    token.
    """
    plain = tokenizer._tokenizer
    backend = getattr(plain, "backend_tokenizer", None)
    if backend is not None and type(plain).decode is PreTrainedTokenizerBase.decode:
        return functools.partial(backend.decode, skip_special_tokens=False)
    return functools.partial(plain.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)


class Batch(Protocol):
    """Rows that are generated together. A row joins by `insert` and leaves when it finishes or by `remove`.

    An exception out of `step` leaves the batch unusable; it must be dropped and its rows put into a new one.
    """

    def insert(
        self, tokens: list[int], max_tokens: int, sampler: Sampler, processors: list[Processor]
    ) -> int:
        """Add a row that continues `tokens` (at least one); returns its uid."""

    def remove(self, uid: int) -> None:
        """Take a row out, wherever it is."""

    def step(self, decoding: bool) -> tuple[list[PrefillProgress], list[Token]]:
        """Decode one token for each row that can, and compute one chunk of the waiting prompts.

        `decoding` says whether any row has given a token: prompts are computed in smaller chunks then.
        """

    def cache_bytes(self) -> int:
        """Bytes of the KV caches of all rows."""

    def close(self) -> None: ...


def make_batch(loaded: LoadedModel, traits: CacheTraits, max_rows: int) -> Batch:
    """The kind of batch that the model's cache allows."""
    return _ContinuousBatch(loaded, traits, max_rows) if traits.batches else _OneByOne(loaded)


class _ContinuousBatch:
    """Continuous batching over mlx-lm's BatchGenerator."""

    def __init__(self, loaded: LoadedModel, traits: CacheTraits, max_rows: int) -> None:
        self._generator = BatchGenerator(
            loaded.model,
            stop_tokens=[[t] for t in loaded.tokenizer.eos_token_ids],
            completion_batch_size=max_rows,
            prefill_batch_size=min(PREFILL_BATCH, max_rows) if traits.padding_safe else 1,
            prefill_step_size=PREFILL_CHUNK_IDLE,
        )
        # The constructor above wires the recommended maximum.
        limit_wired_memory(loaded.model)

    def insert(
        self, tokens: list[int], max_tokens: int, sampler: Sampler, processors: list[Processor]
    ) -> int:
        [uid] = self._generator.insert(
            [tokens], max_tokens=[max_tokens], samplers=[sampler], logits_processors=[processors]
        )
        return uid

    def remove(self, uid: int) -> None:
        self._generator.remove([uid])

    def step(self, decoding: bool) -> tuple[list[PrefillProgress], list[Token]]:
        self._generator.prefill_step_size = PREFILL_CHUNK_BUSY if decoding else PREFILL_CHUNK_IDLE
        prompts, tokens = self._generator.next()
        return (
            [PrefillProgress(p.uid, *p.progress) for p in prompts],
            [Token(t.uid, t.token, t.logprobs, t.finish_reason) for t in tokens],
        )

    def cache_bytes(self) -> int:
        return self._generator.prompt_cache_nbytes

    def close(self) -> None:
        self._generator.close()


class _OneByOne:
    """Rows one after another, for models whose caches cannot be joined (llama4, afm7)."""

    @dataclass
    class _Row:
        uid: int
        tokens: list[int]
        max_tokens: int
        sampler: Sampler
        processors: list[Processor]
        cache: list[Any]
        prefilled: int = 0
        generated: int = 0
        # Yields (token, log probabilities), once the prompt but for its last token has been computed.
        decoder: Iterator[tuple[Any, mx.array]] | None = None

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = loaded.model
        self._eos = loaded.tokenizer.eos_token_ids
        self._rows: collections.deque[_OneByOne._Row] = collections.deque()
        self._uids = itertools.count()
        limit_wired_memory(loaded.model)

    def insert(
        self, tokens: list[int], max_tokens: int, sampler: Sampler, processors: list[Processor]
    ) -> int:
        cache = mlx_cache.make_prompt_cache(self._model)
        row = self._Row(next(self._uids), tokens, max_tokens, sampler, processors, cache)
        self._rows.append(row)
        return row.uid

    def remove(self, uid: int) -> None:
        self._rows = collections.deque(r for r in self._rows if r.uid != uid)

    def step(self, decoding: bool) -> tuple[list[PrefillProgress], list[Token]]:
        if not self._rows:
            return [], []
        row = self._rows[0]
        if row.decoder is None:
            return [self._prefill(row)], []
        token, logprobs = next(row.decoder)
        row.generated += 1
        reason = None
        if token in self._eos:
            reason = "stop"
        elif row.generated >= row.max_tokens:
            reason = "length"
        if reason:
            self._rows.popleft()
        return [], [Token(row.uid, int(token), logprobs, reason)]

    def _prefill(self, row: _Row) -> PrefillProgress:
        end = min(row.prefilled + PREFILL_CHUNK_IDLE, len(row.tokens) - 1)
        if end > row.prefilled:
            self._model(mx.array([row.tokens[row.prefilled : end]]), cache=row.cache)
            mx.eval([c.state for c in row.cache])
            row.prefilled = end
        if row.prefilled == len(row.tokens) - 1:
            row.decoder = generate_step(
                mx.array(row.tokens[-1:]),
                self._model,
                max_tokens=row.max_tokens,
                sampler=row.sampler,
                logits_processors=[_with_history(p, row.tokens[:-1]) for p in row.processors],
                prompt_cache=row.cache,
            )
        return PrefillProgress(row.uid, row.prefilled, len(row.tokens))

    def cache_bytes(self) -> int:
        return sum(c.nbytes for row in self._rows for c in row.cache)

    def close(self) -> None:
        self._rows.clear()


def _with_history(processor: Processor, tokens: list[int]) -> Processor:
    """generate_step shows a processor only the tokens that it was given itself; this adds the ones before."""
    history = mx.array(tokens, dtype=mx.uint32)
    return lambda seen, logits: processor(mx.concatenate([history, seen.astype(mx.uint32)]), logits)


def memory() -> tuple[int, int, int]:
    """Bytes held by arrays now, at most so far, and in the allocator's pool."""
    return mx.get_active_memory(), mx.get_peak_memory(), mx.get_cache_memory()


def release_memory() -> None:
    """Give back what dropped objects held; without the collection the old arrays stay reachable."""
    gc.collect()
    mx.clear_cache()
