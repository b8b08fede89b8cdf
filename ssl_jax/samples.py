"""What an evaluation leaves in DIR/samples for the report: embeddings, predictions, and pictures of patches."""

from pathlib import Path

import numpy as np

from ssl_jax import files
from ssl_jax.data import decode, pipeline, sources
from ssl_jax.evaluation.features import Batches
from ssl_jax.models import maps
from ssl_jax.report import patches
from ssl_jax.weights import Backbone

# Images whose embeddings are kept for the report's map and neighbors, and their largest side there.
EMBEDDED, EMBEDDED_SIDE = 2000, 64
# Images whose patches are pictured, and their largest side there; the networks see them as they are evaluated.
PICTURED, PICTURED_SIDE = 8, 96
MOST_HEADS = 6  # of a ViT-S: of so many each is pictured alone, too


def save_embeddings(
    workdir: Path, batches: Batches, h: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]
) -> None:
    """samples/embeddings.npz: the first test images, small, with their features."""
    images: list[np.ndarray] = []
    for batch in batches():
        images.append(decode.shrink(batch["image"], EMBEDDED_SIDE))
        if sum(map(len, images)) >= EMBEDDED:
            break
    _save(
        workdir,
        "embeddings",
        images=np.concatenate(images)[:EMBEDDED],
        features=h[:EMBEDDED],
        labels=labels[:EMBEDDED],
        class_names=np.array(class_names, dtype=np.str_),
    )


def save_predictions(workdir: Path, class_names: tuple[str, ...], labels: np.ndarray, predictions: np.ndarray) -> None:
    """samples/predictions.npz: classes of the labeled test images, and which were predicted."""
    _save(
        workdir,
        "predictions",
        labels=labels.astype(np.int32),
        predictions=predictions.astype(np.int32),
        class_names=np.array(class_names, dtype=np.str_),
    )


def save_patches(
    workdir: Path, test: sources.Source, image_size: tuple[int, int], pretrained: Backbone, untrained: Backbone
) -> None:
    """samples/patches.npz: what two backbones of one architecture make of the patches of some test images, as pictures.

    "images"; "features/pretrained" and "features/random"; of a ViT with a class token "attention/pretrained", where its
    heads are few each of them, "attention/head 1" and so on, and "attention/random". Nothing is written for an
    architecture that has neither features of patches nor a class token.
    """
    images = spread_images(test, image_size)
    shown = decode.shrink(images, PICTURED_SIDE)
    found = {}
    if maps.has_patch_map(pretrained.model):
        # Each has its own colors: dimensions of one network are not those of another.
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
        _save(workdir, "patches", images=shown, **found)


def spread_images(source: sources.Source, image_size: tuple[int, int]) -> np.ndarray:
    """uint8 [PICTURED or fewer, height, width, channels], at equal distances: a folder is sorted by class."""
    apart = max(len(source) // PICTURED, 1)
    # If none of the first batch can be decoded, the next one is spread as far.
    order = np.argsort(np.arange(len(source)) % apart, kind="stable")
    ordered = sources.Subset(source, order)
    return next(iter(pipeline.eval_batches(ordered, image_size=image_size, batch_size=PICTURED)))["image"]


def _save(workdir: Path, name: str, **arrays: np.ndarray) -> None:
    (workdir / "samples").mkdir(exist_ok=True)
    with files.replacing(workdir / "samples" / f"{name}.npz") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]  none is called allow_pickle
