"""What a model's files say about how its embeddings or scores are made: the files of the sentence-transformers layout.

modules.json lists stages: a Transformer, a Pooling, and possibly Dense and Normalize after it. Files of models are
data from elsewhere: what they ask for is honoured or refused by name.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollmlx.runner.errors import invalid, unsupported

MODULES_FILE = "modules.json"
POOLING_FILE = "1_Pooling/config.json"

# Encoders: model_type, and the module of this package that computes it.
ENCODERS = {
    "bert": "postnorm",
    "camembert": "postnorm",
    "distilbert": "postnorm",
    "modernbert": "modernbert",
    "mpnet": "postnorm",
    "nomic_bert": "postnorm",
    "roberta": "postnorm",
    "xlm-roberta": "postnorm",
}

# Pooling modes by their keys in a Pooling's configuration; several are joined in this order.
POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLING_MODES = tuple(POOLING_KEYS.values())

# Activations of Dense stages, by the last part of their class names.
DENSE_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")

# Files of configuration are small.
_MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class Dense:
    """A linear layer over the pooled vector, its weights in `directory`."""

    directory: Path
    bias: bool
    activation: str


@dataclass(frozen=True)
class Normalize:
    """Scales the vector to unit length, whatever the request says."""


@dataclass(frozen=True)
class Modules:
    """How vectors are made of hidden states."""

    # Of POOLING_MODES; the vectors of several are joined.
    pooling: tuple[str, ...]
    # Stages after the pooling, in order.
    stages: tuple[Dense | Normalize, ...] = ()
    # Longest input in tokens that the files ask for, special tokens included; None: the model's own limit.
    max_tokens: int | None = None
    # Inputs are made lower case before they are tokenized.
    lower_case: bool = False


@dataclass(frozen=True)
class LogitScore:
    """A score from the logits of the next token: of the one that means relevant, less that of the other."""

    true_token: int
    false_token: int | None


@dataclass(frozen=True)
class Rerank:
    """How a model scores pairs of a query and a document."""

    # None: with a classifier of one label.
    logits: LogitScore | None
    # Longest pair in tokens that the files ask for; None: the model's own limit.
    max_tokens: int | None
    # What the chat template is given besides the messages.
    template_options: dict[str, Any]


def read_rerank(path: Path, config: dict[str, Any]) -> Rerank | None:
    """How the model in `path` reranks; None for one that was not made for it."""
    logits = _read_logit_score(path)
    if logits is None and not _classifies_one_label(config):
        return None
    bert = _read_object(path, "sentence_bert_config.json")
    options = (bert.get("processing_kwargs") or {}).get("chat_template") or {}
    simple = {k: v for k, v in options.items() if isinstance(v, (bool, int, float, str))}
    limit = bert.get("max_seq_length")
    return Rerank(logits, limit if isinstance(limit, int) and limit > 0 else None, simple)


def _classifies_one_label(config: dict[str, Any]) -> bool:
    made_for = [str(a) for a in config.get("architectures") or ()]
    labels = config.get("num_labels") or len(config.get("id2label") or ())
    return (
        config.get("model_type") in ENCODERS
        and any(a.endswith("ForSequenceClassification") for a in made_for)
        and labels == 1
    )


def _read_logit_score(path: Path) -> LogitScore | None:
    if not (path / MODULES_FILE).is_file():
        return None
    for module in _read_list(path, MODULES_FILE):
        if str(module.get("type", "")).rpartition(".")[2] != "LogitScore":
            continue
        file = posixpath.join(_directory(str(module.get("path", ""))), "config.json")
        c = _read_object(path, file, required=True)
        true, false = c.get("true_token_id"), c.get("false_token_id")
        if not isinstance(true, int) or not (false is None or isinstance(false, int)):
            raise invalid(f"{file}: true_token_id must be a number, and false_token_id one or null")
        return LogitScore(true, false)
    return None


def is_embedding_model(path: Path, config: dict[str, Any]) -> bool:
    """Whether the model's files say that it was made for embeddings, and so not for text."""
    return (
        config.get("model_type") in ENCODERS
        or (path / MODULES_FILE).is_file()
        or (path / POOLING_FILE).is_file()
    )


def read_modules(path: Path, default_pooling: str) -> Modules:
    """The stages of the model in `path`; `default_pooling` where its files say nothing."""
    bert = _read_object(path, "sentence_bert_config.json")
    limit = bert.get("max_seq_length")
    if limit is not None and (not isinstance(limit, int) or limit <= 0):
        raise invalid(f"sentence_bert_config.json: max_seq_length must be a positive number, got {limit!r}")
    pooling, stages = _read_stages(path)
    return Modules(
        pooling=pooling or (default_pooling,),
        stages=stages,
        max_tokens=limit,
        lower_case=bool(bert.get("do_lower_case")),
    )


def _read_stages(path: Path) -> tuple[tuple[str, ...], tuple[Dense | Normalize, ...]]:
    if not (path / MODULES_FILE).is_file():
        return (_read_pooling(path, POOLING_FILE) if (path / POOLING_FILE).is_file() else ()), ()
    pooling: tuple[str, ...] = ()
    stages: list[Dense | Normalize] = []
    for module in _read_list(path, MODULES_FILE):
        # "sentence_transformers.models.Pooling", or the same class under a module of another name.
        kind = str(module.get("type", "")).rpartition(".")[2]
        directory = _directory(str(module.get("path", "")))
        if kind == "Transformer" and not directory:
            continue
        elif kind == "Pooling":
            pooling = _read_pooling(path, posixpath.join(directory, "config.json"))
        elif kind == "Dense":
            stages.append(_read_dense(path, directory))
        elif kind == "Normalize":
            stages.append(Normalize())
        elif kind != "Dropout":
            where = f" in {directory}" if directory else ""
            raise unsupported(
                f"this model's {MODULES_FILE} asks for the module {kind!r}{where}, which is not supported; "
                "supported are Transformer (in the model's own directory), Pooling, Dense and Normalize"
            )
    return pooling, tuple(stages)


def _directory(path: str) -> str:
    clean = posixpath.normpath(path) if path else ""
    if clean.startswith(("/", "..")):
        raise invalid(f"{MODULES_FILE} names the directory {path!r}, which is not within the model")
    return "" if clean == "." else clean


def _read_pooling(path: Path, file: str) -> tuple[str, ...]:
    config = _read_object(path, file, required=True)
    named = config.get("pooling_mode")
    if named:
        modes = (named,) if isinstance(named, str) else tuple(named)
        modes = tuple("mean_sqrt_len_tokens" if m == "mean_sqrt_len" else m for m in modes)
        wrong = [m for m in modes if m not in POOLING_MODES]
    else:
        asked = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
        wrong = [key for key in asked if key not in POOLING_KEYS]
        modes = tuple(mode for key, mode in POOLING_KEYS.items() if key in asked)
    if wrong:
        raise unsupported(f"{file} asks for the pooling {wrong[0]!r}, which is not supported")
    return modes


def _read_dense(path: Path, directory: str) -> Dense:
    config = _read_object(path, posixpath.join(directory, "config.json"), required=True)
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in DENSE_ACTIVATIONS:
        raise unsupported(f"{directory} asks for the activation {activation!r}, which is not supported")
    if not (path / directory / "model.safetensors").is_file():
        raise invalid(
            f"{directory}/model.safetensors is missing: weights are read from safetensors only, "
            "save the model with a current sentence-transformers"
        )
    return Dense(path / directory, bool(config.get("bias", True)), activation)


def _read_object(path: Path, file: str, required: bool = False) -> dict[str, Any]:
    if not required and not (path / file).is_file():
        return {}
    value = _read_json(path, file)
    if not isinstance(value, dict):
        raise invalid(f"{file} is not a JSON object")
    return value


def _read_list(path: Path, file: str) -> list[dict[str, Any]]:
    listed = _read_json(path, file)
    if not isinstance(listed, list) or not all(isinstance(m, dict) for m in listed):
        raise invalid(f"{file} is not a list of modules")
    return listed


def _read_json(path: Path, file: str) -> Any:
    try:
        with (path / file).open("rb") as stream:
            text = stream.read(_MAX_CONFIG_BYTES + 1)
        if len(text) > _MAX_CONFIG_BYTES:
            raise invalid(f"{file} is larger than {_MAX_CONFIG_BYTES} bytes")
        return json.loads(text)
    except OSError as err:
        raise invalid(f"{file} cannot be read: {err.strerror}") from err
    except (ValueError, RecursionError) as err:
        raise invalid(f"{file} is not valid JSON: {err}") from err
