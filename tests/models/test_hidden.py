"""Networks that do not see hidden squares, against sparse ones, which compute on lists of visible positions alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ssl_jax import models
from ssl_jax.models.norm import BatchNorm
from tests.models import drawn
from tests.models.devices import EACH, WHOLE, on_eight

RNG = np.random.default_rng(0)
MASK = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 0], [1, 1, 1, 0]], bool)  # 2 x 2 squares; 1: hidden
CONVNEXT = models.create("convnextv2_tiny", stages=(1, 1), base_width=4, patch_size=2)
RESNET = models.create("resnet18", stages=(1, 1), base_width=4)


def images_for(module, channels=2):
    side = 2 * module.stride
    return RNG.normal(size=(4, side, side, channels)).astype(np.float32)


def places_of(side):
    """(image, row, column) of each visible position of maps in which a square has `side` positions a side."""
    visible = ~MASK.reshape(4, 2, 2).repeat(side, axis=1).repeat(side, axis=2)
    return [tuple(map(int, place)) for place in np.argwhere(visible)]


def gather(x, places):
    return x[tuple(np.array(places).T)]


def scatter(values, places, side):
    return jnp.zeros((4, 2 * side, 2 * side, values.shape[-1])).at[tuple(np.array(places).T)].set(values)


def neighbors(inputs, outputs, size, stride, pad):
    """[outputs, size * size]: the index of the input that each entry of a kernel meets; len(inputs) for none."""
    index = {place: number for number, place in enumerate(inputs)}

    def number(place, i, j):
        image, row, column = place
        return index.get((image, row * stride + i - pad, column * stride + j - pad), len(inputs))

    return np.array([[number(place, i, j) for i, j in np.ndindex(size, size)] for place in outputs])


def convolve(x, kernel, inputs, outputs, stride=1, pad=0):
    """Values [outputs, channels] of the visible inputs' x [inputs, channels]. A kernel of one input is depthwise."""
    size = kernel.shape[0]
    met = jnp.append(x, jnp.zeros_like(x[:1]), axis=0)[neighbors(inputs, outputs, size, stride, pad)]
    flat = kernel.reshape(size**2, *kernel.shape[2:])
    if kernel.shape[2] == 1:
        return jnp.sum(met * flat[:, 0], axis=1)
    return jnp.einsum("pki,kio->po", met, flat, precision="highest")


def layer_norm(x, params):
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centered**2, axis=-1, keepdims=True)
    return centered / jnp.sqrt(variance + 1e-6) * params["scale"] + params["bias"]


def batch_norm(x, params):
    centered = x - jnp.mean(x, axis=0)
    return centered / jnp.sqrt(jnp.mean(centered**2, axis=0) + 1e-5) * params["scale"] + params["bias"]


def dense(x, params):
    return jnp.dot(x, params["kernel"], precision="highest") + params["bias"]


def sparse_convnext(params, images):
    """The stage maps of CONVNEXT."""
    pixels, places = places_of(4), places_of(2)
    stem = params["stem_0"]
    x = layer_norm(convolve(gather(images, pixels), stem["kernel"], pixels, places, 2) + stem["bias"], params["stem_1"])
    maps = []
    for stage, side in ((0, 2), (1, 1)):
        own, before, places = params[f"stages_{stage}"], places, places_of(side)
        if stage:
            down = own["downsample_1"]
            x = convolve(layer_norm(x, own["downsample_0"]), down["kernel"], before, places, 2) + down["bias"]
        block, image = own["blocks_0"], np.array(places)[:, 0]
        y = convolve(x, block["conv_dw"]["kernel"], places, places, pad=3) + block["conv_dw"]["bias"]
        y = jax.nn.gelu(dense(layer_norm(y, block["norm"]), block["mlp"]["fc1"]), approximate=False)
        norms = jnp.sqrt(jax.ops.segment_sum(y**2, image, num_segments=4) + 1e-30)
        relative = norms / (jnp.mean(norms, axis=-1, keepdims=True) + 1e-6)
        grn = block["mlp"]["grn"]
        y = y + grn["scale"] * y * relative[image] + grn["bias"]
        x = x + dense(y, block["mlp"]["fc2"])
        maps.append(scatter(x, places, side))
    return maps


def sparse_resnet(params, images):
    """The stage maps of RESNET in training."""

    def step(x, side, conv, norm, stride=1):
        """A convolution and BatchNorm from maps of `side` positions a square."""
        kernel = conv["kernel"]
        y = convolve(x, kernel, places_of(side), places_of(side // stride), stride, kernel.shape[0] // 2)
        return batch_norm(y, norm)

    x = jnp.maximum(step(gather(images, places_of(8)), 8, params["conv1"], params["bn1"], 2), 0.0)
    met = neighbors(places_of(4), places_of(2), 3, 2, 1)
    x = jnp.max(jnp.append(x, jnp.full_like(x[:1], -jnp.inf), axis=0)[met], axis=1)
    maps = []
    for name, stride in (("layer1_0", 1), ("layer2_0", 2)):
        own = params[name]
        y = jnp.maximum(step(x, 2, own["conv1"], own["bn1"], stride), 0.0)
        y = step(y, 2 // stride, own["conv2"], own["bn2"])
        if stride == 2:
            x = step(x, 2, own["downsample_0"], own["downsample_1"], 2)
        x = jnp.maximum(x + y, 0.0)
        maps.append(scatter(x, places_of(2 // stride), 2 // stride))
    return maps


@pytest.mark.parametrize("module, sparse", [(CONVNEXT, sparse_convnext), (RESNET, sparse_resnet)])
def test_values_and_gradients_are_those_of_a_sparse_network(module, sparse):
    images = images_for(module)
    variables = drawn.variables_of(module, images)
    rest = {name: value for name, value in variables.items() if name != "params"}

    def ours(params, images):
        options = dict(train=True, mutable=["batch_stats"], method="stage_maps", mask=MASK)
        return list(module.apply({"params": params, **rest}, images, **options)[0])

    def outcome(maps_of, params, images):
        def loss(params, images):
            maps = maps_of(params, images)
            return sum(jnp.sum(jnp.sin(x) * jnp.cos(jnp.arange(x.size).reshape(x.shape))) for x in maps), maps

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, images)

    run = jax.jit(lambda params, images: [outcome(maps_of, params, images) for maps_of in (ours, sparse)])
    ((_, maps), found), ((_, expected_maps), expected) = jax.device_get(run(variables["params"], images))
    assert [x.shape[1:3] for x in maps] == [(4, 4), (2, 2)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), maps, expected_maps)

    def check(path, a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(b).max()), err_msg=str(path))

    jax.tree_util.tree_map_with_path(check, found, expected)
    assert np.all(found[1][MASK.reshape(4, 2, 2).repeat(module.stride, 1).repeat(module.stride, 2)] == 0.0)


@pytest.mark.parametrize(
    "module",
    [
        CONVNEXT,
        RESNET,
        models.create("split_resnet8", stages=(1,), base_width=8, parts="bands"),
        pytest.param(models.create("lightness_resnet8", stages=(1,), base_width=4), marks=pytest.mark.slow),
    ],
)
def test_nothing_of_a_hidden_pixel_reaches_the_maps_and_visible_ones_do(module):
    images = images_for(module, channels=3)
    variables = drawn.variables_of(module, images)
    hidden = MASK.reshape(4, 2, 2).repeat(module.stride, 1).repeat(module.stride, 2)[..., None]

    @jax.jit
    def run(images):
        options = dict(train=True, mutable=["batch_stats"], method="stage_maps", mask=jnp.asarray(MASK))
        return module.apply(variables, images, **options)

    maps, stats = jax.device_get(run(images))
    spoilt = jax.device_get(run(np.where(hidden, np.float32(np.nan), images)))
    jax.tree.map(np.testing.assert_array_equal, (maps, stats), spoilt)
    for x in maps:
        side = x.shape[1] // 2
        where = MASK.reshape(4, 2, 2).repeat(side, 1).repeat(side, 2)
        assert np.all(x[where] == 0.0) and np.any(x[~where] != 0.0)
    changed, _ = jax.device_get(run(np.where(hidden, images, images**2)))
    assert all(np.abs(a - b).max() > 1e-2 for a, b in zip(changed, maps, strict=True))


def test_batch_norm_of_visible_positions_is_the_same_on_eight_devices_that_see_unequally_many():
    x = RNG.normal(3.0, 2.0, size=(16, 4, 4, 3)).astype(np.float32)
    hidden = RNG.random((16, 2, 2)) < np.linspace(-0.2, 1.2, 16)[:, None, None]
    assert hidden[14:].all() and not hidden[:2].any()  # the last device sees nothing, the first one everything
    params = {"scale": np.float32([1.0, 2.0, -1.0]), "bias": np.float32([0.5, 0.0, 1.0])}
    stats = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}

    def outcome(params, x, hidden, axis_name=None):
        def loss(params, x):
            y, updated = BatchNorm(momentum=0.0).apply(
                {"params": params, "batch_stats": stats}, x, True, axis_name, hidden, mutable=["batch_stats"]
            )
            value = jnp.mean(jnp.sin(y) * jnp.arange(1.0, 4.0))
            return (value if axis_name is None else lax.pmean(value, axis_name)), (y, updated["batch_stats"])

        (_, (y, updated)), (of_params, of_x) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        return (of_params, updated), (y, of_x)

    split = on_eight(
        functools.partial(outcome, axis_name="data"), in_specs=(WHOLE, EACH, EACH), out_specs=(WHOLE, EACH)
    )
    expected, found = jax.jit(lambda *a: (outcome(*a), split(*a)))(params, x, hidden)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    visible = x[~hidden.repeat(2, 1).repeat(2, 2)]
    np.testing.assert_allclose(expected[0][1]["mean"], visible.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(expected[0][1]["var"], visible.var(axis=0), rtol=1e-4)


@pytest.mark.parametrize("kind", ["grouped", "layer"])
def test_batch_norm_of_groups_and_of_layers_refuses_hidden_squares(kind):
    module = BatchNorm(kind, use_scale=False, use_bias=False)
    with pytest.raises(ValueError, match=f"batch_norm='{kind}' has no statistics of visible positions"):
        module.init(jax.random.key(0), jnp.zeros((2, 4, 4, 3)), hidden=jnp.zeros((2, 2, 2), bool))


def test_squares_that_do_not_fill_the_images_are_refused():
    for module in (CONVNEXT, RESNET):
        side = 2 * module.stride
        images = jnp.zeros((1, side, side + 1, 1))
        with pytest.raises(ValueError, match=f"{side}x{side + 1} pixels"):
            jax.eval_shape(
                functools.partial(module.init, method="stage_maps", mask=jnp.zeros((1, 4), bool)),
                jax.random.key(0),
                images,
            )
