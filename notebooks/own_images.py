# %% [markdown]
# # Your own images
#
# From a folder of images to features, a map of them and a search. Then the same for arrays of 16 bits and five
# channels. It takes about two minutes on two CPU cores.

# %% [markdown]
# ## A folder
#
# Any folder will do, with images at any depth; put the name of yours in `FOLDER`. Here it is made of emoji (Noto
# Emoji, Apache License 2.0), the sub-folders are their categories. Labels are not needed: sub-folders are only used
# to measure, and to color a map.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.decomposition import PCA

import ssl_jax
from ssl_jax import data

FOLDER = Path("photos")
STEPS = 80  # thousands, to learn much

emoji = data.open_data("emoji_google")
for number in range(0, len(emoji), 4):
    image, label = emoji.read(number)
    place = FOLDER / emoji.class_names[label] / f"{number:04}.png"
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(place)

# %% [markdown]
# ## Look at them first
#
# `inspect` reads every image: what cannot be read, what is there twice, sizes, values. Its advice has keys of a config.
# `ssl_jax inspect photos` shows the same as a page.

# %%
found = data.inspect(data.folder(FOLDER))
(split,) = found.splits
print(f"{split.read} images, {len(split.unreadable)} unreadable, {len(found.equal)} there twice")
print("sizes", split.sizes.counts)
print("begin with", found.config, *found.flags)
for advice in found.advice:
    print(f"{advice.topic}: {advice.says} ({advice.because})")

# %% [markdown]
# ## Train
#
# The scale `folder` measures channels, type, range, mean and deviation of the images before it starts. Views of 32
# pixels take a quarter of the time of its 64.

# %%
config = ssl_jax.get_config("simclr:folder")
config.batch_size, config.steps, config.optimizer.warmup_steps = 128, STEPS, STEPS // 5
config.log_every, config.evaluate_every = max(STEPS // 12, 1), 0
config.data.image_size = config.augment.view.size = (32, 32)
images = data.folder(FOLDER)
run = ssl_jax.pretrain(config, images, workdir="runs/photos")

# %% [markdown]
# ## Are the views right?
#
# Two views of an image are to show the same thing. Where a crop misses it, raise `crop_area`; where color matters,
# lower `hue` and `grayscale`. [Views](../docs/views.md) by kind of image: `simclr:folder:satellite`, `histology`,
# `xray`, `microscopy`.


# %%
def show(rows):
    """A grid of images: a list of lists of [height, width] or [height, width, 3]."""
    _, axes = plt.subplots(len(rows), len(rows[0]), figsize=(len(rows[0]), len(rows)), squeeze=False, dpi=60)
    for line, images in zip(axes, rows, strict=True):
        for cell, image in zip(line, images, strict=True):
            cell.imshow(image.squeeze(), cmap="gray")
            cell.set_axis_off()
    plt.show()


shown = np.load("runs/photos/samples/views.npz")
columns = [*shown["original"][None], *np.moveaxis(shown["views"], 1, 0)]
show(columns)

# %% [markdown]
# ## Is it healthy?
#
# A collapsed network gives all images the same features, and its loss may look well. So each run measures how many
# dimensions are in use (`rankme`), and how far embeddings spread. Below a tenth of the largest rank, or a quarter of
# the healthy spread, dashed here, the log would have a WARNING with the remedy.


# %%
def logged(name):
    return np.array([line[name] for line in run.metrics])


alarms = {
    "loss": logged("chance_level"),
    "rankme": 0.1 * logged("rank_limit"),
    "embedding_std": 0.25 / np.sqrt(logged("embedding_dim")),
}
_, axes = plt.subplots(1, 3, figsize=(9, 2.2), dpi=70, layout="constrained")
for cell, (name, alarm) in zip(axes, alarms.items(), strict=True):
    cell.plot(logged("step"), logged(name))
    cell.plot(logged("step"), alarm, "--", color="gray")
    cell.set(title=name, xlabel="step", ylim=(0, None))
plt.show()

# %% [markdown]
# The dashed line of the loss is chance: a loss that stays there has learnt nothing.

# %% [markdown]
# ## A map of the images
#
# Features, projected to the two directions in which they differ most. A color for each sub-folder, which training did
# not see.

# %%
names, features = ssl_jax.embed(run.backbone, images)
places = PCA(2).fit_transform(features / np.linalg.norm(features, axis=1, keepdims=True))
_, cell = plt.subplots(figsize=(6, 3.6), dpi=70, layout="constrained")
for label, name in enumerate(images.class_names):
    cell.scatter(*places[images.labels == label].T, s=8, label=name)
cell.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
cell.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Search
#
# Each row: an image, and the five others with the most similar features.

# %%
found = ssl_jax.retrieve(run.backbone, images, images, k=5)
queries = np.linspace(0, len(images) - 1, 6).astype(int)
show([[images[int(query)], *(images[int(near)] for near in found.indices[query])] for query in queries])

# %% [markdown]
# ## 16 bits, five channels
#
# Arrays [images, height, width, channels] of uint8, uint16, int16 or float32, from `np.load("stack.npy",
# mmap_mode="r")` or another place, keep their type and all channels. These are made by a [synthetic
# camera](../docs/data.md#synthetic-images-of-five-bands) of five bands.

# %%
camera = data.open_data("synthetic_emoji_google", channels=None)
stack = np.stack([camera[number] for number in range(0, len(camera), 4)])
print(stack.dtype, stack.shape, f"values {stack.min()} to {stack.max()}")
show([list(np.moveaxis(image, -1, 0)) for image in stack[::200][:3]])

# %% [markdown]
# Hue and saturation are of red, green and blue. `microscopy` has views for any channels: gains of each, noise,
# dropped channels.

# %%
config = ssl_jax.get_config("simclr:folder:microscopy")
config.batch_size, config.steps, config.optimizer.warmup_steps = 128, STEPS, STEPS // 5
config.log_every, config.evaluate_every = max(STEPS // 4, 1), 0
config.data.image_size = config.augment.view.size = (32, 32)
bands = data.arrays(stack, emoji.labels[::4], class_names=emoji.class_names, groups=emoji.groups[::4])
train, test = data.split(bands, test_share=0.3)
run = ssl_jax.pretrain(config, train, workdir="runs/bands")
print("range", run.backbone.value_range, "mean", np.round(run.backbone.mean, 2))

# %% [markdown]
# What it was worth, beside random networks and the pixels. Six in ten images are of the largest class, so look at the
# numbers in brackets, in which each class counts alike. So few steps on so few images are worth little: the pixels are
# far ahead.

# %%
print(ssl_jax.evaluate(run.backbone, train, test, protocols=("knn",)))
