import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run, _instances

NUM_IMAGES = 40


def make(**options):
    run = Run(batch_size=6, steps=20, steps_per_epoch=6, num_images=NUM_IMAGES)
    options = {"dim": 8, "temperature": 0.1, "negatives": 0} | options
    return METHODS["instdisc"](models.create("resnet8", stages=(1,)), run, **options)


def batch(seed=0):
    views = (jax.random.normal(jax.random.key(seed), (6, 16, 16, 1)),)
    return {"views": views, "index": jnp.array([3, 39, 0, 17, 21, 8])}


def start(method):
    params, state = method.init(jax.random.key(1), batch()["views"][0][:1])
    return params, state


def embeddings(method, params, state):
    x = batch()["views"][0]
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return np.asarray(x / jnp.linalg.norm(x, axis=-1, keepdims=True), np.float64)


def log_softmax(x):
    return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))


def test_without_negatives_it_is_cross_entropy_with_all_images():
    method = make()
    params, state = start(method)
    loss, (new_state, metrics) = method.loss(params, state, batch(), jax.random.key(2))
    z, bank = embeddings(method, params, state), np.asarray(state["bank"], np.float64)
    index = np.asarray(batch()["index"])
    expected = -np.mean(log_softmax(z @ bank.T / 0.1)[np.arange(6), index])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["embeddings"], [z, bank[index]], atol=1e-6)
    # After use: half of the old row, half of the new embedding; the others stay.
    moved = 0.5 * bank[index] + 0.5 * z
    np.testing.assert_allclose(
        new_state["bank"][index], moved / np.linalg.norm(moved, axis=1, keepdims=True), atol=1e-6
    )
    others = np.setdiff1d(np.arange(NUM_IMAGES), index)
    np.testing.assert_array_equal(new_state["bank"][others], state["bank"][others])


def drawn(rng, index, count):
    """The negatives of `_instances.loss`."""
    return np.stack(
        [jax.random.randint(jax.random.fold_in(rng, i), (count,), 0, NUM_IMAGES) for i in np.asarray(index)]
    )


def own_and_negatives(method, params, state, rng, count):
    """Cosines, float64: of each embedding with its own row, and with its negatives."""
    index = batch()["index"]
    z, bank = embeddings(method, params, state), np.asarray(state["bank"], np.float64)
    rows = bank[drawn(jax.random.split(rng)[1], index, count)]
    return np.sum(z * bank[np.asarray(index)], axis=1), np.einsum("bd,bkd->bk", z, rows)


def test_noise_contrastive_estimation_with_a_constant_of_the_first_batch():
    count = 30
    method = make(negatives=count, temperature=0.5)
    params, state = start(method)
    assert np.isneginf(state["log_z"])
    log_z = None
    for seed in (2, 3):
        rng = jax.random.key(seed)
        own, negatives = (np.exp(s / 0.5) for s in own_and_negatives(method, params, state, rng, count))
        if log_z is None:
            log_z = np.log(NUM_IMAGES * np.mean(np.concatenate([own[:, None], negatives], axis=1)))
        noise = count / NUM_IMAGES
        p_own, p_negatives = own / np.exp(log_z), negatives / np.exp(log_z)
        expected = -np.mean(np.log(p_own / (p_own + noise)) + np.sum(np.log(noise / (p_negatives + noise)), axis=1))
        loss, (state, _) = method.loss(params, state, batch(), rng)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(state["log_z"], log_z, rtol=1e-6)  # the second batch does not change it


def test_softmax_is_cross_entropy_among_the_own_row_and_the_negatives():
    method = make(negatives=30, softmax=True)
    params, state = start(method)
    rng = jax.random.key(2)
    own, negatives = own_and_negatives(method, params, state, rng, 30)
    loss, (new_state, _) = method.loss(params, state, batch(), rng)
    scores = np.concatenate([own[:, None], negatives], axis=1) / 0.1
    np.testing.assert_allclose(loss, -np.mean(log_softmax(scores)[:, 0]), rtol=1e-5)
    assert np.isneginf(new_state["log_z"])  # which it has no use for


def test_an_images_negatives_depend_on_its_index_alone():
    z, bank = jnp.eye(8)[:6], start(make())[1]["bank"]
    options = dict(negatives=5, softmax=True, temperature=1.0, axis_name=None)

    def value(rows):
        index = batch()["index"][rows]
        return _instances.loss(z[rows], bank, index, jax.random.key(0), jnp.zeros(()), **options)[0]

    alone = [value(np.array([i])) for i in range(6)]
    np.testing.assert_allclose(value(np.arange(6)), np.mean(alone), rtol=1e-6)
    np.testing.assert_allclose(value(np.array([4, 1])), np.mean([alone[4], alone[1]]), rtol=1e-6)


def test_proximal_adds_the_squared_distance_to_the_own_row():
    plain, pulled = make(), make(proximal=0.7)
    params, state = start(plain)
    loss, (_, metrics) = plain.loss(params, state, batch(), jax.random.key(2))
    z, rows = metrics["embeddings"]
    expected = loss + 0.7 * np.mean(np.sum((np.asarray(z) - np.asarray(rows)) ** 2, axis=1))
    np.testing.assert_allclose(pulled.loss(params, state, batch(), jax.random.key(2))[0], expected, rtol=1e-5)


@pytest.mark.parametrize("options", [{"negatives": 0}, {"negatives": 9, "softmax": True}, {"negatives": 9}])
def test_chance_level_is_the_loss_of_equal_embeddings(options):
    same = jnp.ones((6, 4)) / 2
    method = make(**options)
    options = dict(negatives=method.negatives, softmax=method.softmax, temperature=0.1, axis_name=None)
    bank = jnp.ones((NUM_IMAGES, 4)) / 2
    loss, _ = _instances.loss(same, bank, jnp.arange(6), jax.random.key(0), _instances.first_log_z(), **options)
    np.testing.assert_allclose(method.chance_level, loss, rtol=1e-6)


def test_projector_is_one_layer_and_the_bank_no_parameter():
    params, state = start(make())
    assert jax.tree.map(jnp.shape, params["projector"]) == {"Dense_0": {"kernel": (16, 8), "bias": (8,)}}
    assert state["bank"].shape == (NUM_IMAGES, 8)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"negatives": -1}, "negatives must be at least 0, .* got -1"),
        ({"momentum": 1.5}, "momentum must be in 0..1, got 1.5"),
        ({"proximal": -1.0}, "proximal must be at least 0, got -1.0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
