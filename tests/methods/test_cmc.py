import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.toolkit import instances

NUM_IMAGES, NEGATIVES = 40, 30
INDEX = np.array([3, 39, 0, 17])


def make(**options):
    schedule = Schedule(batch_size=4, steps=20, steps_per_epoch=6, num_images=NUM_IMAGES)
    backbone = models.create("split_resnet8", stages=(1,), parts="bands")
    options = {"dim": 8, "negatives": NEGATIVES, "temperature": 0.5} | options
    return METHODS["cmc"](backbone, schedule, **options)


def unit(z):
    z = np.asarray(z, np.float64)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def nce(scores, log_z):
    """Noise-contrastive estimation of scores whose first column is the own image's."""
    p, noise = np.exp(scores) / np.exp(log_z), NEGATIVES / NUM_IMAGES
    return -np.mean(np.log(p[:, 0] / (p[:, 0] + noise)) + np.sum(np.log(noise / (p[:, 1:] + noise)), axis=1))


def test_each_half_is_found_in_the_bank_of_the_other():
    method = make()
    batch = {"views": (np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32),), "index": INDEX}
    params, state = jax.device_get(method.init(jax.random.key(1), batch["views"][0]))

    @jax.jit
    def step(params, state, batch, rng):
        """With the backbone's output, and the negatives of `instances.loss`."""
        variables = {"params": params["backbone"], "batch_stats": state["batch_stats"]["backbone"]}
        h, _ = method.backbone.apply(variables, batch["views"][0], train=True, mutable=["batch_stats"])

        def negatives(index):
            return jax.random.randint(jax.random.fold_in(jax.random.split(rng)[1], index), (NEGATIVES,), 0, NUM_IMAGES)

        return method.loss(params, state, batch, rng), h, jax.lax.map(negatives, batch["index"])

    output, h, drawn = jax.device_get(step(params, state, batch, jax.random.key(2)))
    layers = [params["projector"][name] for name in ("first", "second")]
    halves = (h[:, :8], h[:, 8:])
    z = [unit(half @ layer["kernel"] + layer["bias"]) for half, layer in zip(halves, layers, strict=True)]
    np.testing.assert_allclose(output.embeddings, z, atol=1e-5)

    candidates = np.concatenate([INDEX[:, None], drawn], axis=1)
    banks = [np.asarray(bank, np.float64) for bank in state["banks"]]
    expected = []
    for half, bank, log_z in zip(z, reversed(banks), output.state["log_z"], strict=True):
        scores = np.einsum("bd,bkd->bk", half, bank[candidates]) / 0.5
        np.testing.assert_allclose(log_z, np.log(NUM_IMAGES * np.mean(np.exp(scores))), rtol=1e-5)
        expected.append(nce(scores, log_z))
    np.testing.assert_allclose(output.loss, sum(expected), rtol=1e-5)
    # Each half moves its own bank.
    for half, bank, new_bank in zip(z, banks, output.state["banks"], strict=True):
        np.testing.assert_allclose(new_bank[INDEX], unit(0.5 * bank[INDEX] + 0.5 * half), atol=1e-5)

    later, *_ = step(params, output.state, batch, jax.random.key(3))
    np.testing.assert_array_equal(later.state["log_z"], output.state["log_z"])


def test_chance_level_is_the_loss_of_equal_embeddings():
    options = dict(num_images=NUM_IMAGES, negatives=NEGATIVES, softmax=False, temperature=0.5, axis_name=None)

    @jax.jit
    def run(z, bank, index):
        return instances.loss(z, bank, index, jax.random.key(0), instances.first_log_z(), **options)[0]

    same = np.full((NUM_IMAGES, 4), 0.5, np.float32)
    np.testing.assert_allclose(make().chance_level, 2 * run(same[:4], same, INDEX), rtol=1e-6)


def test_a_backbone_without_halves_is_refused():
    schedule = Schedule(batch_size=4, steps=20, steps_per_epoch=6, num_images=NUM_IMAGES)
    with pytest.raises(ValueError, match=r"two halves, got a ResNet; use a model\.name such as split_resnet50"):
        METHODS["cmc"](models.create("resnet8"), schedule)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"negatives": -1}, {"momentum": -0.5}, {"dim": 0}])
def test_refusals(options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        make(**options)
