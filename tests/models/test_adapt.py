import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssl_jax import dist, models
from ssl_jax.methods import toolkit
from ssl_jax.models import abilities
from ssl_jax.models.adapt import as_backbone, named

SHAPE = (8, 8, 3)
IMAGES = jax.random.normal(jax.random.key(0), (16, *SHAPE))


class Switched(nn.Module):
    """Of a network that calls the switch otherwise than ours, and has BatchNorm of its own device's rows."""

    width: int = 5

    @nn.compact
    def __call__(self, images, deterministic):
        x = nn.BatchNorm(use_running_average=deterministic)(nn.Conv(self.width, (3, 3))(images))
        return jnp.mean(nn.Dropout(0.5, deterministic=deterministic)(x), axis=(1, 2))


class Mapped(nn.Module):
    def setup(self):
        self.conv = nn.Conv(4, (3, 3), strides=2)

    def feature_map(self, images):
        return self.conv(images)

    def __call__(self, images):
        return jnp.mean(self.feature_map(images), axis=(1, 2))


class Layers(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.Conv(4, 6, (3, 3), rngs=rngs)])
        self.norm, self.dropout = nnx.BatchNorm(6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, images):
        for layer in self.layers:
            images = nnx.relu(layer(images))
        return jnp.mean(self.dropout(self.norm(images)), axis=(1, 2))


def run(backbone, variables, rng=None, **options):
    return toolkit.train_apply(
        backbone, variables["params"], variables["batch_stats"], IMAGES, axis_name=None, rng=rng, **options
    )


def test_ours_stay_as_they_are_and_what_was_adapted_is_not_adapted_again():
    ours = models.create("resnet8", stages=(1,))
    assert as_backbone(ours) is ours
    adapted = as_backbone(Switched(), SHAPE)
    assert as_backbone(adapted, SHAPE) is adapted
    assert named(adapted) == named(Switched()) == "Switched()"
    assert named(Switched(width=6)) == "Switched(width=6)"


def test_a_linen_module_keeps_its_parameters_and_is_switched_by_its_own_argument():
    network, backbone = Switched(), as_backbone(Switched(), SHAPE)
    variables = backbone.init(jax.random.key(1), IMAGES)
    expected = network.init(jax.random.key(1), IMAGES, True)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    assert backbone.dim == 5
    np.testing.assert_array_equal(backbone.apply(variables, IMAGES), network.apply(variables, IMAGES, True))
    outputs = [run(backbone, variables, jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(outputs[0][0], outputs[1][0])
    assert np.any(outputs[0][0] != outputs[2][0])  # other dropout
    assert np.any(outputs[0][1]["BatchNorm_0"]["mean"] != variables["batch_stats"]["BatchNorm_0"]["mean"])


def test_a_feature_map_is_taken_over():
    backbone = as_backbone(Mapped(), SHAPE)
    variables = backbone.init(jax.random.key(1), IMAGES)
    assert abilities.has_feature_map(backbone) and not abilities.has_tokens(backbone)
    assert not abilities.has_feature_map(as_backbone(Switched(), SHAPE))
    found = backbone.apply(variables, IMAGES, train=True, axis_name=None, method="feature_map")
    assert found.shape == (16, 4, 4, 4)
    np.testing.assert_allclose(found.mean((1, 2)), backbone.apply(variables, IMAGES), rtol=1e-5, atol=1e-6)


def test_an_nnx_module_begins_as_it_is_and_equals_itself():
    network = Layers(nnx.Rngs(3))
    backbone = as_backbone(network, SHAPE)
    variables = backbone.init(jax.random.key(1), IMAGES)
    assert (backbone.dim, named(backbone)) == (6, "Layers")
    h = backbone.apply(variables, IMAGES)
    network.eval()
    np.testing.assert_allclose(h, network(IMAGES), rtol=1e-5)
    (first, stats), (second, _) = (run(backbone, variables, jax.random.key(seed)) for seed in (0, 1))
    assert np.any(first != second)  # dropout by the given key
    network.train()
    network(IMAGES)
    np.testing.assert_allclose(stats["norm_mean"], network.norm.mean[...], rtol=1e-5)

    def loss(params):
        return jnp.sum(run(backbone, {**variables, "params": params}, jax.random.key(0))[0] ** 2)

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient) if leaf.size > 6)


def test_running_statistics_of_a_devices_own_rows_are_averaged_over_devices():
    backbone, mesh = as_backbone(Switched(), SHAPE), dist.make_mesh()
    variables = backbone.init(jax.random.key(1), IMAGES)

    def stats(variables, images):
        _, new = toolkit.train_apply(
            backbone,
            variables["params"],
            variables["batch_stats"],
            images,
            axis_name=dist.AXIS,
            rng=jax.random.key(0),
        )
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (2, *x.shape)), new)

    found = dist.map_rows(stats, mesh)(variables, IMAGES)["BatchNorm_0"]["mean"]
    assert np.ptp(found, axis=0).max() == 0.0
    _, whole = run(backbone, variables, jax.random.key(0))
    np.testing.assert_allclose(found[0], whole["BatchNorm_0"]["mean"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "network, kind, message",
    [
        ("resnet18", TypeError, "a backbone is a flax.linen.Module or a flax.nnx.Module, got 'resnet18'"),
        (
            nn.Conv(4, (1, 1)),
            ValueError,
            r"gives \[2, 8, 8, 4\] for images \[2, 8, 8, 3\].*take the mean over positions",
        ),
    ],
)
def test_what_is_no_backbone_is_refused(network, kind, message):
    with pytest.raises(kind, match=message):
        as_backbone(network, SHAPE)
