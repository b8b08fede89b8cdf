import collections
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ssl_jax.models.norm import BatchNorm
from ssl_jax.planning import hlo, program

AXIS = "data"


def some_images(mean=0.5, batch=16):
    x = np.random.default_rng(0).normal(mean, 2.0, size=(batch, 3, 2, 5))
    return (x * np.arange(1, 6) + np.arange(batch)[:, None, None, None]).astype(np.float32)


def some_params():
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=5).astype(np.float32) for name in ("scale", "bias")}


def outcome(module, params, x, axis_name=None):
    """(value, running statistics, gradient of the global loss with respect to params and x)."""
    stats = {"mean": jnp.zeros(5), "var": jnp.ones(5)}
    weight = jnp.sin(jnp.arange(5.0))

    def loss(params, x):
        y, updated = module.apply(
            {"params": params, "batch_stats": stats}, x, train=True, axis_name=axis_name, mutable=["batch_stats"]
        )
        value = jnp.mean(jnp.sin(y) * weight)  # not linear in y, whose mean does not depend on x
        return (value if axis_name is None else lax.pmean(value, axis_name)), (y, updated["batch_stats"])

    (value, (y, updated)), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    return {"value": value, "stats": updated, "params": grads[0]}, {"y": y, "x": grads[1]}


def on_devices(module, params, x, devices):
    """On the first of 8 / devices meshes, so that one program can hold several numbers of devices."""
    mesh = Mesh(np.asarray(jax.devices()).reshape(-1, devices), ("copies", AXIS))
    step = jax.shard_map(
        lambda params, x: outcome(module, params, x, AXIS),
        mesh=mesh,
        in_specs=(P(), P(AXIS)),
        out_specs=(P(), P(AXIS)),
        check_vma=True,
    )
    return step(params, x)


def on_pmapped_devices(module, params, x, devices):
    rows = x.reshape(devices, -1, *x.shape[1:])
    same, split = jax.device_get(
        jax.pmap(lambda params, x: outcome(module, params, x, AXIS), AXIS, in_axes=(None, 0))(params, rows)
    )
    same = jax.tree.map(lambda leaf: leaf.mean(0), same)  # per-device gradients are averaged, as the train step does
    # Without shard_map's check the gradient of a mean over devices is not divided by their number.
    return same, {"y": split["y"].reshape(x.shape), "x": split["x"].reshape(x.shape) / devices}


@pytest.mark.parametrize("kind, groups", [("sync", 1), ("grouped", 4), ("grouped", 16)])
def test_any_number_of_devices_gives_the_same(kind, groups):
    module, params, x = BatchNorm(kind, groups), some_params(), some_images()

    @jax.jit
    def run(params, x):
        return outcome(module, params, x), {devices: on_devices(module, params, x, devices) for devices in (2, 8)}

    expected, found = run(params, x)
    if kind == "sync":
        found["8, pmapped"] = on_pmapped_devices(module, params, x, 8)
    for devices, values in found.items():
        check = functools.partial(np.testing.assert_allclose, atol=2e-6, err_msg=f"{devices} devices")
        jax.tree.map(check, values, expected)


def test_local_is_each_devices_own_group():
    found, expected = jax.jit(
        lambda params, x: (
            on_devices(BatchNorm("local"), params, x, 8),
            outcome(BatchNorm("grouped", 8), params, x),
        )
    )(some_params(), some_images())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)


def test_value_and_gradient_are_flaxs():
    xs = [np.random.default_rng(0).normal(1.0, 2.0, size=shape).astype(np.float32) for shape in ((6, 4), (6, 3, 2, 4))]

    def outcome(module, x, **train):
        def value(x):
            variables = module.init(jax.random.key(0), x, **train)
            y, updated = module.apply(variables, x, **train, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), updated["batch_stats"]

        return jax.value_and_grad(value, has_aux=True)(x)

    @jax.jit
    def run(xs):
        flaxs = nn.BatchNorm(momentum=0.9)
        return [(outcome(BatchNorm(), x, train=True), outcome(flaxs, x, use_running_average=False)) for x in xs]

    for ours, flaxs in run(xs):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, flaxs)


def test_layer_is_flaxs_group_norm_of_one_group_and_keeps_nothing():
    x, params = some_images(), some_params()
    module = BatchNorm("layer")
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    assert jax.tree.structure(shapes) == jax.tree.structure({"params": params})

    def outcome(apply, params, x):
        def value(params, x):
            return jnp.sum(jnp.sin(apply({"params": params}, x)) * jnp.sin(jnp.arange(5.0)))

        return jax.value_and_grad(value, argnums=(0, 1))(params, x)

    @jax.jit
    def run(params, x):
        ours = [outcome(functools.partial(module.apply, train=train), params, x) for train in (True, False)]
        return ours, outcome(nn.GroupNorm(num_groups=1, epsilon=1e-5).apply, params, x)

    ours, flaxs = run(params, x)
    for of_mode in ours:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), of_mode, flaxs)


def test_layer_of_rows_without_positions_is_layer_norm():
    x = np.random.default_rng(0).normal(1e4, 1.0, size=(6, 64)).astype(np.float32)  # far from 0
    y = np.asarray(BatchNorm("layer", use_scale=False, use_bias=False).apply({}, x, train=True))
    np.testing.assert_allclose(np.mean(y, axis=1), 0.0, atol=1e-2)
    np.testing.assert_allclose(np.std(y, axis=1), 1.0, rtol=1e-3)


def train(module, x):
    """(y, the running statistics) of a module at its initial values"""

    @jax.jit
    def run(x):
        return module.apply(module.init(jax.random.key(0), x), x, train=True, mutable=["batch_stats"])

    return jax.device_get(run(x))


def test_statistics_far_from_zero():
    # 10,000 deviations from 0: in float32 E[x^2] - E[x]^2 has no correct digit.
    x = np.random.default_rng(0).normal(1e4, 1.0, size=(4096, 3)).astype(np.float32)
    module = BatchNorm(use_scale=False, use_bias=False, momentum=0.0)
    y, updated = train(module, x)
    var = np.var(x.astype(np.float64), axis=0)
    np.testing.assert_allclose(updated["batch_stats"]["var"], var, rtol=1e-3)
    np.testing.assert_allclose(np.std(y, axis=0), 1.0, rtol=1e-3)


def test_running_statistics_are_used_outside_training():
    variables = {
        "params": {"scale": np.float32([2.0, 1.0]), "bias": np.float32([0.0, -1.0])},
        "batch_stats": {"mean": np.float32([1.0, 3.0]), "var": np.float32([4.0, 0.25])},
    }
    y = BatchNorm(eps=0.0).apply(variables, np.float32([[3.0, 3.5], [1.0, 3.0]]))
    np.testing.assert_allclose(y, [[2.0, 0.0], [0.0, -1.0]])


def test_bfloat16_input_has_float32_statistics():
    x = some_images(mean=100.0).astype(jnp.bfloat16)
    y, updated = train(BatchNorm(dtype=jnp.bfloat16, momentum=0.0), x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(updated["batch_stats"]["mean"], np.mean(np.asarray(x, np.float64), (0, 1, 2)), rtol=1e-5)


def test_groups_that_do_not_divide_the_batch_are_refused():
    module = BatchNorm("grouped", 3)
    with pytest.raises(ValueError, match="batch_norm_groups=3 does not divide a batch of 16 rows"):
        outcome(module, some_params(), jnp.asarray(some_images()))


def far_from_zero(batch=16):
    """Rows whose mean is 3,000 deviations from 0."""
    x = np.random.default_rng(0).normal(3000.0, 1.0, size=(batch, 3, 2, 5))
    return (x * np.arange(1, 6)).astype(np.float32)


@pytest.mark.parametrize("kind, groups", [("sync", 1), ("grouped", 4)])
def test_values_and_gradients_of_eight_devices_are_those_of_float64_even_3000_deviations_from_0(kind, groups):
    params, x = some_params(), far_from_zero()
    same, of_rows = jax.jit(lambda params, x: on_devices(BatchNorm(kind, groups), params, x, 8))(params, x)
    with jax.enable_x64():
        wide = x.reshape(groups, -1, *x.shape[1:]).astype(np.float64)

        def loss(x):
            centered = x - jnp.mean(x, (1, 2, 3), keepdims=True)
            y = centered * jax.lax.rsqrt(jnp.mean(centered**2, (1, 2, 3), keepdims=True) + 1e-5)
            y = y * params["scale"].astype(np.float64) + params["bias"].astype(np.float64)
            return jnp.mean(jnp.sin(y) * np.sin(np.arange(5.0))), y

        (_, y), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(wide))
    # x times a factor plus an offset, both some 3,000: float32 leaves 3,000 * 2^-23 = 4e-4.
    np.testing.assert_allclose(of_rows["y"], y.reshape(x.shape), atol=3e-3)
    np.testing.assert_allclose(of_rows["x"], gradient.reshape(x.shape), atol=5e-3 * np.max(np.abs(gradient)))
    means = np.mean(wide, (1, 2, 3))
    variances = np.mean(np.var(wide, (1, 2, 3)), axis=0)
    np.testing.assert_allclose(same["stats"]["mean"], 0.1 * np.mean(means, axis=0), rtol=1e-6)
    np.testing.assert_allclose(same["stats"]["var"], 0.9 + 0.1 * variances, rtol=1e-3)


@pytest.mark.parametrize(
    "kind, groups, expected",
    [
        ("sync", 1, {"all-gather": 1, "all-reduce": 1}),
        ("grouped", 4, {"all-gather": 1, "all-reduce": 1}),  # each of two devices
        ("grouped", 16, {"all-reduce": 1}),  # each within a device: the running statistics alone
        ("local", 1, {"all-reduce": 1}),
    ],
)
def test_one_collective_forward_and_one_backward(kind, groups, expected):
    """Beside the loss and the gradients of scale and bias, which the train step sends together with all others."""
    module = BatchNorm(kind, groups, use_scale=False, use_bias=False)

    def loss(x):
        y, updated = module.apply(
            {"batch_stats": {"mean": jnp.zeros(5), "var": jnp.ones(5)}},
            x,
            train=True,
            axis_name=AXIS,
            mutable=["batch_stats"],
        )
        return jnp.mean(jnp.sin(y)), updated["batch_stats"]

    step = jax.shard_map(
        jax.grad(loss, has_aux=True),
        mesh=Mesh(jax.devices(), AXIS),
        in_specs=P(AXIS),
        out_specs=(P(AXIS), P()),
        check_vma=True,
    )
    text = jax.jit(step).lower(jax.ShapeDtypeStruct((16, 3, 2, 5), jnp.float32)).compile().as_text()
    found = collections.Counter(collective.kind for collective in program.collectives(hlo.parse(text)))
    assert found == expected
