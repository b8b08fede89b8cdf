"""Fine-tuning: trains a pre-trained backbone, and a classifier on it, on labelled images.

It is supervised training (methods/supervised.py) with the usual train step, started from given weights.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from ssl_jax import dist, optim
from ssl_jax.data import pipeline
from ssl_jax.data.sources import Source, Subset
from ssl_jax.evaluation.accuracy import class_mean, top1
from ssl_jax.evaluation.features import extract
from ssl_jax.evaluation.finetuning_recipes import AFTER_VIEWS, Recipe, augmented
from ssl_jax.evaluation.labels import draw_labels
from ssl_jax.methods import Schedule
from ssl_jax.methods.supervised import Supervised
from ssl_jax.models import abilities
from ssl_jax.training import step
from ssl_jax.training.state import TrainState, create_state
from ssl_jax.weights import Backbone

EVALUATION_BATCH = 512
Draw = tuple[Int[np.ndarray, " images"], Bool[np.ndarray, " images"]]  # of labels: see `labels.draw_labels`


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """accuracies: on the test set, top-1 in percent, [seeds, measured steps]. class_means: the same, but each class
    counts alike, see `evaluation.accuracy.class_mean`. learning_rate: the chosen one."""

    accuracies: Float[np.ndarray, "seeds measured"]
    class_means: Float[np.ndarray, "seeds measured"]
    learning_rate: float


def measure_finetuning(
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

    The learning rate is chosen on a fifth of the first seed's labels, or of their groups; then each training uses all
    labels of its draw.
    The draws are those of the linear probe. The test set only serves to count the hits.

    Args:
      backbone: where training starts; its own variables stay as they are.
      train, test: with labels, -1 for an image without one.
      image_size: (height, width) that images are read at.
      per_class: labels of each class that are used, at least 2; None for all, drawn once.
      seeds: of the draw, the classifier's initial weights, the order and the augmentation.
      measured: steps at which the accuracy is measured; the last one if none are given.
      memory_bytes: images are kept decoded in memory if they take no more than this.
    Raises: ValueError for a source without labels, or a class with fewer than per_class.
    """
    if train.labels is None or test.labels is None:
        unlabeled = train if train.labels is None else test
        raise ValueError(f"{unlabeled.name} has no labels, which fine-tuning needs")
    seeds = seeds[:1] if per_class is None else seeds
    measured = tuple(measured) or (recipe.steps,)
    draws = [draw_labels(train.labels, len(train.class_names), per_class, seed, train.groups) for seed in seeds]
    trainer = _Trainer.of_draw(backbone, recipe, train, draws[0], image_size, memory_bytes)
    best, _ = trainer.choose(train, draws[0], seeds[0])
    accuracies, class_means = np.zeros((2, len(seeds), len(measured)), np.float32)
    for row, (seed, (index, _)) in enumerate(zip(seeds, draws, strict=True)):
        for number, state in trainer.train(Subset(train, index), best, seed, measured):
            logits, labels = trainer.logits(state, test)
            predictions, place = np.argmax(logits, axis=1), (row, measured.index(number))
            accuracies[place], class_means[place] = top1(predictions, labels), class_mean(predictions, labels)
    return FineTuned(accuracies, class_means, best)


class Fitted:
    """A fine-tuned backbone and its classifier.

    model, variables: of the backbone. kernel [dim, classes], bias [classes]: of the classifier. tried: learning rate ->
    cross entropy on the held-out labels; {} if there was only one rate. learning_rate: the chosen one. labels: how many
    were trained on.
    """

    def __init__(self, trainer: "_Trainer", state: TrainState, rate: float, tried: dict[float, float], labels: int):
        self._trainer, self._state = trainer, state
        self.learning_rate, self.tried, self.labels = rate, tried, labels
        self.model: nn.Module = trainer.method.backbone
        self.variables: Any = jax.device_get(trainer.method.backbone_variables(state.params, state.model_state))
        (layer,) = jax.device_get(state.params["classifier"]).values()
        self.kernel, self.bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])

    def logits(self, source: Source) -> tuple[Float[np.ndarray, "images classes"], Int[np.ndarray, " images"]]:
        """(logits, labels) of the images that have a label."""
        return self._trainer.logits(self._state, source)


def fit(
    backbone: Backbone,
    train: Source,
    *,
    recipe: Recipe,
    image_size: tuple[int, int],
    per_class: int | None,
    seed: int = 0,
    memory_bytes: int = 2**31,
) -> Fitted:
    """Fine-tunes once and returns what was trained. Arguments, errors and the draw of labels are those of
    `measure_finetuning` with this one seed."""
    if train.labels is None:
        raise ValueError(f"{train.name} has no labels, which fine-tuning needs")
    draw = draw_labels(train.labels, len(train.class_names), per_class, seed, train.groups)
    trainer = _Trainer.of_draw(backbone, recipe, train, draw, image_size, memory_bytes)
    best, tried = trainer.choose(train, draw, seed)
    ((_, state),) = trainer.train(Subset(train, draw[0]), best, seed, [recipe.steps])
    return Fitted(trainer, state, best, tried, len(draw[0]))


class _Trainer:
    """Fine-tunes a backbone. Compiled once for all learning rates and draws."""

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
        # An even number of images for each device, as mixup pairs them.
        self.batch_size = min(recipe.batch_size, num_images) // (2 * devices) * 2 * devices
        if not self.batch_size:
            raise ValueError(
                f"{num_images} labelled images in batches of {recipe.batch_size} give fewer than two "
                f"for each of {devices} devices; use fewer devices, a larger batch or more labels"
            )
        run = Schedule(
            batch_size=self.batch_size,
            steps=recipe.steps,
            steps_per_epoch=num_images // self.batch_size,
            num_images=num_images,
            num_classes=classes,
        )
        model = backbone.model
        # The groups of pre-training need not divide this batch.
        ungrouped: dict[str, Any] = {name: 0 for name in ("microbatch", "drop_path_group") if hasattr(model, name)}
        model = model.clone(**ungrouped)
        self.method = Supervised(model.clone(**recipe.model), run, **recipe.method)
        options = dict(recipe.optimizer)
        depth = abilities.depth(backbone.model)
        if not depth:
            options.pop("layer_decay", None)  # it needs blocks
        tx, _ = optim.create(**options, lr=1.0, steps=recipe.steps, depth=depth)
        # The learning rate scales the optimizer's updates (lr=1.0 above), so it can be a number in the state, and one
        # compiled step serves all rates.
        self.tx = optax.chain(tx, optax.inject_hyperparams(optax.scale)(step_size=1.0))
        self.mesh = dist.make_mesh()
        self.step = dist.map_step(
            step.TrainStep(
                method=self.method,
                tx=self.tx,
                augment=augmented(recipe, backbone.normalization),
                axis_name=dist.AXIS,
                log_every=recipe.steps + 1,
            ),
            self.mesh,
        )
        self.classify = dist.map_rows(self._classify, self.mesh)

    @classmethod
    def of_draw(
        cls, backbone: Backbone, recipe: Recipe, train: Source, draw: Draw, image_size: tuple[int, int], memory: int
    ) -> "_Trainer":
        """A trainer for the labels of a draw; for those not held out if a learning rate is to be chosen."""
        index, held_out = draw
        count = int(np.sum(~held_out)) if len(recipe.learning_rates) > 1 else len(index)
        return cls(backbone, recipe, len(train.class_names), image_size, count, memory)

    def choose(self, train: Source, draw: Draw, seed: int) -> tuple[float, dict[float, float]]:
        """(the learning rate with the least cross entropy on the draw's held-out labels, the cross entropy of each
        rate). If there is only one rate: (this rate, {})."""
        rates = self.recipe.learning_rates
        if len(rates) == 1:
            return rates[0], {}
        index, held_out = draw
        fitted, held = Subset(train, index[~held_out]), Subset(train, index[held_out])
        tried = {lr: _cross_entropy(*self.last_logits(fitted, held, lr, seed)) for lr in rates}
        return min(tried, key=lambda lr: np.nan_to_num(tried[lr], nan=np.inf)), tried  # it may have diverged

    def _classify(self, variables: Any, images: Any) -> Any:
        params, state = variables
        h = self.method.features(params, state, jnp.asarray(self.backbone.normalization(images)))
        return self.method.networks["classifier"].apply({"params": params["classifier"]}, h)

    def first_state(self, lr: float, seed: int) -> TrainState:
        example = jnp.zeros((1, *self.recipe.augmentation.size, len(self.backbone.mean)))
        state = create_state(self.method, self.tx, example, seed)
        given = jax.device_get(self.backbone.variables)  # a copy, as the step donates its state
        batch_stats = {**state.model_state["batch_stats"], "backbone": given.get("batch_stats", {})}
        own = given["params"]
        params = {**state.params, "backbone": {k: own.get(k, first) for k, first in state.params["backbone"].items()}}
        if self.recipe.classifier_std is not None:
            params["classifier"] = _drawn(params["classifier"], self.recipe.classifier_std, seed)
        state.opt_state[-1].hyperparams["step_size"] = jnp.float32(lr)
        return dist.replicate(state.replace(params=params, model_state={"batch_stats": batch_stats}), self.mesh)

    def train(self, source: Source, lr: float, seed: int, measured: Sequence[int]) -> Iterator[tuple[int, TrainState]]:
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
        steps = range(1, self.recipe.steps + 1)
        for number in tqdm(steps, f"fine-tuning at learning rate {lr:g}", unit=" steps", delay=1, leave=False):
            state, metrics = self.step(state, dist.shard_batch(next(batches), self.mesh))
            metrics["loss"].block_until_ready()
            if number in measured:
                yield number, state

    def last_logits(self, fitted: Source, held: Source, lr: float, seed: int) -> Any:
        """(logits, labels) of held-out images after the last step."""
        for _, state in self.train(fitted, lr, seed, [self.recipe.steps]):
            return self.logits(state, held)

    def logits(
        self, state: TrainState, source: Source
    ) -> tuple[Float[np.ndarray, "images classes"], Int[np.ndarray, " images"]]:
        """(logits, labels) of the images that have a label."""
        variables = (state.params, state.model_state)
        batch_size = -(-EVALUATION_BATCH // jax.device_count()) * jax.device_count()
        logits, labels, _ = extract(
            lambda images: self.classify(variables, dist.shard_batch(images, self.mesh)),
            pipeline.eval_batches(source, image_size=self.image_size, batch_size=batch_size),
            batch_size,
        )
        return logits[labels >= 0], labels[labels >= 0]


def _drawn(classifier: Any, std: float, seed: int) -> Any:
    """A classifier's parameters with newly drawn weights; its biases stay."""
    draw = nn.initializers.normal(std)
    key = jax.random.fold_in(jax.random.key(seed), AFTER_VIEWS)
    return jax.tree.map(lambda leaf: draw(key, leaf.shape) if leaf.ndim > 1 else leaf, classifier)


def _cross_entropy(logits: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]) -> float:
    return float(jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)))
