"""Every request is answered once, by its own answer, while serving nodes die: over HTTP and by actor message. The model gives back what it
was given, so that an answer proves whose it is."""

import collections
import http.client
import json
import os
import signal
import struct
import threading

import numpy as np
import pytest
import wire
from conftest import SLOW, deploy_echo, eventually
from wire import ASK, REPLY, Link, Reader, Struct, envelope, message

TOTAL = 20000 // SLOW**2
INFER = wire.type_id(wire.FILES["serving"], "Infer")
FP32 = 11


@pytest.fixture(scope="module")
def echo(cluster, tmp_path_factory):
    deploy_echo(cluster, tmp_path_factory.mktemp("echo"), 2)
    replicas_ready(cluster)
    return cluster


def nodes_of_replicas(cluster):
    """The node of each replica that can answer."""
    directory = cluster.json("status")["view"]["directory"]
    return sorted(d["node"] for d in directory if d["name"].startswith("serving/replica/echo/") and d.get("ready"))


def replicas_ready(cluster):
    eventually("both replicas can answer", lambda: len(nodes_of_replicas(cluster)) == 2, timeout=60)


class Work:
    """Requests 0..TOTAL-1 in threads, each of which takes its share; what an answer was is told to note()."""

    def __init__(self, threads, run):
        self.answers = [collections.Counter() for _ in range(threads)]  # request -> answers
        self.wrong, self.sent, self.stop = [], [0] * threads, threading.Event()
        self.threads = [threading.Thread(target=self.share, args=(run, k, range(k, TOTAL, threads)), daemon=True) for k in range(threads)]

    def share(self, run, k, requests):
        try:
            run(self, k, requests)
        except Exception as e:  # a thread's exception would go unnoticed
            self.wrong.append((k, repr(e)))

    def done(self):
        return sum(sum(c.values()) for c in self.answers)

    def kill_along_the_way(self, cluster, victims):
        for t in self.threads:
            t.start()
        try:
            for n, victim in enumerate(victims, 1):
                share = TOTAL * n // (len(victims) + 1)
                eventually(f"{share} answers", lambda share=share: self.wrong or self.done() >= share, timeout=120)
                assert self.wrong == []
                cluster.kill(victim)
                replicas_ready(cluster)
        finally:
            if self.wrong:
                self.stop.set()
            for t in self.threads:
                t.join(300 * SLOW)
        assert self.wrong == []
        total = sum(self.answers, collections.Counter())
        assert len(total) == TOTAL and set(total.values()) == {1}


def test_http(echo, seed):
    def run(work, k, requests):
        connection = http.client.HTTPConnection(echo.http, timeout=60 * SLOW)
        for i in requests:
            if work.stop.is_set():
                return
            body = {"id": f"request-{i}", "inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [i]}]}
            connection.request("POST", "/v2/models/echo/infer", json.dumps(body))
            answer = connection.getresponse()
            told = json.loads(answer.read())
            if answer.status != 200 or told["id"] != f"request-{i}" or told["outputs"][0]["data"] != [i]:
                work.wrong.append((i, answer.status, told))
                return
            work.answers[k][i] += 1
        connection.sock.settimeout(0.3)
        try:
            more = connection.sock.recv(1)
        except TimeoutError:
            more = b""
        if more:
            work.wrong.append("an answer that nobody asked for")

    Work(4, run).kill_along_the_way(echo, seed.sample(["serving-1", "serving-2"], 2))


def test_actor_messages(echo, seed):
    certificate = [echo.dir / "principals/admin.crt", echo.dir / "principals/admin.key", echo.dir / "ca/ca.crt"]

    def ask(i):
        tensor = Struct([FP32], ["x", [1, 1], struct.pack("<f", i), None])
        infer = message(Struct([0], ["echo", f"request-{i}", [tensor], None]))
        return envelope(ASK, to="serving/router", type_=INFER, correlation=i + 1, budget_us=30_000_000) + infer

    def run(work, k, requests):
        with Link(echo.file["controlAddress"], f"person/admin#{k}", *certificate) as link:
            waiting = iter(requests)
            mine = len(requests)
            for _ in range(16):
                link.send(ask(next(waiting)))
            while mine > 0 and not work.stop.is_set():
                kind, correlation, body = link.next()
                i = correlation - 1
                if kind != REPLY:
                    work.wrong.append((i, body))
                    return
                reply = Reader(body)
                (tensor,) = reply.structs(2)
                if reply.text(1) != f"request-{i}" or tensor.content(2) != struct.pack("<f", np.float32(i)):
                    work.wrong.append((i, body))
                    return
                work.answers[k][i] += 1
                mine -= 1
                if (following := next(waiting, None)) is not None:
                    link.send(ask(following))
            # Whatever else was on its way comes before the answer to this.
            link.send(envelope(ASK, correlation=1 << 40) + message(Struct()))
            kind, correlation, body = link.next()
            if correlation != 1 << 40:
                work.wrong.append(("an answer too many", correlation - 1))

    Work(2, run).kill_along_the_way(echo, seed.sample(["serving-1", "serving-2"], 2))


def test_replicas_that_had_to_share_a_node_are_moved_apart_again(echo):
    """A node that is held up for longer than control waits finds its replica placed elsewhere when it goes on."""
    each_its_own = ["serving-1", "serving-2"]
    eventually("there is one on each node", lambda: nodes_of_replicas(echo) == each_its_own, timeout=60)
    held_up = echo.pid("serving-2")
    os.kill(held_up, signal.SIGSTOP)
    try:
        eventually("both are on one node", lambda: nodes_of_replicas(echo) == ["serving-1"] * 2, timeout=60)
    finally:
        os.kill(held_up, signal.SIGCONT)
    eventually("there is one on each node again, and no third", lambda: nodes_of_replicas(echo) == each_its_own, timeout=60)
    assert echo.pid("serving-2") == held_up
