"""What the configs of all studies share, and what a study is."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.studies.subjects import Data, Subject


def base_config(study: str) -> ConfigDict:
    """The keys that every study's config has. A study's own keys name its pre-trainings."""
    return ConfigDict(
        dict(
            study=study,
            seeds=(0, 1, 2),  # each is a pre-training with its own label draws
            draws=2,  # of labels, for each seed
            linear=dict(labels_per_class=()),  # at least 2 each; empty: no linear probe
            finetune=dict(
                labels_per_class=(),  # empty: no fine-tuning
                steps=100,
                batch_size=64,
                learning_rates=(1e-3, 3e-3),  # the best on held-out labels is taken
                crop_area=(0.5, 1.0),  # of the augmentation, which also mirrors
                measured=(),  # steps; empty: the last one
            ),
        )
    )


def tiny_pretraining(steps: int = 300) -> dict[str, Any]:
    """SimCLR, and beside it supervised pre-training, on Fashion-MNIST for a minute; 2,000 test images."""
    overrides = (f"steps={steps}", "evaluate_every=0", "log_every=50", "data.test_split=test[:20%]")
    return dict(
        pretraining="simclr:tiny",
        overrides=overrides,  # "KEY=VALUE" of its config
        supervised="supervised:tiny",  # it gets the same network and images
        supervised_overrides=overrides,
    )


def smoke_pretraining() -> dict[str, Any]:
    """A pre-training of next to nothing, for tests."""
    overrides = (
        "steps=2",
        "batch_size=16",
        "evaluate_every=0",
        "model.width=0.25",
        "model.stages=(1,)",
        "data.split=train[:1%]",
        "data.test_split=test[:2%]",
    )
    return tiny_pretraining() | dict(overrides=overrides, supervised_overrides=overrides)


@dataclasses.dataclass(frozen=True)
class Plan:
    """subjects: what is compared; no two have the same name. data: what they are measured on. names: subject -> its
    name in sentences."""

    subjects: tuple[Subject, ...]
    data: Data
    names: dict[str, str] = dataclasses.field(default_factory=dict)

    def called(self, subject: str) -> str:
        return self.names.get(
            subject, {"random": "random initialization", "pixels": "raw pixels"}.get(subject, subject)
        )
