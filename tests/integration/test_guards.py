"""What is guarded: nothing that users handed in lies on disk in clear, a changed byte of a stored value is named, and who may not is refused
at each of the three doors (HTTP, actor messages, commands), with an entry in the audit log."""

import http.client
import json
import shutil
import ssl
import struct

import pytest
import wire
from conftest import SLOW, eventually, falaj
from onnx import TensorProto, helper
from wire import ASK, REFUSAL, REPLY, Link, Struct, message

MARK = "Zq8marker"
PURPOSE = f"{MARK}-purpose"
ROWS = 200
# Names of resources are in the logs, where operators look for them. All else is marked that a user can write.
RESOURCES = f"""
[[feature_view]]
name = "marked"
entity = "{MARK}_id"
purposes = ["{PURPOSE}"]
field = [
  {{ name = "{MARK}_number", type = "float32" }},
  {{ name = "{MARK}_word", type = "string", personal = true }},
  {{ name = "{MARK}_label", type = "string" }},
]

[[job]]
name = "marked"
view = "marked"
label = "{MARK}_label"
positive = "{MARK}-yes"
purpose = "{PURPOSE}"
epochs = 3
workers = 2
gate = {{ min_auc = 0.01 }}
"""


def person(cluster, name):
    return [cluster.dir / f"principals/{name}.{end}" for end in ("crt", "key")]


@pytest.fixture(scope="module")
def marked(cluster, tmp_path_factory):
    """Rows, a training run with its artifacts, a version, a deployment that answers, and an imported model: all with the marker."""
    cluster.files = tmp_path_factory.mktemp("marked")
    rows = [f"{MARK}-{i},{i / 10},{MARK if i % 3 else 'other'},{MARK + '-yes' if i % 2 else 'no'}" for i in range(ROWS)]
    (cluster.files / "rows.csv").write_text("\n".join([f"{MARK}_id,{MARK}_number,{MARK}_word,{MARK}_label", *rows]) + "\n")
    (cluster.files / "view.toml").write_text(RESOURCES.split("[[job]]")[0])
    (cluster.files / "job.toml").write_text("[[job]]" + RESOURCES.split("[[job]]")[1])
    cluster.run("apply", "-f", cluster.files / "view.toml")
    cluster.run("features", "ingest", "marked", cluster.files / "rows.csv")
    cluster.run("train", "-f", cluster.files / "job.toml", timeout=300)
    cluster.run("models", "alias", "marked", "production", 1)
    cluster.run("deploy", "marked", "--view", "marked", "--read-purpose", PURPOSE)
    cluster.imported = imported()
    (cluster.files / "imported.onnx").write_bytes(cluster.imported)
    cluster.run("models", "import", cluster.files / "imported.onnx", "--name", "imported")
    for name in ("by-http", "by-message", "by-command"):
        cluster.run("principal", f"person/{name}")
    return cluster


def imported():
    ends = [helper.make_tensor_value_info(f"{MARK}_{name}", TensorProto.FLOAT, ["N", 1]) for name in "xy"]
    node = helper.make_node("Identity", [ends[0].name], [ends[1].name], name=f"{MARK}-node", doc_string=MARK)
    graph = helper.make_graph([node], f"{MARK}-graph", ends[:1], ends[1:], doc_string=MARK)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name=MARK, doc_string=MARK)
    helper.set_model_props(made, {f"{MARK}-key": f"{MARK}-value"})
    return made.SerializeToString()


# ---- at rest ---------------------------------------------------------------------------------------------------------------------


def in_clear(cluster):
    return [str(f) for f in cluster.dir.rglob("*") if f.is_file() and MARK.encode() in f.read_bytes()]


def test_no_marker_is_found_in_any_file(marked, tmp_path):
    """In data, a model's metadata and what was declared; after reads, refusals, mistakes and kills too."""
    row = marked.json("features", "get", "marked", f"{MARK}-1", "--purpose", PURPOSE)["rows"][0]
    assert row["values"][1] == {"string": MARK}
    assert f"{MARK}-1" in marked.run("predict", "marked", f"{MARK}-1", "--purpose", PURPOSE).stdout
    marked.run("models", "export", "imported", tmp_path / "same.onnx", "--version", 1)
    assert (tmp_path / "same.onnx").read_bytes() == marked.imported
    assert marked.run("features", "get", "marked", f"{MARK}-1", "--purpose", f"not-{MARK}", check=False).returncode == 4
    assert marked.run("features", "get", f"{MARK}-view", f"{MARK}-1", "--purpose", PURPOSE, check=False).returncode == 5
    (tmp_path / "bad.csv").write_text(f"{MARK}_id,{MARK}_number,{MARK}_word,{MARK}_label\n{MARK}-1,{MARK}-no-number,,\n")
    assert marked.run("features", "ingest", "marked", tmp_path / "bad.csv", check=False).returncode == 2
    job = (marked.files / "job.toml").read_text()
    (tmp_path / "job.toml").write_text(job.replace(f"{MARK}-yes", f"{MARK}-nobody").replace('name = "marked"', 'name = "wrong"'))
    told = marked.run("train", "-f", tmp_path / "job.toml", check=False)
    assert told.returncode != 0 and f"{MARK}-yes" in told.stderr  # who trains may see what there is, the log may not
    request = {"inputs": [{"name": f"{MARK}_nothing", "shape": [1, 1], "datatype": "BYTES", "data": [MARK]}], "parameters": {MARK: MARK}}
    connection = http.client.HTTPConnection(marked.http, timeout=30 * SLOW)
    connection.request("POST", "/v2/models/marked/infer", json.dumps(request), {"X-Request-Id": MARK})
    assert connection.getresponse().status == 400
    assert in_clear(marked) == []
    for node in ("features-1", "control", "serving-1"):
        marked.kill(node)
    eventually("all rows are there", lambda: int(marked.run("features", "count", "marked").stdout) == ROWS, timeout=60)
    assert in_clear(marked) == []


def stored_values(content):
    """(offset, length, key) of each value in the bytes of an LMDB file, its trees walked from the newest root: what lies on pages that
    were freed is no stored value."""
    page = 4096
    newest = max((16, page + 16), key=lambda meta: struct.unpack_from("<Q", content, meta + 128)[0])
    assert struct.unpack_from("<I", content, newest)[0] == 0xBEEFC0DE

    def tree(database):  # its record, of 48 bytes, ends with the number of its root page
        (root,) = struct.unpack_from("<Q", content, database + 40)
        return walk(root) if root != (1 << 64) - 1 else ()

    def walk(number):
        branch, lower = struct.unpack_from("<HH", content, number * page + 10)
        for i in range((lower - 16) // 2):
            at = number * page + struct.unpack_from("<H", content, number * page + 16 + 2 * i)[0]
            low, high, flags, key_size = struct.unpack_from("<HHHH", content, at)
            key = content[at + 8 : at + 8 + key_size]
            value = at + 8 + key_size
            if branch & 1:
                yield from walk(low | high << 16 | flags << 32)
            elif flags & 2:  # a table
                yield from tree(value)
            elif flags & 1:  # on pages of its own
                yield struct.unpack_from("<Q", content, value)[0] * page + 16, low | high << 16, key
            else:
                yield value, low | high << 16, key

    return list(tree(newest + 24 + 48))


def flip(file, seed, offset, length):
    content = bytearray(file.read_bytes())
    at = offset + seed.randrange(length)
    content[at] ^= 1 << seed.randrange(8)
    file.chmod(0o600)
    file.write_bytes(content)


@pytest.fixture
def stopped(marked, tmp_path):
    """The cluster does not run; afterwards it runs again with everything as it was."""
    marked.run("down")
    shutil.copytree(marked.dir / "nodes", tmp_path / "nodes")
    yield marked
    marked.down()
    shutil.rmtree(marked.dir / "nodes")
    shutil.copytree(tmp_path / "nodes", marked.dir / "nodes")
    marked.up()


def test_a_flipped_byte_of_a_stored_value_is_named(stopped, seed):
    store = stopped.dir / "nodes/features-1/store/features"
    whole = (store / "data.mdb").read_bytes()
    values = stored_values(whole)
    assert len(values) > ROWS // 4
    falaj("store", "check", store)
    for offset, length, key in seed.sample(values, 12):
        flip(store / "data.mdb", seed, offset, length)
        told = falaj("store", "check", store, check=False)
        assert told.returncode == 8 and str(store) in told.stderr, told
        table, _, key = key.partition(b"\0")
        shown = f"0x{key[:30].hex()}" if not key.isascii() else key.decode()  # the long are cut short
        assert f"table {table.decode()}, key {shown}" in told.stderr, (key, told.stderr)
        (store / "data.mdb").write_bytes(whole)
    artifacts = stopped.dir / "nodes/control/artifacts"
    files = [f for kind in ("manifests", "chunks") for f in (artifacts / kind).rglob("*") if f.is_file()]
    for file in seed.sample(files, min(6, len(files))):
        kept = file.read_bytes()
        flip(file, seed, 0, len(kept))
        told = falaj("store", "check", artifacts, check=False)
        assert told.returncode == 8 and file.name in told.stderr, told
        file.write_bytes(kept)
    falaj("store", "check", artifacts)


def test_a_damaged_row_is_refused_and_the_others_are_given(stopped, seed):
    marked, store = stopped, stopped.dir / "nodes/features-1/store/features"
    rows = [v for v in stored_values((store / "data.mdb").read_bytes()) if v[2].startswith(b"features.rows\0")]
    flip(store / "data.mdb", seed, *rows[len(rows) // 2][:2])
    marked.up()
    answers = {i: marked.run("features", "get", "marked", f"{MARK}-{i}", "--purpose", PURPOSE, check=False) for i in range(ROWS)}
    (damaged,) = (i for i, a in answers.items() if a.returncode != 0)
    assert answers[damaged].returncode == 8 and "features-1" in answers[damaged].stderr and "restore this store from a backup" in answers[damaged].stderr
    told = marked.run("features", "snapshot", "marked", "--purpose", PURPOSE, check=False)
    assert told.returncode == 8, "nobody trains on what is left"


# ---- who may not -----------------------------------------------------------------------------------------------------------------


def over_https(cluster, who, path, body, **headers):
    context = ssl.create_default_context(cafile=cluster.dir / "ca/ca.crt")
    context.check_hostname = False  # nodes are named by SPIFFE ids
    context.load_cert_chain(*person(cluster, who))
    connection = http.client.HTTPSConnection(cluster.file["https"], context=context, timeout=30 * SLOW)
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def by_message(cluster, who, type_, purpose, body, to="features/front"):
    head = message(
        Struct([ASK, type_, 1, 10_000_000, 0, 0, 0], [Struct([0, 0, 0], [to]), Struct([0, 0, 9], [None]), Struct([], [None, None, purpose, None, None])])
    )
    with Link(cluster.file["controlAddress"], f"person/{who}#raw", *person(cluster, who), cluster.dir / "ca/ca.crt") as link:
        return link.ask(head, message(body))


GET = wire.type_id(wire.FILES["features"], "GetFeatures")


def one_row():
    return Struct([], ["marked", None, [f"{MARK}-1"], None])


def test_who_has_not_the_verb_is_refused_at_each_door_and_audited(marked):
    assert over_https(marked, "admin", "/v1/predict/marked", {"entities": [f"{MARK}-1"], "purpose": PURPOSE})[0] == 200
    status, told = over_https(marked, "by-http", "/v1/predict/marked", {"entities": [f"{MARK}-1"], "purpose": PURPOSE})
    assert status == 403 and "serving.predict" in told, told
    marked.audited("refused", "person/by-http", "serving.predict")

    kind, told = by_message(marked, "admin", GET, PURPOSE, one_row())
    assert kind == REPLY and MARK.encode() in told, told
    kind, told = by_message(marked, "by-message", GET, PURPOSE, one_row())
    assert kind == REFUSAL and b"features.read" in told, told
    marked.audited("refused", "person/by-message", "features.read")

    done = marked.run("features", "get", "marked", f"{MARK}-1", "--purpose", PURPOSE, "--as", "by-command", check=False)
    assert done.returncode == 4 and done.stdout == "" and "features.read" in done.stderr, done
    marked.audited("refused", "person/by-command", "features.read")
    marked.run("audit", "verify")


def test_any_message_over_http_by_who_has_its_verb(marked):
    status, told = over_https(marked, "admin", "/v1/actors/control/membership/GetStatus", {})
    assert status == 200, told
    assert len(json.loads(told)["view"]["nodes"]) == 7, told
    # An actor that only its own node knows by name.
    status, told = over_https(marked, "admin", "/v1/actors/node/agent/features-1/GetNodeStats", {}, **{"Falaj-Node": "features-1", "Falaj-Timeout-Ms": "3000"})
    assert status == 200 and json.loads(told)["node"] == "features-1", told
    ask = {"view": "marked", "entities": [f"{MARK}-1"]}
    status, told = over_https(marked, "admin", "/v1/actors/features/front/GetFeatures", ask, **{"Falaj-Purpose": PURPOSE})
    assert status == 200 and MARK in told, told

    status, told = over_https(marked, "by-http", "/v1/actors/control/membership/GetStatus", {})
    assert status == 403 and "cluster.read" in told, told
    marked.audited("refused", "person/by-http", "cluster.read")
    status, told = over_https(marked, "admin", "/v1/actors/features/front/GetFeatures", ask, **{"Falaj-Purpose": "by-http-message"})
    assert status == 403 and "'by-http-message'" in told, told
    for path, body, headers, expected, words in [
        ("control/membership/ClusterView", {}, {}, 404, "ClusterView"),  # a message without a verb is for nodes
        ("control/membership/Nonsense", {}, {}, 404, "Nonsense"),
        ("nobody/GetStatus", {}, {}, 404, "no actor"),
        ("GetStatus", {}, {}, 404, "Not Found"),
        ("control/membership/GetStatus", {"nonsense": 1}, {}, 400, "nonsense"),
        ("control/membership/GetStatus", {}, {"Falaj-Timeout-Ms": "soon"}, 400, "Falaj-Timeout-Ms"),
    ]:
        status, told = over_https(marked, "admin", f"/v1/actors/{path}", body, **headers)
        assert status == expected and words in told, (path, status, told)


def test_a_read_without_the_purpose_is_refused_at_each_door_and_audited(marked):
    status, told = over_https(marked, "admin", "/v1/predict/marked", {"entities": [f"{MARK}-1"], "purpose": "by-http"})
    assert status == 403 and "'by-http'" in told, told
    marked.audited("refused", "person/admin", "'by-http'")

    kind, told = by_message(marked, "admin", GET, "by-message", one_row())
    assert kind == REFUSAL and b"may not be read for the purpose 'by-message'" in told, told
    marked.audited("refused", "person/admin", "'by-message'")

    done = marked.run("features", "get", "marked", f"{MARK}-1", "--purpose", "by-command", check=False)
    assert done.returncode == 4 and done.stdout == "" and "'by-command'" in done.stderr, done
    marked.audited("refused", "person/admin", "'by-command'")
    marked.run("audit", "verify")
