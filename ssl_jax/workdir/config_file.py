"""config.json: the resolved config of a run. The workdir belongs to that config."""

import jax
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax import dist, paths
from ssl_jax.paths import AnyPath
from ssl_jax.workdir.files import load, write

NAME = "config.json"


def claim(workdir: AnyPath, config: ConfigDict) -> None:
    """Claims `workdir` for this config.

    Raises: ConfigError if it belongs to another config, with the differences; and if the processes of this run do not
      share it.
    """
    path, before = workdir / NAME, saved(workdir)
    if before is not None:
        differences = configs.differences(before, _completed(config))
        if differences:
            listed = "\n  ".join(differences)
            raise configs.ConfigError(
                f"{workdir} holds a run with another config (there -> here):\n  {listed}\n"
                "use another --workdir, or the same config to go on with that run"
            )
    dist.wait_for_all("workdir read")
    if dist.is_first():
        paths.make_directory(workdir)
        write(path, configs.dumps(config))
    dist.wait_for_all("workdir claimed")
    if not path.exists():
        raise configs.ConfigError(
            f"process 0 has made {path}, and process {jax.process_index()} does not see it; --workdir must be on a "
            "file system that all machines share"
        )


def saved(workdir: AnyPath) -> ConfigDict | None:
    """The config of the run in `workdir`; None if it holds none."""
    path = workdir / NAME
    return _completed(load(path, configs.loads)) if path.exists() else None


def _completed(config: ConfigDict) -> ConfigDict:
    """The config, with defaults for keys that were added to the base config after this one was written."""
    return ConfigDict(configs.plain(configs.base_config()) | configs.plain(config))


def read_config(workdir: AnyPath) -> ConfigDict:
    """The config of the run in `workdir`. Raises: ConfigError if there is none."""
    found = saved(workdir)
    if found is None:
        raise configs.ConfigError(f"{workdir} holds no run (there is no {workdir / NAME}); make one with ssl_jax train")
    return found
