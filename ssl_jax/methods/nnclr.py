"""NNCLR."""

import dataclasses
import math

import flax.linen as nn
import jax

from ssl_jax import losses
from ssl_jax.methods import _common, _queue
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class NNCLR:
    """Contrasts the prediction from one view with the nearest neighbor, among past projections, of the other view.

    So positives are of other images, too. For nearest neighbors n_i of the first view's projections and predictions
    p_j from the second, the cross entropy of n_i . p_j / temperature with its own row right, the others of the batch
    wrong; the same with the views exchanged, and the mean of both. Projections of the first view join the queue after
    that. `local_views`: small crops, whose predictions are contrasted with the neighbors of both large views, too; the
    mean is over all pairs. A small queue has only poor neighbors; one longer than the data set holds old views of the
    same image.

    Source: Dwibedi et al. 2021, arXiv:2104.14548, section 3 and algorithm 1. There is no authors' code; lightly's has
    the other neighbors among the negatives, too, and differs in that from the paper and from this. The paper has
    multi-crop without saying how its crops are paired.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (2048, 2048, 256)  # BatchNorm after each layer, the last one included
    predictor: tuple[int, ...] = (4096, 256)
    temperature: float = 0.1
    queue_size: int = 98_304
    local_views: int = 0

    def __post_init__(self):
        _common.check_positive(self, "temperature", "queue_size")
        _common.check_predictor(self)
        _common.with_local((), self.local_views)
        _common.check_queue(self.run, self.queue_size, of_negatives=False)

    @property
    def views(self) -> tuple[str, ...]:
        return _common.with_local(("view1", "view2"), self.local_views)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {
            "backbone": self.backbone,
            "projector": MLP(
                self.projector, hidden_bias=True, output_bias=True, output_norm="full", kernel_init=torch_init
            ),
            "predictor": MLP(self.predictor, hidden_bias=True, output_bias=True, kernel_init=torch_init),
        }

    @property
    def chance_level(self) -> float:
        return math.log(self.run.batch_size)

    def init(self, rng, images):
        rng_networks, rng_queue = jax.random.split(rng)
        params, batch_stats = _common.init(self.networks, rng_networks, images)
        queue = _queue.create(rng_queue, self.queue_size, self.projector[-1])
        return params, {"batch_stats": batch_stats, "queue": queue}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        outputs, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        z, p, queue = outputs["projector"][:2], outputs["predictor"], state["queue"]
        neighbors = [_queue.nearest(large, queue["rows"]) for large in z]
        pairs = [
            losses.info_nce(neighbor, prediction, temperature=self.temperature, axis_name=axis_name)
            for i, neighbor in enumerate(neighbors)
            for j, prediction in enumerate(p)
            if i != j
        ]
        loss = sum(pairs) / len(pairs)
        state = {"batch_stats": batch_stats, "queue": _queue.push(queue, z[0], axis_name)}
        return loss, (state, {"loss": loss, "embeddings": z})

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
