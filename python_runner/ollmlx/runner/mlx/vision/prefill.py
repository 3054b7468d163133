"""Prompts with images on their way into the batch.

A batch takes token ids, and an image is none: so the prompt of such a row is computed by itself, chunk by chunk between
two steps of the batch, and the row joins with its cache filled, to be decoded together with all others.
"""

from __future__ import annotations

import collections
import copy
import functools
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ollmlx.runner.errors import RunnerError, invalid
from ollmlx.runner.mlx import mlxlm
from ollmlx.runner.mlx.prefix_cache import Prefix
from ollmlx.runner.mlx.vision.features import FeatureCache

if TYPE_CHECKING:
    from ollmlx.runner.mlx.mlxvlm import ImagePrompt
    from ollmlx.runner.mlx.request import Request

log = logging.getLogger(__name__)

# Tokens of images that the tower computes in one go when nothing decodes. Beside rows that decode it is one image.
_IMAGES_AT_ONCE = 1024
# Tokens computed in one chunk beside rows that decode: at first, and at least.
_FIRST_CHUNK = 64
_LEAST_CHUNK = 16


@dataclass
class Progress:
    """What one step has made of a prompt."""

    request: Request
    done: int
    total: int
    # Caches that others may begin with.
    kept: list[Prefix] = field(default_factory=list)
    # Of a prompt that is complete but for its last token: its cache, and what its row's position_shift is.
    ready: Prefix | None = None
    shift: int = 0
    error: RunnerError | None = None


@dataclass
class _Job:
    request: Request
    prompt: ImagePrompt
    # Where caches are kept, ascending.
    boundaries: list[int]


class _Pace:
    """Sizes chunks beside rows that decode: one takes about as long as the decode step between two of them."""

    def __init__(self) -> None:
        self._chunk = _FIRST_CHUNK
        self._ended: float | None = None

    def chunk(self, decoding: bool) -> int:
        """Tokens to compute now; to be followed by `computed`."""
        now = time.monotonic()
        self._between = now - self._ended if decoding and self._ended is not None else None
        self._began = now
        return self._chunk if decoding else mlxlm.PREFILL_CHUNK_IDLE

    def computed(self, tokens: int) -> None:
        self._ended = time.monotonic()
        if self._between is None or tokens <= 0:
            return
        fitting = tokens * self._between / max(self._ended - self._began, 1e-6)
        self._chunk = int(min(max(fitting, _LEAST_CHUNK), 2 * self._chunk, mlxlm.PREFILL_CHUNK_IDLE))


class ImagePrefills:
    """The prompts with images that are being computed, one after another. Belongs to the engine's thread."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._jobs: collections.deque[_Job] = collections.deque()
        self._pace = _Pace()
        self._features = FeatureCache()

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def requests(self) -> list[Request]:
        return [job.request for job in self._jobs]

    def start(self, request: Request, prefix: Prefix | None) -> int:
        """Begin with a request's tokens, the first of which may be computed; returns how many need no computing."""
        from ollmlx.runner.mlx.mlxvlm import ImagePrompt

        done = len(prefix.tokens) if prefix else 0
        # The caches that were found are others' too, and these are written to.
        caches = copy.deepcopy(prefix.caches) if prefix else None
        images = request.prompt.images
        adapter = request.proto.adapter.name
        make = functools.partial(
            ImagePrompt, self._model, request.tokens, images.units, self._features, adapter
        )
        prompt = make(caches, done)
        boundaries = [b for b in request.prompt.boundaries if done < b < prompt.total - 1]
        if prompt.whole and done < images.end:
            prompt = make(None, 0)
            boundaries = [b for b in boundaries if b >= images.end]
        self._jobs.append(_Job(request, prompt, boundaries))
        return prompt.done

    def forget_features(self) -> None:
        """Give back the memory of what is kept of images."""
        self._features.clear()

    def remove(self, request: Request) -> Prefix | None:
        """Take a request out; returns its cache, if it can be used again."""
        for job in self._jobs:
            if job.request is request:
                self._jobs.remove(job)
                return _prefix(job) if job.prompt.done else None
        return None

    def step(self, decoding: bool) -> Progress:
        """Compute one chunk of the oldest prompt; one that fails takes nobody with it."""
        job = self._jobs[0]
        try:
            done = job.prompt.done
            progress = self._advance(job, self._pace.chunk(decoding), 0 if decoding else _IMAGES_AT_ONCE)
            self._pace.computed(progress.done - done)
        except Exception as err:
            log.exception("a prompt with images failed", extra={"trace_id": job.request.proto.trace_id})
            text = " ".join(str(err).split())
            error = invalid(f"the model cannot take these images: {text}")
            progress = Progress(job.request, job.prompt.done, job.prompt.total, error=error)
        if progress.error is not None or progress.ready is not None:
            self._jobs.popleft()
        return progress

    def _advance(self, job: _Job, chunk: int, images: int) -> Progress:
        prompt = job.prompt
        # Only text is left: the batch computes it as that of any other row.
        ready = prompt.done >= min(job.request.prompt.images.end, prompt.total - 1)
        progress = Progress(job.request, prompt.done, prompt.total)
        if not ready and not prompt.looked:
            prompt.look(images)
        elif not ready:
            if prompt.whole:
                chunk = job.request.prompt.images.end
            elif job.boundaries:
                chunk = min(chunk, job.boundaries[0] - prompt.done)
            prompt.step(chunk)
            progress.done = prompt.done
            if job.boundaries and prompt.done == job.boundaries[0]:
                job.boundaries.pop(0)
                progress.kept.append(Prefix(prompt.tokens[: prompt.done], copy.deepcopy(prompt.caches)))
            ready = prompt.done >= min(job.request.prompt.images.end, prompt.total - 1)
        if ready:
            progress.ready, progress.shift = _prefix(job), prompt.shift
        return progress


def _prefix(job: _Job) -> Prefix:
    mlxlm.settle(job.prompt.caches)
    return Prefix(job.prompt.tokens[: job.prompt.done], job.prompt.caches)
