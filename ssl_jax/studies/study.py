"""Studies: ssl_jax study --config label_efficiency --workdir DIR [--config.KEY=VALUE ...]

What was the pre-training worth? Writes into DIR: config.json, runs/ (a workdir of ssl_jax train for each
pre-training), study.json (every measured cell), and at the end study.md with study.svg and run.json. If it is started
again with the same DIR, it goes on where it was, and measures nothing twice.
"""

from pathlib import Path

from ml_collections import ConfigDict

from ssl_jax import compiled
from ssl_jax import config as configs
from ssl_jax.studies import STUDIES, intervals, page
from ssl_jax.studies.measure import check, measure
from ssl_jax.studies.subjects import claim


def study(config: ConfigDict, workdir: Path) -> None:
    """Measures what is missing and writes the page. Raises: Stopped, after SIGTERM or Ctrl-C, with the state saved."""
    if "study" not in config:
        raise configs.ConfigError(
            f"this config is not of a study; give one of {', '.join(STUDIES)}, or use ssl_jax train"
        )
    if config.study not in STUDIES:
        raise configs.ConfigError(
            f"config.study={config.study!r} is unknown; {configs.nearest(config.study, list(STUDIES))}"
        )
    module = STUDIES[config.study]
    plan = module.plan(config)
    check(config, plan.data)
    claim(workdir, config, plan.subjects)
    compiled.keep()  # each cell compiles its own functions; most of them equal another cell's
    table = measure(config, plan.subjects, plan.data, workdir)
    conclusion = intervals.said(module.conclude(config, plan, table))
    path = page.write(workdir, config, plan, table, conclusion, module.picture(config, plan, table))
    print("", *page.markdown(config, plan, table), "", *conclusion, f"\nthe page is {path}", sep="\n")
