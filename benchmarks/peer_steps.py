"""The same first steps as another library's: .venv/bin/python benchmarks/peer_steps.py --peer PEER/bin/python

Both sides begin with the same parameters and the same memory, and get the same views (peer_steps_ours.py, and
peer_torch.py; PEER as for against_peers.py). So their losses are the same but for rounding and what the methods do
differently. The view of each image passes by itself on both sides, as the libraries' losses are written, though some of
our methods let all views pass together.

The losses go to docs/against_LIBRARY.json, and to the page of against_peers.py.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from against_peers import HERE, export, page, steps_key
from methods_record import Measured
from peer_libraries import LIBRARIES, STEPS

from ssl_jax import config as configs
from ssl_jax.workdir import facts

FIRST = 40  # steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=LIBRARIES, default="lightly")
    parser.add_argument("--peer", required=True, help="python of the environment with it")
    parser.add_argument("--methods", help="names, with commas; all by default")
    parser.add_argument("--workdir", type=Path, default=HERE.parent / "runs")
    arguments = parser.parse_args()
    library = LIBRARIES[arguments.library]
    workdir, record = export(library, arguments.workdir), library.record
    for name in arguments.methods.split(",") if arguments.methods else library.methods:
        digest = configs.digest(library.config_of(name, 0))
        if record.read().get(steps_key(name), {}).get("config") != digest:
            record.add(
                steps_key(name), compare(library, name, arguments.peer, workdir), config=digest, commit=facts.commit()
            )
        found = record.read()[steps_key(name)]
        print(f"{name}: first losses {found['ours'][0]:.6g} and {found['peer'][0]:.6g}", flush=True)
    record.page.write_text(page(library, record.read()))
    print(f"wrote {record.page}")


def compare(library, name, peer, workdir):
    subprocess.run([sys.executable, HERE / "peer_steps_ours.py", library.title, name, workdir], check=True)
    subprocess.run([peer, HERE / library.script, name, "first", str(STEPS), workdir], check=True)
    sides = {side: workdir / f"{start}-{name}.npz" for side, start in (("ours", "start"), ("peer", "steps"))}
    numbers, versions = {}, []
    for side, file in sides.items():
        with np.load(file) as found:
            numbers[side] = [round(loss, 5) for loss in found["losses"].tolist()]
            versions.append(str(found["versions"]))
        file.unlink()
    return Measured(numbers | {"versions": "; ".join(versions)}, {})


if __name__ == "__main__":
    main()
