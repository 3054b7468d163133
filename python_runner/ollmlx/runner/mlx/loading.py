"""Loading a model step by step, with progress, on the engine's thread."""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ollmlx.runner.engine import Progress
from ollmlx.runner.errors import RunnerError, cancelled, invalid, unsupported
from ollmlx.runner.mlx import infill
from ollmlx.runner.mlx.chat_format import find_format
from ollmlx.runner.mlx.embedding.modules import is_embedding_model
from ollmlx.runner.mlx.vision import support
from ollmlx.runner.mlx.vision.support import INSTALL
from ollmlx.runner.v1 import runner_pb2 as pb

if TYPE_CHECKING:
    from ollmlx.runner.mlx import mlxlm as mlxlm_module
    from ollmlx.runner.mlx.embedding.embedder import Embedder

log = logging.getLogger(__name__)

# Where configurations write the longest context, most specific first; some nest them in text_config.
_CONTEXT_LENGTH_KEYS = (
    "max_position_embeddings",
    "max_seq_len",
    "max_sequence_length",
    "n_positions",
    "seq_length",
)
# Share of the free memory that weights may take when a CPU has them made float32.
_WIDE_WEIGHTS_SHARE = 1 / 2
# For configurations that say nothing: state-space models mostly, which have no limit of their own.
_DEFAULT_CONTEXT_LENGTH = 32768


def load_model(
    mlxlm: mlxlm_module, request: pb.LoadRequest, progress: Progress, abandoned: threading.Event
) -> tuple[mlxlm_module.LoadedModel, mlxlm_module.CacheTraits | None, Embedder, pb.ModelInfo]:
    """Read tokenizer and weights and compute a first token. A model that was made for embeddings has no cache traits:
    it gives no text.

    Raises RunnerError: INVALID_ARGUMENT for files that cannot be used, UNIMPLEMENTED for wishes that cannot
    be met, CANCELLED when `abandoned` was set meanwhile.
    """
    _refuse_unsupported(request)
    path = Path(request.model_path)
    name = request.model_name or "the model"
    if not (path / "config.json").is_file():
        raise invalid(f"{name} has no config.json: its files are not a model in Hugging Face layout")

    def advance(stage: pb.LoadProgress.Stage, done: int = 0, total: int = 0) -> None:
        if abandoned.is_set():
            raise cancelled("the load was canceled")
        progress(pb.LoadProgress(stage=stage, bytes_done=done, bytes_total=total))

    from ollmlx.runner.mlx.embedding.embedder import load_backbone, make_embedder

    blindness = ""
    try:
        device = mlxlm.select_device(request.device)
        advance(pb.LoadProgress.STAGE_TOKENIZER)
        config = mlxlm.load_config(path)
        tokenizer = mlxlm.load_tokenizer(path, config)
        reading = functools.partial(advance, pb.LoadProgress.STAGE_WEIGHTS)
        model, processor, blindness = _load_seeing(request.model_name, path, config, reading)
        if model is None:
            model = load_backbone(path, config, reading)
        if device == "cpu":
            mlxlm.prepare_weights(model, _wide_weights(mlxlm, model, request))
        if processor is not None and not tokenizer.has_chat_template and processor.chat_template:
            # Where old models keep it: chat_template.json.
            tokenizer.chat_template = processor.chat_template
            tokenizer.has_chat_template = True
        loaded = mlxlm.LoadedModel(model, tokenizer, config, processor, blindness)
        embedder = make_embedder(loaded, path)
        advance(pb.LoadProgress.STAGE_WARMUP)
        if is_embedding_model(path, config):
            traits = None
            embedder.warm_up()
        else:
            traits = mlxlm.warm_up(loaded)
    except RunnerError:
        raise
    except Exception as err:
        if blindness and INSTALL in blindness:
            raise unsupported(blindness) from err
        # Whatever a library says about unusable files, the user needs it with the model's name.
        log.exception("load failed")
        raise invalid(f"{name} cannot be loaded: {_one_line(err)}") from err
    info = _model_info(mlxlm, loaded, traits, embedder, device, request.num_ctx)
    return loaded, traits, embedder, info


def _wide_weights(mlxlm: mlxlm_module, model: Any, request: pb.LoadRequest) -> bool:
    if request.HasField("wide_weights"):
        return request.wide_weights
    return mlxlm.wide_bytes(model) <= psutil.virtual_memory().available * _WIDE_WEIGHTS_SHARE


def _load_seeing(
    name: str, path: Path, config: dict[str, Any], progress: Callable[[int, int], None]
) -> tuple[Any | None, Any | None, str]:
    """The model and its processor, if it can be shown images; else what to tell those who try."""
    name = f'"{name}"' if name else "this model"
    if is_embedding_model(path, config) or not support.sees(path, config):
        return None, None, f"{name} does not support vision: it cannot be shown images"
    obstacle = support.obstacle(name, config)
    if obstacle is not None:
        log.warning("the model is loaded without its vision: %s", obstacle)
        return None, None, obstacle
    from ollmlx.runner.mlx import mlxvlm

    try:
        processor = mlxvlm.load_processor(path, config)
        return mlxvlm.load_model(path, config, progress), processor, ""
    except RunnerError:
        raise
    except Exception as err:
        # Its text may be of use still.
        log.exception("the model is loaded without its vision")
        return None, None, f"{name} cannot be shown images: {_one_line(err)}"


def _refuse_unsupported(request: pb.LoadRequest) -> None:
    if request.draft_model_path:
        raise unsupported("draft models are not supported by the mlx engine yet")
    if request.projector_path:
        raise unsupported("projectors are not supported by the mlx engine")
    if request.cache_dir and not (request.cache_bytes and request.model_digest):
        raise invalid("cache_dir needs cache_bytes and model_digest")
    if request.kv_cache_type not in ("", "f16"):
        raise unsupported(
            f"KV cache type {request.kv_cache_type!r} is not supported by the mlx engine, use f16"
        )


def _model_info(
    mlxlm: mlxlm_module,
    loaded: mlxlm_module.LoadedModel,
    traits: mlxlm_module.CacheTraits | None,
    embedder: Embedder,
    device: str,
    num_ctx: int,
) -> pb.ModelInfo:
    longest = max_context_length(loaded.config)
    if traits is None and embedder.max_tokens is not None:
        longest = min(longest, embedder.max_tokens)
    fmt = find_format(loaded.tokenizer)
    capabilities = ["completion" if traits else "embedding" if embedder.rerank is None else "rerank"]
    if traits and fmt.calls_tools:
        capabilities.append("tools")
    if traits and infill.find_form(loaded.tokenizer):
        capabilities.append("insert")
    if traits and loaded.processor is not None:
        capabilities.append("vision")
    if traits and fmt.thinks:
        capabilities.append("thinking")
    return pb.ModelInfo(
        architecture=str(loaded.config.get("model_type", "")),
        max_context_length=longest,
        context_length=min(num_ctx or longest, longest),
        vocab_size=vocab_size(loaded),
        parameter_count=mlxlm.parameter_count(loaded.model),
        weight_bytes=mlxlm.weight_bytes(loaded.model),
        kv_bytes_per_token=traits.bytes_per_token if traits else 0,
        capabilities=capabilities,
        device=device,
        batches=traits.batches if traits else True,
    )


def max_context_length(config: dict[str, Any]) -> int:
    """Longest context of a configuration, in tokens."""
    for part in (config, config.get("text_config") or {}):
        for key in _CONTEXT_LENGTH_KEYS:
            if isinstance(part.get(key), int) and part[key] > 0:
                return part[key]
    return _DEFAULT_CONTEXT_LENGTH


def vocab_size(loaded: mlxlm_module.LoadedModel) -> int:
    """Number of logits: the configuration's count, which may be padded beyond the tokenizer's."""
    config = loaded.config
    size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return int(size or len(loaded.tokenizer))


def _one_line(err: Exception) -> str:
    text = str(err).strip() or type(err).__name__
    if isinstance(err, json.JSONDecodeError):
        text = f"invalid JSON: {text}"
    return " ".join(text.split())
