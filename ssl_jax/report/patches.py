"""Pictures of what a network makes of an image's patches: principal components of their features, and attention."""

from collections.abc import Mapping

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from sklearn.decomposition import PCA

from ssl_jax.report.scores import SUBJECTS

KINDS = ("features", "attention")  # of pictures, each a figure of the report
# Percentiles that become black and full color. With the least and greatest value instead, a few outliers would leave
# all else in one tone.
DARKEST, BRIGHTEST = 1, 99
FLAT = 128  # value of components that do not vary
HEAT = colormaps["cividis"]  # its lightness rises steadily, so it needs no color vision


def pca_picture(patch_features: Float[np.ndarray, "n rows cols dim"]) -> UInt8[np.ndarray, "n rows cols 3"]:
    """The first three principal components, of all patches of all images, as red, green and blue.

    Similar patches get similar colors over the whole batch; which color is chance. Each component is scaled to the full
    range of its own channel. A component is gray if it does not vary, or is missing as there are fewer dimensions.

    Raises: ValueError for no patches, or features that are not finite.
    Source: Oquab et al. 2023, arXiv:2304.07193, figure 1, without its thresholding of the background.
    """
    if patch_features.size == 0:
        raise ValueError(
            f"patch_features has shape {patch_features.shape}; give at least one image, patch and dimension"
        )
    if not np.isfinite(patch_features).all():
        raise ValueError("patch_features has values that are not finite; the network that made them has diverged")
    rows = patch_features.reshape(-1, patch_features.shape[-1]).astype(np.float64)
    rows = rows[:, rows.std(axis=0) > 1e-6 * max(np.abs(rows).max(), 1e-30)]
    picture = np.full((patch_features[..., 0].size, 3), FLAT, np.uint8)
    found = min(3, len(rows) - 1, rows.shape[1])
    if found > 0:
        pca = PCA(found, svd_solver="full").fit(rows)
        varies = pca.explained_variance_ > 1e-9 * pca.explained_variance_[0]
        components = pca.transform(rows)[:, varies]
        low, high = np.percentile(components, (DARKEST, BRIGHTEST), axis=0)
        # If nearly all patches are alike, the two percentiles are equal. Then the outliers set the range.
        low, high = (np.where(high > low, a, b) for a, b in ((low, components.min(0)), (high, components.max(0))))
        picture[:, : components.shape[1]] = np.rint(255 * np.clip((components - low) / (high - low), 0, 1))
    return picture.reshape(*patch_features.shape[:3], 3)


def attention_picture(
    attention: Float[np.ndarray, "n heads rows cols"], images: UInt8[np.ndarray, "n height width channels"]
) -> UInt8[np.ndarray, "n height width 3"]:
    """Where the class token looks, averaged over the heads, as heat over the grayed images.

    Each image is scaled by its own largest attention, so a map shows where, not how much. A map without attention to
    any patch is dark. For a single head pass attention[:, [head]].

    Args:
      attention: attention of the class token to the patches in the last block, >= 0.
    Raises: ValueError for attention that is negative or not finite, without heads, or of another number of images.
    Source: Caron et al. 2021, arXiv:2104.14294, section 4.2.2.
    """
    if len(attention) != len(images) or attention.shape[1] == 0:
        raise ValueError(
            f"attention {attention.shape} has {len(attention)} images and {attention.shape[1]} heads, "
            f"but there are {len(images)} images; give maps [n, heads, rows, cols] of the same "
            "images, with at least one head"
        )
    if not np.isfinite(attention).all() or (attention < 0).any():
        raise ValueError("attention has values below 0 or not finite; give it after its softmax")
    height, width = images.shape[1:3]
    picture = np.empty((len(images), height, width, 3), np.uint8)
    for i, (map_, image) in enumerate(zip(attention.mean(axis=1), images, strict=True)):
        scaled = map_ / max(float(map_.max()), 1e-30)
        heat = HEAT(cv2.resize(scaled.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR))[..., :3]
        gray = image.mean(axis=2, keepdims=True) / 255
        picture[i] = np.rint(255 * (0.35 * gray + 0.65 * heat))
    return picture


def figures(pictures: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """kind -> title -> pictures, for each of KINDS that a run's pictures (read.Record.patches) have. The images that
    the pictures are of come first."""
    found = {}
    for kind in KINDS:
        made = {name: rows for key, rows in pictures.items() if (name := key.removeprefix(f"{kind}/")) != key}
        if made:
            titles = {SUBJECTS.get(name, name.capitalize()): rows for name, rows in made.items()}
            found[kind] = {"Image": pictures["images"], **titles}
    return found
