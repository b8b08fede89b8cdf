"""What every loss is held to, beside its formula: see the functions."""

import jax
import jax.numpy as jnp
import numpy as np
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


def equals_reference(loss, reference, *arrays, argnums=None, rtol=1e-5, gradient_rtol=1e-4, gradient_atol=1e-5):
    """Value and gradient of `loss` are those of `reference`, a numpy function of the same arrays in float64.

    `argnums`: the arrays that the gradient is compared for; all by default. Finite differences see through
    stop_gradient: write the reference with what carries no gradient computed beforehand from the unchanged arrays.
    """
    argnums = tuple(range(len(arrays))) if argnums is None else argnums
    arrays = [np.asarray(a) for a in arrays]
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=argnums))(*map(jnp.asarray, arrays))
    assert value.shape == () and value.dtype == jnp.float32
    wide = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays]
    np.testing.assert_allclose(value, reference(*wide), rtol=rtol)
    for argnum, gradient in zip(argnums, gradients, strict=True):

        def of_one(x, argnum=argnum):
            return reference(*wide[:argnum], x, *wide[argnum + 1 :])

        expected = finite_differences(of_one, arrays[argnum])
        scale = max(np.abs(expected).max(), 1e-30)
        np.testing.assert_allclose(gradient / scale, expected / scale, rtol=gradient_rtol, atol=gradient_atol)


def same_on_devices(loss, *arrays, split=None, axes=None, argnums=None, devices=(1, 2, 4, 8), rtol=1e-5, atol=1e-6):
    """The mean over devices of `loss(*arrays, axis_name=...)` equals that of the whole batch, value and gradient.

    `split`: which arrays are split over the devices, all by default; `axes`: the batch axis of each, 0 by default;
    the others are whole on every device. `argnums`: the arrays that the gradient is compared for; all that are split
    by default.
    """
    split = [True] * len(arrays) if split is None else split
    axes = [0] * len(arrays) if axes is None else axes
    argnums = tuple(i for i, s in enumerate(split) if s) if argnums is None else argnums
    arrays = [jnp.asarray(a) for a in arrays]
    value, gradients = jax.value_and_grad(loss, argnums=argnums)(*arrays)

    def on_device(*arrays):
        mean = lambda *arrays: lax.pmean(loss(*arrays, axis_name="i"), "i")  # noqa: E731
        return jax.value_and_grad(mean, argnums=argnums)(*arrays)

    specs = [PartitionSpec(*[None] * axis, "i") if s else PartitionSpec() for s, axis in zip(split, axes, strict=True)]
    for count in devices:
        mesh = Mesh(np.array(jax.devices()[:count]), ("i",))
        mapped = jax.jit(
            jax.shard_map(
                on_device,
                mesh=mesh,
                in_specs=tuple(specs),
                out_specs=(PartitionSpec(), tuple(specs[i] for i in argnums)),
            )
        )
        mapped_value, mapped_gradients = mapped(*arrays)
        np.testing.assert_allclose(mapped_value, value, rtol=rtol, err_msg=f"{count} devices")
        for got, expected in zip(mapped_gradients, gradients, strict=True):
            scale = max(float(jnp.abs(expected).max()), 1e-30)
            np.testing.assert_allclose(
                got / scale, expected / scale, rtol=10 * rtol, atol=10 * atol, err_msg=f"{count} devices"
            )


def finite_everywhere(loss, *arrays, scales=(1e-30, 1e-8, 1.0, 1e4, 1e18)):
    """Value and gradients are finite at extreme scales, in bfloat16, for duplicated images, and for rows of zeros.

    `arrays`: floats [batch, ...], all of which are scaled; close over what is not to be.
    """
    argnums = tuple(range(len(arrays)))
    arrays = [np.asarray(a, np.float32) for a in arrays]
    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=argnums))

    def check(case, *arrays):
        value, gradients = value_and_grad(*arrays)
        assert value.dtype == jnp.float32, case
        assert np.isfinite(value), (case, value)
        for gradient in gradients:
            assert np.all(np.isfinite(gradient.astype(jnp.float32))), case

    for dtype in (jnp.float32, jnp.bfloat16):
        for scale in scales:
            check((dtype.__name__, scale), *(jnp.asarray(a * np.float32(scale), dtype) for a in arrays))
    duplicated = [a.copy() for a in arrays]
    for a in duplicated:
        a[1] = a[0]
    check("duplicated images", *map(jnp.asarray, duplicated))
    check("all images the same", *(jnp.broadcast_to(a[:1], a.shape) for a in map(jnp.asarray, arrays)))
    zeroed = [a.copy() for a in arrays]
    for a in zeroed:
        a[2] = 0.0
    check("a row of zeros", *map(jnp.asarray, zeroed))


def draw(batch=6, dim=4, count=2, scale=1.0, noise=0.5, seed=0):
    """`count` float32 arrays [batch, dim] whose rows are alike, as views of images are."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(batch, dim))
    return [(scale * (base + noise * rng.normal(size=(batch, dim)))).astype(np.float32) for _ in range(count)]
