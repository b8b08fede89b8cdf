"""Self-supervised pre-training of image backbones in JAX.

from ssl_jax import losses                    # pure functions of arrays
backbone = ssl_jax.load_backbone("runs/quickstart")
backbone.features(images)                     # [batch, height, width, channels] -> [batch, dim]
"""

from ssl_jax.weights import load_backbone

__all__ = ["load_backbone"]
__version__ = "0.1.0"
