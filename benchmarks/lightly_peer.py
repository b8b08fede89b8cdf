"""One run of a method by lightly, for against_lightly.py, or its first steps, for peer_steps.py: see peer_torch.main.

lightly gives losses, heads, momentum updates and memory; its examples' training loop is peer_torch's.
"""

import copy

import lightly
import torch
from lightly import loss as losses
from lightly.models import utils
from lightly.models.modules import NNMemoryBankModule, heads
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.utils.scheduler import cosine_schedule
from peer_torch import Model, main, simsiam_optimizer
from torch import nn


class LightlyModel(Model):
    head_here = "projector"  # our name of its head

    def parts(self):
        names = {"backbone": "backbone", self.head_here: "head", "predictor": "predictor", "prototypes": "prototypes"}
        found = {ours: [getattr(self, part)] for ours, part in names.items() if hasattr(self, part)}
        if hasattr(self, "teacher"):
            for part, teacher in zip(("backbone", self.head_here), self.teacher, strict=True):
                found[part].append(teacher)
        return found

    def take_queue(self, queue):
        (memory,) = (module for module in self.modules() if isinstance(module, MemoryBankModule) and module.size[0])
        memory.bank.copy_(queue)


class SimCLR(LightlyModel):
    def build(self):
        self.head = heads.SimCLRProjectionHead(64, *self.method["projector"])
        self.criterion = losses.NTXentLoss(self.method["temperature"])

    def loss(self, x1, x2, step):
        return self.criterion(*(self.head(self.backbone(x)) for x in (x1, x2)))


class DCL(SimCLR):
    def build(self):
        super().build()
        self.criterion = losses.DCLLoss(self.method["temperature"])


class Teacher(LightlyModel):
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


class SimSiam(LightlyModel):
    def optimizer(self):
        return simsiam_optimizer(self, self.predictor)

    def build(self):
        hidden, _, dim = self.method["projector"]
        self.head = heads.SimSiamProjectionHead(64, hidden, dim)
        self.predictor = heads.SimSiamPredictionHead(dim, *self.method["predictor"])
        self.criterion = losses.NegativeCosineSimilarity()

    def loss(self, x1, x2, step):
        z1, z2 = (self.head(self.backbone(x)) for x in (x1, x2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return 0.5 * (self.criterion(p1, z2.detach()) + self.criterion(p2, z1.detach()))


class BarlowTwins(LightlyModel):
    def build(self):
        hidden, _, dim = self.method["projector"]
        self.head = heads.BarlowTwinsProjectionHead(64, hidden, dim)
        self.criterion = losses.BarlowTwinsLoss(self.method["off_diagonal_weight"])

    def loss(self, x1, x2, step):
        return self.method["loss_scale"] * SimCLR.loss(self, x1, x2, step)


class VICReg(LightlyModel):
    def build(self):
        hidden, *_, dim = self.method["projector"]
        self.head = heads.VICRegProjectionHead(64, hidden, dim, num_layers=len(self.method["projector"]))
        self.criterion = losses.VICRegLoss(*(self.method[term] for term in ("invariance", "variance", "covariance")))

    loss = SimCLR.loss


class SwAV(LightlyModel):
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
    head_here = "head"

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

    @property
    def evaluated(self):
        return self.teacher[0]

    def loss(self, x1, x2, step):
        return self.criterion(self.targets(x1, x2), [self.head(self.backbone(x)) for x in (x1, x2)], epoch=step)


class NNCLR(LightlyModel):
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
    main(MODELS, f"lightly {lightly.__version__}")
