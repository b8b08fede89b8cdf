import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.models.patches import patchify, unpatchify


def test_patches_are_the_squares_row_by_row():
    images = np.arange(2 * 6 * 9 * 2).reshape(2, 6, 9, 2)

    @jax.jit
    def run(images):
        patches = patchify(images, 3)
        return patches, unpatchify(patches, (6, 9), 3)

    patches, again = jax.device_get(run(images))
    assert patches.shape == (2, 6, 18)
    np.testing.assert_array_equal(patches[1, 4].reshape(3, 3, 2), images[1, 3:6, 3:6])
    np.testing.assert_array_equal(again, images)


def test_what_patches_do_not_fill_is_refused():
    with pytest.raises(ValueError, match="does not divide into patches of 4"):
        patchify(jnp.zeros((1, 6, 8, 1)), 4)
