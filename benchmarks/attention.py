"""python benchmarks/attention.py: what attention moves on a TPU, by XLA and by our kernel, as libtpu compiles both.

A layer's attention, forward and backward, of 16 images on each chip, with 16 heads of 64 numbers, in bfloat16, mapped
over four chips as a train step is. No TPU is needed (pip install libtpu), and so nothing is timed.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ssl_jax.models.attention import attention
from ssl_jax.planning import chips, plan

SLICE, IMAGES, HEADS, WIDTH = "v5e:2x2", 16, 16, 64
TOKENS = (197, 257, 577, 1025, 2305)  # images of 224 pixels in patches of 16 and 14; 384, 512 and 768 in patches of 16


def compiled(kind: str, tokens: int, mesh: Mesh) -> jax.stages.Compiled:
    def loss(*given):
        return lax.pmean(jnp.mean(jnp.square(attention(*given, kind=kind).astype(jnp.float32))), "data")

    mapped = jax.shard_map(jax.grad(loss, (0, 1, 2)), mesh=mesh, in_specs=(P("data"),) * 3, out_specs=P("data"))
    given = [jax.ShapeDtypeStruct((mesh.size * IMAGES, tokens, HEADS, WIDTH), jnp.bfloat16)] * 3
    return jax.jit(mapped).trace(*given).lower(lowering_platforms=("tpu",)).compile()


def main():
    mesh = Mesh(np.array(plan.describe(chips.parse_slice(SLICE))), ("data",))
    print("tokens  memory traffic, GiB: XLA  kernel  ratio   temporaries, MiB: XLA  kernel")
    for tokens in TOKENS:
        found = [compiled(kind, tokens, mesh) for kind in ("xla", "fused")]
        traffic = [program.cost_analysis()["bytes accessed"] / 2**30 for program in found]
        room = [program.memory_analysis().temp_size_in_bytes / 2**20 for program in found]
        ratio = traffic[1] / traffic[0]
        print(
            f"{tokens:6} {traffic[0]:25.2f} {traffic[1]:7.2f} {ratio:6.2f} {room[0]:23.0f} {room[1]:7.0f}", flush=True
        )


if __name__ == "__main__":
    main()
