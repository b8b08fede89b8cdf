"""A training step of networks beside PyTorch's: python benchmarks/against_torch.py --peer PEER/bin/python

Both sides compute the gradient of the mean square of the features of the same images, in training mode, with the same
architecture (ours by the names, timm's by the same names), on the CPU. PyTorch runs eagerly, with channels last, and by
torch.compile. All sides take turns, --rounds times, each in a process of its own. A turn is a step that is not counted,
after which caches and memory are a side's own, and steps for at least a second. All sides get memory as the
command ssl_jax does, in large pages that are kept (GLIBC_TUNABLES names another way). The table has the median of the
images per second, and ours over the best of PyTorch's. --before CLONE adds another state of ssl_jax.

    python3 -m venv PEER && PEER/bin/pip install torch torchvision timm
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
# name: (our model, our options, timm's model, timm's options, (side, channels) of an image, images a step). timm has no
# resnet8: see `resnet8` below.
NETWORKS = {
    "resnet8, 28": ("resnet8", {}, "", {}, (28, 1), 512),
    "ViT-S/16, 224": ("vit_small_patch16_224", {}, "vit_small_patch16_224", {}, (224, 3), 8),
    "ViT-Ti/4, 32": (
        "vit_tiny_patch16_224",
        {"patch_size": 4, "image_size": 32},
        "vit_tiny_patch16_224",
        {"patch_size": 4, "img_size": 32},
        (32, 3),
        64,
    ),
    "ResNet-50, 224": ("resnet50", {}, "resnet50", {}, (224, 3), 8),
    "ResNet-18, 64": ("resnet18", {}, "resnet18", {}, (64, 3), 64),
    "ConvNeXt-T, 64": ("convnext_tiny", {}, "convnext_tiny", {}, (64, 3), 16),
}
TURN_SECONDS = 1.0
PEERS = ("eager", "channels last", "compile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="", help="Python with torch and timm")
    parser.add_argument("--before", type=Path, help="a clone of another state of ssl_jax")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", default=",".join(NETWORKS).replace(", ", " "), help="some of them, with commas")
    parser.add_argument("--serve", nargs=2, metavar=("SIDE", "NETWORK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(*arguments.serve)
    sides = {"ours": (sys.executable, ROOT)}
    if arguments.before:
        sides = {"before": (sys.executable, arguments.before), **sides}
    if arguments.peer:
        sides |= dict.fromkeys(PEERS, (arguments.peer, ROOT))
    print(f"images per second, median of {arguments.rounds} rounds")
    print(" | ".join(["network", *sides, *(["ours / before"] if arguments.before else []), "ours / best of torch"]))
    for name in NETWORKS:
        if name.replace(", ", " ") in arguments.networks.split(","):
            print(row(name, sides, arguments.rounds), flush=True)


def row(name, sides, rounds):
    """Each side is started and warmed up, and then asked for one turn at a time."""
    from ssl_jax.__main__ import KEPT_MEMORY  # not at the top: PyTorch's sides import this file

    workers = {}
    for side, (python, where) in sides.items():
        command = [python, str(ROOT / "benchmarks" / "against_torch.py"), "--serve", side, name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = {"GLIBC_TUNABLES": KEPT_MEMORY, **os.environ, "PYTHONPATH": str(where)}
        workers[side] = subprocess.Popen(command, env=environment, **pipes)
        answer(workers[side])  # warmed up, before the next side is started
    found = {side: [] for side in sides}
    for _ in range(rounds):
        for side, worker in workers.items():
            worker.stdin.write("turn\n")
            worker.stdin.flush()
            found[side].append(NETWORKS[name][-1] / float(answer(worker)))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    medians = {side: statistics.median(rates) for side, rates in found.items()}
    ratios = [f"{medians['ours'] / medians['before']:.2f}"] if "before" in medians else []
    if peers := [medians[kind] for kind in PEERS if kind in medians]:
        ratios.append(f"{medians['ours'] / max(peers):.2f}")
    return " | ".join([name, *(f"{rate:.1f}" for rate in medians.values()), *ratios])


def answer(worker):
    """The last word of the worker's next line of results."""
    for line in worker.stdout:
        if line.startswith("took "):
            return line.split()[1]
    sys.exit("a side ended early; what it printed is above")


def serve(side, name):
    """Takes a turn for each line of standard input, and prints how long a step took."""
    step = ours(name) if side in ("ours", "before") else peers(name, side)
    for _ in range(2):
        step()
    print("took 0", flush=True)
    for _ in sys.stdin:
        step()
        begun, steps = time.perf_counter(), 0
        while time.perf_counter() - begun < TURN_SECONDS:
            step()
            steps += 1
        print(f"took {(time.perf_counter() - begun) / steps}", flush=True)


def ours(name):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ssl_jax import compiled, models

    model, options, _, _, (side, channels), batch = NETWORKS[name]
    compiler_options = getattr(compiled, "options_of_steps", lambda platform: None)("cpu")  # older states have none
    module = models.create(model, **options)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(batch, side, side, channels)), jnp.float32)
    variables = jax.jit(module.init)(jax.random.key(0), images[:1])

    def loss(params, images):
        h, _ = module.apply({**variables, "params": params}, images, True, mutable=["batch_stats"])
        return jnp.mean(jnp.square(h))

    gradient = jax.jit(jax.value_and_grad(loss), compiler_options=compiler_options)
    return lambda: jax.block_until_ready(gradient(variables["params"], images))


def peers(name, kind):
    import timm
    import torch

    _, _, model, options, (side, channels), batch = NETWORKS[name]
    network = (timm.create_model(model, num_classes=0, **options) if model else resnet8()).train()
    images = torch.randn(batch, channels, side, side)
    if kind == "channels last":
        network, images = network.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    call = torch.compile(network) if kind == "compile" else network

    def step():
        network.zero_grad(set_to_none=True)
        call(images).square().mean().backward()

    return step


def resnet8():
    """The network that ssl_jax.models has by this name: three stages of one block each."""
    from timm.models.resnet import BasicBlock, downsample_conv
    from torch import nn

    def block(inputs, channels, stride):
        shortcut = downsample_conv(inputs, channels, 1, stride) if stride > 1 else None
        return BasicBlock(inputs, channels, stride, shortcut)

    stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
    stages = block(16, 16, 1), block(16, 32, 2), block(32, 64, 2)
    return nn.Sequential(stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())


if __name__ == "__main__":
    main()
