"""A small transformer over the few vectors of a set, as All4One has it over an image's neighbors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ssl_jax import ops
from ssl_jax.models.heads import torch_dense, torch_init

xavier = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def token_waves(tokens: int, dim: int) -> Float[np.ndarray, "tokens dim"]:
    """What is added to a set's tokens so that they can be told apart: token t gets a wave along `dim`.

    Its entry at dimension x is sin(x w) for even t and cos(x w) for odd t, with w = 10000^(-2 floor(t / 2) / c) and c
    the number of tokens, rounded up to an even one.

    Source: All4One's code in solo-learn, whose PositionalEncodingPermute1D(5) takes tokens for channels.
    """
    token = np.arange(tokens)[:, None]
    angles = np.arange(dim) * 10000.0 ** (-2.0 * (token // 2) / (tokens + tokens % 2))
    return np.where(token % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


class SetEncoder(nn.Module):
    """Sets of tokens [batch, sets, tokens, dim] -> the first token of each set after all layers, float32.

    A layer is self-attention among the tokens of a set, and a feed-forward network of width 2 dim with a ReLU. Each
    one's output is added to its input, and the sum is normalized. `token_waves` are added before the first layer. In
    training, dropout is applied to attention, to both outputs and inside the feed-forward network. What is dropped
    depends on the rng "dropout" and on a row's place in the global batch, not on the number of devices.

    Raises: ValueError for a dim that `heads` does not divide.
    Source: torch's TransformerEncoder, which All4One (Estepa et al. 2023, arXiv:2303.09417) takes.
    """

    layers: int = 3
    heads: int = 8
    dropout: float = 0.1

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch sets tokens dim"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch sets dim"]:
        dim = tokens.shape[-1]
        if dim % self.heads:
            raise ValueError(f"{self.heads} heads do not divide {dim} dimensions; use a divisor of {dim}")
        x = tokens.astype(jnp.float32) + token_waves(*tokens.shape[2:])

        def drop(y: Array) -> Array:
            if not train or self.dropout == 0.0:
                return y
            rows = ops.first_row(y, axis_name) + jnp.arange(len(y))
            keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), rows)
            kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - self.dropout, y.shape[1:]))(keys)
            return jnp.where(kept, y / (1.0 - self.dropout), 0.0)

        def norm(y: Array, name: str) -> Array:
            return nn.LayerNorm(epsilon=1e-5, name=name)(y)

        for i in range(self.layers):
            qkv = nn.Dense(3 * dim, kernel_init=xavier, name=f"attention_in_{i}")(x)
            q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:-1], 3, self.heads, -1), -3, 0)
            scores = jnp.einsum("bsqhc,bskhc->bshqk", q, k) / (dim // self.heads) ** 0.5
            mixed = jnp.einsum("bshqk,bskhc->bsqhc", drop(nn.softmax(scores)), v).reshape(x.shape)
            x = norm(x + drop(nn.Dense(dim, kernel_init=torch_init, name=f"attention_out_{i}")(mixed)), f"norm1_{i}")
            hidden = drop(nn.relu(torch_dense(2 * dim, dim, f"linear1_{i}")(x)))
            x = norm(x + drop(torch_dense(dim, 2 * dim, f"linear2_{i}")(hidden)), f"norm2_{i}")
        return x[:, :, 0]
