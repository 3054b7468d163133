"""A prompt with images, computed piece by piece."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ollmlx.runner.mlx.mlxvlm.model import is_positioned, plain_caches
from ollmlx.runner.mlx.mlxvlm.units import Units
from ollmlx.runner.mlx.vision.features import FeatureCache, Features

# What a processor calls its account of which token is text and which is of an image.
_TOKEN_TYPES = "mm_token_type_ids"
# What mlx-vlm calls what its tower gives for the first layers of the language model.
_LEVELS = "deepstack_visual_embeds"


class ImagePrompt:
    """A prompt with images on its way into a KV cache. Belongs to the engine's thread.

    `done` tokens are in `caches`; `shift` is what is added to the number of a later token to get its position.
    """

    def __init__(
        self,
        model: Any,
        tokens: list[int],
        units: Units,
        known: FeatureCache,
        adapter: str,
        caches: list[Any] | None,
        done: int,
    ) -> None:
        """`units` are of the images in `tokens`; those after the last image's are text. `adapter` is what the model
        wears, which may change what its tower computes."""
        self._model = model
        self.tokens = tokens
        self._ids = mx.array([tokens])
        self._units = units
        self._known = known
        self._keys = [f"{adapter} {key}" for key in units.keys]
        self.total = len(tokens)
        self.caches = plain_caches(model) if caches is None else caches
        self.done = done
        self._of_prompt = units.of_prompt()
        # Where the images' tokens are, and where among these each unit ends.
        self._places = np.flatnonzero(np.asarray(tokens) == units.image_token)[: sum(units.tokens)]
        self._ends = np.cumsum(units.tokens)
        # Of each unit; those whose tokens are done need none.
        self._features: list[Features | None] = [known.get(key) for key in self._keys]
        self._missing = [
            i for i, f in enumerate(self._features) if f is None and self._places[self._ends[i] - 1] >= done
        ]
        # What the vision tower made of the images, merged with the embeddings of the text.
        self._embeddings: mx.array | None = None
        self._fields: dict[str, Any] = {}

    def step(self, tokens: int) -> None:
        """Compute up to `tokens` more, but never the last; `look` comes first."""
        end = min(self.done + tokens, self.total - 1)
        fields = dict(self._fields)
        if _TOKEN_TYPES in fields:
            fields[_TOKEN_TYPES] = fields[_TOKEN_TYPES][:, :end]
        self._model.language_model(
            self._ids[:, self.done : end],
            inputs_embeds=self._embeddings[:, self.done : end],
            cache=self.caches,
            **fields,
        )
        mx.eval([c.state for c in self.caches])
        self.done = end

    @property
    def whole(self) -> bool:
        """Whether all up to the last image has to be computed at once, from the first token: the tokens of an image see
        each other, those that follow as well as those before."""
        policy = getattr(self._model.language_model, "chunked_prefill_policy", None)
        return policy is not None and not policy(prefill_kwargs=self._of_prompt)

    @property
    def shift(self) -> int:
        if not is_positioned(self._model):
            return 0
        grid = self._of_prompt.get("image_grid_thw")
        _, deltas = self._model.language_model.get_rope_index(self._ids, grid, None, _mask(self._ids))
        return int(deltas.item())

    @property
    def looked(self) -> bool:
        return self._embeddings is not None

    def look(self, tokens: int) -> None:
        """Compute the next images, of up to `tokens` tokens but one at least, and when all are known, put them into
        their places."""
        if self._missing:
            first = last = self._missing.pop(0)
            tokens -= self._units.tokens[first]
            while self._missing[:1] == [last + 1] and self._units.tokens[last + 1] <= tokens:
                last = self._missing.pop(0)
                tokens -= self._units.tokens[last]
            self._compute(first, last + 1)
        if not self._missing:
            self._place()

    def _compute(self, first: int, last: int) -> None:
        """Run the tower on some units, as if they were the whole prompt."""
        lengths = self._units.tokens[first:last]
        ids = mx.full((1, sum(lengths)), self._units.image_token, dtype=self._ids.dtype)
        made = self._model.get_input_embeddings(ids, mask=_mask(ids), **self._units.take(first, last))
        fields = made.to_dict()
        rows = [fields["inputs_embeds"][0], *(fields[_LEVELS] if fields[_LEVELS] is not None else ())]
        if any(r.shape[0] != sum(lengths) for r in rows):
            raise ValueError("the images do not fit the places for them")
        end = 0
        for index, length in zip(range(first, last), lengths, strict=True):
            begin, end = end, end + length
            # Copies: a part would keep all of them alive.
            features = Features([mx.contiguous(r[begin:end]) for r in rows])
            mx.eval(features.layers)
            self._features[index] = features
            self._known.put(self._keys[index], features)

    def _place(self) -> None:
        needed = [(i, f) for i, f in enumerate(self._features) if f is not None]
        if not needed:
            raise ValueError("the prompt has no images to compute")
        example = needed[0][1].layers
        # Everything but the features, for which there are zeros meanwhile.
        inputs = {**self._units.take(0, 1), **self._of_prompt}
        count = self.tokens.count(self._units.image_token)
        blank = mx.zeros((count, example[0].shape[-1]), dtype=example[0].dtype)
        if self._units.stacked:
            blank = blank[None]
        made = self._model.get_input_embeddings(
            self._ids, mask=_mask(self._ids), cached_image_features=blank, **inputs
        )
        fields = made.to_dict()
        embeddings = fields.pop("inputs_embeds")
        if embeddings.shape[1] != self.total:
            raise ValueError("the images do not fit the places for them")
        levels = [mx.zeros((count, level.shape[-1]), dtype=level.dtype) for level in example[1:]]
        for index, features in needed:
            end = int(self._ends[index])
            begin = end - self._units.tokens[index]
            embeddings[:, mx.array(self._places[begin:end])] = features.layers[0].astype(embeddings.dtype)
            for level, values in zip(levels, features.layers[1:], strict=True):
                level[begin:end] = values
        if levels:
            fields[_LEVELS] = levels
        mx.eval(embeddings, levels)
        self._embeddings = embeddings
        self._fields = {**self._of_prompt, **{n: value for n, value in fields.items() if value is not None}}
        self._features = []


def _mask(ids: mx.array) -> mx.array:
    return mx.ones(ids.shape, dtype=mx.int32)
