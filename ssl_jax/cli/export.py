"""ssl_jax export --workdir DIR --to timm --out FILE: exports a backbone for other programs, and checks its features."""

import sys

from ssl_jax import config as configs
from ssl_jax import exporting
from ssl_jax.cli import backbones
from ssl_jax.cli.flags import read_flags, user_errors


def main(argv: list[str] | None = None) -> None:
    with user_errors():
        flags = read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax export: a backbone for other programs",
            strings={
                **backbones.FLAGS,
                "to": f"{' or '.join(exporting.WRITERS)} (required)",
                "image_size": backbones.IMAGE_SIZE,
                "out": "the file (required)",
            },
        )
        backbones.require(flags, "to", "out")
        backbone = backbones.load(flags)
        options = {"to": flags.to, "image_size": backbones.image_size(flags.image_size, backbone)}
        path = configs.call(exporting.export, options, "ssl_jax export", backbone, flags.out)
        print(f"{path}: gives the same features as the backbone")
