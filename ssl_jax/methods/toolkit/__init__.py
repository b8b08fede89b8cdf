"""What methods are made of; public, for methods of your own, too.

networks: forward passes in training mode. teachers: copies that follow. rows: batches that devices share. checks: what
a method refuses. drawing: a ViT's first weights. covariance: what its mean over devices sends. banks: what has a row
for each image. And for some families: autoencoding, codebook, colors, cross, gan, instances, kmeans, masking, memories,
online_kmeans, permutations, places, prototype_heads, segments, self_distillation, tiling, tokenizers, transport,
visible, whitening.
"""

from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic, Variables
from ssl_jax.methods.toolkit.checks import check_feature_map, check_predictor, check_queue
from ssl_jax.methods.toolkit.networks import (
    Networks,
    forward,
    forward_map,
    forward_views,
    init,
    init_map,
    map_size,
    select,
    train_apply,
    with_local,
)
from ssl_jax.methods.toolkit.rows import accuracy, neighbors, row_bytes, take_rows
from ssl_jax.methods.toolkit.teachers import forward_teacher, make_teacher, move_teacher, teacher_backbone

__all__ = [
    "Base",
    "Batch",
    "Networks",
    "Output",
    "Params",
    "Schedule",
    "State",
    "Traffic",
    "Variables",
    "accuracy",
    "check_feature_map",
    "check_predictor",
    "check_queue",
    "forward",
    "forward_map",
    "forward_teacher",
    "forward_views",
    "init",
    "init_map",
    "make_teacher",
    "map_size",
    "move_teacher",
    "neighbors",
    "row_bytes",
    "select",
    "take_rows",
    "teacher_backbone",
    "train_apply",
    "with_local",
]
