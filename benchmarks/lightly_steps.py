"""The same first steps as lightly's: .venv/bin/python benchmarks/lightly_steps.py --peer PEER/bin/python

Both sides begin with the same parameters and the same memory, and get the same views (lightly_steps_ours.py,
lightly_steps_peer.py; PEER as for against_lightly.py). So their losses are the same but for rounding and what the
methods do differently. The view of each image passes by itself on both sides, as lightly's losses are written, though
some of our methods let all views pass together.

The losses go to docs/against_lightly.json, and to the page of against_lightly.py.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from against_lightly import HERE, METHODS, RECORD, STEPS, config_of, export, page, steps_key
from methods_record import Measured

from ssl_jax import config as configs
from ssl_jax.workdir import facts

FIRST = 40  # steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="python of the environment with lightly")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--workdir", type=Path, default=HERE.parent / "runs" / "against_lightly")
    arguments = parser.parse_args()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    export(arguments.workdir)
    for name in arguments.methods.split(","):
        digest = configs.digest(config_of(name, 0))
        if RECORD.read().get(steps_key(name), {}).get("config") != digest:
            measured = compare(name, arguments.peer, arguments.workdir)
            RECORD.add(steps_key(name), measured, config=digest, commit=facts.commit())
        found = RECORD.read()[steps_key(name)]
        print(f"{name}: first losses {found['ours'][0]:.6g} and {found['peer'][0]:.6g}", flush=True)
    RECORD.page.write_text(page(RECORD.read()))
    print(f"wrote {RECORD.page}")


def compare(name, peer, workdir):
    subprocess.run([sys.executable, HERE / "lightly_steps_ours.py", name, workdir], check=True)
    subprocess.run([peer, HERE / "lightly_steps_peer.py", name, str(STEPS), workdir], check=True)
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
