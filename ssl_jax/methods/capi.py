"""CAPI."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import losses, ops, optim
from ssl_jax.keys import COUNT, INNER_SHARE, NOT_NEGATIVE, POSITIVE, SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import drawing, masking, self_distillation, tiling, transport
from ssl_jax.methods.toolkit.cross import CrossBlock
from ssl_jax.models.abilities import without_noise
from ssl_jax.models.blocks import make_norm
from ssl_jax.models.dense import Dense
from ssl_jax.models.heads import Prototypes, unit
from ssl_jax.models.positions import patch_grid, rope_rotations

ROPE_BASE = 100.0  # of the predictor of a network that has none


class Predictor(nn.Module):
    """The tokens of the patches that are seen, and the places of others -> a token for each of these places.

    All begin as one and the same token. Rotations of queries and keys alone tell the places apart.
    """

    dim: int
    depth: int
    grid: tuple[int, int]  # patches down, across
    prefix: int  # tokens before the patches, which are not rotated
    rope_base: float
    block: Mapping[str, Any]  # the fields of `CrossBlock`

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "batch _ encoder_dim"],
        seen: Int[Array, "batch seen"],
        hidden: Int[Array, "batch hidden"],
    ) -> Float[Array, "batch hidden dim"]:
        """tokens: those before the patches, then those of the patches `seen`."""
        rope = rope_rotations(self.grid, self.dim // self.block["heads"], base=self.rope_base, prefix=self.prefix)
        before = jnp.broadcast_to(jnp.arange(self.prefix), (len(seen), self.prefix))
        of_queries = at(rope, self.prefix + hidden)
        of_keys = at(rope, jnp.concatenate([before, self.prefix + seen], axis=1))
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (self.dim,))
        x = jnp.broadcast_to(mask_token, (*hidden.shape, self.dim))
        for i in range(self.depth):
            x = CrossBlock(**self.block, name=f"blocks_{i}")(x, tokens, of_queries, of_keys)
        eps = self.block.get("norm_eps", CrossBlock.norm_eps)
        return make_norm(self.block.get("norm_kind", CrossBlock.norm_kind), jnp.float32, "norm", eps)(x)


def at(rope: tuple[Array, Array], index: Int[Array, "batch chosen"]) -> tuple[Array, Array]:
    """The rotations of these tokens of each image, of the `Rope` of all tokens."""
    sines, cosines = (part[0][index] for part in rope)
    return sines, cosines


@dataclasses.dataclass(frozen=True)
class CAPI(Base):
    """Predicts to which clusters a slowly moving teacher's tokens of hidden patches belong.

    The student sees a third of an image: one rectangle of patches. A predictor that knows places alone attends to the
    student's tokens, and predicts the clusters of a few of the hidden patches. So it can be large.

    The clusters are a linear map of the teacher's normalized tokens, which sees the whole image. It is trained beside:
    it is to predict its own assignments, which Sinkhorn's iterations have made use all clusters equally. They do so
    for each place in the image by itself, as otherwise clusters would tell places apart and not contents. The teacher's
    tokens have no gradient, and the student none to the clusters, so that the sum of both losses trains each alone.

    Every share of the teacher that the student takes is as large as its learning rate in the paper: 1 - `decay`, after
    a warm-up and on the way to 0 by half a cosine. The teacher's backbone is kept.

    Give the ViT rotary positions, registers, and pooling by the mean: model.positions="rope", registers=16,
    class_token=False, pool="norm_mean", and as in the paper norm_kind="rms", bias=False, qkv_bias=False. config.mask is
    of kind "inverse". Kernels are drawn by Xavier's rule.

    Source: Darcet et al. 2025, arXiv:2502.08769, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    mask_ratio: Annotated[float, INNER_SHARE, "Share of each image's patches that the student does not see."] = 0.65
    predicted: Annotated[
        float, Range(0.0, 1.0, above=True), "Share of the hidden patches that are predicted, drawn for each image."
    ] = 0.05
    clusters: Annotated[int, COUNT, "Number of clusters."] = 16_384
    by_place: Annotated[
        bool, "Clusters share out the batch's patches equally at each place of the image, or else those of all places."
    ] = True
    iterations: Annotated[int, COUNT, "Iterations of Sinkhorn."] = self_distillation.ITERATIONS
    student_temperature: Annotated[float, POSITIVE, "Softmax temperature of the student's scores."] = 0.12
    teacher_temperature: Annotated[float, POSITIVE, "Temperature of the clusters' scores in Sinkhorn."] = 0.06
    cluster_temperature: Annotated[
        float, POSITIVE, "Softmax temperature of the clusters' scores, where they predict their assignments."
    ] = 0.12
    predictor_depth: Annotated[int, COUNT, "Blocks of the predictor, which has as many heads as the ViT."] = 12
    predictor_dim: Annotated[int, NOT_NEGATIVE, "Width of the predictor; 0: that of the ViT."] = 0
    decay: Annotated[float, SHARE, "The teacher's decay after the warm-up."] = 0.999
    decay_warmup_steps: Annotated[
        int,
        NOT_NEGATIVE,
        "Steps in which the teacher's decay falls from 1 to `decay`; then half a cosine takes it to 1.",
    ] = 50_000
    decay_stretch: Annotated[
        float,
        Range(1.0),
        "The decay's cosine is that of a run so many times as long; see optimizer.schedule_stretch.",
    ] = 1.0

    views = ("view",)
    masked = views
    # chance_level: at least twice log(clusters), which is that of all scores being equal.

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_patches(self)
        if self.dim % (4 * self.backbone.heads):
            raise ValueError(
                f"the predictor's {self.backbone.heads} heads, as many as the ViT's, need a width that is a multiple "
                f"of {4 * self.backbone.heads}; got predictor_dim={self.predictor_dim}, model.dim={self.backbone.dim}"
            )

    @property
    def dim(self) -> int:
        """Width of the predictor."""
        return self.predictor_dim or self.backbone.dim

    @property
    def head(self) -> Prototypes:
        """The student's scores, of the predictor's tokens as unit vectors."""
        return Prototypes(self.clusters, gain=True, kernel_init=nn.initializers.normal(0.02))

    @property
    def clustering(self) -> nn.Module:
        """The clusters' scores, of the teacher's tokens as unit vectors."""
        return Dense(self.clusters, kernel_init=nn.initializers.normal(1.0))

    def predictor(self, images: Float[Array, "batch height width channels"]) -> Predictor:
        """For images of this size."""
        vit = self.backbone
        fields = [field.name for field in dataclasses.fields(CrossBlock) if field.name not in ("parent", "name")]
        return Predictor(
            self.dim,
            self.predictor_depth,
            grid=patch_grid((images.shape[1], images.shape[2]), vit.patch_size),
            prefix=vit.num_prefix,
            rope_base=getattr(vit, "rope_base", ROPE_BASE),
            block={field: getattr(vit, field) for field in fields if hasattr(vit, field)},
        )

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        keys = jax.random.split(rng, 7)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, keys[0], images)
        backbone = drawing.draw_xavier(keys[1], params["backbone"], split_qkv=True)
        if "reg_token" in backbone:
            backbone = {**backbone, "reg_token": 0.02 * jax.random.normal(keys[2], backbone["reg_token"].shape)}
        params["backbone"] = backbone
        teacher = toolkit.make_teacher({"backbone": self.backbone}, params, batch_stats)
        predictor, place = self.predictor(images), jnp.zeros((1, 1), jnp.int32)
        drawn = predictor.init(keys[3], jnp.zeros((1, predictor.prefix + 1, self.backbone.dim)), place, place)["params"]
        params["predictor"] = drawing.draw_xavier(keys[4], drawn, split_qkv=True)
        params["head"] = self.head.init(keys[5], jnp.zeros((1, self.dim)))["params"]
        params["clustering"] = self.clustering.init(keys[6], jnp.zeros((1, self.backbone.dim)))["params"]
        return params, {"batch_stats": batch_stats, "teacher": teacher}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,), (mask,) = batch["views"], batch["masks"]
        rng_places, rng_drop = jax.random.split(rng)
        teacher = state["teacher"]["params"]["backbone"]
        _, (found,) = masking.encode(without_noise(self.backbone), teacher, [images], axis_name=axis_name)
        scores: Any = self.clustering.apply({"params": params["clustering"]}, unit(jax.lax.stop_gradient(found)))
        assigned = self.assign(scores, axis_name)
        cluster_loss = soft_cross_entropy(scores, assigned, self.cluster_temperature, axis_name)

        hidden = self.draw_places(rng_places, batch["index"], mask)
        prediction, tokens = self.predict(params, images, mask, hidden, rng_drop, axis_name)
        targets = jnp.take_along_axis(assigned, hidden[..., None], axis=1)
        loss = soft_cross_entropy(prediction, targets, self.student_temperature, axis_name)
        metrics = {
            "patch_loss": loss,
            "cluster_loss": cluster_loss,
            "teacher_entropy": self_distillation.entropy(targets),
        }
        embeddings = jnp.mean(tokens[:, self.backbone.num_prefix :], axis=1)[None]
        return Output(loss + cluster_loss, state, metrics, embeddings=embeddings)

    def assign(
        self, scores: Float[Array, "batch patches clusters"], axis_name: str | None
    ) -> Float[Array, "batch patches clusters"]:
        """Each patch's share of each cluster, without gradient."""
        share_out = functools.partial(
            losses.sinkhorn, epsilon=self.teacher_temperature, iterations=self.iterations, axis_name=axis_name
        )
        if self.by_place:
            return jax.vmap(share_out, in_axes=1, out_axes=1)(scores)
        return share_out(scores.reshape(-1, self.clusters)).reshape(scores.shape)

    def draw_places(
        self, rng: Key[Array, ""], index: ops.Index, mask: Bool[Array, "batch patches"]
    ) -> Int[Array, "batch hidden"]:
        """Which of the hidden patches are predicted: for each image the same number, at least 1."""
        patches = mask.shape[1]
        count = max(int(masking.count_masked(patches, self.mask_ratio) * self.predicted), 1)
        noise = tiling.uniform(rng, index, (patches,))  # below 1
        return masking.some_masked(mask, count, noise)

    def predict(
        self,
        params: Params,
        images: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch patches"],
        hidden: Int[Array, "batch hidden"],
        rng: Key[Array, ""],
        axis_name: str | None,
    ) -> tuple[Float[Array, "batch hidden clusters"], Float[Array, "batch _ dim"]]:
        """(scores of the patches `hidden`, tokens before the patches and of those that are seen)"""
        seen = masking.unmasked(mask, self.mask_ratio)
        tokens, _ = toolkit.train_apply(
            self.backbone, params["backbone"], {}, images, axis_name=axis_name, rng=rng, method="tokens", keep=seen
        )
        found: Any = self.predictor(images).apply({"params": params["predictor"]}, tokens, seen, hidden)
        scores: Any = self.head.apply({"params": params["head"]}, unit(found))
        return scores, tokens

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        """What the student saw of each image."""
        (images,), (mask,) = batch["views"], batch["masks"]
        return masking.pictures(images, mask, self.backbone.patch_size)

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        taken: Any = optim.warmup_cosine(
            1.0 - self.decay,
            warmup_steps=self.decay_warmup_steps,
            steps=round(self.decay_stretch * self.schedule.steps),
        )
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, 1.0 - taken(step))}

    backbone_variables = toolkit.teacher_backbone

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Sinkhorn's iterations, of each place by itself.
        rows, columns = patch_grid(view[:2], self.backbone.patch_size)
        places = rows * columns if self.by_place else 1
        return Traffic(reduced=transport.sinkhorn_bytes(places * self.clusters, self.iterations))


def soft_cross_entropy(
    scores: Float[Array, "batch patches clusters"],
    targets: Float[Array, "batch patches clusters"],
    temperature: float,
    axis_name: str | None,
) -> Float[Array, ""]:
    """The mean over all these patches of -sum_k targets_k log softmax(scores / temperature)_k."""
    every = jnp.ones(scores.shape[:2], bool)
    return losses.masked_patches(scores, targets, every, temperature=temperature, axis_name=axis_name)
