import jax
import jax.numpy as jnp
import pytest

from ssl_jax.models.decoder import ConvDecoder


def test_a_map_larger_than_the_images_is_refused():
    with pytest.raises(ValueError, match="map of 8x8 cells is larger than the 4x8 pixels that are decoded from it"):
        jax.eval_shape(ConvDecoder((4, 8), 3).init, jax.random.key(0), jnp.zeros((1, 8, 8, 2)))
