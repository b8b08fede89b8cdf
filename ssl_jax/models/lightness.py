"""A ResNet that sees the lightness of images alone: the backbone of colorization (Zhang et al. 2016)."""

from jaxtyping import Array, Float

from ssl_jax.models.lab import lab_of_normalized, scale_lab
from ssl_jax.models.resnet import ResNet


class LightnessResNet(ResNet):
    """A ResNet on CIE L of images of red, green and blue, wherever it is used: trained, evaluated or loaded again.

    mean, std: the data's normalization, which is undone for that. L, in 0..100, enters as (L - 50) / 50.
    The other fields are ResNet's. Gray images are read as three equal channels.

    Raises: ValueError for other than three means and deviations, and in a call for images without three channels.
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self):
        if not len(self.mean) == len(self.std) == 3:
            raise ValueError(
                f"lightness is of red, green and blue, with a mean and std of each, got mean={self.mean}, "
                f"std={self.std}; read color images with data.channels=3"
            )
        super().__post_init__()

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        train: bool = False,
        axis_name: str | None = None,
        pool: bool = True,
    ) -> Float[Array, "batch *map dim"]:
        """As ResNet."""
        lightness = scale_lab(lab_of_normalized(images, self.mean, self.std))[..., :1]
        return super().__call__(lightness, train, axis_name, pool)
