"""Pre-train networks of your own: a Flax Linen module, and an nnx.Module."""

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

import ssl_jax


class LinenNet(nn.Module):
    width: int = 32

    @nn.compact
    def __call__(self, images):  # [batch, height, width, channels] -> [batch, dim]; it may take `train`, too
        for features in (self.width, 2 * self.width):
            images = nn.relu(nn.Conv(features, (3, 3), strides=2)(images))
        return jnp.mean(images, axis=(1, 2))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 32, (3, 3), strides=4, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)

    def __call__(self, images):
        return jnp.mean(nnx.relu(self.norm(self.conv(images))), axis=(1, 2))


config = ssl_jax.get_config("simclr:tiny")
config.steps = 4
for name, network in (("linen", LinenNet(width=16)), ("nnx", NNXNet(nnx.Rngs(0)))):
    run = ssl_jax.pretrain(config, backbone=network, workdir=f"runs/{name}")
    print(run.facts["backbone"], run.backbone.dim)
# In another process the network is given again, as the weights alone do not say what it is.
backbone = ssl_jax.load_backbone("runs/linen", model=LinenNet(width=16))
