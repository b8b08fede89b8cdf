"""Optimizers, schedules of learning rate and other numbers, and averages of weights."""

from ssl_jax.optim.leaves import KINDS, VECTORS, all_but, ema, kinds, leaf_path
from ssl_jax.optim.of_run import create
from ssl_jax.optim.parts import clip_leaves, clip_parts, freeze_first, scale_layers, start_after
from ssl_jax.optim.rules import OPTIMIZERS, adam, adamw, lamb, larc, lars, sgd
from ssl_jax.optim.schedules import Schedule, cosine, linear, multistep, warmup_cosine

__all__ = [
    "KINDS",
    "OPTIMIZERS",
    "VECTORS",
    "Schedule",
    "adam",
    "adamw",
    "all_but",
    "clip_leaves",
    "clip_parts",
    "cosine",
    "create",
    "ema",
    "freeze_first",
    "kinds",
    "lamb",
    "larc",
    "lars",
    "leaf_path",
    "linear",
    "multistep",
    "scale_layers",
    "sgd",
    "start_after",
    "warmup_cosine",
]
