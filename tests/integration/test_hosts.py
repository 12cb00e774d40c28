"""Several machines: network namespaces are the hosts, and what is typed is what README shows."""

import json
import os
import re
import shutil
import subprocess

import pytest
from conftest import FALAJ, ROOT, SLOW, eventually, processes_of

DATA = ROOT / "configs/examples/data/german_credit.csv"
VIEW = (ROOT / "configs/examples/credit.toml").read_text().split("# Ten-fold")[0]
PURPOSE = ("--purpose", "credit-scoring")


README = (ROOT / "README.md").read_text()
COMMANDS, NAMESPACES = re.findall(r"```sh\n(.*?)```", README.split("## A cluster on several machines")[1].split("\n## ")[0], re.S)
TAG = f"fj{os.getpid() % 100000}"  # other tests, or somebody who tries the README, may use its names now
NET = "10.203.77."


def renamed(text):
    return text.replace("10.0.0.", NET).replace("dev oasis", f"dev {TAG}b").replace("add oasis", f"add {TAG}b").replace("set oasis", f"set {TAG}b") \
        .replace("master oasis", f"master {TAG}b").replace("host$i", f"{TAG}h$i").replace("veth$i", f"{TAG}v$i").replace("sudo ", "")


class Host:
    def __init__(self, number, directory):
        self.namespace, self.address, self.dir, self.nodes = f"{TAG}h{number}", f"{NET}{number}", directory, []
        directory.mkdir()

    def words(self, line):
        line = renamed(line.split("  #")[0]).replace("./", f"{self.dir}/")
        return ["ip", "netns", "exec", self.namespace, *line.replace("falaj ", f"{FALAJ} ", 1).split()]

    def type(self, line, check=True):
        done = subprocess.run(self.words(line), capture_output=True, text=True, timeout=300 * SLOW)
        assert not check or done.returncode == 0, done
        return done

    def start(self, line):
        with (self.dir / "log").open("w") as log:
            self.nodes.append(subprocess.Popen(self.words(line.rstrip("& ")), stderr=log))

    def falaj(self, *args, check=True):
        done = subprocess.run(["ip", "netns", "exec", self.namespace, FALAJ, *map(str, args)], capture_output=True, text=True, timeout=300 * SLOW)
        assert not check or done.returncode == 0, done
        return done


@pytest.fixture
def hosts(tmp_path):
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("only root can make network namespaces, with `ip`")
    made = [Host(i, tmp_path / f"host{i}") for i in (1, 2)]
    try:
        setup = NAMESPACES[: NAMESPACES.index("sudo ip netns exec")]
        done = subprocess.run(["bash", "-ec", renamed(setup)], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
        yield made
    finally:
        for host in made:
            for node in host.nodes:
                node.terminate()
            for node in host.nodes:
                try:
                    node.wait(30 * SLOW)
                except subprocess.TimeoutExpired:
                    node.kill()
                    node.wait()
        eventually("all processes have ended", lambda: not processes_of(tmp_path))
        for i in (1, 2):
            ip("link", "del", f"{TAG}v{i}")  # first: with its namespace it would go later, in the kernel's own time
            ip("netns", "del", f"{TAG}h{i}")
        ip("link", "del", f"{TAG}b")
        left = ip("link").stdout + ip("netns").stdout
        assert TAG not in left, left


def ip(*args):
    return subprocess.run(["ip", *args], capture_output=True, text=True)


def test_what_the_readme_shows_makes_a_cluster_over_two_hosts(hosts, tmp_path):
    one, two = hosts
    cluster = one.dir / "falaj"
    assert f"exec host1 {COMMANDS.splitlines()[1]}" in NAMESPACES, "both are said to begin with the same command"

    def on_one(*args, check=True):
        return one.falaj(*args, "--dir", cluster, check=check)

    host, token = None, None
    for line in COMMANDS.splitlines():
        if line.startswith("# on 10.0.0."):
            host = hosts[int(line[len("# on 10.0.0.")]) - 1]
        elif line.endswith("&"):
            host.start(line)
            if host is one:  # who types is not as quick as this
                eventually("control answers", lambda: on_one("status", check=False).returncode == 0)
        elif "TOKEN" in line.split("#")[0]:
            host.type(line.replace("TOKEN", token))
        elif line.strip():
            said = host.type(line).stdout.strip()
            token = said if "falaj token" in line else token

    def both():
        status = json.loads(on_one("status", "-o", "json").stdout)
        return {n["name"]: n["address"] for n in status["view"]["nodes"] if n["up"]} == {"control": f"{one.address}:7400", "worker-1": f"{two.address}:7400"} and len(status["nodes"]) == 2

    eventually("they see one another", both)
    assert re.search(rf"worker-1 +compute,features,serving +up +\d+ +{two.address}:7400 .*MB", on_one("status").stdout)
    assert "node/agent/worker-1" in on_one("actors", "worker-1").stdout
    refused = on_one("down", check=False)
    assert refused.returncode == 6 and "started by hand" in refused.stderr

    (tmp_path / "credit.toml").write_text(
        VIEW + '[[job]]\nname = "credit"\nview = "applicants"\nlabel = "class"\npositive = "bad"\npurpose = "credit-scoring"\nepochs = 3\nworkers = 2\ngate = { min_auc = 0.5 }\n'
    )
    on_one("apply", "-f", tmp_path / "credit.toml")
    on_one("features", "ingest", "applicants", DATA)
    assert on_one("features", "count", "applicants").stdout.strip() == "1000"
    row = json.loads(on_one("features", "get", "applicants", "A0001", *PURPOSE, "-o", "json").stdout)["rows"][0]
    assert row["status"] == "present"
    on_one("train", "-f", tmp_path / "credit.toml")
    on_one("models", "alias", "credit", "production", 1)
    on_one("deploy", "credit", "--view", "applicants", "--read-purpose", "credit-scoring")
    assert "version 1" in on_one("predict", "credit", "A0001", *PURPOSE).stdout

    one.nodes[0].terminate()
    assert one.nodes[0].wait(30 * SLOW) == 0
    assert not (cluster / "cluster.json").exists()
