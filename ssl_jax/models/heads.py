"""Projectors and predictors."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ssl_jax import ops
from ssl_jax.models._options import DTYPES, check_choice
from ssl_jax.models.norm import BatchNorm, check_options

# output_norm -> options of the BatchNorm after the last linear layer; None: no BatchNorm
OUTPUT_NORMS = {
    "none": None,
    "full": {},
    "scale": {"use_bias": False},
    "plain": {"use_scale": False, "use_bias": False},
}
# torch's default for linear and convolutional layers: uniform in +-1 / sqrt(fan-in). With BatchNorm after the layer and
# SGD with weight decay, the size of the weights sets the effective step size. lecun_normal's weights are 1.7 times as
# large and learn a third as fast.
torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias_init(fan_in: int) -> Callable[..., Array]:
    """torch's default for the biases of a layer of this fan-in: uniform in +-1 / sqrt(fan-in), like its weights."""
    return lambda rng, shape, dtype: jax.random.uniform(rng, shape, dtype, -1.0, 1.0) / fan_in**0.5


def torch_dense(width: int, fan_in: int, name: str) -> nn.Dense:
    """A linear layer initialized as in torch."""
    return nn.Dense(width, kernel_init=torch_init, bias_init=torch_bias_init(fan_in), name=name)


ACTIVATIONS = {"relu": nn.relu, "gelu": ops.gelu, "leaky_relu": nn.leaky_relu}  # its slope is 0.01 below 0


class MLP(nn.Module):
    """h [..., features] -> linear layers of the given widths, ReLUs between them -> [..., widths[-1]], float32.

    hidden_norm: BatchNorm before each activation. output_norm: BatchNorm at the end, "none", "full" (scale and offset),
      "scale" (no offset) or "plain" (neither).
    activation: between the layers, "relu", "gelu" or "leaky_relu".
    hidden_bias, output_bias: whether the linear layers before an activation, and the last one, have a bias. A bias
      before BatchNorm has an effect only through weight decay.
    batch_norm, batch_norm_groups: see norm.BatchNorm. dtype: of the computation, "float32" or "bfloat16".
    kernel_init: of the weights. With `torch_init`, the biases are drawn as in torch, too; otherwise they are 0.

    As published:
      SimCLR     MLP((2048, 128), output_norm="scale")
      MoCo v2    moco_head((2048, 128))
      BYOL       MLP((4096, 256), hidden_bias=True), projector and predictor
      SimSiam    MLP((2048, 2048, 2048), output_norm="plain"), predictor MLP((512, 2048), output_bias=True)
      Barlow Twins, VICReg    MLP((8192, 8192, 8192)); VICReg's with hidden_bias=True

    Raises: ValueError for an option that it does not know.
    """

    widths: tuple[int, ...]
    hidden_norm: bool = True
    output_norm: str = "none"
    activation: str = "relu"
    hidden_bias: bool = False
    output_bias: bool = False
    batch_norm: str = "sync"
    batch_norm_groups: int = 1
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: str = "float32"

    def __post_init__(self):
        check_choice("output_norm", self.output_norm, OUTPUT_NORMS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("dtype", self.dtype, DTYPES)
        check_options(self.batch_norm, self.batch_norm_groups)
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be one or more numbers of at least 1, got {self.widths}")
        super().__post_init__()

    @property
    def dim(self) -> int:
        return self.widths[-1]

    @nn.compact
    def __call__(
        self, h: Float[Array, "batch *positions features"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch *positions dim"]:
        dtype = jnp.dtype(self.dtype)
        norm = {"kind": self.batch_norm, "groups": self.batch_norm_groups, "dtype": dtype}
        for width in self.widths[:-1]:
            h = self._linear(h, width, self.hidden_bias)
            if self.hidden_norm:
                h = BatchNorm(**norm)(h, train, axis_name)
            h = ACTIVATIONS[self.activation](h)
        h = self._linear(h, self.widths[-1], self.output_bias)
        output_norm = OUTPUT_NORMS[self.output_norm]
        if output_norm is not None:
            h = BatchNorm(**norm, **output_norm)(h, train, axis_name)
        return h.astype(jnp.float32)

    def _linear(self, h: Array, width: int, bias: bool) -> Array:
        bias_init = torch_bias_init(h.shape[-1]) if self.kernel_init is torch_init else nn.initializers.zeros
        dtype = jnp.dtype(self.dtype)
        return nn.Dense(width, use_bias=bias, kernel_init=self.kernel_init, bias_init=bias_init, dtype=dtype)(h)


def moco_head(widths: tuple[int, ...], kernel_init: Callable[..., Array] = torch_init) -> MLP:
    """MoCo v2's head: linear layers with biases, ReLUs between them, no BatchNorm, initialized as in torch."""
    return MLP(widths, hidden_norm=False, hidden_bias=True, output_bias=True, kernel_init=kernel_init)


class DINOHead(nn.Module):
    """h [..., features] -> MLP with GELUs -> unit vectors [..., bottleneck] -> scores [..., prototypes], float32.

    Each prototype is a unit vector: w / |w| in the forward pass (weight normalization of gain 1; the gradient goes
    through it). So the scores are cosines. trainable_gain multiplies each prototype's score by a trainable gain.
    With unit_prototypes=False, prototypes have any length and begin as N(0, 0.02), like the other layers.

    hidden: widths of the layers before the bottleneck. batch_norm: BatchNorm before each GELU (the authors' choice for
      ResNets).
    Source: Caron et al. 2021, arXiv:2104.14294, appendix C; trainable_gain: DINOv2's, arXiv:2304.07193;
      unit_prototypes=False: DINOv3's, arXiv:2508.10104, the authors' code.
    """

    prototypes: int
    hidden: tuple[int, ...] = (2048, 2048)
    bottleneck: int = 256
    batch_norm: bool = False
    trainable_gain: bool = False
    unit_prototypes: bool = True

    @nn.compact
    def __call__(
        self, h: Float[Array, "batch *positions features"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch *positions prototypes"]:
        widths, narrow = (*self.hidden, self.bottleneck), nn.initializers.normal(0.02)
        mlp = MLP(
            widths,
            hidden_norm=self.batch_norm,
            activation="gelu",
            hidden_bias=not self.batch_norm,
            output_bias=True,
            kernel_init=narrow,
            name="mlp",
        )
        z = unit(mlp(h, train=train, axis_name=axis_name))
        return Prototypes(
            self.prototypes,
            normalized=self.unit_prototypes,
            gain=self.trainable_gain,
            kernel_init=torch_init if self.unit_prototypes else narrow,
            name="last",
        )(z)


class Prototypes(nn.Module):
    """z [..., dim] -> its scores with each prototype [..., count].

    normalized: prototypes are unit vectors, w / |w|; the gradient goes through the normalization. gain: multiplies each
    prototype's score by a trainable number, 1 at first.
    """

    count: int
    normalized: bool = True
    gain: bool = False
    kernel_init: Callable[..., Array] = torch_init

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch *positions dim"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch *positions count"]:
        kernel = self.param("kernel", self.kernel_init, (z.shape[-1], self.count))
        if self.normalized:
            kernel = unit(kernel.T).T
        scores = z.astype(jnp.float32) @ kernel
        if self.gain:
            scores *= self.param("gain", nn.initializers.ones, (self.count,))
        return scores


def unit(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """x / |x|, float32. At 0, both the result and its gradient are finite."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
