import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ssl_jax import losses
from tests.losses import checks

REFERENCE = np.load(Path(__file__).parents[1] / "references" / "losses_decorrelation.npz")


def tico(z1, z2, covariance, **arguments):
    return losses.tico(z1, z2, covariance, beta=0.6, rho=3.0, **arguments)[0]


def draw_tico(batch=10, dim=4):
    root = np.random.default_rng(1).normal(size=(dim, 9)).astype(np.float32)
    return *checks.draw(batch, dim), root @ root.T / 9


def draw_views(batch=10, dim=4):
    return (np.stack(checks.draw(batch, dim, count=3)),)


def draw_bags(batch=10, dim=4):
    """Two arrays [batch, views, dim]."""
    arrays = checks.draw(batch, dim, count=6)
    return np.stack(arrays[:3], axis=1), np.stack(arrays[3:], axis=1)


def draw_sigreg(batch=10, dim=4):
    return checks.draw(batch, dim)[0], np.random.default_rng(1).normal(size=(dim, 7)).astype(np.float32)


def draw_with_queue(batch=10, dim=4):
    return *checks.draw(batch, dim), unit(checks.draw(5, dim, seed=3)[0])


def hypersphere_queue(z1, z2, queue, **options):
    return losses.hypersphere(z1, z2, queue=queue, t=2.0, weight=0.7, alpha=1.5, **options)


CASES = {  # loss, drawing of arrays, those that have the batch, and its axis in each
    "tico": (tico, draw_tico, (0, 1), [0, 0, 0]),
    "mmcr": (functools.partial(losses.mmcr, weight=0.3), draw_bags, (0, 1), [0, 0]),
    "frossl": (losses.frossl, draw_views, (0,), [1]),
    "emp_ssl": (functools.partial(losses.emp_ssl, invariance=3.0), draw_views, (0,), [1]),
    "hypersphere": (
        functools.partial(losses.hypersphere, t=2.0, weight=0.7, alpha=1.5),
        functools.partial(checks.draw, batch=10),
        (0, 1),
        [0, 0],
    ),
    "hypersphere_queue": (hypersphere_queue, draw_with_queue, (0, 1), [0, 0, 0]),
    "sigreg": (losses.sigreg, draw_sigreg, (0,), [0, 0]),
}
# Dimensions fewer than the images, and more where that takes another way.
DIMS = pytest.mark.parametrize(
    "name, dim", [*((name, 4) for name in CASES), ("mmcr", 12), ("frossl", 12), ("emp_ssl", 12)]
)


# Two images on each device.
@DIMS
def test_over_devices_is_that_of_the_whole_batch(name, dim):
    loss, draw, split, axes = CASES[name]
    arrays = draw(dim=dim)
    split = [i in split for i in range(len(arrays))]
    checks.same_on_devices(loss, *arrays, split=split, axes=axes, devices=(5,))


def test_a_single_image_on_each_device():
    for name in ("tico", "hypersphere"):
        loss, _, split, axes = CASES[name]
        arrays = draw_tico(batch=8)[: len(axes)]
        checks.same_on_devices(loss, *arrays, split=[i in split for i in range(len(arrays))], axes=axes, devices=(2, 8))


def test_bfloat16_is_computed_in_float32():
    checks.computed_in_float32(*[(loss, draw(), split) for loss, draw, split, _ in CASES.values()])


@DIMS
def test_is_finite(name, dim):
    loss, draw, split, axes = CASES[name]
    checks.finite_everywhere(loss, *draw(batch=10, dim=dim), scaled=split, axes=axes)


@pytest.mark.parametrize(
    "name, arrays, loss",
    [
        ("tico", ("z1", "z2", "covariance"), lambda *arrays: losses.tico(*arrays)[0]),
        ("mmcr", ("online", "momentum"), None),
        ("frossl", ("views",), None),
        ("emp_ssl", ("views",), losses.emp_ssl),
        ("hypersphere", ("z1", "z2"), None),
        ("sigreg", ("z1", "directions"), None),
    ],
)
def test_equals_lightly(name, arrays, loss):
    arrays = [REFERENCE[a].astype(np.float32) for a in arrays]
    value, gradients = checks.value_and_grad(loss or CASES[name][0], *arrays, argnums=CASES[name][2])
    np.testing.assert_allclose(value, REFERENCE[f"{name}/value"], rtol=1e-5)
    np.testing.assert_allclose(gradients[0], REFERENCE[f"{name}/gradient"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["frossl", "emp_ssl"])
@pytest.mark.parametrize("shape", [(4, 3), (1, 4, 3)])
@pytest.mark.usefixtures("unchecked")
def test_refuses_other_views(name, shape):
    with pytest.raises(ValueError, match="two views"):
        getattr(losses, name)(np.ones(shape))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# tico


def reference_tico(z1, z2, covariance, rho):
    z1, z2 = unit(z1), unit(z2)
    return np.mean([1 - a @ b + rho * a @ covariance @ a for a, b in zip(z1, z2, strict=True)])


def new_covariance(z1, covariance, beta):
    return beta * covariance + (1 - beta) * np.mean([np.outer(a, a) for a in unit(z1.astype(np.float64))], axis=0)


def test_tico_is_the_papers_formula():
    z1, z2, covariance = draw_tico()
    updated = new_covariance(z1, covariance, 0.6)  # constant: it carries no gradient
    reference = lambda z1, z2, covariance: reference_tico(z1, z2, updated, 3.0)  # noqa: E731
    checks.equals_reference(tico, reference, z1, z2, covariance, argnums=(0, 1))
    assert not np.any(jax.jit(jax.grad(tico, argnums=2))(z1, z2, covariance))


def test_tico_returns_the_covariance():
    # Of orthogonal images z^T C z = (1 - beta) / n for all. And lightly's.
    @jax.jit
    def run(eye, *arrays):
        return losses.tico(3.0 * eye, eye, 0.0 * eye, beta=0.9, rho=8.0), losses.tico(*arrays)[1]

    arrays = [REFERENCE[a].astype(np.float32) for a in ("z1", "z2", "covariance")]
    (loss, covariance), lightlys = run(np.eye(4, dtype=np.float32), *arrays)
    np.testing.assert_allclose(loss, 8.0 * 0.1 / 4, rtol=1e-6)
    np.testing.assert_allclose(covariance, 0.1 * np.eye(4) / 4, rtol=1e-6)
    np.testing.assert_allclose(lightlys, REFERENCE["tico/covariance"], rtol=1e-5, atol=1e-7)


def test_tico_returns_the_same_covariance_on_all_devices():
    # As replicated state, which shard_map's check accepts only if it was reduced; in float32 for bfloat16 too.
    z1, z2, covariance = draw_tico(batch=8)
    z1, z2 = z1.astype(jnp.bfloat16), z2.astype(jnp.bfloat16)
    split, whole = PartitionSpec("i"), PartitionSpec()
    mapped = jax.shard_map(
        lambda z1, z2, c: (lax.pmean((out := losses.tico(z1, z2, c, axis_name="i"))[0], "i"), out[1]),
        mesh=Mesh(np.array(jax.devices()[:4]), ("i",)),
        in_specs=(split, split, whole),
        out_specs=(whole, whole),
    )
    updated = jax.jit(mapped)(z1, z2, covariance)[1]
    assert updated.dtype == jnp.float32
    expected = new_covariance(z1.astype(np.float32), covariance, 0.9)
    np.testing.assert_allclose(updated, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((4, 3), (5, 3), (3, 3)), "of one shape"),
        (((4,), (4,), (4, 4)), "of one shape"),
        (((4, 3), (4, 3), (4, 4)), "covariance"),
        (((4, 3), (4, 3), (3,)), "covariance"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_tico_refuses_other_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        losses.tico(*map(np.ones, shapes))


# mmcr


def nuclear_norm(z):
    return np.sum(np.linalg.svd(z, compute_uv=False))


def reference_mmcr(*bags, weight):
    z = np.concatenate([unit(bag) for bag in bags], axis=1)
    return weight * np.mean([nuclear_norm(views) for views in z]) - nuclear_norm(z.mean(1))


# Fewer dimensions than images and views, more than both, and between the two.
@pytest.mark.parametrize("dim, momentum", [(4, True), (12, True), (4, False)])
def test_mmcr_is_the_papers_formula(dim, momentum):
    bags = draw_bags(dim=dim) if momentum else draw_bags(dim=dim)[:1]
    checks.equals_reference(CASES["mmcr"][0], functools.partial(reference_mmcr, weight=0.3), *bags)


def test_mmcr_of_orthogonal_images():
    # C = I; the singular values of n equal rows of length 1 are sqrt(n) and zeros.
    online = np.tile(np.eye(4)[:, None], (1, 3, 1))
    np.testing.assert_allclose(losses.mmcr(5.0 * online, online, weight=0.3), 0.3 * np.sqrt(6) - 4, rtol=1e-5)


def test_mmcr_of_fewer_directions_than_images_and_dimensions():
    basis = np.random.default_rng(0).normal(size=(2, 8))
    online = (np.random.default_rng(1).normal(size=(6, 3, 2)) @ basis).astype(np.float32)
    value, gradient = checks.value_and_grad(losses.mmcr, online)
    np.testing.assert_allclose(value, reference_mmcr(online.astype(np.float64), weight=5e-3), rtol=1e-5)
    assert np.abs(gradient).max() < 1.0


@pytest.mark.parametrize("shapes", [((4, 3), (4, 3)), ((4, 2, 3), (4, 3, 3))])
@pytest.mark.usefixtures("unchecked")
def test_mmcr_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match="of one shape"):
        losses.mmcr(*map(np.ones, shapes))


# frossl


def reference_frossl(views):
    z = [v / np.linalg.norm(v, axis=0) for v in views]
    mean, dim, total = np.mean(z, axis=0), views.shape[-1], 0.0
    for v in z:
        covariance = v.T @ v / np.trace(v.T @ v)
        total += 2 * np.log(np.linalg.norm(covariance)) + len(z) * dim * np.mean((v - mean) ** 2)
    return total


@pytest.mark.parametrize("dim", [4, 12])
def test_frossl_is_the_papers_formula(dim):
    checks.equals_reference(CASES["frossl"][0], reference_frossl, *draw_views(dim=dim))


@pytest.mark.parametrize(
    "z, expected",
    [
        (np.eye(10, 4), -3 * np.log(4)),  # a flat spectrum, of 4 values 1/4
        (np.eye(10)[:, [0, 1, 1, 1]], 3 * np.log(10 / 16)),  # 3/4 and 1/4
        (np.ones((10, 4)), 0.0),  # rank 1
        (np.eye(10, 12), -3 * np.log(10)),  # fewer images than dimensions: ten columns of 1, two of 0
    ],
)
def test_frossl_at_known_spectra(z, expected):
    views = np.stack([z, 3.0 * z, 0.5 * z]).astype(np.float32)
    value, _ = checks.value_and_grad(CASES["frossl"][0], views, argnums=(0,))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


# emp_ssl


def reference_emp_ssl(views, eps, invariance):
    z = unit(views)
    _, batch, dim = z.shape
    rates = [np.linalg.slogdet(np.eye(dim) + dim / (batch * eps) * v.T @ v)[1] / 2 for v in z]
    return -np.mean(rates) - invariance * np.mean(np.sum(z * unit(z.mean(0)), axis=-1))


@pytest.mark.parametrize("dim, eps", [(4, 0.2), (12, 0.2), (4, 0.4)])
def test_emp_ssl_is_the_papers_formula(dim, eps):
    loss = CASES["emp_ssl"][0] if eps == 0.2 else functools.partial(losses.emp_ssl, eps=eps, invariance=3.0)
    checks.equals_reference(loss, functools.partial(reference_emp_ssl, eps=eps, invariance=3.0), *draw_views(dim=dim))


def test_emp_ssl_wants_the_volume_large():
    spread = np.tile(7.0 * np.eye(4), (2, 1, 1))
    collapsed = np.ones((2, 4, 4))
    np.testing.assert_allclose(losses.emp_ssl(spread, eps=0.2), -4 * np.log(1 + 1 / 0.2) / 2 - 200, rtol=1e-6)
    np.testing.assert_allclose(losses.emp_ssl(collapsed, eps=0.2), -np.log(1 + 4 / 0.2) / 2 - 200, rtol=1e-6)


# hypersphere


def reference_hypersphere(z1, z2, t, weight, alpha):
    z1, z2 = unit(z1), unit(z2)

    def uniformity(z):
        pairs = [(i, j) for i in range(len(z)) for j in range(i)]
        return np.log(np.mean([np.exp(-t * np.sum((z[i] - z[j]) ** 2)) for i, j in pairs]))

    return np.mean(np.linalg.norm(z1 - z2, axis=1) ** alpha) + weight * (uniformity(z1) + uniformity(z2)) / 2


@pytest.mark.parametrize(
    "loss, arguments",
    [
        (losses.hypersphere, dict(t=1.0, weight=1.0, alpha=2.0)),
        (CASES["hypersphere"][0], CASES["hypersphere"][0].keywords),
    ],
)
def test_hypersphere_is_the_papers_formula(loss, arguments):
    checks.equals_reference(loss, functools.partial(reference_hypersphere, **arguments), *checks.draw(batch=10))


def test_hypersphere_with_a_queue_is_the_papers_equation_18():
    z1, z2, queue = draw_with_queue()
    fixed = unit(z2.astype(np.float64))

    def reference(z1, *_):
        z1 = unit(z1)
        pairs = [(z1[i], z1[j]) for i in range(len(z1)) for j in range(i)] + [(row, key) for row in z1 for key in queue]
        uniformity = np.log(np.mean([np.exp(-2.0 * np.sum((a - b) ** 2)) for a, b in pairs]))
        return np.mean(np.linalg.norm(z1 - fixed, axis=1) ** 1.5) + 0.7 * uniformity

    # The gradients for the teacher's, z2 and the queue, are 0.
    checks.equals_reference(hypersphere_queue, reference, z1, z2, queue, argnums=(0, 1))
    assert not np.any(jax.jit(jax.grad(hypersphere_queue, argnums=2))(z1, z2, queue))


def test_hypersphere_of_orthogonal_images():
    ts = (1.0, 100.0)  # exp(-200) is 0 in float32

    @jax.jit
    def run(z):
        hypersphere = functools.partial(losses.hypersphere, z, weight=0.5)
        return [(hypersphere(z, t=t), hypersphere(-z, t=t, alpha=3.0)) for t in ts]

    for t, values in zip(ts, run(np.eye(4, dtype=np.float32)), strict=True):
        np.testing.assert_allclose(values, (-0.5 * 2 * t, 8 - 0.5 * 2 * t), rtol=1e-6)


def test_hypersphere_of_equal_views_has_a_gradient():
    z, _ = checks.draw()
    _, gradient = checks.value_and_grad(functools.partial(losses.hypersphere, alpha=1.0), z, z)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4,), (4,)), ((1, 3), (1, 3))])
@pytest.mark.usefixtures("unchecked")
def test_hypersphere_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match=r"of one shape|at least two"):
        losses.hypersphere(*map(np.ones, shapes))


# sigreg

KNOTS = np.linspace(0, 3, 17)
TRAPEZOID = np.where((KNOTS == 0) | (KNOTS == 3), 1, 2) * 3 / 16 * np.exp(-(KNOTS**2) / 2)  # times the window


def reference_sigreg(z, directions):
    total = 0.0
    for direction in directions.T:
        u = z @ direction / np.linalg.norm(direction)
        for t, weight in zip(KNOTS, TRAPEZOID, strict=True):
            total += weight * np.abs(np.mean(np.exp(1j * t * u)) - np.exp(-(t**2) / 2)) ** 2
    return len(z) * total / directions.shape[1]


def test_sigreg_is_the_papers_formula():
    z, directions = draw_sigreg()
    checks.equals_reference(CASES["sigreg"][0], reference_sigreg, z, directions, argnums=(0,))


SIGREG_OF_MANY = jax.jit(jax.vmap(losses.sigreg, in_axes=(0, None)))


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("batch", [8, 64])
def test_sigreg_of_normal_embeddings_has_a_known_expectation(batch, shift):
    # Of draws of N(shift, 1): E |mean exp(itu) - phi|^2 = |exp(it shift) - 1|^2 phi^2 + (1 - phi^2) / batch. Without
    # shift that gives 1.0525 for every batch.
    phi = np.exp(-(KNOTS**2) / 2)
    expected = np.sum(TRAPEZOID * (batch * (2 - 2 * np.cos(KNOTS * shift)) * phi**2 + 1 - phi**2))
    if shift == 0:
        np.testing.assert_allclose(expected, 1.0525, atol=1e-4)
    z = shift + np.random.default_rng(0).normal(size=(4000, batch, 1)).astype(np.float32)
    values = np.asarray(SIGREG_OF_MANY(z, np.ones((1, 1))))
    error = np.std(values) / np.sqrt(len(values))
    assert error < 0.03 * expected
    np.testing.assert_allclose(np.mean(values), expected, atol=4 * error)


def test_sigreg_holds_no_array_of_all_knots():
    z, directions = np.ones((256, 8)), np.ones((8, 512))
    compiled = jax.jit(jax.grad(losses.sigreg)).lower(z, directions).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 6 * 4 * 256 * 512  # 17 knots


@pytest.mark.parametrize("shapes", [((4, 3), (4, 3)), ((4,), (4, 2)), ((4, 3), (3,))])
@pytest.mark.usefixtures("unchecked")
def test_sigreg_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match="directions"):
        losses.sigreg(*map(np.ones, shapes))


def test_sigreg_refuses_one_knot():
    with pytest.raises(ValueError, match="knots"):
        losses.sigreg(np.ones((4, 3)), np.ones((3, 2)), knots=1)
