"""The page about a segmenter: how well it names the class of each pixel, and some of its masks."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ssl_jax.report import images, names, templates
from ssl_jax.report.palette import DARK, LIGHT

SIDE = 224  # of a picture, in pixels
COLORS = tuple(f"c{number}" for number in range(10))  # names in LIGHT and DARK; further classes begin again
LARGEST = "rest"  # color of the class with the most pixels, which mostly is the background


@dataclasses.dataclass(frozen=True)
class Segmented:
    """What the page shows.

    Attributes:
      name: of the images.
      class_names: one for each class.
      scores: as scores.json of `ssl_jax segment` has them, with those of the test.
      facts: of the backbone.
      image_names, images: of some test images, gray or red, green and blue.
      truth: the class of each pixel; 255 where it is not counted.
      predicted: the class of each pixel.
    """

    name: str
    class_names: Sequence[str]
    scores: Mapping[str, Any]
    facts: Mapping[str, Any]
    image_names: Sequence[str]
    images: UInt8[np.ndarray, "images height width shown"]
    truth: UInt8[np.ndarray, "images height width"]
    predicted: UInt8[np.ndarray, "images height width"]


@dataclasses.dataclass(frozen=True)
class Row:
    """Of a class: its color and, in percent, its IoU (None if no pixel has it), its share of the pixels, and the IoU
    where every pixel is called of the largest class."""

    name: str
    color: str
    iou: float | None
    share: float
    baseline: float | None


def render(found: Segmented) -> str:
    """The page as HTML."""
    colors = _colors(found)
    return templates.render(
        "segmentation.html.jinja",
        title=names.DATA_NAMES.get(found.name, Path(found.name).name or found.name),
        lead=_lead(found),
        facts=_facts(found),
        scores=found.scores,
        rows=_rows(found, colors),
        pixelated=images.css_class(found.images),
        samples=[
            (name, images.data_uri(image, SIDE), _picture(truth, colors), _picture(predicted, colors))
            for name, image, truth, predicted in zip(
                found.image_names, found.images, found.truth, found.predicted, strict=True
            )
        ],
    )


def _lead(found: Segmented) -> str:
    scores, largest = found.scores, found.scores["majority"]
    lead = (
        f"Mean IoU {scores['mean_iou']:.1f}% over {len(found.class_names)} classes; {scores['pixel_accuracy']:.1f}% of "
        f"the pixels are right. Calling every pixel {names.short(largest['class'], 60)} gives "
        f"{largest['mean_iou']:.1f}% and {largest['percent']:.1f}%."
    )
    better = scores["mean_iou"] > largest["mean_iou"]
    return lead if better else f"{lead} The head is no better than that."


def _facts(found: Segmented) -> list[tuple[str, str]]:
    """(term, text) of the page's head."""
    scores = found.scores
    model, method = found.facts.get("model", {}).get("name", ""), found.facts.get("method", "")
    height, width = scores["image_size"]
    kinds = {"linear": "linear, on each patch", "conv": "convolutional, on 3 × 3 patches"}
    facts = [
        ("Images", f"{scores['train_images']:,} for training, {scores['test_images']:,} for testing"),
        ("Backbone", ", ".join([*filter(None, (model, method)), "frozen"])),
        ("Head", kinds[scores["head"]]),
        ("Image size", f"{height:,} × {width:,} pixels; scores count pixels of this size"),
        ("Training", f"{scores['steps']:,} steps; learning rate {scores['learning_rate']:g}, chosen on a fifth"),
    ]
    if count := scores["images_without_mask"]:
        facts.append(("Left out", f"{count:,} without a mask"))
    return facts


def _rows(found: Segmented, colors: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    for name, color in zip(found.class_names, colors, strict=True):
        scores = found.scores["classes"][name]
        largest = name == found.scores["majority"]["class"]
        baseline = scores["percent"] if largest else 0.0 if scores["percent"] else None
        rows.append(Row(name, color, scores["iou"], scores["percent"], baseline))
    return rows


def _colors(found: Segmented) -> list[str]:
    """The name of each class's color."""
    largest = list(found.class_names).index(found.scores["majority"]["class"])
    others = [number for number in range(len(found.class_names)) if number != largest]
    of_class = {number: COLORS[place % len(COLORS)] for place, number in enumerate(others)} | {largest: LARGEST}
    return [of_class[number] for number in range(len(found.class_names))]


def _picture(mask: UInt8[np.ndarray, "height width"], colors: Sequence[str]) -> tuple[str, str]:
    """The mask on a light and on a dark page. Pixels that are not counted have the page's color."""
    found: list[str] = []
    for palette in (LIGHT, DARK):
        table = np.full((256, 3), _rgb(palette["paper"]), np.uint8)
        table[: len(colors)] = [_rgb(palette[name]) for name in colors]
        found.append(images.data_uri(table[mask], SIDE))
    return found[0], found[1]


def _rgb(color: str) -> list[int]:
    return list(bytes.fromhex(color.removeprefix("#")))
