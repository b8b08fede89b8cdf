"""Self-supervised pre-training of image backbones in JAX.

from ssl_jax import losses                    # pure functions of arrays
config = ssl_jax.get_config("simclr:tiny")    # of a method, at a scale
backbone = ssl_jax.load_backbone("runs/quickstart")
backbone.features(images)                     # [batch, height, width, channels] -> [batch, dim]
"""

from ssl_jax.config import get_config
from ssl_jax.weights import load_backbone

__all__ = ["get_config", "load_backbone"]
__version__ = "0.1.0"
