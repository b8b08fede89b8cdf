"""Pre-train on arrays of your own, and measure with labels what it gave."""

import numpy as np

import ssl_jax
from ssl_jax import data

# Yours may be np.load("stack.npy", mmap_mode="r"): uint8 [images, height, width, channels], never in memory as a whole.
fashion = data.tfds("fashion_mnist", split="train[:2%]", channels=1)
images = np.stack([fashion[i] for i in range(len(fashion))])
patients = np.arange(len(images)) // 4  # four images of each; a patient's images are all in one split

train, test = data.split(data.arrays(images, fashion.labels, groups=patients), test_share=0.2, seed=0)
config = ssl_jax.get_config("simclr:tiny")  # images of other channels bring their own mean and deviation
config.steps = 20  # thousands, to learn something
run = ssl_jax.pretrain(config, train, workdir="runs/own_arrays")
print(ssl_jax.evaluate(run.backbone, train, test, protocols=("knn", "linear")))
