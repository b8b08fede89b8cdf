"""The first steps of a method by lightly, for lightly_steps.py: lightly_steps_peer.py METHOD STEPS FOLDER

STEPS: of a whole run. FOLDER has settings.json, and start-METHOD.npz of lightly_steps_ours.py, whose parameters, queue
and views are taken. It gets steps-METHOD.npz: the losses of the same steps.
"""

import json
import sys
from pathlib import Path

import lightly
import numpy as np
import torch
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly_peer import MODELS, one_step
from torch import nn

PARTS = {"backbone": "backbone", "head": "projector", "predictor": "predictor", "prototypes": "prototypes"}  # -> ours


def main():
    name, steps, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    settings = json.loads((folder / "settings.json").read_text())[name]
    with np.load(folder / f"start-{name}.npz") as found:
        start = dict(found)
    model = MODELS[name](settings, steps)
    begin(model, start, PARTS | ({"head": "head"} if name == "dino" else {}))
    optimizer, losses = model.optimizer(), []
    for step, views in enumerate(start["views"]):
        x1, x2 = (torch.from_numpy(view).permute(0, 3, 1, 2) for view in views)
        losses.append(one_step(model, optimizer, x1, x2, step))
    versions = f"lightly {lightly.__version__}, torch {torch.__version__}"
    np.savez(folder / f"steps-{name}.npz", losses=losses, versions=versions)


@torch.no_grad()
def begin(model, start, parts):
    """Gives the model our initial parameters and queue."""
    theirs = {part: [getattr(model, part)] for part in parts if hasattr(model, part)}
    if hasattr(model, "teacher"):
        for part, teacher in zip(("backbone", "head"), model.teacher, strict=True):
            theirs[part].append(teacher)
    for part, modules in theirs.items():
        arrays = {path: array for path, array in start.items() if path.startswith(f"params/{parts[part]}")}
        for module in modules:
            take(module, arrays)
    if "queue" in start:
        (memory,) = (m for m in model.modules() if isinstance(m, MemoryBankModule) and m.size[0])
        memory.bank.copy_(torch.from_numpy(start["queue"]))


def take(part, arrays):
    """Layers stand in the order of their names on our side, and as they follow on each other on the other side."""
    layers = [module for module in part.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    weights = sorted((path for path in arrays if arrays[path].ndim > 1), key=lambda path: ("last" in path, path))
    for layer, path in zip(layers, weights, strict=True):
        kernel = arrays[path]
        if path.endswith("kernel"):  # and not SwAV's prototypes, which are [outputs, inputs] here, too
            kernel = np.moveaxis(kernel, (-1, -2), (0, 1))  # to [outputs, inputs, height, width]
        weight = getattr(layer, "weight_v", layer.weight)  # before it is normalized, where it is
        weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel)).view_as(weight))
        bias = arrays.get(f"{path.removesuffix('kernel')}bias")
        if bias is None:
            layer.bias = None
        elif layer.bias is not None:  # without one there, BatchNorm follows, which takes ours away
            layer.bias.copy_(torch.from_numpy(bias))


if __name__ == "__main__":
    main()
