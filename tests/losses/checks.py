"""What every loss is held to, beside its formula: see the functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec


def finite_differences(function, x, h=1e-5):
    """The gradient of a float64 numpy function at x, by central differences."""
    gradient = np.zeros_like(x, np.float64)
    for index in np.ndindex(*x.shape):
        up, down = x.astype(np.float64), x.astype(np.float64)
        up[index] += h
        down[index] -= h
        gradient[index] = (function(up) - function(down)) / (2 * h)
    return gradient


def value_and_grad(loss, *arrays, argnums=0):
    """The value and the gradient of `loss`, as numpy arrays.

    One program serves all tests that give the same `loss` and `argnums`, and arrays of the same shapes and types.
    """
    return jax.device_get(_compiled(loss, argnums)(*arrays))


@functools.cache
def _compiled(loss, argnums):
    return jax.jit(jax.value_and_grad(loss, argnums=argnums))


def equals_reference(loss, reference, *arrays, argnums=None, rtol=1e-5, gradient_rtol=1e-4, gradient_atol=1e-5):
    """Value and gradient of `loss` are those of `reference`, a numpy function of the same arrays in float64.

    `argnums`: the arrays that the gradient is compared for; all by default. Finite differences see through
    stop_gradient: write the reference with what carries no gradient computed beforehand from the unchanged arrays.
    """
    argnums = tuple(range(len(arrays))) if argnums is None else argnums
    arrays = [np.asarray(a) for a in arrays]
    value, gradients = value_and_grad(loss, *arrays, argnums=argnums)
    assert value.shape == () and value.dtype == jnp.float32
    wide = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays]
    np.testing.assert_allclose(value, reference(*wide), rtol=rtol)
    for argnum, gradient in zip(argnums, gradients, strict=True):

        def of_one(x, argnum=argnum):
            return reference(*wide[:argnum], x, *wide[argnum + 1 :])

        expected = finite_differences(of_one, arrays[argnum])
        scale = max(np.abs(expected).max(), 1e-30)
        np.testing.assert_allclose(gradient / scale, expected / scale, rtol=gradient_rtol, atol=gradient_atol)


def same_on_devices(loss, *arrays, split=None, axes=None, argnums=None, devices=(2, 8), rtol=1e-5, atol=1e-6):
    """The mean over devices of `loss(*arrays, axis_name=...)` equals that of the whole batch, value and gradient.

    `split`: which arrays are split over the devices, all by default; `axes`: the batch axis of each, 0 by default;
    the others are whole on every device. `argnums`: the arrays that the gradient is compared for; all that are split
    by default. `devices`: on how many; two, and as many as there are rows, show whatever more counts do.

    The whole batch's is the program of `value_and_grad`: with the arrays of another test it costs nothing.
    """
    split = [True] * len(arrays) if split is None else split
    axes = [0] * len(arrays) if axes is None else axes
    argnums = tuple(i for i, s in enumerate(split) if s) if argnums is None else argnums
    specs = [PartitionSpec(*[None] * axis, "i") if s else PartitionSpec() for s, axis in zip(split, axes, strict=True)]

    def on_device(*arrays):
        mean = lambda *arrays: lax.pmean(loss(*arrays, axis_name="i"), "i")  # noqa: E731
        return jax.value_and_grad(mean, argnums=argnums)(*arrays)

    def on_all(*arrays):
        mapped = {
            count: jax.shard_map(
                on_device,
                mesh=mesh_of(count, max(devices)),
                in_specs=tuple(specs),
                out_specs=(PartitionSpec(), tuple(specs[i] for i in argnums)),
            )
            for count in devices
        }
        return {count: function(*arrays) for count, function in mapped.items()}

    value, gradients = value_and_grad(loss, *arrays, argnums=argnums)
    for count, (mapped_value, mapped_gradients) in jax.device_get(jax.jit(on_all)(*arrays)).items():
        np.testing.assert_allclose(mapped_value, value, rtol=rtol, err_msg=f"{count} devices")
        for got, expected in zip(mapped_gradients, gradients, strict=True):
            scale = max(float(np.abs(expected).max()), 1e-30)
            np.testing.assert_allclose(
                got / scale, expected / scale, rtol=10 * rtol, atol=10 * atol, err_msg=f"{count} devices"
            )


def mesh_of(count, among=8):
    """A mesh with axis "i" of `count` devices. It has all of `among`, so that a program can hold meshes of several
    counts that divide it."""
    if jax.device_count() < among:  # on an accelerator, by benchmarks/accelerator.py
        pytest.skip(f"needs {among} devices, and there are {jax.device_count()}")
    return Mesh(np.array(jax.devices()[:among]).reshape(-1, count), ("copies", "i"))


def finite_everywhere(loss, *arrays, scaled=None, axes=None, argnums=None, scales=(1e-30, 1e-8, 1.0, 1e4, 1e18)):
    """Value and gradients are finite at extreme scales, for duplicated images, and for rows of zeros.

    `scaled`: the arrays that are changed, floats with the batch at axis 0, or at that of `axes`; all by default.
    `argnums`: the arrays that the gradient is computed for; all that are scaled by default.
    """
    scaled = tuple(range(len(arrays))) if scaled is None else scaled
    axes = [0] * len(arrays) if axes is None else axes
    argnums = scaled if argnums is None else argnums

    def check(case, change):
        changed = list(arrays)
        for i in scaled:
            rows = np.moveaxis(np.array(arrays[i], np.float32), axes[i], 0)
            changed[i] = np.moveaxis(change(rows), 0, axes[i])
        value, gradients = value_and_grad(loss, *changed, argnums=argnums)
        assert value.dtype == jnp.float32, case
        assert np.isfinite(value), (case, value)
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients), case

    for scale in scales:
        check(scale, lambda rows, scale=scale: rows * np.float32(scale))
    check("duplicated images", lambda rows: rows[[0, 0, *range(2, len(rows))]])
    check("all images the same", lambda rows: np.broadcast_to(rows[:1], rows.shape))
    check("a row of zeros", lambda rows: np.concatenate([rows[:2], np.zeros_like(rows[2:3]), rows[3:]]))


def computed_in_float32(*cases, rtol=1e-5):
    """Each loss of bfloat16 arrays is that of the same numbers in float32; so what holds for these, holds for those.

    `cases`: (loss, arrays, argnums), argnums those that another test gives to `value_and_grad`. One program for all.
    """
    half = [[a.astype(jnp.bfloat16) if a.dtype == np.float32 else a for a in arrays] for _, arrays, _ in cases]
    values = jax.jit(lambda half: [loss(*arrays) for (loss, *_), arrays in zip(cases, half, strict=True)])(half)
    for (loss, _, argnums), arrays, value in zip(cases, half, values, strict=True):
        single = [a.astype(np.float32) if a.dtype == jnp.bfloat16 else a for a in arrays]
        expected, _ = value_and_grad(loss, *single, argnums=argnums)
        assert value.dtype == jnp.float32, loss
        np.testing.assert_allclose(value, expected, rtol=rtol, err_msg=str(loss))


def draw(batch=6, dim=4, count=2, scale=1.0, noise=0.5, seed=0):
    """`count` float32 arrays [batch, dim] whose rows are alike, as views of images are."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(batch, dim))
    return [(scale * (base + noise * rng.normal(size=(batch, dim)))).astype(np.float32) for _ in range(count)]
