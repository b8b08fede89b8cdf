"""The gradient of a convolution with respect to its kernel, on this machine's CPU: python benchmarks/conv_gradient.py

Prints GFLOP/s of ours (ssl_jax/models/kernel_gradient.py), of XLA's own, and of a plain matmul of the same FLOPs, the
im2col product [9 inputs, positions] x [positions, outputs] without the making of its left side; and the ratios. The
variants take turns, and each one's fastest time counts, so that other load on the machine falls on all of them.
"""

import argparse
import functools
import os
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.models.kernel_gradient import NHWC, kernel_gradient

# height = width, channels in = out, images: 512 are the two views of a batch of 256
SHAPES = [(32, 64, 512), (32, 64, 32), (14, 128, 512), (14, 128, 64)]
KERNEL, PADDING = 3, ((1, 1), (1, 1))


def xla_gradient(x, g):
    kernel = jnp.zeros((KERNEL, KERNEL, x.shape[-1], g.shape[-1]))
    forward = functools.partial(
        lax.conv_general_dilated, x, window_strides=(1, 1), padding=PADDING, dimension_numbers=NHWC
    )
    return jax.vjp(forward, kernel)[1](g)[0]


def our_gradient(x, g):
    return kernel_gradient(x, g, kernel_size=(KERNEL, KERNEL), strides=(1, 1), padding=PADDING)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="times that each variant is measured")
    rounds = parser.parse_args().rounds
    print(f"{'shape':<24}{'ours':>8}{'XLA':>8}{'matmul':>8}   GFLOP/s{'ours/XLA':>12}{'ours/matmul':>14}")
    for side, channels, images in SHAPES:
        rng_x, rng_g = jax.random.split(jax.random.key(0))
        x = jax.random.normal(rng_x, (images, side, side, channels))
        g = jax.random.normal(rng_g, x.shape)
        positions = images * side * side
        patches, rows = jnp.ones((KERNEL**2 * channels, positions)), g.reshape(positions, channels)
        variants = {"ours": (our_gradient, x, g), "XLA": (xla_gradient, x, g), "matmul": (jnp.matmul, patches, rows)}
        compiled = {name: jax.jit(function) for name, (function, *_) in variants.items()}
        for name, (_, *arrays) in variants.items():
            compiled[name](*arrays).block_until_ready()
        seconds = dict.fromkeys(variants, float("inf"))
        for _ in range(rounds):
            for name, (_, *arrays) in variants.items():
                begun = time.perf_counter()
                compiled[name](*arrays).block_until_ready()
                seconds[name] = min(seconds[name], time.perf_counter() - begun)
        flops = 2 * positions * KERNEL**2 * channels**2
        rate = {name: flops / s / 1e9 for name, s in seconds.items()}
        shape = f"{images} x {side}x{side}x{channels}"
        print(
            f"{shape:<24}{rate['ours']:>8.0f}{rate['XLA']:>8.0f}{rate['matmul']:>8.0f}"
            f"{rate['ours'] / rate['XLA']:>22.1f}{rate['ours'] / rate['matmul']:>14.2f}"
        )


if __name__ == "__main__":
    main()
