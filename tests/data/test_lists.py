import builtins
import logging

import numpy as np
import pytest

from ssl_jax import data
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.opening import load_pair
from tests.data.kinds import png

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "x").mkdir()
    for k, image in enumerate(IMAGES):
        (tmp_path / f"x/{k}.png").write_bytes(png(image))
    return tmp_path


def write(folder, text, name="list.csv"):
    (folder / name).write_text(text)
    return folder / name


def test_splits_have_the_same_classes_and_are_not_divided(folder):
    rows = ["x/0.png,10,train", "x/1.png,9,train", "x/2.png,,train", "x/3.png,11,val", f"{folder}/x/4.png,9,val"]
    path = write(folder, "path,label,split\n" + "\n".join(rows))
    train, test = load_pair("folder", path=str(path), train_split="train", test_split="test")
    assert train.class_names == test.class_names == ("9", "10", "11")
    assert train.labels.tolist() == [1, 0, -1] and test.labels.tolist() == [2, 0]
    assert [test.image_name(k) for k in range(2)] == ["x/3.png", f"{folder}/x/4.png"]
    np.testing.assert_array_equal(test[1], IMAGES[4])
    assert data.from_list(path, split="val").digest() == test.digest()
    with pytest.raises(ValueError, match="no split 'extra', only train, val; name it in the list's column split"):
        data.from_list(path, split="extra")


def test_columns_of_several_labels(folder):
    rows = ["x/0.png,train,1,0,a", "x/1.png,train,,1,b", "x/2.png,test,0,1,"]
    path = write(folder, "path,split,label_mass,label_node,label\n" + "\n".join(rows))
    train, test = load_pair("folder", path=str(path), train_split="train", test_split="test")
    assert (train.targets.kind, train.targets.names) == ("multilabel", ("mass", "node"))
    np.testing.assert_array_equal(train.targets.values, np.float32([[1, 0], [np.nan, 1]]))
    np.testing.assert_array_equal(test.targets.values, np.float32([[0, 1]]))
    assert train.class_names == ("a", "b")  # and one class each
    write(folder, path.read_text().replace("x/0.png,train,1", "x/0.png,train,0"))
    assert data.from_list(path).digest() != train.digest()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_columns_of_measurements(folder, ending):
    path = folder / f"list.{ending}"
    if ending == "csv":
        write(folder, "path,target_age,target_dose\nx/0.png,61.5,2\nx/3.png,,1e-3\n")
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        table = {"path": ["x/0.png", "x/3.png"], "target_age": [61.5, None], "target_dose": [2.0, 1e-3]}
        pq.write_table(pa.table(table), path)
    found = data.from_list(path).targets
    assert (found.kind, found.names) == ("regression", ("age", "dose"))
    np.testing.assert_array_equal(found.values, np.float32([[61.5, 2], [np.nan, 1e-3]]))


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,target_age\nx/0.png,old\n", "row 2 has 'old' in column target_age; give a number, or nothing"),
        ("path,label_mass\nx/0.png,-1\n", "columns label_mass must be 1 where .* got -1"),
        ("path,label_mass,target_age\nx/0.png,1,3\n", "columns of both kinds, label_mass, target_age"),
    ],
)
def test_numbers_that_cannot_be_predicted_are_named(folder, text, message):
    with pytest.raises(ValueError, match=message):
        data.from_list(write(folder, text))


def test_a_list_of_paths_is_enough(folder):
    source = data.from_list(write(folder, "path\nx/3.png\nx/1.png\n"))
    assert (len(source), source.labels, source.class_names, source.groups) == (2, None, (), None)
    np.testing.assert_array_equal(source.read(0)[0], IMAGES[3])
    assert source.read(0)[1] == -1


@pytest.mark.parametrize(
    "text", ["\ufeffpath;label\nx/0.png;a,b\nx/1.png;c\n", 'path,label\nx/0.png,"a,b"\nx/1.png, c \n']
)
def test_tables_as_spreadsheets_save_them(folder, text):
    source = data.from_list(write(folder, text))
    assert source.class_names == ("a,b", "c") and source.labels.tolist() == [0, 1]


def test_a_digest_tells_labels_and_order_apart_but_not_the_place(folder, tmp_path):
    texts = ["x/0.png,a\nx/1.png,b", "x/0.png,b\nx/1.png,a", "x/1.png,b\nx/0.png,a", "x/0.png,a\nx/1.png,b"]
    found = [data.from_list(write(folder, "path,label\n" + text, f"{k}.csv")).digest() for k, text in enumerate(texts)]
    assert len(set(found)) == 3 and found[0] == found[3]


def test_numbers_and_gaps_of_parquet_are_labels_and_none(folder):
    import pyarrow
    import pyarrow.parquet

    table = {"path": ["x/0.png", "x/1.png", "x/2.png"], "label": [2.0, None, 10.0], "age": [1, 2, 3]}
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "list.parquet")
    source = data.open_data(str(folder / "list.parquet"))
    assert source.class_names == ("2", "10") and source.labels.tolist() == [0, -1, 1]


def test_what_is_left_out_is_said(folder, caplog):
    caplog.set_level(logging.WARNING)
    data.from_list(write(folder, "path,label,age\nx/0.png,a,3\nx/1.png,,4\nx/2.png,b,5\nx/3.png,,6"))
    assert "columns that are not used: age" in caplog.text
    assert "rows without a label, which are not evaluated on: 2 of 4 (3, 5)" in caplog.text


@pytest.mark.parametrize(
    "text, error, message",
    [
        (
            "path\nx/0.png\nx/9.png\nx/8.png",
            FileNotFoundError,
            r"files that are not there: 2 of 3 \(row 3 'x/9.png', row 4",
        ),
        ("path\nx/0.png\nx/1.png\nx/0.png", ValueError, r"rows that name a file that an earlier row names: 1 \(4\)"),
        ("path,split\nx/0.png,train\nx/1.png,\n", ValueError, r"rows that have no split: 1 \(3\)"),
        ("path,group\nx/0.png,\nx/1.png,\n", ValueError, r"rows that have no group: 2 \(2, 3\)"),
        ("path,label\nx/0.png,a\nx/1.png\n", ValueError, "row 3 has not 2 fields"),
        ("path,label\nx/0.png,a\nx/1.png,b,c\n", ValueError, "row 3 has not 2 fields"),
        ("path,Label\nx/0.png,a", ValueError, "has a column 'Label'; call it 'label'"),
        ("path,lable\nx/0.png,a", ValueError, "has a column 'lable'; call it 'label'"),
        ("file,label\nx/0.png,a", ValueError, "has no column 'path', only file, label"),
        ("path,path\nx/0.png,a", ValueError, "two columns have the same name"),
        ("path,band\nx/0.png,a", ValueError, "one of the columns image and band"),
        ("path\n", ValueError, "has no rows"),
        ("", ValueError, "has no column 'path', only none"),
        ("path,label\nx/0.png,\udcff", ValueError, "is no table of comma-separated values in UTF-8"),
        (
            "path,group,split\nx/0.png,p1,train\nx/1.png,p1,test\nx/2.png,p2,test",
            ValueError,
            r"groups in more than one split: 1 \(p1\)",
        ),
        (
            "path,image,band\nx/0.png,a,1\nx/1.png,a,2\nx/2.png,b,1",
            ValueError,
            r"images that have not all of the 2 bands 1, 2: 1 \(b\)",
        ),
        (
            "path,image,band\nx/0.png,a,1\nx/1.png,a,1",
            ValueError,
            r"rows that have a band that an earlier row has .*: 1 \(3\)",
        ),
        (
            "path,image,band,label\nx/0.png,a,1,cat\nx/1.png,a,2,dog",
            ValueError,
            r"images whose rows differ in label, split or group: 1 \(a\)",
        ),
    ],
)
def test_mistakes_in_a_list_are_named_with_their_rows(folder, text, error, message):
    (folder / "list.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(error, match=message):
        data.from_list(folder / "list.csv")


def test_damaged_parquet_and_a_missing_library_are_told(folder, monkeypatch):
    (folder / "list.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"list.parquet is no Parquet file, or damaged"):
        data.open_data(str(folder / "list.parquet"))
    with pytest.raises(ValueError, match=r"list.parquet is no Parquet file, or damaged"):
        data.from_list(folder / "list.parquet")
    imported = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return imported(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    for opens in (data.from_list, data.open_data):
        with pytest.raises(ValueError, match=r"list.parquet needs pyarrow: pip install 'ssl_jax\[parquet\]'"):
            opens(str(folder / "list.parquet"))


def test_bands_are_channels_in_natural_order_and_coarse_ones_are_repeated(tmp_path):
    rng = np.random.default_rng(0)
    bands = {"B2": (12, 18), "B10": (2, 3), "B8A": (6, 9)}
    rows, expected = [], []
    for image in "ab":
        arrays = {band: rng.integers(0, 256, size, np.uint8) for band, size in bands.items()}
        for band, array in arrays.items():
            (tmp_path / f"{image}_{band}.png").write_bytes(png(array))
            rows.append(f"{image}_{band}.png,{image},{band},class {image},scene")
        coarse = [np.kron(arrays[b], np.ones((n, n), np.uint8)) for b, n in (("B2", 1), ("B8A", 2), ("B10", 6))]
        expected.append(np.stack(coarse, axis=-1))
    source = data.from_list(write(tmp_path, "path,image,band,label,group\n" + "\n".join(rows[::-1])))
    assert source.bands == ("B2", "B8A", "B10")
    names = [source.image_name(k) for k in range(2)]
    assert (
        names == ["b", "a"]
        and list(source.groups) == ["scene", "scene"]
        and source.class_names == ("class a", "class b")
    )
    for k, name in enumerate(names):
        image, label = source.read(k)
        np.testing.assert_array_equal(image, expected["ab".index(name)])
        assert label == "ab".index(name) and image.flags.c_contiguous


def test_bands_keep_the_type_that_holds_them_all(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, 2]], np.uint8))
    np.save(tmp_path / "b.npy", np.array([[65535, 3]], np.uint16))
    np.save(tmp_path / "c.npy", np.array([[-1, 3]], np.int16))
    text = "path,image,band\na.npy,i,1\nb.npy,i,2\n"
    image, _ = data.from_list(write(tmp_path, text)).read(0)
    assert image.dtype == np.uint16 and image.tolist() == [[[1, 65535], [2, 3]]]
    with pytest.raises(UndecodableImage, match="i: its bands are int16, uint16, uint8; save them with one type"):
        data.from_list(write(tmp_path, text + "c.npy,i,3")).read(0)


def test_bands_whose_sizes_do_not_fit_are_named(tmp_path):
    for name, size in (("a", (9, 9)), ("b", (6, 6))):
        (tmp_path / f"{name}.png").write_bytes(png(np.zeros(size, np.uint8)))
    with pytest.raises(UndecodableImage, match=r"i: its band b.png has 6 x 6 pixels and the largest 9 x 9"):
        data.from_list(write(tmp_path, "path,image,band\na.png,i,a\nb.png,i,b"))[0]


def test_a_file_that_cannot_be_decoded_is_named(folder):
    (folder / "x/0.png").write_bytes(b"no image")
    source = data.from_list(write(folder, "path\nx/0.png\nx/1.png"))
    (folder / "x/1.png").unlink()
    for index, reason in enumerate(["x/0.png: ", "x/1.png: gone"]):
        with pytest.raises(UndecodableImage, match=reason):
            source.read(index)
