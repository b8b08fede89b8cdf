"""The command `ssl_jax`, and the package as it is installed."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ssl_jax
from ssl_jax.__main__ import COMMANDS, KEPT_MEMORY, main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_it_lists_its_commands(argv, capsys):
    main(argv)
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_says_what_it_takes(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert not ended.value.code and f"ssl_jax {name}" in capsys.readouterr().out
    assert importlib.import_module(COMMANDS[name][0]).main


def test_an_unknown_command_is_told_the_nearest():
    with pytest.raises(SystemExit, match=r"error: no command 'trian'; did you mean 'train'\?"):
        main(["trian"])


def test_its_version_is_the_packages(capsys):
    main(["--version"])
    assert capsys.readouterr().out.strip() == ssl_jax.__version__


@pytest.mark.slow
def test_installed_from_a_wheel_it_trains_in_an_empty_directory(tmp_path):
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", f"--wheel-dir={tmp_path}", str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("ssl_jax-*.whl")
    subprocess.run([*pip, "install", "--no-deps", f"--target={installed}", str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    options = dict(cwd=empty, env=environment, capture_output=True, text=True)
    where = subprocess.run([sys.executable, "-c", "import ssl_jax; print(ssl_jax.__file__)"], **options)
    assert Path(where.stdout.strip()).is_relative_to(installed), where
    arguments = ["--config", "simclr:tiny", "--workdir", "x", "--config.data.split=train[:1%]", "--config.steps=1"]
    run = subprocess.run([sys.executable, str(installed / "bin" / "ssl_jax"), "train", *arguments], **options)
    assert run.returncode == 0, run.stderr
    assert (empty / "x" / "backbone.safetensors").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's variable")
@pytest.mark.parametrize("given", [{}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}])
def test_a_command_starts_again_with_memory_that_is_kept_unless_the_environment_chooses(given):
    program = "import os, sys; from ssl_jax.__main__ import main; sys.argv = ['', '--version']; main()"
    program += "; print(os.environ['GLIBC_TUNABLES'], os.getpid())"
    others = {name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", "LD_PRELOAD")}
    command = subprocess.Popen([sys.executable, "-c", program], env=others | given, stdout=subprocess.PIPE, text=True)
    version, last = command.communicate()[0].splitlines()
    assert version == ssl_jax.__version__
    assert last == f"{given.get('GLIBC_TUNABLES', KEPT_MEMORY)} {command.pid}"  # the same process
