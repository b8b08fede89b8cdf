import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ssl_jax.models import stochastic_depth
from tests.models.devices import on_eight


def test_branches_are_left_out_at_their_rate_and_independently_on_any_number_of_devices():
    rates = stochastic_depth.growing(0.6, 3)
    np.testing.assert_allclose(rates, [0.0, 0.3, 0.6])
    rng = jax.random.key(0)
    factors = np.stack(stochastic_depth.factors(stochastic_depth.draw(rng, 4096, 3, 2, None), rates))
    assert factors.shape == (3, 4096, 2)
    for block, rate in zip(factors, rates, strict=True):
        np.testing.assert_allclose(np.unique(block), [0.0, 1 / (1 - rate)] if rate else [1.0], rtol=1e-6)
        np.testing.assert_allclose(np.mean(block == 0.0), rate, atol=0.03)  # three deviations of 8192 draws are 0.016
    kept = np.concatenate([factors[1], factors[2]], axis=1) > 0.0
    assert np.abs(np.corrcoef(kept.T) - np.eye(4)).max() < 0.06  # a deviation is 0.016
    split = on_eight(
        lambda rng: jnp.stack(stochastic_depth.factors(stochastic_depth.draw(rng, 512, 3, 2, "data"), rates)),
        in_specs=P(),
        out_specs=P(None, "data"),
    )
    np.testing.assert_array_equal(jax.jit(split)(rng), factors)
