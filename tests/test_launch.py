"""The scripts in launch/, with stand-ins for Python and for the clusters' programs, or printing what they would do."""

import contextlib
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from ssl_jax import config as configs
from ssl_jax import dist

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
TRAINING = ["--config", "simclr:tiny", "--workdir", "/shared/a run"]


def run(*command, **environment):
    found = subprocess.run(
        ["bash", *map(str, command)], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )
    return found.returncode, found.stdout, found.stderr


def printed(output):
    """The commands that a dry run has printed."""
    return [shlex.split(line) for line in output.splitlines() if line.startswith("'")]


def exit_codes():
    _, output, _ = run("-c", f"source {shlex.quote(str(LAUNCH))}/common.sh; echo $STOPPED $NOT_MET $STUCK")
    return dict(zip(("STOPPED", "NOT_MET", "STUCK"), map(int, output.split()), strict=True))


def test_scripts_know_the_exit_code_of_a_process_that_waited_in_vain():
    assert exit_codes()["NOT_MET"] == dist.NOT_MET


def sourced(lines, **environment):
    """What lines of bash print after launch/common.sh. Sleeping is printed."""
    lines = f"source {shlex.quote(str(LAUNCH))}/common.sh; sleep() {{ echo slept $1; }}; {lines}"
    return run("-c", lines, **environment)


def test_restarts_wait_longer_each_time_up_to_ten_minutes():
    _, output, _ = sourced('for n in 0 1 2 5 6 50; do back_off "$n"; done')
    assert output.split() == ["10", "20", "40", "320", "600", "600"]


@pytest.mark.parametrize("code, expected", [(75, 3), (69, 3), (70, 3), (134, 3), (1, 0), (137, 0), (143, 0)])
def test_restarts_in_a_row_are_bounded(code, expected):
    lines = f"for n in 1 2 3 4 5; do may_restart {code} 60 && wait_to_restart {code}; done"
    _, output, _ = sourced(lines, RESTARTS="3", FIRST_WAIT="1")
    assert re.findall(r"restart (\d) of 3 in (\d) s", output) == [("1", "1"), ("2", "2"), ("3", "4")][:expected]
    assert ("after 3 restarts in a row" in output) == (expected > 0)


def test_a_training_that_lasted_begins_a_new_row():
    lines = "for lasted in 60 60 1800 60; do may_restart 70 $lasted && wait_to_restart 70; done"
    _, output, _ = sourced(lines, RESTARTS="2", FIRST_WAIT="1")
    assert re.findall(r"restart (\d) of 2", output) == ["1", "2", "1", "2"]


@pytest.mark.parametrize(
    "files, environment, expected",
    [
        ((), {}, ""),
        (("nvidiactl",), {}, ""),
        (("nvidia0",), {"JAX_PLATFORMS": "cpu"}, ""),
        (("nvidia0",), {}, "--xla_gpu_enable_latency_hiding_scheduler=true 0.9"),
        (
            ("nvidia0",),
            {"XLA_FLAGS": "--xla_dump_to=x", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"},
            "--xla_gpu_enable_latency_hiding_scheduler=true --xla_dump_to=x 0.5",
        ),
        (  # the user's own wins
            ("nvidia0",),
            {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false"},
            "--xla_gpu_enable_latency_hiding_scheduler=false 0.9",
        ),
    ],
)
def test_flags_are_set_where_there_is_a_gpu(tmp_path, files, environment, expected):
    for name in files:
        (tmp_path / name).touch()
    given = {"DEVICE_FILES": str(tmp_path), "JAX_PLATFORMS": "", "XLA_FLAGS": "", **environment}
    lines = f'use_gpu_flags {shlex.quote(sys.executable)}; echo "$XLA_FLAGS ${{XLA_PYTHON_CLIENT_MEM_FRACTION:-}}"'
    code, output, error = sourced(lines, **given)
    shown, found = output.splitlines()[:-1], output.splitlines()[-1].strip()
    assert (code, found) == (0, expected or environment.get("XLA_FLAGS", "")), error
    assert bool(shown) == bool(expected)


def test_a_flag_that_jaxlib_does_not_know_is_left_out(tmp_path, stand_in):
    (tmp_path / "nvidia0").touch()
    python = stand_in("exit 134")["PYTHON"]  # as XLA's abort
    given = {"DEVICE_FILES": str(tmp_path), "JAX_PLATFORMS": "", "XLA_FLAGS": ""}
    code, output, _ = sourced(f'use_gpu_flags {python}; echo "flags:$XLA_FLAGS"', **given)
    assert code == 0 and output.splitlines()[-1] == "flags:"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    assert run("-n", script)[0] == 0
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", "-x", script], cwd=ROOT, check=True)


def test_another_python_needs_apt_and_says_so(tmp_path):
    for name in ("bash", "dirname", "sed"):
        (tmp_path / name).symlink_to(shutil.which(name))
    code, output, _ = run(LAUNCH / "test_versions.sh", "--help", PATH=str(tmp_path))
    assert code == 0 and output.startswith("bash launch/test_versions.sh") and "$ROOT_CACHE" in output
    code, output, error = run(LAUNCH / "test_versions.sh", PATH=str(tmp_path))
    assert (code, output) == (1, "") and "as root on Debian or Ubuntu; elsewhere, run launch/test.sh" in error
    assert len(error.splitlines()) == 1


def test_scripts_find_fashion_mnist(tmp_path):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text(f'#!/usr/bin/env bash\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    found = run(
        "-c",
        f"cd {shlex.quote(str(tmp_path))}; source {shlex.quote(str(LAUNCH))}/common.sh; get_fashion_mnist",
        PYTHONPATH=str(ROOT),
    )
    assert (found[0], found[1]) == (0, "Fashion-MNIST: 60,000 images\n"), found[2]


@pytest.fixture
def stand_in(tmp_path):
    """lines of bash -> the environment in which the scripts run them instead of Python."""

    def make(lines):
        python = tmp_path / "python"
        python.write_text(f"#!/usr/bin/env bash\n{lines}\n")
        python.chmod(0o755)
        return {"PYTHON": str(python)}

    return make


@pytest.fixture
def programs(tmp_path):
    """name=lines of bash, ... -> the environment in which the scripts find these programs first."""

    def make(**named):
        (tmp_path / "bin").mkdir()
        for name, lines in named.items():
            (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{lines}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        return {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    return make


@pytest.mark.parametrize(
    "lines, code", [("touch {}/backbone.safetensors", 0), ("exit 0", 75), ("exit 3", 3), ("kill -9 $$", 137)]
)
def test_train_tells_finished_from_stopped(tmp_path, stand_in, lines, code):
    assert run(LAUNCH / "train.sh", f"--workdir={tmp_path}", **stand_in(lines.format(tmp_path)))[0] == code


def test_train_passes_sigterm_on_and_waits(tmp_path, stand_in):
    lines = f"trap 'sleep 0.5; echo saved; exit 0' TERM\ntouch {tmp_path}/ready\nwhile true; do sleep 0.1; done"
    command = ["bash", str(LAUNCH / "train.sh"), "--workdir", str(tmp_path)]
    process = subprocess.Popen(command, env={**os.environ, **stand_in(lines)}, stdout=subprocess.PIPE, text=True)
    wait_for(tmp_path / "ready")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "saved\n"
    assert process.returncode == 75


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def test_local_starts_each_process_with_its_number(tmp_path, stand_in):
    lines = f'touch {tmp_path}/backbone.safetensors; echo "$@" "$XLA_FLAGS"'
    code, output, _ = run(LAUNCH / "local.sh", 3, "--workdir", tmp_path, DEVICES="2", **stand_in(lines))
    assert code == 0
    found = sorted(output.splitlines(), key=lambda line: line.split("--process_id ")[1])
    assert len({line.split("--coordinator ")[1].split()[0] for line in found}) == 1
    for index, line in enumerate(found):
        assert f"--num_processes 3 --process_id {index} --xla_force_host_platform_device_count=2" in line


def test_local_stops_the_others_of_a_process_that_fails(tmp_path, stand_in):
    # The second fails, the first would wait for it for ever.
    lines = 'case "$*" in *"--process_id 1") exit 7 ;; esac\nexec sleep 1000'
    begun = time.monotonic()
    assert run(LAUNCH / "local.sh", 2, "--workdir", tmp_path, **stand_in(lines))[0] == 7
    assert time.monotonic() - begun < 30


def test_local_passes_sigterm_on_to_all(tmp_path, stand_in):
    lines = f'touch {tmp_path}/ready${{@: -1}}\ntrap "exit 0" TERM\nwhile true; do sleep 0.1; done'
    command = ["bash", str(LAUNCH / "local.sh"), "2", "--workdir", str(tmp_path)]
    process = subprocess.Popen(command, env={**os.environ, **stand_in(lines)})
    for index in range(2):
        wait_for(tmp_path / f"ready{index}")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75


def test_local_prints_what_it_would_do():
    code, output, _ = run(LAUNCH / "local.sh", "--dry-run", 2, *TRAINING)
    commands = printed(output)
    assert code == 0 and len(commands) == 2
    for index, command in enumerate(commands):
        assert command[:2] == ["env", "JAX_PLATFORMS=cpu"] and command[3:9] == ["bash", "launch/train.sh", *TRAINING]
        assert command[-4:] == ["--num_processes", "2", "--process_id", str(index)]


@pytest.fixture
def gpus(tmp_path):
    """The environment of a machine with GPUs 0, 1 and 10 for launch/gpu_node.sh."""
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    return {"DEVICE_FILES": str(tmp_path / "dev"), "CUDA_VISIBLE_DEVICES": "", "PORT": "23000", "FIRST_WAIT": "0"}


@pytest.mark.parametrize("visible, expected", [("", ["0", "1", "10"]), ("1,0", ["1", "0"]), ("7", ["7"])])
def test_gpu_node_has_a_process_for_each_gpu(gpus, visible, expected):
    code, output, error = run(
        LAUNCH / "gpu_node.sh", "--dry-run", *TRAINING, **gpus | {"CUDA_VISIBLE_DEVICES": visible}
    )
    commands = printed(output)
    assert code == 0, error
    assert [command[1] for command in commands] == [f"CUDA_VISIBLE_DEVICES={gpu}" for gpu in expected]
    for index, command in enumerate(commands):
        assert command[2:10] == ["bash", "launch/train.sh", *TRAINING, "--platform", "gpu"]
        meeting = [
            "--coordinator",
            "127.0.0.1:23000",
            "--num_processes",
            str(len(expected)),
            "--process_id",
            str(index),
        ]
        assert command[10:] == (meeting if len(expected) > 1 else [])


def test_gpu_node_with_one_process(gpus):
    code, output, _ = run(LAUNCH / "gpu_node.sh", "--dry-run", "--one_process", *TRAINING, **gpus)
    (command,) = printed(output)
    assert code == 0 and command[1] == "CUDA_VISIBLE_DEVICES=0,1,10" and "--coordinator" not in command


def test_gpu_node_wants_a_gpu(gpus, tmp_path):
    code, _, error = run(LAUNCH / "gpu_node.sh", *TRAINING, **gpus | {"DEVICE_FILES": str(tmp_path)})
    assert code == 1 and "no device file of an NVIDIA GPU" in error and "launch/local.sh" in error


@pytest.mark.parametrize("code, starts, ends", [(70, 3, 70), (1, 1, 1), (75, 3, 75)])
def test_gpu_node_starts_again_what_was_stuck(gpus, tmp_path, stand_in, code, starts, ends):
    lines = f'[[ $1 == -c ]] && exit; echo "$@" >>{tmp_path}/starts; exit {code}'
    found, output, _ = run(
        *(LAUNCH / "gpu_node.sh", "--one_process", "--workdir", tmp_path), **gpus, **stand_in(lines), RESTARTS="2"
    )
    assert (found, len((tmp_path / "starts").read_text().splitlines())) == (ends, starts), output


def test_gpu_node_gives_each_start_a_port_of_its_own(gpus, tmp_path, stand_in):
    lines = f"""[[ $1 == -c ]] && exit
echo "$@" >>{tmp_path}/starts
until grep -q "process_id 0$" {tmp_path}/starts; do sleep 0.05; done
[[ $(grep -c "process_id 1$" {tmp_path}/starts) -lt 2 && $* == *"process_id 1" ]] && exit 70
[[ $(grep -c "process_id 1$" {tmp_path}/starts) -lt 2 ]] && exec sleep 1000
touch {tmp_path}/backbone.safetensors"""
    gpus["CUDA_VISIBLE_DEVICES"] = "0,1"
    code, output, _ = run(LAUNCH / "gpu_node.sh", "--workdir", tmp_path, **gpus, **stand_in(lines))
    ports = re.findall(r"127.0.0.1:(\d+)", (tmp_path / "starts").read_text())
    assert code == 0 and sorted(ports) == ["23000", "23000", "23001", "23001"], output


def test_gpu_node_is_not_started_again_after_sigterm(gpus, tmp_path, stand_in):
    lines = f'[[ $1 == -c ]] && exit; touch {tmp_path}/ready; trap "exit 0" TERM; while true; do sleep 0.1; done'
    command = ["bash", str(LAUNCH / "gpu_node.sh"), "--one_process", "--workdir", str(tmp_path)]
    process = subprocess.Popen(command, env={**os.environ, **gpus, **stand_in(lines)}, stdout=subprocess.PIPE)
    wait_for(tmp_path / "ready")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75


@pytest.mark.parametrize("arguments", [[], ["two"], ["0"], ["2"], ["2", "--workdir"]])
def test_local_refuses_what_it_cannot_start(arguments):
    code, _, error = run(LAUNCH / "local.sh", *arguments)
    assert code == 1
    assert ("number of processes" if arguments[:1] != ["2"] else "--workdir") in error


def test_slurm_trains_and_is_queued_again():
    asked = {"SLURM_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "8"}
    code, output, _ = run(LAUNCH / "slurm.sbatch", *TRAINING, DRY_RUN="yes", **asked)
    train, requeue = printed(output)
    assert code == 0
    assert train[0] == "srun" and train[-len(TRAINING) - 2 :] == ["bash", "launch/train.sh", *TRAINING]
    assert "--cpus-per-task=8" in train  # srun does not take it from sbatch
    assert "--kill-on-bad-exit=0" in train  # the first that has saved would end those that save still
    assert requeue == ["scontrol", "requeue", "77"]
    text = (LAUNCH / "slurm.sbatch").read_text()
    assert "#SBATCH --requeue\n" in text and "#SBATCH --signal=TERM@" in text


@pytest.mark.parametrize(
    "code, starts, count, requeued",
    [(0, 1, 0, 0), (3, 1, 0, 0), (69, 3, 0, 0), (70, 3, 0, 0), (143, 1, 0, 0), (75, 1, 1, 1), (75, 1, 2, 0)],
)
def test_slurm_queues_only_what_was_stopped_and_starts_again_what_was_stuck(
    tmp_path, programs, code, starts, count, requeued
):
    """count: how often the job was queued again before."""
    environment = programs(srun=f"echo >>{tmp_path}/starts; exit {code}", scontrol=f"echo >>{tmp_path}/requeued")
    environment |= {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": str(count), "RESTARTS": "2", "FIRST_WAIT": "0"}
    assert run(LAUNCH / "slurm.sbatch", *TRAINING, **environment)[0] == code
    assert len((tmp_path / "starts").read_text().splitlines()) == starts
    assert (tmp_path / "requeued").exists() == requeued


POD = ["pod", "v5litepod-256", "us-west4-a", *TRAINING]


@pytest.fixture(autouse=True)
def clone(tmp_path_factory, monkeypatch):
    """What git takes for the clone: nothing in it is changed, as it may be in that of the tests."""
    path = tmp_path_factory.mktemp("clone")
    (path / "kept.py").touch()
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=path, check=True)
    monkeypatch.setenv("GIT_DIR", str(path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(path))
    return path


def on_workers(**environment):
    """The commands for the workers of a dry run: [install, train]."""
    code, output, error = run(LAUNCH / "tpu_pod.sh", "--dry-run", *POD, **environment)
    assert code == 0, error
    return [command[-1] for command in printed(output) if "ssh" in command]


def test_tpu_pod_asks_installs_trains_and_deletes():
    code, output, _ = run(LAUNCH / "tpu_pod.sh", "--dry-run", *POD)
    assert code == 0
    create, archive, copy, install, train, delete = printed(output)
    assert create[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"] and create[-1] == "--spot"
    assert create[create.index("--accelerator-type") + 1] == "v5litepod-256"
    assert archive[:2] == ["git", "archive"] and "scp" in copy
    for command in (install, train):
        assert command[command.index("--worker") + 1] == "all"
    words = shlex.split(train[-1])
    assert words[words.index("launch/train.sh") :][: len(TRAINING) + 1] == ["launch/train.sh", *TRAINING]
    assert "delete" in delete and "--force" in delete


@pytest.mark.parametrize("options", [["--dry-run"], []])
@pytest.mark.parametrize("changed", ["kept.py", "new.py"])
def test_tpu_pod_refuses_to_leave_out_what_is_not_committed(tmp_path, programs, clone, options, changed):
    (clone / changed).write_text("changed")
    environment = programs(gcloud=f"touch {tmp_path}/asked; exit 1", sleep="")
    code, output, error = run(LAUNCH / "tpu_pod.sh", *options, *POD, **environment)
    assert (code, output) == (1, "") and not (tmp_path / "asked").exists()
    assert "would not be sent" in error and "commit" in error and changed in error


# On a machine whose own Python can no more than install with pip.
PYTHON = """echo "python3 $*" >>{0}/calls
[[ $* == "-m pip install "* ]] && mkdir -p uv/bin && cp {0}/bin/uv uv/bin"""
UV = """echo "uv $*" >>{0}/calls
[[ $1 != venv ]] || {{ mkdir -p .venv/bin && cp {0}/bin/uv .venv/bin/python; }}"""


def test_tpu_pod_installs_the_locked_versions_with_a_python_of_its_own(tmp_path, programs):
    install, _ = on_workers(SETUP="cd /; touch ~/mounted")
    environment = programs(python3=PYTHON.format(tmp_path), uv=UV.format(tmp_path), tar="")
    for _ in range(2):
        code, _, error = run("-c", f"cd; {install}", HOME=str(tmp_path), **environment)
        assert code == 0, error
    assert (tmp_path / "mounted").exists()
    tool, environment, packages, again = (tmp_path / "calls").read_text().splitlines()
    assert "--target uv uv==" in tool
    assert environment.startswith("uv venv") and "--python 3.11" in environment
    (version,) = re.findall(r"^jax==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert packages == again == f"uv pip install -q -r requirements.lock jax[tpu]=={version} -e ."


# A slice, which `create` makes ACTIVE at once. A line of `trainings` is the exit code of one, the state that it leaves,
# and how many times that cannot be read; the lines of `later` are states that come while the script sleeps.
GCLOUD = """cd {0}; echo "$*" >>calls
case "$*" in
    *" describe "*)
        if [[ -s failing ]]; then sed -i 1d failing; echo "ERROR: (gcloud) UNAVAILABLE: 503" >&2; exit 1; fi
        cat state 2>/dev/null || {{ echo "ERROR: (gcloud) NOT_FOUND: 'pod' was not found." >&2; exit 1; }} ;;
    *" create "*) [[ ! -f state ]] && echo ACTIVE >state ;;
    *" delete "*) rm state ;;
    *launch/train.sh*)
        read -r code after failing <trainings; sed -i 1d trainings
        [[ -z $after ]] || echo "$after" >state; [[ $after != NONE ]] || rm state
        yes | head -n "${{failing:-0}}" >failing
        exit "$code" ;;
esac"""
SLEEP = "cd {0}; [[ ! -s later ]] || {{ head -n 1 later >state; sed -i 1d later; }}"


@pytest.fixture
def on_slice(tmp_path, programs):
    """(first state, trainings) -> exit code, what was printed, [number of requests, of trainings, of deletions]."""
    environment = programs(gcloud=GCLOUD.format(tmp_path), sleep=SLEEP.format(tmp_path), git="")

    def train(state, *trainings, later=(), failing=0):
        files = {"trainings": trainings, "later": later, "failing": "y" * failing, "calls": ()}
        for name, lines in (files | ({} if state == "NONE" else {"state": [state]})).items():
            (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        code, output, error = run(LAUNCH / "tpu_pod.sh", *POD, **environment)
        calls = (tmp_path / "calls").read_text()
        return code, output + error, [calls.count(word) for word in (" create ", "launch/train.sh", " delete ")]

    return train


def test_tpu_pod_asks_again_for_a_slice_that_was_taken_away(on_slice):
    code, output, counts = on_slice("NONE", "1 SUSPENDED", "0")
    assert (code, counts) == (0, [2, 2, 2]), output
    assert "pod is SUSPENDED" in output


@pytest.mark.parametrize(
    "state, later", [("SUSPENDED", ()), ("FAILED", ()), ("SUSPENDING", ["SUSPENDED"]), ("PROVISIONING", ["SUSPENDED"])]
)
def test_tpu_pod_asks_again_where_it_finds_the_slice_taken_away(on_slice, state, later):
    code, output, counts = on_slice(state, "0", later=later)
    assert (code, counts) == (0, [1, 1, 2]), output


def test_tpu_pod_goes_on_where_the_state_cannot_be_read_for_a_while(on_slice):
    code, output, counts = on_slice("ACTIVE", "0", failing=3)
    assert (code, counts) == (0, [0, 1, 1]), output
    assert "UNAVAILABLE: 503" in output


def test_tpu_pod_deletes_nothing_where_the_state_cannot_be_read(on_slice):
    for trainings, failing in (([], 100), (["1 SUSPENDED 100"], 0)):
        code, output, counts = on_slice("ACTIVE", *trainings, failing=failing)
        assert (code, counts) == (1, [0, len(trainings), 0]), output
        assert "state of pod could not be read" in output


@pytest.mark.parametrize("training", ["75", "255", "69", "70"])
def test_tpu_pod_starts_again_on_a_slice_that_is_there_still(on_slice, training):
    code, output, counts = on_slice("ACTIVE", training, training, "0")
    assert (code, counts) == (0, [0, 3, 1]), output


@pytest.mark.parametrize("training", ["1", "1 ACTIVE 1"])
def test_tpu_pod_leaves_the_slice_of_a_training_that_fails(on_slice, training):
    code, output, counts = on_slice("ACTIVE", training)
    assert (code, counts) == (1, [0, 1, 0]), output
    assert "ended with an error" in output


def test_tpu_pod_gives_up_after_so_many_restarts(on_slice, monkeypatch):
    monkeypatch.setenv("RESTARTS", "2")
    code, output, counts = on_slice("ACTIVE", "70", "70", "70", "0")
    assert (code, counts) == (1, [0, 3, 0]), output
    assert "after 2 restarts in a row" in output


def test_tpu_pod_does_not_ask_again_for_a_slice_that_others_deleted(on_slice):
    code, output, counts = on_slice("NONE", "255 NONE")
    assert (code, counts) == (1, [1, 1, 0]), output
    assert "pod is not there any more" in output


@pytest.fixture
def worker(tmp_path):
    """(lines of launch/train.sh, options of Popen) -> the training, begun as on a worker whose home is tmp_path."""
    started = []
    _, train = on_workers()

    def start(lines, **options):
        (tmp_path / "ssl_jax" / "launch").mkdir(parents=True, exist_ok=True)
        (tmp_path / "ssl_jax" / "launch" / "train.sh").write_text(lines)
        started.append(subprocess.Popen(["bash", "-c", train], cwd=tmp_path, start_new_session=True, **options))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_tpu_pod_trains_once_at_a_time_on_a_worker(tmp_path, worker):
    first = worker("touch ../begun; until [[ -f ../go ]]; do sleep 0.1; done; exit 3")
    wait_for(tmp_path / "begun")
    for command in on_workers():
        code, _, error = run("-c", f"cd {tmp_path}; {command}")
        assert code == 75 and "still running here" in error
    (tmp_path / "go").touch()
    assert first.wait(timeout=60) == 3
    assert worker("exit 4").wait(timeout=60) == 4


def test_tpu_pod_training_outlives_its_connection(tmp_path, worker):
    lines = "set -e; echo first; until [[ -f ../go ]]; do sleep 0.1; done; seq 100000; echo last; touch ../finished"
    training = worker(lines, stdout=subprocess.PIPE, text=True)
    assert training.stdout.readline() == "first\n"
    training.stdout.close()
    (tmp_path / "go").touch()
    assert training.wait(timeout=60) == 0
    assert (tmp_path / "finished").exists()


def test_kubernetes_has_what_the_processes_need():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"], job["apiVersion"]) == ("Service", "Job", "batch/v1")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy wants it
    (container,) = pod["containers"]
    assert container["command"] == ["bash", "launch/train.sh"]
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert given["JAX_NUM_PROCESSES"] == str(spec["completions"])
    host, port = given["JAX_COORDINATOR_ADDRESS"].split(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert int(port) == service["spec"]["ports"][0]["port"] == container["ports"][0]["containerPort"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert spec["backoffLimit"] == 10 * spec["completions"]
    assert ignored_codes(spec) == [exit_codes()["STOPPED"]]
    check_config(container)


def ignored_codes(job):
    """Exit codes of the container that the Job does not count."""
    rules = [rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    return [code for rule in rules if rule["operator"] == "In" for code in rule["values"]]


def check_config(container):
    config = next(argument for argument in container["args"] if argument.startswith("--config="))
    configs.get_config(config.removeprefix("--config="))


STRING, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}


def an_object(*required, **properties):
    return {"type": "object", "required": [*required], "properties": properties, "additionalProperties": False}


# The part of JobSet's API that the manifests use (jobset.sigs.k8s.io, v1alpha2), from its documented fields: no package
# of PyPI or npm has its schema. What a Job's template holds is checked by Kubernetes' own schema.
RESTARTS = ("RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob", "RestartJobAndIgnoreMaxRestarts")
JOBSET = an_object(
    *("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=an_object("name", name=STRING, annotations={"type": "object", "additionalProperties": STRING}),
    spec=an_object(
        "replicatedJobs",
        failurePolicy=an_object(
            maxRestarts=COUNT,
            restartStrategy={"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]},
            rules={
                "type": "array",
                "items": an_object(
                    *("name", "action"),
                    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                    action={"enum": ["FailJobSet", *RESTARTS]},
                    onJobFailureReasons={
                        "type": "array",
                        "uniqueItems": True,
                        "items": {
                            "enum": [
                                *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes"),
                                *("MaxFailedIndexesExceeded", "PodFailurePolicy"),
                            ]
                        },
                    },
                ),
            },
        ),
        replicatedJobs={
            "type": "array",
            "items": an_object("name", "template", name=STRING, replicas=COUNT, template={"type": "object"}),
        },
    ),
)
KUBERNETES = "1.33"


def test_kubernetes_fits_its_schema():
    for manifest in yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    manifest["spec"]["backOffLimit"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="backOffLimit"):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("name, limit", [("gke_tpu", "google.com/tpu"), ("gke_gpu", "nvidia.com/gpu")])
def test_jobsets_fit_their_schema_and_have_what_the_processes_need(name, limit):
    jobset = yaml.safe_load((LAUNCH / f"{name}.yaml").read_text())
    jsonschema.validate(jobset, JOBSET)
    (jobs,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **jobs["template"]}
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["bash", "launch/train.sh"] and limit in container["resources"]["limits"]
    assert spec["completions"] == spec["parallelism"] and spec["completionMode"] == "Indexed"
    assert spec["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert ignored_codes(spec) == [exit_codes()["STOPPED"]]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    check_config(container)
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert "RESTART_ATTEMPT" in given
    if name == "gke_gpu":
        assert given["JAX_NUM_PROCESSES"] == str(spec["completions"] * jobs["replicas"])
        host, port = given["JAX_COORDINATOR_ADDRESS"].split(":")
        assert host == f"{jobset['metadata']['name']}-{jobs['name']}-0-0.{jobset['metadata']['name']}"
        assert int(port) == container["ports"][0]["containerPort"]
    else:
        chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
        assert container["resources"]["limits"][limit] * spec["completions"] == chips


def dockerfile():
    """[(instruction, the rest)] of launch/Dockerfile, without comments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (LAUNCH / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line]


def test_the_image_is_made_of_files_that_there_are():
    instructions = dockerfile()
    assert [name for name, _ in instructions[:2]] == ["ARG", "FROM"]
    for name, rest in instructions:
        if name == "COPY":
            assert all((ROOT / file).exists() for file in rest.split()[:-1])
    left_out = (LAUNCH / "Dockerfile.dockerignore").read_text().split()
    assert ".git" in left_out and not {"requirements.lock", "ssl_jax", "launch", "README.md", "LICENSE"} & {*left_out}
    if shutil.which("hadolint"):
        subprocess.run(["hadolint", LAUNCH / "Dockerfile"], check=True)


@pytest.mark.parametrize("platform", ["cpu", "cuda12", "cuda13", "tpu", "rocm"])
def test_the_image_installs_the_platform_s_plugin(tmp_path, programs, platform):
    (install,) = (rest for name, rest in dockerfile() if name == "RUN" and "requirements.lock" in rest)
    environment = programs(pip='printf "%s\\n" "$@"') | {"PLATFORM": platform}
    found = subprocess.run(
        ["sh", "-ec", install], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if platform == "rocm":
        assert found.returncode == 1 and "PLATFORM=rocm: it is cpu, cuda12" in found.stderr
        return
    assert found.returncode == 0, found.stderr
    requirement = Requirement(found.stdout.split()[-1])
    assert requirement.extras == ({platform} if platform != "cpu" else set())
    if platform != "cpu":
        (ours,) = map(Requirement, extras[platform])
        (version,) = (str(one.version) for one in requirement.specifier)
        assert ours.extras == requirement.extras and ours.specifier.contains(version)


def test_train_waits_longer_before_each_restart_of_a_cluster(tmp_path, stand_in, programs):
    environment = stand_in("exit 3") | programs(sleep=f'echo "$1" >>{tmp_path}/slept')
    for attempt in ("", "0", "1", "3"):
        given = environment | {"RESTART_ATTEMPT": attempt}
        assert run(LAUNCH / "train.sh", f"--workdir={tmp_path}", **given)[0] == 3
    assert (tmp_path / "slept").read_text().split() == ["10", "40"]
