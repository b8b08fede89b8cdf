"""The methods, and what one is.

A method is a frozen dataclass. Its first fields are `backbone` (a Linen module) and `run` (a `Run`: batch size, steps,
...); the others are the keys of `config.method`, with the paper's values as defaults. It has

    views            names of the augmentations (keys of `config.augment`) of the views it wants, in order
    chance_level     the loss where all embeddings are equal: of a network that has learnt nothing or has collapsed;
                     None where there is no such number
    init(rng, images [batch, height, width, channels]) -> (params, state)
    loss(params, state, batch, rng, *, axis_name=None) -> (loss, (state, metrics))
                     batch["views"]: a tuple of float32 [batch, height, width, channels], as `views` orders them;
                     batch["boxes"]: where each of them lies in its image (see data/augment.py);
                     batch["masks"]: a tuple of bool [batch, patches], one for each view named in `masked`;
                     batch["index"], batch["label"]: int32 [batch], label -1 where there is none.
                     metrics: a dict of scalars with "loss", and "embeddings" [views, batch, dim] for the health panel;
                     of a single view, features, which it sees relative to their mean.
    update(params, state, step) -> state
                     after the optimizer, `step` being the number of those done: teachers, schedules, clusterings
    backbone_variables(params, state) -> {"params", "batch_stats"} of `backbone`: what is worth keeping of the run
    features(params, state, images) -> h [batch, dim], in evaluation mode

and where it needs them

    masked           names of the views that come with a mask, made as `config.mask` says
    frozen_steps     {beginning of a parameter's path: steps for which the optimizer does not see it}
    still_steps      as frozen_steps: steps for which its learning rate is 0, while the optimizer gathers moments
    constant_lr      beginnings of paths of parameters whose learning rate is not decayed
    pictures(params, state, batch, rng) -> {title: images [batch, height, width, channels]}
                     for the report: what it makes of a few images, normalized as views are
    prepare(params, state, batch, rng, *, axis_name=None) -> (state, embeddings [views, batch, dim])
    prepared(params, state) -> state
                     for what a method must know of all images before it trains: before the first step, `prepare` gets
                     each batch of a pass over them, and after the last of these comes `prepared`. No parameter moves.
    constrain(params) -> params
                     after each step of the optimizer, before `update`: SwAV's prototypes are made unit vectors again

All are pure functions; params, state and batch are pytrees of arrays. Under `axis_name`, params and state are the
same on every device and must stay so; the batch is the device's slice. What a method cannot run with (a queue longer
than the data set, a temperature of 0) it refuses when it is made, with a ValueError that says what to do.
"""

from ssl_jax.methods._common import Run
from ssl_jax.methods.aim import AIM
from ssl_jax.methods.barlow_twins import BarlowTwins
from ssl_jax.methods.beit_kmeans import BEiTKMeans
from ssl_jax.methods.bigan import BiGAN
from ssl_jax.methods.byol import BYOL
from ssl_jax.methods.cmc import CMC
from ssl_jax.methods.colorization import Colorization
from ssl_jax.methods.counting import Counting
from ssl_jax.methods.cpc import CPC
from ssl_jax.methods.data2vec import Data2Vec
from ssl_jax.methods.dcgan import DCGAN
from ssl_jax.methods.dcl import DCL
from ssl_jax.methods.deepcluster_v2 import DeepClusterV2
from ssl_jax.methods.denoising import Denoising
from ssl_jax.methods.densecl import DenseCL
from ssl_jax.methods.dino import DINO
from ssl_jax.methods.dinov2 import DINOv2
from ssl_jax.methods.emp_ssl import EMPSSL
from ssl_jax.methods.exemplar import Exemplar
from ssl_jax.methods.fastsiam import FastSiam
from ssl_jax.methods.frossl import FroSSL
from ssl_jax.methods.hypersphere import Hypersphere
from ssl_jax.methods.ibot import IBOT
from ssl_jax.methods.ijepa import IJEPA
from ssl_jax.methods.inpainting import Inpainting
from ssl_jax.methods.instdisc import InstDisc
from ssl_jax.methods.jigsaw import Jigsaw
from ssl_jax.methods.lejepa import LeJEPA
from ssl_jax.methods.mae import MAE
from ssl_jax.methods.maskfeat import MaskFeat
from ssl_jax.methods.mmcr import MMCR
from ssl_jax.methods.moco_v2 import MoCoV2
from ssl_jax.methods.moco_v2_plus import MoCoV2Plus
from ssl_jax.methods.moco_v3 import MoCoV3
from ssl_jax.methods.msn import MSN
from ssl_jax.methods.nnbyol import NNBYOL
from ssl_jax.methods.nnclr import NNCLR
from ssl_jax.methods.odc import ODC
from ssl_jax.methods.pcl import PCL
from ssl_jax.methods.pirl import PIRL
from ssl_jax.methods.relative_patch import RelativePatch
from ssl_jax.methods.ressl import ReSSL
from ssl_jax.methods.rotation import Rotation
from ssl_jax.methods.sela_v2 import SeLaV2
from ssl_jax.methods.simclr import SimCLR
from ssl_jax.methods.simmim import SimMIM
from ssl_jax.methods.simsiam import SimSiam
from ssl_jax.methods.smog import SMoG
from ssl_jax.methods.split_brain import SplitBrain
from ssl_jax.methods.supcon import SupCon
from ssl_jax.methods.supervised import Supervised
from ssl_jax.methods.swav import SwAV
from ssl_jax.methods.tico import TiCo
from ssl_jax.methods.vae import VAE
from ssl_jax.methods.vibcreg import VIbCReg
from ssl_jax.methods.vicreg import VICReg
from ssl_jax.methods.vicregl import VICRegL
from ssl_jax.methods.w_mse import WMSE

__all__ = ["METHODS", "Run"]

METHODS = {
    "aim": AIM,
    "barlow_twins": BarlowTwins,
    "beit_kmeans": BEiTKMeans,
    "bigan": BiGAN,
    "byol": BYOL,
    "cmc": CMC,
    "colorization": Colorization,
    "counting": Counting,
    "cpc": CPC,
    "data2vec": Data2Vec,
    "dcgan": DCGAN,
    "dcl": DCL,
    "deepcluster_v2": DeepClusterV2,
    "denoising": Denoising,
    "densecl": DenseCL,
    "dino": DINO,
    "dinov2": DINOv2,
    "emp_ssl": EMPSSL,
    "exemplar": Exemplar,
    "fastsiam": FastSiam,
    "frossl": FroSSL,
    "hypersphere": Hypersphere,
    "ibot": IBOT,
    "ijepa": IJEPA,
    "inpainting": Inpainting,
    "instdisc": InstDisc,
    "jigsaw": Jigsaw,
    "lejepa": LeJEPA,
    "mae": MAE,
    "maskfeat": MaskFeat,
    "mmcr": MMCR,
    "moco_v2": MoCoV2,
    "moco_v2_plus": MoCoV2Plus,
    "moco_v3": MoCoV3,
    "msn": MSN,
    "nnbyol": NNBYOL,
    "nnclr": NNCLR,
    "odc": ODC,
    "pcl": PCL,
    "pirl": PIRL,
    "relative_patch": RelativePatch,
    "ressl": ReSSL,
    "rotation": Rotation,
    "sela_v2": SeLaV2,
    "simclr": SimCLR,
    "simmim": SimMIM,
    "simsiam": SimSiam,
    "smog": SMoG,
    "split_brain": SplitBrain,
    "supcon": SupCon,
    "supervised": Supervised,
    "swav": SwAV,
    "tico": TiCo,
    "vae": VAE,
    "vibcreg": VIbCReg,
    "vicreg": VICReg,
    "vicregl": VICRegL,
    "w_mse": WMSE,
}
