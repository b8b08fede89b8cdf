import functools
from pathlib import Path

import numpy as np
import pytest

from ssl_jax import losses
from tests.losses import checks

REFERENCE = np.load(Path(__file__).parents[1] / "references" / "losses_decorrelation.npz")

# Uncorrelated columns of mean 0 and biased variance 1; batch != dim, so a wrong axis shows.
Z = np.array([[1, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]], np.float32)
WEIGHTS = dict(invariance=5.0, variance=7.0, covariance=3.0)  # none is 1, no two alike


def draw_pair(batch=10):
    return checks.draw(batch, dim=4, scale=0.7)  # deviations on both sides of the hinge at 1


def draw_views(batch=10):
    return (np.stack(checks.draw(batch, dim=4, count=3, scale=0.7)),)


def draw_maps(batch=4):
    """Maps of 6 and of 4 positions, of dim 3, and where the positions are."""
    rng = np.random.default_rng(0)
    shapes = [(batch, 6, 3), (batch, 4, 3), (batch, 6, 2), (batch, 4, 2)]
    return tuple((0.8 * rng.normal(size=shape)).astype(np.float32) for shape in shapes)


CASES = {  # loss, drawing of arrays, further arguments of same_on_devices
    "barlow_twins": (functools.partial(losses.barlow_twins, off_diagonal_weight=0.1), draw_pair, {}),
    "vicreg": (functools.partial(losses.vicreg, **WEIGHTS), draw_pair, {}),
    "vibcreg": (functools.partial(losses.vibcreg, **WEIGHTS), draw_pair, {}),
    "vicregl_global": (functools.partial(losses.vicregl_global, **WEIGHTS), draw_views, dict(axes=[1])),
    "vicregl_local": (
        functools.partial(losses.vicregl_local, matches=(3, 2), **WEIGHTS),
        draw_maps,
        dict(argnums=(0, 1)),
    ),
    "w_mse": (losses.w_mse, draw_pair, {}),
}


def differentiated(name):
    return {"vicregl_global": (0,)}.get(name, (0, 1))


# Two rows on each device.
@pytest.mark.parametrize("name", CASES)
def test_over_devices_is_that_of_the_whole_batch(name):
    loss, draw, arguments = CASES[name]
    arrays = draw()
    devices = (arrays[0].shape[arguments.get("axes", [0])[0]] // 2,)
    checks.same_on_devices(loss, *arrays, devices=devices, **arguments)


def test_means_are_the_same_on_any_number_of_devices():
    # barlow_twins is the example of all means over devices; eight have a single row each.
    checks.same_on_devices(CASES["barlow_twins"][0], *draw_pair(batch=8), devices=(1, 2, 4, 8))


def test_bfloat16_is_computed_in_float32():
    checks.computed_in_float32(*[(loss, draw(), differentiated(name)) for name, (loss, draw, _) in CASES.items()])


@pytest.mark.parametrize("name", CASES)
def test_is_finite(name):
    loss, draw, arguments = CASES[name]
    scales = (1e-30, 1e-8, 1.0, 1e4, 1e18)
    if name.startswith("vi"):
        scales = (1e-30, 1e-8, 1.0, 1e4, 1e8)  # the loss itself grows with the fourth power of the scale
    scaled = differentiated(name)  # not the positions of vicregl_local
    checks.finite_everywhere(loss, *draw(), scaled=scaled, axes=arguments.get("axes"), scales=scales)


@pytest.mark.parametrize(
    "name, arrays",
    [
        ("barlow_twins", ("z1", "z2")),
        ("vicreg", ("z1", "z2")),
        ("vicregl_global", ("views",)),
        ("vicregl_local", ("maps1", "maps2", "positions1", "positions2")),
        ("w_mse", ("z1", "z2")),
    ],
)
def test_equals_lightly(name, arrays):
    loss, argnums = CASES[name][0], differentiated(name)
    if name == "vicregl_local":  # matches of all pairs
        loss, argnums = functools.partial(losses.vicregl_local, **WEIGHTS), (0, 1, 2, 3)
    arrays = [REFERENCE[a].astype(np.float32) for a in arrays]
    value, gradients = checks.value_and_grad(loss, *arrays, argnums=argnums)
    np.testing.assert_allclose(value, REFERENCE[f"{name}/value"], rtol=1e-5)
    np.testing.assert_allclose(gradients[0], REFERENCE[f"{name}/gradient"], rtol=1e-4, atol=1e-5)
    assert not np.any(gradients[2:])  # the positions only choose the pairs


PAIRS = ["barlow_twins", "vicreg", "vibcreg", "w_mse"]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4,), (4,)), ((4, 3), (4, 2))])
@pytest.mark.usefixtures("unchecked")
def test_refuses_other_shapes(name, shapes):
    with pytest.raises(ValueError, match="of one shape"):
        getattr(losses, name)(*map(np.ones, shapes))


@pytest.mark.parametrize("name", PAIRS)
def test_refuses_a_single_image(name):
    with pytest.raises(ValueError, match="two images"):
        getattr(losses, name)(np.ones((1, 3)), np.ones((1, 3)))


# barlow_twins


def reference_barlow_twins(z1, z2, weight):
    z1, z2 = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (z1, z2))
    dim, total = z1.shape[1], 0.0
    for i in range(dim):
        for j in range(dim):
            c = np.mean(z1[:, i] * z2[:, j])
            total += (1 - c) ** 2 if i == j else weight * c**2
    return total


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_barlow_twins_is_the_papers_formula(scale):
    reference = functools.partial(reference_barlow_twins, weight=0.1)
    checks.equals_reference(CASES["barlow_twins"][0], reference, *checks.draw(batch=10, scale=scale))


@pytest.mark.parametrize(
    "z2, expected",
    [
        (Z, 0.0),  # C = I
        (-Z, 12.0),  # C = -I: dim * (1 + 1)^2
        (Z[:, [1, 2, 0]], 3.015),  # C a permutation without fixed points: dim + 0.005 * dim
    ],
)
def test_barlow_twins_at_known_correlations(z2, expected):
    value = losses.barlow_twins(Z, z2, off_diagonal_weight=5e-3)
    np.testing.assert_allclose(value, expected, atol=2e-4)  # eps = 1e-5 moves the second by 1.2e-4


def test_barlow_twins_sums_what_is_small_off_the_diagonal():
    # All |C_ij| of i != j are about 1e-5, so in float32 the sum of all C_ij^2 less that of all C_ii^2 is 0 here.
    rng = np.random.default_rng(0)
    z = rng.normal(size=(256, 64))
    z = 16.0 * np.linalg.qr(z - z.mean(0))[0] @ (np.eye(64) + 1e-5 * rng.normal(size=(64, 64)))
    expected = np.corrcoef(z, rowvar=False)
    np.fill_diagonal(expected, 1e-5)  # 1 - C_ii, by the eps of the variance
    z = z.astype(np.float32)
    value = losses.barlow_twins(z, z, off_diagonal_weight=1.0)
    np.testing.assert_allclose(value, np.sum(expected**2), rtol=1e-2)


# vicreg and its kin


def hinge(z):
    return np.mean(np.maximum(0.0, 1.0 - np.sqrt(z.var(0, ddof=1) + 1e-4)))


def covariance_penalty(z):
    c = np.cov(z, rowvar=False)
    return (np.sum(c**2) - np.sum(np.diag(c) ** 2)) / len(c)


def reference_vicreg(z1, z2, invariance, variance, covariance):
    loss = invariance * np.mean((z1 - z2) ** 2) + variance * (hinge(z1) + hinge(z2)) / 2
    return loss + covariance * (covariance_penalty(z1) + covariance_penalty(z2))


def test_vicreg_is_the_papers_formula():
    checks.equals_reference(CASES["vicreg"][0], functools.partial(reference_vicreg, **WEIGHTS), *draw_pair())


@pytest.mark.parametrize(
    "z1, z2, expected",
    [
        (Z, Z, 0.0),  # variance 4/3 > 1 everywhere, no covariance
        (Z, -Z, 25 * 4.0),
        (Z + 7.0, Z, 25 * 49.0),
        (0 * Z, 0 * Z, 25 * 0.99),  # collapsed: 1 - sqrt(1e-4)
        (Z[:, [0, 0, 1]], Z[:, [0, 0, 1]], 2 * 2 * (4 / 3) ** 2 / 3),  # one pair of equal columns in both views
    ],
)
def test_vicreg_at_known_covariances(z1, z2, expected):
    np.testing.assert_allclose(losses.vicreg(z1, z2), expected, rtol=1e-5, atol=1e-6)


def reference_vibcreg(z1, z2, invariance, variance, covariance):
    loss = invariance * np.mean((z1 - z2) ** 2)
    for z in (z1, z2):
        c = np.corrcoef(z, rowvar=False)
        loss += variance * hinge(z) + covariance * np.mean((c - np.diag(np.diag(c))) ** 2)
    return loss


def test_vibcreg_is_the_papers_formula():
    checks.equals_reference(CASES["vibcreg"][0], functools.partial(reference_vibcreg, **WEIGHTS), *draw_pair())


def test_vibcreg_of_columns_of_unlike_scale():
    z = Z[:, [0, 0, 1]] * np.array([2.0, 30.0, 400.0], np.float32)
    np.testing.assert_allclose(losses.vibcreg(z, z), 2 * 200 * 2 / 9, rtol=1e-5)


def reference_vicregl_global(views, num_global, invariance, variance, covariance):
    pairs = [(i, j) for i in range(num_global) for j in range(len(views)) if i != j]
    loss = invariance * np.mean([np.mean((views[i] - views[j]) ** 2) for i, j in pairs])
    loss += variance * np.mean([hinge(z) for z in views])
    return loss + covariance * np.mean([covariance_penalty(z) for z in views])


@pytest.mark.parametrize("num_global", [1, 2])
def test_vicregl_global_is_the_codes_formula(num_global):
    loss = CASES["vicregl_global"][0]
    if num_global != 2:  # the default
        loss = functools.partial(loss, num_global=num_global)
    reference = functools.partial(reference_vicregl_global, num_global=num_global, **WEIGHTS)
    checks.equals_reference(loss, reference, *draw_views())


def reference_vicregl_local(maps1, maps2, positions1, positions2, matches, invariance, variance, covariance):
    def of_pairs(maps, others, where, where_others, count):
        x, y = [], []
        for image in range(len(maps)):
            distances = np.linalg.norm(where[image][:, None] - where_others[image][None], axis=-1)
            closest = sorted(np.argsort(distances.min(1))[:count])
            x.append(maps[image][closest])
            y.append(others[image][distances.argmin(1)[closest]])
        x, y = np.stack(x, axis=1), np.stack(y, axis=1)  # [pairs, batch, dim]
        loss = invariance * np.mean((x - y) ** 2) + variance * np.mean([hinge(z) for z in (*x, *y)])
        return loss + covariance * np.mean([covariance_penalty(z) for z in (*x, *y)])

    def both(where1, where2, counts):
        there = of_pairs(maps1, maps2, where1, where2, counts[0])
        return (there + of_pairs(maps2, maps1, where2, where1, counts[1])) / 2

    return both(positions1, positions2, matches) + both(maps1, maps2, (None, None))


def test_vicregl_local_is_the_codes_formula():
    reference = functools.partial(reference_vicregl_local, matches=(3, 2), **WEIGHTS)
    checks.equals_reference(CASES["vicregl_local"][0], reference, *draw_maps(), argnums=(0, 1))


def test_vicregl_local_finds_a_shifted_map():
    # Map 2 is map 1 in another order, at the places it was moved to: each position has its own as neighbor both ways.
    maps, _, positions, _ = draw_maps()
    order = np.array([3, 1, 0, 5, 2, 4])
    value = losses.vicregl_local(maps, maps[:, order], positions, positions[:, order], variance=0, covariance=0)
    assert value == 0.0
    assert losses.vicregl_local(maps, maps[:, order], positions, positions, variance=0, covariance=0) > 1.0


@pytest.mark.parametrize(
    "views, num_global", [((4, 3), 1), ((1, 4, 3), 1), ((2, 4, 3), 0), ((2, 4, 3), 3), ((2, 1, 3), 2)]
)
@pytest.mark.usefixtures("unchecked")
def test_vicregl_global_refuses_other_shapes(views, num_global):
    with pytest.raises(ValueError, match="got"):
        losses.vicregl_global(np.ones(views), num_global=num_global)


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((4, 6, 3), (4, 5, 2), (4, 6, 2), (4, 5, 2)), "one batch and dim"),
        (((4, 6, 3), (3, 5, 3), (4, 6, 2), (3, 5, 2)), "one batch and dim"),
        (((4, 3), (4, 3), (4, 2), (4, 2)), "one batch and dim"),
        (((4, 6, 3), (4, 5, 3), (4, 5, 2), (4, 5, 2)), "positions"),
        (((4, 6, 3), (4, 5, 3), (4, 6, 2), (4, 5, 3)), "positions"),
        (((1, 6, 3), (1, 5, 3), (1, 6, 2), (1, 5, 2)), "two images"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_vicregl_local_refuses_other_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        losses.vicregl_local(*map(np.ones, shapes))


def test_vicregl_local_refuses_no_matches():
    with pytest.raises(ValueError, match="matches"):
        losses.vicregl_local(*draw_maps(), matches=(20, 0))


# w_mse


def reference_w_mse(z1, z2, eps):
    whitened = []
    for z in (z1, z2):
        covariance = (1 - eps) * np.cov(z, rowvar=False) + eps * np.eye(z.shape[1])
        w = np.linalg.solve(np.linalg.cholesky(covariance), (z - z.mean(0)).T).T
        whitened.append(w / np.linalg.norm(w, axis=1, keepdims=True))
    return np.mean(2 - 2 * np.sum(whitened[0] * whitened[1], axis=1))


@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_w_mse_is_the_papers_formula(eps):
    loss = functools.partial(losses.w_mse, eps=eps) if eps else losses.w_mse
    checks.equals_reference(loss, functools.partial(reference_w_mse, eps=eps), *checks.draw(batch=10))


def test_w_mse_sees_through_any_triangular_map():
    # Of z A^T, A lower triangular with a positive diagonal, the Cholesky factor is A L: both whiten to the same.
    z, _ = checks.draw(batch=10)
    a = np.array([[3, 0, 0, 0], [1, 0.5, 0, 0], [-2, 1, 2, 0], [0, 4, 1, 1]], np.float32)
    w_mse = lambda *arrays: checks.value_and_grad(losses.w_mse, *arrays, argnums=(0, 1))[0]  # noqa: E731
    np.testing.assert_allclose(w_mse(z, 5.0 + z @ a.T), 0.0, atol=1e-4)
    np.testing.assert_allclose(w_mse(z, -z), 4.0, rtol=1e-6)
    assert w_mse(z, z @ a) > 0.1  # an upper triangular one is seen


def test_w_mse_is_finite_where_dimensions_depend_on_each_other():
    # Every dimension twice, and no more images than half of them, so that rounding makes the covariance indefinite.
    z, _ = checks.draw(batch=64, dim=64)
    z = np.concatenate([z, z], axis=1)
    value, gradient = checks.value_and_grad(losses.w_mse, z, z + np.float32(0.1))
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
