"""One run of a method by stable-pretraining, or its first steps, for peer_steps.py: see peer_torch.main.

stable-pretraining gives the whole method: heads, forward pass, loss, memory, teacher. The teacher's decay changes with
each step, as ours, not with each epoch.
"""

from importlib.metadata import version

from peer_torch import Model, main, simsiam_optimizer
from stable_pretraining import methods
from torch import nn


class FirstChannel(nn.Module):
    """The methods look for the width of the features with an image of three channels."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x[:, :1])


class Stable(Model):
    """build() sets `whole`, the library's method."""

    head_here = "projector"  # our name of its projector

    def __init__(self, settings, steps):
        super().__init__(settings, steps)
        self.backbone = None  # it is in the whole

    def encoder(self):
        return FirstChannel(self.backbone)

    @property
    def evaluated(self):
        return both(self.whole.backbone)[0]

    def loss(self, x1, x2, step):
        return self.whole(x1, x2).loss

    def after_step(self):
        super().after_step()
        for module in self.whole.modules():
            if hasattr(module, "update_teacher"):
                module.update_ema_coefficient(self.done, self.steps)
                module.update_teacher()

    def parts(self):
        found = dict(self.whole.named_children())
        names = {name: name for name in ("backbone", "predictor", "prototypes")} | {self.head_here: "projector"}
        return {ours: both(found[part]) for ours, part in names.items() if part in found}


def both(part):
    """The student and the teacher, or what stands for itself."""
    return [part.student, part.teacher] if hasattr(part, "teacher") else [part]


class SimCLR(Stable):
    def build(self):
        self.whole = methods.SimCLR(self.encoder(), self.method["projector"], self.method["temperature"])


class MoCoV2(Stable):
    def build(self):
        method, decay = self.method, self.method["decay"]
        self.whole = methods.MoCov2(
            self.encoder(), method["projector"], method["queue_size"], method["temperature"], decay, decay
        )

    def take_queue(self, queue):
        """Its memory begins empty, and only what is in it is compared with."""


class MoCoV3(Stable):
    def build(self):
        method = self.method
        self.whole = methods.MoCov3(
            self.encoder(), method["projector"], method["predictor"][0], method["temperature"], method["decay"]
        )

    def loss(self, x1, x2, step):
        # Of the mean of both directions the paper's loss is 4 times the temperature.
        return 4.0 * self.method["temperature"] * super().loss(x1, x2, step)


class BYOL(Stable):
    def build(self):
        method = self.method
        self.whole = methods.BYOL(self.encoder(), method["projector"], method["predictor"], method["decay"])

    def loss(self, x1, x2, step):
        return 2.0 * super().loss(x1, x2, step)  # the mean of both directions, where the paper has their sum


class SimSiam(Stable):
    def optimizer(self):
        return simsiam_optimizer(self, self.whole.predictor)

    def build(self):
        self.whole = methods.SimSiam(self.encoder(), self.method["projector"][-1], self.method["predictor"][0])


class BarlowTwins(Stable):
    def build(self):
        self.whole = methods.BarlowTwins(self.encoder(), self.method["projector"], self.method["off_diagonal_weight"])

    def loss(self, x1, x2, step):
        return self.method["loss_scale"] * super().loss(x1, x2, step)


class VICReg(Stable):
    def build(self):
        weights = [self.method[term] for term in ("invariance", "variance", "covariance")]
        self.whole = methods.VICReg(self.encoder(), self.method["projector"], *weights)


class SwAV(Stable):
    def build(self):
        self.whole = methods.SwAV(self.encoder(), self.method["projector"], self.method["prototypes"])


class DINO(Stable):
    head_here = "head"

    def build(self):
        method = self.method
        self.whole = methods.DINO(
            self.encoder(),
            method["hidden"][0],
            method["bottleneck"],
            method["prototypes"],
            temperature_teacher=0.04,
            center_momentum=method["center_decay"],
            ema_decay_start=method["decay"],
        )

    def begun(self):
        for head in both(self.whole.projector):  # its last layer has no weight normalization: it begins with unit rows
            head[-1].weight.div_(head[-1].weight.norm(dim=1, keepdim=True))

    @property
    def evaluated(self):
        return both(self.whole.backbone)[-1]

    def loss(self, x1, x2, step):
        return self.whole([x1, x2]).loss


class NNCLR(Stable):
    def build(self):
        method = self.method
        (hidden, _, dim), (predictor, _) = method["projector"], method["predictor"]
        options = dict(queue_length=method["queue_size"], temperature=method["temperature"])
        self.whole = methods.NNCLR(self.encoder(), (hidden, dim), predictor, **options)

    take_queue = MoCoV2.take_queue


class TiCo(Stable):
    def build(self):
        hidden, _, dim = self.method["projector"]
        self.whole = methods.TiCO(self.encoder(), (hidden, dim), self.method["beta"], self.method["rho"])


class WMSE(Stable):
    def build(self):
        self.whole = methods.WMSE(self.encoder(), self.method["projector"])

    def loss(self, x1, x2, step):
        # The mean over the dimensions, where the paper has their sum.
        return self.method["projector"][-1] * super().loss(x1, x2, step)


MODELS = {
    "simclr": SimCLR,
    "moco_v2": MoCoV2,
    "moco_v3": MoCoV3,
    "byol": BYOL,
    "simsiam": SimSiam,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "swav": SwAV,
    "dino": DINO,
    "nnclr": NNCLR,
    "tico": TiCo,
    "w_mse": WMSE,
}

if __name__ == "__main__":
    main(MODELS, f"stable-pretraining {version('stable-pretraining')}")
