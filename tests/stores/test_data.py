"""Images in a bucket are those of the same files on a disk."""

import numpy as np
import pytest

from ssl_jax import paths
from ssl_jax.data import open_data, pack
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.opening import open_splits
from ssl_jax.stores import StoreError
from tests.data.kinds import CLASSES, IMAGES, LABELS, WRITERS, png


def upload(folder, to):
    for name in paths.files_below(folder):
        paths.upload(paths.path(to) / name, (folder / name).read_bytes())


@pytest.mark.parametrize("kind", [name for name in WRITERS if name != "array_record"])
def test_every_kind_is_read_as_from_a_disk(kind, bucket, tmp_path):
    text = str(WRITERS[kind](tmp_path))
    upload(tmp_path, f"{bucket}/{kind}")
    there = open_data(text.replace(str(tmp_path), f"{bucket}/{kind}"))
    here = open_data(text)
    assert len(there) == len(here) == len(IMAGES)
    for k in (0, 7, len(here) - 1):
        np.testing.assert_array_equal(there[k], here[k])
    assert there.digest() == here.digest()
    for name in ("labels", "groups"):
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name))
    assert there.class_names == here.class_names
    assert there.name.startswith(bucket)


def test_a_folder_with_splits_and_classes(bucket, tmp_path):
    for k in range(6):
        for split in ("train", "test"):
            file = tmp_path / split / CLASSES[LABELS[k]] / "deep" / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(IMAGES[k]))
    (tmp_path / "train" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "notes.txt").write_bytes(b"text")
    upload(tmp_path, f"{bucket}/split")
    there, here = open_splits(f"{bucket}/split", 3), open_splits(str(tmp_path), 3)
    assert list(there) == list(here) == ["train", "test"]
    for split, source in here.items():
        assert [there[split].image_name(k) for k in range(6)] == [source.image_name(k) for k in range(6)]
        np.testing.assert_array_equal(there[split].labels, source.labels)
        assert there[split].encoded(3) == source.encoded(3)


def test_formats_that_are_read_by_windows_or_hold_several_images(bucket, tmp_path):
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", IMAGES[:3], photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", IMAGES[4], photometric="rgb", tile=(16, 16))
    np.save(tmp_path / "c.npy", IMAGES[5].astype(np.uint16))
    upload(tmp_path, f"{bucket}/formats")
    source = open_data(f"{bucket}/formats", channels=None, pages="images")
    assert [source.image_name(k) for k in range(5)] == ["a.tif#0", "a.tif#1", "a.tif#2", "b.tif", "c.npy"]
    for k, expected in enumerate([*IMAGES[:3], IMAGES[4], IMAGES[5]]):
        np.testing.assert_array_equal(source[k], expected)
    with source.open(3) as image:
        np.testing.assert_array_equal(image.read(2, 3, 5, 6), IMAGES[4][2:7, 3:9])


def test_images_that_are_damaged_or_gone_are_named(bucket, tmp_path):
    for name, data in {"a.png": png(IMAGES[0]), "b.png": b"", "c.png": png(IMAGES[1])[:-40], "d.png": b"x"}.items():
        (tmp_path / name).write_bytes(data)
    upload(tmp_path, f"{bucket}/damaged")
    source = open_data(f"{bucket}/damaged")
    paths.remove(paths.path(f"{bucket}/damaged/d.png"))
    for k, reason in ((1, "the file is empty"), (2, ""), (3, "gone, or not a regular file")):
        with pytest.raises(UndecodableImage, match=f"{'abcd'[k]}.png: .*{reason}"):
            source.read(k)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("{bucket}/nothing", "there is no folder '{bucket}/nothing'$"),
        ("{bucket}/nothing.csv", "there is no file '{bucket}/nothing.csv'$"),
        ("{bucket}/nothing.npy", "there is no file '{bucket}/nothing.npy'$"),
        ("{bucket}/nothing-*.tar", "there is no file"),
        (
            "foo://bucket/images",
            "begins with foo://, which is not known; give a local path, or one that begins with gs://",
        ),
        ("gs://", "names no bucket"),
    ],
)
def test_data_that_is_not_there(text, sentence, bucket):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence.format(bucket=bucket)):
        open_data(text.format(bucket=bucket))


def test_array_record_is_not_read_from_a_store(bucket):
    paths.upload(paths.path(f"{bucket}/records/a.array_record"), b"x")
    with pytest.raises(ValueError, match="copy it to a disk, or save the images"):
        open_data(f"{bucket}/records/a.array_record")


def test_files_of_a_list_that_are_not_in_the_bucket(bucket):
    paths.upload(paths.path(f"{bucket}/lists/a.png"), png(IMAGES[0]))
    paths.upload(paths.path(f"{bucket}/lists/list.csv"), b"path\na.png\nmissing.png\n")
    with pytest.raises(FileNotFoundError, match=r"files that are not there: 1 of 2 \(row 3 'missing.png'\)"):
        open_data(f"{bucket}/lists/list.csv")


def test_images_are_packed_into_a_store_and_a_pack_that_is_there_is_left(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text, out = str(WRITERS["csv_list"](tmp_path)), f"{bucket}/packs/whole"
    first = pack(text, out, shard_mb=0.005)
    assert sum(first.shards.values()) > 1 and not list((tmp_path / "cache").glob("ssl_jax/packing/*"))
    there, here = open_data(out), open_data(text)
    for k in range(len(here)):
        np.testing.assert_array_equal(there[k], here[k])
    np.testing.assert_array_equal(there.labels, here.labels)
    before = {name: paths.read_bytes(paths.path(out) / name) for name in paths.names(paths.path(out))}
    assert pack(text, out, shard_mb=0.005) == first
    assert {name: paths.read_bytes(paths.path(out) / name) for name in before} == before
    with pytest.raises(ValueError, match="was packed with other shard_mb"):
        pack(text, out, shard_mb=1.0)
    paths.upload(paths.path(f"{bucket}/taken/notes.txt"), b"text")
    with pytest.raises(ValueError, match=r"holds other files, such as notes.txt"):
        pack(text, f"{bucket}/taken", shard_mb=0.005)


def test_a_copy_that_was_cut_short_goes_on(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text, out = str(WRITERS["csv_list"](tmp_path)), f"{bucket}/packs/cut"
    upload_one, done = paths.upload, []

    def fails(path, content):
        if len(done) == 2:
            raise StoreError("the store does not answer")
        done.append(path)
        upload_one(path, content)

    monkeypatch.setattr(paths, "upload", fails)
    with pytest.raises(StoreError):
        pack(text, out, shard_mb=0.005)
    with pytest.raises((ValueError, FileNotFoundError)):
        open_data(out)
    monkeypatch.setattr(paths, "upload", upload_one)
    pack(text, out, shard_mb=0.005)
    assert len(open_data(out)) == len(IMAGES)
