"""One data set in every kind of file that can be read, each written by the kind's own library."""

import io
import json
import tarfile

import numpy as np
from PIL import Image

from ssl_jax.data import pack

CLASSES = ("cat", "dog", "eel")
COUNT = 30
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 18, 20, 3), np.uint8)
LABELS = np.arange(COUNT) % len(CLASSES)
GROUPS = [f"patient {k // 3}" for k in range(COUNT)]


def png(image):
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members):
    """members: (name, bytes), in order."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def csv_list(root):
    (root / "images").mkdir()
    rows = ["path,label,group"]
    for k, image in enumerate(IMAGES):
        (root / f"images/{k:02d}.png").write_bytes(png(image))
        rows.append(f"images/{k:02d}.png,{CLASSES[LABELS[k]]},{GROUPS[k]}")
    (root / "list.csv").write_text("\n".join(rows))
    return root / "list.csv"


def parquet_list(root):
    import pyarrow
    import pyarrow.parquet

    csv_list(root)
    table = {
        "path": [f"images/{k:02d}.png" for k in range(COUNT)],
        "label": [CLASSES[k] for k in LABELS],
        "group": GROUPS,
    }
    pyarrow.parquet.write_table(pyarrow.table(table), root / "list.parquet")
    return root / "list.parquet"


def npz(root):
    np.savez(root / "a.npz", images=IMAGES, labels=LABELS, groups=GROUPS, class_names=CLASSES)
    return root / "a.npz"


def compressed_npz(root):
    np.savez_compressed(root / "a.npz", images=IMAGES, labels=LABELS, groups=GROUPS, class_names=CLASSES)
    return root / "a.npz"


def hdf5(root):
    import h5py

    with h5py.File(root / "a.h5", "w") as file:
        file.create_dataset("scans/images", data=IMAGES, chunks=(1, *IMAGES.shape[1:]), compression="gzip")
        file["scans/labels"] = [CLASSES[k] for k in LABELS]
        file["scans/groups"] = GROUPS
    return f"{root}/a.h5#scans"


def zarr(root):
    import zarr

    group = zarr.open_group(root / "a.zarr", mode="w")
    group.create_array("images", data=IMAGES, chunks=(1, *IMAGES.shape[1:]))
    group.create_array("labels", data=LABELS)
    group.create_array("groups", shape=COUNT, dtype="string")[:] = np.array(GROUPS, dtype=object)
    group.create_array("class_names", shape=len(CLASSES), dtype="string")[:] = np.array(CLASSES, dtype=object)
    return root / "a.zarr"


def tars(root):
    for shard in range(3):
        members = []
        for k in range(10 * shard, 10 * shard + 10):
            facts = json.dumps({"label": CLASSES[LABELS[k]], "group": GROUPS[k]}).encode()
            members += [(f"scans/{k:02d}.png", png(IMAGES[k])), (f"scans/{k:02d}.json", facts)]
        write_tar(root / f"scans-{shard:03d}.tar", members)
    return f"{root}/scans-{{000..002}}.tar"


def hugging_face(root):
    """As `datasets` writes it: its metadata, row groups of some rows."""
    import pyarrow
    import pyarrow.parquet

    features = {"picture": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    schema = pyarrow.schema({"picture": kind, "label": pyarrow.int64(), "group": pyarrow.string()})
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (root / "data").mkdir()
    for shard in range(2):
        rows = range(15 * shard, 15 * shard + 15)
        pictures = [{"bytes": png(IMAGES[k]), "path": f"{k:02d}.png"} for k in rows]
        columns = [pictures, LABELS[rows].tolist(), [GROUPS[k] for k in rows]]
        table = pyarrow.table([pyarrow.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema)
        pyarrow.parquet.write_table(table, root / f"data/train-{shard:05d}-of-00002.parquet", row_group_size=4)
    return f"{root}/data/*.parquet"


def array_record(root):
    """Without labels and groups."""
    from array_record.python import array_record_module

    for shard in range(2):
        writer = array_record_module.ArrayRecordWriter(str(root / f"a.array_record-{shard}"), "group_size:1")
        for image in IMAGES[15 * shard : 15 * shard + 15]:
            writer.write(png(image))
        writer.close()
    return f"{root}/a.array_record-*"


def packed(root):
    pack(str(csv_list(root)), root / "packed", shard_mb=0.005)
    return root / "packed"


WRITERS = {
    writer.__name__: writer
    for writer in (csv_list, parquet_list, npz, compressed_npz, hdf5, zarr, tars, hugging_face, array_record, packed)
}
UNLABELED = ("array_record",)
