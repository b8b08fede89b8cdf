"""The model card of an exported backbone: how to use it, how it was trained, and what it was worth."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ssl_jax.evaluation import cache
from ssl_jax.exporting.timm_names import TimmForm
from ssl_jax.paths import AnyPath
from ssl_jax.report import names, scores
from ssl_jax.weights import Backbone
from ssl_jax.workdir import files

FRONT = """\
---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- image-feature-extraction
- timm
- transformers
- self-supervised-learning
- ssl_jax
---
"""
SECTIONS = ("method", "optimizer", "model")  # of config.json


def model_card(form: TimmForm, size: tuple[int, int], workdir: AnyPath | None) -> str:
    """README.md, with the front matter of Hugging Face's cards.

    Args:
      size: (height, width) of the images.
      workdir: of the run that trained the backbone. From its config.json and run.json comes the recipe, and from its
        evaluation.json what the features are worth, if that was measured with these weights. None: the card has only
        what the backbone's own file says.
    """
    config, run, evaluation = (_read(workdir, name) for name in ("config.json", "run.json", "evaluation.json"))
    method = names.method(config) or str(form.backbone.facts.get("method", ""))
    parts = [
        FRONT,
        f"# {form.name}{f', pre-trained by {method}' if method else ''}\n",
        f"A backbone: images in, {form.backbone.dim} features out.\n",
        _use(form, size),
        _recipe(form.backbone, method, config, run),
        _worth(form.reference, evaluation),
    ]
    return "\n".join(part for part in parts if part)


def _read(workdir: AnyPath | None, name: str) -> dict[str, Any]:
    """A file of a run; {} if there is none. Raises: ConfigError for a damaged one."""
    path = workdir and workdir / name
    return files.load(path, lambda text: dict(json.loads(text))) if path and path.exists() else {}


def _use(form: TimmForm, size: tuple[int, int]) -> str:
    backbone = form.backbone
    numbers = backbone.normalization
    rows = [
        ("network", f"`{form.call}`, with these weights"),
        ("size", f"{size[0]} x {size[1]} pixels (height, width)"),
        ("channels", len(backbone.mean)),
        ("values", f"in 0..1, from {numbers.dtype} in {_listed(numbers.low)}..{_listed(numbers.high)}"),
        ("mean, then subtracted", _listed(backbone.mean)),
        ("standard deviation, then divided by", _listed(backbone.std)),
    ]
    return f"""\
## Use

```python
import timm
model = timm.create_model("local-dir:DIRECTORY", pretrained=True, num_classes=0).eval()

import transformers  # gives the features as pooler_output
model = transformers.AutoModel.from_pretrained("DIRECTORY").eval()

import ssl_jax  # normalizes the images itself
backbone = ssl_jax.load_backbone("DIRECTORY")
```

What it is, and the images that it takes:

{_table(("what", "value"), rows)}
"""


def _recipe(backbone: Backbone, method: str, config: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    facts = backbone.facts
    source: Mapping[str, Any] = run.get("source") or facts.get("source") or {}
    rows: list[tuple[str, Any]] = [
        ("method", method),
        ("data", names.data(config, run) or names.measured(source)),
        ("kind of data", source.get("kind")),
        ("digest of the data", source.get("digest")),
        ("images", run.get("num_images")),
        ("steps", facts.get("step") or config.get("steps")),
        ("epochs", config.get("epochs")),
        ("batch size", config.get("batch_size")),
        ("seed", config.get("seed")),
        ("devices", run.get("devices")),
        ("commit of ssl_jax", run.get("commit")),
        *((name, f"`{json.dumps(config[name])}`") for name in SECTIONS if config.get(name)),
    ]
    known = [(name, value) for name, value in rows if value]
    return f"## Recipe\n\n{_table(('what', 'value'), known)}\n" if known else ""


def _worth(backbone: Backbone, evaluation: Mapping[str, Any]) -> str:
    """Of evaluation.json, unless it was measured with other weights."""
    rows = scores.rows(evaluation)
    if not rows or evaluation.get("backbone_sha256") != cache.checksum(backbone.variables):
        return ""
    data = evaluation["data"]
    subjects = [subject for subject in scores.SUBJECTS if any(subject in row.scores for row in rows)]
    cells = [
        (f"{row.name} (`{row.protocol}`)", *(_score(row.scores.get(subject)) for subject in subjects)) for row in rows
    ]
    sizes = f"{data['train_images']} training and {data['test_images']} test images"
    return f"""\
## What the features are worth

On {names.measured(data)}, {sizes}, in percent, ± the standard deviation over seeds:

{_table(("protocol", *(scores.SUBJECTS[subject] for subject in subjects)), cells)}
"""


def _score(score: scores.Score | None) -> str:
    if score is None:
        return ""
    return f"{score.mean:.1f} ± {score.std:.1f}" if score.std else f"{score.mean:.1f}"


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """In Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def published(backbone: Backbone, size: tuple[int, int]) -> dict[str, Any]:
    """The `meta` of weights.save_backbone, without paths of the machine that the run was on."""
    facts: dict[str, Any] = dict(backbone.facts)
    if source := facts.get("source"):
        facts["source"] = {**source, "name": names.measured(source)}
    return facts | {
        "image_size": [*size],
        "channels": len(backbone.mean),
        **dataclasses.asdict(backbone.normalization),
    }
