"""The methods by name, and what one is: see `Method` in contract.py.

A method of your own is a class that inherits from `Base`, made of `ssl_jax.methods.toolkit`; for a loss of two views it
is `TwoView(loss)`. Give it to `ssl_jax.pretrain(..., method=...)`.
"""

from collections.abc import Callable

from ssl_jax.methods import toolkit
from ssl_jax.methods.aim import AIM
from ssl_jax.methods.all4one import All4One
from ssl_jax.methods.barlow_twins import BarlowTwins
from ssl_jax.methods.beit_kmeans import BEiTKMeans
from ssl_jax.methods.beit_v2 import BEiTV2
from ssl_jax.methods.bigan import BiGAN
from ssl_jax.methods.bigbigan import BigBiGAN
from ssl_jax.methods.byol import BYOL
from ssl_jax.methods.capi import CAPI
from ssl_jax.methods.clusterfit import ClusterFit
from ssl_jax.methods.cmae import CMAE
from ssl_jax.methods.cmc import CMC
from ssl_jax.methods.coke import CoKe
from ssl_jax.methods.colorization import Colorization
from ssl_jax.methods.contract import Base, Batch, Method, MethodFactory, Output, Schedule, Traffic
from ssl_jax.methods.corinfomax import CorInfoMax
from ssl_jax.methods.counting import Counting
from ssl_jax.methods.cpc import CPC
from ssl_jax.methods.crossmae import CrossMAE
from ssl_jax.methods.data2vec import Data2Vec
from ssl_jax.methods.data2vec2 import Data2Vec2
from ssl_jax.methods.dcgan import DCGAN
from ssl_jax.methods.dcl import DCL
from ssl_jax.methods.ddae import DDAE
from ssl_jax.methods.deepcluster import DeepCluster
from ssl_jax.methods.deepcluster_v2 import DeepClusterV2
from ssl_jax.methods.denoising import Denoising
from ssl_jax.methods.densecl import DenseCL
from ssl_jax.methods.detcon import DetCon
from ssl_jax.methods.dino import DINO
from ssl_jax.methods.dinov2 import DINOv2
from ssl_jax.methods.dinov3 import DINOv3
from ssl_jax.methods.dinov3_distillation import DINOv3Distillation, DINOv3Teacher
from ssl_jax.methods.distill import Distill
from ssl_jax.methods.emp_ssl import EMPSSL
from ssl_jax.methods.exemplar import Exemplar
from ssl_jax.methods.fastsiam import FastSiam
from ssl_jax.methods.fcmae import FCMAE
from ssl_jax.methods.feature_targets import FeatureTargets
from ssl_jax.methods.frossl import FroSSL
from ssl_jax.methods.hypersphere import Hypersphere
from ssl_jax.methods.ibot import IBOT
from ssl_jax.methods.igpt import ImageGPT
from ssl_jax.methods.ijepa import IJEPA
from ssl_jax.methods.inpainting import Inpainting
from ssl_jax.methods.instdisc import InstDisc
from ssl_jax.methods.jigsaw import Jigsaw
from ssl_jax.methods.lejepa import LeJEPA
from ssl_jax.methods.mae import MAE
from ssl_jax.methods.maskfeat import MaskFeat
from ssl_jax.methods.mec import MEC
from ssl_jax.methods.mmcr import MMCR
from ssl_jax.methods.moco_v2 import MoCoV2
from ssl_jax.methods.moco_v2_plus import MoCoV2Plus
from ssl_jax.methods.moco_v3 import MoCoV3
from ssl_jax.methods.msf import MSF
from ssl_jax.methods.msn import MSN
from ssl_jax.methods.nnbyol import NNBYOL
from ssl_jax.methods.nnclr import NNCLR
from ssl_jax.methods.nnsiam import NNSiam
from ssl_jax.methods.odc import ODC
from ssl_jax.methods.pcl import PCL
from ssl_jax.methods.pirl import PIRL
from ssl_jax.methods.pixpro import PixPro
from ssl_jax.methods.relative_patch import RelativePatch
from ssl_jax.methods.relic_v2 import ReLICv2
from ssl_jax.methods.ressl import ReSSL
from ssl_jax.methods.rotation import Rotation
from ssl_jax.methods.sela import SeLa
from ssl_jax.methods.sela_v2 import SeLaV2
from ssl_jax.methods.self_classifier import SelfClassifier
from ssl_jax.methods.simclr import SimCLR
from ssl_jax.methods.simdino import SimDINO
from ssl_jax.methods.simmim import SimMIM
from ssl_jax.methods.simsiam import SimSiam
from ssl_jax.methods.smog import SMoG
from ssl_jax.methods.spark import SparK
from ssl_jax.methods.split_brain import SplitBrain
from ssl_jax.methods.supcon import SupCon
from ssl_jax.methods.supervised import Supervised
from ssl_jax.methods.swav import SwAV
from ssl_jax.methods.tico import TiCo
from ssl_jax.methods.toolkit.teachers import Teacher
from ssl_jax.methods.toolkit.tokenizers import Tokenizer
from ssl_jax.methods.two_view import TwoView
from ssl_jax.methods.vae import VAE
from ssl_jax.methods.vibcreg import VIbCReg
from ssl_jax.methods.vicreg import VICReg
from ssl_jax.methods.vicregl import VICRegL
from ssl_jax.methods.visreg import VISReg
from ssl_jax.methods.vqkd import VQKD
from ssl_jax.methods.w_mse import WMSE

__all__ = [
    "METHODS",
    "VQKD",
    "BEiTV2",
    "Base",
    "Batch",
    "ClusterFit",
    "DINOv3",
    "DINOv3Distillation",
    "DINOv3Teacher",
    "Distill",
    "Method",
    "MethodFactory",
    "Output",
    "Schedule",
    "Teacher",
    "Tokenizer",
    "Traffic",
    "TwoView",
    "toolkit",
]

METHODS: dict[str, Callable[..., Method]] = {
    "aim": AIM,
    "all4one": All4One,
    "barlow_twins": BarlowTwins,
    "beit_kmeans": BEiTKMeans,
    "beit_v2": BEiTV2,
    "bigan": BiGAN,
    "bigbigan": BigBiGAN,
    "byol": BYOL,
    "clusterfit": ClusterFit,
    "cmae": CMAE,
    "capi": CAPI,
    "cmc": CMC,
    "coke": CoKe,
    "colorization": Colorization,
    "corinfomax": CorInfoMax,
    "counting": Counting,
    "cpc": CPC,
    "crossmae": CrossMAE,
    "data2vec": Data2Vec,
    "data2vec2": Data2Vec2,
    "dcgan": DCGAN,
    "dcl": DCL,
    "deepcluster": DeepCluster,
    "ddae": DDAE,
    "deepcluster_v2": DeepClusterV2,
    "denoising": Denoising,
    "densecl": DenseCL,
    "detcon": DetCon,
    "dino": DINO,
    "dinov2": DINOv2,
    "dinov3": DINOv3,
    "dinov3_distillation": DINOv3Distillation,
    "distill": Distill,
    "emp_ssl": EMPSSL,
    "exemplar": Exemplar,
    "fastsiam": FastSiam,
    "fcmae": FCMAE,
    "feature_targets": FeatureTargets,
    "frossl": FroSSL,
    "hypersphere": Hypersphere,
    "ibot": IBOT,
    "igpt": ImageGPT,
    "ijepa": IJEPA,
    "inpainting": Inpainting,
    "instdisc": InstDisc,
    "jigsaw": Jigsaw,
    "lejepa": LeJEPA,
    "mae": MAE,
    "maskfeat": MaskFeat,
    "mec": MEC,
    "mmcr": MMCR,
    "moco_v2": MoCoV2,
    "moco_v2_plus": MoCoV2Plus,
    "moco_v3": MoCoV3,
    "msf": MSF,
    "msn": MSN,
    "nnbyol": NNBYOL,
    "nnclr": NNCLR,
    "nnsiam": NNSiam,
    "odc": ODC,
    "pcl": PCL,
    "pirl": PIRL,
    "pixpro": PixPro,
    "relative_patch": RelativePatch,
    "relic_v2": ReLICv2,
    "ressl": ReSSL,
    "rotation": Rotation,
    "sela": SeLa,
    "sela_v2": SeLaV2,
    "self_classifier": SelfClassifier,
    "simclr": SimCLR,
    "simdino": SimDINO,
    "simmim": SimMIM,
    "simsiam": SimSiam,
    "smog": SMoG,
    "spark": SparK,
    "split_brain": SplitBrain,
    "supcon": SupCon,
    "supervised": Supervised,
    "swav": SwAV,
    "tico": TiCo,
    "vae": VAE,
    "vibcreg": VIbCReg,
    "vicreg": VICReg,
    "vicregl": VICRegL,
    "vqkd": VQKD,
    "visreg": VISReg,
    "w_mse": WMSE,
}
