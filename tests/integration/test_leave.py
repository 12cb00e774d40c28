"""Nodes that leave: drained under load without a failed request, taken back, stopped for good and forgotten. And who is taken for dead,
and how soon."""

import http.client
import json
import os
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
from conftest import FALAJ, SLOW, deploy_echo, eventually, falaj


def node(cluster, name):
    """What control says of it; {}: nothing, as when it has just started itself."""
    return next((n for n in cluster.json("status")["view"]["nodes"] if n["name"] == name), {})


def replicas_on(cluster, name):
    return [d for d in cluster.json("status")["view"]["directory"] if d["node"] == name and d["name"].startswith("serving/replica/")]


@pytest.fixture(scope="module")
def served(cluster, tmp_path_factory):
    deploy_echo(cluster, tmp_path_factory.mktemp("echo"), 2)
    eventually("a replica on each node", lambda: replicas_on(cluster, "serving-1") and replicas_on(cluster, "serving-2"), timeout=60)
    return cluster


class Requests:
    """One after the other in a thread, until stopped."""

    def __init__(self, cluster):
        self.cluster, self.good, self.bad, self.stop = cluster, 0, [], threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        connection = http.client.HTTPConnection(self.cluster.http, timeout=60 * SLOW)
        while not self.stop.is_set():
            x = float(self.good)
            body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [x]}]}
            connection.request("POST", "/v2/models/echo/infer", json.dumps(body))
            answer = connection.getresponse()
            content = json.loads(answer.read())
            if answer.status == 200 and np.float32(content["outputs"][0]["data"][0]) == np.float32(x):
                self.good += 1
            else:
                self.bad.append((answer.status, content))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(60 * SLOW)
        assert not self.thread.is_alive()


def test_a_drained_node_is_empty_and_no_request_fails(served):
    with Requests(served) as requests:
        eventually("requests are answered", lambda: requests.good > 10)
        done = served.run("drain", "serving-1")
        assert "takes nothing new" in done.stdout and "is empty" in done.stdout
        assert not replicas_on(served, "serving-1") and len(replicas_on(served, "serving-2")) >= 2
        assert "leaving" in served.run("status").stdout and node(served, "serving-1")["draining"]
        served.kill("serving-1")  # as a restart does it
        eventually("it is back, and still leaving", lambda: node(served, "serving-1").get("draining") and node(served, "serving-1")["up"])
        assert not replicas_on(served, "serving-1")
        assert "again" in served.run("drain", "--undo", "serving-1").stdout
        eventually("replicas are spread again", lambda: replicas_on(served, "serving-1"), timeout=60)
        seen = requests.good
        eventually("requests go on", lambda: requests.good > seen + 10)
    assert requests.bad == []
    served.audited("nodes.drain", "node/serving-1", "person/admin")


def test_control_remembers_who_is_leaving(served):
    served.run("drain", "serving-2", "--wait", "0", check=False)
    served.kill("control")
    eventually("control knows it", lambda: node(served, "serving-2").get("draining"))
    eventually("nothing is left there", lambda: not replicas_on(served, "serving-2"), timeout=60)
    served.run("drain", "--undo", "serving-2")
    eventually("replicas are spread again", lambda: replicas_on(served, "serving-2"), timeout=60)


def test_a_shard_says_that_its_rows_stay(served):
    view = "[[feature_view]]\nname = 'rows'\nentity = 'id'\npurposes = ['test']\nfield = [{ name = 'a', type = 'float32' }]\n"
    file = served.dir / "rows.toml"
    file.write_text(view)
    served.run("apply", "-f", file)
    assert "128 of 256 feature partitions" in served.run("drain", "features-1").stdout
    served.run("drain", "--undo", "features-1")


def test_a_node_that_stays_away_is_forgotten(served, tmp_path):
    token = served.run("token", "--node", "guest", "--roles", "compute").stdout.strip()
    falaj("join", token, "--name", "guest", "--dir", tmp_path / "guest")
    guest = subprocess.Popen([FALAJ, "node", "--dir", str(tmp_path / "guest")], stderr=subprocess.DEVNULL)
    try:
        eventually("it is up", lambda: node(served, "guest").get("up"))
        refused = served.run("forget", "guest", check=False)
        assert refused.returncode == 6 and "is up; end it first" in refused.stderr
    finally:
        guest.kill()
        guest.wait()
    eventually("it is down", lambda: not node(served, "guest")["up"])
    known = served.json("status")["view"]["known"]
    served.run("forget", "guest")
    assert node(served, "guest") == {} and served.json("status")["view"]["known"] == known - 1
    for command in ("forget", "drain"):
        unknown = served.run(command, "guest", check=False)
        assert unknown.returncode == 5 and "no node 'guest'" in unknown.stderr
    rows = served.run("forget", "features-1", check=False)
    assert rows.returncode == 6
    served.audited("nodes.forget", "node/guest", "person/admin")


def test_who_may_not_make_nodes_leave(served):
    served.run("principal", "person/visitor")
    for command in (["drain", "serving-1"], ["forget", "serving-1"]):
        assert served.run(*command, "--as", "visitor", check=False).returncode == 4
    served.audited("nodes.drain", "refused", "person/visitor")


def test_a_stopped_process_is_down_within_a_second_and_comes_back(served):
    """SIGSTOP: the machine is there, its answers are not."""
    took = []
    for _ in range(3):
        pid = served.pid("compute-2")
        log = served.dir / "nodes/control/log"
        before = log.stat().st_size
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        try:
            eventually("it is taken for dead", lambda log=log, before=before: b"node down" in log.read_bytes()[before:])
            took.append(time.monotonic() - began)
        finally:
            os.kill(pid, signal.SIGCONT)
        eventually("it is up again, the same process", lambda: node(served, "compute-2")["up"] and served.pid("compute-2") == pid)
    print("down after", took)
    assert min(took) < 3 * SLOW
