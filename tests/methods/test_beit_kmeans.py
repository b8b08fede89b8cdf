import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from sklearn.cluster import KMeans

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.toolkit.codebook import draw_points, fit
from tests.losses.checks import mesh_of

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
MASK = np.random.default_rng(0).random((4, 16)) < 0.4


@functools.cache
def vit():
    vit = dict(dim=16, depth=2, heads=2, patch_size=4, image_size=16, pool="norm_mean")
    return models.create("vit_tiny_patch16_224", **vit)


def images(seed=0):
    return np.random.default_rng(seed).normal(size=(4, 16, 16, 1)).astype(np.float32)


def make(**options):
    return METHODS["beit_kmeans"](vit(), RUN, **{"codes": 8, "tokenizer_steps": 3, **options})


@functools.cache
def start():
    return jax.device_get(make().init(jax.random.key(1), images()[:1]))


@functools.cache
def compiled():
    """(params, state, images) -> the loss, the state and the metrics after it, the images' points, and the logits."""
    method = make()

    @jax.jit
    def run(params, state, x):
        mask = jnp.asarray(MASK)
        batch = {"views": (x,), "masks": (mask,), "index": jnp.arange(4)}
        output = method.loss(params, state, batch, jax.random.key(2))
        return (
            output.loss,
            output.state,
            output.metrics,
            method.points(x),
            method.predict(params, x, mask, None, None)[0],
        )

    return lambda *arrays: jax.device_get(run(*arrays))


def patches(x):
    """[images, patches, pixels]"""
    return x.reshape(4, 4, 4, 4, 4).transpose(0, 1, 3, 2, 4).reshape(4, 16, 16)


def empty(codes, pixels):
    return {"centroids": np.zeros((codes, pixels), np.float32), "sizes": np.zeros(codes, np.float32)}


def codebook_of(centroids, sizes):
    return {"centroids": np.array(centroids, np.float32), "sizes": np.array(sizes, np.float32)}


def compiled_fit(decay, restart_below):
    """(codebook, points) -> as `fit`, for images 0, 1, ..."""

    @jax.jit
    def run(codebook, points, seed):
        key = jax.random.key(seed)
        index, options = jnp.arange(len(points)), dict(decay=decay, restart_below=restart_below)
        return fit(codebook, points, key, index, **options, axis_name=None)

    return lambda codebook, points, seed=0: jax.device_get(run(codebook, points, seed))


def test_fit_averages_the_points_of_each_code_over_batches():
    # Two codes on a line; batches of 4 points of one number each.
    step = compiled_fit(decay=0.75, restart_below=0.1)
    points = np.array([[[0.0], [2.0]], [[10.0], [12.0]]], np.float32)
    tokens, counts, codebook = step(codebook_of([[1], [9]], [0, 0]), points)
    np.testing.assert_array_equal(tokens, [[0, 0], [1, 1]])
    np.testing.assert_array_equal(counts, [2, 2])
    np.testing.assert_allclose(codebook["centroids"], [[1.0], [11.0]])  # new codes: this batch alone
    np.testing.assert_allclose(codebook["sizes"], [2.0, 2.0])
    points = np.array([[[0.0], [3.0]], [[3.0], [13.0]]], np.float32)
    tokens, _, codebook = step(codebook, points)
    np.testing.assert_array_equal(tokens, [[0, 0], [0, 1]])
    sizes = [0.75 * 2 + 0.25 * 3, 0.75 * 2 + 0.25 * 1]
    np.testing.assert_allclose(codebook["sizes"], sizes)
    expected = [[(0.75 * 2 + 0.25 * 6) / sizes[0]], [(0.75 * 22 + 0.25 * 13) / sizes[1]]]
    np.testing.assert_allclose(codebook["centroids"], expected, rtol=1e-6)


def test_a_dead_code_forgets_its_points_and_begins_anew_at_one_far_from_its_centroid():
    codebook = codebook_of([[0], [50], [60]], [4, 0.1, 2])
    points = np.array([[[0.0], [0.0]], [[0.0], [8.0]]], np.float32)
    # The even share is 4 / 3; of it the second code has 0.05 / 1.33, less than a tenth, the third 1 / 1.33.
    tokens, _, moved = compiled_fit(decay=0.5, restart_below=0.1)(codebook, points)
    np.testing.assert_array_equal(tokens, [[0, 0], [0, 0]])
    np.testing.assert_allclose(moved["sizes"], [0.5 * 4 + 0.5 * 4, 0.0, 0.5 * 2])
    # Never one of the three points at a centroid's place.
    np.testing.assert_allclose(moved["centroids"], [[(0.5 * 4 * 0 + 0.5 * 8) / 4], [8.0], [60.0]])


def test_a_new_codebook_gives_all_points_one_token_and_begins_at_points_of_the_batch():
    points = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    tokens, _, moved = compiled_fit(decay=0.9, restart_below=0.05)(empty(5, 3), points)
    assert not np.any(tokens)
    np.testing.assert_allclose(moved["centroids"][0], np.mean(points, axis=(0, 1)), atol=1e-6)
    rows = points.reshape(-1, 3)
    found = [int(np.argmin(np.abs(rows - row).sum(axis=1))) for row in moved["centroids"][1:]]
    np.testing.assert_array_equal(rows[found], moved["centroids"][1:])
    assert len(set(found)) == 4


def test_fit_gets_as_near_to_the_points_as_scikit_learn():
    x = np.random.default_rng(0).normal(size=(6400, 3)).astype(np.float32) ** 3  # some far out
    step, codebook = compiled_fit(decay=0.9, restart_below=0.05), empty(16, 3)
    for number, points in enumerate(np.tile(x, (2, 1)).reshape(-1, 64, 4, 3)):
        *_, codebook = step(codebook, points, number)

    def distance(centroids):
        return np.mean(np.min(np.sum((x[:, None] - centroids) ** 2, axis=-1), axis=1))

    of_scikit_learn = distance(KMeans(16, n_init=1, random_state=0).fit(x).cluster_centers_)
    assert distance(codebook["centroids"]) < 1.3 * of_scikit_learn


def test_fit_over_devices_is_that_of_the_whole_batch():
    points, index = np.random.default_rng(0).normal(size=(16, 3, 5)).astype(np.float32), np.arange(16) + 100
    codebook = codebook_of(points[:6, 0], [9, 0, 9, 9, 0, 0])

    def step(codebook, points, index, axis_name=None):
        return fit(codebook, points, jax.random.key(1), index, decay=0.9, restart_below=0.5, axis_name=axis_name)

    def sharded(devices):
        return jax.shard_map(
            functools.partial(step, axis_name="i"),
            mesh=mesh_of(devices),
            in_specs=(P(), P("i"), P("i")),
            out_specs=(P("i"), P(), P()),
            check_vma=True,
        )

    run = jax.jit(lambda *arguments: (step(*arguments), [sharded(n)(*arguments) for n in (2, 8)]))
    expected, found = jax.device_get(run(codebook, points, index))
    for one in found:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), one, expected)


def test_drawn_points_are_different_ones_each_as_likely_as_its_weight():
    points = np.arange(12, dtype=np.float32).reshape(4, 3, 1)
    weights = np.array([0, 1, 2] * 4, np.float32).reshape(4, 3)

    @jax.jit
    def run(points, weights):
        keys = jax.random.split(jax.random.key(0), 2000)
        return jax.vmap(lambda key: draw_points(key, jnp.arange(4), points, weights, 8, None))(keys)

    drawn = np.asarray(run(points, weights))[..., 0].astype(int)
    assert all(len(set(row)) == 8 for row in drawn)
    # All but those of weight 0, in some order; the first is one of weight 2 in two of three cases.
    assert not np.any(drawn % 3 == 0)
    assert 0.62 < np.mean(drawn[:, 0] % 3 == 2) < 0.71  # four deviations
    first = np.bincount(drawn[:, 0], minlength=12)
    assert first[2::3].min() > 260 and first[1::3].min() > 110  # of 333 and 167


def test_tokens_of_normalized_patches_do_not_depend_on_brightness_and_contrast():
    method, plain, x = make(), make(normalize=False), images()
    run = jax.jit(lambda x, changed: (method.points(x), method.points(changed), plain.points(x)))
    normalized, of_changed, unchanged = jax.device_get(run(x, 3.0 * x + 7.0))
    np.testing.assert_allclose(of_changed, normalized, atol=1e-4)
    np.testing.assert_array_equal(unchanged, patches(x))


def test_loss_is_the_cross_entropy_of_the_hidden_patches_tokens():
    params, state = start()
    *_, points, _ = compiled()(params, state, images())
    centroids = points[:2].reshape(-1, 16)[[0, 5, 9, 13, 17, 21, 25, 30]]
    state = {**state, "codebook": codebook_of(centroids, np.zeros(8))}
    loss, after, metrics, _, logits = compiled()(params, state, images())
    tokens = np.argmin(np.sum((points[:, :, None] - centroids.astype(np.float64)) ** 2, axis=-1), axis=-1)
    logits = logits.astype(np.float64)
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    np.testing.assert_allclose(loss, -np.mean([log_p[i, j, tokens[i, j]] for i, j in np.argwhere(MASK)]), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean((np.argmax(logits, -1) == tokens)[MASK]), rtol=1e-6)
    p = np.bincount(tokens.ravel(), minlength=8) / tokens.size
    np.testing.assert_allclose(metrics["codebook_perplexity"], np.exp(-np.sum(p * np.log(p))), rtol=1e-5)
    np.testing.assert_allclose(metrics["frequency_loss"], -np.sum(p * np.log(p)), rtol=1e-5)
    means = [points[tokens == k].mean(axis=0) for k in range(8)]
    np.testing.assert_allclose(after["codebook"]["centroids"], means, rtol=1e-4, atol=1e-5)


def test_hidden_pixels_are_not_seen():
    params, state = start()
    x, hidden = images(), np.repeat(np.repeat(MASK.reshape(4, 4, 4), 4, axis=1), 4, axis=2)[..., None]

    def predict(x):
        return compiled()(params, state, x.astype(np.float32))[-1]

    np.testing.assert_allclose(predict(np.where(hidden, 100.0, x)), predict(x), atol=1e-5)
    assert np.abs(predict(np.where(hidden, x, 100.0)) - predict(x)).max() > 1e-3


def test_the_tokenizer_is_frozen_after_its_steps():
    (params, state), method, run = start(), make(), compiled()
    _, fitted, *_ = run(params, method.update(params, state, jnp.int32(2)), images())
    assert np.any(fitted["codebook"]["centroids"] != 0)
    frozen = method.update(params, fitted, jnp.int32(3))
    _, after, *_ = run(params, frozen, images(1) + 1.0)
    jax.tree.map(np.testing.assert_array_equal, after["codebook"], fitted["codebook"])
    # Nor is a code restarted that has no points any more.
    unused = codebook_of(fitted["codebook"]["centroids"], np.zeros(8))
    unused["centroids"][0] = 1e3
    _, after, *_ = run(params, {**frozen, "codebook": unused}, images(1) + 1.0)
    jax.tree.map(np.testing.assert_array_equal, after["codebook"], unused)


def test_the_pictures_show_tokens_as_their_centroids():
    (params, state), x = start(), images()
    centroids = patches(x)[0, :8]  # so that these patches of the first image are their own centroids
    state = {**state, "codebook": codebook_of(centroids, np.ones(8))}
    batch = {"views": (x,), "masks": (MASK,), "index": np.arange(4)}
    made = jax.device_get(jax.jit(make(normalize=False).pictures)(params, state, batch, jax.random.key(2)))
    assert set(made) == {"image", "tokens", "seen", "reconstruction"}
    tokens, seen, drawn = (patches(made[name]) for name in ("tokens", "seen", "reconstruction"))
    np.testing.assert_allclose(tokens[0, :8], centroids, rtol=1e-6)
    is_centroid = np.any(np.all(drawn[:, :, None] == centroids, axis=-1), axis=-1)
    assert np.all(is_centroid[MASK])
    np.testing.assert_array_equal(drawn[~MASK], patches(x)[~MASK])
    assert not np.any(seen[MASK])


def test_the_last_kernels_of_block_l_begin_smaller_by_sqrt_2l():
    params, _ = start()
    spread = {
        (block, *layer): np.std(params["backbone"][f"blocks_{block}"][layer[0]][layer[1]]["kernel"])
        for block in (0, 1)
        for layer in (("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2"))
    }
    for (block, *layer), deviation in spread.items():
        factor = np.sqrt(2 * (block + 1)) if layer[1] in ("proj", "fc2") else 1.0
        # A normal distribution of deviation 0.02 that is cut at one of them has 0.54 of that; 256 numbers at least.
        np.testing.assert_allclose(deviation, 0.54 * 0.02 / factor, rtol=0.15)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"codes": 65},
            "codes=65 start as patches of the first batch, which has 4 images with 16 patches each; use codes=64",
        ),
        ({"codes": 1}, "codes must be at least 2, got 1"),
        ({"tokenizer_steps": 0}, "tokenizer_steps must be at least 1, got 0"),
        ({"decay": 1.5}, r"decay must be in 0\.\.1, got 1.5"),
    ],
)
def test_impossible_tokenizers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make(**options).init, jax.random.key(1), images()[:1])
