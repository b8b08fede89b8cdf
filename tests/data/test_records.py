"""Tars, Parquet and ArrayRecord: what is their own. test_opening.py has what all kinds have in common."""

import gzip
import io
import json
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ssl_jax.data import open_data, open_pair, pack, parquet_source
from ssl_jax.data.array_record_source import array_record_splits
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.parquet_source import parquet_splits
from ssl_jax.data.tar_source import tar_splits
from tests.data.kinds import IMAGES, png, write_tar


def npy(image):
    file = io.BytesIO()
    np.save(file, image)
    return file.getvalue()


def only(splits):
    (source,) = splits.values()
    return source


def test_samples_of_a_tar_are_members_of_one_name(tmp_path):
    members = [
        ("./a/0.jpg.json", b"{}"),  # a sample "./a/0" of its own: other members are in between
        ("a/1.seg.png", png(IMAGES[9])),
        ("a/1.PNG", png(IMAGES[1])),
        ("a/1.cls", b"12\n"),
        ("b/1.cls", b"3"),
        ("b/1.png", png(IMAGES[2])),
        ("b/2.txt", b"no image here"),
        ("b/3.npy", npy(IMAGES[3])),
        ("b/3.json", b'{"label": null, "group": 7, "more": [1]}'),
    ]
    source = only(tar_splits(str(write_tar(tmp_path / "a.tar", members)), 3))
    assert [source.image_name(k) for k in range(3)] == ["a.tar/a/1.PNG", "a.tar/b/1.png", "a.tar/b/3.npy"]
    for k in range(3):
        np.testing.assert_array_equal(source.read(k)[0], IMAGES[k + 1])
    assert source.class_names == ("3", "12") and source.labels.tolist() == [1, 0, -1]
    assert source.groups is None  # not every image has one


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_arrays_in_tars_keep_their_type(tmp_path, dtype):
    image = np.random.default_rng(0).integers(-9, 1000, (16, 17, 13)).astype(dtype)
    found, _ = only(tar_splits(str(write_tar(tmp_path / "a.tar", [("0.npy", npy(image))])), None)).read(0)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, image)


def test_shards_named_by_splits(tmp_path):
    for name, rows in (("train-0", (0, 1)), ("train-1", (2, 3)), ("val-0", (4, 5))):
        members = [m for k in rows for m in ((f"{k}.png", png(IMAGES[k])), (f"{k}.cls", f"c{k % 4}".encode()))]
        write_tar(tmp_path / f"{name}.tar", members)
    train, test = open_pair(f"{tmp_path}/*.tar")
    assert train.class_names == test.class_names == ("c0", "c1", "c2", "c3")
    assert train.labels.tolist() == [0, 1, 2, 3] and test.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(test[1], IMAGES[5])
    np.testing.assert_array_equal(open_data(f"{tmp_path}/*.tar", split="test")[0], IMAGES[4])


@pytest.mark.parametrize(
    "members, message",
    [
        ([("0.png", b""), ("0.jpg", b"")], r"a.tar: '0' has more than one image, png, jpg; leave one"),
        ([("0.png", b""), ("0.cls", b"\xff")], "a.tar: the label of '0' cannot be read"),
        ([("0.png", b""), ("0.json", b"{")], "a.tar: the label of '0' cannot be read"),
        ([("0.png", b""), ("0.json", b"[" * 100_000)], "a.tar: the label of '0' cannot be read"),
        ([("0.txt", b"")], "a.tar has no images"),
    ],
)
def test_tars_that_make_no_samples_are_told(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        tar_splits(str(write_tar(tmp_path / "a.tar", members)), 3)


def test_damaged_and_compressed_tars_are_told(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{k}.png", png(IMAGES[k])) for k in range(9)])
    whole = path.read_bytes()
    header = whole.index(b"5.png")
    damaged = whole[:header] + b"\xff" * 300 + whole[header + 300 :]
    for data in (whole[: len(whole) // 2 + 700], gzip.compress(whole), b"no tar" * 200, damaged):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a.tar is no tar, damaged, or compressed"):
            tar_splits(str(path), 3)


def test_a_tar_that_ends_without_its_end_mark_is_warned_of(tmp_path, caplog):
    path = write_tar(tmp_path / "a.tar", [(f"{k}.png", png(IMAGES[k])) for k in range(9)])
    os.truncate(path, path.read_bytes().index(b"5.png"))
    assert len(only(tar_splits(str(path), 3))) == 5
    assert "a.tar has no end mark: it may have been cut off after 5 images" in caplog.text


def test_a_file_that_becomes_shorter_is_noticed(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{k}.png", png(IMAGES[k])) for k in range(9)])
    source = only(tar_splits(str(path), 3))
    os.truncate(path, 3000)
    np.testing.assert_array_equal(source[0], IMAGES[0])
    with pytest.raises(UndecodableImage, match=r"a.tar/8.png: its file has become shorter"):
        source.read(8)
    path.unlink()
    with pytest.raises(UndecodableImage, match=r"a.tar/0.png: No such file"):
        source.read(0)


def write_parquet(path, columns, metadata=None, **options):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pyarrow.parquet.write_table(table, path, **options)
    return str(path)


def test_files_that_the_library_itself_writes(tmp_path):
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    classes = datasets.ClassLabel(names=["a", "b", "c"])
    features = datasets.Features({"img": datasets.Image(), "tags": datasets.Sequence(classes), "fine": classes})
    rows = {"img": [Image.fromarray(image) for image in IMAGES[:20]], "fine": [k % 2 for k in range(20)]}
    rows["tags"] = [[2, 0]] * 10 + [[1]] * 10
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet", batch_size=6)
    source = open_data(f"{tmp_path}/a.parquet")
    assert source.class_names == ("a", "b", "c") and source.labels.tolist() == rows["fine"]
    assert source.targets.names == ("a", "b", "c")
    assert source.targets.values.tolist() == [[1, 0, 1]] * 10 + [[0, 1, 0]] * 10
    for k in range(20):
        np.testing.assert_array_equal(source[k], IMAGES[k])


def test_parquet_without_metadata(tmp_path):
    rows = {"id": [1, 2, 3], "image": [png(image) for image in IMAGES[:3]], "label": ["x", None, "y"]}
    source = open_data(write_parquet(tmp_path / "a.parquet", rows))
    assert source.class_names == ("x", "y") and source.labels.tolist() == [0, -1, 1] and source.groups is None
    assert source.image_name(2) == "a.parquet[2]"
    np.testing.assert_array_equal(source[2], IMAGES[2])


def test_an_image_that_stands_beside_the_file_or_is_missing(tmp_path):
    (tmp_path / "one.png").write_bytes(png(IMAGES[1]))
    rows = [{"bytes": png(IMAGES[0]), "path": "zero.png"}, {"bytes": None, "path": "one.png"}, None]
    source = open_data(write_parquet(tmp_path / "a.parquet", {"image": rows}))
    np.testing.assert_array_equal(source[1], IMAGES[1])
    with pytest.raises(UndecodableImage, match=r"a.parquet\[2\]: there is no image in its row"):
        source.read(2)


def test_labels_of_another_kind_are_left_out_with_a_message(tmp_path, caplog):
    rows = {"image": [png(image) for image in IMAGES[:2]], "label": [[0.5, 1.0], [1.0, 1.0]]}
    source = open_data(write_parquet(tmp_path / "a.parquet", rows))
    assert source.labels is None and source.targets is None
    assert "the column label is not used: labels are integers, text, or lists of these" in caplog.text


UNKNOWN = [np.nan] * 3
CLASSES = {"names": ["x", "y", "z"], "_type": "ClassLabel"}


@pytest.mark.parametrize(
    "name, lists, feature, names, values",
    [
        (
            "labels",
            [["b"], [], None, ["a10", "b", "a9"]],
            None,
            ("a9", "a10", "b"),
            [[0, 0, 1], [0] * 3, UNKNOWN, [1] * 3],
        ),
        ("label", [[7], [7, 3], [None, 3], [12]], None, ("3", "7", "12"), [[0, 1, 0], [1, 1, 0], UNKNOWN, [0, 0, 1]]),
        ("found", [[2], [0, 2], [], [-1]], [CLASSES], ("x", "y", "z"), [[0, 0, 1], [1, 0, 1], [0] * 3, UNKNOWN]),
        ("found", [[2, 2]], {"feature": CLASSES, "_type": "List"}, ("x", "y", "z"), [[0, 0, 1]]),
    ],
)
def test_lists_of_labels_in_parquet(tmp_path, name, lists, feature, names, values):
    rows = {
        "image": [png(image) for image in IMAGES[: len(lists)]],
        "kind": list(map(str, range(len(lists)))),
        name: lists,
    }
    metadata = None if feature is None else {"info": {"features": {name: feature}}}
    source = open_data(write_parquet(tmp_path / "a.parquet", rows, metadata))
    assert source.labels is None and (source.targets.kind, source.targets.names) == ("multilabel", names)
    np.testing.assert_array_equal(source.targets.values, np.float32(values))


def test_lists_of_labels_beside_a_class_and_over_splits(tmp_path):
    rows = {"image": [png(image) for image in IMAGES[:2]], "label": ["cat", "dog"], "labels": [["old"], ["new"]]}
    paths = [write_parquet(tmp_path / "train.parquet", rows), tmp_path / "test.parquet"]
    write_parquet(paths[1], {**rows, "labels": [["new"], ["worn", "old"]]})
    train, test = open_pair(f"{tmp_path}/*.parquet")
    assert train.class_names == ("cat", "dog") and train.labels.tolist() == [0, 1]
    assert train.targets.names == test.targets.names == ("new", "old", "worn")
    assert train.targets.values.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert test.targets.values.tolist() == [[1, 0, 0], [0, 1, 1]]
    digest = train.digest()
    write_parquet(paths[0], {**rows, "labels": [["new"], ["old"]]})
    assert open_data(f"{tmp_path}/*.parquet").digest() != digest


def test_ones_and_zeros_are_not_taken_for_a_list_of_labels(tmp_path):
    rows = {"image": [png(image) for image in IMAGES[:2]], "labels": [[0, 1, 0], [1, 1, 0]]}
    with pytest.raises(ValueError, match=r"a list of labels has a label twice, \[0, 1, 0\]. .* columns label_NAME"):
        open_data(write_parquet(tmp_path / "a.parquet", rows))


def test_row_groups_are_read_once_while_they_are_kept_and_kept_within_bounds(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 30, 30, 3), np.uint8)
    rows = {"image": [npy(image) for image in images]}
    path, size = write_parquet(tmp_path / "a.parquet", rows, row_group_size=4), len(rows["image"][0])
    read, opened = [], parquet_source._parquet_file
    monkeypatch.setattr(parquet_source, "_parquet_file", lambda *given: read.append(given) or opened(*given))
    source = only(parquet_splits(path, 3))
    read.clear()
    order = list(range(40)) * 3
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(8) as pool:
        for k, (image, _) in zip(order, pool.map(source.read, order), strict=True):
            np.testing.assert_array_equal(image, images[k])
    assert len(read) == 10  # all are kept
    monkeypatch.setattr(parquet_source, "CACHED_BYTES", 12 * size)
    source = only(parquet_splits(path, 3))
    for k in order:
        source.read(k)
        assert sum(rows.nbytes for rows in source._rows._kept.values()) <= 13 * size
    assert len(read) > 20
    monkeypatch.setattr(parquet_source, "MAX_GROUP_BYTES", 3 * size)
    with pytest.raises(ValueError, match=r"row group take .* bytes, .* write the file with row_group_size=100"):
        parquet_splits(path, 3)


@pytest.mark.parametrize(
    "columns, metadata, message",
    [
        ({"text": ["a"], "label": [1]}, None, "has neither images, .* nor a column path .* are text, label"),
        (
            {"image": [b"x"], "label": [2]},
            {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}}},
            "a label is 2, for 2 class names",
        ),
    ],
)
def test_parquet_that_holds_no_images_is_told(tmp_path, columns, metadata, message):
    with pytest.raises(ValueError, match=message):
        open_data(write_parquet(tmp_path / "a.parquet", columns, metadata))


def test_damaged_parquet_is_told_at_the_start_or_image_by_image(tmp_path):
    rows = {"image": [npy(image) for image in IMAGES], "label": ["a", "b"] * 15}
    path = tmp_path / "a.parquet"
    write_parquet(path, rows, row_group_size=3, compression="zstd", use_dictionary=False)
    whole, source = path.read_bytes(), open_data(str(path))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a.parquet is no Parquet file, or damaged"):
        open_data(str(path))
    with pytest.raises(UndecodableImage, match=r"a.parquet\[29\]"):
        source.read(29)
    path.write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])
    with pytest.raises(UndecodableImage, match=r"a.parquet\[0\]: its row group cannot be read"):
        open_data(str(path)).read(0)


def test_shards_with_other_columns_are_told(tmp_path):
    write_parquet(tmp_path / "a-0.parquet", {"image": [png(IMAGES[0])], "label": ["x"]})
    write_parquet(tmp_path / "a-1.parquet", {"image": [png(IMAGES[1])]})
    with pytest.raises(ValueError, match=r"a-1.parquet has no column label, as the first file has"):
        open_data(f"{tmp_path}/a-*.parquet")


def test_array_record_is_asked_for_where_it_is_needed(tmp_path, monkeypatch):
    for module in ("array_record_data_source", "array_record_module"):
        monkeypatch.setitem(sys.modules, f"array_record.python.{module}", None)  # as on Windows
    (tmp_path / "a.array_record").write_bytes(b"x")
    (tmp_path / "a.png").write_bytes(png(IMAGES[0]))
    with pytest.raises(ValueError, match="need array_record: pip install array_record"):
        open_data(str(tmp_path / "a.array_record"))
    with pytest.raises(ValueError, match="need array_record: pip install array_record"):
        pack(str(tmp_path), tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_damaged_array_records_are_told_at_the_start_or_image_by_image(tmp_path):
    from array_record.python import array_record_module

    path = tmp_path / "a.array_record"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    noise = np.random.default_rng(0).integers(0, 256, (8, 200, 200, 3), np.uint8)
    for image in noise:
        writer.write(png(image))
    writer.close()
    whole = bytearray(path.read_bytes())
    at = whole.index(png(noise[3])[1000:1100])  # PNG is not compressed again
    whole[at] ^= 1
    path.write_bytes(whole)
    source = only(array_record_splits(str(path), 3))
    for k in (2, 4, 7):
        np.testing.assert_array_equal(source[k], noise[k])
    with pytest.raises(UndecodableImage, match=r"a.array_record\[3\]: a damaged record"):
        source.read(3)
    path.write_bytes(whole[:100_000])
    with pytest.raises(ValueError, match=r"a.array_record is no ArrayRecord file, or damaged"):
        array_record_splits(str(path), 3)
