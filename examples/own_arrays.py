"""Pre-train on arrays of your own, 16 bits and five channels, and measure with labels what it gave."""

import numpy as np

import ssl_jax
from ssl_jax import data

# Yours may be np.load("stack.npy", mmap_mode="r"): [images, height, width, channels], never in memory as a whole, of
# uint8, uint16, int16 or float32. Here: five exposures of each image by a camera of 12 bits.
fashion = data.tfds("fashion_mnist", split="train[:2%]", channels=1)
light = np.stack([fashion[i] for i in range(len(fashion))]).astype(np.float32)
images = np.clip(light * [2, 4, 8, 16, 32], 0, 4095).astype(np.uint16)
patients = np.arange(len(images)) // 4  # four images of each; a patient's images are all in one split

train, test = data.split(data.arrays(images, fashion.labels, groups=patients), test_share=0.2, seed=0)
config = ssl_jax.get_config("simclr:folder")  # channels, type, range of values, mean and deviation follow from the data
config.steps = 20  # thousands, to learn something
run = ssl_jax.pretrain(config, train, workdir="runs/own_arrays")
print(ssl_jax.evaluate(run.backbone, train, test, protocols=("knn", "linear")))
