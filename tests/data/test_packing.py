"""`pack`: the same images, names, labels, groups and batches; goes on after a kill; leaves out what cannot be read."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import ssl_jax
from ssl_jax import __main__ as program
from ssl_jax import data
from ssl_jax.data import open_data, pack, packing, packing_records, pipeline, record_chunks
from ssl_jax.data.crop import RandomCrop
from ssl_jax.data.formats import UndecodableImage
from tests.data import kinds

array_record_module = pytest.importorskip("array_record.python.array_record_module")  # Windows has none

RNG = np.random.default_rng(0)
SMOOTH = [cv2.GaussianBlur(RNG.integers(0, 256, (60 + k, 90, 3), np.uint8), (0, 0), 3) for k in range(12)]
CROPS = (RandomCrop((16, 16), (0.2, 1.0), (3 / 4, 4 / 3)), RandomCrop((6, 6), (0.8, 1.0), (3 / 4, 4 / 3)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """JPEG, PNG and WebP of two classes in two splits; one PNG of 16 bits, a gray JPEG, and one with alpha."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    for k, image in enumerate(SMOOTH):
        folder = root / ("test" if k % 4 == 3 else "train") / ("cat", "dog")[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{k:02d}{('.jpg', '.png', '.webp')[k % 3]}"), image)
    cv2.imwrite(str(root / "train/cat/deep.png"), SMOOTH[0].astype(np.uint16) * 257)
    cv2.imwrite(str(root / "train/cat/gray.jpg"), SMOOTH[1][..., 0])
    cv2.imwrite(str(root / "train/dog/alpha.png"), np.dstack([SMOOTH[2], SMOOTH[3][: len(SMOOTH[2]), :, 0]]))
    return root


@pytest.fixture(scope="module")
def packed(photos):
    out = photos.parent / "packed"
    pack(str(photos), out, shard_mb=0.01)
    return out


def tree(root):
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_packed_photos_are_the_same(photos, packed, split, channels):
    one, other = (open_data(str(root), split=split, channels=channels) for root in (photos, packed))
    assert (len(one), one.class_names, one.digest()) == (len(other), other.class_names, other.digest())
    np.testing.assert_array_equal(one.labels, other.labels)
    assert other.labels.dtype == np.int32
    for index in range(len(one)):
        (image, label), (again, label_again) = one.read(index), other.read(index)
        assert (image.dtype, label, one.image_name(index)) == (again.dtype, label_again, other.image_name(index))
        np.testing.assert_array_equal(image, again)
        assert one.encoded(index) == other.encoded(index)


@pytest.mark.parametrize("mode", [{"memory_bytes": 0}, {"memory_bytes": 2**31}], ids=["streamed", "in memory"])
def test_batches_for_training_are_the_same(photos, packed, mode):
    options = dict(seed=3, batch_size=3, image_size=(16, 16), crops=CROPS) | mode
    for split in ("train", "test"):
        sources = [open_data(str(root), split=split, channels=3) for root in (photos, packed)]
        sources = [
            data.Subset(of, np.flatnonzero([name(of, k) != "deep.png" for k in range(len(of))])) for of in sources
        ]
        one, other = (pipeline.train_batches(source, **options) for source in sources)
        for batch, again in itertools.islice(zip(one, other, strict=True), 4):
            assert batch.keys() == again.keys()
            for one_array, other_array in zip(jax.tree.leaves(batch), jax.tree.leaves(again), strict=True):
                np.testing.assert_array_equal(one_array, other_array)


class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        return jnp.mean(nn.relu(nn.Conv(4, (3, 3))(images)), axis=(1, 2))


def test_training_is_the_same_bit_for_bit(packed, photos, tmp_path):
    config = ssl_jax.get_config("simclr:tiny")
    config.update(batch_size=8, steps=2, log_every=1, evaluate_every=0)
    config.data.image_size = config.augment.view.size = (8, 8)
    config.data.memory_bytes, config.method.projector = 0, (4,)
    kept = [k for k in range(12) if name(open_data(str(photos)), k) != "deep.png"]
    runs = []
    for number, root in enumerate((photos, packed)):
        source = data.Subset(open_data(str(root), channels=1), np.array(kept))
        runs.append(ssl_jax.pretrain(config, source, workdir=tmp_path / str(number), backbone=Net()))
    one, other = (load_file(tmp_path / number / "backbone.safetensors") for number in "01")
    assert one.keys() == other.keys() and all(one[key].tobytes() == other[key].tobytes() for key in one)
    losses = [[line["loss"] for line in run.metrics] for run in runs]
    assert losses[0] == losses[1] and len(losses[0]) == 2


def name(source, index):
    return source.image_name(index).rpartition("/")[2]


def test_any_program_reads_the_shards(photos, packed):
    source = open_data(str(packed))
    files = sorted(packed.glob("train-*.array_record"))
    assert len(files) > 2
    records = [record for file in files for record in array_record_module.ArrayRecordReader(str(file)).read_all()]
    assert records == [source.encoded(index) for index in range(len(source))]
    assert len(open_data(f"{packed}/*.array_record", split="test")) == len(open_data(str(packed), split="test"))


def write_npz(path, **more):
    np.savez(path, images=RNG.integers(0, 60_000, (7, 9, 8, 5)).astype(np.uint16), **more)
    return path


def test_arrays_groups_and_targets_are_kept(tmp_path):
    targets = RNG.normal(size=(7, 2)).astype(np.float32)
    path = write_npz(tmp_path / "a.npz", targets=targets, target_names=["age", "dose"], groups=list("aabbccd"))
    pack(str(path), tmp_path / "packed")
    one, other = open_data(str(path)), open_data(str(tmp_path / "packed"))
    for index in range(7):
        np.testing.assert_array_equal(one[index], other[index])
        assert other[index].dtype == np.uint16
    assert list(other.groups) == list("aabbccd") and other.groups.dtype == one.groups.dtype
    assert other.targets.is_like(one.targets) and other.labels is None
    np.testing.assert_array_equal(other.targets.values, targets)
    assert other.with_channels(3) is other  # bands are not converted


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_arrays_of_any_type_are_kept(tmp_path, dtype):
    images = (RNG.normal(size=(3, 6, 5)) * 50).astype(dtype)
    np.save(tmp_path / "a.npy", images)
    pack(str(tmp_path / "a.npy"), tmp_path / "packed")
    source = open_data(str(tmp_path / "packed"))
    np.testing.assert_array_equal(np.stack([source[k] for k in range(3)]), images[..., None])


@pytest.mark.parametrize("shape", [(40, 40), (40, 40, 3)])
@pytest.mark.parametrize(
    "ending, dtype",
    [(".jpg", np.uint8), (".png", np.uint8), (".tif", np.uint8), (".png", np.uint16), (".tif", np.uint16)],
)
def test_resized_images_keep_type_and_channels(tmp_path, ending, shape, dtype):
    image = cv2.GaussianBlur(RNG.integers(0, np.iinfo(dtype).max, (40, 60, *shape[2:]), dtype), (0, 0), 3)
    (tmp_path / "a").mkdir()
    cv2.imwrite(str(tmp_path / f"a/large{ending}"), image)
    cv2.imwrite(str(tmp_path / f"a/small{ending}"), image[:10, :50])
    pack(str(tmp_path / "a"), tmp_path / "packed", resize=20)
    one, other = (open_data(str(tmp_path / folder), channels=None) for folder in ("a", "packed"))
    assert other[0].shape == (20, 30, (*shape, 1)[2]) and other[0].dtype == dtype
    wanted = packing_records.resample(one[0], (20, 30), "bicubic")
    np.testing.assert_allclose(other[0].astype(float), wanted, atol=12 if ending == ".jpg" else 0)
    assert other.encoded(1) == one.encoded(1)  # smaller than asked for: as it is
    assert other.encoded(0).startswith(b"\xff\xd8") == (ending == ".jpg")
    assert one.digest() != other.digest()


def test_images_that_cannot_be_read_are_left_out_and_named(tmp_path):
    kinds.csv_list(tmp_path)
    (tmp_path / "images/03.png").write_bytes(kinds.png(kinds.IMAGES[3])[:-40])
    (tmp_path / "images/29.png").write_bytes(b"")
    found = pack(str(tmp_path / "list.csv"), tmp_path / "packed", shard_mb=0.005)
    assert found.images == {"train": 28} and set(found.unreadable["train"]) == {"images/03.png", "images/29.png"}
    assert "images/03.png" in (tmp_path / "packed/train.unreadable.csv").read_text()
    source = open_data(str(tmp_path / "packed"))
    kept = [k for k in range(30) if k not in (3, 29)]
    assert [source.image_name(k) for k in range(28)] == [f"images/{k:02d}.png" for k in kept]
    assert source.labels.tolist() == kinds.LABELS[kept].tolist() and list(source.groups) == [
        kinds.GROUPS[k] for k in kept
    ]
    np.testing.assert_array_equal(source[3], kinds.IMAGES[4])


def test_a_set_without_a_readable_image_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.jpg").write_bytes(b"\xff\xd8\xffno")
    with pytest.raises(ValueError, match=r"no image of .*a \(train\) can be decoded, for example one.jpg: a broken"):
        pack(str(tmp_path / "a"), tmp_path / "packed")


@pytest.mark.parametrize("at", [1, 6, 13])
def test_a_broken_pack_goes_on_to_the_same_bytes(photos, packed, tmp_path, monkeypatch, at):
    made, calls = packing.make_record, []

    def failing(source, index, resize):
        calls.append(index)
        if len(calls) > len(SMOOTH) + 3 + at:
            raise OSError(5, "Input/output error")
        return made(source, index, resize)

    monkeypatch.setattr(packing, "make_record", failing)
    with pytest.raises(OSError, match="Input/output"):
        pack(str(photos), tmp_path / "packed", shard_mb=0.01, workers=2)
    with pytest.raises(ValueError, match="packed in part; the same ssl_jax pack goes on"):
        open_data(str(tmp_path / "packed"))
    done = len(list((tmp_path / "packed/unfinished").glob("*.array_record.json")))
    calls.clear()
    monkeypatch.setattr(packing, "make_record", lambda *args: calls.append(args) or made(*args))
    pack(str(photos), tmp_path / "packed", shard_mb=0.01, workers=1)
    assert tree(tmp_path / "packed") == tree(packed)
    assert len(calls) <= len(SMOOTH) + 3 - done


def test_the_number_of_workers_changes_no_byte(photos, packed, tmp_path):
    pack(str(photos), tmp_path / "packed", shard_mb=0.01, workers=7)
    assert tree(tmp_path / "packed") == tree(packed)


@pytest.mark.slow
def test_a_killed_pack_goes_on_to_the_same_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    for k in range(300):
        cv2.imwrite(str(tmp_path / f"a/{k:03d}.png"), RNG.integers(0, 256, (300, 300, 3), np.uint8))
    command = [sys.executable, "-m", "ssl_jax", "pack", "a", "--shard_mb=0.7", "--workers=2", "--out"]
    subprocess.run([*command, "whole"], cwd=tmp_path, check=True)
    work = tmp_path / "broken/unfinished"
    for done in (1, 20, 45, 80):
        program = subprocess.Popen([*command, "broken"], cwd=tmp_path)
        while len(list(work.glob("*.array_record.json"))) < done:
            assert program.poll() is None
            time.sleep(0.002)
        program.send_signal(signal.SIGKILL)
        assert program.wait() == -signal.SIGKILL
    subprocess.run([*command, "broken"], cwd=tmp_path, check=True)
    assert tree(tmp_path / "broken") == tree(tmp_path / "whole")


def test_other_arguments_are_refused_where_a_pack_was_begun(photos, packed, tmp_path, monkeypatch):
    before = tree(packed)
    assert pack(str(photos), packed, shard_mb=0.01).images == {"train": 12, "test": 3}  # it is there already
    assert tree(packed) == before
    with pytest.raises(ValueError, match=r"packed with other shard_mb \(0.01, now 5\); give the same again"):
        pack(str(photos), packed, shard_mb=5)
    monkeypatch.setattr(packing, "_make_all", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pack(str(photos), tmp_path / "packed")
    with pytest.raises(ValueError, match=r"packed with other resize \(0, now 32\); give the same again"):
        pack(str(photos), tmp_path / "packed", resize=32)
    with pytest.raises(ValueError, match="holds other files; name a new folder"):
        pack(str(photos), photos)


@pytest.mark.parametrize("wrong", [{"resize": -1}, {"shard_mb": 0}, {"workers": -2}])
def test_impossible_options_are_refused(photos, tmp_path, wrong):
    with pytest.raises(ValueError, match=r"must be 0 or above, and shard_mb above 0, got"):
        pack(str(photos), tmp_path / "packed", **wrong)


def copied(packed, to):
    for file, content in tree(packed).items():
        (to / file).write_bytes(content)
    return to


def test_a_damaged_record_is_an_image_that_cannot_be_decoded(packed, tmp_path):
    root = copied(packed, tmp_path)
    shard = sorted(root.glob("train-*"))[1]
    source = open_data(str(root))
    first = len(array_record_module.ArrayRecordReader(str(sorted(root.glob("train-*"))[0])).read_all())
    content = bytearray(shard.read_bytes())
    content[300] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UndecodableImage, match=f"its record in {shard.name} is damaged"):
        source.read(first)
    shard.write_bytes(content[:50])
    with pytest.raises(UndecodableImage, match="is damaged"):
        source.read(first)
    shard.unlink()
    with pytest.raises(UndecodableImage, match="No such file"):
        source.read(first)
    source.read(0)
    with pytest.raises(FileNotFoundError, match=f"lacks 1 of its .* shards, such as {shard.name}"):
        open_data(str(root))


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("ssl_jax_pack.json", b"{", "is damaged"),
        ("ssl_jax_pack.json", json.dumps({"format": "ssl_jax pack", "version": 9}).encode(), "a newer ssl_jax reads"),
        ("ssl_jax_pack.json", json.dumps({"format": "ssl_jax pack", "version": 1}).encode(), "KeyError: 'splits'"),
        ("train.names", b"abc", "is damaged; pack the images again"),
        ("train.rows.npy", b"abc", "is damaged"),
        ("train.labels.npy", None, "has 3 rows of int32 for 12 images"),
    ],
)
def test_a_damaged_index_is_refused(packed, tmp_path, file, content, message):
    root = copied(packed, tmp_path)
    if content is None:
        np.save(root / file, np.zeros(3, np.int32))
    else:
        (root / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_data(str(root))


BLOCK_ENDS = [65536 - 24 - 40 - 64 - k for k in range(60)]


@pytest.mark.parametrize("sizes", [[], [0, 1, 5], [10] * 3000, [300_000, 5, 140_000], range(65400, 65540), BLOCK_ENDS])
def test_records_are_found_wherever_blocks_end(tmp_path, sizes):
    records = [RNG.bytes(size) for size in sizes]
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "a"), record_chunks.WRITER_OPTIONS)
    for record in records:
        writer.write(record)
    writer.close()
    found = record_chunks.find(tmp_path / "a", len(records))
    with (tmp_path / "a").open("rb") as file:
        assert [record_chunks.read(file, *where) for where in found] == records


@pytest.mark.parametrize(
    "options, message", [("group_size:1,zstd:3", "not written with"), ("group_size:3,uncompressed", "not written")]
)
def test_files_of_other_options_are_refused(tmp_path, options, message):
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "a"), options)
    for _ in range(6):
        writer.write(b"a" * 5000)
    writer.close()
    with pytest.raises(ValueError, match=message):
        record_chunks.find(tmp_path / "a", 6)
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes()[:70])
    with pytest.raises(ValueError, match=r"cut off|not written"):
        record_chunks.find(tmp_path / "b", 6)


def test_the_command_says_what_was_packed_and_how_to_train_on_it(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos/train/cat/00.jpg").write_bytes(b"\xff\xd8\xffno")
    command = ["pack", str(tmp_path / "photos"), "--out", str(tmp_path / "packed"), "--resize=32", "--workers=2"]
    program.main(command)
    said = capsys.readouterr().out
    assert "train: 11 images in 1 shard\n  left out: train/cat/00.jpg: a broken or truncated JPEG\n" in said
    assert "test: 3 images in 1 shard" in said
    assert f"ssl_jax train --config simclr:folder --config.data.path={tmp_path}/packed --workdir" in said
    program.main(command)  # there is nothing left to do
    assert capsys.readouterr().out == said
    with pytest.raises(SystemExit, match=r"error: .*was packed with other resize \(32, now 0\)"):
        program.main(command[:4])
    with pytest.raises(SystemExit, match=r"error: .*there is no folder"):
        program.main(["pack", str(tmp_path / "nothing"), "--out", str(tmp_path / "b")])
