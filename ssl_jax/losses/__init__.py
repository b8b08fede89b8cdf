"""The losses: pure functions of arrays, each the loss of the global batch (`axis_name`), in float32."""

from ssl_jax.losses.clustering import pcl_prototypes, pseudo_label_cross_entropy, self_classifier, sinkhorn, smog, swav
from ssl_jax.losses.coding import corinfomax, mec, simdino
from ssl_jax.losses.contrastive import (
    dcl,
    dclw,
    dense_info_nce,
    info_nce,
    nce,
    nce_log_z,
    nt_xent,
    patch_info_nce,
    ressl,
    supcon,
    supcon_inside,
)
from ssl_jax.losses.decorrelation import barlow_twins, vibcreg, vicreg, vicregl_global, vicregl_local, w_mse
from ssl_jax.losses.dense import detcon, patch_kernel_alignment, pixpro
from ssl_jax.losses.distillation import (
    cross_view,
    dino,
    feature_distillation,
    gram,
    ibot,
    koleo,
    masked_patches,
    msn,
    negative_cosine,
    pmsn,
)
from ssl_jax.losses.generative import adversarial, hinge, region_squared_error, squared_error, vae
from ssl_jax.losses.invariance import relic
from ssl_jax.losses.masked import masked_cosine, masked_cross_entropy, masked_l1, masked_pixels, masked_smooth_l1
from ssl_jax.losses.neighbors import all4one_features, mean_shift
from ssl_jax.losses.pretext import classification, colorization, counting
from ssl_jax.losses.sketching import visreg
from ssl_jax.losses.spread import emp_ssl, frossl, hypersphere, mmcr, sigreg, tico

__all__ = [
    "adversarial",
    "all4one_features",
    "barlow_twins",
    "classification",
    "colorization",
    "corinfomax",
    "counting",
    "cross_view",
    "dcl",
    "dclw",
    "dense_info_nce",
    "detcon",
    "dino",
    "emp_ssl",
    "feature_distillation",
    "frossl",
    "gram",
    "hinge",
    "hypersphere",
    "ibot",
    "info_nce",
    "koleo",
    "masked_cosine",
    "masked_cross_entropy",
    "masked_l1",
    "masked_patches",
    "masked_pixels",
    "masked_smooth_l1",
    "mean_shift",
    "mec",
    "mmcr",
    "msn",
    "nce",
    "nce_log_z",
    "negative_cosine",
    "nt_xent",
    "patch_info_nce",
    "patch_kernel_alignment",
    "pcl_prototypes",
    "pixpro",
    "pmsn",
    "pseudo_label_cross_entropy",
    "region_squared_error",
    "relic",
    "ressl",
    "self_classifier",
    "sigreg",
    "simdino",
    "sinkhorn",
    "smog",
    "squared_error",
    "supcon",
    "supcon_inside",
    "swav",
    "tico",
    "vae",
    "vibcreg",
    "vicreg",
    "vicregl_global",
    "vicregl_local",
    "visreg",
    "w_mse",
]
