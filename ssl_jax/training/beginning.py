"""The weights that a run begins with: those of config.begin, or those that a script gives."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax import dist, models, paths
from ssl_jax.config import Config
from ssl_jax.models.adapt import named
from ssl_jax.paths import AnyPath
from ssl_jax.training import build, reading, teachers
from ssl_jax.training.build import Given
from ssl_jax.training.state import digest
from ssl_jax.weights import Backbone, find_file, load_backbone, model_in
from ssl_jax.workdir import facts, files

DIGITS = 12  # of a digest, as those of images
FITTED = ("image_size", "patch_size", "dtype")  # options of a model that need not be those of the weights


class Beginning:
    """The weights of one start of a run. They are read when `backbone` is first called.

    Args:
      config: of the run; its channels may still be open.
      workdir: of the run. Once it has a checkpoint, the weights are not needed any more. Then they are only checked.
      given: of the run. begin: weights that a script gives.
    Raises: ConfigError if there are none for a config that is made for them, if both the config and a script give some,
      for a file that is not there, and for others than those that the run in `workdir` began with.
    """

    def __init__(self, config: ConfigDict, workdir: AnyPath, given: Given, begin: Backbone | None):
        path, self._given, self._begin = config.get("begin", ""), given, begin
        if path is None and begin is None:
            raise configs.ConfigError(
                "this config trains weights further and needs some to begin with: --config.begin=FILE.safetensors, or "
                "the directory of a run; with the architecture that they are of, --config.model.name=NAME"
            )
        if path and begin is not None:
            raise configs.ConfigError(f"begin is given, and config.begin={path!r} names other weights; leave one out")
        self._goes_on = facts.has_checkpoints(workdir)
        if config.get("lora_rank") and not (path or begin or self._goes_on):
            raise configs.ConfigError(
                f"config.lora_rank={config.lora_rank} adapts weights that a run begins with, and there are none; give "
                "--config.begin=FILE.safetensors, or the directory of a run"
            )
        self._loaded: Backbone | None = None
        now: dict[str, Any] | None = None
        if begin is not None:
            now = {"name": named(begin.model), "digest": digest(begin.variables)[:DIGITS], "given": True}
        elif path and (file := find_file(path)).is_file():
            now = {"name": path, "digest": files.digest(file)[:DIGITS], "given": False}
        elif path and not self._goes_on:
            raise configs.ConfigError(f"config.begin: no file {file}{paths.looked_from(file)}")
        elif path and dist.is_first():
            print(f"the weights {path} are no longer there; the run goes on from its checkpoint without them")
        if now:
            facts.check_begin(workdir, now["digest"])
        self.facts = facts.read(workdir).get("begin") if self._goes_on else now
        """What run.json says of the weights: name, digest, and whether a script gave them. None: there are none."""

    def backbone(self, config: Config) -> Backbone | None:
        """The weights, fitted to config.model and to the images' channels; None if the run does not begin with any.

        Raises: ConfigError for weights of another architecture.
        """
        if self._goes_on or self.facts is None:
            return None
        if self._begin is not None:
            return self._begin
        self._loaded = self._loaded or load(config, self._given)
        return self._loaded


def load(config: Config, given: Given) -> Backbone:
    """The weights of config.begin, for the run's network. Raises: ConfigError for weights of another architecture."""
    path, module = config.begin or "", build.network(config, given)
    options: dict[str, Any] = dict(prefix=config.begin_prefix or None, **teachers.sizes(config, module))
    try:
        return load_backbone(path, module, **options)
    except (ValueError, FileNotFoundError) as error:
        remedy = _remedy(path, config) if given.backbone is None else ""
        raise configs.ConfigError(f"config.begin: {error}{remedy}") from error


def _remedy(path: str, config: Config) -> str:
    """What to set for the architecture that the file names; "" if it names none, or that of the config."""
    try:
        found = model_in(path)
    except (OSError, ValueError):
        return ""
    if "given" in found:
        return f"\nIt was trained with a network that a script gave: pretrain(..., backbone={found['given']})"
    if found.get("name") not in models.MODELS:
        return ""
    made = models.MODELS[found["name"]]()
    ours = {"name": config.model["name"]} | {name: getattr(made, name, None) for name in found if name != "name"}
    ours |= {name: value for name, value in config.model.items() if name in found}
    flags = [
        f"--config.model.{name}={value}"
        for name, value in sorted(configs.plain(found).items(), key=lambda item: item[0] != "name")
        if name not in FITTED and value != configs.plain(ours[name])
    ]
    return f"\nIt says that it is of {found['name']}: use {' '.join(flags)}" if flags else ""


def show(begin: Mapping[str, Any], backbone: Backbone, config: Config) -> str:
    """What is printed of the weights that a run begins with: their name, and in what they were changed."""
    lines = [f"begins with the weights {begin['name']} (digest {begin['digest']})"]
    fitted: Mapping[str, Any] = backbone.facts.get("fitted", {})
    if fitted:
        changes = (f"{name} {list(old)} -> {list(new)}" for name, (old, new) in fitted.items())
        lines += [f"  fitted to config.model and the images: {', '.join(changes)}"]
    if backbone.mean and backbone.normalization != reading.normalization(config):
        lines += [
            f"  their features need images normalized by mean {backbone.mean} and std {backbone.std}; config.data has "
            f"mean {config.data.mean} and std {config.data.std}"
        ]
    return "\n".join(lines)
