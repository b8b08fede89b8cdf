"""What is waited for when a store does not answer, and what is not."""

import asyncio
import subprocess
import sys

import pytest

from ssl_jax import stores
from tests import flags
from tests.stores import faults
from tests.stores.emulators import environment, running


class Answer(Exception):
    def __init__(self, status):
        self.status = status


@pytest.mark.parametrize(
    "error, passing",
    [
        (Answer(503), True),
        (Answer(500), True),
        (Answer(429), True),
        (Answer(404), False),
        (Answer(403), False),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (OSError("Forbidden: b/bucket"), False),
        (ValueError(), False),
        (KeyError(), False),
        (stores.StoreError(), False),
    ],
)
def test_which_errors_pass(error, passing):
    assert stores.is_passing(error) == passing


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(stores, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(stores, "LONGEST_WAIT", 0.05)
    monkeypatch.setenv(stores.PATIENCE_VARIABLE, "0.5")


def test_a_call_is_repeated_until_it_succeeds(hasty):
    answers = [Answer(503), ConnectionResetError(), Answer(429)]

    async def call():
        if answers:
            raise answers.pop()
        return "found"

    assert asyncio.run(stores.patiently(call, "gs://b/a")) == "found"


def test_after_the_limit_a_sentence_says_what_to_do(hasty):
    async def call():
        raise Answer(503)

    sentence = (
        r"^gs://b/a: the store has not answered for \d s \(Answer: 503\)\. What was written before is whole; when the "
        "store answers, the same command goes on from the newest checkpoint$"
    )
    with pytest.raises(stores.StoreError, match=sentence):
        asyncio.run(stores.patiently(call, "gs://b/a"))


def test_what_is_no_fault_of_the_stores_is_raised_at_once():
    calls = []

    async def call():
        calls.append(1)
        raise PermissionError

    with pytest.raises(PermissionError):
        asyncio.run(stores.patiently(call, "gs://b/a"))
    assert len(calls) == 1


READER = """
import sys
from ssl_jax import paths, stores
from ssl_jax.data import open_data
from tests.data.kinds import IMAGES, png

folder = paths.path(sys.argv[1])
for write in (paths.upload, lambda path, content: path.write_bytes(content)):  # the second as Orbax does
    for k in range(6):
        write(folder / f"{k}.png", png(IMAGES[k]))
source = open_data(sys.argv[1])
assert len(source) == 6
for k in range(6):
    assert (source[k] == IMAGES[k]).all()
print("read", flush=True)
input()  # until the store is away
file = folder / "0.png"
questions = (file.exists, file.is_dir, file.is_file, folder.is_dir, lambda: paths.names(folder), lambda: source.read(0))
for question in questions:
    try:
        print("answered", question())
    except stores.StoreError as error:  # not UndecodableImage, which would skip the image
        print(error)
"""


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_store_that_is_away_answers_no_question_and_damages_no_image(scheme):
    with running(scheme) as port, faults.before(port, refuse=3) as proxy:
        program = subprocess.Popen(
            [sys.executable, "-c", READER, f"{scheme}://bucket/images"],
            env=flags.environment(**environment(scheme, proxy.port), SSL_JAX_STORE_PATIENCE="3"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert program.stdout.readline() == "read\n"
        assert proxy.refused >= 4
        proxy.stop()
        answers, _ = program.communicate("\n", timeout=120)
    assert answers.count("the store has not answered for") == 6, answers
