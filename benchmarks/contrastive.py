"""NT-Xent at a global batch of 65,536 on one device: python benchmarks/contrastive.py [--full]

Memory: of the compiled value and gradient, streamed in chunks of keys, at 2 x 65,536 embeddings of 128 numbers; with
--full it is run, too (some minutes on two cores) and the process's peak is printed. Value: against the plain formula at
2 x 4,096. Time: value and gradient against the four matmuls of that size that they need (the similarities, forward and
again backward, and the gradients of anchors and keys), in the same chunks, at 2 x 8,192.
"""

import argparse
import functools
import resource
import time

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax import losses

BATCH, DIM, CHUNK = 65_536, 128, 256


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help=f"run the batch of {BATCH:,}, not only compile it")
    arguments = parser.parse_args()
    streamed = jax.jit(jax.value_and_grad(functools.partial(losses.nt_xent, chunk_size=CHUNK), argnums=(0, 1)))
    plain = jax.jit(jax.value_and_grad(losses.nt_xent, argnums=(0, 1)))

    compiled = streamed.lower(*views(BATCH)).compile()
    memory = compiled.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    print(f"batch {BATCH:,} x {DIM}: {needed / 2**30:.2f} GiB; its similarities alone {16 * BATCH**2 / 2**30:.0f} GiB")

    small = views(4096)
    value, expected = streamed(*small)[0], plain(*small)[0]
    print(f"batch 4,096: streamed {value:.7f}, plain {expected:.7f}, difference {abs(value - expected):.1e}")

    anchors = jnp.concatenate(views(8192))
    ratios = []
    for _ in range(3):
        ours, matmuls = seconds(streamed, *views(8192)), seconds(four_matmuls, anchors)
        ratios.append(ours / matmuls)
        print(f"batch 8,192: value and gradient {ours:.2f} s, four matmuls {matmuls:.2f} s, ratio {ratios[-1]:.2f}")
    print(f"ratio {sorted(ratios)[1]:.2f}")

    if arguments.full:
        begun = time.perf_counter()
        value = float(compiled(*views(BATCH))[0])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"batch {BATCH:,}: {value:.6f} in {time.perf_counter() - begun:.0f} s; peak of the process {peak:.2f} GiB"
        )


def views(batch):
    keys = jax.random.split(jax.random.key(0))
    z1 = jax.random.normal(keys[0], (batch, DIM))
    return z1, z1 + jax.random.normal(keys[1], (batch, DIM))


@jax.jit
def four_matmuls(anchors):
    matmul = functools.partial(jnp.matmul, precision="highest")

    def step(total, keys):
        similarities = matmul(anchors, keys.T)
        again = matmul(anchors, (keys + total[0, 0]).T)  # else the compiler would do it once
        return total + matmul(similarities, keys), matmul(again.T, anchors)

    return lax.scan(step, 0.0 * anchors, anchors.reshape(-1, CHUNK, DIM))


def seconds(function, *arguments):
    jax.block_until_ready(function(*arguments))
    begun = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
