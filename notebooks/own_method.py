# %% [markdown]
# # Your own method
#
# First a loss of your own, then a class with a parameter of its own, and a test that eight devices give the numbers
# of one. It takes about two minutes on two CPU cores.

# %%
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import ssl_jax
from ssl_jax import data, losses, methods, models
from ssl_jax.methods import toolkit

jax.config.update("jax_num_cpu_devices", 8)  # where there are only CPUs, for the test at the end
STEPS = 60  # thousands, to learn much

train = data.tfds("fashion_mnist", split="train[:10%]", channels=1)
config = ssl_jax.get_config("simclr:tiny")  # of which the loss is replaced
config.steps, config.optimizer.warmup_steps = STEPS, STEPS // 5
config.log_every, config.evaluate_every = max(STEPS // 6, 1), 0
config.augment.view.size = (24, 24)

# %% [markdown]
# ## A loss
#
# `TwoView` takes a function of the projections of two views, [batch, dim] each. A first idea: both are to be equal.


# %%
def alike(z1, z2, *, axis_name):
    return losses.negative_cosine(z1, z2, axis_name=axis_name)


method = methods.TwoView(alike, projector=(256, 64))
run = ssl_jax.pretrain(config, train, method=method, workdir="runs/alike")

# %% [markdown]
# The loss falls to its least value, -1, and the warnings say why: all embeddings have become one. So nothing can be
# learnt from them. A second term that pushes each embedding away from its nearest neighbor, KoLeo, mends it.


# %%
def spread(z1, z2, *, axis_name):
    return alike(z1, z2, axis_name=axis_name) + 0.5 * losses.koleo(z1, axis_name=axis_name)


method = methods.TwoView(spread, projector=(256, 64))
spread_run = ssl_jax.pretrain(config, train, method=method, workdir="runs/spread")

# %% [markdown]
# How many dimensions are in use, of the two:

# %%
_, cell = plt.subplots(figsize=(5, 2.4), dpi=70, layout="constrained")
for name, made in (("alike", run), ("alike and spread", spread_run)):
    cell.plot([line["step"] for line in made.metrics], [line["rankme"] for line in made.metrics], label=name)
cell.set(xlabel="step", ylabel="rankme", ylim=(0, None))
cell.legend()
plt.show()

# %% [markdown]
# ## A method
#
# A class says which networks there are, what is trained, and what a step computes. This one is SimCLR with a
# temperature that is learnt, too: a parameter that belongs to no network. What changes passes through arguments and
# results, here BatchNorm's statistics. `methods.Base` has the rest, [toolkit](../ssl_jax/methods/toolkit/__init__.py)
# what methods are made of: teachers, queues, prototypes. [own_method.py](../examples/own_method.py) has a teacher.


# %%
@dataclasses.dataclass(frozen=True)
class LearntTemperature(methods.Base):
    backbone: nn.Module
    schedule: methods.Schedule
    first: float = 0.5
    views = ("view", "view")  # sections of config.augment

    @property
    def networks(self):
        return {"backbone": self.backbone, "projector": models.MLP((256, 64))}

    def init(self, rng, images):
        params, stats = toolkit.init(self.networks, rng, images)
        return {**params, "temperature": jnp.log(self.first)}, {"batch_stats": stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        outputs, stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], rng=rng, axis_name=axis_name, together=True
        )
        z, temperature = outputs["projector"], jnp.exp(params["temperature"])
        loss = losses.nt_xent(z[0], z[1], temperature=temperature, axis_name=axis_name)
        return methods.Output(loss, {"batch_stats": stats}, {"temperature": temperature}, embeddings=z)


run = ssl_jax.pretrain(config, train, method=LearntTemperature, workdir="runs/learnt")
print([round(line["temperature"], 3) for line in run.metrics])

# %% [markdown]
# ## The same on any number of devices
#
# A loss that compares images must see the whole batch, of which each device has a part. Losses of `ssl_jax.losses` do
# so when they are given `axis_name`. Whether a method passes it on shows when eight devices give the loss and the
# gradient of one.

# %%
schedule = methods.Schedule(batch_size=64, steps=1, steps_per_epoch=1, num_images=64)
method = LearntTemperature(models.create("resnet8"), schedule)
images = np.stack([train[number] for number in range(64)]) / np.float32(255)
views = np.stack([images, images[:, :, ::-1]])  # each beside its mirror image
params, state = method.init(jax.random.key(1), views[0])


def on_devices(number, *, axis_name: str | None = "devices"):
    """The loss, and its gradient with respect to the parameters."""

    def loss(params, views):
        output = method.loss(params, state, {"views": tuple(views)}, jax.random.key(2), axis_name=axis_name)
        return jax.lax.pmean(output.loss, "devices")

    mesh = Mesh(np.array(jax.devices("cpu")[:number]), ("devices",))
    rows = (P(), P(None, "devices"))  # each device has all parameters, and its rows of both views
    return jax.jit(jax.shard_map(jax.value_and_grad(loss), mesh=mesh, in_specs=rows, out_specs=P()))(params, views)


(one, gradient), (eight, other_gradient) = on_devices(1), on_devices(8)
print(f"one device {one:.6f}, eight {eight:.6f}, eight that forgot axis_name {on_devices(8, axis_name=None)[0]:.6f}")
largest, difference = (
    max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))
    for tree in (gradient, jax.tree.map(np.subtract, gradient, other_gradient))
)
print(f"largest gradient {largest:.4f}, largest difference {difference:.6f}")
np.testing.assert_allclose(one, eight, rtol=1e-4)
assert difference < 0.01 * largest

# %% [markdown]
# All of the runs above had eight devices, if this machine has CPUs alone. To add a method to ssl_jax itself:
# [CONTRIBUTING](../CONTRIBUTING.md).
