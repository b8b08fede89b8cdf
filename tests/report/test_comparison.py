import json
import shutil

import numpy as np
import pytest

from ssl_jax import report
from ssl_jax.cli.report import main
from ssl_jax.report import groups, read, scores
from tests.report.conftest import finish_run, measure_run
from tests.report.pages import ATTACK, Page, edit

SECTIONS = ["worth", "training", "config", "runs"]


def make_runs(directory):
    """Two seeds of SimCLR and one of BYOL."""
    found = [measure_run(finish_run(directory / "a run")), directory / "second seed", directory / "byol"]
    for copy in found[1:]:
        shutil.copytree(found[0], copy)
    edit(found[1], "config.json", lambda config: config.update(seed=1))
    edit(found[1], "evaluation.json", lambda e: e["pretrained"]["linear/10_per_class/top1"].update(mean=77.1))
    edit(found[2], "config.json", lambda config: config["method"].update(name="byol", decay=0.99))
    edit(found[2], "evaluation.json", lambda e: e["pretrained"]["linear/10_per_class/top1"].update(mean=70.0))
    return found


def compare(runs):
    return Page(runs, write=report.write_comparison)


@pytest.fixture
def runs(tmp_path):
    return make_runs(tmp_path)


@pytest.fixture(scope="module")
def unchanged_page(tmp_path_factory):
    """The page of `runs` as they are: for those who only read it."""
    return compare(make_runs(tmp_path_factory.mktemp("unchanged")))


def said(page):
    return " ".join(page.text.split())


def test_seeds_are_one_group_and_settings_are_several(runs):
    found = groups.group_runs([read.read(run) for run in runs])
    assert [(group.name, len(group.records)) for group in found] == [("SimCLR", 2), ("BYOL", 1)]
    assert found[0].style != found[1].style


def test_groups_of_one_method_are_called_by_their_workdirs_too(runs, tmp_path):
    copies = [tmp_path / "x" / "run", tmp_path / "y" / "run"]  # of one name
    for lr, copy in enumerate(copies):
        shutil.copytree(runs[0], copy)
        edit(copy, "config.json", lambda config, lr=lr: config.update(optimizer={"lr": lr}))
    empty = tmp_path / "empty"
    empty.mkdir()
    found = groups.group_runs([read.read(run) for run in (*copies, *runs, empty)])
    called = [group.name for group in found]
    assert called == [*(f"SimCLR ({copy})" for copy in copies), f"SimCLR ({runs[0].name})", "BYOL", "empty"]


def write_metrics(run, **columns):
    lines = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_line_of_seeds_is_their_mean_in_a_band_as_far_as_all_have_come(runs):
    write_metrics(runs[0], step=[1, 2, 3, 4], loss=[4.0, 3.0, 2.0, 1.0])
    write_metrics(runs[1], step=[1, 2, 3], loss=[6.0, 2.0, None])
    line = groups.group_runs([read.read(run) for run in runs[:2]])[0].line("loss")
    np.testing.assert_array_equal(line.steps, [1, 2, 3])
    np.testing.assert_array_equal(line.values, [5.0, 2.5, np.nan])
    np.testing.assert_array_equal(line.low, [4.0, 2.0, np.nan])
    np.testing.assert_array_equal(line.high, [6.0, 3.0, np.nan])
    assert groups.group_runs([read.read(runs[0])])[0].line("loss").low is None
    assert groups.group_runs([read.read(run) for run in runs[:2]])[0].line("absent") is None
    write_metrics(runs[1], step=[], loss=[])  # not begun yet
    line = groups.group_runs([read.read(run) for run in runs[:2]])[0].line("loss")
    np.testing.assert_array_equal(line.values, [4.0, 3.0, 2.0, 1.0])


def test_scores_over_seeds_spread_as_the_seeds_do(runs):
    one = {"knn": scores.Score(80.0, 0.0), "linear": scores.Score(70.0, 0.5)}
    other = {"linear": scores.Score(73.0, 9.0)}
    found = scores.over_seeds([one, other])
    assert found["knn"] == scores.Score(80.0, 0.0)
    assert (found["linear"].mean, found["linear"].std) == (71.5, pytest.approx(3.0 / np.sqrt(2)))  # unbiased


def test_keys_that_differ_are_listed_and_no_others(runs):
    edit(runs[2], "config.json", lambda config: config["data"].update(image_size=[32, 32]))
    found = groups.differences(groups.group_runs([read.read(run) for run in runs]))
    assert found == [
        ("data.image_size", ["[28, 28]", "[32, 32]"]),
        ("method.decay", ["", "0.99"]),
        ("method.name", ["simclr", "byol"]),
    ]


def test_page_has_every_section_and_one_line_a_setting(unchanged_page):
    page = unchanged_page
    assert [attrs["id"] for tag, attrs in page.elements if tag == "section"] == SECTIONS
    assert (page.missing, page.open) == ({}, [])
    # Dots, two charts by labels, kNN, and a loss of each method.
    assert sum(tag == "svg" and "xmlns:xlink" in attrs for tag, attrs in page.elements) == 1 + 2 + 1 + 2
    assert "var(--c0)" in page.source and "var(--c1)" in page.source
    assert "var(--c2)" not in page.source


@pytest.mark.parametrize(
    "text",
    [
        "SimCLR and BYOL on Fashion-MNIST",
        # (75.1 + 77.1) / 2 and 70.0; the spread of the seeds is 1.4
        "Judged by a linear classifier that saw 10 labels per class, SimCLR is ahead: right on 76.1% of the test "
        "images, 6.1 points above BYOL.",
        "76.1± 1.4",
        "Random network, resnet8 28×28",
        "Loss of SimCLR",
        "Loss of BYOL",
        "Linear probe, by the number of labels",
        "Fine-tuned, by the number of labels",
        "method.decay",
        "second seed",
        "30 of 30",
    ],
)
def test_page_says(unchanged_page, text):
    assert text in said(unchanged_page)


def test_lead_within_the_spread_is_called_so(runs):
    edit(runs[2], "evaluation.json", lambda e: e["pretrained"]["linear/10_per_class/top1"].update(mean=75.5))
    assert "0.6 points above BYOL, no more than the spread." in said(compare(runs))


def test_best_of_each_protocol_is_marked(unchanged_page):
    source = unchanged_page.source
    marked = [cell.split("<")[0] for cell in source.split('class="ours">')[1:]]
    assert marked.count("76.1") == 1  # linear, 10 labels
    assert marked.count("85.7") == 2  # kNN, of both: they are level
    assert "70.0" not in marked


def test_runs_measured_on_different_data_have_tables_of_their_own(runs):
    edit(runs[2], "evaluation.json", lambda e: e["data"].update(name="cifar10"))
    text = said(compare(runs))
    assert "Measured on Fashion-MNIST" in text
    assert "Measured on CIFAR-10" in text
    assert "is ahead" not in text


def test_runs_of_nothing_say_what_is_missing(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    page = compare([tmp_path / "a", tmp_path / "b"])
    assert set(page.missing) == {"worth", "training"}
    assert "a and b" in page.text


def test_damaged_files_are_named_with_their_run(runs):
    (runs[1] / "evaluation.json").write_text("{")
    missing = compare(runs).missing["header"]
    assert "second seed: evaluation.json is damaged" in missing


def test_strings_from_files_stay_text(runs):
    edit(runs[1], "config.json", lambda config: config["method"].update(name=ATTACK))
    edit(runs[2], "config.json", lambda config: config["data"].update(name=ATTACK))
    edit(runs[2], "run.json", lambda facts: facts.update(devices=ATTACK, commit=ATTACK))
    edit(runs[1], "evaluation.json", lambda e: e["data"].update(name=ATTACK))
    edit(runs[1], "evaluation.json", lambda e: e["pretrained"].update({ATTACK: {"mean": 1.0, "std": 0.0}}))
    page = compare(runs)
    assert not {"script", "iframe", "object", "img"} & {tag for tag, _ in page.elements}
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert page.text.count(ATTACK) >= 8


def test_page_is_written_beside_the_first_run_or_where_it_is_told(runs, tmp_path, capsys):
    main([*map(str, runs)])
    assert capsys.readouterr().out.split("\n")[0] == str(runs[0].parent / "comparison.html")
    first = (runs[0].parent / "comparison.html").read_bytes()
    main([*map(str, runs), "--output", str(tmp_path / "other.html")])
    assert (tmp_path / "other.html").read_bytes() == first  # the same files, the same page


@pytest.mark.parametrize("again", ["a run", "a run/"])
def test_a_run_twice_is_no_comparison(measured, again):
    with pytest.raises(ValueError, match="needs two or more different runs"):
        report.write_comparison([measured, measured.parent / again])


def test_absent_run_is_told(measured, tmp_path):
    with pytest.raises(SystemExit, match="error: no directory"):
        main([str(measured), str(tmp_path / "absent")])
