"""BEiT v2."""

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import drawing, masking
from ssl_jax.methods.toolkit.tokenizers import Tokenizer
from ssl_jax.models import stochastic_depth
from ssl_jax.models.blocks import Block, normed_by
from ssl_jax.models.positions import RelativePositions, patch_grid


class Aggregator(nn.Module):
    """Blocks like those of a ViT, numbered from `first` on."""

    options: tuple[tuple[str, Any], ...]  # (name, value) of each Block; a dict could not be hashed
    first: int
    depth: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens dim"], drops: Any = None, bias: Float[Array, "#batch _ _ _"] | None = None
    ) -> Float[Array, "batch tokens dim"]:
        for i in range(self.depth):
            block = Block(**dict(self.options), name=f"blocks_{self.first + i}")
            x = block(x, None if drops is None else drops[i], None, bias)
        return x


@dataclasses.dataclass(frozen=True)
class BEiTV2(Base):
    """Predicts the tokens of an image's hidden patches, which a tokenizer gives that a teacher has taught, twice.

    Once from the last block's patches. And once from the patches that an earlier block gives, together with the class
    token of the last: these pass a few blocks more. For them all that later blocks know must be in the class token.
    Both share the last LayerNorm and the linear layer that classifies. The loss is the sum of the two cross entropies.

    The tokenizer is a finished run of `vqkd` (method.tokenizer), whose encoder gives the tokens of the same view. Its
    weights are a constant of the state: no checkpoint has them. Let `config.mask` hide blocks with a share of 0.4.

    Source: Peng et al. 2022, arXiv:2208.06366, sections 2.3 and 2.4, and the authors' code (unilm, beit2). Their ViT
    has model.positions="relative".
    """

    backbone: nn.Module
    schedule: Schedule
    tokenizer: Annotated[str, "The tokenizer, which must be given: the directory of a finished run of vqkd."] = ""
    early_blocks: Annotated[int, COUNT, "Blocks after which patches go to the aggregation; 9 of 12, 21 of 24."] = 9
    head_blocks: Annotated[int, COUNT, "Blocks of the aggregation."] = 2
    loaded: Tokenizer | None = None  # the tokenizer itself, made of the key above when a run is built

    views = ("view",)
    masked = views
    # chance_level: equal embeddings can still predict how frequent each token is.

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_vit(self)
        if self.early_blocks > self.backbone.depth:
            raise ValueError(f"early_blocks must be in 1..model.depth={self.backbone.depth}, got {self.early_blocks}")
        if self.backbone.positions == "rope":
            raise ValueError('the aggregation has no rotated positions; use model.positions="relative" or "sincos"')
        if self.loaded is None:
            raise ValueError(
                "the tokens are those of a tokenizer; say --config.method.tokenizer=PATH, the directory of a finished "
                "run of ssl_jax train --config=vqkd"
            )

    @property
    def frozen(self) -> Tokenizer:
        """The tokenizer."""
        assert self.loaded is not None  # by __post_init__
        return self.loaded

    @property
    def constants(self) -> State:
        return {"tokenizer": self.frozen.constants}

    @property
    def codes(self) -> int:
        return len(self.frozen.codebook)

    @property
    def head(self) -> nn.Module:
        return nn.Dense(self.codes, kernel_init=drawing.beit_init)

    @property
    def aggregator(self) -> Aggregator:
        return Aggregator(tuple(self.backbone.block_options.items()), self.early_blocks, self.head_blocks)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        self.check_grid(images)
        keys = jax.random.split(rng, 6)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, keys[0], images)
        params["backbone"] = drawing.draw_beit(keys[1], params["backbone"])
        drawn = self.aggregator.init(keys[2], jnp.zeros((1, 2, self.backbone.dim)))["params"]
        params["aggregator"] = drawing.draw_beit(keys[3], drawn)
        params["mask_token"] = drawing.beit_init(keys[4], (self.backbone.dim,))
        params["head"] = self.head.init(keys[5], jnp.zeros((1, self.backbone.dim)))["params"]
        return params, {"batch_stats": batch_stats, **self.constants}

    def check_grid(self, images: Float[Array, "batch height width channels"]) -> None:
        """Raises: ValueError if the tokenizer gives images of this size another number of tokens than of patches."""
        _, height, width, _ = images.shape
        own = patch_grid((height, width), self.backbone.patch_size)
        seen = jax.eval_shape(lambda x: self.frozen.encoder.sees(x, 0), images)
        of_tokens = patch_grid(seen.shape[1:3], self.frozen.encoder.model.patch_size)
        if own != of_tokens:
            raise ValueError(
                f"the tokenizer gives a view of {height}x{width} pixels {of_tokens} tokens, and the backbone has {own} "
                "patches of it; use the patch_size of the tokenizer's run"
            )

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,), (mask,) = batch["views"], batch["masks"]
        tokens = self.frozen.tokens(state["tokenizer"], images)
        logits, h = self.predict(params, images, mask, rng, axis_name)
        of_patches, of_class = (losses.masked_cross_entropy(x, tokens, mask, axis_name=axis_name) for x in logits)
        counts = jnp.mean(jax.nn.one_hot(tokens, self.codes), axis=(0, 1))
        entropy = jnp.sum(jax.scipy.special.entr(counts))
        labels = jnp.where(mask, tokens, -1).reshape(-1)
        accuracies = [toolkit.accuracy(x.reshape(-1, self.codes), labels, axis_name) for x in logits]
        metrics = {
            "patch_loss": of_patches,
            "class_loss": of_class,
            "accuracy": accuracies[0],
            "class_accuracy": accuracies[1],
            # Of a device's tokens: the loss of a prediction of their frequencies.
            "frequency_loss": entropy,
        }
        return Output(of_patches + of_class, state, metrics, embeddings=h[None])

    def predict(
        self,
        params: Params,
        images: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch patches"],
        rng: Key[Array, ""],
        axis_name: str | None,
    ) -> tuple[list[Float[Array, "batch patches codes"]], Float[Array, "batch dim"]]:
        """(logits of all patches from the last block and from the aggregation; class tokens)"""
        vit, rng_backbone, rng_drops = self.backbone, *jax.random.split(rng)
        outputs, _ = toolkit.train_apply(
            vit,
            params["backbone"],
            {},
            images,
            axis_name=axis_name,
            rng=rng_backbone,
            mask=mask,
            mask_token=params["mask_token"],
            last_blocks=vit.depth - self.early_blocks + 1,
        )
        early, last, prefix = outputs[:, 0], outputs[:, -1], vit.num_prefix
        aggregated: Any = self.aggregator.apply(
            {"params": params["aggregator"]},
            jnp.concatenate([last[:, :prefix], early[:, prefix:]], axis=1),
            self.draw_drops(rng_drops, len(images), axis_name),
            self.bias(params["backbone"]),
        )
        normed = [normed_by(params["backbone"]["norm"], x, vit.norm_eps) for x in (last, aggregated)]
        logits: Any = [self.head.apply({"params": params["head"]}, x[:, prefix:]) for x in normed]
        return logits, normed[0][:, 0]

    def draw_drops(self, rng: Key[Array, ""], batch: int, axis_name: str | None) -> Any:
        """Stochastic depth of the aggregation's blocks, whose rates go on as those of the backbone's blocks."""
        if not self.backbone.drop_path:
            return None
        blocks = max(self.backbone.depth, self.early_blocks + self.head_blocks)
        rates = stochastic_depth.growing(self.backbone.drop_path, blocks)[self.early_blocks :][: self.head_blocks]
        return stochastic_depth.factors(stochastic_depth.draw(rng, batch, len(rates), 2, axis_name), rates)

    def bias(self, backbone: Params) -> Float[Array, "1 heads tokens tokens"] | None:
        """The backbone's relative positions, which the aggregation shares."""
        if self.backbone.positions != "relative":
            return None
        module = RelativePositions(self.backbone.heads, self.backbone.learned_grid, self.backbone.class_token)
        found: Any = module.apply({"params": backbone["rel_pos_bias"]})
        return found

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic()
