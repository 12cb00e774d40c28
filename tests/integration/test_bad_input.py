"""What people and programs hand in by mistake or malice: each gets one clear error that names the place and the remedy, exits non-zero
(or answers 4xx), and changes nothing."""

import gzip
import http.client
import json
import pathlib
import struct
import threading

import numpy as np
import pytest
from conftest import ROOT, SLOW, eventually
from onnx import TensorProto, helper

EXAMPLE = ROOT / "configs/examples/credit.toml"
DATA = ROOT / "configs/examples/data/german_credit.csv"
VIEW = EXAMPLE.read_text().split("# Ten-fold")[0]
ROWS = DATA.read_text().splitlines()
JOB = '[[job]]\nname = "x"\nview = "applicants"\nlabel = "class"\npurpose = "credit-scoring"\n'
STRICT = """
[[feature_view]]
name = "strict"
entity = "id"
purposes = ["testing"]
field = [{ name = "a", type = "float32", required = true }, { name = "b", type = "float32" }, { name = "n", type = "int64" }]
"""


@pytest.fixture(scope="module")
def views(cluster, tmp_path_factory):
    file = tmp_path_factory.mktemp("views") / "views.toml"
    file.write_text(VIEW + STRICT)
    cluster.run("apply", "-f", file)
    cluster.run("features", "ingest", "applicants", DATA)
    return cluster


def refused(done, code, *words):
    assert done.returncode == code, done
    assert done.stdout == "", done.stdout
    errors = done.stderr.strip()
    assert errors.startswith("falaj: "), errors
    for word in words:
        assert word in errors, errors
    return errors


def state(cluster):
    """What a refused command may not have touched."""
    counts = [cluster.run("features", "count", view).stdout for view in ("applicants", "strict")]
    resources = [(r["revision"], r["resource"]) for r in cluster.json("get")["records"]]
    return counts, resources, cluster.run("models", "list").stdout


@pytest.fixture(scope="class")
def unchanged(views):
    before = state(views)
    yield
    assert state(views) == before


# ---- CSV -------------------------------------------------------------------------------------------------------------------------

EDUCATION = ROWS[3].index("education") + 1  # column, counted from one, of a field in line 4

CSV = {
    "a column too few": (lambda r: r[:3] + [r[3].rsplit(",", 1)[0]] + r[4:9], ":4:", "21 columns, but the header has 22"),
    "a column too many": (lambda r: r[:3] + [r[3] + ",x"] + r[4:9], ":4:", "23 columns, but the header has 22"),
    "not a number": (lambda r: r[:3] + [r[3].replace(",12,", ",twelve,")], ":4:19:", "'duration': 'twelve' is not a number"),
    "a comma for the point": (lambda r: r[:3] + [r[3].replace(",12,", ',"1,5",')], ":4:", "write the decimal point as '.'"),
    "too large a number": (lambda r: r[:3] + [r[3].replace(",12,", ",1e39,")], ":4:19:", "too large for float32; declare the field as float64"),
    "an infinite number": (lambda r: r[:3] + [r[3].replace(",12,", ",inf,")], ":4:19:", "not finite"),
    "a huge field": (lambda r: r[:3] + [r[3].replace("education", "x" * (2 << 20))], f":4:{EDUCATION}:", "a field of more than 65536 bytes"),
    "an open quote": (lambda r: r[:3] + [r[3].replace("education", '"education')] + r[4:9], f":4:{EDUCATION}:", "this quote is not closed"),
    "not UTF-8": (lambda r: [row.encode() for row in r[:3]] + [r[3].encode().replace(b"education", b"educ\xff\xfe")], f":4:{EDUCATION}:", "not UTF-8; save the file as UTF-8"),
    "a NUL": (lambda r: r[:3] + [r[3].replace("education", "edu\0cation")], f":4:{EDUCATION}:", "a NUL byte"),
    "an empty entity": (lambda r: r[:3] + [r[3][5:]], ":4:1:", "'applicant_id': the entity is empty"),
    "a huge entity": (lambda r: r[:3] + ["x" * 60000 + r[3]], ":4:1:", "'applicant_id': an entity of"),
    "a missing column": (lambda r: [r[0].replace("duration", "length"), r[1]], ":1:", "field 'duration': the file has no such column"),
    "a column twice": (lambda r: [r[0].replace("duration", "age"), r[1]], ":1:", "in the header twice"),
    "no header": (lambda r: r[1:9], ":1:", "field 'applicant_id': the file has no such column"),
    "an empty file": (lambda r: [], ":1:1:", "the file is empty; its first line must name the columns"),
    "no text": (lambda r: [bytes(range(256)) * 400], ":1:1:", "this is no text file"),
}


@pytest.mark.usefixtures("unchanged")
class TestCsv:
    @pytest.mark.parametrize("what", CSV)
    def test_refused(self, views, tmp_path, what):
        change, place, *words = CSV[what]
        lines = [line if isinstance(line, bytes) else line.encode() for line in change(ROWS)]
        file = tmp_path / "bad.csv"
        file.write_bytes(b"".join(line + b"\n" for line in lines))
        errors = refused(views.run("features", "ingest", "applicants", file, check=False), 2, f"bad.csv{place}", *words)
        assert len(errors) < 10000  # the huge is not shown whole

    def test_that_is_not_there(self, views, tmp_path):
        refused(views.run("features", "ingest", "applicants", tmp_path / "none.csv", check=False), 5, "none.csv", "cannot be opened")
        refused(views.run("features", "ingest", "applicants", tmp_path, check=False), 2, str(tmp_path), "a directory")
        refused(views.run("features", "ingest", "nobody", DATA, check=False), 5, "no feature_view 'nobody'")

    def test_each_bad_row_is_named_and_none_stored(self, views, tmp_path):
        rows = [f"N{i},{'x' if i in (3, 700, 4711) else i},1,1" for i in range(5000)]
        file = tmp_path / "bad.csv"
        file.write_text("\n".join(["id,a,b,n", *rows]) + "\n")
        refused(views.run("features", "ingest", "strict", file, check=False), 2, "bad.csv:5:4: ", "bad.csv:702:6: ", "bad.csv:4713:7: ")


def test_nan_is_missing_where_a_value_may_be_missing_and_an_error_elsewhere(views, tmp_path):
    file = tmp_path / "nan.csv"
    file.write_text("id,a,b,n\nM1,1,nan,\nM2,2,,3\n")
    views.run("features", "ingest", "strict", file)
    rows = views.json("features", "get", "strict", "M1", "M2", "--purpose", "testing")["rows"]
    assert [row["values"][1] for row in rows] == [{"missing": None}] * 2
    for value in ("", "nan"):
        file.write_text(f"id,a,b,n\nM3,{value},1,1\n")
        refused(views.run("features", "ingest", "strict", file, check=False), 2, "nan.csv:2:4: field 'a'", "a value is required")
    file.write_text("id,a,b,n\nM3,1,1,nan\n")  # a whole number cannot be NaN
    refused(views.run("features", "ingest", "strict", file, check=False), 2, "nan.csv:2:8: field 'n'")
    assert views.json("features", "get", "strict", "M3", "--purpose", "testing")["rows"][0]["status"] == "notFound"


# ---- TOML ------------------------------------------------------------------------------------------------------------------------

TOML = {
    "an unknown key": (JOB + "epoch = 3\n", ":6:1:", "unknown key 'job[0].epoch'; did you mean 'epochs'?"),
    "an unknown table": ('[[deploment]]\nname = "x"\n', ":1:", "did you mean 'deployment'?"),
    "a word for a number": (JOB + 'epochs = "three"\n', ":6:10:", "'job[0].epochs': expected an integer, found a string"),
    "a fraction for a whole": (JOB + "epochs = 1.5\n", ":6:10:", "expected an integer, found a number with a fraction"),
    "a word for a table": (JOB + 'model = "mlp"\n', ":6:9:", "expected a table, found a string"),
    "a number for a word": (JOB.replace('"x"', "3"), ":2:8:", "'job[0].name': expected a string, found an integer"),
    "out of range": (JOB + "epochs = 0\n", ":6:10:", "'job[0].epochs': 0 is outside 1 to 1000000"),
    "negative": (JOB + "workers = -1\n", ":6:11:", "-1 is outside 1 to 1024"),
    "out of range within": (JOB + "optimizer = { learning_rate = 11.0 }\n", ":6:31:", "11 is outside 0 to 10"),
    "beyond 64 bits": (JOB + "seed = 99999999999999999999999\n", ":6:", "not representable in 64 bits"),
    "no such choice": (JOB + 'model = { family = "forest" }\n', ":6:20:", "no such choice 'forest'", "linear, mlp, wide_deep, onnx"),
    "a key that is needed": ('[[job]]\nname = "x"\n', ":1:1:", "missing key 'job[0].label'"),
    "a key twice": (JOB + 'name = "y"\n', ":6:8:", "'name'"),
    "no value": (JOB + "epochs = \n", ":6:10:", "expected value"),
    "deep nesting": (JOB + "seed = " + "[" * 100000 + "\n", ":6:", "deep"),
    "not UTF-8": (JOB.encode() + b'register_as = "\xff\xfe"\n', ":6:", "not UTF-8"),
    "a bad name": (JOB.replace('"x"', '"../x"'), ": ", "job.name '../x'"),
    "good, then a bad name": (STRICT.replace("strict", "not-strict") + JOB.replace('"x"', '"../x"'), ": ", "job.name '../x'"),
    "good, then bad": ('[[deployment]]\nname = "ok"\nmodel = "m"\n' + JOB + "epochs = 0\n", ":9:10:", "'job[0].epochs'"),
}


@pytest.mark.usefixtures("unchanged")
class TestToml:
    @pytest.mark.parametrize("what", TOML)
    def test_refused(self, views, tmp_path, what):
        content, place, *words = TOML[what]
        file = tmp_path / "bad.toml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        refused(views.run("apply", "-f", file, check=False), 2, f"bad.toml{place}", *words)

    def test_that_is_not_there(self, views, tmp_path):
        refused(views.run("apply", "-f", tmp_path / "none.toml", check=False), 5, "none.toml", "cannot be opened")
        refused(views.run("apply", "-f", tmp_path, check=False), 2, f"{tmp_path}: a directory")
        (tmp_path / "empty.toml").write_text("# later\n")
        refused(views.run("apply", "-f", tmp_path / "empty.toml", check=False), 2, "empty.toml: declares nothing; write [[feature_view]]")


@pytest.mark.parametrize("change, word", [(('"class"', '"klass"'), "no field klass"), (('"applicants"', '"nobody"'), "nobody"), (('"credit-scoring"', '"marketing"'), "marketing")])
def test_a_job_that_cannot_run_says_why(views, tmp_path, change, word):
    file = tmp_path / "job.toml"
    file.write_text(JOB.replace(*change))
    done = views.run("train", "-f", file, check=False)
    assert done.returncode != 0 and done.stderr.startswith("falaj: ") and word in done.stderr, done
    views.run("delete", "job", "x")


# ---- ONNX ------------------------------------------------------------------------------------------------------------------------


def value(name, dtype=TensorProto.FLOAT, shape=("N", 1)):
    return helper.make_tensor_value_info(name, dtype, list(shape))


def model(*nodes, inputs=None, outputs=None, tensors=(), opset=17):
    graph = helper.make_graph(list(nodes), "g", inputs or [value("x")], outputs or [value("y")], list(tensors))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)])
    made.ir_version = 8
    return made.SerializeToString()


def tensor(name, shape):
    return helper.make_tensor(name, TensorProto.FLOAT, shape, np.zeros(shape, np.float32).ravel())


def short_tensor():
    made = tensor("w", [1, 1])
    made.dims[0] = 5
    return made


node = helper.make_node
RELU = model(node("Relu", ["x"], ["y"]))
ONNX = {
    "truncated in the middle": (RELU[: len(RELU) // 2], 8, "truncated; copy or export it again"),
    "truncated by a byte": (RELU[:-1], 8, "truncated; copy or export it again"),
    "empty": (b"", 2, "the file is empty"),
    "noise": (np.random.default_rng(1).bytes(1000), 8, "no ONNX model, or it is damaged"),
    "a CSV": (b"a,b,c\n1,2,3\n", 8, "no ONNX model, or it is damaged"),
    "a cycle": (model(node("Add", ["x", "b"], ["a"], name="first"), node("Relu", ["a"], ["b"], name="second"), node("Relu", ["b"], ["y"])), 2, "cycle through", "'first' (Add)"),
    "a node that reads itself": (model(node("Add", ["x", "y"], ["y"])), 2, "cycle through"),
    "an unknown op": (model(node("Frobnicate", ["x"], ["y"], name="frob")), 1, "'frob' (Frobnicate)", "rewrite the model without it"),
    "an unknown domain": (model(node("Relu", ["x"], ["y"], name="frob", domain="com.example")), 2, "'frob' (Relu)", "com.example"),
    "an old opset": (model(node("Relu", ["x"], ["y"]), opset=5), 1, "opset 5", "convert it with onnx.version_converter"),
    "shapes that do not fit": (model(node("MatMul", ["x", "w"], ["y"], name="mul"), tensors=[tensor("w", [3, 2])]), 2, "'mul' (MatMul)", "the inner sizes 1 and 3 differ"),
    "a tensor too short": (model(node("MatMul", ["x", "w"], ["y"]), tensors=[short_tensor()]), 2, "initialiser 'w': shape [5, 1] needs 5 values, but 1"),
    "an axis too many": (model(node("Softmax", ["x"], ["y"], axis=7, name="soft")), 2, "'soft' (Softmax)", "axis 7"),
    "types that do not fit": (model(node("Add", ["x", "s"], ["y"], name="add"), inputs=[value("x"), value("s", TensorProto.STRING)]), 2, "'add' (Add)", "insert a Cast"),
    "a name from nowhere": (model(node("Relu", ["nothing"], ["y"])), 2, "reads 'nothing'", "fix the name"),
    "an output from nowhere": (model(node("Relu", ["x"], ["z"])), 2, "output 'y' is not computed", "fix its name"),
    "a value twice": (model(node("Relu", ["x"], ["y"]), node("Relu", ["x"], ["y"])), 2, "value 'y' is defined twice"),
}


@pytest.mark.usefixtures("unchanged")
class TestOnnx:
    @pytest.mark.parametrize("what", ONNX)
    def test_refused(self, views, tmp_path, what):
        content, code, *words = ONNX[what]
        file = tmp_path / "bad.onnx"
        file.write_bytes(content)
        refused(views.run("models", "import", file, "--name", "bad", check=False), code, "bad.onnx: ", *words)

    def test_that_is_not_there(self, views, tmp_path):
        refused(views.run("models", "import", tmp_path / "none.onnx", "--name", "bad", check=False), 5, "none.onnx", "cannot be read")
        refused(views.run("models", "import", tmp_path, "--name", "bad", check=False), 2, f"{tmp_path}: a directory")
        (tmp_path / "good.onnx").write_bytes(RELU)
        refused(views.run("models", "import", tmp_path / "good.onnx", "--name", "../bad", check=False), 2, "model '../bad'")


# ---- HTTP ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(views, tmp_path_factory):
    """Two models that say what they were given: numbers as they are, a category as its code."""
    files = tmp_path_factory.mktemp("models")
    encode = node("LabelEncoder", ["s"], ["code"], domain="ai.onnx.ml", keys_strings=["red", "green"], values_floats=[1.0, 2.0], default_float=-1.0)
    graph = model(node("Identity", ["x"], ["y"]), encode, inputs=[value("x"), value("s", TensorProto.STRING)], outputs=[value("y"), value("code")])
    (files / "echo.onnx").write_bytes(graph)
    views.run("models", "import", files / "echo.onnx", "--name", "echo")
    (files / "echo.toml").write_text('[deployment]\nname = "echo"\nmodel = "echo"\nversion = 1\nreplicas = 2\n')
    views.run("apply", "-f", files / "echo.toml")
    eventually("the model answers", lambda: send(views, infer())[0] == 200, timeout=60)
    return views


def infer(**changes):
    x = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.5], **changes}
    return {"inputs": [x, {"name": "s", "shape": [1, 1], "datatype": "BYTES", "data": ["red"]}]}


def send(cluster, body, path="/v2/models/echo/infer", headers=None, chunked=False):
    connection = http.client.HTTPConnection(cluster.http, timeout=60 * SLOW)
    try:
        connection.request("POST", path, json.dumps(body) if isinstance(body, dict) else body, headers or {}, encode_chunked=chunked)
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused while it was still being sent: the answer is there all the same
    try:
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


BODY = json.dumps(infer())
REQUESTS = {
    "a wide shape": (infer(shape=[1, 2]), "input 'x': data has 1 elements, the shape asks for 2"),
    "a long shape": (infer(shape=[2, 1]), "input 'x': data has 1 elements, the shape asks for 2"),
    "too little data": (infer(data=[]), "input 'x': data has 0 elements"),
    "too much data": (infer(data=[1, 2]), "input 'x': data has more than the 1 elements"),
    "a flat shape": (infer(shape=[1]), "input 'x' has shape [1], the model takes [-1, 1]"),
    "no shape": (infer(shape=[]), "input 'x' has shape [], the model takes [-1, 1]"),
    "a negative shape": (infer(shape=[-1, 1]), "-1 is negative"),
    "a fraction of a shape": (infer(shape=[1.5, 1]), "fraction"),
    "a word for a shape": (infer(shape="1"), "shape is a string, it must be an array"),
    "a shape beyond 64 bits": (infer(shape=[1 << 62, 1 << 62]), "more elements than the request holds"),
    "rows that do not fit": ({"inputs": [{**infer()["inputs"][0], "shape": [2, 1], "data": [1, 2]}, infer()["inputs"][1]]}, "rows"),
    "an unknown datatype": (infer(datatype="FP8"), "input 'x': unknown datatype 'FP8'"),
    "another datatype": (infer(datatype="FP64"), "input 'x' is FP64, the model takes FP32"),
    "words for numbers": (infer(data=["1.5"]), "input 'x': JSON: expected a number, found a string"),
    "an object for data": (infer(data={}), "input 'x': JSON: expected a number, found an object"),
    "too large a number": (infer(data=[1e39]), "input 'x': 1e+39 does not fit FP32"),
    "a number for a category": ({"inputs": [infer()["inputs"][0], {"name": "s", "shape": [1, 1], "datatype": "BYTES", "data": [5]}]}, "input 's'"),
    "an unknown input": (infer(name="z"), "no input 'z'"),
    "an unknown output": ({**infer(), "outputs": [{"name": "z"}]}, "no output 'z'"),
    "no inputs": ({}, "'inputs' is missing"),
    "NaN, which JSON has not": (BODY.replace("1.5", "NaN"), "JSON, byte"),
    "Infinity, which JSON has not": (BODY.replace("1.5", "Infinity"), "JSON, byte"),
    "nothing": ("", "JSON, byte 0"),
    "truncated": (BODY[:-3], "the document ends too early"),
    "more behind the end": (BODY + "x", "text after the end"),
    "not UTF-8": (BODY.encode().replace(b"red", b"r\xff\xfe"), "not UTF-8"),
    "deep": ("[" * 100000 + "]" * 100000, "nested deeper than 64"),
    "deep and open": ("[" * 1000000, "nested deeper than 64"),
    "deep objects": ('{"a":' * 100000 + "1" + "}" * 100000, "nested deeper than 64"),
    "deep data": (BODY.replace("1.5", "[" * 100 + "1" + "]" * 100), "nested deeper than 64"),
    "a million inputs": ('{"inputs":[' + "{}," * 1000000 + "{}]}", "at most 4096"),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_requests(served, what):
    body, word = REQUESTS[what]
    status, answer = send(served, body)
    assert status == 400 and word in answer["error"], (status, answer)
    assert len(answer["error"]) < 1000


def test_null_is_missing_and_an_unknown_category_too_and_counted(served):
    def unknown():
        connection = http.client.HTTPConnection(served.http, timeout=30 * SLOW)
        connection.request("GET", "/metrics")
        lines = dict(line.rsplit(" ", 1) for line in connection.getresponse().read().decode().splitlines() if not line.startswith("#"))
        return int(lines['falaj_serving_unknown_values_total{deployment="echo"}'])

    assert send(served, infer(data=[None]))[1]["outputs"][0]["data"] == [None]
    before = unknown()
    body = infer()
    for word in ("never seen", "nor this"):
        body["inputs"][1]["data"] = [word]
        assert send(served, body)[1]["outputs"][1]["data"] == [-1]
    assert unknown() == before + 2


GAPS = """
[[feature_view]]
name = "gaps"
entity = "id"
purposes = ["testing"]
field = [
  { name = "always", type = "float32", required = true },
  { name = "word", type = "string", required = true },
  { name = "sometimes", type = "float32" },
  { name = "label", type = "string" },
]
"""
GAPS_JOB = """
[[job]]
name = "gaps"
view = "gaps"
label = "label"
purpose = "testing"
epochs = 1
gate = { min_auc = 0.0 }
"""


def test_a_gap_is_an_error_where_the_field_has_none_and_missing_elsewhere(views, tmp_path):
    """What the view says of its fields goes with the model; of rows that are stored for an entity, the answer names the missing."""
    (tmp_path / "rows.csv").write_text("id,always,word,sometimes,label\n" + "".join(f"G{i},{i},{'ab'[i % 2]},{i if i % 3 else ''},{'yn'[i % 2]}\n" for i in range(80)))
    (tmp_path / "view.toml").write_text(GAPS)
    (tmp_path / "job.toml").write_text(GAPS_JOB)
    views.run("apply", "-f", tmp_path / "view.toml")
    views.run("features", "ingest", "gaps", tmp_path / "rows.csv")
    views.run("train", "-f", tmp_path / "job.toml")
    views.run("models", "alias", "gaps", "production", 1)
    views.run("deploy", "gaps", "--view", "gaps", "--read-purpose", "testing")

    def asked(drop=None, binary=None, **values):
        inputs = []
        for name, datatype, given in (("always", "FP32", 1.5), ("word", "BYTES", "a"), ("sometimes", "FP32", 2.5)):
            if name != drop:
                inputs.append({"name": name, "shape": [1, 1], "datatype": datatype, "data": [values.get(name, given)]})
        tail = b""
        for i in inputs:
            if i["name"] == binary:
                del i["data"]
                i["parameters"] = {"binary_data_size": 4}
                tail = struct.pack("<f", float("nan"))
        head = json.dumps({"inputs": inputs}).encode()
        return send(views, head + tail, "/v2/models/gaps/infer", {"Inference-Header-Content-Length": str(len(head))})

    for missing in ({}, {"sometimes": None}, {"drop": "sometimes"}, {"binary": "sometimes"}, {"word": "never seen"}):
        status, answer = asked(**missing)
        assert status == 200, (missing, answer)
    for missing, name in (({"always": None}, "always"), ({"binary": "always"}, "always"), ({"drop": "always"}, "always"), ({"word": ""}, "word"), ({"drop": "word"}, "word")):
        status, answer = asked(**missing)
        assert status == 400 and f"input '{name}'" in answer["error"] and "missing" in answer["error"], (missing, answer)
    told = views.json("predict", "gaps", "G1", "nobody", "--purpose", "testing")
    assert told["missing"] == ["nobody"]


def resident_mb(pid, what):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) // 1024


def chunks(megabytes):
    for _ in range(megabytes):
        yield b"1," * (1 << 19)


def test_bodies_of_100_mb_are_refused_and_the_gateways_memory_stays_bounded(served):
    gateway = served.pid("control")
    pathlib.Path(f"/proc/{gateway}/clear_refs").write_text("5")  # VmHWM counts from here
    before = resident_mb(gateway, "VmRSS")
    status, answer = send(served, b"[" + b"1," * (50 << 20))
    assert status == 413 and "send it in parts" in answer["error"]
    status, answer = send(served, chunks(100), headers={"Transfer-Encoding": "chunked"}, chunked=True)
    assert status == 413 and "send it in parts" in answer["error"]
    status, answer = send(served, gzip.compress(b"[" + b"1," * (100 << 20), 1), headers={"Content-Encoding": "gzip"})
    assert status == 413 and "when inflated" in answer["error"]
    status, answer = send(served, b"[" + b"1," * (30 << 20) + b"1]")
    assert status == 400 and "at most 16777216 are read" in answer["error"]

    answers = []

    def one():
        answers.append(send(served, chunks(60), headers={"Transfer-Encoding": "chunked"}, chunked=True))

    threads = [threading.Thread(target=one) for _ in range(12)]  # 720 MB, were all of them held
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(answers) == 12 and {status for status, _ in answers} <= {400, 503}, answers
    assert send(served, infer())[0] == 200
    assert served.pid("control") == gateway
    assert resident_mb(gateway, "VmHWM") - before < 640 * (2 if SLOW > 1 else 1)  # a sanitizer's shadow memory counts too
