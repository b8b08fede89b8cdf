"""A thousand damaged files beside some whole ones: they are named and passed over, in bounded memory."""

import contextlib
import io
import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_jax.data.formats import UndecodableImage, decode_image, stored, table
from ssl_jax.data.formats.header import read_header
from tests.flags import environment

SIZE = (64, 48)  # width, height
FORMS = {"bmp": "BMP", "gif": "GIF", "jpg": "JPEG", "png": "PNG", "ppm": "PPM", "tiff": "TIFF", "webp": "WEBP"}
OTHER_FORMS = ("JPEG2000", "ICO", "TGA", "PDF")
# How the size stands in the files above: (width, height) as these bytes.
SIZES = ("<HH", ">HH", "<II", ">II", "<ii")


def encode(form: str, rng: random.Random) -> bytes:
    file = io.BytesIO()
    pixels = np.frombuffer(rng.randbytes(4 * 3 * 3), np.uint8).reshape(3, 4, 3)
    Image.fromarray(pixels).resize(SIZE).save(file, form)
    return file.getvalue()


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, most often in the header, where it matters most."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 2, 4, 16, 64])):
        changed[rng.randrange(min(len(data), rng.choice([40, 200, 10**9])))] = rng.choice(
            [0, 127, 255, rng.randrange(256)]
        )
    return bytes(changed)


def absurd(data: bytes, rng: random.Random) -> bytes:
    """Other sides, from 0 to all that fit the bytes, wherever the sides may stand; what cannot be found is flipped.

    A TIFF's may be of any type and there twice, a PNM's behind a comment.
    """
    changed = data
    for tag in (256, 257):
        changed = changed.replace(struct.pack("<HHI", tag, 4, 1), struct.pack("<HHI", tag, rng.randrange(1, 19), 1))
    planes = struct.pack("<HHI", 284, 3, 1)  # how colors are stored, 1: what is taken where it is not said
    changed = changed.replace(planes, struct.pack("<HHI", rng.choice([256, 257, 284]), 3, 1))
    for layout in SIZES:
        top = 2 ** (8 * struct.calcsize(layout) // 2 - 1)
        sides = [rng.choice([0, 1, 2**9, top // 2, top - 1]) for _ in range(2)]
        for size in (SIZE, SIZE[::-1]):
            changed = changed.replace(struct.pack(layout, *size), struct.pack(layout, *sides))
    size = rng.choice([b"99999 99999", b"0 0", b"999999999 1", b"1 -1", b"48 64"])
    changed = changed.replace(b"64 48", rng.choice([b"", b"#9 9\r", b"#9 9\n", b"#9 9\r\n"]) + size)
    return changed if changed != data else flipped(data, rng)


def write_fuzzed(folder: Path, count: int) -> None:
    rng = random.Random(0)
    folder.mkdir()
    for number in range(count):
        extension, form = rng.choice(list(FORMS.items()))
        if number % 4 == 3:  # what another program made, or nothing of the kind, under an image's name
            others = [encode(rng.choice(OTHER_FORMS), rng), rng.randbytes(999), b"%PDF-1.4 text\n" * 9]
            data = rng.choice(others)
        else:
            data = (truncated, flipped, absurd)[number % 4](encode(form, rng), rng)
        (folder / f"{number:04d}.{extension}").write_bytes(data)


READ = """
import json, resource, sys
from pathlib import Path
from ssl_jax.data import opening, pipeline
from ssl_jax.data.crop import RandomCrop

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = opening.load("folder", path=sys.argv[1])
crop = RandomCrop((16, 16), (0.2, 1.0), (0.75, 4 / 3))
rows = {}
for memory_bytes in (2**31, 0):
    batches = pipeline.train_batches(
        source, seed=0, batch_size=32, image_size=(16, 16), crops=[crop, crop], memory_bytes=memory_bytes
    )
    rows[memory_bytes] = [len(next(batches)["index"]) for _ in range(20)]
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"rows": list(rows.values()), "skipped": batches.skipped, "megabytes": grown // 1024}))
"""


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed") / "images"
    write_fuzzed(folder, 1000)
    rng = random.Random(1)
    for number in range(100):
        (folder / f"whole_{number:03d}.png").write_bytes(encode("PNG", rng))
    return folder


def test_a_thousand_damaged_files_end_nothing_in_bounded_memory(fuzzed):
    command = [sys.executable, "-c", READ, str(fuzzed)]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads(run.stdout)
    assert result["rows"] == [[32] * 20] * 2
    assert len(result["skipped"]) > 400  # the rest can be decoded, as can a JPEG with a byte changed
    assert not [name for name in result["skipped"] if name.startswith("whole")]
    # Eight threads, each with an image of up to 2^26 pixels that its header promises, and its file. Without a bound
    # on PNG's chunks it was 4 GB.
    assert result["megabytes"] < 1600


def test_what_is_decoded_has_the_size_that_was_bounded(fuzzed):
    decoded = 0
    for file in sorted(fuzzed.iterdir()):
        data = file.read_bytes()
        with contextlib.suppress(UndecodableImage):
            height, width, _ = decode_image(data, 3, file.name).shape
            if not table.TIFF.begins(data):
                assert (width, height) == read_header(data)[:2], file.name
            assert height * width <= stored.MAX_IMAGE_BYTES
            decoded += 1
    assert decoded > 180


@pytest.mark.slow
def test_training_goes_through_a_thousand_damaged_files(fuzzed, tmp_path):
    run = subprocess.run(
        [
            *(sys.executable, "-m", "ssl_jax", "train", "--config=simclr:folder"),
            *(f"--workdir={tmp_path / 'run'}", f"--config.data.path={fuzzed}", "--config.data.image_size=(16,16)"),
            *("--config.augment.view.size=(16,16)", "--config.batch_size=16", "--config.steps=70"),
            *("--config.data.memory_bytes=0", "--config.evaluate_every=0"),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    skipped = json.loads((tmp_path / "run" / "run.json").read_text())["skipped"]
    assert len(skipped) > 500 and not [name for name in skipped if name.startswith("whole")]
    assert (tmp_path / "run" / "backbone.safetensors").is_file()
