"""The methods, and what one is.

A method is a frozen dataclass. Its first fields are `backbone` (a Linen module) and `run` (a `Run`: batch size, steps,
...); the others are the keys of `config.method`, with the paper's values as defaults. It has

    views            names of the augmentations (keys of `config.augment`) of the views it wants, in order
    chance_level     the loss where all embeddings are equal: of a network that has learnt nothing or has collapsed;
                     None where there is no such number
    init(rng, images [batch, height, width, channels]) -> (params, state)
    loss(params, state, batch, rng, *, axis_name=None) -> (loss, (state, metrics))
                     batch["views"]: a tuple of float32 [batch, height, width, channels], as `views` orders them;
                     batch["boxes"]: where each of them lies in its image (see data/augment.py);
                     batch["masks"]: a tuple of bool [batch, patches], one for each view named in `masked`;
                     batch["index"], batch["label"]: int32 [batch], label -1 where there is none.
                     metrics: a dict of scalars with "loss", and "embeddings" [views, batch, dim] for the health panel.
    update(params, state, step) -> state
                     after the optimizer, `step` being the number of those done: teachers, schedules, clusterings
    backbone_variables(params, state) -> {"params", "batch_stats"} of `backbone`: what is worth keeping of the run
    features(params, state, images) -> h [batch, dim], in evaluation mode

and where it needs them

    masked           names of the views that come with a mask, made as `config.mask` says
    frozen_steps     {beginning of a parameter's path: steps for which it does not move}
    constant_lr      beginnings of paths of parameters whose learning rate is not decayed

All are pure functions; params, state and batch are pytrees of arrays. Under `axis_name`, params and state are the
same on every device and must stay so; the batch is the device's slice. What a method cannot run with (a queue longer
than the data set, a temperature of 0) it refuses when it is made, with a ValueError that says what to do.
"""

from ssl_jax.methods._common import Run
from ssl_jax.methods.byol import BYOL
from ssl_jax.methods.moco_v2 import MoCoV2
from ssl_jax.methods.simclr import SimCLR

__all__ = ["METHODS", "Run"]

METHODS = {
    "byol": BYOL,
    "moco_v2": MoCoV2,
    "simclr": SimCLR,
}
