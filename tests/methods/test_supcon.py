import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule

VIEWS = tuple(jax.random.normal(jax.random.key(0), (2, 6, 16, 16, 1)))
LABELS = np.array([3, 0, 3, -1, 0, -1])  # two classes, two images without


def make(num_classes=10, **options):
    run = Schedule(batch_size=6, steps=100, steps_per_epoch=10, num_images=1000, num_classes=num_classes)
    return METHODS["supcon"](models.create("resnet8", stages=(1,)), run, **dict(projector=(12, 8)) | options)


def test_loss_is_over_the_views_of_all_images_of_the_class():
    method = make(temperature=0.3, base_temperature=0.2)
    params, state = method.init(jax.random.key(1), VIEWS[0])
    batch = {"views": VIEWS, "label": jnp.asarray(LABELS)}
    output = method.loss(params, state, batch, jax.random.key(2))
    z = jnp.concatenate(VIEWS)  # row i and row i + 6 show image i
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        z, _ = module.apply(variables, z, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(output.embeddings, z.reshape(2, 6, 8), rtol=1e-5, atol=1e-6)
    z = np.asarray(z, np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    logits = z @ z.T / 0.3
    expected = []
    for i in range(12):
        positives = [p for p in range(12) if p != i and (p % 6 == i % 6 or LABELS[p % 6] == LABELS[i % 6] >= 0)]
        log_sum = np.log(np.sum(np.exp(np.delete(logits[i], i))))
        expected.append(np.mean([log_sum - logits[i, p] for p in positives]))
    np.testing.assert_allclose(output.loss, 0.3 / 0.2 * np.mean(expected), rtol=1e-5)


def test_projector_is_the_authors_without_batch_norm():
    params, _ = make().init(jax.random.key(0), VIEWS[0])
    assert jax.tree.map(jnp.shape, params["projector"]) == {
        "Dense_0": {"kernel": (16, 12), "bias": (12,)},
        "Dense_1": {"kernel": (12, 8), "bias": (8,)},
    }


@pytest.mark.parametrize("labels", [[0, 0, 0, 0, 0, 0], [-1] * 6, [0, 1, 0, 1, 2, 3]])
def test_chance_level_is_the_loss_of_equal_embeddings_whatever_the_labels(labels):
    equal = losses.supcon(jnp.ones((6, 2, 4)), jnp.array(labels), temperature=0.3, base_temperature=0.2)
    np.testing.assert_allclose(make(temperature=0.3, base_temperature=0.2).chance_level, equal, rtol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_classes": 0}, "labels, and this data set has none .*; use simclr"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"base_temperature": 0.0}, "base_temperature must be above 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
