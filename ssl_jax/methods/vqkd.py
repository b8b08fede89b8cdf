"""VQ-KD, the tokenizer of BEiT v2."""

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, NOT_NEGATIVE, SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Batch, Output, Params, State, Traffic
from ssl_jax.methods.toolkit import masking, teachers, tokenizers
from ssl_jax.models import maps
from ssl_jax.models.blocks import Block, layer_norm, weight_init
from ssl_jax.models.dense import Dense
from ssl_jax.models.positions import patch_grid


class CodeDecoder(nn.Module):
    """Codes of patches -> the teacher's features of these patches: a small ViT with learned positions."""

    dim: int
    depth: int
    heads: int
    outputs: int

    @nn.compact
    def __call__(
        self, codes: Float[Array, "batch patches code_dim"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch patches outputs"]:
        x = Dense(self.dim, kernel_init=weight_init, name="embed")(codes)
        cls_token = self.param("cls_token", weight_init, (1, 1, self.dim))
        x = jnp.concatenate([jnp.repeat(cls_token, len(x), axis=0), x], axis=1)
        x = x + self.param("pos_embed", weight_init, (1, *x.shape[1:]))
        for i in range(self.depth):
            x = Block(self.heads, 4 * self.dim, layer_scale=0.0, dtype=x.dtype, name=f"blocks_{i}")(x)
        return tokenizers.TanhHead(self.outputs, name="head")(layer_norm(jnp.float32, "norm")(x)[:, 1:])


@dataclasses.dataclass(frozen=True)
class VQKD(teachers.Taught):
    """Learns tokens of patches, from which a small decoder can tell a frozen teacher's features of the patches.

    The encoder's patches are projected to `code_dim` dimensions and normalized; the nearest of `codes` unit vectors
    takes the place of each. The decoder predicts the teacher's features from these codes. The loss is 1 - the cosine,
    plus `commitment` * the squared error between codes and what they stand for. The decoder's gradient passes to the
    encoder as if there were no codes. Codes are not trained: they follow the mean of the vectors that they stand for.
    They begin as k-means of the first batch.

    The teacher is a backbone from a file, as of `distill`: it needs features of places, which are resized to the
    encoder's grid. The run's directory is what method.tokenizer of `beit_v2` takes.

    Source: Peng et al. 2022, arXiv:2208.06366, section 2.2, and the authors' code (unilm, beit2), whose teacher is CLIP
    or DINO.
    """

    codes: Annotated[int, Range(2), "Number of different tokens."] = 8192
    code_dim: Annotated[int, COUNT, "Dimensions of a code."] = 32
    decay: Annotated[float, SHARE, "Share of its place that a code keeps at each step."] = 0.99
    commitment: Annotated[float, NOT_NEGATIVE, "Weight of the squared error between codes and what they stand for."] = (
        1.0
    )
    kmeans_iterations: Annotated[int, NOT_NEGATIVE, "Iterations of k-means, by which the codes begin."] = 10
    decoder_dim: Annotated[int, COUNT, "Width of the decoder."] = 768
    decoder_depth: Annotated[int, COUNT, "Blocks of the decoder."] = 3
    decoder_heads: Annotated[int, COUNT, "Attention heads of the decoder."] = 12

    views = ("view",)
    preparing_steps = 1
    # chance_level: without images the decoder can tell the mean direction of the teacher's features.

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_patches(self)
        model = self.frozen.model
        if not teachers.has_places(model):
            raise ValueError(
                f"the teacher, a {type(model).__name__}, has no features of places; use a ViT of "
                'pool="cls" or "norm_mean", or a ResNet'
            )

    @property
    def decoder(self) -> CodeDecoder:
        return CodeDecoder(self.decoder_dim, self.decoder_depth, self.decoder_heads, self.frozen.model.dim)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        _, height, width, _ = images.shape
        rows, columns = patch_grid((height, width), self.backbone.patch_size)
        points = self.schedule.batch_size * rows * columns
        if self.codes > points:
            raise ValueError(
                f"codes={self.codes} begin as k-means of the first batch, which has {points} patches; use "
                f"codes={points} or less"
            )
        keys = jax.random.split(rng, 3)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, keys[0], images)
        head = tokenizers.TanhHead(self.code_dim)
        params["head"] = head.init(keys[1], jnp.zeros((1, self.backbone.dim)))["params"]
        codes = jnp.zeros((1, rows * columns, self.code_dim))
        params["decoder"] = self.decoder.init(keys[2], codes)["params"]
        codebook = jnp.zeros((self.codes, self.code_dim))
        return params, {"batch_stats": batch_stats, **self.constants, "codebook": codebook}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,) = batch["views"]
        z, patches = self.encode(params, images, rng, axis_name)
        tokens, rows = tokenizers.quantize(state["codebook"], z)
        passed = z + lax.stop_gradient(rows - z)
        prediction: Any = self.decoder.apply({"params": params["decoder"]}, passed, train=True, axis_name=axis_name)
        target = self.targets(state["teacher"], images)
        likeness = -losses.negative_cosine(
            prediction.reshape(-1, target.shape[-1]), target.reshape(-1, target.shape[-1]), axis_name=axis_name
        )
        every = jnp.ones(tokens.shape, bool)
        error = losses.masked_pixels(z, lax.stop_gradient(rows), every, normalize=False, axis_name=axis_name)
        codebook, counts = tokenizers.moved(state["codebook"], z, tokens, decay=self.decay, axis_name=axis_name)
        metrics = {
            "teacher_cosine": likeness,
            "code_error": error,
            "codebook_perplexity": tokenizers.perplexity(counts),
        }
        loss = 1.0 - likeness + self.commitment * error
        state = {**state, "codebook": lax.stop_gradient(codebook)}
        return Output(loss, state, metrics, embeddings=jnp.mean(patches, axis=1)[None])

    def encode(
        self,
        params: Params,
        images: Float[Array, "batch height width channels"],
        rng: Key[Array, ""],
        axis_name: str | None,
    ) -> tuple[Float[Array, "batch patches code_dim"], Float[Array, "batch patches dim"]]:
        """(what is quantized, the encoder's patches)"""
        _, (patches,) = masking.encode(self.backbone, params["backbone"], [images], axis_name=axis_name, rng=rng)
        return tokenizers.encode(params["head"], patches, self.code_dim), patches

    def targets(
        self, variables: toolkit.Variables, views: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch patches dim"]:
        """The teacher's features of the encoder's patches, without gradient."""
        model, images = self.frozen.model, self.frozen.sees(views, self.teacher_size)
        found: Any = model.apply(variables, images, method=maps.method_of_both(model))
        _, places = maps.both(model, found, images)
        _, height, width, _ = views.shape
        grid = patch_grid((height, width), self.backbone.patch_size)
        places = teachers.resized(places, (len(views), *grid, places.shape[-1]))
        return lax.stop_gradient(places.reshape(len(views), -1, places.shape[-1]))

    def prepare(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> tuple[State, Float[Array, "views batch dim"]]:
        rng_encoder, rng_kmeans = jax.random.split(rng)
        z, patches = self.encode(params, batch["views"][0], rng_encoder, axis_name)
        codebook = tokenizers.first_codebook(rng_kmeans, z, self.codes, self.kmeans_iterations, axis_name)
        return {**state, "codebook": codebook}, jnp.mean(patches, axis=1)[None]

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Of each code the sum of its vectors and their number.
        return Traffic(reduced=4 * self.codes * (self.code_dim + 1))
