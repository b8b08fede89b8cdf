"""Pre-train on the items of any object with `__len__` and `__getitem__`."""

import numpy as np

import ssl_jax


class Scenes:
    """An item is an image, uint8 [height, width, channels], or (image, label). It is called from several threads."""

    def __init__(self):
        self.scene = np.random.default_rng(0).integers(0, 256, (400, 400, 4), np.uint8)  # red, green, blue, infrared

    def __len__(self):
        return 144

    def __getitem__(self, index):
        row, column = divmod(index, 12)
        return self.scene[32 * row : 32 * row + 40, 32 * column : 32 * column + 40]


config = ssl_jax.get_config("simclr:tiny")
config.batch_size, config.steps = 64, 4
config.data.image_size = config.augment.view.size = (32, 32)
run = ssl_jax.pretrain(config, Scenes(), workdir="runs/own_data")
print(run.backbone.mean, run.facts["source"])
