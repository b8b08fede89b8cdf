"""How papers train their linear probes: the numbers, each with its source."""

import dataclasses

OPTIMIZERS = ("sgd", "lars", "larc", "adamw")
SCALINGS = ("none", "batch_norm", "layer_norm", "unit_layer_norm")


@dataclasses.dataclass(frozen=True)
class ProbeRecipe:
    """The settings of `sgd_probe`. Momentum is 0.9, except for AdamW, whose averages have torch's 0.9 and 0.999.
    Initial weights are normal, of deviation 0.01.

    lrs: > 0, stated for a batch of 256 images; the training uses lr * batch_size / 256. If there are several, the best
      on held-out images is used.
    batch_size, epochs: at least 1.
    weight_decays: >= 0, added to the gradient. AdamW instead decays all that it trains, as torch's does. If there are
      several, the best on held-out images is used.
    optimizer: "sgd"; "lars" (trust ratio 0.001 for the weights); "larc" (the same for the biases, too); or "adamw".
      LARS and LARC move weights by lr / 1000 of themselves per step. They need the papers' batch sizes and numbers of
      steps: on 10,000 images in batches of 512, SimSiam's recipe (LARC) stops at 42 % and BYOL's (SGD) reaches 80 %.
    nesterov: for "sgd" only.
    drops: shares of the epochs at which the learning rate drops to a tenth; () for half a cosine to 0.
    warmup_epochs: epochs of warm-up from 0, before the cosine. final_share: where the cosine ends, as a share of the
      highest learning rate.
    constant_within_epochs: the learning rate changes between epochs only, as torch's schedulers are mostly called.
    scaling: of the features before the classifier. "none"; "batch_norm", without scale and shift; "layer_norm", with
      trained scale and shift; or "unit_layer_norm", the same and then scaled to unit length.

    Raises: ValueError for settings out of range.
    """

    lrs: tuple[float, ...]
    batch_size: int
    epochs: int
    weight_decays: tuple[float, ...] = (0.0,)
    optimizer: str = "sgd"
    nesterov: bool = False
    drops: tuple[float, ...] = ()
    warmup_epochs: int = 0
    final_share: float = 0.0
    constant_within_epochs: bool = False
    scaling: str = "none"

    @property
    def grid(self) -> list[tuple[float, float]]:
        """(lr, weight decay) of each head."""
        return [(lr, weight_decay) for lr in self.lrs for weight_decay in self.weight_decays]

    def __post_init__(self):
        if not self.lrs or min(self.lrs) <= 0 or not self.weight_decays or min(self.weight_decays) < 0:
            raise ValueError(f"lrs must be above 0 and weight_decays at least 0, got {self.lrs}, {self.weight_decays}")
        if self.batch_size < 1 or self.epochs < 1 or not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(
                f"batch_size {self.batch_size} and epochs {self.epochs} must be at least 1, "
                f"warmup_epochs {self.warmup_epochs} from 0 to epochs; with fewer epochs, lower "
                "warmup_epochs, too"
            )
        if self.optimizer not in OPTIMIZERS or self.scaling not in SCALINGS:
            raise ValueError(
                f"optimizer must be one of {OPTIMIZERS} and scaling one of {SCALINGS}, got "
                f"{self.optimizer!r} and {self.scaling!r}"
            )
        if not 0 <= self.final_share < 1:
            raise ValueError(f"final_share must be in [0, 1), got {self.final_share}")
        if self.nesterov and self.optimizer != "sgd":
            raise ValueError(f"nesterov=True needs optimizer='sgd', got {self.optimizer!r}")
        if self.drops and (self.warmup_epochs or not all(0 < drop < 1 for drop in self.drops)):
            raise ValueError(
                f"drops must be in (0, 1) and need warmup_epochs=0; got drops={self.drops}, "
                f"warmup_epochs={self.warmup_epochs}"
            )


RECIPES = {
    # arXiv:2002.05709, appendix B.6: no regularization, no warm-up; the cosine is from the authors' code.
    "simclr": ProbeRecipe(lrs=(0.1,), batch_size=4096, epochs=90, nesterov=True),
    # arXiv:1911.05722, section 4.1, and arXiv:2003.04297. The learning rate suits MoCo's features, which are small.
    "moco_v1": ProbeRecipe(lrs=(30.0,), batch_size=256, epochs=100, drops=(0.6, 0.8)),
    "moco_v2": ProbeRecipe(lrs=(30.0,), batch_size=256, epochs=100, drops=(0.6, 0.8)),
    # arXiv:2104.02057, the authors' code: 0.1 for ResNet-50, 3 for ViT.
    "moco_v3_resnet": ProbeRecipe(lrs=(0.1,), batch_size=1024, epochs=90, constant_within_epochs=True),
    "moco_v3_vit": ProbeRecipe(lrs=(3.0,), batch_size=1024, epochs=90, constant_within_epochs=True),
    # arXiv:2006.07733, appendix C.1; the learning rates are taken to be for 256 images, as its code scales them.
    "byol": ProbeRecipe(lrs=(0.4, 0.3, 0.2, 0.1, 0.05), batch_size=1024, epochs=80, nesterov=True),
    # arXiv:2011.10566, appendix A.
    "simsiam": ProbeRecipe(lrs=(0.1,), batch_size=4096, epochs=90, optimizer="larc", constant_within_epochs=True),
    # arXiv:2103.03230, section 3.1 and the authors' code.
    "barlow_twins": ProbeRecipe(
        lrs=(0.3,), batch_size=256, epochs=100, weight_decays=(1e-6,), constant_within_epochs=True
    ),
    # arXiv:2105.04906, section 5.1 and the authors' code.
    "vicreg": ProbeRecipe(lrs=(0.02,), batch_size=256, epochs=100, weight_decays=(1e-6,), constant_within_epochs=True),
    # arXiv:2006.09882, appendix A and the authors' code.
    "swav": ProbeRecipe(lrs=(0.3,), batch_size=256, epochs=100, weight_decays=(1e-6,), constant_within_epochs=True),
    # arXiv:2104.14294, the authors' code: 8 devices of 128 images.
    "dino": ProbeRecipe(lrs=(0.001,), batch_size=1024, epochs=100, constant_within_epochs=True),
    # arXiv:2304.07193, appendix B.3 and the authors' code: 12,500 steps of 8 devices of 128 images.
    "dinov2": ProbeRecipe(
        lrs=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1), batch_size=1024, epochs=10
    ),
    # arXiv:2204.07141, the authors' code. The learning rate is so large because the classifier's inputs have unit
    # length. The batch size is that of one device; the number of devices is not said. In the authors' code the learning
    # rate does not follow the batch size.
    "msn": ProbeRecipe(lrs=(6.4,), batch_size=256, epochs=100, nesterov=True, scaling="unit_layer_norm"),
    # arXiv:2511.08544, the authors' README: LayerNorm, AdamW, decay 1e-6, warm-up and cosine to a thousandth. It does
    # not state the learning rate; 1e-3 after an epoch of warm-up is from the probe in their MINIMAL.md. Batch size and
    # epochs have no source.
    "lejepa": ProbeRecipe(
        lrs=(1e-3,),
        batch_size=256,
        epochs=100,
        weight_decays=(1e-6,),
        optimizer="adamw",
        warmup_epochs=1,
        final_share=1e-3,
        scaling="layer_norm",
    ),
    # arXiv:2111.06377, table 10.
    "mae": ProbeRecipe(
        lrs=(0.1,), batch_size=16384, epochs=90, optimizer="lars", warmup_epochs=10, scaling="batch_norm"
    ),
    # From no paper. The range of learning rates is wide enough for features of any length.
    "sweep": ProbeRecipe(
        lrs=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0), weight_decays=(0.0, 1e-6, 1e-4), batch_size=256, epochs=100
    ),
}
