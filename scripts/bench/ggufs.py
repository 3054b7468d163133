"""GGUF files to measure with, and llama.cpp's own server beside ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.support import tiny_ggufs

from .servers import Peer, completion

# A llama of the size of Qwen3-0.6B without its vocabulary: what a step costs is real, the text is not.
LARGE = {"width": 1024, "feed_forward": 3072, "layers": 28, "heads": 16, "kv_heads": 8, "head": 64}


def make(path: Path, quantization: str = "Q4_0", **sizes: int) -> Path:
    """Write a llama with random weights and an endless answer."""
    s = {**LARGE, **sizes}
    random = np.random.default_rng(0)
    tokens, kinds = tiny_ggufs.byte_vocabulary()

    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.standard_normal((rows, columns), np.float32) / np.sqrt(columns)

    def tensors():
        output = matrix(len(tokens), s["width"])
        output[tiny_ggufs.PRINTABLE :] = 0
        yield "token_embd.weight", matrix(len(tokens), s["width"])
        yield "output_norm.weight", np.ones(s["width"], np.float32)
        yield "output.weight", output
        for i in range(s["layers"]):
            yield f"blk.{i}.attn_norm.weight", np.ones(s["width"], np.float32)
            yield f"blk.{i}.ffn_norm.weight", np.ones(s["width"], np.float32)
            yield f"blk.{i}.attn_q.weight", matrix(s["heads"] * s["head"], s["width"])
            yield f"blk.{i}.attn_k.weight", matrix(s["kv_heads"] * s["head"], s["width"])
            yield f"blk.{i}.attn_v.weight", matrix(s["kv_heads"] * s["head"], s["width"])
            yield f"blk.{i}.attn_output.weight", matrix(s["width"], s["heads"] * s["head"])
            yield f"blk.{i}.ffn_gate.weight", matrix(s["feed_forward"], s["width"])
            yield f"blk.{i}.ffn_up.weight", matrix(s["feed_forward"], s["width"])
            yield f"blk.{i}.ffn_down.weight", matrix(s["width"], s["feed_forward"])

    metadata = {
        "llama.block_count": s["layers"],
        "llama.context_length": 8192,
        "llama.embedding_length": s["width"],
        "llama.feed_forward_length": s["feed_forward"],
        "llama.attention.head_count": s["heads"],
        "llama.attention.head_count_kv": s["kv_heads"],
        "llama.attention.key_length": s["head"],
        "llama.attention.value_length": s["head"],
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": s["head"],
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [f"{tokens[0]} {tokens[1]}"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }
    return tiny_ggufs.write(path, "llama", metadata, tensors(), quantization)


class OwnServer(Peer):
    """llama.cpp's server as xllamacpp starts it, with the settings that our engine gives it."""

    def __init__(self, model: Path, slots: int, context: int, threads: int, log: Path) -> None:
        arguments = [
            "python",
            "-m",
            "scripts.bench.own_server",
            str(model),
            str(slots),
            str(context),
            str(threads),
        ]
        super().__init__(Path(sys.prefix), arguments, model, log)

    def completion(self, prompt: str, tokens: int):
        return completion(self.url, "model", prompt, tokens)

    @property
    def process(self) -> subprocess.Popen:
        return self._process
