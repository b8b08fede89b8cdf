"""Eight methods beside lightly's: PEER/bin/python benchmarks/against_lightly.py peer; .venv/bin/python ... ours

The same small ResNet, heads, augmentations, optimizer, steps and data on both sides, on this machine's CPU. The peer's
side runs in an environment of its own, with lightly and torchvision:

    python3 -m venv PEER && PEER/bin/pip install 'lightly==1.6.*' torchvision scikit-learn
    .venv/bin/python benchmarks/against_lightly.py export   # the images, as an array that both sides read
    PEER/bin/python benchmarks/against_lightly.py peer
    .venv/bin/python benchmarks/against_lightly.py ours
    .venv/bin/python benchmarks/against_lightly.py table    # writes docs/against_lightly.md

lightly gives losses, heads, momentum updates and memory; its training loop, as its examples write it, and torchvision's
augmentations are below. Both sides are judged by one program: weighted kNN (k 20, temperature 0.07) on the features.
"""

import argparse
import copy
import importlib
import json
import math
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "against_lightly.md"
METHODS = ("simclr", "moco_v2", "byol", "simsiam", "barlow_twins", "vicreg", "swav", "dino")
BATCH = 256
MEAN, STD = 0.2860, 0.3530


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("export", "peer", "ours", "table"))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "against_lightly")
    arguments = parser.parse_args()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    names = arguments.methods.split(",")
    if arguments.side == "export":
        export(arguments.workdir)
    elif arguments.side == "table":
        table(arguments.workdir, names, arguments.steps)
    else:
        for name in names:
            path = arguments.workdir / f"{arguments.side}-{name}.json"
            if not path.exists():
                run = peer if arguments.side == "peer" else ours
                path.write_text(json.dumps(run(name, arguments.steps, arguments.workdir)))
            print(arguments.side, name, path.read_text(), flush=True)


def export(workdir):
    from ssl_jax.data import opening

    splits = opening.load_pair("fashion_mnist", train_split="train", test_split="test", channels=1)
    arrays = {}
    for name, source in zip(("train", "test"), splits, strict=True):
        arrays[name] = np.stack([source[i] for i in range(len(source))])
        arrays[f"{name}_labels"] = source.labels
    np.savez(workdir / "images.npz", **arrays)


def table(workdir, names, steps):
    lines = [
        "# Beside lightly 1.6",
        "",
        f"The same small ResNet, heads, augmentations, optimizer, data and {steps} steps of {BATCH} images on both "
        "sides: Fashion-MNIST, weighted kNN (k 20, temperature 0.07), test accuracy in percent. Both had one CPU core.",
        "",
        "| method | kNN: ours | lightly | difference | images/s: ours | lightly | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        ours_, peer_ = (json.loads((workdir / f"{side}-{name}.json").read_text()) for side in ("ours", "peer"))
        speeds = ours_["images_per_second"], peer_["images_per_second"]
        cells = f"{ours_['knn']:.1f} | {peer_['knn']:.1f} | {ours_['knn'] - peer_['knn']:+.1f}"
        lines.append(f"| {name} | {cells} | {speeds[0]:.0f} | {speeds[1]:.0f} | {speeds[0] / speeds[1]:.2f} |")
    lines += [
        "",
        "One seed, images in another order. In lightly's images/s is torchvision's augmentation, image by image.",
        "",
        "Made by `benchmarks/against_lightly.py`.",
        "",
    ]
    RESULTS.write_text("\n".join(lines))
    print("\n".join(lines))


def knn_top1(bank, bank_labels, queries, query_labels, k=20, temperature=0.07):
    """The same few lines for both sides; numpy only."""
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
    right = 0
    for start in range(0, len(queries), 500):
        similarity = queries[start : start + 500] @ bank.T
        nearest = np.argpartition(-similarity, k, axis=1)[:, :k]
        weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / temperature)
        votes = np.zeros((len(nearest), 10))
        np.add.at(votes, (np.arange(len(nearest))[:, None], bank_labels[nearest]), weights)
        right += int(np.sum(votes.argmax(axis=1) == query_labels[start : start + 500]))
    return 100.0 * right / len(queries)


def ours(name, steps, workdir):
    """Our own program with the method's tiny config; of the multi-crop methods without small crops, as the peer's."""
    configs, metrics, ssl_jax = map(importlib.import_module, ("ssl_jax.config", "ssl_jax.workdir.metrics", "ssl_jax"))
    run = workdir / f"run-{name}"
    config = configs.get_config(f"{name}:tiny")
    config.update(steps=steps, evaluate_every=0, log_every=100, checkpoint_every=10**6)
    if "local_views" in config.method:
        config.method.local_views = 0
    ssl_jax.pretrain(config, workdir=run)
    speeds = [line["images_per_second"] for line in metrics.read_metrics(run / "metrics.jsonl")[1:]]
    backbone = ssl_jax.load_backbone(run)
    images = np.load(workdir / "images.npz")
    h, test_h = (backbone.features(images[split]) for split in ("train", "test"))
    return {
        "knn": knn_top1(h, images["train_labels"], test_h, images["test_labels"]),
        "images_per_second": float(np.median(speeds)),
    }


def peer(name, steps, workdir):
    import torch

    torch.manual_seed(0)
    images = np.load(workdir / "images.npz")
    train = torch.from_numpy(images["train"]).permute(0, 3, 1, 2)
    model = PEERS[name](steps)
    optimizer = model.optimizer()
    order, position = torch.randperm(len(train)), 0
    begun = time.perf_counter()
    for step in range(steps):
        rate = step / model.warmup if step < model.warmup else cosine(step - model.warmup, steps - model.warmup)
        for group in optimizer.param_groups:
            group["lr"] = model.lr * (1.0 if group.get("constant") else rate)
        if position + BATCH > len(train):
            order, position = torch.randperm(len(train)), 0
        batch = train[order[position : position + BATCH]]
        position += BATCH
        loss = model.loss(augment(batch), augment(batch), step)
        optimizer.zero_grad()
        loss.backward()
        model.clip()
        optimizer.step()
        model.after_step()
        if step % 100 == 0:
            print(f"{name} step {step} loss {loss.item():.4f} {time.perf_counter() - begun:.0f} s", flush=True)
    speed = steps * BATCH / (time.perf_counter() - begun)
    backbone = model.evaluated.eval()

    def features(split):
        parts = torch.from_numpy(images[split]).permute(0, 3, 1, 2).split(1000)
        with torch.no_grad():
            return np.concatenate([backbone(normalized(part)).numpy() for part in parts])

    knn = knn_top1(features("train"), images["train_labels"], features("test"), images["test_labels"])
    return {"knn": knn, "images_per_second": speed}


def cosine(step, steps):
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))


def decayed(model):
    """Weight decay for matrices and kernels only, as ours."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def normalized(images):
    return (images.float() / 255.0 - MEAN) / STD


def augment(images):
    """torchvision's operations, image by image, as lightly's transforms call them: the `tiny` configs' view."""
    import torch
    from torchvision.transforms import v2

    if "transform" not in _cache:
        _cache["transform"] = v2.Compose(
            [
                v2.RandomResizedCrop(28, scale=(0.2, 1.0), antialias=True),
                v2.RandomHorizontalFlip(0.5),
                v2.RandomApply([v2.ColorJitter(0.6, 0.6)], 0.8),
            ]
        )
    return normalized(torch.stack([_cache["transform"](image) for image in images]))


_cache = {}


def make_models():
    import torch
    from lightly import loss as losses
    from lightly.models import utils
    from lightly.models.modules import heads
    from lightly.utils.scheduler import cosine_schedule
    from torch import nn

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
        lr, warmup = 4e-3, 100

        def __init__(self, steps):
            super().__init__()
            self.backbone, self.steps, self.done = resnet8(), steps, 0
            self.build()

        @property
        def evaluated(self):
            return self.backbone

        def optimizer(self):
            return torch.optim.AdamW(decayed(self), lr=self.lr, weight_decay=1e-4)

        def clip(self):
            pass

        def after_step(self):
            self.done += 1

    class SimCLR(Model):
        def build(self):
            self.head = heads.SimCLRProjectionHead(64, 256, 64)
            self.criterion = losses.NTXentLoss(0.1)

        def loss(self, x1, x2, step):
            return self.criterion(*(self.head(self.backbone(x)) for x in (x1, x2)))

    class Teacher(Model):
        """With a copy of backbone and head that follows them."""

        decay, final = 0.99, 1.0

        def copy(self):
            self.teacher = nn.Sequential(copy.deepcopy(self.backbone), copy.deepcopy(self.head))
            self.teacher.requires_grad_(False)

        def after_step(self):
            super().after_step()
            decay = cosine_schedule(self.done, self.steps, self.decay, self.final)
            utils.update_momentum(nn.Sequential(self.backbone, self.head), self.teacher, decay)

    class MoCo(Teacher):
        final = 0.99

        def build(self):
            self.head = heads.MoCoProjectionHead(64, 256, 64)
            self.criterion = losses.NTXentLoss(0.1, memory_bank_size=(4096, 64))
            self.copy()

        def loss(self, x1, x2, step):
            total = 0.0
            for query, key in ((x1, x2), (x2, x1)):
                q = self.head(self.backbone(query))
                with torch.no_grad():
                    shuffled, order = utils.batch_shuffle(key)
                    k = utils.batch_unshuffle(self.teacher(shuffled), order)
                total = total + self.criterion(q, k) / 2
            return total

    class BYOL(Teacher):
        lr = 8e-3

        def build(self):
            self.head = heads.BYOLProjectionHead(64, 256, 64)
            self.predictor = heads.BYOLPredictionHead(64, 256, 64)
            self.criterion = losses.NegativeCosineSimilarity()
            self.copy()

        def loss(self, x1, x2, step):
            p1, p2 = (self.predictor(self.head(self.backbone(x))) for x in (x1, x2))
            with torch.no_grad():
                t1, t2 = self.teacher(x1), self.teacher(x2)
            return 4.0 + 2.0 * (self.criterion(p1, t2) + self.criterion(p2, t1))

    class SimSiam(Model):
        lr, warmup = 0.3, 30

        def optimizer(self):
            predictor = {"params": self.predictor.parameters(), "constant": True}  # as in the paper
            rest = {"params": [*self.backbone.parameters(), *self.head.parameters()]}
            return torch.optim.SGD([rest, predictor], lr=self.lr, momentum=0.9, weight_decay=5e-4)

        def build(self):
            self.head = heads.SimSiamProjectionHead(64, 256, 256)
            self.predictor = heads.SimSiamPredictionHead(256, 64, 256)
            self.criterion = losses.NegativeCosineSimilarity()

        def loss(self, x1, x2, step):
            z1, z2 = (self.head(self.backbone(x)) for x in (x1, x2))
            p1, p2 = self.predictor(z1), self.predictor(z2)
            return 0.5 * (self.criterion(p1, z2.detach()) + self.criterion(p2, z1.detach()))

    class BarlowTwins(Model):
        def build(self):
            self.head = heads.BarlowTwinsProjectionHead(64, 256, 256)
            self.criterion = losses.BarlowTwinsLoss()

        loss = SimCLR.loss

    class VICReg(BarlowTwins):
        def build(self):
            self.head = heads.VICRegProjectionHead(64, 256, 256, num_layers=3)
            self.criterion = losses.VICRegLoss()

    class SwAV(Model):
        def build(self):
            self.head = heads.SwaVProjectionHead(64, 256, 64)
            self.prototypes = heads.SwaVPrototypes(64, 128, n_steps_frozen_prototypes=20)
            self.criterion = losses.SwaVLoss()

        def loss(self, x1, x2, step):
            self.prototypes.normalize()
            scores = [self.prototypes(nn.functional.normalize(self.head(self.backbone(x))), step) for x in (x1, x2)]
            return self.criterion(scores, [])

    class DINO(Teacher):
        lr, decay = 8e-3, 0.98

        def build(self):
            self.head, head = (heads.DINOProjectionHead(64, 256, 64, 256, freeze_last_layer=-1) for _ in range(2))
            self.criterion = losses.DINOLoss(256, warmup_teacher_temp_epochs=0, teacher_temp=0.04, center_momentum=0.95)
            head.load_state_dict(self.head.state_dict())  # its weight normalization cannot be copied
            self.teacher = nn.Sequential(copy.deepcopy(self.backbone), head).requires_grad_(False)

        def clip(self):
            for parameter in self.parameters():
                if parameter.grad is not None:
                    nn.utils.clip_grad_norm_(parameter, 3.0)

        @property
        def evaluated(self):
            return self.teacher[0]

        def loss(self, x1, x2, step):
            with torch.no_grad():
                targets = [self.teacher(x) for x in (x1, x2)]
            return self.criterion(targets, [self.head(self.backbone(x)) for x in (x1, x2)], epoch=step)

    classes = (SimCLR, MoCo, BYOL, SimSiam, BarlowTwins, VICReg, SwAV, DINO)
    return dict(zip(METHODS, classes, strict=True))


class _Peers(dict):
    """The peer's models, made when first asked for: only its own environment has lightly."""

    def __missing__(self, name):
        self.update(make_models())
        return self[name]


PEERS = _Peers()

if __name__ == "__main__":
    main()
