"""What a backbone can do besides giving a vector for each image. Callers ask for an ability, never for a class.

A backbone is a Linen module with `dim`: images [batch, height, width, channels] -> h [batch, dim] float32. It may have

    feature_map(images, train, axis_name) -> [batch, rows, columns, dim], after the last normalization. Its mean over
        positions is h, unless `pool` says otherwise
    head_layers  number of layers between the mean of its feature map and h; above 0, the mean is not h
    pool    with a feature map: "mean" says that h is the last normalization of a mean; the map's positions are then
        normalized one by one, and their mean is not h
    features_and_map(images, train, axis_name) -> (h, feature map), for a network whose h is not the map's mean
    tokens(images, train, axis_name, *, mask, mask_token, keep, attend, prefix_norm) -> [batch, prefix + patches, dim]
        after the last normalization, as in `vit.ViT.__call__`; it then also has the fields patch_size, num_prefix,
        class_token, pool. Only DINOv3 with local_norm gives a prefix_norm
    sizes_together  with tokens: whether images and mask may be tuples, of several sizes; the result then is one, too
    masked_map(images, train, axis_name, *, mask, mask_token) -> the feature map of images of which squares are hidden.
        A square has `stride` pixels a side and is one place of the map. mask [batch, places] is True where one is
        hidden; mask_token [token_dim] stands in for it. It then also has the fields stride and token_dim
    stage_maps(images, train, axis_name, *, mask) -> the map of each stage, the largest first, with nothing of the
        squares that mask hides: see hidden.py. A square has `stride` pixels a side and is one place of the last map.
        mask: bool [batch, places], True where one is hidden, or None. It then also has the field stride
    predict_noise(noisy, steps, train, axis_name) -> (noise in images that are at these steps of a diffusion, feature
        map). It then also has noise_steps, add_noise and remove_noise, see `unet.UNet`
    depth   the number of its blocks, named blocks_0, blocks_1, ..., for learning rates by layer
    drop_path   the probability of stochastic depth
"""

from typing import Any

import flax.linen as nn


def has_feature_map(backbone: nn.Module) -> bool:
    return hasattr(backbone, "feature_map")


def mean_of_map_is_h(backbone: nn.Module) -> bool:
    """Of a backbone with a feature map."""
    return getattr(backbone, "pool", None) != "mean" and not getattr(backbone, "head_layers", 0)


def has_features_and_map(backbone: nn.Module) -> bool:
    return hasattr(backbone, "features_and_map")


def has_tokens(backbone: nn.Module) -> bool:
    return hasattr(backbone, "tokens")


def sizes_together(backbone: nn.Module) -> bool:
    """Whether images of several sizes may pass its blocks together. Of a backbone with tokens."""
    return getattr(backbone, "sizes_together", False)


def has_masked_map(backbone: nn.Module) -> bool:
    return hasattr(backbone, "masked_map")


def has_stage_maps(backbone: nn.Module) -> bool:
    return hasattr(backbone, "stage_maps")


def predicts_noise(backbone: nn.Module) -> bool:
    return hasattr(backbone, "predict_noise")


def masked_side(backbone: nn.Module) -> int:
    """Pixels a side of the squares that a mask hides: a ViT's patches, or those of a masked map or of stage maps."""
    return backbone.stride if has_masked_map(backbone) or has_stage_maps(backbone) else backbone.patch_size


def token_dim(backbone: nn.Module) -> int:
    """Width of the token that stands in for what a mask hides."""
    return backbone.token_dim if has_masked_map(backbone) else backbone.dim


def depth(backbone: nn.Module) -> int:
    """Number of blocks; 0 for a backbone without blocks."""
    return getattr(backbone, "depth", 0)


def without_noise(module: nn.Module) -> nn.Module:
    """The module without what is drawn in training: stochastic depth, and the jitter of positions."""
    quiet: dict[str, Any] = {"drop_path": 0.0, "rope_jitter": 1.0}
    return module.clone(**{name: value for name, value in quiet.items() if hasattr(module, name)})
