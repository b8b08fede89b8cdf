import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.data.augment import Augmentation, make_augment
from ssl_jax.data.normalization import Normalization
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.toolkit.places import map_positions
from tests.methods.drawn import draw


def make(backbone=None, **options):
    run = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
    backbone = backbone or models.create("resnet8", stages=(1,))
    options = {"projector": (16, 16, 8), "local_projector": (12, 12, 6), "matches": (3, 2)} | options
    return METHODS["vicregl"](backbone, run, **options)


def a_batch():
    """Two global views, whose maps are 2 x 2, and a local one of a single position."""
    rng = np.random.default_rng(0)
    views = tuple(rng.normal(size=(8, side, side, 1)).astype(np.float32) for side in (4, 4, 2))
    corners = rng.uniform(0, 0.5, (3, 8, 4))
    mirrored = np.broadcast_to(np.arange(8) % 2, (3, 8))[..., None]
    return {
        "views": views,
        "boxes": tuple(np.concatenate([corners, mirrored, 0.0 * mirrored], axis=-1).astype(np.float32)),
    }


def test_positions_lie_where_the_map_does():
    boxes = np.array([[0.0, 0.0, 1.0, 1.0, 0.0, 0.0], [0.5, 0.2, 0.4, 0.8, 1.0, 0.0]], np.float32)
    positions = np.asarray(jax.jit(map_positions, static_argnums=1)(boxes, (2, 4))).reshape(2, 2, 4, 2)
    np.testing.assert_allclose(positions[0, :, 0], [[0.25, 0.125], [0.75, 0.125]], rtol=1e-6)
    np.testing.assert_allclose(positions[0, 1, :, 1], [0.125, 0.375, 0.625, 0.875], rtol=1e-6)
    np.testing.assert_allclose(positions[1, :, 0, 0], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(positions[1, 0, :, 1], [0.9, 0.7, 0.5, 0.3], rtol=1e-6)


def test_positions_are_those_of_the_pixels_that_a_view_shows():
    """Images of a ramp from left to right and one of another slope down: a view's values tell where it is."""
    rows, columns = np.mgrid[0:32, 0:32]
    image = np.stack([rows, columns], axis=-1)[None].repeat(12, axis=0) * 8 / np.float32(255)
    ways = [
        dict(flip=0.0),
        dict(flip=1.0),
        dict(flip=0.0, flip_vertical=1.0),
        dict(flip=0.5, flip_vertical=0.5, quarter_turns=0.75),
        dict(flip=0.5, flip_vertical=0.5, quarter_turns=0.75, rotate=60.0),
    ]
    augmentations = [Augmentation(size=(16, 16), crop_area=(0.3, 0.6), **way) for way in ways]
    augmentations.append(Augmentation(size=(12, 18), crop_area=(0.3, 0.6), flip_vertical=0.5, rotate=60.0))
    augment = make_augment(augmentations, Normalization((0.0, 0.0), (1.0, 1.0)))

    @jax.jit
    def run(batch):
        batch = augment(jax.random.key(0), batch)
        views = batch["views"]
        grids = [view.shape[1:3] for view in views]
        of_views = [map_positions(b, g, g[1] / g[0]) for b, g in zip(batch["boxes"], grids, strict=True)]
        return views, [x.reshape(12, *grid, 2) for x, grid in zip(of_views, grids, strict=True)]

    views, positions = jax.device_get(run({"image": image, "index": np.arange(12)}))
    for view, of_view, made in zip(views, positions, augmentations, strict=True):
        shown = (view * 255 / 8 + 0.5) / 32
        # Black corners show no place. At the edges the box cuts the interpolation's kernel off.
        inner = np.abs(of_view - 0.5).max(axis=-1) < 0.45
        seen = (view.min(axis=-1) > 0) & inner
        seen[:, [0, -1]] = seen[:, :, [0, -1]] = False
        assert seen.mean() > 0.3
        # A nearest neighbor is up to half a pixel of the view off, here 1/24 of the view's shorter side.
        np.testing.assert_allclose(of_view[seen], shown[seen], atol=0.04 if made.rotate else 0.01)


@pytest.mark.slow
def test_loss_is_that_of_pooled_features_and_of_maps_over_pairs_with_a_global_view():
    method = make(num_local=1, alpha=0.6)

    @jax.jit
    def run(batch):
        params, state = method.init(jax.random.key(3), batch["views"][0])
        output = method.loss(params, state, batch, jax.random.key(4))

        def apply(name, x, **options):
            variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
            return method.networks[name].apply(variables, x, train=True, mutable=["batch_stats"], **options)[0]

        h = [apply("backbone", x, method="feature_map") for x in batch["views"]]
        assert [x.shape[1:3] for x in h] == [(2, 2), (2, 2), (1, 1)]
        z = jnp.stack([apply("projector", x.mean((1, 2))) for x in h])
        maps = [apply("local_projector", x.reshape(8, -1, x.shape[-1])) for x in h]
        positions = [map_positions(box, x.shape[1:3]) for box, x in zip(batch["boxes"], h, strict=True)]
        local = [
            losses.vicregl_local(maps[i], maps[j], positions[i], positions[j], matches=(3, 2))
            for i, j in [(0, 1), (0, 2), (1, 0), (1, 2)]
        ]
        return output, state, z, losses.vicregl_global(z), local

    output, state, z, of_pooled, local = jax.device_get(run(a_batch()))
    np.testing.assert_allclose(output.embeddings, z, atol=1e-4)
    np.testing.assert_allclose(output.metrics["global_loss"], of_pooled, rtol=1e-4)
    np.testing.assert_allclose(output.metrics["local_loss"], np.mean(local), rtol=1e-4)
    expected = 0.6 * output.metrics["global_loss"] + 0.4 * output.metrics["local_loss"]
    np.testing.assert_allclose(output.loss, expected, rtol=1e-6)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), state, output.state)
    assert all(jax.tree.leaves(changed))


def test_mirroring_and_turning_matter():
    method = make()

    @jax.jit
    def metrics_of(params, state, views, boxes):
        return method.loss(params, state, {"views": views, "boxes": boxes}, jax.random.key(4)).metrics

    batch = {name: value[:2] for name, value in a_batch().items()}
    boxes = batch["boxes"]
    mirrored = boxes[0] * [1, 1, 1, 1, -1, 1] + [0, 0, 0, 0, 1, 0]
    turned = boxes[0] + [0, 0, 0, 0, 0, 90]
    params, state = draw(method, batch["views"][0])
    metrics = metrics_of(params, state, batch["views"], boxes)
    for changed in (mirrored, turned):
        other = metrics_of(params, state, batch["views"], (changed.astype(np.float32), boxes[1]))
        np.testing.assert_array_equal(metrics["global_loss"], other["global_loss"])
        assert abs(float(metrics["local_loss"]) - float(other["local_loss"])) > 1e-3


def test_views_and_heads():
    method = make(num_local=3)
    assert method.views == ("global1", "global2", "local1", "local2", "local1")
    params, _ = jax.eval_shape(method.init, jax.random.key(0), np.zeros((1, 16, 16, 1), np.float32))
    shapes = jax.tree.map(jnp.shape, params)
    for name, widths in (("projector", (16, 16, 8)), ("local_projector", (12, 12, 6))):
        assert shapes[name]["Dense_0"] == {"kernel": (16, widths[0]), "bias": widths[:1]}
        assert shapes[name]["Dense_2"] == {"kernel": widths[1:]}


def test_chance_level_is_the_loss_of_equal_embeddings():
    method = make(alpha=0.6)
    maps, positions, pooled = (np.ones(shape, np.float32) for shape in [(8, 4, 6), (8, 4, 2), (2, 8, 6)])

    @jax.jit
    def run(maps, positions, pooled):
        local = losses.vicregl_local(maps, maps, positions, positions)
        return 0.6 * losses.vicregl_global(pooled) + 0.4 * local

    np.testing.assert_allclose(run(maps, positions, pooled), method.chance_level, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"alpha": 1.2}, "alpha must be in 0..1, got 1.2"),
        ({"num_local": -1}, "num_local must be at least 0, got -1"),
        ({"matches": (20, 0)}, r"matches must be at least 1, got \(20, 0\)"),
        ({"variance": 0.0}, "variance must be above 0"),
        (
            {"backbone": models.create("vit_tiny_patch16_224")},
            "needs a feature map, which ViT does not have; use a ResNet",
        ),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
