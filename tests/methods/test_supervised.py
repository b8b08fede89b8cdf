import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run

RUN = Run(batch_size=6, steps=100, steps_per_epoch=10, num_images=60, num_classes=3)


def make(run=RUN, **options):
    return METHODS["supervised"](models.create("resnet8", stages=(1,), width=2.0), run, **options)


def loss_of(method, x, labels):
    params, state = method.init(jax.random.key(1), x[:1])
    batch = {"views": (x,), "label": jnp.asarray(labels), "index": jnp.arange(len(x))}
    return method.loss(params, state, batch, jax.random.key(2))[0]


def test_unlabeled_images_have_no_part_in_the_loss():
    x = jax.random.normal(jax.random.key(0), (6, 12, 12, 1))
    labels = np.array([0, 1, 2, -1, -1, 1])
    params, state = make().init(jax.random.key(1), x[:1])
    logits = x
    for name, module in make().networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        logits, _ = module.apply(variables, logits, train=True, mutable=["batch_stats"])
    log_p = np.asarray(jax.nn.log_softmax(logits))
    expected = -np.mean([log_p[i, label] for i, label in enumerate(labels) if label >= 0])
    np.testing.assert_allclose(loss_of(make(), x, labels), expected, rtol=1e-4)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_an_image_is_mixed_with_its_neighbor_by_its_share(options):
    # Image i is i everywhere, so what is mixed shows.
    x = jnp.broadcast_to(jnp.arange(64.0)[:, None, None, None], (64, 16, 16, 1))
    mixed, share = make(**options).mix(jax.random.key(0), jnp.arange(64), x)
    partner = np.arange(64) ^ 1
    expected = np.asarray(share) * np.arange(64) + (1 - np.asarray(share)) * partner
    np.testing.assert_allclose(np.mean(mixed, axis=(1, 2, 3)), expected, rtol=1e-4)
    assert np.std(share) > 0.1 and np.all((share >= 0) & (share <= 1))
    pure = np.all(
        (mixed[..., 0] == np.arange(64)[:, None, None]) | (mixed[..., 0] == partner[:, None, None]), axis=(1, 2)
    )
    if options == {"cutmix": 1.0}:
        assert np.all(pure)
    elif options == {"mixup": 0.8}:
        assert np.all(np.std(mixed, axis=(1, 2)) < 1e-5) and np.mean(pure) < 0.2
    else:
        assert 0.2 < np.mean(pure) < 0.8  # each is drawn for about half


def test_what_is_mixed_with_an_unlabeled_image_has_no_part_in_the_loss():
    x = jax.random.normal(jax.random.key(0), (6, 12, 12, 1))
    method = make(mixup=0.8)
    params, state = method.init(jax.random.key(1), x[:1])
    params["classifier"] = jax.tree.map(jnp.zeros_like, params["classifier"])  # log 3 for each image that counts
    batch = {"views": (x,), "label": jnp.array([0, 1, 2, -1, -1, -1]), "index": jnp.arange(6)}
    loss = method.loss(params, state, batch, jax.random.key(2))[0]
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-5)


def test_what_an_image_becomes_depends_on_its_index_alone():
    x = jax.random.normal(jax.random.key(0), (8, 16, 16, 1))
    method = make(mixup=0.8, cutmix=1.0)
    mixed, _ = method.mix(jax.random.key(0), jnp.arange(8), x)
    last, _ = method.mix(jax.random.key(0), jnp.arange(4, 8), x[4:])
    np.testing.assert_array_equal(mixed[4:], last)


def test_data_without_labels_are_refused():
    with pytest.raises(ValueError, match="needs labels of at least 2 classes, the data have 0"):
        make(dataclasses.replace(RUN, num_classes=0))


def test_an_odd_number_on_a_device_cannot_be_paired():
    with pytest.raises(ValueError, match="pairs the images of a device, which has 3"):
        loss_of(make(mixup=0.5), jnp.zeros((3, 12, 12, 1)), np.zeros(3, int))
