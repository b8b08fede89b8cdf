"""Linear probes of a ViT's last blocks: which tokens the papers classify, and how."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Shaped

from ssl_jax.evaluation.probe_recipes import RECIPES
from ssl_jax.evaluation.sgd_probe import SGDProbe, rank, search, sgd_probe


class Tokens(NamedTuple):
    """The class tokens of the last `blocks` blocks, concatenated; with `mean` also the mean of the last block's
    patches."""

    blocks: int
    mean: bool

    def describe(self, of: str = "class tokens") -> str:
        where = "the last block" if self.blocks == 1 else f"the last {self.blocks} blocks"
        return f"{of} of {where}" + (" and the mean of its patches" if self.mean else "")


@dataclasses.dataclass(frozen=True)
class BlockProbe:
    """A linear probe of the last blocks.

    recipe: a name in `probe_recipes.RECIPES`.
    tokens: the candidates; if there are several, the best on held-out images is used.
    norm: whether tokens are taken after the backbone's final LayerNorm.
    patches: whether a model without a class token may be probed on the mean of each block's patches instead.
    """

    recipe: str
    tokens: tuple[Tokens, ...]
    norm: bool = True
    patches: bool = False

    @property
    def blocks(self) -> int:
        return max(tokens.blocks for tokens in self.tokens)


# NAME is called "probe_NAME" on the command line and "probe/NAME/top1" in evaluation.json.
BLOCK_PROBES = {
    # arXiv:2104.14294, appendix F.2, and the authors' eval_linear.py: 4 blocks for ViT-S; 1 with the mean for ViT-B.
    "dino_4_blocks": BlockProbe("dino", (Tokens(4, False),)),
    "dino_1_block": BlockProbe("dino", (Tokens(1, True),)),
    # arXiv:2304.07193, appendix B.3, and the authors' eval/linear.py. They choose on ImageNet's validation images,
    # which are also their test images; here the choice is made on held-out training images.
    "dinov2_blocks": BlockProbe("dinov2", (Tokens(1, False), Tokens(1, True), Tokens(4, False), Tokens(4, True))),
    # arXiv:2204.07141, the authors' linear_eval.py, and num_blocks of lineval_msn_vits16.yaml: 1, before the LayerNorm.
    "msn_block": BlockProbe("msn", (Tokens(1, False),), norm=False),
    # arXiv:2511.08544, the authors' README. It does not say whether tokens are taken before the LayerNorm. Here they
    # are, as the probe has a LayerNorm of its own.
    "lejepa_blocks": BlockProbe("lejepa", (Tokens(2, False),), norm=False, patches=True),
}


def block_probe(
    train_features: Float[np.ndarray, "train dims"],
    train_labels: Integer[np.ndarray, "train"],
    test_features: Float[np.ndarray, "test dims"],
    test_labels: Integer[np.ndarray, "test"],
    *,
    num_classes: int,
    probe: BlockProbe,
    dim: int,
    seed: int = 0,
    groups: Shaped[np.ndarray, "train"] | None = None,
) -> tuple[SGDProbe, Tokens]:
    """(test accuracy of a linear classifier on the probe's tokens, the tokens).

    If the probe has several candidates, then tokens, learning rate and weight decay are chosen together, on a fifth of
    each class's training images. With this choice the classifier is trained on all of them, and sees the test set once.

    Args:
      train_features, test_features: as `models.maps.block_features` gives them. The tokens of at least `probe.blocks`
        blocks, the last block's last; then the mean of the last block's patches, if any of the probe's tokens use it.
      dim: of a token.
      The others are those of `sgd_probe`.
    Raises: ValueError as `sgd_probe`, and for features with too few tokens or of another length.
    """
    with_mean = any(tokens.mean for tokens in probe.tokens)
    count = train_features.shape[1] // dim - with_mean
    if train_features.shape[1] % dim or count < probe.blocks:
        raise ValueError(
            f"features of {train_features.shape[1]} dimensions do not hold {probe.blocks} tokens of "
            f"{dim}{' and a mean' if with_mean else ''}"
        )
    columns = [slice((count - t.blocks) * dim, (count + t.mean) * dim) for t in probe.tokens]
    recipe, best = RECIPES[probe.recipe], 0
    if len(columns) > 1:
        choose = functools.partial(search, num_classes=num_classes, recipe=recipe, seed=seed, groups=groups)
        found = [choose(train_features[None, :, c], train_labels) for c in columns]
        best, head = max(np.ndindex(len(found), len(recipe.grid)), key=lambda at: rank(found[at[0]], at[1]))
        lr, weight_decay = recipe.grid[head]
        recipe = dataclasses.replace(recipe, lrs=(lr,), weight_decays=(weight_decay,))
    train, test = (features[:, columns[best]] for features in (train_features, test_features))
    options = {"num_classes": num_classes, "recipe": recipe, "seed": seed, "groups": groups}
    return sgd_probe(train, train_labels, test, test_labels, **options), probe.tokens[best]
