"""Commands with an idempotency key: carried out once, also when control is killed between the first time and the second."""

import json
import ssl
import urllib.error
import urllib.request

import pytest
from conftest import eventually

VIEW = """
[[feature_view]]
name = "meters"
entity = "meter"
purposes = ["billing"]
[[feature_view.field]]
name = "load"
type = "float64"
"""
JOB = """
[[job]]
name = "loads"
view = "meters"
label = "load"
purpose = "billing"
epochs = {epochs}
"""


@pytest.fixture(scope="module")
def files(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "view.toml").write_text(VIEW)
    for epochs in (1, 2):
        (folder / f"job{epochs}.toml").write_text(JOB.format(epochs=epochs))
    eventually("the view is declared", lambda: cluster.run("apply", "-f", folder / "view.toml").returncode == 0)
    return folder


def kill_control(cluster):
    cluster.kill(cluster.file["controlNode"])
    eventually("control answers again", lambda: cluster.run("status").returncode == 0)


def revision(cluster):
    return int(cluster.json("get", "job", "loads")["revision"])


def runs(cluster):
    return [run["run"] for run in cluster.json("runs", "list").get("runs", [])]


def again(what, run):
    """Control may still be on its way up: whoever has a key may ask until there is an answer."""
    return eventually(what, run, timeout=60)


def test_a_job_is_started_once_for_its_key(cluster, files):
    def train(epochs, *key):
        return cluster.run("train", "-f", files / f"job{epochs}.toml", "--detach", *key)

    train(1, "--idempotency-key", "monday")
    first = revision(cluster)
    kill_control(cluster)
    again("the second time is answered", lambda: train(1, "--idempotency-key", "monday"))
    assert revision(cluster) == first
    other = cluster.run("train", "-f", files / "job2.toml", "--detach", "--idempotency-key", "monday", check=False)
    assert other.returncode == 6 and "idempotency key" in other.stderr
    assert revision(cluster) == first
    eventually("its run is known", lambda: f"loads-{first}" in runs(cluster))
    train(1, "--idempotency-key", "tuesday")
    second = revision(cluster)
    assert second > first
    train(1)
    assert revision(cluster) > second


def test_a_declaration_is_taken_back_once_for_its_key(cluster, files):
    cluster.run("apply", "-f", files / "view.toml", "-f", files / "job1.toml", "--idempotency-key", "a")
    cluster.run("delete", "job", "loads", "--idempotency-key", "d")
    kill_control(cluster)
    again("the second time is answered", lambda: cluster.run("delete", "job", "loads", "--idempotency-key", "d"))
    assert cluster.run("delete", "job", "loads", "--idempotency-key", "e", check=False).returncode == 5
    # Applied before it was deleted: it stays deleted.
    cluster.run("apply", "-f", files / "view.toml", "-f", files / "job1.toml", "--idempotency-key", "a")
    assert cluster.run("get", "job", "loads", check=False).returncode == 5


def test_the_header_of_a_request_is_such_a_key(cluster, files):
    token = cluster.run("token", "--bearer", "--principal", "person/admin").stdout.strip()
    context = ssl.create_default_context(cafile=str(cluster.dir / "ca/ca.crt"))
    context.check_hostname = False

    def post(key, epochs):
        job = {"name": "loads", "view": "meters", "label": "load", "purpose": "billing", "epochs": epochs}
        body = json.dumps({"resource": {"job": job}, "again": True}).encode()
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key}
        request = urllib.request.Request(f"https://{cluster.file['https']}/v1/actors/control/resources/Apply", body, headers)
        try:
            with urllib.request.urlopen(request, context=context, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read())

    status, first = post("h", 1)
    assert status == 200, first
    kill_control(cluster)

    def answered():
        status, answer = post("h", 1)
        return answer if status == 200 else None

    assert again("the second time is answered", answered)["revision"] == first["revision"]
    status, refused = post("h", 2)
    assert status == 409 and "idempotency key" in refused["error"]
    status, other = post("i", 1)
    assert status == 200 and int(other["revision"]) > int(first["revision"])
