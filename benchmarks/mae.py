"""What it saves that MAE's encoder sees a quarter of the patches: python benchmarks/mae.py [--model NAME] [--batch 4]

One gradient of MAE's loss at mask ratio 0.75, beside the same networks with an encoder that sees all patches, the
hidden ones as mask tokens (He et al. 2021, arXiv:2111.06377, table 1c). Prints seconds of both, and the ratio.
On two CPU cores, ViT-B/16, two images: 2.69 s and 6.36 s, 2.36.
"""

import argparse
import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.mae import MAE


@dataclasses.dataclass(frozen=True)
class AllTokens(MAE):
    """MAE, but that the encoder is given every patch."""

    def predict(self, params, images, mask, rng, axis_name):
        tokens = self.backbone.apply(
            {"params": params["backbone"]},
            images,
            train=True,
            tokens=True,
            mask=mask,
            mask_token=jnp.zeros(self.backbone.dim),
        )
        nothing = jnp.zeros_like(mask)
        decoder = self.decoder(images)
        return decoder.apply({"params": params["decoder"]}, tokens, nothing, train=True), tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    backbone = models.create(arguments.model, positions="sincos")
    run = Schedule(batch_size=arguments.batch, steps=1, steps_per_epoch=1, num_images=arguments.batch)
    images = jax.random.normal(jax.random.key(0), (arguments.batch, 224, 224, 3))
    patches = (224 // backbone.patch_size) ** 2
    mask = jax.vmap(lambda key: jax.random.permutation(key, patches) < 0.75 * patches)(
        jax.random.split(jax.random.key(1), arguments.batch)
    )
    batch = {"views": (images,), "masks": (mask,)}
    steps = {}
    for name, method in (("a quarter", METHODS["mae"](backbone, run)), ("all", AllTokens(backbone, run))):
        params, state = method.init(jax.random.key(2), images[:1])
        step = jax.jit(jax.grad(lambda params, method=method, state=state: method.loss(params, state, batch, None)[0]))
        jax.block_until_ready(step(params))
        steps[name] = lambda step=step, params=params: jax.block_until_ready(step(params))
    seconds = {name: [] for name in steps}
    for _ in range(arguments.repeats):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begun)
    quarter, everything = (statistics.median(seconds[name]) for name in ("a quarter", "all"))
    print(f"{arguments.model}, {arguments.batch} images, {jax.devices()[0].device_kind}")
    print(f"encoder sees a quarter: {quarter:.2f} s, all: {everything:.2f} s, ratio {everything / quarter:.2f}")


if __name__ == "__main__":
    main()
