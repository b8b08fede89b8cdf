"""NVIDIA GPUs, and the machines that they are rented in.

Sources: NVIDIA's data sheets, their numbers without sparsity: A100 (2021), H100 (2023), H200 (2024), HGX B200 (2025,
an eighth of a board), L4 (2023), and "Ada GPU architecture" (2022) for the RTX 4090, its tensor cores with float32
sums. Memory: what nvidia-smi shows as a card's total. Network: a 200 Gbit/s adapter for each A100 of a DGX, 400 Gbit/s
for each newer GPU. Multiprocessors and what each holds: the same papers, and the CUDA C++ programming guide, table
"Technical specifications per compute capability".
"""

import dataclasses
import re
from collections.abc import Mapping

from ssl_jax.planning.program import Collective

# The share of a card's memory that JAX takes with XLA_PYTHON_CLIENT_MEM_FRACTION=0.9, which launch/ sets. JAX's own
# default is 0.75.
MEMORY_SHARE = 0.9
# Of a collective, for each GPU of the ring but one, and for each machine but one: NCCL's own estimates in its tuning
# table (nccl/src/graph/tuning.cc, hardware latencies of rings).
LINK_SECONDS, NETWORK_SECONDS = 0.6e-6, 2.7e-6
MOST = 256  # GPUs that a plan is made for

ASSUMPTIONS = (
    "the program is the one that XLA's GPU compiler makes for this card, so FLOPs, memory and what the collectives "
    "move are computed, not estimated; but no kernel was tried on a card: cuBLAS, cuDNN or Triton may do a product "
    "otherwise, and what cuDNN and CUDA take of the memory is not counted",
    "arithmetic is that of products and convolutions, in bfloat16, in TF32 for float32, or in float32 if the program "
    "asks for the highest precision; all else takes the time of its memory traffic",
    "arithmetic and memory run at the card's peak rates and overlap; measured steps take longer, often twice as long: "
    "--calibrate measures how much",
    "memory traffic is that of the compiled instructions: only the parts that they slice or gather, otherwise whole "
    "arrays, none from the cache",
    "times are estimates: collectives run around a ring at NVLink's full rate (PCIe's where there is none), between "
    "machines at the network's, with NCCL's latencies; fastest: all are hidden behind the arithmetic, slowest: none is",
    "the hosts deliver images in time; compiling, evaluating and saving take no time",
)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What one kind of card offers.

    memory: bytes of the card. flops: FLOPs a second by type of the operands; "f32" in TF32, "highest" without it.
    memory_bandwidth, link_bandwidth, network_bandwidth: bytes a second; of all NVLinks of a card, or of PCIe, in one
      direction; of its adapter between machines, 0 if it is rented in single machines only.
    capability: of CUDA. multiprocessors: their number. shared_memory, threads, lanes: of each multiprocessor, in bytes,
      at the same time, and as float32 operations in a cycle. cache: bytes of L2. clock: GHz. The compiler wants these.
    """

    name: str
    title: str
    memory: int
    flops: Mapping[str, float]
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int
    threads: int
    lanes: int
    cache: int
    clock: float

    def arithmetic_seconds(self, flops: Mapping[str, float]) -> float:
        """Of FLOPs by type of the operands; types without a rate of their own, such as f16, count as bfloat16."""
        return sum(count / self.flops.get(kind, self.flops["bf16"]) for kind, count in flops.items())

    @property
    def target(self) -> str:
        """The card as XLA's compiler takes it: a text of its proto GpuTargetConfigProto."""
        major, minor = self.capability
        info = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 48 * 2**10,
            "shared_memory_per_core": self.shared_memory,
            "shared_memory_per_block_optin": self.shared_memory - 2**10,
            "threads_per_core_limit": self.threads,
            "core_count": self.multiprocessors,
            "fpus_per_core": self.lanes,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "memory_bandwidth": int(self.memory_bandwidth),
            "l2_cache_size": self.cache,
            "clock_rate_ghz": self.clock,
            "device_memory_size": self.memory,
            "registers_per_core_limit": 2**16,
            "registers_per_block_limit": 2**16,
        }
        fields = " ".join(f"{key}: {value}" for key, value in info.items())
        return (
            f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
            f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{self.title}"'
        )


def _rates(bf16: float, tf32: float, f32: float) -> dict[str, float]:
    return {"bf16": bf16, "f32": tf32, "highest": f32}


_A100 = {
    "flops": _rates(312e12, 156e12, 19.5e12), "link_bandwidth": 300e9, "network_bandwidth": 25e9, "capability": (8, 0),
    "multiprocessors": 108, "shared_memory": 164 * 2**10, "threads": 2048, "lanes": 64, "cache": 40 * 2**20,
    "clock": 1.41,
}  # fmt: skip
_H100 = {
    "flops": _rates(989e12, 494e12, 67e12), "link_bandwidth": 450e9, "network_bandwidth": 50e9, "capability": (9, 0),
    "multiprocessors": 132, "shared_memory": 228 * 2**10, "threads": 2048, "lanes": 128, "cache": 50 * 2**20,
    "clock": 1.98,
}  # fmt: skip
_B200 = {
    "flops": _rates(2250e12, 1100e12, 75e12), "link_bandwidth": 900e9, "network_bandwidth": 50e9, "capability": (10, 0),
    "multiprocessors": 148, "shared_memory": 228 * 2**10, "threads": 2048, "lanes": 128, "cache": 126 * 2**20,
    "clock": 1.965,
}  # fmt: skip
_ADA = {
    "link_bandwidth": 32e9, "network_bandwidth": 0.0, "capability": (8, 9), "shared_memory": 100 * 2**10,
    "threads": 1536, "lanes": 128,
}  # fmt: skip
_L4 = {
    **_ADA, "flops": _rates(121e12, 60e12, 30.3e12), "multiprocessors": 58, "cache": 48 * 2**20, "clock": 2.04,
}  # fmt: skip
_4090 = {
    **_ADA, "flops": _rates(165.2e12, 82.6e12, 82.6e12), "multiprocessors": 128, "cache": 72 * 2**20, "clock": 2.52,
}  # fmt: skip
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100-40", "NVIDIA A100-SXM4-40GB", 40960 * 2**20, memory_bandwidth=1555e9, **_A100),
        Gpu("A100-80", "NVIDIA A100-SXM4-80GB", 81920 * 2**20, memory_bandwidth=2039e9, **_A100),
        Gpu("H100", "NVIDIA H100 80GB HBM3", 81559 * 2**20, memory_bandwidth=3350e9, **_H100),
        Gpu("H200", "NVIDIA H200", 143771 * 2**20, memory_bandwidth=4800e9, **_H100),
        Gpu("B200", "NVIDIA B200", 183359 * 2**20, memory_bandwidth=7700e9, **_B200),
        Gpu("L4", "NVIDIA L4", 23034 * 2**20, memory_bandwidth=300e9, **_L4),
        Gpu("RTX4090", "NVIDIA GeForce RTX 4090", 24564 * 2**20, memory_bandwidth=1008e9, **_4090),
    )
}
OTHER_NAMES = {"a100": "A100-80", "4090": "RTX4090", "rtx-4090": "RTX4090"}
MACHINE = 8  # GPUs of a machine


@dataclasses.dataclass(frozen=True)
class Gpus:
    """`chips` cards; more than MACHINE are in machines of so many."""

    chip: Gpu
    chips: int

    @property
    def name(self) -> str:
        return f"{self.chips}x{self.chip.name}"

    @property
    def accelerator_type(self) -> str:
        """ "2 machines of 8 NVIDIA H100 80GB HBM3": what to rent."""
        machines, each = self.machines
        return f"{f'{machines} machines' if machines > 1 else 'a machine'} of {each} {self.chip.title}"

    @property
    def machines(self) -> tuple[int, int]:
        """(machines, GPUs of each)"""
        return (1, self.chips) if self.chips <= MACHINE else (self.chips // MACHINE, MACHINE)

    @property
    def memory(self) -> int:
        """Bytes that a program may have on each."""
        return int(MEMORY_SHARE * self.chip.memory)

    @property
    def largest(self) -> int:
        return MOST if self.chip.network_bandwidth else MACHINE

    @property
    def assumptions(self) -> tuple[str, ...]:
        return ASSUMPTIONS

    def send(self, collective: Collective) -> tuple[float, float]:
        """(bytes that each GPU sends to others of its machine, seconds) of a collective, each time that a step runs it.

        Between machines, each GPU sends and receives its own part of what its machine does.
        """
        machines, each = self.machines
        inside = collective.sent_bytes
        seconds = inside / self.chip.link_bandwidth
        latency = (collective.group - 1) * LINK_SECONDS
        if machines > 1 and collective.group > each:
            ring = (machines - 1) / machines * collective.group / (collective.group - 1)  # of machines, not of GPUs
            seconds = max(seconds, inside * ring / each / self.chip.network_bandwidth)
            latency += (machines - 1) * NETWORK_SECONDS
        return inside, seconds + latency * (2 if collective.kind == "all-reduce" else 1)


def parse_gpus(text: str) -> Gpus | None:
    """The GPUs "8xH100", also written as "h100:8"; one, if there is no number. None if the text names no GPU.

    Raises: ValueError for a number that there is not.
    """
    found = re.fullmatch(r"(?:(\d+)x)?([a-z\d-]+?)(?::(\d+))?", "".join(text.lower().split()))
    names = {name.lower(): name for name in GPUS} | OTHER_NAMES
    if not found or found[2] not in names:
        return None
    gpu, count = GPUS[names[found[2]]], int(found[1] or found[3] or 1)
    largest = Gpus(gpu, 1).largest
    if not 1 <= count <= largest or (count > MACHINE and count % MACHINE):
        more = f", or a multiple of {MACHINE} up to {largest}" if largest > MACHINE else ""
        raise ValueError(f"topology {text!r}: 1 to {MACHINE} {gpu.name}{more}, got {count}")
    return Gpus(gpu, count)
