"""Real processes on free ports. A cluster is started with the `falaj` binary of $FALAJ, and none of its processes may be left behind."""

import json
import os
import pathlib
import random
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FALAJ = os.environ.get("FALAJ", str(ROOT / "build/dev/falaj"))
SLOW = 4 if os.environ.get("FALAJ_SANITIZED") else 1


class Failed(Exception):
    def __init__(self, args, done):
        super().__init__(f"{' '.join(map(str, args))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        self.code = done.returncode
        self.stdout = done.stdout
        self.stderr = done.stderr


def falaj(*args, check=True, timeout=120, env=None):
    done = subprocess.run([FALAJ, *map(str, args)], capture_output=True, text=True, timeout=timeout * SLOW, env={**os.environ, **(env or {})})
    if check and done.returncode != 0:
        raise Failed(args, done)
    return done


def eventually(what, ready, timeout=30.0):
    """Waits until ready() gives something true, and gives it back; the last exception is told when time is up."""
    end = time.monotonic() + timeout * SLOW
    last = None
    while time.monotonic() < end:
        try:
            value = ready()
            if value:
                return value
        except (Failed, OSError, ValueError) as e:
            last = e
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {timeout * SLOW} s; last: {last}")


def processes_of(directory):
    """Pids whose command line names this directory."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(directory).encode() in line and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


class Cluster:
    def __init__(self, directory):
        self.dir = pathlib.Path(directory)

    def up(self):
        falaj("up", "--dir", self.dir, "--timeout", 60 * SLOW)
        return self

    def down(self):
        falaj("down", "--dir", self.dir, check=False)
        eventually("the cluster's processes have ended", lambda: not processes_of(self.dir))

    def run(self, *args, check=True, timeout=120):
        return falaj(*args, "--dir", self.dir, check=check, timeout=timeout)

    def json(self, *args, timeout=120):
        return json.loads(self.run(*args, "-o", "json", timeout=timeout).stdout)

    def audited(self, *words):
        """Waits for a line of the audit log that holds all these words: nodes send their entries there when they come to it."""
        def look():
            return [line for line in self.run("audit", "show").stdout.splitlines() if all(w in line for w in words)]

        return eventually(f"{words} is in the audit log", look)[0]

    @property
    def file(self):
        return json.loads((self.dir / "cluster.json").read_text())

    @property
    def http(self):
        return self.file["http"]

    def pid(self, name):
        return next(n["pid"] for n in self.file["nodes"] if n["name"] == name)

    def kill(self, name):
        """SIGKILL, then waits until the launcher has started it again."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        eventually(f"{name} was started again", lambda: self.pid(name) not in (0, pid))


def deploy_echo(cluster, folder, replicas):
    """A model that gives back its input, column `x` as column `y`: an answer proves whose it is."""
    import onnx
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "echo", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "echo.onnx")
    cluster.run("models", "import", folder / "echo.onnx", "--name", "echo")
    cluster.run("deploy", "echo", "--version", "1", "--replicas", replicas)


@pytest.fixture(scope="session", autouse=True)
def nothing_left(tmp_path_factory):
    """No test leaves a process or a mount behind; directories go with pytest.ini's word."""
    base = tmp_path_factory.getbasetemp()
    yield
    processes = processes_of(base)
    mounts = [line.split()[1] for line in pathlib.Path("/proc/self/mounts").read_text().splitlines() if str(base) in line]
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    for mount in mounts:
        subprocess.run(["umount", "-l", mount], check=False)
    assert (processes, mounts) == ([], [])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    c = Cluster(tmp_path_factory.mktemp("cluster") / "falaj").up()
    yield c
    c.down()


@pytest.fixture
def seed():
    value = int(os.environ.get("FALAJ_TEST_SEED", random.randrange(1 << 32)))
    print(f"FALAJ_TEST_SEED={value}")
    return random.Random(value)
