"""The libraries that ssl_jax is run beside, the methods that both have, and what they must have alike there."""

import dataclasses
from pathlib import Path

from methods_record import Record

from ssl_jax import config as configs

STEPS = 300
DOCS = Path(__file__).parents[1] / "docs"
SIDES = ("ours", "peer")


@dataclasses.dataclass(frozen=True)
class Library:
    """title: in sentences. name: of its record and its page in docs/. install: what pip gets. script: of its side.
    methods: those compared. changes: method -> keys of our `tiny` config, and their values. In sentences: differences:
    what the two sides have not alike; steps_differences: the same, of the first steps from the same parameters;
    history: how the comparison came about. unlike: methods that `differences` concern."""

    title: str
    name: str
    install: str
    script: str
    methods: tuple
    changes: dict
    differences: str
    steps_differences: str
    history: str = ""
    unlike: tuple = ()

    @property
    def record(self):
        return Record(DOCS, self.name)

    def config_of(self, name, seed, steps=STEPS):
        config = configs.get_config(f"{name}:tiny")
        config.update(seed=seed, steps=steps, evaluate_every=0, log_every=100, checkpoint_every=10**6)
        config.update_from_flattened_dict(self.changes.get(name, {}))
        return config


TWO_VIEWS = {"method.local_views": 0}  # the large ones
# In one direction, and with the statistics of the whole batch, as on one device.
MOCO = {"method.symmetric": False, "model.batch_norm": "sync", "model.batch_norm_groups": 1}
LIGHTLY = Library(
    title="lightly",
    name="against_lightly",
    install="'lightly==1.6.*' torchvision",
    script="lightly_peer.py",
    methods=(
        "simclr", "moco_v2", "byol", "simsiam", "barlow_twins", "vicreg", "swav", "dino", "nnclr", "tico", "dcl",
        "mmcr",
    ),
    changes={
        "moco_v2": MOCO,
        "swav": TWO_VIEWS,
        "dino": {**TWO_VIEWS, "method.hidden": (256, 256)},  # lightly's head has two hidden layers
        "barlow_twins": {"method.projector": (256, 256, 256)},  # lightly's head has three layers
        "mmcr": {"method.projector": (256, 256, 64), "method.momentum": True},  # and this one, and a momentum encoder
    },
    differences="Heads and options are those that both sides can have, so these numbers are not those of "
    "[results.md](results.md): DINO and SwAV train on two large views, without small ones, MMCR has a momentum "
    "encoder, TiCo's loss has both directions, MoCo's one. lightly's NNCLR has the other images' neighbors among the "
    "negatives, too, which the paper and ours have not. The heads of BYOL and TiCo begin with LeCun's normal weights "
    "here, with torch's default, 0.6 as large, there. In SimCLR, DCL and MMCR both views pass through our network as "
    "one batch, so BatchNorm's statistics are of both; there, each view has its own. The last layers of BYOL's and "
    "TiCo's heads and SwAV's prototypes have a bias there, and none here, as in the authors' code.",
    steps_differences="Not so in the heads of SwAV and of DINO's student, whose BatchNorm takes all views as one "
    "batch, as the authors' does, where lightly's examples pass each view by itself: all of their difference in the "
    "first step comes from this. A bias that a layer has on lightly's side alone is left out. NNCLR's losses are of "
    "different negatives, see above.",
    unlike=("byol", "dcl", "dino", "mmcr", "nnclr", "simclr", "swav", "tico"),
    history="The margin of 1.5 points was set after a first comparison of eight methods, most with one seed, and "
    "before these runs. moco_v2, dino and barlow_twins were made more alike after a first result of three seeds, which "
    "differed by +0.4, +1.0 and -0.7, and were run again: heads, directions or BatchNorm had not been the same.",
)  # fmt: skip
STABLE_PRETRAINING = Library(
    title="stable-pretraining",
    name="against_stable_pretraining",
    install="'stable-pretraining==0.1.*'",
    script="stable_peer.py",
    methods=(
        "simclr", "moco_v2", "moco_v3", "byol", "simsiam", "barlow_twins", "vicreg", "swav", "dino", "nnclr", "tico",
        "w_mse",
    ),
    changes={
        "moco_v2": MOCO,
        "swav": {**TWO_VIEWS, "method.freeze_steps": 0},
        "dino": {**TWO_VIEWS, "method.hidden": (256, 256), "method.head_norm": False},
        "barlow_twins": {"method.projector": (256, 256, 256)},
        "tico": {"method.projector": (256, 256, 64)},
    },
    differences="What its code does otherwise stands below.",
    unlike=("moco_v2", "swav", "dino", "barlow_twins", "nnclr", "tico", "w_mse"),
    steps_differences="Losses that the library averages over two directions or over dimensions are multiplied to be "
    "the paper's sums (BYOL, MoCo v3 with its factor of twice the temperature, W-MSE). Its code differs from ours, and "
    "from the papers, in:\n\n"
    "- MoCo v2: the new keys enter the queue before the queries are compared with it, so each query's own key is among "
    "its negatives, too. The queue begins empty, ours with random vectors.\n"
    "- NNCLR: the projections of the first view enter the queue before its neighbors are looked up, so each is its own "
    "nearest neighbor. The queue begins empty. Negatives are of both views.\n"
    "- TiCo: no momentum encoder, the covariance is that of both views, centered, and the invariance term is twice "
    "ours, beside the same rho.\n"
    "- DINO: the last layer has no weight normalization (it begins here with unit rows, to be the same), and the first "
    "center is the whole mean of the first batch, not a share of it.\n"
    "- W-MSE: both views of the whole batch are whitened together by eigenvectors; ours, as the paper, whitens parts "
    "of 128 rows by Cholesky's factor.\n"
    "- Barlow Twins divides by the deviation of n - 1 rows. SwAV's head normalizes each view by itself, ours all views "
    "as one batch, as the authors' code.",
)  # fmt: skip
LIBRARIES = {library.title: library for library in (LIGHTLY, STABLE_PRETRAINING)}
