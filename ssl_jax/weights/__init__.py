"""Backbones as safetensors files, with timm's and torchvision's names and layouts of tensors.

So timm loads a saved backbone: `timm.create_model("resnet50", num_classes=0).load_state_dict(load_file(...))`.
The file's own header says how to use it (architecture, normalization). backbone.json beside the file says the same to
people and other programs. Nothing is ever unpickled.
"""

from ssl_jax.weights.adapting import INFLATIONS
from ssl_jax.weights.backbone import Backbone, Variables
from ssl_jax.weights.header import FILE, save_backbone
from ssl_jax.weights.loading import find_file, load_backbone, model_in
from ssl_jax.weights.names import from_torch, torch_axes, torch_name, torch_tensors

__all__ = [
    "FILE",
    "INFLATIONS",
    "Backbone",
    "Variables",
    "find_file",
    "from_torch",
    "load_backbone",
    "model_in",
    "save_backbone",
    "torch_axes",
    "torch_name",
    "torch_tensors",
]
