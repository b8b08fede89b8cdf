import dataclasses
import re

import cv2
import numpy as np
import pytest

from ssl_jax import __main__ as program
from ssl_jax import data
from ssl_jax.data.input_speed import InputSpeed, Stage, Threads
from ssl_jax.data.pipeline import ImagesError

IMAGES = 12


@pytest.fixture
def photos(tmp_path):
    """One of them gray, one broken."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(IMAGES):
        image = rng.integers(0, 256, (90, 120, 3) if number else (90, 120), np.uint8)
        cv2.imwrite(str(folder / f"{number:02}.jpg"), image)
    (folder / "05.jpg").write_bytes((folder / "05.jpg").read_bytes()[:300])
    return folder


def test_a_folder_of_photos(photos, capsys):
    program.main(["bench-input", str(photos), "--image_size=48x32", "--views=3", "--threads=2,1", "--seconds=0.4"])
    text = capsys.readouterr().out
    assert "12 images; 3 crops of 48 x 32 each" in text
    assert "keeps this set in memory" in text and "cannot be read: 05.jpg: a broken or truncated JPEG" in text
    for line in ("  read  ", "  decode  ", "  crop and resize  ", "  1 thread  ", "  2 threads  ", "What limits: "):
        assert f"\n{line}" in text


def test_what_is_measured_adds_up(photos):
    found = data.measure_input(data.open_data(str(photos), channels=3), image_size=(64, 64), threads=(1,), seconds=1)
    assert [stage.name for stage in found.stages] == ["read", "decode", "crop and resize"]
    assert all(stage.processor_ms > 0 for stage in found.stages)
    (made,) = found.batches
    stages = sum(stage.processor_ms for stage in found.stages)
    # Other programs make the clock's time longer, the processor's by less than twice.
    assert 0.5 < made.processor_ms / stages < 3
    assert 0 < found.lock_ms <= made.processor_ms
    assert found.decoded and found.kept and not found.batches[0].images_per_second < 1


def test_arrays_are_not_decoded():
    source = data.arrays(np.zeros((20, 40, 40, 3), np.uint8))
    found = data.measure_input(source, image_size=(32, 32), threads=(1,), seconds=0.2, memory_bytes=0)
    assert [stage.name for stage in found.stages] == ["read and decode", "crop and resize"]
    assert not found.decoded and not found.kept


SPEED = InputSpeed(
    images=10,
    crops=2,
    size=(224, 224),
    decoded=True,
    kept=False,
    stages=(Stage("read", 0.1, 0.1), Stage("decode", 0.6, 0.6), Stage("crop and resize", 0.3, 0.3)),
    batches=(Threads(1, 1000.0, 1.0), Threads(4, 4000.0, 4.0)),
    lock_ms=0.1,
    cores=4,
    skipped={},
)


@pytest.mark.parametrize(
    "changes, limit",
    [
        ({}, "the processor: 60 % of an image's time there is for this stage: decode"),
        ({"batches": (Threads(1, 1000.0, 1.0), Threads(4, 2000.0, 4.0))}, "memory: with 4 threads an image takes 2.0"),
        ({"batches": (Threads(1, 1000.0, 1.0), Threads(4, 2500.0, 2.5)), "lock_ms": 0.39}, "Python's lock: .* 98 %"),
        (
            {
                "batches": (Threads(1, 90.0, 0.09), Threads(4, 360.0, 0.36)),
                "stages": (Stage("read", 0.1, 10.1), *SPEED.stages[1:]),
            },
            "the disk: one thread waits 10.00 ms",
        ),
        ({"batches": (Threads(1, 500.0, 0.5),)}, "other programs .*: 0.5 of 1 core was busy"),
    ],
)
def test_what_limits(changes, limit):
    assert re.match(limit, dataclasses.replace(SPEED, **changes).limit)


def test_more_cores_give_more_until_the_lock_is_always_held():
    assert [SPEED.expected(cores) for cores in (1, 8, 10, 64)] == [1000, 8000, 10000, 10000]


@pytest.mark.parametrize("options", [{"views": 0}, {"threads": (0,)}, {"seconds": 0.0}, {"image_size": (0, 5)}])
def test_what_cannot_be_measured_is_said(options):
    with pytest.raises(ValueError, match="views, threads, image_size and seconds must be above 0, got "):
        data.measure_input(data.arrays(np.zeros((3, 8, 8, 3), np.uint8)), **options)


def test_a_set_without_a_readable_image(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(ImagesError, match=r"a\.jpg"):
        data.measure_input(data.open_data(str(tmp_path)))
    with pytest.raises(SystemExit, match=r"none of the 1 images tried can be decoded"):
        program.main(["bench-input", str(tmp_path)])


def test_numbers_of_threads_are_checked(photos):
    with pytest.raises(SystemExit, match="--threads must be numbers with commas, such as 1,2,4, got '1,x'"):
        program.main(["bench-input", str(photos), "--threads=1,x"])
