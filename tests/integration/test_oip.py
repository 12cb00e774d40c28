"""The Open Inference Protocol with its own client: tritonclient[http], unchanged, against replicas in other processes."""

import http.client
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.http as triton
from conftest import eventually
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

MODEL = "mixed"
NUMBERS = ["age", "amount"]
COLUMNS = [*NUMBERS, "job"]


def model_file(path):
    """Raw columns in, as exported models have them: a missing number is NaN, an unknown category counts as missing."""
    nodes, filled = [], []
    inits = [helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])]
    for name in NUMBERS:
        nodes += [
            helper.make_node("IsNaN", [name], [f"{name}_missing"]),
            helper.make_node("Where", [f"{name}_missing", "zero", name], [f"{name}_filled"]),
        ]
        filled.append(f"{name}_filled")
    nodes += [
        helper.make_node("LabelEncoder", ["job"], ["job_code"], domain="ai.onnx.ml", keys_strings=["clerk", "smith"], values_floats=[1.0, 2.0], default_float=0.0),
        helper.make_node("Concat", [*filled, "job_code"], ["row"], axis=1),
        helper.make_node("Gemm", ["row", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probability"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["class"], axis=1, keepdims=1),
    ]
    rng = np.random.default_rng(3)
    inits += [
        helper.make_tensor("weights", TensorProto.FLOAT, [3, 3], rng.normal(size=9).astype(np.float32)),
        helper.make_tensor("bias", TensorProto.FLOAT, [3], [0.1, -0.2, 0.3]),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 1]) for n in NUMBERS]
    inputs.append(helper.make_tensor_value_info("job", TensorProto.STRING, ["N", 1]))
    outputs = [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N", 3]), helper.make_tensor_value_info("class", TensorProto.INT64, ["N", 1])]
    graph = helper.make_graph(nodes, MODEL, inputs, outputs, inits)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def served(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("oip")
    file = model_file(str(folder / "mixed.onnx"))
    cluster.run("models", "import", file, "--name", MODEL)
    deployment = folder / "deployment.toml"
    deployment.write_text(f'[[deployment]]\nname = "{MODEL}"\nmodel = "{MODEL}"\nversion = 1\nreplicas = 2\n')
    cluster.run("apply", "-f", deployment)
    client = triton.InferenceServerClient(cluster.http, concurrency=4)
    eventually("the model is ready", lambda: client.is_model_ready(MODEL), timeout=60)
    yield client, onnxruntime.InferenceSession(file)
    client.close()


def rows(n, seed=1):
    rng = np.random.default_rng(seed)
    age = rng.uniform(20, 70, (n, 1)).astype(np.float32)
    age[::5] = np.nan
    return {
        "age": age,
        "amount": rng.normal(size=(n, 1)).astype(np.float32),
        "job": np.array([[["clerk", "smith", "", "unheard of"][i % 4]] for i in range(n)], dtype=object),
    }


def inputs_of(columns, binary=True):
    made = []
    for name, values in columns.items():
        one = triton.InferInput(name, list(values.shape), "BYTES" if values.dtype == object else "FP32")
        one.set_data_from_numpy(values, binary_data=binary)
        made.append(one)
    return made


def request(cluster, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(cluster.http, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def test_liveness_readiness_and_metadata(served):
    client, _ = served
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready(MODEL, "2") and not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert server["name"] == "falaj" and {"binary_tensor_data", "classification", "statistics"} <= set(server["extensions"])
    model = client.get_model_metadata(MODEL)
    assert model["name"] == MODEL and model["versions"] == ["1"] and model["platform"]
    assert {i["name"]: (i["datatype"], i["shape"]) for i in model["inputs"]} == {"age": ("FP32", [-1, 1]), "amount": ("FP32", [-1, 1]), "job": ("BYTES", [-1, 1])}
    assert {o["name"]: (o["datatype"], o["shape"]) for o in model["outputs"]} == {"probability": ("FP32", [-1, 3]), "class": ("INT64", [-1, 1])}
    config = client.get_model_config(MODEL)
    assert config["max_batch_size"] == 64 and "dynamic_batching" in config
    assert {i["name"] for i in config["input"]} == set(COLUMNS)
    assert {"name": MODEL, "state": "READY"}.items() <= client.get_model_repository_index()[0].items()


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_infer_agrees_with_onnxruntime(served, binary_in, binary_out):
    client, runtime = served
    columns = rows(40)
    columns["age"] = np.nan_to_num(columns["age"]) if not binary_in else columns["age"]  # the client writes NaN as NaN: no JSON
    outputs = None if binary_out is None else [triton.InferRequestedOutput(n, binary_data=binary_out) for n in ("probability", "class")]
    result = client.infer(MODEL, inputs_of(columns, binary_in), outputs=outputs, request_id="r-1")
    expected = runtime.run(None, columns)
    np.testing.assert_allclose(result.as_numpy("probability"), expected[0], atol=1e-5)
    np.testing.assert_array_equal(result.as_numpy("class"), expected[1])
    assert result.get_response()["id"] == "r-1" and result.get_response()["model_version"] == "1"


def test_compressed_requests_and_a_base_path(served, cluster):
    client, runtime = served
    columns = rows(8)
    expected = runtime.run(None, columns)[0]
    for algorithm in ("gzip", "deflate"):
        result = client.infer(MODEL, inputs_of(columns), request_compression_algorithm=algorithm)
        np.testing.assert_allclose(result.as_numpy("probability"), expected, atol=1e-5)
    based = triton.InferenceServerClient(f"{cluster.http}/some/base")
    assert based.is_server_live()
    np.testing.assert_allclose(based.infer(MODEL, inputs_of(columns)).as_numpy("probability"), expected, atol=1e-5)
    based.close()


@pytest.mark.parametrize("binary", [True, False])
def test_classification(served, binary):
    client, runtime = served
    columns = rows(4)
    result = client.infer(MODEL, inputs_of(columns), outputs=[triton.InferRequestedOutput("probability", binary_data=binary, class_count=2)])
    words = result.as_numpy("probability")
    assert words.shape == (4, 2)
    best = runtime.run(None, columns)[0].argmax(axis=1)
    for row, index in zip(words, best):
        text = row[0].decode() if isinstance(row[0], bytes) else row[0]
        assert int(text.split(":")[1]) == index


def test_null_and_left_out_inputs_are_missing(served, cluster):
    client, runtime = served
    body = {"inputs": [{"name": "age", "shape": [1, 1], "datatype": "FP32", "data": [[None]]}, {"name": "amount", "shape": [1, 1], "datatype": "FP32", "data": [0.5]}]}
    status, answer, _ = request(cluster, "POST", f"/v2/models/{MODEL}/infer", json.dumps(body))
    assert status == 200, answer
    columns = {"age": np.array([[np.nan]], np.float32), "amount": np.array([[0.5]], np.float32), "job": np.array([[""]], dtype=object)}
    expected = runtime.run(None, columns)[0]
    got = next(o for o in json.loads(answer)["outputs"] if o["name"] == "probability")
    assert got["shape"] == [1, 3]
    np.testing.assert_allclose(got["data"], expected[0], atol=1e-5)


def test_errors_are_in_the_dialects_format(served, cluster):
    client, _ = served
    infer = f"/v2/models/{MODEL}/infer"
    one = {"name": "age", "shape": [1, 1], "datatype": "FP32", "data": [1]}

    def refused(status, word, method="POST", path=infer, body=None, headers=None):
        got, answer, _ = request(cluster, method, path, json.dumps(body) if isinstance(body, dict) else body, headers)
        assert got == status, answer
        assert word.lower() in json.loads(answer)["error"].lower(), answer

    refused(404, "not found", "GET", "/v2/nothing")
    refused(404, "not found", "GET", "/nothing")
    refused(405, "not allowed", "GET", infer)
    refused(405, "not allowed", "POST", "/v2/health/live")
    refused(404, "nobody", path="/v2/models/nobody/infer", body={"inputs": [one]})
    refused(404, "version", path=f"/v2/models/{MODEL}/versions/9/infer", body={"inputs": [one]})
    refused(400, "JSON", body="{")
    refused(400, "'inputs' is missing", body={})
    refused(400, "no input 'x'", body={"inputs": [{**one, "name": "x"}]})
    refused(400, "the model takes FP32", body={"inputs": [{**one, "datatype": "FP64"}]})
    refused(400, "shape", body={"inputs": [{**one, "shape": [1]}]})
    refused(400, "rows", body={"inputs": [one, {**one, "name": "amount", "shape": [2, 1], "data": [1, 2]}]})
    refused(400, "no output 'z'", body={"inputs": [one], "outputs": [{"name": "z"}]})
    refused(400, "JSON", body="[" * 100000 + "]" * 100000)
    refused(400, "JSON", body=json.dumps({"inputs": [one]}).replace("[1]", "[NaN]"))
    refused(400, "Inference-Header-Content-Length", body={"inputs": [one]}, headers={"Inference-Header-Content-Length": "100000"})
    refused(501, "deployments", path=f"/v2/repository/models/{MODEL}/load", body={})
    refused(404, "HTTPS", path="/v1/join", body={})
    refused(401, "bearer", body={"inputs": [one]}, headers={"Authorization": "Bearer nobody-gave-this-out"})
    with pytest.raises(InferenceServerException, match="no input"):
        client.infer(MODEL, [triton.InferInput("x", [1, 1], "FP32").set_data_from_numpy(np.ones((1, 1), np.float32))])


def test_a_hundred_megabytes_are_refused_and_nobody_minds(served, cluster):
    client, _ = served
    try:
        status, answer, _ = request(cluster, "POST", f"/v2/models/{MODEL}/infer", b"[" + b"1," * (50 << 20))
        assert status == 413 and "error" in json.loads(answer)
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused while it was still being sent
    assert client.is_server_live()


def test_trace_and_request_ids_are_answered(served, cluster):
    trace = "0af7651916cd43dd8448eb211c80319c"
    _, _, headers = request(cluster, "GET", "/v2", headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01", "X-Request-Id": "mine"})
    assert headers["traceparent"].split("-")[1] == trace and headers["traceparent"].split("-")[2] != "b7ad6b7169203331"
    assert headers["X-Request-Id"] == "mine"
    _, _, headers = request(cluster, "GET", "/v2")
    assert len(headers["traceparent"]) == 55


def test_statistics_and_metrics(served, cluster):
    client, _ = served
    before = client.get_inference_statistics(MODEL)["model_stats"][0]
    for _ in range(10):
        client.infer(MODEL, inputs_of(rows(3)))
    after = client.get_inference_statistics(MODEL)["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 30
    assert 1 <= after["execution_count"] - before["execution_count"] <= 11
    for key in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"):
        assert set(after["inference_stats"][key]) == {"count", "ns"}
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    assert after["last_inference"] > 0
    assert client.get_inference_statistics()["model_stats"]
    _, text, _ = request(cluster, "GET", "/metrics")
    lines = dict(line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#"))
    assert int(lines[f'nv_inference_count{{model="{MODEL}",version="1"}}']) == after["inference_count"]
    assert f'nv_inference_request_failure{{model="{MODEL}",version="1",reason="REJECTED"}}' in lines
    assert int(lines[f'falaj_serving_requests_total{{deployment="{MODEL}"}}']) > 0
