import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule

RUN = Schedule(batch_size=8, steps=10, steps_per_epoch=5, num_images=40, num_classes=3)
OPTIONS = {
    "moco_v2": dict(projector=(32, 16), queue_size=8),
    "moco_v2_plus": dict(projector=(32, 16), queue_size=8),
    "ressl": dict(projector=(32, 16), queue_size=8),
    "pcl": dict(projector=(32, 16), queue_size=8, clusters=(2,)),
    "supcon": dict(projector=(32, 16)),
    "instdisc": dict(dim=16),
    "pirl": dict(projector=(32, 16)),
    "cmc": dict(dim=16),
    "w_mse": dict(projector=(32, 4), whiten_size=8),
    "jigsaw": dict(permutations=24, width=32),
    "rotation": {},
    "simsiam": dict(projector=(32, 16), predictor=(8, 16)),
    "fastsiam": dict(projector=(32, 16), predictor=(8, 16)),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_heads_have_the_initialization_of_the_authors_torch(name):
    backbone = models.create("split_resnet8" if name == "cmc" else "resnet8", width=0.25)
    method = METHODS[name](backbone, RUN, **OPTIONS[name])
    heads = {key: (module, (1, backbone.dim)) for key, module in method.networks.items() if key != "backbone"}
    if name == "jigsaw":
        heads["classifier"] = heads["classifier"][0], (1, 9 * 32)
    if name == "pirl":
        heads["transformed_projector"] = method.transformed_projector, (1, 9, backbone.dim)
    h = {key: shape for key, (_, shape) in heads.items()}
    if "predictor" in heads:
        h["predictor"] = (1, 16)

    @jax.jit
    def init(rng):
        return {key: module.init(rng, jnp.zeros(h[key]))["params"] for key, (module, _) in heads.items()}

    layers = {
        jax.tree_util.keystr(path[:-1]): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(init(jax.random.key(0)))
        if path[-1].key == "kernel"
    }
    assert layers
    for path, kernel in layers.items():
        bound = len(kernel) ** -0.5
        assert np.abs(kernel).max() <= bound, path  # lecun_normal's go to twice as much
        np.testing.assert_allclose(np.std(kernel), bound / 3**0.5, rtol=0.25, err_msg=path)
