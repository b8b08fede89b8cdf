import pytest

from ssl_jax.report import scores


def evaluation(pretrained, random, pixels, std=0.0, protocol="knn/k20_t0.07/top1"):
    subjects = {"pretrained": pretrained, "random": random, "pixels": pixels}
    return {name: {protocol: {"mean": mean, "std": std}} for name, mean in subjects.items() if mean is not None}


@pytest.mark.parametrize(
    "pretrained, random, pixels, std, gains",
    [
        (85.7, 79.3, 84.6, 0.0, ["6.4 points above the best random network", "1.1 points above raw pixels"]),
        (80.0, 85.0, 80.04, 0.0, ["5.0 points below the best random network", "level with raw pixels"]),
        (
            75.0,
            74.0,
            70.0,
            1.5,
            ["1.0 points above the best random network (within the spread over seeds)", "5.0 points above raw pixels"],
        ),
        (75.0, None, 70.0, 0.0, ["5.0 points above raw pixels"]),
    ],
)
def test_gains_in_words(pretrained, random, pixels, std, gains):
    (row,) = scores.rows(evaluation(pretrained, random, pixels, std))
    assert [str(gain) for gain in row.gains] == gains


@pytest.mark.parametrize(
    "protocol, name",
    [
        ("knn/k200_t0.07/top1", "kNN, 200 neighbors"),
        ("linear/10_per_class/top1", "Linear, 10 labels per class"),
        ("linear/all/top1", "Linear, all labels"),
        ("finetune/10_per_class/top1", "Fine-tuned, 10 labels per class"),
        ("finetune/1_percent/top1", "finetune/1_percent/top1"),
    ],
)
def test_protocols_are_named(protocol, name):
    (row,) = scores.rows(evaluation(50.0, 40.0, 30.0, protocol=protocol))
    assert row.name == name


def test_page_opens_with_one_knn_and_the_fewest_labels():
    protocols = ["knn/k20_t0.07/top1", "knn/k200_t0.07/top1"]
    protocols += [f"linear/{labels}/top1" for labels in ("10_per_class", "100_per_class", "all")]
    rows = scores.rows({"pretrained": {protocol: {"mean": 50.0} for protocol in protocols}})
    assert [row.name for row in scores.headline(rows)] == [
        "kNN, 20 neighbors",
        "Linear, 10 labels per class",
        "Linear, 100 labels per class",
    ]
    assert "saw 10 labels per class is right on 50.0%" in scores.lead(rows)


def best_of(**means):
    return scores.best_lead(scores.rows({"pretrained": {key: {"mean": mean} for key, mean in means.items()}}))


def test_the_best_of_frozen_accuracies_is_said():
    knn, linear = {"knn/k20_t0.07/top1": 60.0}, {"linear/10_per_class/top1": 55.0}
    assert best_of(**knn).startswith("A vote of the 20 most similar training images is right on 60.0% of the test")
    others = {"finetune/all/top1": 90.0, "prototypes/5_way_5_shot/top1": 80.0, "retrieval/recall_at_10": 99.0}
    assert best_of(**linear, **knn, **others).startswith("At best, a vote of the 20 most similar")
    assert best_of(**others) == ""


def test_nothing_measured_says_nothing():
    assert (scores.rows({}), scores.headline([]), scores.lead([]), scores.best_lead([])) == ([], [], "", "")


def test_the_mean_over_classes_is_kept_and_averaged_over_seeds():
    score = {"mean": 80.0, "std": 0.0, "class_mean": 61.0}
    (row,) = scores.rows({"pretrained": {"knn": score}, "random": {"knn": {**score, "class_mean": 80.0}}})
    assert row.scores["pretrained"].class_mean == 61.0 and row.scores["pretrained"].differs
    assert not row.scores["random"].differs
    both = scores.over_seeds([{"knn": scores.Score(80.0, 0.0, 61.0)}, {"knn": scores.Score(70.0, 0.0, 51.0)}])
    assert both["knn"].class_mean == 56.0
    # One evaluation was made before there was such a number.
    assert scores.over_seeds([both, {"knn": scores.Score(70.0, 0.0)}])["knn"].class_mean is None
