"""Benchmarks that print ratios measured in one run, each beside its goal.

Every module but the helpers answers one question and yields `Figure`s: `overhead` (what HTTP, host and gRPC
cost over the bare engine), `peers` (other servers of MLX models), `conversation` (what a second turn costs),
`fairness` (what a long prompt does to the others), `constrained` (what a grammar costs), `blas_gain` (what a
tuned BLAS gives). Rounds of what is compared alternate, and medians of ratios count, so that a machine that is
busy for a while harms all sides alike.
"""
