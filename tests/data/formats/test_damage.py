"""Six hundred damaged files of TIFF, DICOM, NIfTI and others: each is read or named, in bounded memory and time."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_jax.data.formats import UndecodableImage, read_image, table
from tests.data.formats import damage
from tests.flags import environment

ROOT = Path(__file__).parents[3]
# Each file is read by each meaning of pages, as a whole and by a window. Whatever is raised but UndecodableImage, and
# whatever ends the process, ends the test.
READ = """
import json, resource, sys, time
from pathlib import Path
from ssl_jax.data import formats

files = sorted(Path(sys.argv[1]).iterdir())
for file in files:  # imports all readers
    if file.name.startswith("whole"):
        formats.read_image(file, file.name, None, (), "images", 0 if formats.look(file, "images").count > 1 else None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read, refused, slowest = [], {}, 0.0
for file in files:
    for pages in ("bands", "images"):
        start = time.process_time()
        try:
            index = 0 if formats.look(file, pages).count > 1 else None
            image = formats.read_image(file, file.name, None, (), pages, index)
            with formats.open_image(file, pages=pages, index=index) as opened:
                assert opened.shape == image.shape
                opened.read(0, 0, min(9, image.shape[0]), min(9, image.shape[1]))
            read.append(file.name)
        except formats.UndecodableImage as error:
            refused[file.name] = error.reason
        slowest = max(slowest, time.process_time() - start)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"read": read, "refused": refused, "megabytes": grown // 1024, "slowest": slowest}))
"""


def test_damaged_files_are_read_or_named_in_bounded_memory(tmp_path):
    damage.write_damaged(tmp_path / "images", 600)
    command = [sys.executable, "-c", READ, str(tmp_path / "images")]
    run = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert not run.stderr, run.stderr[:3000]  # no library reports on its own
    found = json.loads(run.stdout)
    assert not [name for name in found["refused"] if name.startswith("whole")]
    assert len(found["refused"]) > 250
    assert not [reason for reason in found["refused"].values() if "\n" in reason or not reason]
    assert found["megabytes"] < 600
    assert found["slowest"] < 10


@pytest.mark.parametrize("name", damage.whole_files())
def test_a_file_cut_anywhere_is_never_read_with_other_pixels(name, tmp_path):
    """It is refused, or what is cut off was no part of the image."""
    data = damage.whole_files()[name]
    path = tmp_path / name
    path.write_bytes(data)
    pages, index = ("images", 0) if re.match(r"pages|ome|imagej|.*dcm|.*nii", name) else ("", None)
    whole = read_image(path, name, None, (), pages, index)
    for share in (1, 5, 9, 13, 17, 18, 19):
        path.write_bytes(data[: len(data) * share // 20])
        with contextlib.suppress(UndecodableImage):
            assert read_image(path, name, None, (), pages, index).tobytes() == whole.tobytes(), share


def test_the_page_of_formats_names_every_ending_and_extra():
    page = (ROOT / "docs" / "formats.md").read_text()
    endings = set(re.findall(r"`(\.[a-z0-9.]+)`", page.split("## Types")[0]))
    assert endings == set(table.ENDINGS)
    assert {f"ssl_jax[{form.extra}]" for form in table.FORMATS if form.extra} <= set(
        re.findall(r"ssl_jax\[\w+\]", page)
    )
