"""The runtime as a message bus: the Python program of tests/clients, as a user runs it, asks actors of a real cluster and hosts one. It is asked
by command, by HTTP and by other programs, it is killed, stopped and replaced, it is refused what it has no right to, and what comes from a
program that breaks the rules harms nobody else."""

import contextlib
import http.client
import json
import os
import pathlib
import signal
import ssl
import struct
import subprocess
import sys
import time

import pytest
import wire
from conftest import FALAJ, SLOW, Cluster, Failed, eventually, falaj
from wire import REFUSAL, REPLY, Closed, Struct, message

CLIENT = pathlib.Path(__file__).resolve().parents[1] / "clients/falaj_client.py"
QUOTE = "foreign/pricing/quote"
INVOKE, INVOKED, REGISTER = (wire.type_id(wire.FILES["foreign"], name) for name in ("Invoke", "Invoked", "RegisterActor"))
RIGHTS = """
[[grant]]
principal = "service/pricing"
verbs = ["cluster.read", "actors.register", "actors.call"]
actors = ["control/*", "foreign/pricing"]

[[grant]]
principal = "service/twin"
verbs = ["cluster.read", "actors.register"]
actors = ["control/*", "foreign/pricing", "foreign/twin"]

[[grant]]
principal = "person/buyer"
verbs = ["actors.call"]
actors = ["foreign/pricing"]
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    c = Cluster(tmp_path_factory.mktemp("clients") / "falaj")
    falaj("init", "--dir", c.dir)
    for who in ("service/pricing", "service/twin", "service/stranger", "person/buyer"):
        c.run("principal", who)
    with (c.dir / "rights.toml").open("a") as rights:
        rights.write(RIGHTS)
    c.up()
    yield c
    c.down()


def address_of(cluster, name):
    return next(n["listen"] for n in cluster.file["nodes"] if n["name"] == name)


def files_of(cluster, name):
    return cluster.dir / f"principals/{name}.crt", cluster.dir / f"principals/{name}.key", cluster.dir / "ca/ca.crt"


class Example:
    """A run of the program of tests/clients."""

    def __init__(self, cluster, directory, node="control", principal="service/pricing", actor=QUOTE):
        self.log = directory / f"{time.monotonic_ns()}.log"
        with self.log.open("w") as out:
            command = [sys.executable, CLIENT, cluster.dir, principal, actor, address_of(cluster, node)]
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

    def said(self):
        return self.log.read_text()

    def hosts(self):
        def ready():
            assert self.process.poll() is None, self.said()
            return "hosting" in self.said()

        eventually("the program hosts its actor", ready)
        return self

    def ended(self):
        """What it said when it ended by itself."""
        assert self.process.wait(30 * SLOW) != 0
        return self.said()

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def example(cluster, tmp_path):
    with contextlib.ExitStack() as stack:

        def run(*args, **options):
            made = Example(cluster, tmp_path, *args, **options)
            stack.callback(made.stop)
            return made

        yield run
    for node in ("control", "serving-2"):
        eventually("its name is free again", lambda node=node: call(cluster, node=node).returncode == 5)


def call(cluster, text='{"kg": 2}', who="admin", node="control", actor=QUOTE, timeout=10):
    return cluster.run("call", actor, "Invoke", json.dumps({"text": text}), "--as", who, "--node", node, "--timeout", timeout, check=False)


def price(cluster, **options):
    done = call(cluster, **options)
    if done.returncode != 0:
        raise Failed(("call",), done)
    return json.loads(json.loads(done.stdout)["text"])


def over_https(cluster, who, path, body):
    context = ssl.create_default_context(cafile=cluster.dir / "ca/ca.crt")
    context.check_hostname = False  # nodes are named by SPIFFE ids
    context.load_cert_chain(*files_of(cluster, who)[:2])
    connection = http.client.HTTPSConnection(cluster.file["https"], context=context, timeout=30 * SLOW)
    connection.request("POST", path, json.dumps(body))
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


# ---- the example ---------------------------------------------------------------------------------------------------------------------


def test_the_program_is_short():
    assert len(CLIENT.read_text().splitlines()) < 60


@pytest.mark.parametrize("node", ["control", "features-1"])
def test_it_asks_and_what_it_hosts_is_asked_by_command_by_http_and_by_program(cluster, example, node):
    program = example(node).hosts()
    nodes = next(line for line in program.said().splitlines() if line.startswith("nodes:"))
    assert nodes.split()[1:] == sorted(n["name"] for n in cluster.file["nodes"])
    for asked in ("control", "compute-1", node):
        assert price(cluster, node=asked) == {"price": 5.0, "for": "spiffe://falaj/person/admin"}
    status, answer = over_https(cluster, "buyer", f"/v1/actors/{QUOTE}/Invoke", {"text": '{"kg": 3}'})
    assert (status, json.loads(answer["text"])) == (200, {"price": 7.5, "for": "spiffe://falaj/person/buyer"})
    with wire.Program(address_of(cluster, "serving-1"), "service/pricing#other", *files_of(cluster, "pricing")) as other:
        kind, body = other.ask(QUOTE, INVOKE, Struct([], [None, '{"kg": 4}', None]))
        assert kind == REPLY and b'"price": 10.0, "for": "spiffe://falaj/service/pricing"' in body, body
    done = call(cluster, "two kilos")
    assert done.returncode == 2 and 'send {"kg": NUMBER}' in done.stderr, done
    tree = json.loads(cluster.run("call", f"node/agent/{node}", "GetActors", "--node", node).stdout)["actors"]
    assert [a["type"] for a in tree if a.get("name") == QUOTE] == ["foreign/pricing"]
    # Alive by nothing but its answers to heartbeats, for longer than anybody may be silent.
    end = time.monotonic() + 2
    while time.monotonic() < end:
        assert price(cluster)["price"] == 5.0
    assert program.process.poll() is None
    cluster.audited("allowed", "service/pricing", "actors.register", QUOTE)


def test_what_a_killed_program_hosted_has_ended(cluster, example):
    program = example("features-1").hosts()
    assert price(cluster)["price"] == 5.0
    program.process.send_signal(signal.SIGSTOP)  # it cannot answer, and its link looks well
    start = time.monotonic()
    done = call(cluster, timeout=30)
    assert done.returncode == 7 and ("unreachable" in done.stderr or "lost" in done.stderr or "ended" in done.stderr), done
    assert time.monotonic() - start < 4 * SLOW  # the detector's time and the command's own, not the deadline
    eventually("its name is free", lambda: call(cluster, node="compute-2").returncode == 5)
    program.stop()
    program = example("compute-1").hosts()
    assert price(cluster)["price"] == 5.0
    os.kill(program.process.pid, signal.SIGKILL)
    eventually("its name is free", lambda: call(cluster, node="compute-2").returncode == 5)


def test_a_newer_start_takes_the_name_over_and_the_older_never_has_it_again(cluster, example):
    older = example("features-1").hosts()
    newer = example("serving-1").hosts()
    assert price(cluster, node="features-1")["price"] == 5.0
    assert older.process.poll() is None, older.said()  # it is linked still, and hosts nothing
    older.stop()
    assert price(cluster)["price"] == 5.0
    with wire.Program(address_of(cluster, "compute-2"), "service/pricing", *files_of(cluster, "pricing"), incarnation=time.time_ns() - 3600 * 10**9) as past:
        kind, body = past.ask("node/foreign", REGISTER, Struct([], [QUOTE]))
        assert kind == REFUSAL and b"newer incarnation" in body, body
    newest = example("serving-1").hosts()  # at the same node, by the same name of link
    assert "rror" in newer.ended()
    assert price(cluster)["price"] == 5.0
    assert newest.process.poll() is None
    cluster.kill("serving-1")
    assert "rror" in newest.ended()


def test_a_control_that_was_started_again_learns_what_is_hosted(cluster, example):
    example("features-1").hosts()
    cluster.kill("control")
    eventually("control knows it again", lambda: price(cluster)["price"] == 5.0, timeout=60)


# ---- who may not ---------------------------------------------------------------------------------------------------------------------


def refusals(cluster, verb):
    connection = http.client.HTTPConnection(cluster.http, timeout=30 * SLOW)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("falaj_refusals_total{") and f'"{verb}"' in line)


def test_who_has_not_the_right_is_refused_counted_and_audited(cluster, example):
    before = {verb: refusals(cluster, verb) for verb in ("cluster.read", "actors.register", "actors.call")}
    assert "denied" in example(principal="service/stranger").ended()
    cluster.audited("refused", "service/stranger", "cluster.read")
    told = example(principal="service/pricing", actor="foreign/billing/quote").ended()
    assert "denied" in told and "'actors.register' on actors of type 'foreign/billing'" in told
    cluster.audited("refused", "service/pricing", "actors.register", "foreign/billing")
    assert "foreign/SERVICE" in example(actor="control/membership").ended()

    example().hosts()
    assert "conflict" in example("features-1", principal="service/twin").ended()
    done = call(cluster, who="stranger")
    assert done.returncode == 4 and "actors.call" in done.stderr, done
    cluster.audited("refused", "service/stranger", "actors.call", "foreign/pricing")
    status, told = over_https(cluster, "stranger", f"/v1/actors/{QUOTE}/Invoke", {})
    assert status == 403 and "actors.call" in json.dumps(told), told
    example("compute-2", principal="service/twin", actor="foreign/twin").hosts()
    done = call(cluster, who="buyer", actor="foreign/twin")
    assert done.returncode == 4 and "on actors of type 'foreign/twin'" in done.stderr, done
    for verb, count in before.items():
        assert refusals(cluster, verb) > count, verb
    status, told = over_https(cluster, "admin", "/v1/actors/node/foreign/RegisterActor", {"name": "foreign/x"})
    assert status == 403 and "link of its own" in json.dumps(told), told
    cluster.run("audit", "verify")


# ---- programs that break the rules -----------------------------------------------------------------------------------------------------

RAW = "foreign/pricing/raw"


@pytest.fixture
def unharmed(cluster, example):
    """Another program's actor at the same node goes on, and so do the nodes."""
    program = example("features-1").hosts()
    before = [(n["name"], n["pid"], n["restarts"]) for n in cluster.file["nodes"]]
    yield
    assert price(cluster)["price"] == 5.0 and program.process.poll() is None
    assert [(n["name"], n["pid"], n["restarts"]) for n in cluster.file["nodes"]] == before


@pytest.fixture
def raw(cluster, unharmed):
    with wire.Program(address_of(cluster, "features-1"), "service/pricing#raw", *files_of(cluster, "pricing")) as program:
        kind, body = program.ask("node/foreign", REGISTER, Struct([], [RAW]))
        assert kind == REPLY, body
        yield program


@contextlib.contextmanager
def asker(cluster, answers):
    """Somebody who asks the raw program, and checks how that ends."""
    command = [FALAJ, "call", RAW, "Invoke", "{}", "--timeout", "20", "--dir", str(cluster.dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield
        out, err = process.communicate(timeout=15 * SLOW)
        code, word = answers
        assert process.returncode == code and word in out + err, (process.returncode, out, err)
    finally:
        process.kill()
        process.wait()


GOOD = message(Struct([], ["good", None]))
ANSWERS = {  # what it answers, and the exit code and words of who asked
    "a good one": (lambda head: head(INVOKED) + GOOD, (0, "good")),
    "a type that nobody knows": (lambda head: head(0xDEADBEEFDEADBEEF) + GOOD, (1, "deadbeefdeadbeef")),
    "a body that points outside": (lambda head: head(INVOKED) + struct.pack("<IIQ", 0, 1, 0x0001000200000FFC), (8, "malformed")),
    "a list of two billion structs": (lambda head: head(INVOKED) + struct.pack("<IIQQQ", 0, 3, 0x0002000000000000, 0x0000000100000001 | 0x7FFFFFF << 35, 0), (8, "malformed")),
    "a body that is a list": (lambda head: head(INVOKED) + struct.pack("<IIQQ", 0, 2, 0x0000004A00000001, 0), (8, "malformed")),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_an_answer_that_cannot_be_read_is_the_askers_alone_to_bear(cluster, raw, what):
    answer, end = ANSWERS[what]
    with asker(cluster, end):
        _, head = raw.question()
        raw.line.send(answer(head))
        raw.line.send(head(INVOKED) + GOOD)  # nobody waits for a second answer
        kind, _ = raw.ask("node/foreign", REGISTER, Struct([], [RAW]))
        assert kind == REPLY  # the link goes on


BROKEN = {
    "an oversized body": lambda head: head(INVOKED) + struct.pack("<II", 0, 17 << 17) + b"\0" * 64,
    "an oversized envelope": lambda head: struct.pack("<II", 0, 1 << 20),
    "many segments": lambda head: head(INVOKED) + struct.pack("<II", 0xFFFFFFFF, 1),
    "noise": lambda head: b"\xff" * 64,
    "half an answer": lambda head: head(INVOKED) + GOOD[:-8],  # and then nothing
}


@pytest.mark.parametrize("what", BROKEN)
def test_bytes_that_break_the_frame_end_the_link_and_its_actor(cluster, raw, what):
    with asker(cluster, (7, "")):
        _, head = raw.question()
        raw.line.send(BROKEN[what](head))
        assert raw.line.closed_by_peer()
    eventually("its name is free", lambda: call(cluster, actor=RAW).returncode == 5)


def test_an_answer_of_one_byte_a_second_ends_the_link(cluster, raw):
    with asker(cluster, (7, "")):
        _, head = raw.question()
        content = head(INVOKED) + GOOD
        raw.line.send(content[:1])
        raw.line.tls.settimeout(1)
        sent, start = 1, time.monotonic()
        with pytest.raises((Closed, OSError)):
            while sent < len(content):  # between two bytes it waits for the end
                try:
                    if raw.line.closed_by_peer():
                        raise Closed
                except TimeoutError:
                    raw.line.send(content[sent : sent + 1])
                    sent += 1
        assert time.monotonic() - start < 10 * SLOW
    eventually("its name is free", lambda: call(cluster, actor=RAW).returncode == 5)
