"""ssl_jax embed --workdir DIR --data DATA --out FILE.npz
ssl_jax embed --backbone FILE [--model NAME] --data DATA --out FILE.parquet

For each image that can be decoded, writes its name, its label if there are labels, and its features.
"""

import sys

from ssl_jax import config as configs
from ssl_jax.cli import backbones
from ssl_jax.cli.flags import check_file, path, read_flags, start_devices, user_errors
from ssl_jax.data import opening, pipeline
from ssl_jax.evaluation import embedding


def main(argv: list[str] | None = None) -> None:
    with user_errors(pipeline.ImagesError):
        flags = read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax embed: the features of images, in a file",
            strings={
                **backbones.FLAGS,
                "data": f"{backbones.DATA} (required)",
                "split": "split of the data; default: train",
                "image_size": backbones.IMAGE_SIZE,
                "windows": backbones.WINDOWS,
                "out": "file to write, .npz or .parquet (required)",
            },
        )
        backbones.require(flags, "data", "out")
        out = path("out", flags.out)
        configs.call(embedding.check_format, {}, "--out", out)
        check_file("out", out)
        start_devices(flags.platform)
        backbone = backbones.load(flags)
        options = {"split": flags.split or "train", **backbones.how_to_read(backbone)}
        source = configs.call(opening.open_data, options, "--data", flags.data)
        backbone = backbones.for_images(backbone, source)
        options = {"image_size": backbones.image_size(flags.image_size, backbone), "windows": flags.windows or "mean"}
        found = configs.call(embedding.embeddings, options, "ssl_jax embed", backbone, source)
        found.save(out)
        print(f"{out}: {len(found.names):,} images, {found.features.shape[1]} features each")
        backbones.print_left_out(source, found.names, flags.windows)
