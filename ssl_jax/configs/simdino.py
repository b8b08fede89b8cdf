"""SimDINO: Wu et al. 2025, arXiv:2502.10385."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    # BatchNorm in the head, the option of DINO's authors for ResNets. dim / eps is 5120 at scale imagenet_vitb16, and 1
    # here: resnet8's features fill fewer directions, and a run has four epochs. With eps=0.05 the features were worse
    # than the untrained network's. The coding rate is then small, and so is the weight of the cosines.
    config.method = dict(
        name="simdino",
        local_views=2,
        hidden=(256,),
        bottleneck=64,
        head_norm=True,
        eps=64.0,
        invariance=0.02,
        decay=0.98,
    )
    views = dict(global1=recipes.tiny_view(), global2=recipes.tiny_view(), local=recipes.tiny_local())
    config.augment = views
    config.optimizer.update(lr=8e-3, clip_each=3.0)
    return config


def imagenet_vitb16() -> ConfigDict:
    """The command of the authors' README: 74.9 kNN, 77.3 linear."""
    config = recipes.imagenet("vit_base_patch16_224", batch_size=512, epochs=100, drop_path=0.1)
    config.method = dict(
        name="simdino", local_views=10, hidden=(2048, 2048), bottleneck=256, eps=0.05, invariance=1.0, decay=0.996
    )
    config.augment = dict(global1=recipes.DINO_1, global2=recipes.DINO_2, local=recipes.DINO_LOCAL)
    config.optimizer = dict(
        name="adamw",
        lr=recipes.lr_for(config, 5e-4),
        weight_decay=0.04,
        final_weight_decay=0.4,
        warmup_steps=recipes.imagenet_steps(10, 512),
        final_lr=1e-6,
        clip_each=3.0,
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_vitb16": imagenet_vitb16}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("simdino", scale, SCALES)
