"""BEiT: Bao et al. 2021, arXiv:2106.08254, with k-means of patches as its tokenizer."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny_vit()
    config.model.pool = "norm_mean"
    config.method = dict(name="beit_kmeans", codes=128, normalize=True, tokenizer_steps=200)
    config.augment.view = recipes.tiny_view(crop_area=(0.5, 1.0))
    config.mask = dict(kind="block", ratio=(0.4, 0.4), min_patches=1)
    config.optimizer.clip_norm = 3.0
    return config


def imagenet_vitb16() -> ConfigDict:
    """BEiT's settings, but for the tokenizer. With DALL-E's tokenizer: 83.2 fine-tuned, after 800 epochs."""
    vit = dict(positions="relative", layer_scale=0.1, drop_path=0.1, pool="norm_mean")
    config = recipes.imagenet("vit_base_patch16_224", batch_size=2048, epochs=800, **vit)
    config.method = dict(
        name="beit_kmeans", codes=8192, normalize=True, tokenizer_steps=recipes.imagenet_steps(5, 2048)
    )
    view = dict(size=(224, 224), crop_area=(0.08, 1.0), flip=0.5, interpolation="bicubic")
    config.augment.view = {**view, **recipes.jitter(0.4, 0.4, 0.4, 0.0, 1.0)}
    config.mask = dict(kind="block", ratio=(75 / 196, 75 / 196), min_patches=16)
    config.optimizer = recipes.beit_adamw(config, 1.5e-3 / 8)
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_vitb16": imagenet_vitb16}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("beit_kmeans", scale, SCALES)
