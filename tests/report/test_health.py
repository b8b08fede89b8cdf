import json

import pytest

from ssl_jax.report import health, read

HEALTHY = {
    "embedding_std": 0.12,
    "rankme": 50.0,
    "embedding_dim": 64,
    "rank_limit": 64,
    "alignment": 0.3,
    "uniformity": -3.5,
    "grad_norm": 1.0,
    "data_wait": 0.02,
    "skipped_steps": 0,
}


def panels(tmp_path, **changes):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 10, **HEALTHY, **changes}) + "\n")
    return {panel.title: panel for panel in health.panels(read.read(tmp_path))}


def test_healthy_run_raises_no_alarm(tmp_path):
    found = panels(tmp_path)
    assert len(found) == 6
    assert not any(panel.alarm for panel in found.values())
    assert found["Waiting for data"].value == "2.0%"
    assert found["Uniformity"].value == "−3.5"


@pytest.mark.parametrize(
    "change, title, alarm",
    [
        ({"embedding_std": 0.03}, "Embedding spread", "collapsed"),  # a quarter of 1/8 is 0.031
        ({"rankme": 6.0}, "Effective rank (RankMe)", "partly collapsed"),
        ({"skipped_steps": 3}, "Gradient norm", "3 updates were skipped"),
        ({"data_wait": 0.11}, "Waiting for data", "config.data.threads"),
    ],
)
def test_alarm_names_what_is_wrong(tmp_path, change, title, alarm):
    found = panels(tmp_path, **change)
    assert alarm in found[title].alarm
    assert sum(bool(panel.alarm) for panel in found.values()) == 1


def test_values_never_finite_leave_the_panel_out(tmp_path):
    assert "Gradient norm" not in panels(tmp_path, grad_norm=None)


def test_unknown_dimension_leaves_the_levels_out(tmp_path):
    unknown = {name: value for name, value in HEALTHY.items() if name not in ("embedding_dim", "rank_limit")}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 10, **unknown}) + "\n")
    svgs = [panel.svg for panel in health.panels(read.read(tmp_path))]
    assert len(svgs) == 6
    assert not any("full spread" in svg for svg in svgs)
