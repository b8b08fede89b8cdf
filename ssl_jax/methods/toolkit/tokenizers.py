"""Codebooks of unit vectors, which tokenizers learn and masked models predict."""

# pyright: reportUnknownMemberType=false

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ssl_jax.methods.contract import Variables
from ssl_jax.methods.toolkit import memories
from ssl_jax.methods.toolkit.kmeans import kmeans, nearest
from ssl_jax.methods.toolkit.teachers import Teacher
from ssl_jax.models.blocks import weight_init
from ssl_jax.ops import global_sum, normalize

Codebook = Float[Array, "codes dim"]


class TanhHead(nn.Module):
    """x [..., features] -> a linear layer as wide, tanh, a linear layer of `outputs`, float32."""

    outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch *places features"]) -> Float[Array, "batch *places outputs"]:
        x = nn.Dense(x.shape[-1], kernel_init=weight_init, name="hidden")(x)
        return nn.Dense(self.outputs, kernel_init=weight_init, name="out")(jnp.tanh(x))


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A frozen encoder and its codebook: what a run of vqkd has learnt.

    encoder: a ViT, and how it sees a student's views. head: params of its `TanhHead`. codebook: [codes, dim].
    """

    encoder: Teacher
    head: Variables
    codebook: Float[np.ndarray | Array, "codes dim"]

    @property
    def constants(self) -> dict[str, Any]:
        return {"encoder": self.encoder.variables, "head": self.head, "codebook": self.codebook}

    def tokens(
        self, constants: Variables, images: Float[Array, "batch height width channels"]
    ) -> Int[Array, "batch patches"]:
        """The token of each patch of a student's views, row by row. constants: of the state."""
        model = self.encoder.model
        found: Any = model.apply(constants["encoder"], self.encoder.sees(images, 0), method="tokens")
        z = encode(constants["head"], found[:, model.num_prefix :], constants["codebook"].shape[1])
        return quantize(constants["codebook"], z)[0]


def encode(
    head: Variables, patches: Float[Array, "batch patches features"], dim: int
) -> Float[Array, "batch patches dim"]:
    """What is quantized: unit vectors. head: params of a `TanhHead`."""
    z: Any = TanhHead(dim).apply({"params": head}, patches)
    return normalize(z)


def quantize(
    codebook: Codebook, z: Float[Array, "batch patches dim"]
) -> tuple[Int[Array, "batch patches"], Float[Array, "batch patches dim"]]:
    """(the nearest code of each of these unit vectors, by its index; and the code itself)"""
    tokens = nearest(z.reshape(-1, z.shape[-1]), codebook, spherical=True).reshape(z.shape[:2])
    return tokens, codebook[tokens]


def first_codebook(
    rng: Key[Array, ""], z: Float[Array, "batch patches dim"], codes: int, iterations: int, axis_name: str | None
) -> Codebook:
    """Spherical k-means of the global batch's vectors."""
    rows = memories.gather(z.reshape(-1, z.shape[-1]), axis_name)
    codebook, _ = cast(tuple[Array, Array], kmeans(rng, rows, codes, iterations=iterations, spherical=True))
    return codebook


def moved(
    codebook: Codebook,
    z: Float[Array, "batch patches dim"],
    tokens: Int[Array, "batch patches"],
    *,
    decay: float,
    axis_name: str | None,
) -> tuple[Codebook, Float[Array, " codes"]]:
    """(the new codebook, how often the global batch has each code)

    A code moves towards the direction of the mean of the vectors that have it, and is normalized again: decay * old +
    (1 - decay) * that direction. One that no vector has stays where it is.

    Source: Peng et al. 2022, arXiv:2208.06366, section 2.2, and the authors' code.
    """
    rows, labels, codes = z.reshape(-1, z.shape[-1]), tokens.reshape(-1), len(codebook)
    counts = global_sum(jax.ops.segment_sum(jnp.ones(len(rows)), labels, codes), axis_name)
    sums = global_sum(jax.ops.segment_sum(rows, labels, codes), axis_name)
    new = normalize(decay * codebook + (1.0 - decay) * normalize(sums))
    return jnp.where(counts[:, None] > 0, new, codebook), counts


def perplexity(counts: Float[Array, " codes"]) -> Float[Array, ""]:
    """So many equally frequent codes would have the entropy of these."""
    return jnp.exp(jnp.sum(jax.scipy.special.entr(counts / jnp.sum(counts))))
