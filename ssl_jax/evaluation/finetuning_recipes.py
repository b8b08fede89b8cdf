"""How backbones are fine-tuned: the numbers, and the augmentation."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ssl_jax import ops
from ssl_jax.data import randaugment
from ssl_jax.data.augment import Augmentation, make_augment
from ssl_jax.data.normalization import Normalization

# Random numbers depend on the number of a view. This one is larger than that of any view.
AFTER_VIEWS = 1000
SMALL_CROP_AREA = (0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a backbone is fine-tuned. The defaults are for small images and some hundred labels; they are from no paper.

    Attributes:
      augmentation: of the training images; test images are not augmented.
      rand_augment: magnitude of RandAugment, which follows it, in 0..10 (see data/randaugment.py); 0 for none.
      erase: probability that a random rectangle of an image then becomes noise.
      steps: of the optimizer.
      batch_size: images per step over all devices; lowered if there are fewer training images.
      learning_rates: the one with the least cross entropy on held-out labels is used. A single one is used as it is.
      optimizer: as `optim.create` takes it, without lr and steps; its final_lr is a share of the learning rate.
      method: options of methods/supervised.py: label_smoothing, mixup, cutmix.
      model: options that replace those of the backbone's model, such as drop_path. Parameters that they add start at
        their initial values.
      lora_rank: above 0: low-rank adaptation. Only products of two matrices of this rank, each added to a kernel of
        attention or an MLP, and the classifier are trained; see `training.low_rank.LowRank`.
      lora_alpha: the products are multiplied by this over lora_rank.
      ema_decay: above 0: what is measured and kept are exponential moving averages of all weights, with this decay; see
        `training.averaged.Averaged`.
      classifier_std: standard deviation of the classifier's initial weights, which are normal; None for the
        initialization of methods/supervised.py.
    """

    augmentation: Augmentation
    rand_augment: float = 0.0
    erase: float = 0.0
    steps: int = 200
    batch_size: int = 128
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    optimizer: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: dict(name="adamw", weight_decay=0.05, warmup_steps=20, layer_decay=0.75)
    )
    method: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    lora_rank: int = 0
    lora_alpha: float = 16.0
    ema_decay: float = 0.0
    classifier_std: float | None = None

    def __post_init__(self):
        if not (0.0 <= self.rand_augment <= randaugment.STRONGEST and 0.0 <= self.erase <= 1.0):
            raise ValueError(
                f"rand_augment must be in 0..{randaugment.STRONGEST:g} and erase in 0..1, got {self.rand_augment} and "
                f"{self.erase}"
            )
        if min(self.steps, self.batch_size) < 1:
            raise ValueError(f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}")
        if self.lora_rank < 0 or self.lora_alpha <= 0 or not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(
                f"lora_rank must be at least 0, lora_alpha above 0 and ema_decay in [0, 1), got {self.lora_rank}, "
                f"{self.lora_alpha:g} and {self.ema_decay:g}"
            )
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ValueError(f"learning_rates must be numbers above 0, got {self.learning_rates}")


def small_recipe(size: tuple[int, int], **options: Any) -> Recipe:
    """For small images and some hundred labels: Recipe's defaults, crops of at least half an image, and mirror images.

    size: (height, width) in pixels. options: of Recipe, in place of its defaults.
    """
    return Recipe(Augmentation(size=size, crop_area=SMALL_CROP_AREA), **options)


def mae_recipe(model: nn.Module, images: int, size: tuple[int, int], batch_size: int = 1024) -> Recipe:
    """MAE's fine-tuning on all of ImageNet, for a ViT and this number of training images.

    A model of a width below 1024 gets the numbers of ViT-B, below 1280 those of ViT-L, otherwise those of ViT-H.

    Three differences from the authors' code. Mixup: here each image is mixed with its neighbor, by a share of its own;
    timm mixes it with the image at the other end of the batch, by one share for the batch. Positions: fixed ones stay
    fixed here. Test images: the middle 224 of 256 pixels as theirs, but shrunk by area averages, not by bicubic
    filters.
    Source: He et al. 2021, arXiv:2111.06377, table 9, and the authors' FINETUNE.md and main_finetune.py, whose ViT-B
      has another learning rate and layer decay than the table, and random erasing; facebookresearch/mae.
    """
    if model.dim < 1024:
        epochs, base_lr, layer_decay, drop_path = 100, 5e-4, 0.65, 0.1
    else:
        epochs, base_lr, layer_decay, drop_path = 50, 1e-3, 0.75, 0.2 if model.dim < 1280 else 0.3
    batch_size = min(batch_size, images)
    steps_per_epoch, lr = images // batch_size, base_lr * batch_size / 256
    return Recipe(
        Augmentation(size=size, crop_area=(0.08, 1.0), interpolation="bicubic"),
        rand_augment=9.0,
        erase=0.25,
        steps=epochs * steps_per_epoch,
        batch_size=batch_size,
        learning_rates=(lr,),
        optimizer=dict(
            name="adamw",
            weight_decay=0.05,
            warmup_steps=5 * steps_per_epoch,
            layer_decay=layer_decay,
            final_lr=1e-6 / lr,
        ),
        method=dict(label_smoothing=0.1, mixup=0.8, cutmix=1.0),
        model=dict(drop_path=drop_path, pool="mean"),
        classifier_std=2e-5,
    )


def augmented(recipe: Recipe, normalization: Normalization) -> Callable[[Any, Any], dict[str, Any]]:
    """`augment.make_augment` with the recipe's augmentation, followed by RandAugment and erasing."""
    first = make_augment([recipe.augmentation], normalization)
    if not (recipe.rand_augment or recipe.erase):
        return first
    mean = normalization.mean
    shift, scale = (np.asarray(numbers, np.float32)[:, None, None] for numbers in (mean, normalization.std))

    def one(key, view):
        key_kinds, key_erase = jax.random.split(key)
        view = view.transpose(2, 0, 1)
        if recipe.rand_augment:
            unit = randaugment.rand_augment(key_kinds, view * scale + shift, fill=mean, magnitude=recipe.rand_augment)
            view = (unit - shift) / scale
        if recipe.erase:
            view = randaugment.random_erase(key_erase, view, probability=recipe.erase)
        return view.transpose(1, 2, 0)

    def augment(rng, batch):
        batch = first(rng, batch)
        (view,) = batch["views"]
        # One key for each image, independent of the rest of the batch, and different from the key of its crop.
        keys = jax.vmap(jax.random.fold_in, (0, None))(ops.example_keys(rng, batch["index"]), AFTER_VIEWS)
        return batch | {"views": (jax.vmap(one)(keys, view),)}

    return augment
