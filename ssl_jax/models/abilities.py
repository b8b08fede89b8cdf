"""What a backbone can do besides giving a vector for each image. Callers ask for an ability, never for a class.

A backbone is a Linen module with `dim`: images [batch, height, width, channels] -> h [batch, dim] float32. It may have

    feature_map(images, train, axis_name) -> [batch, rows, columns, dim], whose mean over positions is h
    tokens(images, train, axis_name, *, mask, mask_token, keep, attend) -> [batch, prefix + patches, dim] after the last
        normalization, as in `vit.ViT.__call__`; it then also has the fields patch_size, num_prefix, class_token, pool
    depth   the number of its blocks, named blocks_0, blocks_1, ..., for learning rates by layer
    drop_path   the probability of stochastic depth
"""

import flax.linen as nn


def has_feature_map(backbone: nn.Module) -> bool:
    return hasattr(backbone, "feature_map")


def has_tokens(backbone: nn.Module) -> bool:
    return hasattr(backbone, "tokens")


def depth(backbone: nn.Module) -> int:
    """Number of blocks; 0 for a backbone without blocks."""
    return getattr(backbone, "depth", 0)


def without_drop_path(module: nn.Module) -> nn.Module:
    """The module without stochastic depth."""
    return module.clone(drop_path=0.0) if hasattr(module, "drop_path") else module
