"""Distillation from a frozen backbone: the loss of UNIC, Sariyildiz et al. 2024, arXiv:2408.05088."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    """`method.teacher` is to be given, such as the directory of a run of simclr:tiny with model.width=4.0."""
    config = recipes.tiny()
    config.method = dict(name="distill", teacher="", local_views=2, projector=(256,))
    config.augment = dict(view=recipes.tiny_view(), local=recipes.tiny_local())
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny)}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("distill", scale, SCALES)
