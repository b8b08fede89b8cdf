"""Studies: what they conclude from known numbers, that they stop and go on, and each of them end to end."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ssl_jax import config as configs
from ssl_jax.data.sources import ArraySource, Subset
from ssl_jax.studies import STUDIES, augmentations, intervals, measure, methods, study, subjects
from ssl_jax.studies.cells import Cells
from ssl_jax.studies.convergence import steps_saved
from ssl_jax.studies.label_efficiency import at_each, labels_saved
from ssl_jax.studies.measure import Protocol
from ssl_jax.training.termination import Stopped
from tests.cli.test_train import make_folder
from tests.debian import needs_fashion_mnist, needs_stamps
from tests.flags import environment

ROOT = Path(__file__).parents[2]


def load(name, scale="smoke", **changes):
    config = configs.get_config(f"{name}:{scale}")
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    images = tmp_path_factory.mktemp("images")
    for split in ("train", "test"):
        make_folder(images / split, labeled=True)
    return images


@pytest.fixture
def small(folder):
    """A study whose only protocol is a linear probe, on the folder's two classes."""
    overrides = (
        f"data.path={folder}",
        "data.image_size=(16,16)",
        "augment.view.size=(16,16)",
        "batch_size=16",
        "steps=2",
        "evaluate_every=0",
        "model.width=0.25",
    )
    config = load("label_efficiency", pretraining="simclr:folder", overrides=overrides, seeds=(0, 1), draws=2)
    config.supervised_overrides = ("augment.view.size=(16,16)", "batch_size=16", "steps=2", "evaluate_every=0")
    config.linear.labels_per_class = (2, 4)
    config.finetune.labels_per_class = ()
    return config


# What the numbers say


def test_intervals_are_those_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(3, 1, 5), rng.normal(0, 1, 5)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    found = intervals.estimate(ours - theirs)
    np.testing.assert_allclose((found.low, found.high), (expected.low, expected.high), rtol=1e-12)


@pytest.mark.parametrize(
    "ours, theirs, expected",
    [
        # Differences 9, 10, 11: 10 -+ 4.303 / sqrt(3). Unpaired, seeds would differ by more than the subjects do.
        (
            [59.0, 80.0, 101.0],
            [50.0, 70.0, 90.0],
            "A is 10.0 points above B there (95 % interval of the difference 7.5 to",
        ),
        (
            [50.0, 70.0, 90.0],
            [59.0, 80.0, 101.0],
            "A is 10.0 points below B there (95 % interval of the difference -12.5",
        ),
        ([50.0, 70.0, 90.0], [51.0, 70.0, 88.0], "Whether A is better than B there does not show at this scale: +0.3"),
        ([60.0], [50.0], "does not show at this scale: +10.0 points (one seed, which says nothing of its uncertainty)"),
        ([50.0, 60.0], [50.0, 60.0], "does not show at this scale: +0.0 points"),
    ],
)
def test_a_difference_is_clear_reversed_or_not_clear(ours, theirs, expected):
    (sentence,) = intervals.said([intervals.compare("A", "B", np.array(ours), np.array(theirs), "there")])
    assert expected in sentence


def test_differences_hold_together():
    """Of a paired t test, and corrected for all comparisons of the page."""
    ours, theirs = np.array([59.0, 80.0, 101.0]), np.array([50.0, 70.5, 90.0])
    clear = intervals.compare("A", "B", ours, theirs, "there")
    assert clear.p_value == pytest.approx(stats.ttest_rel(ours, theirs).pvalue) and 0.003 < clear.p_value < 0.005
    alone = intervals.said(["First.", clear, "Last."])
    assert alone[0] == "First." and alone[1].endswith("3 seeds).") and alone[2] == "Last."
    many = intervals.said([clear] * 20)
    assert all(s.endswith("3 seeds), which does not hold for all 20 comparisons of this page together.") for s in many)
    same = intervals.compare("A", "B", ours, ours, "there")
    assert same.p_value == 1 and intervals.compare("A", "B", ours, ours - 1, "there").p_value == 0
    assert intervals.compare("A", "B", ours[:1], theirs[:1], "there").p_value == 1


@pytest.mark.parametrize(
    "level, expected", [(0.0, 10.0), (10.0, 10.0), (15.0, 15.0), (40.0, 30.0), (25.0, 22.5), (40.1, np.nan)]
)
def test_a_curve_is_crossed_where_it_first_reaches_the_level(level, expected):
    x, y = np.array([10.0, 20.0, 30.0, 40.0]), np.array([10.0, 20.0, 40.0, 15.0])
    np.testing.assert_equal(intervals.crossing(x, y, level), expected)


LABELS = np.array([2, 8, 32])


@pytest.mark.parametrize(
    "ours, expected",
    [
        # Random initialization reaches 42 at 2 * 4^1.2, so 1 -+ 4.303 * 0.2 / sqrt(3) powers of 4.
        # It reaches 40, 45 and 35 at 2 * 4, 2 * 4^1.5 and 2 * 4^0.5 labels: 4 times in the mean.
        ([40.0, 45.0, 35.0], "random initialization does not clearly need more labels: 4.0 times as many"),
        ([40.0, 42.0, 38.0], "random initialization needs 4.0 times as many (95 % interval 2.0 to 8.0 times, 3 seeds)"),
        ([40.0, 60.0, 60.0], "needs more than 32, the most that were given, for 2 of 3 seeds"),
        ([20.0, 20.0, 20.0], "does not clearly need more labels: 1.0 times"),
    ],
)
def test_labels_saved(ours, expected):
    random = np.tile([30.0, 40.0, 50.0], (3, 1))
    curves = np.stack([np.array(ours), np.array(ours) + 5, np.array(ours) + 9], axis=1)
    assert expected in labels_saved("SimCLR", "fine-tuned", LABELS, curves, random)


def test_gains_at_each_number_of_labels():
    clear, unclear = np.array([4.9, 5.0, 5.1]), np.array([-3.0, 0.0, 3.1])
    said = at_each("SimCLR", "random", "fine-tuned", [2, 5], np.stack([clear, clear + 1], axis=1))
    assert said == (
        "SimCLR is above random fine-tuned with each of 2 and 5 labels per class, by 5.0 to 6.0 points; each 95 % "
        "interval of the difference is above 0."
    )
    assert "by 5.0 points;" in at_each("SimCLR", "random", "fine-tuned", [2, 5], np.stack([clear, clear], axis=1))
    said = at_each("SimCLR", "random", "fine-tuned", [2, 5, 10], np.stack([clear, unclear, -clear], axis=1))
    assert said == (
        "Against random, fine-tuned, SimCLR is above with 2, is below with 10, is not clearly either with 5 labels per "
        "class."
    )


STEPS = np.array([0.0, 10.0, 20.0, 30.0])
RANDOM = np.array([[10, 20, 30, 40], [10, 22, 31, 42], [10, 18, 29, 38.0]])


@pytest.mark.parametrize(
    "curves, expected",
    [
        # Reached at 10 and a little, in place of 30.
        (
            RANDOM + np.array([0, 20, 20, 20]),
            "reaches the accuracy that random initialization ends with after 10 steps in place",
        ),
        (RANDOM + np.array([0, 20, 20, 20]), "20 steps saved (95 % interval"),
        (
            RANDOM + np.array([[0, 20, 20, 20], [0, 0, 0, 0], [0, 0, 0, 0]]),
            "that this saves steps does not show at this scale: +7",
        ),
        (RANDOM - 1, "does not reach the accuracy that random initialization ends with in 30 steps, for 3 of 3 seeds"),
    ],
)
def test_steps_saved(curves, expected):
    assert expected in steps_saved("SimCLR", 10, STEPS, curves, RANDOM)


def test_steps_lost_are_said():
    peaked = np.array([[10, 41, 39, 40], [10, 42.5, 40, 42], [10, 39, 37, 38.0]])  # it once reached its end early
    assert "steps lost (steps saved: 95 % interval" in steps_saved("SimCLR", 10, STEPS, RANDOM, peaked)


def made_up(plan, config, better, by):
    """Accuracies of 50 with some spread over seeds, `better` above all others by `by`."""
    rows = 50 + np.arange(3.0)[:, None] + np.linspace(0, 9, len(measure.measured_steps(config)))
    noise = itertools.cycle([np.array([[0.1], [-0.1], [0.0]]), np.array([[0.0], [0.1], [-0.1]])])
    return {
        subject.name: {
            protocol: rows + next(noise) + (by if subject.name == better else 0.0)
            for protocol in measure.protocols(config)
            if measure.applies(protocol, subject)
        }
        for subject in plan.subjects
    }


@pytest.mark.parametrize("by, expected", [(5.0, "points above"), (0.0, "does not show"), (-5.0, "points below")])
@pytest.mark.parametrize(
    "name, better",
    [
        ("label_efficiency", "pretrained"),
        ("convergence", "pretrained"),
        ("domain_adaptation", "both"),
        ("init", "continued"),
        ("augmentations", "all"),
        ("methods", "byol"),
    ],
)
def test_conclusions_follow_the_numbers(name, better, by, expected):
    config = load(name, seeds=(0, 1, 2))
    module = STUDIES[name]
    plan = module.plan(config)
    table = made_up(plan, config, better, by)
    said = intervals.said(module.conclude(config, plan, table))
    about = [sentence for sentence in said if plan.called(better) in sentence]
    assert about and any(expected in sentence for sentence in about), said
    for other in {"points above", "does not show", "points below"} - {expected}:
        allowed = name == "methods" or (other == "does not show" and "steps" in " ".join(about))
        assert allowed or not any(other in s for s in about if s.startswith((plan.called(better), "Whether"))), said
    module.picture(config, plan, table)


# What is compared


def test_operations_left_out_and_alone():
    config = load("augmentations", operations=())
    plan = augmentations.plan(config)
    found = {s.name: s.data.config.augment.view for s in plan.subjects if isinstance(s, subjects.Pretrained)}
    used = {"crop", "flip", "brightness", "contrast"}
    named = {f"without {name}" for name in used} | {f"{name} alone" for name in used}
    assert set(found) == named | {"all", "none", "supervised"}
    assert found["without crop"].crop_area == (1.0, 1.0) and found["without crop"].brightness == 0.6
    alone = found["crop alone"]
    assert alone.crop_area == (0.2, 1.0) and (alone.flip, alone.brightness, alone.contrast) == (0.0, 0.0, 0.0)
    assert found["all"].crop_area == (0.2, 1.0)
    turned = load("augmentations", operations=(), pretraining="simclr:tiny:microscopy")
    found = {s.name: s.data.config.augment.view for s in augmentations.plan(turned).subjects[:-3]}
    assert {"without quarter_turns", "without channel_gain", "without noise", "channel_drop alone"} < set(found)
    assert found["without channel_gain"].channel_gain == 0.0 and found["none"].quarter_turns == 0.0
    with pytest.raises(configs.ConfigError, match=r"config\.operations: \['hue'\] are not among .*crop, flip"):
        augmentations.plan(load("augmentations", operations=("crop", "hue")))


def test_supervised_pretraining_has_the_network_and_the_images(small):
    small.pretraining = "mae:tiny"
    small.overrides = ("steps=2", "data.split=train[:1%]")
    trained, supervised, *_ = STUDIES["label_efficiency"].plan(small).subjects
    ours, theirs = trained.data.config, supervised.data.config
    assert theirs.method.name == "supervised"
    assert configs.plain(ours.model) == configs.plain(theirs.model) and ours.model.name.startswith("vit")
    assert configs.plain(ours.data) == configs.plain(theirs.data)


def test_methods_share_untrained_networks_and_images():
    config = load("methods", methods=("simclr:tiny", "byol:tiny", "mae:tiny"))
    config.overrides = ("steps=2",)
    untrained = [s.name for s in methods.plan(config).subjects if isinstance(s, subjects.Untrained)]
    assert len(untrained) == 2 and untrained[0].startswith("random resnet8")
    config.methods = ("simclr:tiny", "colorization:tiny")
    with pytest.raises(configs.ConfigError, match=r"colorization.*another config\.data\.name than simclr"):
        methods.plan(config)


def test_source_and_target_need_one_network():
    config = load("domain_adaptation")
    config.source_overrides = (*config.source_overrides, "model.width=0.5")
    with pytest.raises(
        configs.ConfigError, match=r"the same network and image size, but they differ: \['width: 0\.5 -> 0\.25'\]"
    ):
        STUDIES["domain_adaptation"].plan(config)


def test_images_of_rare_classes_lose_their_label():
    images = np.zeros((6, 2, 2, 1), np.uint8)
    labels = np.array([0, 1, 2, 2, -1, 0], np.int32)
    whole = ArraySource(images, labels, class_names=("a", "b", "c"))
    few = subjects.ClassSubset(whole, [0, 2])
    assert few.class_names == ("a", "c")
    assert few.labels.tolist() == [few.read(k)[1] for k in range(6)] == [0, -1, 1, 1, -1, 0]
    assert few.digest() != subjects.ClassSubset(Subset(whole, np.arange(6)[::-1]), [0, 2]).digest()


def test_emoji_are_the_source_of_one_vendor_and_the_target_of_the_other():
    config = load("domain_adaptation", "emoji")
    plan = STUDIES["domain_adaptation"].plan(config)
    names = {s.name: s.data.config.data.name for s in plan.subjects if isinstance(s, subjects.Pretrained)}
    assert names["source"] == "emoji_google"
    assert names["target"] == names["both"] == names["supervised"] == plan.data.config.data.name == "emoji_twitter"


def test_given_weights_are_a_starting_point(small, tmp_path):
    """Those of a file, or of a pre-training of the study's own."""
    config = load("init", pretraining=small.pretraining, overrides=small.overrides)
    config.supervised_overrides = small.supervised_overrides
    config.update(given="supervised:folder", given_overrides=small.overrides)
    made = {subject.name: subject for subject in STUDIES["init"].plan(config).subjects}
    assert made["continued"].begin is made["given"] and made["pretrained"].begin is None
    mean = made["given"].backbones(0, tmp_path, None)["pretrained"].mean
    run = tmp_path / "given-0"
    config.begin = str(run)
    plan = STUDIES["init"].plan(config)
    found = {subject.name: subject for subject in plan.subjects}
    assert found["given"].backbones(0, tmp_path, None)["pretrained"].mean == mean
    assert found["continued"].data.config.begin == str(run) and plan.called("given") == f"the weights {run}"
    for name in ("pretrained", "supervised", "random"):
        assert not found[name].data.config.begin
    config.begin = str(tmp_path / "nothing.safetensors")
    with pytest.raises(configs.ConfigError, match=r"config\.begin: no file .*nothing\.safetensors"):
        STUDIES["init"].plan(config)


def test_no_two_seeds_share_draws(small):
    assert [measure.draws(small, seed) for seed in (0, 1, 5)] == [(0, 1), (2, 3), (10, 11)]


# What is refused


def test_a_config_of_pretraining_is_no_study(tmp_path):
    with pytest.raises(
        configs.ConfigError, match=r"not of a study; give one of label_efficiency, .* or use ssl_jax train"
    ):
        study.study(configs.get_config("simclr:tiny"), tmp_path / "study")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("seeds", (0, 0), r"config\.seeds must be one or more different integers in 0\.\.4294967295, got \(0, 0\)"),
        ("seeds", ("one",), r"config\.seeds must be one or more different integers in .*, got \('one',\)"),
        ("linear.labels_per_class", ("ten",), r"linear\.labels_per_class must be a tuple of integers, got \('ten',\)"),
        ("finetune.measured", ("end",), r"config\.finetune\.measured must be a tuple of integers, got \('end',\)"),
        ("draws", 0, r"config\.draws must be at least 1, got 0"),
        ("linear.labels_per_class", (), "are both empty"),
        ("linear.labels_per_class", (1,), r"labels_per_class has 1; it must be at least 2.*at most 32"),
        ("linear.labels_per_class", (33,), r"labels_per_class has 33; .* at most 32, the images of the smallest class"),
        ("finetune.measured", (0, 500), r"config\.finetune\.measured must be in 0\.\.2 \(its steps\)"),
        ("finetune.learning_rates", (), r"config\.finetune: learning_rates must be numbers above 0"),
        ("study", "label_efficency", "did you mean 'label_efficiency'"),
        ("overrides", ("optimizer.lrr=1",), r"config\.optimizer has no key 'lrr'; did you mean 'lr'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_measured_is_refused_before_any_work(small, tmp_path, key, value, message):
    small.update_from_flattened_dict({key: value})
    with pytest.raises(configs.ConfigError, match=message):
        study.study(small, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_convergence_needs_a_curve_to_the_last_step():
    config = load("convergence")
    config.finetune.measured = (0, 1)
    with pytest.raises(
        configs.ConfigError, match=r"at least one early step and the last one, 2; got \(4,\) and \(0, 1\)"
    ):
        STUDIES["convergence"].plan(config)


# Stopping and going on


def test_a_cell_is_kept_once_measured(tmp_path):
    first = Cells(tmp_path / "study.json")
    assert first.measure("a", lambda: {"accuracies": [(1.0,)]}) == {"accuracies": [[1.0]]}
    with pytest.raises(ZeroDivisionError):
        first.measure("b", lambda: 1 / 0)
    again = Cells(tmp_path / "study.json")
    assert again.measure("a", lambda: pytest.fail("measured twice")) == {"accuracies": [[1.0]]}
    assert json.loads((tmp_path / "study.json").read_text()) == {"a": {"accuracies": [[1.0]]}}


def test_stopped_anywhere_no_cell_is_measured_twice(small, tmp_path, monkeypatch):
    plan = STUDIES["label_efficiency"].plan(small)
    pixels = [subject for subject in plan.subjects if isinstance(subject, subjects.Pixels)]
    for name in ("unbroken", "stopped"):
        subjects.claim(tmp_path / name, small, plan.subjects)
    expected = measure.measure(small, pixels, plan.data, tmp_path / "unbroken")
    probe, probed, left = measure.linear.linear_probe, [], []

    def until_stopped(*arguments, per_class, seeds, **options):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        probed.append((per_class, seeds))
        return probe(*arguments, per_class=per_class, seeds=seeds, **options)

    monkeypatch.setattr(measure.linear, "linear_probe", until_stopped)
    for cells in (1, 2):
        left[:] = range(cells)
        with pytest.raises(KeyboardInterrupt):
            measure.measure(small, pixels, plan.data, tmp_path / "stopped")
    left[:] = range(4)
    found = measure.measure(small, pixels, plan.data, tmp_path / "stopped")
    assert probed == [(2, (0, 1)), (4, (0, 1)), (2, (2, 3)), (4, (2, 3))]
    assert (tmp_path / "stopped" / "study.json").read_bytes() == (tmp_path / "unbroken" / "study.json").read_bytes()
    for protocol, values in expected["pixels"].items():
        assert values.shape == (2, 1)
        np.testing.assert_array_equal(found["pixels"][protocol], values)
    assert set(found["pixels"]) == {Protocol("linear", 2), Protocol("linear", 4)}


def test_another_study_in_the_same_directory_is_refused(small, tmp_path, monkeypatch):
    def asked_to_stop(*arguments, **options):
        raise Stopped("stopped by SIGTERM")

    monkeypatch.setattr(subjects, "pretrain", asked_to_stop)
    with pytest.raises(Stopped):
        study.study(small, tmp_path)
    assert not (tmp_path / "study.md").exists()
    small.draws = 3
    with pytest.raises(configs.ConfigError, match=r"study\.draws: 2 -> 3\nuse another --workdir"):
        study.study(small, tmp_path)
    small.draws = 2
    small.overrides = (*small.overrides, "optimizer.lr=0.5")
    with pytest.raises(configs.ConfigError, match=r"pretraining\.pretrained\.optimizer\.lr: 0\.004 -> 0\.5"):
        study.study(small, tmp_path)


# The programs, as a user starts them


def start(name, workdir):
    return subprocess.Popen(
        [sys.executable, "-m", "ssl_jax", "study", f"--config={name}:smoke", f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_whole(name, workdir):
    process = start(name, workdir)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    return output


def check_what_is_left(name, workdir):
    """That it is what docs/studies.md says."""
    assert {"config.json", "run.json", "study.json", "study.md", "study.svg", "runs"} <= set(os.listdir(workdir))
    page = (workdir / "study.md").read_text()
    assert "does not show at this scale" in page and "| pre-training |" in page and "Versions: python" in page
    config = load(name)
    plan = STUDIES[name].plan(config)
    cells = [p for p in measure.protocols(config) for s in plan.subjects if measure.applies(p, s)]
    found = json.loads((workdir / "study.json").read_text())
    assert len(found) == len(cells) * len(config.seeds)
    shape = (config.draws, len(measure.measured_steps(config)))
    for key, cell in found.items():
        assert np.shape(cell["accuracies"]) == (shape if "fine-tuned" in key else (config.draws, 1))


@pytest.mark.slow
@needs_fashion_mnist
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_stamps if name == "domain_adaptation" else ())
        for name in sorted(STUDIES.keys() - {"convergence"})  # which is run below
    ],
)
def test_every_study_ends(name, tmp_path):
    run_whole(name, tmp_path)
    check_what_is_left(name, tmp_path)


@pytest.mark.slow
@needs_fashion_mnist
def test_killed_it_goes_on_and_ends_the_same(tmp_path):
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    run_whole("convergence", unbroken)
    check_what_is_left("convergence", unbroken)
    for cells, kill in ((0, signal.SIGTERM), (2, signal.SIGKILL)):
        process = start("convergence", killed)
        while process.poll() is None and (not (killed / "runs").exists() or count(killed) < cells):
            time.sleep(0.1)
        process.send_signal(kill)
        process.communicate(timeout=300)
    before = count(killed)
    output = run_whole("convergence", killed)
    assert before >= 2 and "cell 1 of 6" in output
    for name in ("study.json", "study.svg"):
        assert (killed / name).read_bytes() == (unbroken / name).read_bytes(), name
    pages = [(path / "study.md").read_text().splitlines() for path in (killed, unbroken)]
    # The clone's commit may be another by now.
    without = [[line for line in page if not line.startswith("Versions:")] for page in pages]
    assert without[0] == without[1]


def count(workdir):
    path = workdir / "study.json"
    return len(json.loads(path.read_text())) if path.exists() else 0
