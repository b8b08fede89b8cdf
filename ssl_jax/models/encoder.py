"""A backbone and the projector on top of it, as one module."""

import flax.linen as nn
from jaxtyping import Array, Float


class Encoder(nn.Module):
    """images [batch, height, width, channels] -> projector(backbone(images)) [batch, dim], float32."""

    backbone: nn.Module
    projector: nn.Module

    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch dim"]:
        h = self.backbone(images, train=train, axis_name=axis_name)
        return self.projector(h, train=train, axis_name=axis_name)
