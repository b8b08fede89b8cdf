"""The limit on a test's processor time: whose time it counts."""

import subprocess
import sys
from pathlib import Path

from tests.flags import environment

ROOT = Path(__file__).parents[1]
CONFTEST = """
import subprocess, sys, time
import pytest
from tests import times

BUSY = "import time\\nwhile time.process_time() < 1.5: pass\\nprint(flush=True)\\ntime.sleep(60)"


def pytest_addoption(parser):
    times.add_options(parser)


def pytest_configure(config):
    config.pluginmanager.register(times.Times(config))


@pytest.fixture(scope="session")
def server():
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield
        process.kill()
"""
TESTS = """
import time

def test_that_asks_the_server(server):
    pass

def test_that_is_busy():
    start = time.process_time()
    while time.process_time() - start < {seconds}:
        pass
"""


def run(folder, seconds):
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_one.py").write_text(TESTS.format(seconds=seconds))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--limit", "1", str(folder)]
    given = {**environment(), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=120)


def test_what_the_sessions_servers_used_is_no_tests_time(tmp_path):
    done = run(tmp_path, seconds=0)
    assert done.returncode == 0, done.stdout


def test_a_test_over_the_limit_fails_the_session_and_is_named(tmp_path):
    done = run(tmp_path, seconds=1.2)
    assert done.returncode == 1
    assert "over 1 s of processor time" in done.stdout and "test_that_is_busy" in done.stdout
    assert "test_that_asks_the_server" not in done.stdout
