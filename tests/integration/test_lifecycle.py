"""Clusters as such: start, stop, what they refuse, what they keep to themselves."""

import subprocess

from conftest import FALAJ, Cluster, eventually, falaj, processes_of


def test_up_status_down(tmp_path):
    c = Cluster(tmp_path / "c").up()
    try:
        status = c.json("status")
        assert {n["name"]: n["up"] for n in status["view"]["nodes"]} == {
            name: True for name in ["control", "compute-1", "compute-2", "features-1", "features-2", "serving-1", "serving-2"]
        }
        again = falaj("up", "--dir", c.dir, check=False)
        assert again.returncode == 6 and "runs from" in again.stderr
    finally:
        c.down()
    assert processes_of(c.dir) == []
    assert falaj("down", "--dir", c.dir, check=False).returncode == 5


def test_a_second_process_on_one_directory_is_refused(tmp_path):
    c = Cluster(tmp_path / "c").up()
    try:
        second = falaj("node", "--dir", c.dir / "nodes/features-1", check=False)
        assert second.returncode != 0
        assert "is in use by process" in second.stderr
    finally:
        c.down()


def test_init_refuses_a_directory_that_is_not_empty(tmp_path):
    (tmp_path / "file").write_text("mine")
    refused = falaj("init", "--dir", tmp_path, check=False)
    assert refused.returncode == 6 and "not empty" in refused.stderr


def test_help_names_every_command_with_an_example():
    top = falaj("--help").stdout
    for command in ["init", "up", "down", "node", "audit", "token", "join", "revoke", "status", "top", "apply", "get", "delete", "features", "train", "runs", "models", "deploy", "predict", "call", "bench", "completion", "version"]:
        assert f"\n  {command} " in top, command
        if command not in ("audit", "features", "runs", "models", "bench", "version"):
            assert "Example" in falaj(command, "--help").stdout, command


def test_wrong_use_exits_with_2():
    assert falaj("features", "frobnicate", check=False).returncode == 2
    assert subprocess.run([FALAJ], capture_output=True).returncode == 2


def test_a_node_joins_once_with_a_token(tmp_path):
    c = Cluster(tmp_path / "c").up()
    node = None
    try:
        token = c.run("token", "--node", "extra-1", "--roles", "serving").stdout.strip()
        wrong = falaj("join", token, "--name", "other", "--dir", tmp_path / "other", check=False)
        assert wrong.returncode == 4 and "extra-1" in wrong.stderr
        falaj("join", token, "--name", "extra-1", "--dir", tmp_path / "extra")
        again = falaj("join", token, "--name", "extra-1", "--dir", tmp_path / "again", check=False)
        assert again.returncode == 4 and "used already" in again.stderr
        node = subprocess.Popen([FALAJ, "node", "--dir", str(tmp_path / "extra")], stderr=subprocess.DEVNULL)
        eventually("the node is up", lambda: any(n["name"] == "extra-1" and n["up"] for n in c.json("status")["view"]["nodes"]))
        node.terminate()
        assert node.wait(30) == 0
        eventually("it is seen to have left", lambda: any(n["name"] == "extra-1" and not n["up"] for n in c.json("status")["view"]["nodes"]))
    finally:
        if node and node.poll() is None:
            node.kill()
        c.down()
