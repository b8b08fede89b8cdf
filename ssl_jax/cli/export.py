"""ssl_jax export --workdir DIR --to timm --out PATH: exports a backbone for other programs, and checks its features."""

import sys

from ssl_jax import config as configs
from ssl_jax import exporting
from ssl_jax.cli import backbones
from ssl_jax.cli.flags import check_file, on_disk, read_flags, start_devices, user_errors


def main(argv: list[str] | None = None) -> None:
    with user_errors():
        flags = read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax export: a backbone for other programs",
            strings={
                **backbones.FLAGS,
                "to": f"format, {' or '.join(exporting.WRITERS)} (required)",
                "image_size": backbones.IMAGE_SIZE,
                "out": "file to write, or for hf a new directory (required)",
            },
        )
        backbones.require(flags, "to", "out")
        out = on_disk("out", flags.out)
        if flags.to not in exporting.DIRECTORIES:
            check_file("out", out)
        start_devices(flags.platform)
        backbone = backbones.load(flags)
        size = backbones.image_size(flags.image_size, backbone)
        options = {"to": flags.to, "image_size": size, "workdir": flags.workdir or None}
        path = configs.call(exporting.export, options, "ssl_jax export", backbone, out)
        print(f"{path}: gives the same features as the backbone. To load it:")
        print(f"    {exporting.how_to_load(backbone, path, to=flags.to, image_size=size)}")
