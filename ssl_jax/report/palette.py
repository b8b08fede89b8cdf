"""The page's colors, and the styles by which subjects, classes and runs are told apart: by color and by shape."""

import dataclasses

# Names of the CSS variables -> colors. Colors of marks, c0 .. c9 and rest, have a contrast of 3 with the page; colors
# of text have 4.5 (WCAG 2.2, AA). Not everyone can tell ten colors apart, so each mark has a shape, too.
LIGHT = {
    "paper": "#fcfbf8",
    "panel": "#ffffff",
    "ink": "#1d1c1a",
    "muted": "#66625a",
    "rule": "#dfdbd2",
    "pretrained": "#0b5fa5",
    "random": "#b4500b",
    "pixels": "#6a6760",
    "alarm": "#a3230c",
    "c0": "#0072b2",
    "c1": "#d55e00",
    "c2": "#00875f",
    "c3": "#c0569a",
    "c4": "#b98600",
    "c5": "#2490cc",
    "c6": "#7a4fbf",
    "c7": "#7d6a00",
    "c8": "#a81e3c",
    "c9": "#3c3a36",
    "rest": "#8f8b82",
}
DARK = {
    "paper": "#15171b",
    "panel": "#1c1f24",
    "ink": "#ebe8e1",
    "muted": "#a5a198",
    "rule": "#363a41",
    "pretrained": "#6bb7f0",
    "random": "#f29a5b",
    "pixels": "#b3afa6",
    "alarm": "#ff8f78",
    "c0": "#4aa3e0",
    "c1": "#ff8a3d",
    "c2": "#35c795",
    "c3": "#e68fc6",
    "c4": "#f0bd3a",
    "c5": "#8fd3ff",
    "c6": "#b494f2",
    "c7": "#cfc04d",
    "c8": "#f0637f",
    "c9": "#f1eee7",
    "rest": "#6d6f74",
}


@dataclasses.dataclass(frozen=True)
class Mark:
    """A shape around the origin, about 14 units wide, as an SVG path."""

    d: str
    hollow: bool = False  # drawn as a line, not filled


@dataclasses.dataclass(frozen=True)
class Style:
    """How a chart draws one of several things that it compares.

    color: a name in LIGHT and DARK.
    mark: for keys beside the chart. marker: the same shape, as matplotlib names it.
    """

    color: str
    mark: Mark
    marker: str | tuple[int, int, int]
    size: float = 7.0  # of the marker, points


DISC = Mark("M-6 0A6 6 0 1 0 6 0A6 6 0 1 0-6 0Z")
OPEN_SQUARE = Mark("M-5-5H5V5H-5Z", hollow=True)

STYLES = (
    Style("c0", DISC, "o"),
    Style("c1", Mark("M-5.4-5.4H5.4V5.4H-5.4Z"), "s"),
    Style("c2", Mark("M0-7.4 6.8 5H-6.8Z"), "^"),
    Style("c3", Mark("M0-7.6 7.6 0 0 7.6-7.6 0Z"), "D"),
    Style("c4", Mark("M-7 0H7M0-7V7", hollow=True), "+"),
    Style("c5", Mark("M-5.6 0A5.6 5.6 0 1 0 5.6 0A5.6 5.6 0 1 0-5.6 0Z", hollow=True), "o"),
    Style("c6", Mark("M-5.4-5.4 5.4 5.4M-5.4 5.4 5.4-5.4", hollow=True), "x"),
    Style("c7", Mark("M0 7 6.4-4.6H-6.4Z", hollow=True), "v"),
    Style("c8", OPEN_SQUARE, "s"),
    Style("c9", Mark("M0-7V7M-6.1-3.5 6.1 3.5M-6.1 3.5 6.1-3.5", hollow=True), (6, 2, 0)),
)
SUBJECT_STYLES = {
    "pretrained": Style("pretrained", DISC, "o", size=9.0),
    "random": Style("random", Mark("M0-6.5 6.5 0 0 6.5-6.5 0Z", hollow=True), "D", size=6.5),
    "pixels": Style("pixels", OPEN_SQUARE, "s"),
}
