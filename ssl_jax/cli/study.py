"""ssl_jax study --config label_efficiency --workdir DIR [--config.KEY=VALUE ...]: see studies/study.py."""

import sys

from ssl_jax import config as configs
from ssl_jax.cli.flags import PLATFORM, check_directory, on_disk, read_flags, start_devices, user_errors
from ssl_jax.data.pipeline import ImagesError
from ssl_jax.studies.study import study
from ssl_jax.training import progress
from ssl_jax.training.checkpoint import CheckpointError
from ssl_jax.training.termination import Stopped


def main(argv: list[str] | None = None) -> None:
    with user_errors(progress.Diverged, CheckpointError, ImagesError):
        flags = read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax study: what pre-training is worth",
            sections=lambda config: {},
            strings={
                "workdir": "directory for the study's files (required); a second start with the same one goes on",
                **PLATFORM,
            },
        )
        if not flags.workdir:
            raise configs.ConfigError("--workdir is missing; for example --workdir studies/label_efficiency")
        workdir = on_disk("workdir", flags.workdir)
        check_directory("workdir", workdir)
        start_devices(flags.platform)
        try:
            study(flags.config, workdir)
        except Stopped as stopped:
            print(stopped)
