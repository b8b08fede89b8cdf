"""What the pages say about a backbone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_jax.report import names

MOST_NUMBERS = 4  # of channels that are listed


def facts(backbone: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(term, text) of what `Backbone.described` gives, with the "file" of the weights if that is known."""
    model, size = backbone.get("model", {}), backbone.get("image_size", ())
    found = {
        "Weights": [
            names.short(Path(backbone.get("file", "")).name, 60),
            f"by {names.method({'method': {'name': backbone['method']}})}" if backbone.get("method") else "",
        ],
        "Model": [model.get("name", ""), *(f"{k} {v}" for k, v in model.items() if k != "name")],
        "Images read as": [
            " × ".join(str(side) for side in (*size, backbone.get("channels", "?"))) if size else "",
            backbone.get("dtype", ""),
        ],
        "Normalized by": [
            _numbers("mean", backbone.get("mean", ())),
            _numbers("deviation", backbone.get("std", ())),
            _numbers("values", backbone.get("value_range", ())),
        ],
    }
    lines = [(term, ", ".join(str(part) for part in parts if part)) for term, parts in found.items()]
    return [(term, text) for term, text in lines if text]


def _numbers(what: str, values: Sequence[float]) -> str:
    more = " …" if len(values) > MOST_NUMBERS else ""
    return f"{what} " + " ".join(f"{value:.4g}" for value in values[:MOST_NUMBERS]) + more if values else ""
