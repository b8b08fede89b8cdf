"""VQ-KD, the tokenizer of BEiT v2: Peng et al. 2022, arXiv:2208.06366."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    """`method.teacher` is to be given, such as the directory of a run of ibot:tiny."""
    config = recipes.tiny_vit()
    config.model.pool = "norm_mean"
    config.method = dict(
        name="vqkd",
        teacher="",
        codes=128,
        code_dim=16,
        decay=0.9,
        decoder_dim=96,
        decoder_depth=1,
        decoder_heads=3,
    )
    config.augment.view = recipes.tiny_view(crop_area=(0.5, 1.0), brightness=0.0, contrast=0.0)
    config.optimizer.update(weight_decay=1e-4, b2=0.99)
    return config


def imagenet_vitb16() -> ConfigDict:
    """vqkd_encoder_base_decoder_3x768x12. Give CLIP ViT-B/16 or DINO ViT-B/16 as method.teacher, as the authors do."""
    config = recipes.imagenet("vit_base_patch16_224", batch_size=512, epochs=100, pool="norm_mean")
    config.method = dict(
        name="vqkd",
        teacher="",
        codes=8192,
        code_dim=32,
        decay=0.99,
        commitment=1.0,
        kmeans_iterations=10,
        decoder_dim=768,
        decoder_depth=3,
        decoder_heads=12,
    )
    config.augment.view = dict(size=(224, 224), crop_area=(0.08, 1.0), flip=0.5, interpolation="bicubic")
    config.optimizer = dict(
        name="adamw",
        lr=recipes.lr_for(config, 1e-4),
        weight_decay=1e-4,
        b2=0.99,
        exempt=(*recipes.VECTORS, "cls_token", "pos_embed"),
        warmup_steps=recipes.imagenet_steps(10, 512),
        final_lr=1e-5,
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_vitb16": imagenet_vitb16}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("vqkd", scale, SCALES)
