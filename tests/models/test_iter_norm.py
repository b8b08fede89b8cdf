import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ssl_jax.models.norm import IterNorm, inverse_root

AXIS = "data"


def correlated(batch=512, groups=2, size=3, seed=0):
    """Groups of correlated dimensions of unlike scales, off the origin."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(size=(batch, size)) @ rng.normal(size=(size, size)) for _ in range(groups)], axis=1)
    return (x * 10 ** rng.uniform(-1, 1, size=(1, groups)).repeat(size, axis=1) + 5.0).astype(np.float32)


def train(module, x, axis_name=None, params=None):
    variables = module.init(jax.random.key(0), x[:1])
    if params is not None:
        variables = {**variables, "params": params}
    return module.apply(variables, x, train=True, axis_name=axis_name, mutable=["batch_stats"])


def jit_train(*modules_and_x):
    """(y, running statistics) of each module, in one program."""
    *modules, x = modules_and_x
    return jax.device_get(jax.jit(lambda x: [train(module, x) for module in modules])(x))


def test_each_group_comes_out_with_the_identity_as_covariance():
    # Enough iterations for every direction here; 5 are compared with numpy's below.
    ((y, _),) = jit_train(IterNorm(groups=2, iterations=12), correlated())
    np.testing.assert_allclose(np.mean(y, axis=0), 0.0, atol=1e-4)
    covariance = np.cov(y, rowvar=False, bias=True)
    for group in (slice(0, 3), slice(3, 6)):
        np.testing.assert_allclose(covariance[group, group], np.eye(3), atol=5e-3)


def test_five_iterations_whiten_what_is_not_far_from_white():
    x = np.random.default_rng(0).multivariate_normal([1, 2], [[2.0, 1.0], [1.0, 1.0]], size=1000)
    ((y, _),) = jit_train(IterNorm(groups=1), x.astype(np.float32))
    np.testing.assert_allclose(np.cov(y, rowvar=False, bias=True), np.eye(2), atol=0.02)


def test_dimensions_of_different_groups_stay_correlated():
    x = correlated()[:, [0, 3, 1, 4, 2, 5]]  # what was one group is now in both
    trained = jit_train(*(IterNorm(groups, iterations=15) for groups in (1, 2)), x)
    one, two = (np.cov(y, rowvar=False) for y, _ in trained)
    np.testing.assert_allclose(one, np.eye(6), atol=0.02)
    assert np.abs(two[:3, 3:]).max() > 0.3


@pytest.mark.parametrize("iterations", [1, 5])
def test_iterations_are_numpys(iterations):
    x = correlated().astype(np.float64)
    ((y, updated),) = jit_train(IterNorm(groups=2, iterations=iterations), x.astype(np.float32))
    for group in (slice(0, 3), slice(3, 6)):
        centered = x[:, group] - x[:, group].mean(axis=0)
        covariance = centered.T @ centered / len(x) + 1e-5 * np.eye(3)
        p = np.eye(3)
        for _ in range(iterations):
            p = (3 * p - np.linalg.matrix_power(p, 3) @ covariance / np.trace(covariance)) / 2
        w = p / np.sqrt(np.trace(covariance))
        np.testing.assert_allclose(y[:, group], centered @ w, rtol=1e-3, atol=1e-4)
        stats = updated["batch_stats"]
        np.testing.assert_allclose(stats["mean"][group], 0.1 * x[:, group].mean(axis=0), rtol=1e-4)
        np.testing.assert_allclose(stats["whitening"][group.start // 3], 0.9 * np.eye(3) + 0.1 * w, rtol=1e-3)


def test_inverse_root():
    root = np.array([[1.0, 0.3], [0.3, 0.5]])
    matrices = np.stack([root @ root, np.eye(2)]).astype(np.float32)
    found = jax.jit(inverse_root, static_argnums=1)(matrices, 12)
    np.testing.assert_allclose(found, [np.linalg.inv(root), np.eye(2)], rtol=1e-3, atol=1e-5)


def test_any_number_of_devices_gives_the_same():
    module, x = IterNorm(groups=2), correlated(batch=32)
    params = {"scale": np.arange(1, 7, dtype=np.float32), "bias": np.arange(6, dtype=np.float32)}
    weight = np.sin(np.arange(6, dtype=np.float32))

    def outcome(params, x, axis_name=None):
        def loss(params, x):
            y, updated = train(module, x, axis_name, params)
            value = jnp.mean(jnp.sin(y) * weight)
            return (value if axis_name is None else lax.pmean(value, axis_name)), (y, updated)

        (value, (y, updated)), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        return (value, updated, grads[0]), (y, grads[1])

    def on_devices(devices):
        # On the first of 8 / devices meshes, so that one program can hold several numbers of devices.
        return jax.shard_map(
            lambda params, x: outcome(params, x, AXIS),
            mesh=Mesh(np.asarray(jax.devices()).reshape(-1, devices), ("copies", AXIS)),
            in_specs=(P(), P(AXIS)),
            out_specs=(P(), P(AXIS)),
            check_vma=True,
        )

    expected, *found = jax.jit(lambda *given: [run(*given) for run in (outcome, on_devices(2), on_devices(8))])(
        params, x
    )
    for of_devices in found:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), of_devices, expected)


def test_running_statistics_are_used_outside_training():
    variables = {
        "params": {"scale": np.float32([2.0, 1.0]), "bias": np.float32([0.0, -1.0])},
        "batch_stats": {"mean": np.float32([1.0, 3.0]), "whitening": np.float32([[[1.0, 0.5], [0.5, 2.0]]])},
    }
    y = IterNorm(groups=1).apply(variables, np.float32([[3.0, 3.5], [1.0, 3.0]]))
    np.testing.assert_allclose(y, [[4.5, 1.0], [0.0, -1.0]])  # W (2, 0.5) = (2.25, 2)


@pytest.mark.parametrize("groups", [0, 4])
def test_refuses_groups_that_do_not_divide_the_dimensions(groups):
    with pytest.raises(ValueError, match=f"groups={groups} does not divide 6"):
        IterNorm(groups=groups).init(jax.random.key(0), jnp.zeros((2, 6)))
