"""What benchmarks/methods.py compares methods on: the images, and the config of each method there."""

import dataclasses

from ssl_jax import config as configs

LONGER = 5  # times the steps, for methods that are not above their untrained network under every protocol
DRAWS = tuple(range(5))  # of the 10 labels per class
UNTRAINED_SEEDS = tuple(range(12))  # of each network: they need no training, and all its methods are compared with them
# Methods that start with a trained network: the key of config.method that names its run, and the run's method.
GIVEN = {
    "beit_v2": ("tokenizer", "vqkd"),
    "clusterfit": ("teacher", "rotation"),
    "dinov3_distillation": ("teacher", "dinov3"),
    "distill": ("teacher", "simclr"),
    "feature_targets": ("teacher", "ibot"),
    "vqkd": ("teacher", "ibot"),
}


@dataclasses.dataclass(frozen=True)
class World:
    """Images that methods are compared on. name: of the data. title: in sentences. record: its name in docs/. changes:
    keys of each method's `tiny` config, and their values. train, test: splits that are evaluated on. chosen: which
    images settings were chosen on, in a sentence."""

    name: str
    title: str
    record: str
    changes: dict = dataclasses.field(default_factory=dict)
    train: str = "train"
    test: str = "test"
    chosen: str = "No setting was chosen on these images."

    def settings(self, config):
        """What changes in the method's config."""
        if self.train != "train" and config.data.split == "train" and config.data.name == self.name:
            return self.changes | {"data.split": self.train}
        return self.changes


EMOJI = {
    "data.name": "emoji_google",
    "data.path": "",
    "data.channels": 3,
    "data.mean": (0.808, 0.757, 0.717),  # measured at 28 pixels
    "data.std": (0.275, 0.285, 0.329),
    "data.split": "train",  # of 2,663 images: no method needs fewer
}
CHOSEN = (
    "The settings of `tiny` come from measurements like these, most of them on these test images, not on held-out "
    "training ones. So they may flatter methods whose settings were looked at most, and gains near 0. `--data "
    "held_out` measures on held-out training images, to choose by."
)
WORLDS = {
    "fashion_mnist": World("fashion_mnist", "Fashion-MNIST", "results", chosen=CHOSEN),
    # To choose settings by: a fifth of the training images is held out, and test images are not seen.
    "held_out": World(
        "fashion_mnist", "a held-out fifth of Fashion-MNIST's training images", "results_held_out",
        train="train[:80%]", test="train[80%:]", chosen="Settings are chosen on these images.",
    ),
    "emoji_google": World("emoji_google", "Google's emoji", "results_emoji", EMOJI),
}  # fmt: skip
FASHION = WORLDS["fashion_mnist"]


def settings(seed, steps):
    return {"steps": steps, "seed": seed, "evaluate_every": 0, "log_every": 100, "checkpoint_every": 10**6}


def configured(name, seed, steps, world=FASHION):
    config = configs.get_config(f"{name}:tiny")
    config.update_from_flattened_dict(settings(seed, steps) | world.settings(config))
    if name in GIVEN:
        key, other = GIVEN[name]
        # With its config's digest, so that another teacher makes another digest of this config.
        config.method[key] = f"{other}-{seed} of {configs.digest(configured(other, seed, steps, world))}"
    return config


def evaluated(config, world):
    """What is evaluated on: all images of the world, whichever were trained on."""
    whole = {"name": world.name, "image_size": (28, 28)}
    if (world.train, world.test) != ("train", "test"):
        whole |= {"split": world.train, "test_split": world.test}
    return whole | {key: config.data[key] for key in ("channels", "mean", "std")}


def without_training(config, world):
    """What an untrained network depends on."""
    data = evaluated(config, world)
    return {"seed": config.seed, "data": data, "model": config.model, "compute_dtype": config.compute_dtype}


def untrained_key(config, world):
    """One for all methods of the same network, data and seed."""
    return f"untrained-{config.model.name}-{configs.digest(without_training(config, world))}"
