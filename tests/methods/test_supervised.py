import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from tests.methods.drawn import draw

RUN = Schedule(batch_size=6, steps=100, steps_per_epoch=10, num_images=60, num_classes=3)


def make(run=RUN, **options):
    return METHODS["supervised"](models.create("resnet8", stages=(1,)), run, **options)


class Pixels(nn.Module):
    """A backbone whose features are the pixels."""

    @nn.compact
    def __call__(self, x, train=False, axis_name=None):
        return x.reshape(len(x), -1)


def images(count=6, side=12):
    return np.random.default_rng(0).normal(size=(count, side, side, 1)).astype(np.float32)


def test_unlabeled_images_have_no_part_in_the_loss():
    method, labels = make(), np.array([0, 1, 2, -1, -1, 1])

    @jax.jit
    def run(params, state, x, labels):
        batch = {"views": (x,), "label": labels, "index": jnp.arange(6)}
        loss = method.loss(params, state, batch, jax.random.key(2)).loss
        for name, module in method.networks.items():
            variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
            x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
        return loss, x

    loss, logits = jax.device_get(run(*draw(method, images()[:1]), images(), labels))
    logits = logits.astype(np.float64)
    log_p = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
    expected = -np.mean([log_p[i, label] for i, label in enumerate(labels) if label >= 0])
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_an_image_and_its_label_are_mixed_with_its_neighbor_by_its_share(options):
    method = METHODS["supervised"](Pixels(), RUN, **options)
    kernel = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32) / 1000

    @jax.jit
    def run(index, x, labels, kernel):
        params = {"backbone": {}, "classifier": {"Dense_0": {"kernel": kernel, "bias": jnp.zeros(3)}}}
        state = {"batch_stats": {"backbone": {}, "classifier": {}}}
        batch = {"views": (x,), "label": labels, "index": index}
        output = method.loss(params, state, batch, jax.random.key(2))
        return output.loss, output.embeddings[0]

    # Image i is i everywhere, so what is mixed shows. Of some the label is not known.
    index, labels = np.arange(64), np.arange(64) % 5 % 4 - 1
    x = np.broadcast_to(np.float32(index)[:, None, None, None], (64, 16, 16, 1))
    loss, mixed = jax.device_get(run(index, x, labels, kernel))
    partner = index ^ 1
    share = (mixed.mean(axis=1) - partner) / (index - partner)
    assert np.std(share) > 0.1 and np.all((share >= 0) & (share <= 1))
    pure = np.all((mixed == index[:, None]) | (mixed == partner[:, None]), axis=1)
    if options == {"cutmix": 1.0}:
        assert np.all(pure)
    else:
        assert np.all(np.std(mixed[~pure], axis=1) < 1e-4)  # of one share everywhere
        assert np.mean(pure) < 0.2 if options == {"mixup": 0.8} else 0.2 < np.mean(pure) < 0.8  # about half
    # The target is mixed by the same share; what is mixed with an image without a label has no part in the loss.
    logits = mixed.astype(np.float64) @ kernel
    log_p = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
    counted = (labels >= 0) & (labels[partner] >= 0)
    of_image = -share * log_p[index, labels] - (1 - share) * log_p[index, labels[partner]]
    np.testing.assert_allclose(loss, np.mean(of_image[counted]), rtol=1e-4)
    # What an image becomes depends on its index, not on its place in the batch.
    _, reversed_ = run(index[::-1], x[::-1], labels[::-1], kernel)
    np.testing.assert_array_equal(reversed_, mixed[::-1])


def test_data_without_labels_are_refused():
    with pytest.raises(ValueError, match="needs labels of at least 2 classes, the data have 0"):
        make(dataclasses.replace(RUN, num_classes=0))


def test_an_odd_number_on_a_device_cannot_be_paired():
    method = make(mixup=0.5)

    def run(x, labels):
        params, state = method.init(jax.random.key(1), x[:1])
        batch = {"views": (x,), "label": labels, "index": jnp.arange(3)}
        return method.loss(params, state, batch, jax.random.key(2)).loss

    with pytest.raises(ValueError, match="pairs the images on a device, and a device has 3"):
        jax.eval_shape(run, images(3), np.zeros(3, int))
