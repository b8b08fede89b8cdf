"""The page of a fine-tuned network."""

import numpy as np
import pytest

from ssl_jax.report import tuned
from tests.report.pages import ATTACK, Page

FACTS = {
    "train": {"name": ATTACK, "kind": "Folder", "digest": "abc", "images": 120},
    "test": {"name": ATTACK, "kind": "Folder", "digest": "def", "images": 40},
    "trained": "all weights",
    "began_with": {"model": {"name": "resnet18"}, "method": "simclr"},
}
TRAINING = {"labels": 100, "steps": 200, "learning_rate": 1e-3, "held_out_error": {"0.01": None, "0.001": 0.25}}
RNG = np.random.default_rng(0)


def made(kind):
    """What `tuned.render` takes."""
    truth = RNG.normal(100, 10, (40, 2)).astype(np.float32)
    if kind == "classes":
        labels = np.arange(40) % 3
        outputs = np.eye(3)[np.where(np.arange(40) == 4, 2, labels)]
        scores = {"test_images": 40, "top1": 97.5, "class_mean": 97.4, "majority": 35.0}
        return kind, ("cat", ATTACK, "n" * 80), TRAINING | scores, FACTS, (outputs, labels)
    if kind == "multilabel":
        found = {"test_images": 40, "map": 81.0, "auroc": 90.0, "outputs": {"a": {"map": 0.81, "auroc": 0.9}}}
        return kind, ("a", "rare"), TRAINING | found, FACTS, (truth, (truth > 100).astype(np.float32))
    if kind == "regression":
        truth[:5, 0] = np.nan
        found = {"r2": 71.0, "outputs": {"age": {"r2": 0.71, "mae": 3.25}}, "test_images": 40}
        return kind, ("age", "size"), TRAINING | found, FACTS, (truth + 1, truth)
    scores = {"labels": 100, "penalty": 1.0}
    return "classes", ("a", "b"), scores, FACTS | {"test": None}, None


@pytest.mark.parametrize("kind", ["classes", "multilabel", "regression", "untested"])
def test_the_page_holds_what_was_measured(kind, tmp_path):
    given = made(kind)
    page = Page(given, lambda one: _written(tmp_path / "report.html", tuned.render(*one)))
    assert page.open == []
    assert not [tag for tag, _ in page.elements if tag in ("script", "link")]
    assert ATTACK in page.text and "120 of" in page.text
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    expected = {
        "classes": ["confusion", "rates"],
        "multilabel": ["scores", "rates"],
        "regression": ["scores", "predictions", "rates"],
        "untested": [],
    }
    assert sections == expected[kind]
    words = {
        "classes": ("97.5% of 40 test images", "The largest class alone has 35.0%", "97.4%", "0.001", "diverged"),
        "multilabel": ("Mean average precision is 81.0%", "not known: rare", "90.0%"),
        "regression": ("71.0% of the variance", "3.25", "mean squared error", "not known: size"),
        "untested": ("nothing is measured",),
    }
    for text in words[kind]:
        assert text in page.text


def test_of_many_classes_those_with_the_most_mistakes_are_shown():
    labels = np.arange(40) % 20
    outputs = np.eye(20)[np.where(labels == 3, 4, labels)]
    scores = {"test_images": 40, "top1": 95.0, "class_mean": 95.0, "majority": 5.0}
    names = tuple(f"class {i}" for i in range(20))
    page = tuned.render("classes", names, TRAINING | scores, FACTS, (outputs, labels))
    assert "The 12 of 20 classes with the most mistakes. Most often class 3 for class 4 (100%)." in " ".join(
        page.split()
    )


def _written(path, text):
    path.write_text(text)
    return path
