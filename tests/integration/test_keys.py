"""Actors by key on a cluster of real processes, as named locks: one owner wherever it is asked for, elsewhere when a node is killed, and with what
it holds when a node leaves. FALAJ_TEST_KILLS=20 kills twenty nodes instead of three; `-s` shows how long each took."""

import http.client
import json
import os
import signal
import time

import pytest
from conftest import SLOW, eventually

KILLS = int(os.environ.get("FALAJ_TEST_KILLS", 3))
PARTITIONS = 256


def partition(key):
    value = 14695981039346656037
    for byte in key.encode():
        value = (value ^ byte) * 1099511628211 % (1 << 64)
    return value % PARTITIONS


class Locks:
    """As a script uses them, over HTTP."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.token = cluster.run("token", "--bearer", "--principal", "person/admin").stdout.strip()

    def post(self, path, fields):
        connection = http.client.HTTPConnection(self.cluster.http, timeout=30 * SLOW)
        try:
            connection.request("POST", f"/v1/actors/{path}", json.dumps(fields), {"Authorization": f"Bearer {self.token}"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def acquire(self, key, owner, ttl=600_000):
        """The token; None: somebody else's, or ask again."""
        status, told = self.post(f"shard/locks/{key}/AcquireLock", {"owner": owner, "ttlMs": ttl})
        return int(told["token"]) if status == 200 else None

    def owners(self):
        """Which node has which partition; none at all while control says nothing."""
        status, told = self.post("control/shards/GetShards", {})
        types = [t for t in told.get("types", []) if t["name"] == "locks"] if status == 200 else []
        return [told["nodes"][i - 1]["name"] if i else None for i in types[0]["owners"]] if types else []

    def spread(self):
        owners = self.owners()
        counts = [owners.count(name) for name in set(owners)]
        return len(counts) == 6 and "control" not in owners and max(counts) - min(counts) <= 1


@pytest.fixture(scope="module")
def locks(cluster):
    found = Locks(cluster)
    eventually("the keys are spread over all nodes", found.spread, timeout=60)
    return found


def test_a_lock_has_one_owner_on_the_command_line_and_over_http(cluster, locks):
    call = ("call", "shard/locks/deploy", "AcquireLock")
    grants = {json.loads(cluster.run(*call, '{"owner": "ci-1"}', "--node", node).stdout)["token"] for node in ("control", "serving-1", "features-2")}
    assert len(grants) == 1
    refused = cluster.run(*call, '{"owner": "ci-2"}', check=False)
    assert refused.returncode == 6 and "held by 'ci-1'" in refused.stderr, refused
    status, told = locks.post("shard/locks/deploy/GetLock", {})
    assert status == 200 and told["held"] and told["owner"] == "ci-1" and told["principal"].endswith("/person/admin"), told
    status, _ = locks.post("shard/locks/deploy/ReleaseLock", {"owner": "ci-1", "token": grants.pop()})
    assert status == 200
    assert locks.acquire("deploy", "ci-2")
    cluster.run("principal", "person/visitor")
    assert cluster.run(*call, '{"owner": "x"}', "--as", "visitor", check=False).returncode == 4
    cluster.audited("locks.acquire", "refused", "person/visitor", "shard/locks")


def test_keys_of_a_killed_node_answer_elsewhere(cluster, locks, seed):
    took = []
    for turn in range(KILLS):
        key = f"job-{turn}-{seed.randrange(1 << 30)}"
        before = eventually("it answers", lambda key=key: locks.acquire(key, "a"))
        victim = locks.owners()[partition(key)]
        pid = cluster.pid(victim)
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        after = eventually(f"{key} of {victim} answers elsewhere", lambda key=key: locks.acquire(key, "b"))
        took.append(time.monotonic() - began)
        assert after > before, "tokens grow"
        assert locks.owners()[partition(key)] != victim
        eventually(f"{victim} was started again", lambda victim=victim, pid=pid: cluster.pid(victim) not in (0, pid))
        eventually("the keys are spread over all nodes", locks.spread, timeout=60)
        assert locks.acquire(key, "c") is None, "what was held stays held when keys are spread again"
    print("answered elsewhere after", ", ".join(f"{t:.2f}" for t in took), f"s; longest {max(took):.2f} s of {KILLS}")


def test_a_drained_node_hands_over_what_it_holds(cluster, locks, seed):
    held = {key: eventually("it answers", lambda key=key: locks.acquire(key, "a")) for key in (f"kept-{i}" for i in range(40))}
    victim = seed.choice([name for name in set(locks.owners())])
    assert "is empty" in cluster.run("drain", victim).stdout
    assert victim not in locks.owners()
    cluster.kill(victim)
    for key, token in held.items():
        assert eventually(f"{key} answers", lambda key=key: locks.acquire(key, "a")) == token, "the same grant"
        assert locks.acquire(key, "b") is None
    cluster.run("drain", "--undo", victim)
    eventually("the keys are spread over all nodes", locks.spread, timeout=60)


def test_without_control_nobody_answers_and_afterwards_all_is_as_it_was(cluster, locks):
    token = eventually("it answers", lambda: locks.acquire("over", "a"))
    cluster.kill("control")
    assert eventually("it answers again", lambda: locks.acquire("over", "a"), timeout=60) == token
    assert locks.acquire("over", "b") is None
