import builtins
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssl_jax
from ssl_jax import models, weights
from ssl_jax.cli.embed import main
from ssl_jax.data import opening, sources
from tests.cli.test_train import make_folder

SIZE = (16, 16)


def network(**fields):
    """A backbone small enough to compile in no time; `fields` of Backbone."""
    module = models.create("resnet8", stages=(1,), width=0.25)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *SIZE, 3)))
    given = {"image_size": SIZE, "facts": {"model": {"name": "resnet8", "stages": (1,), "width": 0.25}}}
    return weights.Backbone(module, variables, (0.5,) * 3, (0.25,) * 3, **{**given, **fields})


@pytest.fixture(scope="module")
def small():
    return network()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of two classes, six images each, one of which cannot be decoded."""
    path = make_folder(tmp_path_factory.mktemp("images"), count=12, labeled=True)
    (path / "class_0" / "000.png").write_bytes(b"no image")
    return path


def test_a_folders_images_are_named_by_their_files_and_broken_ones_left_out(small, folder):
    source = opening.open_data(str(folder))
    names, h = ssl_jax.embed(small, source)
    expected = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert names == [name for name in expected if name != "class_0/000.png"]
    assert h.shape == (11, small.dim) and h.dtype == np.float32
    image = sources.Subset(source, np.array([expected.index(names[3])]))
    (name,), (row,) = ssl_jax.embed(small, image)
    assert name == names[3]
    np.testing.assert_allclose(row, h[3], rtol=1e-4, atol=1e-5)


def test_arrays_are_named_by_their_index_and_embedded_as_the_backbone_does(small):
    images = np.random.default_rng(0).integers(0, 256, (5, *SIZE, 3), np.uint8)
    source = sources.Subset(sources.ArraySource(images), np.array([4, 1]))
    names, h = ssl_jax.embed(small, source)
    assert names == ["4", "1"]
    np.testing.assert_allclose(h, small.features(images[[4, 1]]), rtol=1e-4, atol=1e-5)


def test_what_is_unknown_is_asked_for():
    source = sources.ArraySource(np.zeros((2, *SIZE, 3), np.uint8))
    with pytest.raises(ValueError, match=r"give image_size=\(height, width\)"):
        ssl_jax.embed(network(image_size=None), source)
    assert ssl_jax.embed(network(image_size=None), source, image_size=SIZE)[1].shape == (2, 4)
    with pytest.raises(ValueError, match="how their images were normalized; pass normalized=True, or say it"):
        ssl_jax.embed(dataclasses.replace(network(), mean=(), std=()), source)


@pytest.fixture
def saved(small, tmp_path):
    weights.save_backbone(
        tmp_path,
        small.variables,
        {**small.facts, "image_size": [*SIZE], "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3},
    )
    return tmp_path


def test_the_command_writes_names_labels_and_features_for_numpy(saved, folder, small, capsys):
    out = saved / "h.npz"
    main([f"--workdir={saved}", f"--data={folder}", f"--out={out}"])
    assert "left out 1 of 12 images that cannot be decoded" in capsys.readouterr().out
    with np.load(out) as found:
        names, h = ssl_jax.embed(small, opening.open_data(str(folder)))
        assert found["names"].tolist() == names
        np.testing.assert_allclose(found["embeddings"], h, rtol=1e-5)
        classes = [found["class_names"][label] for label in found["labels"]]
    assert classes == [name.split("/")[0] for name in names]


def test_the_command_writes_them_as_parquet(saved, folder):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = saved / "h.parquet"
    main([f"--backbone={saved / weights.FILE}", f"--data={folder}", f"--out={out}"])
    table = parquet.read_table(out)
    assert table.column_names == ["name", "embedding", "label"] and table.num_rows == 11
    assert table["label"].to_pylist() == [name.split("/")[0] for name in table["name"].to_pylist()]
    assert len(table["embedding"][0]) == 4 and str(table["embedding"].type.value_type) == "float"


def test_arrays_without_labels_have_no_column_of_them(saved):
    np.save(saved / "images.npy", np.zeros((3, *SIZE, 3), np.uint8))
    main([f"--workdir={saved}", f"--data={saved / 'images.npy'}", f"--out={saved / 'h.npz'}"])
    assert sorted(np.load(saved / "h.npz")) == ["embeddings", "names"]


def test_parquet_without_its_library_is_refused_before_any_work(monkeypatch, tmp_path):
    imported = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return imported(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SystemExit, match=r"h.parquet needs pyarrow: pip install 'ssl_jax\[parquet\]', or use \.npz"):
        main(["--workdir=X", "--data=Y", f"--out={tmp_path / 'h.parquet'}"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--workdir=X", "--out=h.npz"], "--data is missing"),
        (["--workdir=X", "--data=Y", "--out=h.csv"], r"name must end in \.npz or \.parquet, got"),
        (["--workdir=no/where", "--data=Y", "--out=h.npz"], "no file no/where"),
    ],
)
def test_what_the_command_cannot_do_is_told(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)
