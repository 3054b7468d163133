"""Embeddings: texts to vectors, with encoders of our own or with any decoder that mlx-lm knows.

The way of a call: `calls` (the front's event loop) has the texts tokenized on the preparer's thread and hands their
token ids to the `jobs` of the engine's thread, which computes one piece between two decode steps. `embedder` makes
what a piece is computed with: a backbone (`encoders`, `decoders`) gives hidden states, `pooling` makes vectors of them,
as the model's own files ask (`modules`).

`calls`, `jobs`, `modules` and this module import no MLX, so that any thread may import them.
"""
