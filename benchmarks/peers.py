"""Which methods other libraries have: python benchmarks/peers.py writes docs/peers.md.

benchmarks/peers.csv has a line for each method of a peer: our name of it, the variant if it is one, whether the peer
trains it or has its loss only, and the file or folder that shows it, at the commit in PEERS.
"""

import collections
import csv
import dataclasses
from pathlib import Path

from ssl_jax.methods import METHODS

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "benchmarks" / "peers.csv", ROOT / "docs" / "peers.md"
HAS = ("trains", "loss only")

HEAD = """# Methods beside other libraries

Which of ssl_jax's methods others have, and what they have that ssl_jax has not. "trains": a script or a config trains
it. "loss only": the loss is there, and nothing that trains by it. Each entry links to the file or folder that shows it,
at the commit below. A library may have more in forks or extensions; published weights without training are not counted.

Made by `python benchmarks/peers.py` of `benchmarks/peers.csv`.

"""


@dataclasses.dataclass(frozen=True)
class Peer:
    repository: str  # on GitHub
    commit: str
    date: str


PEERS = {
    "lightly": Peer("lightly-ai/lightly", "e8d317fc5a87f4387a85a35e689869039ec249ee", "2026-08-21"),
    "solo-learn": Peer("vturrisi/solo-learn", "9187ea39c2c3f43c455ab06664d2b019a9802954", "2026-04-22"),
    "stable-pretraining": Peer(
        "rbalestr-lab/stable-pretraining", "9aa93f8b6153eebb73f57d4853ccf8a13d848310", "2026-07-16"
    ),
    "VISSL": Peer("facebookresearch/vissl", "09270ed25a6c2cf71263d955b64cbe076d34ac45", "2024-03-02"),
    "mmpretrain": Peer("open-mmlab/mmpretrain", "ee7f2e88501f61aa95c742dd5f429f039935ee90", "2024-11-01"),
    "DINOv3": Peer("facebookresearch/dinov3", "6876159a11b4df116f30f667f8c9888617df0751", "2026-07-15"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """method: ssl_jax's name, or the one that it would have. variant: empty, or which variant of the method it is."""

    method: str
    peer: str
    variant: str
    has: str
    path: str

    def cell(self) -> str:
        peer = PEERS[self.peer]
        words = f"{self.has} ({self.variant})" if self.variant else self.has
        return f"[{words}](https://github.com/{peer.repository}/tree/{peer.commit}/{self.path})"


def rows() -> list[Row]:
    with RECORD.open(newline="") as file:
        return [Row(**row) for row in csv.DictReader(file, strict=True)]


def page(of: list[Row]) -> str:
    found: dict[tuple[str, str], list[Row]] = collections.defaultdict(list)
    for row in of:
        found[row.method, row.peer].append(row)

    def table(methods: list[str]) -> list[str]:
        cells = [[name, *(", ".join(row.cell() for row in found[name, peer]) for peer in PEERS)] for name in methods]
        return [f"| {' | '.join(line)} |" for line in [["method", *PEERS], ["---"] * (len(PEERS) + 1), *cells]]

    trained = {peer: len({row.method for row in of if row.peer == peer and row.has == "trains"}) for peer in PEERS}
    other = sorted({row.method for row in of} - set(METHODS))
    counts = [
        f"| [{name}](https://github.com/{peer.repository}) | {trained[name]} | `{peer.commit[:12]}` of {peer.date} |"
        for name, peer in PEERS.items()
    ]
    parts = [
        "\n".join(["| library | methods that it trains | commit |", "|---|---|---|", *counts]),
        f"\nssl_jax trains {len(METHODS)}.\n",
        "## Methods of ssl_jax\n",
        "\n".join(table(list(METHODS))),
    ]
    if other:
        parts += ["\n## Not in ssl_jax\n", "\n".join(table(other))]
    return HEAD + "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(rows()))
