"""Who must not get in, and what must not get through: certificates that are expired, foreign or revoked, tokens that were used, and bytes
on the links that no falaj would send. Real nodes, real TLS; they survive, and nobody else notices."""

import http.client
import random
import shutil
import ssl
import struct
import subprocess

import pytest
import wire
from conftest import FALAJ, SLOW, eventually, falaj
from wire import ASK, BULK, CONTROL, REFUSAL, REPLY, TELL, Closed, Connection, Link, Struct, envelope, hello, message, nested


def address_of(cluster, name):
    return next(n["listen"] for n in cluster.file["nodes"] if n["name"] == name)


def person(cluster, name):
    return cluster.dir / f"principals/{name}.crt", cluster.dir / f"principals/{name}.key", cluster.dir / "ca/ca.crt"


def nodes(cluster):
    """Name, pid, starts and incarnation of each node that is up."""
    running = {n["name"]: (n["pid"], n["restarts"]) for n in cluster.file["nodes"]}
    return sorted((n["name"], n["incarnation"], *running.get(n["name"], ())) for n in cluster.json("status")["view"]["nodes"] if n["up"])


@pytest.fixture
def undisturbed(cluster):
    before = nodes(cluster)
    restarts = [(a["name"], a.get("restarts", 0)) for a in cluster.json("actors")["actors"] if a.get("name")]
    yield
    assert nodes(cluster) == before
    assert [(a["name"], a.get("restarts", 0)) for a in cluster.json("actors")["actors"] if a.get("name")] == restarts


@pytest.fixture
def joined(cluster, tmp_path, request):
    """The directory of a node that has joined and does not run."""
    name = f"extra-{random.randrange(1 << 30)}"
    token = cluster.run("token", "--node", name, "--roles", "serving").stdout.strip()
    falaj("join", token, "--name", name, "--dir", tmp_path / name)
    return tmp_path / name


def run_node(directory):
    """A node that is expected to end by itself."""
    return subprocess.run([FALAJ, "node", "--dir", str(directory)], capture_output=True, text=True, timeout=30 * SLOW)


# ---- certificates ----------------------------------------------------------------------------------------------------------------


def test_a_node_with_an_expired_certificate_does_not_start(cluster, joined, tmp_path, undisturbed):
    certificate, key = wire.issue(cluster.dir / "ca", tmp_path / "made", f"spiffe://falaj/node/{joined.name}", -10, -1)
    shutil.copy(certificate, joined / "node.crt")
    shutil.copy(key, joined / "node.key")
    done = run_node(joined)
    assert done.returncode == 4 and "node.crt" in done.stderr and "expired" in done.stderr and "join again" in done.stderr, done


@pytest.mark.parametrize("node", ["control", "features-1"])
def test_an_expired_certificate_is_refused_by_every_node(cluster, tmp_path, undisturbed, node):
    certificate, key = wire.issue(cluster.dir / "ca", tmp_path / "made", "spiffe://falaj/node/extra", -10, -1)
    with pytest.raises((Closed, ssl.SSLError), match="expired"):
        connection = Connection(address_of(cluster, node), certificate, key)
        connection.message()


def test_no_certificate_and_a_foreign_one_are_refused(cluster, tmp_path, undisturbed):
    falaj("init", "--dir", tmp_path / "foreign", "--cluster", "falaj")  # the same name, another authority
    foreign = (tmp_path / "foreign/principals/admin.crt", tmp_path / "foreign/principals/admin.key")
    with pytest.raises((Closed, ssl.SSLError), match="unknown ca|UNKNOWN_CA"):
        Connection(address_of(cluster, "control"), *foreign).message()
    with pytest.raises((Closed, ssl.SSLError), match="certificate required|CERTIFICATE_REQUIRED"):
        Connection(address_of(cluster, "control")).message()


def test_a_node_of_another_cluster_is_refused_and_says_so(cluster, joined, tmp_path, undisturbed):
    falaj("init", "--dir", tmp_path / "foreign", "--cluster", "falaj")
    certificate, key = wire.issue(tmp_path / "foreign/ca", tmp_path / "made", f"spiffe://falaj/node/{joined.name}", -1, 10)
    shutil.copy(certificate, joined / "node.crt")
    shutil.copy(key, joined / "node.key")
    done = run_node(joined)  # with the cluster's ca.crt beside it
    assert done.returncode == 2 and "not issued by the given authority" in done.stderr, done
    shutil.copy(tmp_path / "foreign/ca/ca.crt", joined / "ca.crt")
    done = run_node(joined)  # control refuses it, and it refuses control
    assert done.returncode == 4 and "do not accept one another" in done.stderr, done


@pytest.mark.parametrize("node", ["control", "features-1"])
def test_a_renewed_certificate_is_shown_to_new_connections_and_the_others_go_on(cluster, undisturbed, node):
    def shown(address):
        connection = Connection(address, *person(cluster, "admin"))
        try:
            return connection.tls.getpeercert(binary_form=True)
        finally:
            connection.close()

    def on_disk():
        return ssl.PEM_cert_to_DER_cert((cluster.dir / f"nodes/{node}/node.crt").read_text())

    doors = [address_of(cluster, node)] + ([cluster.file["https"]] if node == "control" else [])  # its gateway
    def lost():
        """Other nodes, by its log."""
        log = (cluster.dir / f"nodes/{node}/log").read_text()
        return [line for line in log.splitlines() if "peer down" in line and "person/" not in line]

    before, lost_before = on_disk(), lost()
    assert all(shown(door) == before for door in doors)
    with Link(doors[0], "person/admin#renewal", *person(cluster, "admin")) as link:
        assert link.ask(STATUS)[0] == REPLY
        cluster.run("principal", f"node/{node}")
        assert on_disk() != before
        eventually("it shows the new one", lambda: all(shown(door) == on_disk() for door in doors))
        assert link.ask(STATUS)[0] == REPLY  # by the connection that was there
    assert lost() == lost_before
    refused = cluster.run("principal", "node/nobody", check=False)
    assert refused.returncode == 5 and "no such node" in refused.stderr, refused


def test_a_revoked_node_is_cut_off_and_may_join_again(cluster, joined, tmp_path):
    def is_up():
        return any(n["name"] == joined.name and n["up"] for n in cluster.json("status")["view"]["nodes"])

    node = subprocess.Popen([FALAJ, "node", "--dir", str(joined)], stderr=subprocess.DEVNULL)
    try:
        eventually("it is up", is_up)
        cluster.run("revoke", f"node/{joined.name}")
        eventually("it is cut off", lambda: not is_up())
        node.terminate()
        assert node.wait(30 * SLOW) == 0
        done = run_node(joined)
        assert done.returncode == 4 and "was revoked; join again" in done.stderr, done
        for known in ("control", "features-1", "serving-2"):  # each keeps it, for the time without control
            eventually("the node knows", lambda known=known: joined.name in (cluster.dir / f"nodes/{known}/revoked.txt").read_text())
        with pytest.raises(Closed):
            Link(address_of(cluster, "features-1"), joined.name, joined / "node.crt", joined / "node.key", joined / "ca.crt").answer()

        def again():
            shutil.rmtree(tmp_path / "again", ignore_errors=True)
            token = cluster.run("token", "--node", joined.name, "--roles", "serving").stdout.strip()
            falaj("join", token, "--name", joined.name, "--dir", tmp_path / "again")
            return True

        again()
        node = subprocess.Popen([FALAJ, "node", "--dir", str(tmp_path / "again")], stderr=subprocess.DEVNULL)
        eventually("the new certificate is good", is_up)
        node.terminate()
        assert node.wait(30 * SLOW) == 0
        cluster.audited("cluster.revoke", f"node/{joined.name}", "person/admin")
    finally:
        if node.poll() is None:
            node.kill()
            node.wait()


def test_a_revoked_person_is_refused_on_links_and_over_https(cluster):
    cluster.run("principal", "person/leaver")
    context = ssl.create_default_context(cafile=cluster.dir / "ca/ca.crt")
    context.check_hostname = False
    context.load_cert_chain(*person(cluster, "leaver")[:2])
    connection = http.client.HTTPSConnection(cluster.file["https"], context=context, timeout=30 * SLOW)

    def ask():
        connection.request("GET", "/v2")
        answer = connection.getresponse()
        answer.read()
        return answer.status

    assert ask() == 403 or ask() == 200  # known, whatever its rights
    assert cluster.run("status", "--as", "leaver", check=False).returncode == 4  # known, without rights
    cluster.run("revoke", "person/leaver")

    def refused():
        try:
            return ask() == 401  # on the connection that was open already
        except (http.client.HTTPException, OSError):
            return True

    eventually("the open connection is refused", refused)
    with pytest.raises((http.client.HTTPException, OSError)):
        fresh = http.client.HTTPSConnection(cluster.file["https"], context=context, timeout=30 * SLOW)
        fresh.request("GET", "/v2")
        fresh.getresponse()
    told = eventually("links refuse it", lambda: (r := cluster.run("status", "--as", "leaver", check=False)).returncode == 4 and "was revoked" in r.stderr and r)
    assert "join again" in told.stderr or "new one" in told.stderr


def test_what_cannot_be_revoked(cluster, undisturbed):
    for who, word in (("node/control", "control node"), ("leaver", "give node/NAME"), ("node/a/worker/1", "give node/NAME"), ("person/../x", "give node/NAME")):
        refused = cluster.run("revoke", who, check=False)
        assert refused.returncode == 2 and word in refused.stderr, refused
    cluster.run("principal", "person/outsider")
    refused = cluster.run("revoke", "person/admin", "--as", "outsider", check=False)
    assert refused.returncode == 4 and "cluster.revoke" in refused.stderr
    cluster.audited("refused", "person/outsider", "cluster.revoke")


def test_a_token_for_a_name_that_no_node_can_have_is_not_made(cluster, undisturbed):
    refused = cluster.run("token", "--node", "../x", "--roles", "serving", check=False)
    assert refused.returncode == 2 and refused.stdout == "" and "../x" in refused.stderr, refused


def test_tokens_that_are_used_mangled_late_or_without_roles(cluster, tmp_path, undisturbed):
    def join(token, *more):
        return falaj("join", token, "--name", "other", "--dir", tmp_path / "other", *more, check=False)

    def refused(token, code, word):
        done = join(token)
        assert done.returncode == code and word in done.stderr, done
        assert not (tmp_path / "other").exists()

    short = cluster.run("token", "--roles", "serving", "--node", "another", "--seconds", 1).stdout.strip()
    token = cluster.run("token").stdout.strip()
    refused(token, 2, "the token gives no roles; name them with --roles")  # and is not used up by that
    falaj("join", token, "--name", "first", "--roles", "serving", "--dir", tmp_path / "first")
    refused(token, 4, "used already; make a new one with `falaj token`")
    refused(token[:-4], 2, "make a new one with `falaj token`")
    refused("falaj-join-v1.AAAA", 2, "make a new one with `falaj token`")
    refused("falaj-join-v9.AAAA", 1, "of a newer Falaj; update this one")
    eventually("a token that is late says so", lambda: "the token has expired; make a new one" in join(short).stderr)
    again = falaj("join", token, "--name", "first", "--dir", tmp_path / "first", check=False)
    assert again.returncode == 6 and "is a node already" in again.stderr
    cluster.audited("refused", "cluster.join", "node/other")


# ---- bytes on the links ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def link(cluster):
    with Link(address_of(cluster, "control"), "person/admin#raw", *person(cluster, "admin")) as made:
        kind, body = made.ask(envelope(ASK), message(Struct()))
        assert kind == REPLY and b"features-1" in body
        yield made


STATUS = envelope(ASK) + message(Struct())


def test_a_newer_wire_version_is_refused_with_the_remedy(cluster, undisturbed):
    for version in (wire.WIRE_VERSION + 1, 0xFFFFFFFF):
        connection = Connection(address_of(cluster, "control"), *person(cluster, "admin"))
        connection.send(hello("person/admin#new", CONTROL, version=version))
        answer = connection.message()
        assert f"speaks wire version {version}".encode() in answer and b"update the older one first" in answer
        assert connection.closed_by_peer()


def test_others_names_are_refused(cluster, undisturbed):
    for name, options, word in (
        ("features-1", {}, b"certificate of 'person/admin' used by 'features-1'"),
        ("person/admin#x", {"cluster": "other"}, b"is of cluster 'other'"),
    ):
        connection = Connection(address_of(cluster, "control"), *person(cluster, "admin"))
        connection.send(hello(name, CONTROL, **options))
        assert word in connection.message()
        assert connection.closed_by_peer()


BROKEN = {
    "noise": random.Random(1).randbytes(5000),
    "an oversized envelope": struct.pack("<II", 0, 1 << 20),
    "an oversized body": envelope(ASK) + struct.pack("<II", 0, 17 << 17),
    "a body of 2 GB": envelope(ASK) + struct.pack("<II", 0, 0x0FFFFFFF),
    "many segments": envelope(ASK) + struct.pack("<II", 0xFFFFFFFF, 1),
    "segments that overflow": envelope(ASK) + struct.pack("<IIIII", 3, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 4),
    "an empty envelope": struct.pack("<II", 0, 0),
    "an envelope that points outside": struct.pack("<IIQ", 0, 1, 0x0003000700000FFC),
    "an envelope that is a list": struct.pack("<IIQQ", 0, 2, 0x0000004A00000001, 0),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_frames_close_that_link_only(cluster, undisturbed, link, what):
    try:
        link.send(BROKEN[what] + b"\0" * 64)
    except Closed:
        pass
    try:
        assert link.lanes[wire.NORMAL].closed_by_peer()
    except TimeoutError:
        pytest.fail("the link stays open")


def test_a_truncated_body_is_dropped_with_its_link(cluster, undisturbed, link):
    body = message(Struct([], ["x" * 100000]))
    link.send(envelope(ASK) + body[: len(body) // 2])
    link.lanes[wire.NORMAL].close()
    assert link.lanes[BULK].closed_by_peer()  # the three live and die together


UNREADABLE = {
    "an unknown type": (envelope(ASK, type_=0xDEADBEEFDEADBEEF), message(Struct()), b"deadbeefdeadbeef"),
    "a type that this actor does not take": (envelope(ASK, type_=wire.APPLY), message(Struct()), b""),
    "an unknown actor": (envelope(ASK, to="control/nobody"), message(Struct()), b"no actor named control/nobody"),
    "a message for nodes only": (envelope(ASK, type_=wire.type_id(wire.FILES["control"], "Register")), message(Struct()), b"by the cluster's own nodes only"),
    "a body that points outside": (envelope(ASK, to="control/resources", type_=wire.APPLY), struct.pack("<IIQ", 0, 1, 0x0001000200000FFC), b"malformed"),
    "a body that points at itself": (envelope(ASK, to="control/resources", type_=wire.APPLY), message(Struct([0, 0], [Struct([0], [Struct([0] * 12, [None] * 9)])]))[:-8] + struct.pack("<Q", 0xFFFFFFFC | 0x00010001 << 32), b""),
    "a body too deeply nested": (envelope(ASK, to="control/resources", type_=wire.APPLY), message(Struct([0, 0], [nested(1000)])), b""),
    "an unknown kind": (envelope(77), message(Struct()), None),
    "no deadline at all": (envelope(ASK, budget_us=0), message(Struct()), None),
    "an endless deadline": (envelope(ASK, budget_us=(1 << 64) - 1), message(Struct()), None),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_can_be_framed_but_not_read_is_refused_and_the_link_goes_on(cluster, undisturbed, link, what):
    head, body, word = UNREADABLE[what]
    link.send(head + body)
    if word is not None:
        kind, refusal = link.answer()
        assert kind == REFUSAL and word in refusal, refusal
    kind, body = link.ask(STATUS)
    assert kind in (REPLY, REFUSAL)
    kind, body = link.ask(STATUS)
    assert kind == REPLY and b"features-1" in body


def test_a_stream_of_mutations_harms_nobody(cluster, undisturbed, seed):
    """Good messages with a few bytes changed, to each node, until its link is closed; then the next link."""
    good = [STATUS, envelope(TELL) + message(Struct()), envelope(ASK, to="control/resources", type_=wire.APPLY) + message(Struct([0, 0], [nested(5)]))]
    for node in ("control", "features-1", "serving-1"):
        for turn in range(12):
            with Link(address_of(cluster, node), f"person/admin#fuzz{turn}", *person(cluster, "admin")) as link:
                try:
                    for _ in range(200):
                        content = bytearray(seed.choice(good))
                        for _ in range(seed.randrange(4)):
                            content[seed.randrange(len(content))] = seed.randrange(256)
                        link.send(bytes(content), seed.choice([wire.NORMAL, BULK]))
                except Closed:
                    pass
