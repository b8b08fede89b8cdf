"""Fine-tuning: a whole backbone and a classifier on it, trained on labelled images from where pre-training left it.

It is supervised training (methods/supervised.py) under the one train step, begun at given weights.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from ssl_jax import optim, parallel, step
from ssl_jax.data import pipeline, randaugment
from ssl_jax.data.augment import Augmentation, make_augment, normalize
from ssl_jax.data.sources import Source, Subset
from ssl_jax.evaluation.accuracy import class_mean, top1
from ssl_jax.evaluation.features import extract
from ssl_jax.evaluation.labels import draw_labels
from ssl_jax.methods import METHODS, Run
from ssl_jax.models.vit import ViT
from ssl_jax.weights import Backbone

EVALUATION_BATCH = 512
AFTER_VIEWS = 1000  # as the number of a view, which random numbers go by: more than there are


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a backbone is fine-tuned. The defaults are for small images and some hundred labels, and no paper's.

    Attributes:
      augmentation: of the training images; the test's are not augmented.
      rand_augment: magnitude of RandAugment after it, in 0..10 (see data/randaugment.py); 0 for none.
      erase: probability that a random rectangle of an image then becomes noise.
      steps: of the optimizer.
      batch_size: images a step over all devices; no more than there are to train on.
      learning_rates: of which the one is taken that has the least cross entropy on held-out labels; a single one is
        taken as it is.
      optimizer: as `optim.create` takes it, but for lr and steps; its final_lr is a share of the learning rate.
      method: options of methods/supervised.py: label_smoothing, mixup, cutmix.
      model: options of the backbone's model that replace its own, such as drop_path. What parameters they bring begin
        as they are initialized.
      classifier_std: of the classifier's first weights, which are normal; None for those that methods/supervised.py
        begins with.
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
    classifier_std: float | None = None

    def __post_init__(self):
        if not (0.0 <= self.rand_augment <= randaugment.STRONGEST and 0.0 <= self.erase <= 1.0):
            raise ValueError(
                f"rand_augment must be in 0..{randaugment.STRONGEST:g} and erase in 0..1, got {self.rand_augment} and "
                f"{self.erase}"
            )
        if min(self.steps, self.batch_size) < 1:
            raise ValueError(f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}")
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ValueError(f"learning_rates must be numbers above 0, got {self.learning_rates}")


def mae_recipe(model: ViT, images: int, size: tuple[int, int], batch_size: int = 1024) -> Recipe:
    """MAE's fine-tuning of all of ImageNet, for a ViT and so many training images.

    Below a width of 1024 its numbers of ViT-B, below 1280 those of ViT-L, then those of ViT-H.

    Ours: an image is mixed with its neighbor by a share of its own, timm's with that at the other end of the batch by
    one share for the batch; fixed positions stay fixed. The test images are resized whole, theirs are the middle 224 of
    256 pixels.
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


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """accuracies: on the test set, top-1 in percent, [seeds, measured steps]. class_means: the same where each class
    counts alike, see `evaluation.accuracy.class_mean`. learning_rate: as chosen."""

    accuracies: Float[np.ndarray, "seeds measured"]
    class_means: Float[np.ndarray, "seeds measured"]
    learning_rate: float


def finetune(
    backbone: Backbone,
    train: Source,
    test: Source,
    *,
    recipe: Recipe,
    image_size: tuple[int, int],
    per_class: int | None,
    seeds: Sequence[int] = (0, 1, 2),
    measured: Sequence[int] = (),
    memory_bytes: int = 2**31,
) -> FineTuned:
    """Test accuracy of a fine-tuned backbone, for labels drawn once with each of `seeds`.

    The learning rate is chosen on a fifth of the first seed's labels; then all labels of each draw are trained on. The
    draws are those of the linear probe. The test set serves to count the hits, for nothing else.

    Args:
      backbone: where it begins; its own variables stay as they are.
      train, test: with labels, -1 for an image without one.
      image_size: (height, width) that images are read at.
      per_class: labels of each class that it is given, at least 2; None for all, drawn once.
      seeds: of the draw, of the classifier's first weights, and of order and augmentation.
      measured: steps at which the accuracy is measured; the last one if none are given.
      memory_bytes: of images that are kept decoded.
    Raises: ValueError for a source without labels, or a class with fewer than per_class.
    """
    if train.labels is None or test.labels is None:
        unlabeled = train if train.labels is None else test
        raise ValueError(f"{unlabeled.name} has no labels, which fine-tuning needs")
    seeds = seeds[:1] if per_class is None else seeds
    measured = tuple(measured) or (recipe.steps,)
    classes = len(train.class_names)
    draws = [draw_labels(train.labels, classes, per_class, seed) for seed in seeds]
    index, held_out = draws[0]
    chosen = len(recipe.learning_rates) > 1
    trainer = _Trainer(
        backbone, recipe, classes, image_size, int(np.sum(~held_out)) if chosen else len(index), memory_bytes
    )

    fitted, held = Subset(train, index[~held_out]), Subset(train, index[held_out])
    best = recipe.learning_rates[0]
    if chosen:
        tried = {lr: _cross_entropy(*trainer.last_logits(fitted, held, lr, seeds[0])) for lr in recipe.learning_rates}
        best = min(tried, key=lambda lr: np.nan_to_num(tried[lr], nan=np.inf))  # it may have diverged

    accuracies, class_means = np.zeros((2, len(seeds), len(measured)), np.float32)
    for row, (seed, (index, _)) in enumerate(zip(seeds, draws, strict=True)):
        for number, state in trainer.train(Subset(train, index), best, seed, measured):
            logits, labels = trainer.logits(state, test)
            predictions, place = np.argmax(logits, axis=1), (row, measured.index(number))
            accuracies[place], class_means[place] = top1(predictions, labels), class_mean(predictions, labels)
    return FineTuned(accuracies, class_means, best)


class _Trainer:
    """Compiled once for all learning rates and draws."""

    def __init__(
        self,
        backbone: Backbone,
        recipe: Recipe,
        classes: int,
        image_size: tuple[int, int],
        num_images: int,
        memory_bytes: int,
    ):
        self.backbone, self.recipe, self.image_size, self.memory_bytes = backbone, recipe, image_size, memory_bytes
        devices = jax.device_count()
        # An even number for each device, which mixup pairs.
        self.batch_size = min(recipe.batch_size, num_images) // (2 * devices) * 2 * devices
        if not self.batch_size:
            raise ValueError(
                f"{num_images} labelled images and a batch of {recipe.batch_size} are fewer than two for each of "
                f"{devices} devices; use fewer devices, or more labels"
            )
        run = Run(
            batch_size=self.batch_size,
            steps=recipe.steps,
            steps_per_epoch=num_images // self.batch_size,
            num_images=num_images,
            num_classes=classes,
        )
        model = backbone.model
        if isinstance(model, ViT):  # what it was pre-trained with need not divide this batch
            model = model.clone(microbatch=0, drop_path_group=0)
        self.method = METHODS["supervised"](model.clone(**recipe.model), run, **recipe.method)
        options = dict(recipe.optimizer)
        if not hasattr(backbone.model, "depth"):
            options.pop("layer_decay", None)  # known of ViTs
        tx, _ = optim.create(**options, lr=1.0, steps=recipe.steps, depth=getattr(backbone.model, "depth", 0))
        # The learning rate multiplies what the optimizer makes of the gradient, so it may be part of the state.
        self.tx = optax.chain(tx, optax.inject_hyperparams(optax.scale)(step_size=1.0))
        self.mesh = parallel.make_mesh()
        self.step = parallel.map_step(
            step.TrainStep(
                method=self.method,
                tx=self.tx,
                augment=augmented(recipe, mean=backbone.mean, std=backbone.std),
                axis_name=parallel.AXIS,
                log_every=recipe.steps + 1,
            ),
            self.mesh,
        )
        self.classify = parallel.map_rows(self._classify, self.mesh)

    def _classify(self, variables: Any, images: Any) -> Any:
        params, state = variables
        h = self.method.features(params, state, normalize(images, self.backbone.mean, self.backbone.std))
        return self.method.networks["classifier"].apply({"params": params["classifier"]}, h)

    def first_state(self, lr: float, seed: int) -> step.TrainState:
        example = jnp.zeros((1, *self.recipe.augmentation.size, len(self.backbone.mean)))
        state = step.create_state(self.method, self.tx, example, seed)
        given = jax.device_get(self.backbone.variables)  # the step donates its state: a copy, or the backbone is gone
        batch_stats = {**state.model_state["batch_stats"], "backbone": given.get("batch_stats", {})}
        own = given["params"]
        params = {**state.params, "backbone": {k: own.get(k, first) for k, first in state.params["backbone"].items()}}
        if self.recipe.classifier_std is not None:
            params["classifier"] = _drawn(params["classifier"], self.recipe.classifier_std, seed)
        state.opt_state[-1].hyperparams["step_size"] = jnp.float32(lr)
        return parallel.replicate(state.replace(params=params, model_state={"batch_stats": batch_stats}), self.mesh)

    def train(
        self, source: Source, lr: float, seed: int, measured: Sequence[int]
    ) -> Iterator[tuple[int, step.TrainState]]:
        """(step, the state after it) for each of the measured steps."""
        state = self.first_state(lr, seed)
        if 0 in measured:
            yield 0, state
        batches = pipeline.train_batches(
            source,
            seed=seed,
            batch_size=self.batch_size,
            image_size=self.image_size,
            crops=[self.recipe.augmentation.crop],
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            memory_bytes=self.memory_bytes,
        )
        for number in range(1, self.recipe.steps + 1):
            state, metrics = self.step(state, parallel.split_batch(next(batches), self.mesh))
            metrics["loss"].block_until_ready()
            if number in measured:
                yield number, state

    def last_logits(self, fitted: Source, held: Source, lr: float, seed: int) -> Any:
        """(logits, labels) of held-out images after training."""
        for _, state in self.train(fitted, lr, seed, [self.recipe.steps]):
            return self.logits(state, held)

    def logits(
        self, state: step.TrainState, source: Source
    ) -> tuple[Float[np.ndarray, "images classes"], Int[np.ndarray, " images"]]:
        """Of the images with a label."""
        variables = (state.params, state.model_state)
        batch_size = -(-EVALUATION_BATCH // jax.device_count()) * jax.device_count()
        logits, labels = extract(
            lambda images: self.classify(variables, parallel.split_batch(images, self.mesh)),
            pipeline.eval_batches(source, image_size=self.image_size, batch_size=batch_size),
            batch_size,
        )
        return logits[labels >= 0], labels[labels >= 0]


def augmented(recipe: Recipe, *, mean: Sequence[float], std: Sequence[float]) -> Callable[[Any, Any], dict[str, Any]]:
    """`augment.make_augment` of the recipe's augmentation, and after it RandAugment and erasing."""
    first = make_augment([recipe.augmentation], mean=mean, std=std)
    if not (recipe.rand_augment or recipe.erase):
        return first
    shift, scale = (np.asarray(numbers, np.float32)[:, None, None] for numbers in (mean, std))

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
        # Of each image its own, whatever else is in the batch, and none that its crop was drawn with.
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(rng, i), AFTER_VIEWS))(batch["index"])
        return batch | {"views": (jax.vmap(one)(keys, view),)}

    return augment


def _drawn(classifier: Any, std: float, seed: int) -> Any:
    """A classifier's parameters with new weights; its biases stay."""
    draw = nn.initializers.normal(std)
    key = jax.random.fold_in(jax.random.key(seed), AFTER_VIEWS)
    return jax.tree.map(lambda leaf: draw(key, leaf.shape) if leaf.ndim > 1 else leaf, classifier)


def _cross_entropy(logits: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]) -> float:
    return float(jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)))
