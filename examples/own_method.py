"""A method of your own: the student's projection of one view is to equal the teacher's of the other."""

import dataclasses

import flax.linen as nn

import ssl_jax
from ssl_jax import losses, methods, models
from ssl_jax.methods import toolkit


@dataclasses.dataclass(frozen=True)
class MeanTeacher(methods.Base):
    backbone: nn.Module
    schedule: methods.Schedule
    decay: float = 0.99
    views = ("view", "view")

    @property
    def networks(self):
        return {"backbone": self.backbone, "projector": models.MLP((64, 32))}

    def init(self, rng, images):
        params, stats = toolkit.init(self.networks, rng, images)
        return params, {"batch_stats": stats, "teacher": toolkit.make_teacher(self.networks, params, stats)}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        views, how = batch["views"], dict(axis_name=axis_name, together=True)
        z, stats = toolkit.forward_views(self.networks, params, state["batch_stats"], views, rng=rng, **how)
        t, teacher = toolkit.forward_teacher(self.networks, state["teacher"], views, **how)
        loss = losses.negative_cosine(z["projector"][0], t["projector"][1], axis_name=axis_name)
        return methods.Output(loss, {"batch_stats": stats, "teacher": teacher}, {}, embeddings=z["projector"])

    def update(self, params, state, step):  # after the optimizer
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, self.decay)}


config = ssl_jax.get_config("simclr:tiny")
config.steps = 4
ssl_jax.pretrain(config, method=MeanTeacher, workdir="runs/own_method")
