import jax
import numpy as np


def variables_of(module, images, seed=1):
    """Variables for `module`, drawn with numpy, as compiling `init` takes longer than most tests' own program.

    Nothing is at its initial value, so that biases, norms and running statistics count: scales and variances are near
    1, kernels keep the size of activations, and all else is near 0.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, noise = path[-1].key, rng.normal(size=leaf.shape)
        if name in ("scale", "gamma"):
            value = 1.0 + 0.3 * noise
        elif name == "var":
            value = np.exp(0.3 * noise)
        elif name == "kernel":
            value = noise / np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            value = 0.3 * noise
        return value.astype(np.float32)

    return jax.tree.map_with_path(draw, jax.eval_shape(module.init, jax.random.key(0), images))
