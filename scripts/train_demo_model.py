#!/usr/bin/env python3
"""Train the demonstration model that comes with ollmlx.

The corpus is generated (see ``demo_corpus``), the tokenizer is trained on it, and a small
Qwen3-shaped transformer learns it with MLX. One seed on one machine gives one set of weights.

Two things make this fast enough for a CPU. A tuned BLAS, preloaded if the system has one,
takes over the matrix products. And the exponentials, which MLX's CPU backend computes one
number at a time, are replaced during training by a product of a few polynomials; the
exported model is an ordinary Qwen3 and is evaluated as such.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ollmlx import blas

DEFAULT_OUT = Path(__file__).parent.parent / "python_runner" / "ollmlx" / "models" / "demo"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
# Capitalised words, other words with their leading space, single digits, punctuation, line breaks,
# other white space. A capitalised word, mostly a name, is the same token after a space as after a
# quotation mark, which makes names easy to copy into JSON.
WORD_PATTERN = r"\p{Lu}\p{L}*| ?\p{Ll}\p{L}*|\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\n+|\s"
SHORT, LONG = 256, 512  # tokens per row; every fourth step sees long rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train the demonstration model of ollmlx on a generated corpus.",
        epilog="With the defaults this takes ten minutes or more on two CPU cores with OpenBLAS "
        "(Debian: libopenblas0-pthread). The chat template in --out is kept, not written.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=DEFAULT_OUT, help="directory that receives the model")
    add("--seed", type=int, default=7, help="seed of the corpus and of the initial weights")
    add("--steps", type=int, default=1700, help="optimizer steps of the first phase")
    add("--second-steps", type=int, default=700, help="optimizer steps of the second phase")
    add("--second-only", type=Path, metavar="DIR", help="run only the second phase, on DIR")
    add("--batch-tokens", type=int, default=2048, help="tokens per step")
    add("--learning-rate", type=float, default=0.02, help="peak rate of Muon; AdamW takes a fifth")
    add("--vocab", type=int, default=1408, help="tokens, added ones included")
    add("--hidden", type=int, default=160, help="width of the residual stream")
    add("--layers", type=int, default=4, help="transformer blocks")
    add("--streams", type=int, default=2, help="CPU streams that share each batch")
    add("--no-preload", action="store_true", help="do not look for a tuned BLAS")
    add("--evaluate-only", action="store_true", help="evaluate the model in --out")
    return parser.parse_args()


# --------------------------------------------------------------------------------------
# Speed


def preload_blas() -> None:
    """Start this script again with a tuned BLAS before MLX's own, if there is one.

    One thread per product: the streams already use the cores, and OpenBLAS threads that
    wait for each other spin.
    """
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    library = blas.find()
    if library is None:
        print("No tuned BLAS found; training with MLX's own, which is several times slower.")
        return
    blas.restart_with()
    print(f"Using {library} for matrix products.", flush=True)


def exponential(x):
    """Approximate ``exp(x)`` for x in [-40, 40] as the 64th power of a parabola.

    Six squarings are vector operations, unlike MLX's ``exp`` on a CPU. The relative error
    grows with the cube of x: 0.0005 at x = -2, and where it is large exp(x) itself is tiny.
    """
    import mlx.core as mx

    x = mx.clip(x, -40.0, 40.0) * (1 / 64)
    power = (x * 0.5 + 1) * x + 1
    for _ in range(6):
        power = power * power
    return power


def fast_functions():
    """Softmax, SwiGLU and log-sum-exp on ``exponential``, with their derivatives."""
    import mlx.core as mx

    @mx.custom_function
    def softmax(scores):
        weights = exponential(scores - scores.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)

    @softmax.vjp
    def _(scores, cotangent, weights):
        return weights * (cotangent - (cotangent * weights).sum(-1, keepdims=True))

    @mx.custom_function
    def swiglu(gate, x):
        return gate / (1 + exponential(-gate)) * x

    @swiglu.vjp
    def _(primals, cotangent, _output):
        gate, x = primals
        sigmoid = 1 / (1 + exponential(-gate))
        silu = gate * sigmoid
        return cotangent * x * (sigmoid + silu * (1 - sigmoid)), cotangent * silu

    @mx.custom_function
    def logsumexp(logits):
        top = logits.max(-1, keepdims=True)
        return top + mx.log(exponential(logits - top).sum(-1, keepdims=True))

    @logsumexp.vjp
    def _(logits, cotangent, output):
        return cotangent * exponential(logits - output)

    return softmax, swiglu, logsumexp


@contextmanager
def fast_qwen3():
    """Let mlx-lm's Qwen3 use the fast functions inside the block; yields log-sum-exp."""
    import mlx.core as mx
    from mlx_lm.models import qwen3

    softmax, swiglu, logsumexp = fast_functions()

    def attention(queries, keys, values, cache, scale, mask):
        """Causal attention; queries (B, H, T, D), keys and values (B, K, T, D)."""
        batch, heads, length, width = queries.shape
        shared = keys.shape[1]
        grouped = (queries * scale).reshape(batch, shared, -1, width)
        scores = (grouped @ keys.swapaxes(-1, -2)).reshape(batch, heads, length, length)
        positions = mx.arange(length)
        future = mx.where(positions[:, None] >= positions[None], 0.0, -1e4)
        weights = softmax(scores + future).reshape(batch, shared, -1, length)
        return (weights @ values).reshape(batch, heads, length, width)

    original = qwen3.scaled_dot_product_attention, qwen3.swiglu
    qwen3.scaled_dot_product_attention, qwen3.swiglu = attention, swiglu
    try:
        yield logsumexp
    finally:
        qwen3.scaled_dot_product_attention, qwen3.swiglu = original


# --------------------------------------------------------------------------------------
# Data


def train_tokenizer(vocab: int, seed: int):
    """Train a byte-level BPE of ``vocab`` tokens on a sample of the corpus."""
    from demo_corpus import training_texts
    from demo_corpus.skills import CITIES
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(SPECIAL) - len(MARKERS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rows = itertools.islice(training_texts(seed + 1, 1500), 4000)
    sample = []
    for row in rows:
        text = "".join(segment.text for segment in row)
        for marker in SPECIAL + MARKERS:
            text = text.replace(marker, "\n")
        sample.append(text)
    # Cities are arguments of functions, and a word of one token is easier to copy than its parts.
    sample += [" ".join(CITIES)] * 2000
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in MARKERS])
    return tokenizer


def encode_row(tokenizer, row, length: int) -> tuple[list[int], list[float]]:
    """Token ids and loss weights of the first ``length`` tokens of a row."""
    ids: list[int] = []
    weights: list[float] = []
    encoded = tokenizer.encode_batch_fast([segment.text for segment in row])
    for segment, encoding in zip(row, encoded, strict=True):
        ids += encoding.ids
        # Long texts are easy to learn by heart; what to answer shows in the first tokens.
        # So a token of a long answer weighs less than one of a short answer.
        weight = min(1.0, 12 / max(len(encoding.ids), 1)) ** 0.5 if segment.learn else 0.0
        learned = [weight] * len(encoding.ids)
        learned[: segment.skip] = [0.0] * segment.skip
        weights += learned
    return ids[:length], weights[:length]


@dataclass(frozen=True)
class Phase:
    """A part of training: all that is asked at a high rate, then attention to details at a low one."""

    name: str
    steps: int
    rate: float
    seed: int
    attentive: bool


def batches(tokenizer, phase: Phase, batch_tokens: int) -> Iterator[tuple]:
    """The batches of a phase: inputs, targets (int32, B x T) and weights (float32, sum 1)."""
    import random

    import numpy as np
    from demo_corpus import training_row

    rng = random.Random(phase.seed)
    for step in range(phase.steps):
        if phase.attentive:  # the declaration of functions alone fills half of a short row
            length = LONG if step % 2 else SHORT
            copying = 0.0
        else:  # copying lessons stand mostly in the first eighth
            length = LONG if step % 4 == 3 else SHORT
            copying = max(0.02, 0.5 - 4 * step / phase.steps)
        rows = []
        while len(rows) < batch_tokens // length:
            row = training_row(rng, length * 5, copying, phase.attentive)
            ids, weights = encode_row(tokenizer, row, length + 1)
            if len(ids) == length + 1:
                rows.append((ids, weights))
        ids = np.array([row[0] for row in rows], dtype=np.int32)
        weights = np.array([row[1] for row in rows], dtype=np.float32)[:, 1:]
        yield ids[:, :-1], ids[:, 1:], weights / max(weights.sum(), 1.0)


# --------------------------------------------------------------------------------------
# Model


def model_config(arguments: argparse.Namespace, tokenizer) -> dict:
    """The config.json of the model, as Hugging Face and mlx-lm read it."""
    end, stop = (tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|im_end|>"))
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": end,
        "eos_token_id": [stop, end],
        "pad_token_id": end,
        "dtype": "float32",
        "torch_dtype": "float32",
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": arguments.hidden,
        "initializer_range": 0.02,
        "intermediate_size": arguments.hidden * 14 // 5,
        "max_position_embeddings": 4096,
        "num_attention_heads": 4,
        "num_hidden_layers": arguments.layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": tokenizer.get_vocab_size(),
    }


def build_model(config: dict, seed: int):
    """A freshly initialised Qwen3 with small embeddings and calm residual branches."""
    import mlx.core as mx
    from mlx.utils import tree_map_with_path
    from mlx_lm.models import qwen3

    mx.random.seed(seed)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
    depth = (2 * config["num_hidden_layers"]) ** -0.5

    def initial(path: str, parameter):
        if "norm" in path:
            return mx.ones_like(parameter)
        spread = 0.02 if "embed" in path else parameter.shape[-1] ** -0.5 * 0.6
        if "o_proj" in path or "down_proj" in path:
            spread *= depth
        return mx.random.normal(parameter.shape) * spread

    model.update(tree_map_with_path(initial, model.parameters()))
    mx.eval(model.parameters())
    return model


def training_step(model, optimizer, streams: int, logsumexp):
    """A compiled function (inputs, targets, weights) -> loss that updates the model."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.optimizers import clip_grad_norm
    from mlx.utils import tree_map

    def loss(model, inputs, targets, weights):
        logits = model(inputs)
        chosen = mx.take_along_axis(logits, targets[..., None], -1)
        return ((logsumexp(logits) - chosen)[..., 0] * weights).sum()

    value_and_grad = nn.value_and_grad(model, loss)
    lanes = [mx.new_stream(mx.cpu) for _ in range(streams)]

    def step(inputs, targets, weights):
        share = inputs.shape[0] // streams
        parts = []
        for index, lane in enumerate(lanes):
            rows = slice(index * share, (index + 1) * share)
            with mx.stream(lane):
                parts.append(value_and_grad(model, inputs[rows], targets[rows], weights[rows]))
        total = sum(part[0] for part in parts)
        gradients = tree_map(lambda *grads: sum(grads), *(part[1] for part in parts))
        gradients, _ = clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        return total

    state = [model.state, optimizer.state]
    return mx.compile(step, inputs=state, outputs=state), state


def train(model, tokenizer, phase: Phase, arguments: argparse.Namespace) -> dict:
    """Run the optimizer for one phase and print progress; returns what was measured."""
    import mlx.core as mx
    import mlx.optimizers as optim

    def schedule(peak: float):
        """Linear warm-up, then linear decay to almost nothing."""
        warmup = min(60, phase.steps // 5)
        rise = optim.linear_schedule(0.0, peak, warmup)
        fall = optim.linear_schedule(peak, peak / 100, phase.steps - warmup)
        return optim.join_schedules([rise, fall], [warmup])

    # Muon for the matrices of the blocks reaches a given loss in about half the steps.
    matrices = optim.Muon(schedule(phase.rate), weight_decay=0.0)
    others = optim.AdamW(
        schedule(phase.rate / 5),
        betas=[0.9, 0.98],
        weight_decay=0.0,
        bias_correction=True,
    )
    optimizer = optim.MultiOptimizer(
        [matrices, others], [lambda path, value: value.ndim == 2 and "embed" not in path]
    )
    optimizer.init(model.trainable_parameters())
    recent: list[float] = []
    started = time.perf_counter()
    with fast_qwen3() as logsumexp:
        step, state = training_step(model, optimizer, arguments.streams, logsumexp)
        for number, batch in enumerate(batches(tokenizer, phase, arguments.batch_tokens), start=1):
            inputs, targets, weights = (mx.array(part) for part in batch)
            value = step(inputs, targets, weights)
            mx.eval(value, state)
            recent = [*recent[-49:], value.item()]
            if number % 50 == 0 or number == phase.steps:
                seconds = time.perf_counter() - started
                print(
                    f"{phase.name}  step {number:5d}/{phase.steps}  loss {sum(recent) / len(recent):6.3f}  "
                    f"{number * arguments.batch_tokens / seconds:6.0f} tokens/s  "
                    f"ETA {seconds / number * (phase.steps - number):5.0f} s",
                    flush=True,
                )
    seconds = time.perf_counter() - started
    return {"loss": sum(recent) / len(recent), "seconds": seconds}


# --------------------------------------------------------------------------------------
# Export


def export(model, tokenizer, config: dict, out: Path) -> None:
    """Write the files of a Hugging Face model directory, except its chat template."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    out.mkdir(parents=True, exist_ok=True)
    if not (out / "chat_template.jinja").exists():
        (out / "chat_template.jinja").write_text((DEFAULT_OUT / "chat_template.jinja").read_text())
    mx.save_safetensors(
        str(out / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"}
    )
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": config["max_position_embeddings"],
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token in SPECIAL,
            }
            for token in SPECIAL + MARKERS
        },
    }
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    generation |= {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
    for name, value in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation),
    ):
        (out / name).write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    arguments = parse_arguments()
    if not arguments.no_preload:
        preload_blas()
    from demo_corpus.evaluation import evaluate

    if not arguments.evaluate_only:
        started = time.perf_counter()
        tokenizer = train_tokenizer(arguments.vocab, arguments.seed)
        config = model_config(arguments, tokenizer)
        model = build_model(config, arguments.seed)
        from mlx.utils import tree_flatten

        size = sum(value.size for _, value in tree_flatten(model.parameters()))
        print(f"{size:,} parameters, {tokenizer.get_vocab_size()} tokens", flush=True)
        rate, seed = arguments.learning_rate, arguments.seed
        phases = [
            Phase("everything", arguments.steps, rate, seed, False),
            Phase("attention", arguments.second_steps, rate * 0.4, seed + 100, True),
        ]
        if arguments.second_only:
            model.load_weights(str(arguments.second_only / "model.safetensors"))
            phases = phases[1:]
        measured = [train(model, tokenizer, phase, arguments) for phase in phases]
        export(model, tokenizer, config, arguments.out)
        print(
            f"Trained in {sum(part['seconds'] for part in measured):.0f} s (with preparation and export "
            f"{time.perf_counter() - started:.0f} s), final loss {measured[-1]['loss']:.3f}"
        )
    evaluate(arguments.out)


if __name__ == "__main__":
    main()
