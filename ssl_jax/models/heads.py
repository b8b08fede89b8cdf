"""Projectors and predictors."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_jax.models._options import DTYPES, check_choice
from ssl_jax.models.norm import BatchNorm, check_options

# what follows the last linear layer -> BatchNorm's options; None: nothing follows
OUTPUT_NORMS = {
    "none": None,
    "full": {},
    "scale": {"use_bias": False},
    "plain": {"use_scale": False, "use_bias": False},
}


class MLP(nn.Module):
    """h [batch, features] -> linear layers of the given widths, ReLUs between them -> [batch, widths[-1]], float32.

    hidden_norm: BatchNorm before each ReLU. output_norm: BatchNorm at the end, "none", "full" (scale and offset),
      "scale" (no offset) or "plain" (neither).
    hidden_bias, output_bias: of the linear layers before a ReLU, and of the last one. A bias before BatchNorm has no
      effect but through weight decay.
    batch_norm, batch_norm_groups: see norm.BatchNorm. dtype: of the computation, "float32" or "bfloat16".

    As published:
      SimCLR     MLP((2048, 128), output_norm="scale")
      MoCo v2    MLP((2048, 128), hidden_norm=False, hidden_bias=True, output_bias=True)
      BYOL       MLP((4096, 256), hidden_bias=True), projector and predictor
      SimSiam    MLP((2048, 2048, 2048), output_norm="plain"), predictor MLP((512, 2048), output_bias=True)
      Barlow Twins, VICReg    MLP((8192, 8192, 8192)); VICReg's with hidden_bias=True

    Raises: ValueError for an option that it does not know.
    """

    widths: tuple[int, ...]
    hidden_norm: bool = True
    output_norm: str = "none"
    hidden_bias: bool = False
    output_bias: bool = False
    batch_norm: str = "sync"
    batch_norm_groups: int = 1
    dtype: str = "float32"

    def __post_init__(self):
        check_choice("output_norm", self.output_norm, OUTPUT_NORMS)
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
        self, h: Float[Array, "batch features"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch dim"]:
        dtype = jnp.dtype(self.dtype)
        norm = {"kind": self.batch_norm, "groups": self.batch_norm_groups, "dtype": dtype}
        for width in self.widths[:-1]:
            h = nn.Dense(width, use_bias=self.hidden_bias, dtype=dtype)(h)
            if self.hidden_norm:
                h = BatchNorm(**norm)(h, train, axis_name)
            h = nn.relu(h)
        h = nn.Dense(self.widths[-1], use_bias=self.output_bias, dtype=dtype)(h)
        output_norm = OUTPUT_NORMS[self.output_norm]
        if output_norm is not None:
            h = BatchNorm(**norm, **output_norm)(h, train, axis_name)
        return h.astype(jnp.float32)
