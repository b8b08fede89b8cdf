# %% [markdown]
# # First steps
#
# Pre-train a small network on images without labels, look at what it was shown, and measure what it has learnt. It
# takes about a minute on two CPU cores.

# %% [markdown]
# ## Images
#
# Fashion-MNIST: gray images of clothes, 28 x 28 pixels. Their labels are for measuring alone. Your own images:
# [own_images](own_images.ipynb).

# %%
import matplotlib.pyplot as plt
import numpy as np

import ssl_jax
from ssl_jax import data

STEPS = 150  # thousands, to learn much

train = data.tfds("fashion_mnist", split="train[:10%]", channels=1)
test = data.tfds("fashion_mnist", split="test[:20%]", channels=1)
print(f"{len(train):,} images {train[0].shape} to train on, {len(test):,} to test with")

# %% [markdown]
# ## Train
#
# `simclr` is the method, `tiny` its scale: a ResNet of 8 layers. A config has every number of a run, to be read and
# changed.

# %%
config = ssl_jax.get_config("simclr:tiny")
config.steps, config.optimizer.warmup_steps = STEPS, STEPS // 5
config.log_every, config.evaluate_every = max(STEPS // 5, 1), 0
config.augment.view.size = (24, 24)  # of a view, which takes less time than 28 x 28
run = ssl_jax.pretrain(config, train, workdir="runs/first")

# %% [markdown]
# The chance level is the loss of a network which tells nothing apart. The run is in `runs/first`: call `pretrain`
# again, and it goes on where it was. More numbers of it are in `run.metrics`.

# %% [markdown]
# ## What it was shown
#
# Images, at the left, and the two views of each that were made of it: a crop, mirrored or not, of other brightness
# and contrast. The network learns to find, for a view, the other one of the same image. So it learns to ignore what
# differs between them.


# %%
def show(rows, titles=()):
    """A grid of images: a list of lists of [height, width] or [height, width, 3]."""
    _, axes = plt.subplots(len(rows), len(rows[0]), figsize=(len(rows[0]), len(rows)), squeeze=False, dpi=60)
    for line, images in zip(axes, rows, strict=True):
        for cell, image in zip(line, images, strict=True):
            cell.imshow(image.squeeze(), cmap="gray")
            cell.set_axis_off()
    for cell, title in zip(axes[0], titles, strict=False):
        cell.set_title(title, fontsize=9)
    plt.show()


shown = np.load("runs/first/samples/views.npz")
pairs = zip(shown["original"], shown["views"], strict=True)
show([[original, *views] for original, views in pairs][:5], titles=("image", "view 1", "view 2"))

# %% [markdown]
# ## What was it worth?
#
# Labels measure the frozen features: the share of test images that their 20 nearest neighbors, or a linear
# classifier, call right. Beside them stand the best of four networks with random weights, and the pixels themselves,
# which are strong on centered gray images.

# %%
print(ssl_jax.evaluate(run.backbone, train, test))

# %% [markdown]
# ## Nearest neighbors
#
# Test images, at the left, and the training images with the most similar features.

# %%
found = ssl_jax.retrieve(run.backbone, train, test, k=6)
rows = [[test[query], *(train[int(near)] for near in found.indices[query])] for query in range(6)]
show(rows, titles=("query", *(f"{similarity:.2f}" for similarity in found.similarities[0])))

# %% [markdown]
# The numbers are the first row's cosine similarities.

# %% [markdown]
# ## Features
#
# A row of numbers for each image, for what you have in mind: search, clusters, a classifier. The weights are in
# `runs/first/backbone.safetensors`; `ssl_jax.load_backbone("runs/first")` reads them in another process.

# %%
names, features = ssl_jax.embed(run.backbone, test)
print(features.shape, features.dtype, names[0])

# %% [markdown]
# ## Then
#
# [own_images](own_images.ipynb): a folder of your own, and arrays of 16 bits and five channels.
# [own_method](own_method.ipynb): a loss of your own. [Which method](../docs/choosing.md). [Questions](../docs/faq.md)
# that many have.
