# %% [markdown]
# ## Install
#
# The next cell does nothing where ssl_jax is installed. In Colab it installs ssl_jax with the JAX that the machine
# needs (CPU, NVIDIA GPU or TPU), and programs that get the images. Say where the repository is. Where Colab then asks
# to restart the session, do so.

# %%
import importlib.util
import subprocess
import sys
from glob import glob

SSL_JAX = "file:///content/ssl_jax"  # of a clone, or "git+https://..." of the repository

if importlib.util.find_spec("ssl_jax") is None:
    gpu, tpu = glob("/dev/nvidia[0-9]*"), glob("/dev/accel[0-9]*") + glob("/dev/vfio/[0-9]*")
    plugin = "cuda12" if gpu else "tpu" if tpu else ""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", f"ssl_jax[{plugin}] @ {SSL_JAX}"], check=True)
    if "google.colab" in sys.modules:
        subprocess.run("apt-get -qq update && apt-get -qq install npm dataset-fashion-mnist", shell=True, check=True)
