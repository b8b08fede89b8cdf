"""The scripts in launch/, with stand-ins for Python and for the clusters' programs, or printing what they would do."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

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
    _, output, _ = run("-c", f"source {shlex.quote(str(LAUNCH))}/common.sh; echo $STOPPED $NOT_MET")
    return dict(zip(("STOPPED", "NOT_MET"), map(int, output.split()), strict=True))


def test_scripts_know_the_exit_code_of_a_process_that_waited_in_vain():
    assert exit_codes()["NOT_MET"] == dist.NOT_MET


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    assert run("-n", script)[0] == 0
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", "-x", script], cwd=ROOT, check=True)


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


@pytest.mark.parametrize("preloaded, expected", [("", "tcmalloc"), ("libm.so.6", "libm.so.6")])
def test_train_preloads_tcmalloc_where_it_is_installed(tmp_path, stand_in, preloaded, expected):
    (tmp_path / "libtcmalloc_minimal.so.4").write_bytes(b"")  # bash warns that it is none, and goes on
    ldconfig = tmp_path / "ldconfig"
    ldconfig.write_text(
        "#!/bin/sh\n"
        "echo '    libtcmalloc_minimal_debug.so.4 (libc6,x86-64) => /nowhere'\n"
        f"echo '    libtcmalloc_minimal.so.4 (libc6,x86-64) => {tmp_path}/libtcmalloc_minimal.so.4'\n"
    )
    ldconfig.chmod(0o755)
    environment = stand_in(f"echo $LD_PRELOAD > {tmp_path}/preloaded; touch {tmp_path}/backbone.safetensors")
    path = f"{tmp_path}:{os.environ['PATH']}"
    code, *_ = run(LAUNCH / "train.sh", f"--workdir={tmp_path}", **environment, PATH=path, LD_PRELOAD=preloaded)
    found = (tmp_path / "preloaded").read_text().strip()
    assert code == 0 and found == (preloaded or str(tmp_path / "libtcmalloc_minimal.so.4"))
    assert expected in found


def test_train_takes_large_pages_without_tcmalloc(tmp_path, stand_in):
    (tmp_path / "ldconfig").write_text("#!/bin/sh\n")
    (tmp_path / "ldconfig").chmod(0o755)
    environment = stand_in(f"echo $LD_PRELOAD $GLIBC_TUNABLES > {tmp_path}/used; touch {tmp_path}/backbone.safetensors")
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LD_PRELOAD": "", "GLIBC_TUNABLES": ""}
    code, *_ = run(LAUNCH / "train.sh", f"--workdir={tmp_path}", **environment)
    assert code == 0 and "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0" in (tmp_path / "used").read_text()


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


@pytest.mark.parametrize("code, requeued", [(0, False), (3, False), (69, False), (143, False), (75, True)])
def test_slurm_queues_only_what_was_stopped(tmp_path, programs, code, requeued):
    environment = programs(srun=f"exit {code}", scontrol=f'echo "$@" >{tmp_path}/requeued')
    assert run(LAUNCH / "slurm.sbatch", *TRAINING, SLURM_JOB_ID="77", **environment)[0] == code
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


@pytest.mark.parametrize("training", ["75", "255", "69"])
def test_tpu_pod_starts_again_on_a_slice_that_is_there_still(on_slice, training):
    code, output, counts = on_slice("ACTIVE", training, training, "0")
    assert (code, counts) == (0, [0, 3, 1]), output


@pytest.mark.parametrize("training", ["1", "1 ACTIVE 1"])
def test_tpu_pod_leaves_the_slice_of_a_training_that_fails(on_slice, training):
    code, output, counts = on_slice("ACTIVE", training)
    assert (code, counts) == (1, [0, 1, 0]), output
    assert "ended with an error" in output


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
    ignored = [rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    values = sorted(exit_codes().values())
    assert ignored == [{"containerName": container["name"], "operator": "In", "values": values}]
    config = next(argument for argument in container["args"] if argument.startswith("--config="))
    configs.get_config(config.removeprefix("--config="))
