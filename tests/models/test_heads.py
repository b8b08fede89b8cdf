import flax.linen as nn
import jax
import numpy as np
import pytest

from ssl_jax.models.heads import MLP, torch_init
from tests.models import drawn

H = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


def arrays(head):
    """Shapes of the parameters."""
    params = jax.eval_shape(head.init, jax.random.key(0), H)["params"]
    return {f"{module}.{name}": leaf.shape for module, leaves in params.items() for name, leaf in leaves.items()}


@pytest.mark.parametrize(
    "head, expected",
    [
        (  # SimCLR: no bias anywhere, scale and offset inside, scale alone at the end
            MLP((5, 4), output_norm="scale"),
            {
                "Dense_0.kernel": (6, 5),
                "BatchNorm_0.scale": (5,),
                "BatchNorm_0.bias": (5,),
                "Dense_1.kernel": (5, 4),
                "BatchNorm_1.scale": (4,),
            },
        ),
        (  # MoCo v2
            MLP((5, 4), hidden_norm=False, hidden_bias=True, output_bias=True),
            {"Dense_0.kernel": (6, 5), "Dense_0.bias": (5,), "Dense_1.kernel": (5, 4), "Dense_1.bias": (4,)},
        ),
        (MLP((4,), output_norm="plain"), {"Dense_0.kernel": (6, 4)}),
    ],
)
def test_layers_are_the_papers(head, expected):
    assert arrays(head) == expected
    assert head.dim == 4


@pytest.mark.parametrize("norm", ["none", "plain"])
def test_output_is_not_rectified(norm):
    head = MLP((16, 4), output_norm=norm)
    z, _ = head.apply(drawn.variables_of(head, H), H, train=True, mutable=["batch_stats"])
    z = np.asarray(z)
    assert z.dtype == np.float32
    assert (z < 0).any()
    if norm == "plain":
        np.testing.assert_allclose(np.mean(z, 0), 0.0, atol=1e-6)
        np.testing.assert_allclose(np.std(z, 0), 1.0, atol=1e-3)


def test_hidden_layers_are_linear_norm_relu():
    head = MLP((5, 4))
    variables = drawn.variables_of(head, H)
    variables["params"]["BatchNorm_0"] = {"scale": np.ones(5, np.float32), "bias": np.zeros(5, np.float32)}
    kernels = [variables["params"][f"Dense_{i}"]["kernel"] for i in range(2)]
    z, _ = head.apply(variables, H, train=True, mutable=["batch_stats"])
    hidden = H @ kernels[0]
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    np.testing.assert_allclose(z, np.maximum(hidden, 0.0) @ kernels[1], atol=1e-5)


def test_an_unknown_norm_and_no_layer_are_refused():
    with pytest.raises(ValueError, match="output_norm='batch' is unknown; it is one of none, full, scale, plain"):
        MLP((4,), output_norm="batch")
    with pytest.raises(ValueError, match="widths must be"):
        MLP(())


def test_torch_init_draws_weights_and_biases_uniformly_up_to_the_root_of_the_fan_in():
    head = MLP((300, 200), hidden_norm=False, hidden_bias=True, output_bias=True, kernel_init=torch_init)
    params = jax.jit(head.init)(jax.random.key(0), np.ones((1, 100)))["params"]
    for name, fan_in in (("Dense_0", 100), ("Dense_1", 300)):
        for leaf in params[name].values():
            bound = fan_in**-0.5
            assert 0.97 * bound < np.abs(leaf).max() <= bound  # of 200 numbers at least
            np.testing.assert_allclose(np.std(leaf), bound / 3**0.5, rtol=0.1)


@pytest.mark.parametrize("kernel_init", [nn.initializers.lecun_normal(), nn.initializers.normal(0.01)])
def test_any_other_initialization_leaves_biases_at_0(kernel_init):
    params = MLP((5,), output_bias=True, kernel_init=kernel_init).init(jax.random.key(0), H)["params"]
    assert not np.any(params["Dense_0"]["bias"])
