"""What an evaluation writes to DIR/samples for the report: embeddings, predictions, and pictures of patches."""

import numpy as np

from ssl_jax import paths
from ssl_jax.data import crop, pipeline, sources
from ssl_jax.evaluation.subject import Images
from ssl_jax.models import maps
from ssl_jax.paths import AnyPath
from ssl_jax.weights import Backbone
from ssl_jax.workdir.samples import save

# The number of images whose embeddings are kept for the report's map and neighbors, and their largest side in pixels.
EMBEDDED, EMBEDDED_SIDE = 2000, 64
# The number of images whose patches are pictured, and their largest side in the pictures. The networks see them at the
# size of the evaluation.
PICTURED, PICTURED_SIDE = 8, 96
MOST_HEADS = 6  # as a ViT-S has; up to this many heads, each is also pictured alone


def save_embeddings(directory: AnyPath, of: Images, h: np.ndarray, labels: np.ndarray) -> None:
    """Writes embeddings.npz: the first test images, shrunk, with their features and labels."""
    images: list[np.ndarray] = []
    for batch in of.batches["test"]():
        images.append(of.normalization.to_uint8(crop.shrink(batch["image"], EMBEDDED_SIDE)))
        if sum(map(len, images)) >= EMBEDDED:
            break
    save(
        directory,
        "embeddings",
        images=np.concatenate(images)[:EMBEDDED],
        features=h[:EMBEDDED],
        labels=labels[:EMBEDDED],
        class_names=np.array(of.train.class_names, dtype=np.str_),
    )


def save_predictions(
    directory: AnyPath, class_names: tuple[str, ...], labels: np.ndarray, predictions: np.ndarray
) -> None:
    """Writes predictions.npz: true and predicted classes of the labeled test images."""
    save(
        directory,
        "predictions",
        labels=labels.astype(np.int32),
        predictions=predictions.astype(np.int32),
        class_names=np.array(class_names, dtype=np.str_),
    )


def forget_predictions(directory: AnyPath) -> None:
    """Removes predictions.npz, if it is there."""
    paths.remove(directory / "predictions.npz")


def save_patches(directory: AnyPath, of: Images, pretrained: Backbone, untrained: Backbone) -> None:
    """Writes patches.npz: pictures of the patches of some test images, by two backbones of one architecture.

    It holds "images"; "features/pretrained" and "features/random"; for a ViT with a class token "attention/pretrained"
    and "attention/random", and if its heads are few "attention/head 1" and so on. Nothing is written for an
    architecture that has neither features of patches nor a class token.
    """
    from ssl_jax.report import patches  # loads matplotlib

    images = spread_images(of.test, of.image_size)
    shown = of.normalization.to_uint8(crop.shrink(images, PICTURED_SIDE))
    found = {}
    if maps.has_patch_map(pretrained.model):
        # Each has its own colors, as the dimensions of one network are not those of another.
        found["features/pretrained"] = patches.pca_picture(pretrained.patch_features(images))
        found["features/random"] = patches.pca_picture(untrained.patch_features(images))
    if maps.has_class_attention(pretrained.model):
        attention = pretrained.class_attention(images)
        found["attention/pretrained"] = patches.attention_picture(attention, shown)
        heads = attention.shape[1]
        for head in range(heads) if 1 < heads <= MOST_HEADS else ():
            found[f"attention/head {head + 1}"] = patches.attention_picture(attention[:, [head]], shown)
        found["attention/random"] = patches.attention_picture(untrained.class_attention(images), shown)
    if found:
        save(directory, "patches", images=shown, **found)


def spread_images(source: sources.Source, image_size: tuple[int, int]) -> np.ndarray:
    """Evenly spaced images, as a folder is sorted by class: [PICTURED or fewer, height, width, channels]."""
    apart = max(len(source) // PICTURED, 1)
    # If no image of the first batch can be decoded, the next batch is spaced as widely.
    order = np.argsort(np.arange(len(source)) % apart, kind="stable")
    ordered = sources.Subset(source, order)
    return next(iter(pipeline.eval_batches(ordered, image_size=image_size, batch_size=PICTURED)))["image"]
