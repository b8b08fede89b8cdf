"""What ssl_jax predict does with what ssl_jax segment wrote: a mask for each image."""

from typing import Any

from ssl_jax import config as configs
from ssl_jax import paths
from ssl_jax.cli import backbones
from ssl_jax.cli.flags import check_directory, path
from ssl_jax.data import opening
from ssl_jax.evaluation import segmenter as segmenters


def predict_masks(flags: Any) -> None:
    """Writes a PNG for each image of --data to --out. flags: of `ssl_jax predict`. Raises: ConfigError."""
    out = path("out", flags.out)
    if out.suffix.lower() == ".csv":
        raise configs.ConfigError(
            f"--out={out}: {flags.workdir} has a segmenter, which gives a mask for each image; name a directory"
        )
    if opening.is_path(flags.data) and paths.resolved(out) == paths.resolved(paths.expanded(path("data", flags.data))):
        raise configs.ConfigError(f"--out={out}: masks would replace the images of --data; name another directory")
    if flags.windows:
        raise configs.ConfigError(f"--windows={flags.windows}: a segmenter reads whole images; leave it out")
    check_directory("out", out)
    segmenter = configs.call(segmenters.load_segmenter, {}, "--workdir", flags.workdir)
    how = {**backbones.how_to_read(segmenter.backbone), "window": 0, "split": flags.split or "train"}
    source = configs.call(opening.open_data, how, "--data", flags.data)
    count = configs.call(segmenters.write_masks, {}, "ssl_jax predict", segmenter, source, out)
    named = ((str(number), name) for number, name in enumerate(segmenter.class_names))
    values = ", ".join(number if name == number else f"{number} {name}" for number, name in named)
    print(f"{out}: {count:,} masks, whose values are {values}")
    if count < len(source):
        print(f"left out {len(source) - count:,} of {len(source):,} images that cannot be decoded; each is named above")
