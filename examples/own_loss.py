"""Pre-train with a loss of your own over two views; it is the same on any number of devices."""

import ssl_jax
from ssl_jax import losses, methods


def loss(z1, z2, *, axis_name):
    """z1, z2: [batch, dim]. The mean over devices of what it gives is the loss of the whole batch, as of every loss of
    ssl_jax.losses."""
    return losses.nt_xent(z1, z2, axis_name=axis_name) + 0.1 * losses.koleo(z1, axis_name=axis_name)


config = ssl_jax.get_config("simclr:tiny")  # the images, the network, the views and the optimizer
config.steps = 4
run = ssl_jax.pretrain(config, method=methods.TwoView(loss, projector=(256, 64)), workdir="runs/own_loss")
print([line["loss"] for line in run.metrics])
