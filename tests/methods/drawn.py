"""Parameters of a method for tests that do not ask how they begin: compiling `init` takes as long as a forward pass."""

import jax
import jax.numpy as jnp
import numpy as np

AROUND_ONE = ("scale", "gain", "var")  # of norms and heads; all others are around 0


def draw(method, images, seed=0, deviation=0.3):
    """(params, state) of the shapes that `method.init` gives, of random numbers: a teacher is unlike the student.

    They are so large that what attention sees matters, which is hardly so in the beginning. Integers are 0.
    """
    rng = np.random.default_rng(seed)

    def numbers(path, leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(seed)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        drawn = deviation * rng.normal(size=leaf.shape)
        return (np.exp(drawn) if path[-1].key in AROUND_ONE else drawn).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(numbers, jax.eval_shape(method.init, jax.random.key(0), images))


def with_other_teacher(params, state):
    """(params, state), the state with a teacher that is unlike the params."""
    teacher = jax.tree.map(lambda p: 1.5 * p + 0.1, state["teacher"]["params"])
    return params, {**state, "teacher": {**state["teacher"], "params": teacher}}


def through(networks, params, batch_stats, x):
    """The output of the last network; each sees that of the one before, in training."""
    for name, module in networks.items():
        variables = {"params": params[name], "batch_stats": batch_stats[name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return x
