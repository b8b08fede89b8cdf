"""A ResNet that sees only the lightness of images: the backbone of colorization (Zhang et al. 2016)."""

from jaxtyping import Array, Bool, Float

from ssl_jax import keys
from ssl_jax.models._options import Mean, Std
from ssl_jax.models.lab import lab_of_normalized, scale_lab
from ssl_jax.models.resnet import ResNet


class LightnessResNet(ResNet):
    """A ResNet on the lightness, CIE L, of images in red, green and blue.

    It computes L itself: in training, in evaluation and when loaded again. L, in 0..100, enters as (L - 50) / 50. Read
    gray images as three equal channels.

    Raises: ValueError for other than three means and deviations. In a call: for images without three channels.
    """

    mean: Mean = (0.0, 0.0, 0.0)
    std: Std = (1.0, 1.0, 1.0)

    def __post_init__(self):
        keys.check_fields(self)
        if not len(self.mean) == len(self.std) == 3:
            raise ValueError(
                f"a {type(self).__name__} computes lightness from red, green and blue, with a mean and std for each, "
                f"got mean={self.mean}, std={self.std}; read color images with data.channels=3, and take another "
                "network and method for images of other channels"
            )
        super().__post_init__()

    def stage_maps(
        self,
        images: Float[Array, "batch height width channels"],
        train: bool = False,
        axis_name: str | None = None,
        *,
        mask: Bool[Array, "batch places"] | None = None,
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """As in ResNet."""
        lightness = scale_lab(lab_of_normalized(images, self.mean, self.std))[..., :1]
        return super().stage_maps(lightness, train, axis_name, mask=mask)
