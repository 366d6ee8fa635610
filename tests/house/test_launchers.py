"""The launch scripts: what they would do, read from their dry runs; and that a shell can read them at all."""

import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [ROOT / "scripts" / name for name in ("tpu_pod.sh", "gpu_host.sh", "xpk.sh")]
POD = {"TYPE": "v5litepod-16", "ZONE": "us-west4-a", "NAME": "arm", "PROJECT": "lab"}
FLAGS = ["--", "--config=m1_mix", "--config.data.datasets=('a b', \"c\")"]


def call(script: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    base = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return subprocess.run([script, *words], env=base | environment, capture_output=True, text=True, timeout=60)


def commands(run: subprocess.CompletedProcess) -> list[list[str]]:
    assert run.returncode == 0, run.stderr
    return [shlex.split(line) for line in run.stdout.splitlines() if line]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.name)
def test_shellcheck(script):
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    run = subprocess.run([checker, script], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert script.stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.name)
def test_help_and_wrong_usage(script):
    assert "mem0-jax train" in call(script, "--help").stdout
    wrong = call(script, "lunch")
    assert wrong.returncode == 2
    assert "unknown command 'lunch'" in wrong.stderr
    wrong = call(script, "--dry-run", "launch", **POD)
    assert wrong.returncode == 2
    assert "needs the flags of mem0-jax train behind --" in wrong.stderr


def test_a_pod_from_nothing_to_the_end():
    create, archive, copy, install, launch, end = commands(call(SCRIPTS[0], "--dry-run", "run", *FLAGS, **POD))
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "arm"]
    assert create[create.index("--accelerator-type") + 1] == "v5litepod-16"
    assert create[create.index("--runtime-version") + 1] == "v2-alpha-tpuv5-lite"
    assert create[create.index("--zone") + 1] == "us-west4-a"
    assert "--spot" in create
    assert "archive" in archive
    assert copy[3:5] == ["tpu-vm", "scp"]
    for step in (copy, install, launch):
        assert "--worker=all" in step
    assert install[-1].endswith("make -C mem0_jax tpu")
    assert end == ["training", "has", "ended", "well"]


def test_the_flags_reach_the_hosts_unharmed():
    """What ssh hands to a host's shell starts the program with exactly these words."""
    remote = commands(call(SCRIPTS[0], "--dry-run", "launch", *FLAGS, **POD))[0][-1].removeprefix("--command=")
    inner = remote.split("setsid bash -c ", 1)[1]
    script = shlex.split(inner.replace(" > train.log", "\n > train.log").splitlines()[0])[0]
    words = shlex.split(script.split(";")[1])
    assert words == [".venv/bin/mem0-jax", "train", *FLAGS[1:]]
    assert "MEM0_CLUSTER=tpu" in remote


def test_a_slice_that_is_not_preemptible_and_one_of_unknown_type():
    assert "--spot" not in commands(call(SCRIPTS[0], "--dry-run", "create", **POD, SPOT="0"))[0]
    wrong = call(SCRIPTS[0], "--dry-run", "create", **POD | {"TYPE": "v99-8"})
    assert wrong.returncode == 2
    assert "set RUNTIME" in wrong.stderr
    wrong = call(SCRIPTS[0], "--dry-run", "delete", TYPE="v6e-8")
    assert "ZONE is not set" in wrong.stderr


# A gcloud whose slice is a folder: its hosts' shell runs here, and its state is a file.
GCLOUD = """#!/bin/bash
echo "$*" >> "$CLOUD/calls"
case "$*" in
  *"queued-resources describe"*)
    [ -e "$CLOUD/state" ] || { echo "ERROR: NOT_FOUND: no such slice" >&2; exit 1; }
    cat "$CLOUD/state" ;;
  *"queued-resources create"*) mkdir -p "$CLOUD/host"; echo ACTIVE > "$CLOUD/state" ;;
  *"queued-resources delete"*) rm -rf "$CLOUD/state" "$CLOUD/host" ;;
  *"tpu-vm scp"*) cp "$5" "$CLOUD/host/mem0_jax.tar.gz" ;;
  *"tpu-vm ssh"*)
    [ "$(cat "$CLOUD/state")" = ACTIVE ] || exit 255
    for word; do case "$word" in --command=*) cd "$CLOUD/host" && bash -c "${word#--command=}" ;; esac; done ;;
  *) exit 9 ;;
esac
"""
# What `make tpu` leaves: a program that is stopped, then taken away with its slice, then dies, then ends.
MAKE = """#!/bin/bash
mkdir -p mem0_jax/.venv/bin
cat > mem0_jax/.venv/bin/mem0-jax <<'END'
#!/bin/bash
echo "$*" >> "$CLOUD/trained"
case $(wc -l < "$CLOUD/trained") in
  1) exit 130 ;;
  2) echo SUSPENDED > "$CLOUD/state"; sleep 1 ;;
  3) sleep 0.5; kill -9 $PPID ;;
  *) sleep 0.5; exit "${LAST:-0}" ;;
esac
END
chmod +x mem0_jax/.venv/bin/mem0-jax
[ ! -e "$CLOUD/no_network" ] || { rm "$CLOUD/no_network"; exit 1; }
"""


@pytest.fixture
def cloud(tmp_path):
    """The environment of `tpu_pod.sh` with that cloud, and its folder."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("gcloud", GCLOUD), ("make", MAKE)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return tmp_path, POD | {"PATH": f"{programs}:{os.environ['PATH']}", "CLOUD": str(tmp_path), "POLL": "0.2"}


def test_a_pod_is_taken_away_crashes_and_ends_well(cloud):
    folder, environment = cloud
    (folder / "no_network").touch()  # so that the first installation fails
    run = call(SCRIPTS[0], "run", *FLAGS, **environment)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (folder / "trained").read_text().splitlines() == [" ".join(["train", *FLAGS[1:]])] * 4
    for said in ("not be prepared", "is 130, the slice is ACTIVE", "the slice is SUSPENDED", "is lost", "ended well"):
        assert said in run.stdout
    asked = (folder / "calls").read_text()
    assert (asked.count("queued-resources create"), asked.count("queued-resources delete")) == (2, 1)
    assert "slice: ACTIVE, training: 0" in call(SCRIPTS[0], "status", **environment).stdout


def test_training_that_fails_is_not_repeated_and_a_running_one_is_watched(cloud):
    folder, environment = cloud
    (folder / "trained").write_text("before\n" * 3)
    assert call(SCRIPTS[0], "create", **environment).returncode == 0
    assert call(SCRIPTS[0], "ship", **environment).returncode == 0
    assert call(SCRIPTS[0], "launch", *FLAGS, **environment, LAST="1").returncode == 0
    run = call(SCRIPTS[0], "run", *FLAGS, **environment)
    assert run.returncode == 2
    assert "training failed with exit code 1" in run.stderr
    assert len((folder / "trained").read_text().splitlines()) == 4


def test_a_run_on_kubernetes():
    """The checkout goes along, and what the containers' shell gets starts the program with exactly these words."""
    archive, unpack, _, launch = commands(call(SCRIPTS[2], "--dry-run", "launch", *FLAGS, **POD))
    assert archive[-1] == "HEAD"
    shipped = unpack[-1]
    assert not Path(shipped).exists()
    assert launch[:3] == ["xpk", "workload", "create"]
    settings = dict(word.split("=", 1) for word in launch if word.startswith("--") and "=" in word)
    assert settings["--tpu-type"] == "v5litepod-16"
    assert settings["--script-dir"] == shipped
    assert settings["--max-restarts"] == "100"
    assert launch[launch.index("--workload") + 1] == "arm"
    install, program = settings["--command"].split(" && exec ")
    assert install == "make tpu"
    assert shlex.split(program) == [".venv/bin/mem0-jax", "train", *FLAGS[1:]]


def test_a_cluster_on_kubernetes():
    cluster, disk = commands(call(SCRIPTS[2], "--dry-run", "cluster", **POD, MOUNT="/runs"))
    assert cluster[:3] == ["xpk", "cluster", "create"]
    assert "--spot" in cluster
    assert "--enable-gcpfilestore-csi-driver" in cluster
    assert "--mount-point=/runs" in disk
    whole = commands(call(SCRIPTS[2], "--dry-run", "cluster", **POD, SPOT="0"))[0]
    assert "--spot" not in whole
    assert "--on-demand" in whole
    for command, start in (
        ("stop", ["xpk", "workload", "delete"]),
        ("status", ["xpk", "workload", "list"]),
        ("logs", ["kubectl", "logs"]),
        ("delete", ["xpk", "cluster", "delete"]),
    ):
        (words,) = commands(call(SCRIPTS[2], "--dry-run", command, **POD))
        assert [word for word in words if not word.startswith("-")][: len(start)] == start
    for missing in ("PROJECT", "ZONE", "TYPE"):
        wrong = call(SCRIPTS[2], "--dry-run", "cluster", **POD | {missing: ""})
        assert wrong.returncode == 2
        assert f"{missing} is not set" in wrong.stderr


def test_gpu_host_commands():
    (install,) = commands(call(SCRIPTS[1], "--dry-run", "install"))
    assert install[-1] == "gpu"
    (run,) = commands(call(SCRIPTS[1], "--dry-run", "run", *FLAGS))
    assert run[1:] == ["train", *FLAGS[1:]]
    assert commands(call(SCRIPTS[1], "--dry-run", "check"))[0][0] == "nvidia-smi"


def test_slurm_script_is_a_script():
    script = call(SCRIPTS[1], "slurm", *FLAGS, NODES="4").stdout
    assert "#SBATCH --nodes=4" in script
    line = next(line for line in script.splitlines() if line.startswith("srun"))
    assert shlex.split(line)[-2:] == FLAGS[1:]
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_a_crash_is_followed_by_another_try_and_wrong_flags_are_not(tmp_path):
    """The real loop around a program that fails twice, then ends well."""
    host = tmp_path / "scripts" / "gpu_host.sh"
    host.parent.mkdir()
    shutil.copy(SCRIPTS[1], host)
    host.write_text(host.read_text().replace("sleep 5", "sleep 0"))
    program = tmp_path / ".venv" / "bin" / "mem0-jax"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ $(wc -l < {tmp_path}/calls) -ge 3 ] || exit 1\n')
    program.chmod(0o755)
    assert call(host, "run", "--", "--config=a").returncode == 0
    assert (tmp_path / "calls").read_text().splitlines() == ["train --config=a"] * 3
    program.write_text(f"#!/bin/sh\necho again >> {tmp_path}/wrong\nexit 2\n")
    assert call(host, "run", "--", "--config=a").returncode == 2
    assert (tmp_path / "wrong").read_text() == "again\n"
