import dataclasses

import numpy as np
import pytest

from ssl_jax.evaluation import block_probes, probe_recipes
from ssl_jax.evaluation.block_probes import BLOCK_PROBES, BlockProbe, Tokens, block_probe

DIM, LABELS = 3, np.arange(60, dtype=np.int32) % 2


def features(informative, seed):
    """Two class tokens and a mean, of noise but for the one that tells the classes apart."""
    made = np.random.default_rng(seed).normal(size=(60, 3 * DIM)).astype(np.float32)
    made[:, informative * DIM] += 20.0 * LABELS - 10.0
    return made


@pytest.fixture(autouse=True)
def short(monkeypatch):
    recipe = dataclasses.replace(probe_recipes.RECIPES["dinov2"], lrs=(1e-9, 1.0), batch_size=30, epochs=30)
    monkeypatch.setitem(block_probes.RECIPES, "dinov2", recipe)


@pytest.mark.parametrize("informative, chosen", [(0, Tokens(2, False)), (2, Tokens(1, True))])
def test_the_tokens_are_chosen_that_tell_held_out_images_apart(informative, chosen):
    probe = BlockProbe("dinov2", (Tokens(1, False), Tokens(2, False), Tokens(1, True)))
    train, test = features(informative, 1), features(informative, 2)
    found, tokens = block_probe(train, LABELS, test, LABELS, num_classes=2, probe=probe, dim=DIM)
    assert tokens == chosen and found.accuracy > 90 and found.lr == 1.0


def test_features_of_too_few_blocks_are_refused():
    probe = BLOCK_PROBES["dinov2_blocks"]
    with pytest.raises(ValueError, match="features of 9 dimensions do not hold 4 tokens of 3 and a mean"):
        block_probe(features(0, 1), LABELS, features(0, 2), LABELS, num_classes=2, probe=probe, dim=DIM)


def test_what_is_classified_is_told():
    assert Tokens(4, True).describe() == "class tokens of the last 4 blocks and the mean of its patches"
    assert Tokens(1, False).describe("means of the patches") == "means of the patches of the last block"
    assert list(BLOCK_PROBES["dinov2_blocks"].tokens) == [(1, False), (1, True), (4, False), (4, True)]
