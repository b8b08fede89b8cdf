"""BEiT v2: Peng et al. 2022, arXiv:2208.06366."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    """`method.tokenizer` is to be given, the directory of a run of vqkd:tiny."""
    config = recipes.tiny_vit()
    config.method = dict(name="beit_v2", tokenizer="", early_blocks=2, head_blocks=1)
    config.augment.view = recipes.tiny_view(crop_area=(0.5, 1.0))
    config.mask = dict(kind="block", ratio=(0.4, 0.4), min_patches=1)
    config.optimizer.clip_norm = 3.0
    return config


def imagenet_vitb16() -> ConfigDict:
    """85.5 fine-tuned, after 1600 epochs, with the tokenizer that CLIP ViT-B/16 has taught."""
    vit = dict(positions="relative", layer_scale=0.1, drop_path=0.1, pool="norm_mean")
    config = recipes.imagenet("vit_base_patch16_224", batch_size=2048, epochs=1600, **vit)
    config.method = dict(name="beit_v2", tokenizer="", early_blocks=9, head_blocks=2)
    config.augment.view = {**recipes.MAE_VIEW, **recipes.jitter(0.4, 0.4, 0.4, 0.0, 1.0)}
    config.mask = dict(kind="block", ratio=(75 / 196, 75 / 196), min_patches=16)
    config.optimizer = recipes.beit_adamw(config, 1.5e-3 / 8)
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_vitb16": imagenet_vitb16}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("beit_v2", scale, SCALES)
