"""docs/peers.md: which methods other libraries have."""

from benchmarks import peers


def test_the_page_is_made_of_the_rows():
    assert peers.PAGE.read_text() == peers.page(peers.rows()), "run python benchmarks/peers.py"


def test_rows_are_of_known_peers_once_each():
    rows = peers.rows()
    assert {row.peer for row in rows} == set(peers.PEERS)
    assert {row.has for row in rows} == set(peers.HAS)
    assert all(row.path for row in rows)
    assert len({(row.method, row.peer, row.variant) for row in rows}) == len(rows)
