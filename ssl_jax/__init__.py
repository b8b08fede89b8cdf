"""Self-supervised pre-training of image backbones in JAX.

import ssl_jax
from ssl_jax import data, losses, methods

config = ssl_jax.get_config("simclr:tiny")                  # of a method, at a scale
run = ssl_jax.pretrain(config, images, workdir="runs/own")  # images: an array, a folder, any object with items
print(ssl_jax.evaluate(run.backbone, train, test))
names, h = ssl_jax.embed(run.backbone, images)
found = ssl_jax.retrieve(run.backbone, images, queries)     # found.names, found.indices, found.similarities
tuned = ssl_jax.finetune(run.backbone, train, test)         # tuned.classifier, tuned.scores
found = ssl_jax.segment(run.backbone, data.masked(images, masks))  # found.segmenter, found.scores
ssl_jax.export(run.backbone, "backbone.onnx", to="onnx")
backbone = ssl_jax.load_backbone("runs/own")                # in another process
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_jax.config import get_config
    from ssl_jax.evaluation.classifier import finetune, load_classifier, predict
    from ssl_jax.evaluation.embedding import embed
    from ssl_jax.evaluation.evaluate import evaluate
    from ssl_jax.evaluation.neighbors import retrieve
    from ssl_jax.evaluation.segmenter import load_segmenter
    from ssl_jax.evaluation.segmenting import segment
    from ssl_jax.exporting import export
    from ssl_jax.pretraining import Run, pretrain
    from ssl_jax.weights import load_backbone

__all__ = [
    "Run",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "get_config",
    "load_backbone",
    "load_classifier",
    "load_segmenter",
    "predict",
    "pretrain",
    "retrieve",
    "segment",
]
__version__ = "0.1.0"

# Name -> its module, imported at its first use, so that a command waits only for what it uses.
_MODULES = {
    "Run": "ssl_jax.pretraining",
    "embed": "ssl_jax.evaluation.embedding",
    "evaluate": "ssl_jax.evaluation.evaluate",
    "export": "ssl_jax.exporting",
    "finetune": "ssl_jax.evaluation.classifier",
    "get_config": "ssl_jax.config",
    "load_backbone": "ssl_jax.weights",
    "load_classifier": "ssl_jax.evaluation.classifier",
    "load_segmenter": "ssl_jax.evaluation.segmenter",
    "predict": "ssl_jax.evaluation.classifier",
    "pretrain": "ssl_jax.pretraining",
    "retrieve": "ssl_jax.evaluation.neighbors",
    "segment": "ssl_jax.evaluation.segmenting",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ssl_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
