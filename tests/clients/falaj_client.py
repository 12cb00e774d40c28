"""falaj_client.py CLUSTER_DIR PRINCIPAL ACTOR [HOST:PORT]: asks an actor over Cap'n Proto and TLS, then hosts one (messages/WIRE.md)."""
import json, pathlib, socket, ssl, struct, sys, time, capnp

MESSAGES = pathlib.Path(__file__).resolve().parents[2] / "messages"
wire, control, foreign = (capnp.load(f"{MESSAGES}/{name}.capnp", imports=sys.path) for name in ("envelope", "control", "foreign"))

class Falaj:
    def __init__(self, address, cluster, name, certificate, key, authority, hosted):
        context = ssl.create_default_context(cafile=authority)
        context.check_hostname = False  # nodes are named by SPIFFE ids, not by DNS
        context.load_cert_chain(certificate, key)
        self.tls = context.wrap_socket(socket.create_connection(address.rsplit(":", 1)))
        assert dict(self.tls.getpeercert()["subjectAltName"])["URI"].startswith(f"spiffe://{cluster}/node/"), "that is no node"
        self.tls.sendall(wire.Hello.new_message(wireVersion=wire.wireVersion, cluster=cluster, node=name, incarnation=time.time_ns()).to_bytes())
        self.stream, self.asked, self.hosted = self.tls.makefile("rb"), 0, hosted
        with wire.Hello.from_bytes(self.read()) as hello:
            assert not hello.refusal.message, hello.refusal.message

    def read(self):  # one message in its frame: how many more segments, the words of each, padding to 8 bytes; then the segments
        count = int.from_bytes(more := self.stream.read(4), "little") + 1
        table = self.stream.read(4 * (count | 1))
        return more + table + self.stream.read(8 * sum(struct.unpack_from(f"<{count}I", table)))

    def send(self, kind, to, body, **fields):
        self.tls.sendall(wire.Envelope.new_message(kind=kind, to=to, typeId=body.schema.node.id, **fields).to_bytes() + body.to_bytes())

    def ask(self, actor, body, reply, seconds=5):
        self.asked += 1
        self.send("ask", {"name": actor}, body, correlation=self.asked, budgetUs=seconds * 1_000_000, **{"from": {"actor": 1}})
        kind, answer = self.serve(self.asked)
        with (wire.ErrorInfo if kind == "refusal" else reply).from_bytes(answer) as content:
            return content.to_dict() if kind == "reply" else sys.exit(f"{actor}: {content.code}: {content.message}")

    def serve(self, until=None):  # answers heartbeats and questions, until the answer comes that is waited for
        while True:
            with wire.Envelope.from_bytes(self.read()) as head:
                if head.kind == "heartbeat":
                    self.tls.sendall(wire.Envelope.new_message(kind="heartbeatReply", correlation=head.correlation).to_bytes())
                elif (body := self.read()) and head.kind in ("reply", "refusal") and head.correlation == until:
                    return str(head.kind), body
                elif head.kind == "ask":
                    with foreign.Invoke.from_bytes(body) as question:
                        kind, answer = self.hosted[head.to.name](question, head.scope.principal)
                    self.send(kind, getattr(head, "from"), answer, correlation=head.correlation)

def quote(question, who):
    try:
        return "reply", foreign.Invoked.new_message(text=json.dumps({"price": 2.5 * json.loads(question.text)["kg"], "for": who}))
    except (ValueError, KeyError, TypeError) as e:
        return "refusal", wire.ErrorInfo.new_message(code="invalid", message=f'send {{"kg": NUMBER}}, not {question.text!r}: {e!r}')

directory, principal, actor, *address = pathlib.Path(sys.argv[1]), *sys.argv[2:]
cluster, files = json.loads((directory / "cluster.json").read_text()), directory / "principals" / principal.split("/")[1]
falaj = Falaj(*address or [cluster["controlAddress"]], cluster["cluster"], principal, f"{files}.crt", f"{files}.key", directory / "ca/ca.crt", {actor: quote})
status = falaj.ask("control/membership", control.GetStatus.new_message(), control.ClusterStatus)["view"]
print("nodes:", *(n["name"] for n in status["nodes"] if n["up"]), flush=True)
falaj.ask("node/foreign", foreign.RegisterActor.new_message(name=actor), wire.Empty)
print("hosting", actor, flush=True)
falaj.serve()
