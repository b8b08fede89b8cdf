"""The losses: pure functions of arrays, each the loss of the global batch (`axis_name`), in float32."""

from ssl_jax.losses.contrastive import nt_xent

__all__ = ["nt_xent"]
