"""The PyTorch side of the comparisons with other libraries, in their environments: it needs torch and torchvision only.

A training loop, the network, and torchvision's augmentations, image by image. lightly_peer.py and stable_peer.py add
each library's losses and heads, and call `main`.
"""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.transforms import v2


def main(models, library):
    """METHOD SEED STEPS FOLDER: a whole run. FOLDER has images.npz and settings.json, which is what our config of the
    method says, and gets peer-METHOD-SEED.npz: features, and images per second.

    METHOD first STEPS FOLDER: the first steps of a run of STEPS. FOLDER has start-METHOD.npz of peer_steps_ours.py,
    too, whose parameters, queue and views are taken. It gets steps-METHOD.npz: the losses.

    models: name -> subclass of Model. library: its name and version.
    """
    name, seed, steps, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    settings = json.loads((folder / "settings.json").read_text())[name]
    versions = f"{library}, torch {torch.__version__}"
    if seed == "first":
        losses = first_steps(models[name](settings, steps), folder / f"start-{name}.npz")
        np.savez(folder / f"steps-{name}.npz", losses=losses, versions=versions)
    else:
        torch.manual_seed(int(seed))
        measured = whole_run(models[name](settings, steps), folder / "images.npz")
        np.savez(folder / f"peer-{name}-{seed}.npz", **measured, versions=versions)


def whole_run(model, images):
    """The features of both splits, and the images per second of the training."""
    settings = model.settings
    with np.load(images) as found:
        images = {split: torch.from_numpy(found[split]).permute(0, 3, 1, 2) for split in ("train", "test")}
    channel = settings["mean"], settings["std"]
    speed = train(model, images["train"], make_augment(settings["view"], channel), settings["batch_size"])
    backbone = model.evaluated.eval()

    def features(split):
        with torch.no_grad():
            parts = [backbone(normalized(part, channel)).numpy() for part in images[split].split(1000)]
        return np.concatenate(parts)

    return {"train": features("train"), "test": features("test"), "images_per_second": speed}


def train(model, images, augment, batch_size):
    """Images per second."""
    optimizer = model.optimizer()
    order, position = torch.randperm(len(images)), 0
    begun = time.perf_counter()
    for step in range(model.steps):
        if position + batch_size > len(images):
            order, position = torch.randperm(len(images)), 0
        batch = images[order[position : position + batch_size]]
        position += batch_size
        loss = one_step(model, optimizer, augment(batch), augment(batch), step)
        if step % 100 == 0:
            print(f"step {step} loss {loss:.4f} {time.perf_counter() - begun:.0f} s", flush=True)
    return model.steps * batch_size / (time.perf_counter() - begun)


def first_steps(model, start):
    """The losses of the first steps from our initial parameters, with our views."""
    with np.load(start) as found:
        start = dict(found)
    begin(model, start)
    optimizer, losses = model.optimizer(), []
    for step, views in enumerate(start["views"]):
        x1, x2 = (torch.from_numpy(view).permute(0, 3, 1, 2) for view in views)
        losses.append(one_step(model, optimizer, x1, x2, step))
    return losses


@torch.no_grad()
def begin(model, start):
    """Gives the model our initial parameters and queue."""
    for part, modules in model.parts().items():
        arrays = {path: array for path, array in start.items() if path.startswith(f"params/{part}")}
        for module in modules:
            take(module, arrays)
    if "queue" in start:
        model.take_queue(torch.from_numpy(start["queue"]))
    model.begun()


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


def one_step(model, optimizer, x1, x2, step):
    """The loss before it."""
    warmup = model.settings["optimizer"]["warmup_steps"]
    rate = step / warmup if step < warmup else cosine(step - warmup, model.steps - warmup)
    for group in optimizer.param_groups:
        group["lr"] = model.lr * (1.0 if group.get("constant") else rate)
    loss = model.loss(x1, x2, step)
    optimizer.zero_grad()
    loss.backward()
    model.clip()
    optimizer.step()
    model.after_step()
    return loss.item()


def cosine(step, steps):
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))


def normalized(images, channel):
    mean, std = channel
    return (images.float() / 255.0 - mean) / std


def make_augment(view, channel):
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(view["size"], scale=view["crop_area"], antialias=True),
            v2.RandomHorizontalFlip(view["flip"]),
            v2.RandomApply([v2.ColorJitter(view["brightness"], view["contrast"])], view["jitter"]),
        ]
    )
    return lambda images: normalized(torch.stack([transform(image) for image in images]), channel)


def decayed(model):
    """Weight decay for matrices and kernels only, as ours."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def simsiam_optimizer(model, predictor):
    """SGD, with a constant learning rate for the predictor, as in the paper."""
    own = list(predictor.parameters())
    rest = [p for p in model.parameters() if not any(p is one for one in own)]
    groups = [{"params": rest}, {"params": own, "constant": True}]
    return torch.optim.SGD(groups, lr=model.lr, momentum=0.9, weight_decay=model.settings["optimizer"]["weight_decay"])


class Block(nn.Module):
    def __init__(self, width_in, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.shortcut = nn.Identity()
        if stride > 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


def resnet8():
    stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)]
    net = nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


class Model(nn.Module):
    def __init__(self, settings, steps):
        super().__init__()
        self.settings, self.method, self.steps, self.done = settings, settings["method"], steps, 0
        self.lr = settings["optimizer"]["lr"]
        self.backbone = resnet8()
        self.build()

    @property
    def evaluated(self):
        return self.backbone

    def optimizer(self):
        decay = self.settings["optimizer"]["weight_decay"]
        return torch.optim.AdamW(decayed(self), lr=self.lr, weight_decay=decay)

    def begun(self):
        """Called when it has our parameters."""

    def clip(self):
        """Each parameter's gradient by itself, where our config does so."""
        if each := self.settings["optimizer"].get("clip_each"):
            for parameter in self.parameters():
                if parameter.grad is not None:
                    nn.utils.clip_grad_norm_(parameter, each)

    def after_step(self):
        self.done += 1
