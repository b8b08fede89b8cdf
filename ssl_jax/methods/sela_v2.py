"""SeLa-v2."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.methods import _common, _prototypes, _transport


@dataclasses.dataclass(frozen=True)
class SeLaV2:
    """Classifies all crops of an image by a label that shares the whole data set out equally among the prototypes.

    SeLa with SwAV's networks, crops and optimizer. The labels are those of optimal transport (see _transport.py), over
    a memory that has a row of each image for each of the two large crops, which heads take in turn; each head's
    prototypes are trained, and unit vectors again after each step of the optimizer. `relabelings` times in a run, at
    steps whose distance grows: (i / (relabelings - 1))^2 of the run, and never twice in a step.

    SeLa computes all images' outputs anew for its labels; the memory has them as the last step that saw the image left
    them. An image not seen by then is labeled when it comes, by its large crop, with the weights of the last transport.
    Before the first, in step 1, there are no labels, and the loss is 0.

    All of the memory is on every device, 1.3 GB for ImageNet, and every device runs the whole transport, in blocks of
    images.

    Source: Asano et al. 2019, arXiv:1911.05371; v2: Caron et al. 2020, arXiv:2006.09882, appendix D, without code.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (2048, 128)
    prototypes: tuple[int, ...] = (3000, 3000, 3000)  # of each head
    local_views: int = 6
    temperature: float = 0.1
    strength: float = 25.0  # lambda: SeLa's for ImageNet; 10 for CIFAR
    iterations: int = 50  # of the transport, at most
    tolerance: float = 0.1
    relabelings: int = 100

    def __post_init__(self):
        _common.check_positive(self, "temperature", "strength", "iterations", "tolerance")
        _prototypes.check_local_views(self.local_views)
        _prototypes.check_heads(self.run, self.prototypes)
        if self.relabelings < 2:
            raise ValueError(f"relabelings must be at least 2, in the first step and the last, got {self.relabelings}")

    @property
    def views(self) -> tuple[str, ...]:
        return _prototypes.views(self.local_views)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return _prototypes.networks(self.backbone, self.projector)

    @property
    def chance_level(self) -> float:
        return sum(math.log(count) for count in self.prototypes) / len(self.prototypes)

    @property
    def _transport(self) -> dict[str, float]:
        return {"temperature": self.temperature, "strength": self.strength}

    def init(self, rng, images):
        rng_networks, rng_prototypes, rng_memory = jax.random.split(rng, 3)
        params, batch_stats = _common.init(self.networks, rng_networks, images)
        params["prototypes"] = _prototypes.create_heads(rng_prototypes, self.prototypes, self.projector[-1])
        return params, {
            "batch_stats": batch_stats,
            "memory": _prototypes.create_memory(rng_memory, self.run.num_images, self.projector[-1]),
            "labels": jnp.full((len(self.prototypes), self.run.num_images), -1, jnp.int32),
            "log_r": [jnp.zeros(count) for count in self.prototypes],
            "labeled": jnp.zeros((), bool),  # whether it ever was
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        z, batch_stats = _prototypes.forward(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng
        )
        prototypes = params["prototypes"]
        new = [
            _transport.label(z[head % 2], rows, log_r, **self._transport)
            for head, (rows, log_r) in enumerate(zip(prototypes, state["log_r"], strict=True))
        ]
        stored = state["labels"][:, batch["index"]]
        labels = jnp.where(state["labeled"] & (stored < 0), jnp.stack(new), stored)
        loss = _prototypes.classification(z, prototypes, labels, temperature=self.temperature, axis_name=axis_name)
        memory = _prototypes.remember(state["memory"], batch["index"], z[:2], axis_name)
        return loss, ({**state, "batch_stats": batch_stats, "memory": memory}, {"loss": loss, "embeddings": z[:2]})

    def relabels(self, step: Any) -> Any:
        """Whether labels are made anew after step number `step`, from 1 on."""
        # In integers, so that no rounding moves a time to its neighboring step.
        last = self.relabelings - 1
        times = [max(1, -(-(i * i * self.run.steps) // last**2)) for i in range(self.relabelings)]
        return jnp.any(jnp.asarray(step)[..., None] == jnp.array(times), axis=-1)

    def update(self, params: Any, state: Any, step: Any) -> Any:
        return lax.cond(self.relabels(step), self._relabel, lambda _, state: state, params, state)

    def _relabel(self, params, state):
        memory = state["memory"]
        transported = [
            _transport.balanced_labels(
                memory["rows"][head % 2],
                rows,
                iterations=self.iterations,
                tolerance=self.tolerance,
                valid=memory["seen"],
                **self._transport,
            )
            for head, rows in enumerate(params["prototypes"])
        ]
        labels, log_r = zip(*transported, strict=True)
        return {**state, "labels": jnp.stack(labels), "log_r": list(log_r), "labeled": jnp.ones((), bool)}

    constrain = _prototypes.constrain
    backbone_variables = _common.online_backbone
    features = _common.features
