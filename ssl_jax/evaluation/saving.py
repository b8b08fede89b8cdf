"""What trained heads share of their files: the backbone beside them, their parameters, and what is said of both."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import numpy as np
import safetensors
import safetensors.numpy

from ssl_jax import paths
from ssl_jax.data.sources import Source
from ssl_jax.evaluation.evaluation import image_size_of
from ssl_jax.paths import AnyPath
from ssl_jax.weights import Backbone, load_backbone, save_backbone
from ssl_jax.workdir import files

T = TypeVar("T")


def save(
    directory: AnyPath, backbone: Backbone, name: str, parameters: Mapping[str, np.ndarray], said: Mapping[str, Any]
) -> None:
    """Writes backbone.safetensors with backbone.json, NAME.safetensors and NAME.json, each whole or not at all.

    Raises: ValueError for a backbone whose image size is unknown.
    """
    facts = {
        **backbone.facts,
        "model": backbone.facts.get("model", {"name": type(backbone.model).__name__}),
        "image_size": list(image_size_of(backbone, None)),
        "channels": len(backbone.mean),
        **dataclasses.asdict(backbone.normalization),
    }
    paths.make_directory(directory)
    save_backbone(directory, backbone.variables, facts)
    arrays = {called: np.ascontiguousarray(value, np.float32) for called, value in parameters.items()}
    with files.replacing(directory / f"{name}.safetensors") as file:
        file.write(safetensors.numpy.save(arrays))
    files.write(directory / f"{name}.json", as_json(said))


def load(
    directory: AnyPath,
    name: str,
    command: str,
    model: nn.Module | None,
    parse: Callable[[Backbone, Any, Mapping[str, np.ndarray]], T],
) -> tuple[Backbone, T]:
    """(the backbone, what `parse` makes of it, of NAME.json and of the parameters) of what `save` wrote.

    command: of ssl_jax, which writes such files. model: the backbone's module, if it is one of the user's.
    Raises: FileNotFoundError if there are no such files; ValueError if they are damaged, which a ValueError, KeyError
      or TypeError of `parse` shows, too.
    """
    parameters, facts = (directory / f"{name}.{ending}" for ending in ("safetensors", "json"))
    for file in (parameters, facts):
        if not file.is_file():
            raise FileNotFoundError(f"no file {file}; ssl_jax {command} --out {directory} writes it")
    backbone = load_backbone(directory, model)
    try:
        said = json.loads(paths.read_bytes(facts))
        return backbone, parse(backbone, said, safetensors.numpy.load(paths.read_bytes(parameters)))
    except (ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"the {name} in {directory} is damaged ({error!r}); copy it again, or run ssl_jax {command} again"
        ) from error


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def described(source: Source) -> dict[str, Any]:
    """What is said of the images that something was trained or measured on."""
    return {"name": source.name, "kind": type(source).__name__, "digest": source.digest(), "images": len(source)}
