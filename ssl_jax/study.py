"""Studies: ssl_jax study --config label_efficiency --workdir DIR [--config.KEY=VALUE ...]

What was the pre-training worth? Writes into DIR: config.json, runs/ (a workdir of ssl_jax train for each
pre-training), study.json (every measured cell), and at the end study.md with study.svg and run.json. Started again with
the same DIR it goes on where it was, and measures nothing twice.
"""

import sys
from pathlib import Path

import jax
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax import run
from ssl_jax.checkpoint import CheckpointError
from ssl_jax.data.pipeline import ImagesError
from ssl_jax.studies import STUDIES, page
from ssl_jax.studies.measure import check, measure
from ssl_jax.studies.subjects import Stopped, claim


def study(config: ConfigDict, workdir: Path) -> bool:
    """Measures what is missing and writes the page -> True, or until SIGTERM -> False, with the state saved."""
    if config.study not in STUDIES:
        raise configs.ConfigError(f"config.study={config.study!r}; {configs.nearest(config.study, list(STUDIES))}")
    module = STUDIES[config.study]
    plan = module.plan(config)
    check(config, plan.data)
    claim(workdir, config, plan.subjects)
    if not jax.config.jax_compilation_cache_dir:
        # Each cell compiles its own functions, most of them the same as another's.
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
    try:
        table = measure(config, plan.subjects, plan.data, workdir)
    except Stopped:
        return False
    conclusion = module.conclude(config, plan, table)
    path = page.write(workdir, config, plan, table, conclusion, module.picture(config, plan, table))
    print("", *page.markdown(config, plan, table), "", *conclusion, f"\nthe page is {path}", sep="\n")
    return True


def main(argv: list[str] | None = None) -> None:
    with configs.user_errors(run.Diverged, CheckpointError, ImagesError):
        flags = configs.read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax study: what pre-training is worth",
            defaults=lambda config: {},
            workdir="where the study's files go; a second start with the same one goes on (required)",
        )
        if not flags.workdir:
            raise configs.ConfigError("--workdir is missing; for example --workdir studies/label_efficiency")
        study(flags.config, Path(flags.workdir))


if __name__ == "__main__":
    main()
