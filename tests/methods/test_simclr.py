import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from ssl_jax import dist, losses, models, optim
from ssl_jax.data import opening, pipeline, sources
from ssl_jax.data.augment import Augmentation, make_augment
from ssl_jax.data.normalization import Normalization
from ssl_jax.evaluation.knn import weighted_knn
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.training import step
from ssl_jax.training.state import create_state

NORMALIZATION = Normalization((0.286,), (0.353,))


def make(batch_size=64, **options):
    schedule = Schedule(batch_size=batch_size, steps=120, steps_per_epoch=10, num_images=1000)
    return METHODS["simclr"](models.create("resnet8"), schedule, projector=(32, 16), **options)


def _projection(method, params, state, x):
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return x


@pytest.mark.slow
def test_loss_is_nt_xent_of_the_projections_of_both_views_in_one_batch():
    method = make(temperature=0.3)
    x1, x2 = jax.random.normal(jax.random.key(0), (2, 6, 16, 16, 1))
    params, state = method.init(jax.random.key(1), x1[:1])
    output = method.loss(params, state, {"views": (x1, x2)}, jax.random.key(2))
    z = _projection(method, params, state, jnp.concatenate([x1, x2]))
    np.testing.assert_allclose(output.loss, losses.nt_xent(z[:6], z[6:], temperature=0.3), rtol=1e-5)
    np.testing.assert_allclose(output.embeddings, jnp.stack([z[:6], z[6:]]), rtol=1e-4, atol=1e-5)
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state, output.state)
    assert all(jax.tree.leaves(changed))  # every running statistic moved


def test_projector_is_the_authors():
    method = make()
    params, _ = method.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    layers = params["projector"]
    shapes = jax.tree.map(jnp.shape, layers)
    assert shapes["Dense_0"] == {"kernel": (64, 32)} and shapes["Dense_1"] == {"kernel": (32, 16)}
    assert shapes["BatchNorm_0"] == {"scale": (32,), "bias": (32,)} and shapes["BatchNorm_1"] == {"scale": (16,)}


def test_chance_level_is_the_loss_of_equal_embeddings():
    z = jnp.ones((64, 4))
    np.testing.assert_allclose(make(batch_size=64).chance_level, losses.nt_xent(z, z), rtol=1e-6)


def test_features_are_the_backbones_before_the_projector():
    method = make()
    x = jax.random.normal(jax.random.key(0), (3, 16, 16, 1))
    params, state = method.init(jax.random.key(1), x)
    h = method.features(params, state, x)
    assert h.shape == (3, method.backbone.dim)
    variables = {"params": params["backbone"], "batch_stats": state["batch_stats"]["backbone"]}
    np.testing.assert_array_equal(h, method.backbone.apply(variables, x))


@pytest.mark.parametrize("temperature", [0.0, -0.1])
def test_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match=f"temperature must be above 0, got {temperature}"):
        make(temperature=temperature)


@pytest.mark.slow
def test_learns_on_real_images():
    """kNN on Fashion-MNIST beats that of the same network untrained, its statistics calibrated or not."""
    source = opening.load("fashion_mnist", split="train", channels=1)
    method = make(batch_size=128, temperature=0.1)
    view = Augmentation(size=(28, 28), crop_area=(0.2, 1.0), brightness=0.6, contrast=0.6)
    tx = optim.adamw(optim.warmup_cosine(4e-3, warmup_steps=20, steps=300), weight_decay=1e-4)
    mesh = Mesh(np.asarray(jax.devices()[:1]), (dist.AXIS,))
    augment = make_augment([view, view], NORMALIZATION)
    train_step = step.TrainStep(method=method, tx=tx, augment=augment, axis_name=dist.AXIS, log_every=100)
    # Here the speed of the compiled code matters.
    optimized = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    state = dist.replicate(create_state(method, tx, jnp.zeros((1, 28, 28, 1)), seed=0), mesh)
    some = sources.Subset(source, np.arange(6000))
    held = list(pipeline.eval_batches(some, image_size=(28, 28), batch_size=500))
    labels = np.concatenate([batch["label"] for batch in held])

    @jax.jit
    def features(variables, images):
        return method.backbone.apply(variables, NORMALIZATION(images))

    def accuracy(variables):
        h = np.concatenate([features(variables, batch["image"]) for batch in held])
        predicted = weighted_knn(h[1000:], labels[1000:], h[:1000], num_classes=10, k=(20,))[20]
        return 100 * np.mean(predicted == labels[:1000])

    def calibrated(variables):
        update = jax.jit(functools.partial(method.backbone.apply, train=True, mutable=["batch_stats"]))
        for batch in held * 3:
            variables = {**variables, **update(variables, NORMALIZATION(batch["image"]))[1]}
        return variables

    untrained = method.backbone_variables(state.params, state.model_state)
    before = max(accuracy(untrained), accuracy(calibrated(untrained)))
    read = pipeline.train_batches(source, seed=0, batch_size=128, image_size=(28, 28), crops=[view.crop] * 2)
    batches = (dist.shard_batch(batch, mesh) for batch in read)
    mapped = dist.map_step(train_step, mesh).lower(state, next(batches)).compile(optimized)
    for _ in range(300):
        state, _ = mapped(state, next(batches))
    after = accuracy(method.backbone_variables(state.params, state.model_state))
    assert after > before + 2, (before, after)
