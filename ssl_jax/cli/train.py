"""ssl_jax train --config NAME[:SCALE[:KIND]] --workdir DIR [--config.KEY=VALUE ...]

Writes to DIR: config.json, run.json, metrics.jsonl, tensorboard/, checkpoints/, samples/, and at the end
backbone.safetensors with backbone.json. If started again with the same DIR, it continues from the newest checkpoint.
docs/operate.md says what to do where it does not.
"""

import signal
import sys

from ssl_jax import dist
from ssl_jax.cli import flags
from ssl_jax.config import ConfigError
from ssl_jax.data.pipeline import ImagesError
from ssl_jax.pretraining import pretrain
from ssl_jax.training import profiling
from ssl_jax.training.checkpoint import CheckpointError
from ssl_jax.training.config_keys import of_sections
from ssl_jax.training.progress import Diverged
from ssl_jax.training.termination import Stopped
from ssl_jax.workdir.metrics import MetricsError

WATCHDOG_SECONDS = 1800.0


def seconds_of(text: str) -> float:
    """Of --watchdog_seconds. Raises: ConfigError."""
    try:
        seconds = float(text or WATCHDOG_SECONDS)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"--watchdog_seconds={text}: give a number of seconds, or 0 for no watchdog")
    return seconds


def main(argv: list[str] | None = None) -> None:
    with (
        dist.leaving_on_error(),
        flags.user_errors(Diverged, CheckpointError, MetricsError, dist.ProcessError, ImagesError),
    ):
        given = flags.read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax train: self-supervised pre-training",
            sections=of_sections,
            strings={
                "workdir": (
                    "directory for the run's files, also gs://BUCKET/DIRECTORY or s3://BUCKET/DIRECTORY (required); a "
                    "second start with the same one goes on"
                ),
                "coordinator": (
                    "HOST:PORT of process 0, needed where neither SLURM nor a TPU pod sets it; "
                    "default: $JAX_COORDINATOR_ADDRESS"
                ),
                "num_processes": "number of processes of the run; default: $JAX_NUM_PROCESSES",
                "process_id": "number of this process, from 0; default: $JAX_PROCESS_ID",
                "profile": "START:STOP, steps of which a trace for xprof is written to profile/ in the workdir",
                "watchdog_seconds": (
                    "without progress, after which a process shows its stacks and ends with exit code "
                    f"{dist.STUCK}, to be started again; 0: never; default: {WATCHDOG_SECONDS:.0f}"
                ),
                **flags.PLATFORM,
            },
        )
        if not given.workdir:
            raise ConfigError("--workdir is missing; for example --workdir runs/first")
        flags.check_directory("workdir", flags.path("workdir", given.workdir))
        profile, watchdog_seconds = profiling.parse(given.profile), seconds_of(given.watchdog_seconds)
        dist.use_platform(given.platform)
        dist.start_processes(given.coordinator, given.num_processes, given.process_id)
        dist.check_platform()
        try:
            pretrain(given.config, workdir=given.workdir, profile=profile, watchdog_seconds=watchdog_seconds)
        except Stopped as stopped:
            if dist.is_first():
                print(stopped)
            if signal.SIGINT.name in str(stopped):
                sys.exit(130)
