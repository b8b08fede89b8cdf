"""One run of a method by lightly, for against_lightly.py: PEER/bin/python lightly_peer.py METHOD SEED STEPS FOLDER

lightly gives losses, heads, momentum updates and memory; its training loop, as its examples write it, and torchvision's
augmentations, image by image as lightly's transforms call them, are below. FOLDER has images.npz and settings.json,
which is what our config of the method says, and gets peer-METHOD-SEED.npz: features, and images per second.
"""

import copy
import json
import math
import sys
import time
from pathlib import Path

import lightly
import numpy as np
import torch
from lightly import loss as losses
from lightly.models import utils
from lightly.models.modules import NNMemoryBankModule, heads
from lightly.utils.scheduler import cosine_schedule
from torch import nn
from torchvision.transforms import v2


def main():
    name, seed, steps, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.manual_seed(seed)
    settings = json.loads((folder / "settings.json").read_text())[name]
    with np.load(folder / "images.npz") as found:
        images = {split: torch.from_numpy(found[split]).permute(0, 3, 1, 2) for split in ("train", "test")}
    channel = settings["mean"], settings["std"]
    model = MODELS[name](settings, steps)
    speed = train(model, images["train"], make_augment(settings["view"], channel), steps, settings["batch_size"])
    backbone = model.evaluated.eval()

    def features(split):
        with torch.no_grad():
            parts = [backbone(normalized(part, channel)).numpy() for part in images[split].split(1000)]
        return np.concatenate(parts)

    np.savez(
        folder / f"peer-{name}-{seed}.npz",
        train=features("train"),
        test=features("test"),
        images_per_second=speed,
        versions=f"lightly {lightly.__version__}, torch {torch.__version__}",
    )


def train(model, images, augment, steps, batch_size):
    """Images per second."""
    optimizer = model.optimizer()
    order, position = torch.randperm(len(images)), 0
    begun = time.perf_counter()
    for step in range(steps):
        if position + batch_size > len(images):
            order, position = torch.randperm(len(images)), 0
        batch = images[order[position : position + batch_size]]
        position += batch_size
        loss = one_step(model, optimizer, augment(batch), augment(batch), step)
        if step % 100 == 0:
            print(f"step {step} loss {loss:.4f} {time.perf_counter() - begun:.0f} s", flush=True)
    return steps * batch_size / (time.perf_counter() - begun)


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

    def clip(self):
        pass

    def after_step(self):
        self.done += 1


class SimCLR(Model):
    def build(self):
        self.head = heads.SimCLRProjectionHead(64, *self.method["projector"])
        self.criterion = losses.NTXentLoss(self.method["temperature"])

    def loss(self, x1, x2, step):
        return self.criterion(*(self.head(self.backbone(x)) for x in (x1, x2)))


class DCL(SimCLR):
    def build(self):
        super().build()
        self.criterion = losses.DCLLoss(self.method["temperature"])


class Teacher(Model):
    """With a copy of backbone and head that follows them, with a decay that goes to `final` by half a cosine."""

    final = 1.0

    def copy(self):
        self.teacher = nn.Sequential(copy.deepcopy(self.backbone), copy.deepcopy(self.head))
        self.teacher.requires_grad_(False)

    def after_step(self):
        super().after_step()
        decay = cosine_schedule(self.done, self.steps, self.method["decay"], self.final or self.method["decay"])
        utils.update_momentum(nn.Sequential(self.backbone, self.head), self.teacher, decay)

    def targets(self, *views):
        with torch.no_grad():
            return [self.teacher(x) for x in views]


class MoCo(Teacher):
    final = None  # a constant decay

    def build(self):
        _, dim = self.method["projector"]
        self.head = heads.MoCoProjectionHead(64, *self.method["projector"])
        bank = (self.method["queue_size"], dim)
        self.criterion = losses.NTXentLoss(self.method["temperature"], memory_bank_size=bank)
        self.copy()

    def loss(self, x1, x2, step):
        query = self.head(self.backbone(x1))
        with torch.no_grad():
            shuffled, order = utils.batch_shuffle(x2)
            key = utils.batch_unshuffle(self.teacher(shuffled), order)
        return self.criterion(query, key)


class BYOL(Teacher):
    def build(self):
        hidden, dim = self.method["projector"]
        self.head = heads.BYOLProjectionHead(64, hidden, dim)
        self.predictor = heads.BYOLPredictionHead(dim, *self.method["predictor"])
        self.criterion = losses.NegativeCosineSimilarity()
        self.copy()

    def loss(self, x1, x2, step):
        p1, p2 = (self.predictor(self.head(self.backbone(x))) for x in (x1, x2))
        t1, t2 = self.targets(x1, x2)
        return 4.0 + 2.0 * (self.criterion(p1, t2) + self.criterion(p2, t1))


class SimSiam(Model):
    def optimizer(self):
        predictor = {"params": self.predictor.parameters(), "constant": True}  # as in the paper
        rest = {"params": [*self.backbone.parameters(), *self.head.parameters()]}
        decay = self.settings["optimizer"]["weight_decay"]
        return torch.optim.SGD([rest, predictor], lr=self.lr, momentum=0.9, weight_decay=decay)

    def build(self):
        hidden, _, dim = self.method["projector"]
        self.head = heads.SimSiamProjectionHead(64, hidden, dim)
        self.predictor = heads.SimSiamPredictionHead(dim, *self.method["predictor"])
        self.criterion = losses.NegativeCosineSimilarity()

    def loss(self, x1, x2, step):
        z1, z2 = (self.head(self.backbone(x)) for x in (x1, x2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return 0.5 * (self.criterion(p1, z2.detach()) + self.criterion(p2, z1.detach()))


class BarlowTwins(Model):
    def build(self):
        hidden, _, dim = self.method["projector"]
        self.head = heads.BarlowTwinsProjectionHead(64, hidden, dim)
        self.criterion = losses.BarlowTwinsLoss(self.method["off_diagonal_weight"])

    def loss(self, x1, x2, step):
        return self.method["loss_scale"] * SimCLR.loss(self, x1, x2, step)


class VICReg(Model):
    def build(self):
        hidden, *_, dim = self.method["projector"]
        self.head = heads.VICRegProjectionHead(64, hidden, dim, num_layers=len(self.method["projector"]))
        self.criterion = losses.VICRegLoss(*(self.method[term] for term in ("invariance", "variance", "covariance")))

    loss = SimCLR.loss


class SwAV(Model):
    def build(self):
        hidden, dim = self.method["projector"]
        self.head = heads.SwaVProjectionHead(64, hidden, dim)
        frozen = self.method["freeze_steps"]
        self.prototypes = heads.SwaVPrototypes(dim, self.method["prototypes"], n_steps_frozen_prototypes=frozen)
        self.criterion = losses.SwaVLoss()

    def loss(self, x1, x2, step):
        self.prototypes.normalize()
        scores = [self.prototypes(nn.functional.normalize(self.head(self.backbone(x))), step) for x in (x1, x2)]
        return self.criterion(scores, [])


class DINO(Teacher):
    def build(self):
        (hidden, _), bottleneck, prototypes = (self.method[key] for key in ("hidden", "bottleneck", "prototypes"))
        norm = self.method["head_norm"]
        self.head, head = (heads.DINOProjectionHead(64, hidden, bottleneck, prototypes, norm) for _ in range(2))
        self.criterion = losses.DINOLoss(
            prototypes,
            warmup_teacher_temp_epochs=0,
            teacher_temp=0.04,
            center_momentum=self.method["center_decay"],
        )
        head.load_state_dict(self.head.state_dict())  # its weight normalization cannot be copied
        self.teacher = nn.Sequential(copy.deepcopy(self.backbone), head).requires_grad_(False)

    def clip(self):
        for parameter in self.parameters():
            if parameter.grad is not None:
                nn.utils.clip_grad_norm_(parameter, self.settings["optimizer"]["clip_each"])

    @property
    def evaluated(self):
        return self.teacher[0]

    def loss(self, x1, x2, step):
        return self.criterion(self.targets(x1, x2), [self.head(self.backbone(x)) for x in (x1, x2)], epoch=step)


class NNCLR(Model):
    def build(self):
        hidden, _, dim = self.method["projector"]
        self.head = heads.NNCLRProjectionHead(64, hidden, dim)
        self.predictor = heads.NNCLRPredictionHead(dim, *self.method["predictor"])
        self.criterion = losses.NTXentLoss(self.method["temperature"])
        self.neighbors = NNMemoryBankModule((self.method["queue_size"], dim))

    def loss(self, x1, x2, step):
        z1, z2 = (self.head(self.backbone(x)) for x in (x1, x2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        n1, n2 = self.neighbors(z1.detach(), update=False), self.neighbors(z2.detach(), update=True)
        return 0.5 * (self.criterion(n1, p2) + self.criterion(n2, p1))


class TiCo(Teacher):
    def build(self):
        self.head = heads.TiCoProjectionHead(64, *self.method["projector"])
        self.criterion = losses.TiCoLoss(self.method["beta"], self.method["rho"])
        self.copy()

    def loss(self, x1, x2, step):
        z1, z2 = (self.head(self.backbone(x)) for x in (x1, x2))
        t1, t2 = self.targets(x1, x2)
        return 0.5 * (self.criterion(z1, t2) + self.criterion(z2, t1))


class MMCR(Teacher):
    final = None

    def build(self):
        hidden, *_, dim = self.method["projector"]
        self.head = heads.MMCRProjectionHead(64, hidden, dim, num_layers=len(self.method["projector"]) - 1)
        self.criterion = losses.MMCRLoss(self.method["weight"])
        self.copy()

    def loss(self, x1, x2, step):
        online = [self.head(self.backbone(x)) for x in (x1, x2)]
        # lightly's loss leaves it to the caller to normalize, as the authors' code does.
        return self.criterion(
            *(nn.functional.normalize(torch.stack(z, 1), dim=2) for z in (online, self.targets(x1, x2)))
        )


MODELS = {
    "simclr": SimCLR,
    "moco_v2": MoCo,
    "byol": BYOL,
    "simsiam": SimSiam,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "swav": SwAV,
    "dino": DINO,
    "nnclr": NNCLR,
    "tico": TiCo,
    "dcl": DCL,
    "mmcr": MMCR,
}

if __name__ == "__main__":
    main()
