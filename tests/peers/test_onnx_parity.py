"""Models written by other tools give the same answers here as in onnxruntime, and leave as the files they came in.

Our side is run by test_kernels (OnnxParity), found through FALAJ_TEST_KERNELS or in the build folders.
"""
import os
import pathlib
import subprocess

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = pathlib.Path(__file__).resolve().parents[2]


def runner():
    given = os.environ.get("FALAJ_TEST_KERNELS")
    candidates = [pathlib.Path(given)] if given else [ROOT / "build" / preset / "test_kernels" for preset in ("release", "dev", "asan")]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    pytest.skip("test_kernels is not built")


def run_ours(model_bytes, feeds, folder):
    (folder / "model.onnx").write_bytes(model_bytes)
    lines = []
    for i, (name, value) in enumerate(feeds.items()):
        kind = "string" if value.dtype.kind in "OU" else value.dtype.name
        lines.append(" ".join([name.replace(" ", "_"), kind, str(value.ndim), *map(str, value.shape)]))
        data = "".join(f"{s}\n" for s in value.ravel()).encode() if kind == "string" else np.ascontiguousarray(value).tobytes()
        (folder / f"{i}.bin").write_bytes(data)
    (folder / "manifest.txt").write_text("\n".join(lines) + "\n")
    done = subprocess.run([runner(), "--gtest_filter=OnnxParity.*"], env={**os.environ, "FALAJ_PARITY_DIR": str(folder)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def compare(model, feeds, folder, rtol=1e-5, atol=1e-5):
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    feeds = {i.name: feeds[i.name] for i in session.get_inputs()}
    theirs = session.run(None, feeds)
    run_ours(data, feeds, folder)
    for i, value in enumerate(theirs):
        raw = (folder / f"out{i}.bin").read_bytes()
        if isinstance(value, list):  # ZipMap: maps from class to score; ours are the scores in the order of the classes
            value = np.array([list(row.values()) for row in value], dtype=np.float32)
        if value.dtype.kind in "OU":
            assert raw.decode().splitlines() == [str(s) for s in value.ravel()]
            continue
        ours = np.frombuffer(raw, dtype=value.dtype).reshape(value.shape)
        np.testing.assert_allclose(ours, value, rtol=rtol, atol=atol)
    again = onnx.load_from_string((folder / "again.onnx").read_bytes())
    assert again == model


def graph_model(nodes, inputs, outputs, initializers, opset=17):
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in initializers.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)])
    model.ir_version = 8
    return model


def test_raw_columns(tmp_path):
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("IsNaN", ["age"], ["missing"]),
        helper.make_node("Where", ["missing", "mean", "age"], ["filled"]),
        helper.make_node("Sub", ["filled", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "deviation"], ["scaled"]),
        helper.make_node("LabelEncoder", ["colour"], ["code"], domain="ai.onnx.ml", keys_strings=["red", "green"], values_int64s=[1, 2], default_int64=0),
        helper.make_node("Reshape", ["code", "flat"], ["codes"]),
        helper.make_node("OneHot", ["codes", "depth", "off_on"], ["hot"]),
        helper.make_node("Gather", ["table", "codes"], ["embedded"]),
        helper.make_node("Concat", ["scaled", "hot", "embedded"], ["row"], axis=1),
        helper.make_node("Gemm", ["row", "w1", "b1"], ["h1"], transB=1),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("MatMul", ["h2", "w2"], ["h3"]),
        helper.make_node("Add", ["h3", "b2"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
        helper.make_node("LogSoftmax", ["h2"], ["log"], axis=1),
    ]
    f = lambda *shape: rng.normal(size=shape).astype(np.float32)
    initializers = {
        "mean": np.array([[40]], np.float32), "deviation": np.array([[12]], np.float32), "flat": np.array([-1]), "depth": np.array(3),
        "off_on": np.array([0, 1], np.float32), "table": f(3, 4), "w1": f(16, 8), "b1": f(16), "w2": f(16, 1), "b2": f(1),
    }
    info = helper.make_tensor_value_info
    model = graph_model(nodes, [info("age", TensorProto.FLOAT, ["N", 1]), info("colour", TensorProto.STRING, ["N", 1])],
                        [info("probability", TensorProto.FLOAT, ["N", 1]), info("log", TensorProto.FLOAT, ["N", 16])], initializers)
    age = rng.normal(40, 12, size=(50, 1)).astype(np.float32)
    age[::7] = np.nan
    colour = np.array([["red", "green", "?", ""][i % 4] for i in range(50)], dtype=object).reshape(-1, 1)
    compare(model, {"age": age, "colour": colour}, tmp_path)


@pytest.mark.parametrize("op,shapes,attributes", [
    ("Gemm", [(5, 3), (5, 4), (4,)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    ("MatMul", [(2, 3, 4), (4, 5)], {}),
    ("MatMul", [(2, 1, 3, 4), (3, 4, 2)], {}),
    ("LayerNormalization", [(3, 8), (8,), (8,)], {"axis": -1}),
    ("Softmax", [(3, 4, 5)], {"axis": 1}),
    ("Erf", [(64,)], {}), ("Tanh", [(64,)], {}), ("Sigmoid", [(64,)], {}), ("Softplus", [(64,)], {}),
    ("Transpose", [(2, 3, 4)], {"perm": [2, 0, 1]}),
    ("ReduceMean", [(2, 3, 4)], {"axes": [1], "keepdims": 0}),
    ("Pow", [(3, 4), (4,)], {}),
    ("Max", [(3, 4), (4,), (3, 1)], {}),
])
def test_single_ops(tmp_path, op, shapes, attributes):
    rng = np.random.default_rng(2)
    info = helper.make_tensor_value_info
    names = [f"in{i}" for i in range(len(shapes))]
    model = graph_model([helper.make_node(op, names, ["out"], **attributes)], [info(n, TensorProto.FLOAT, s) for n, s in zip(names, shapes)],
                        [info("out", TensorProto.FLOAT, None)], {})
    compare(model, {n: np.abs(rng.normal(size=s)).astype(np.float32) for n, s in zip(names, shapes)}, tmp_path)


def linear_models():
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    yield "binary", make_pipeline(StandardScaler(), LogisticRegression()), 2
    yield "classes", make_pipeline(StandardScaler(), LogisticRegression()), 3
    yield "regression", make_pipeline(StandardScaler(), LinearRegression()), None


@pytest.mark.parametrize("case", ["binary", "classes", "regression"])
def test_scikit_learn(tmp_path, case):
    skl2onnx = pytest.importorskip("skl2onnx")
    name, estimator, classes = next(c for c in linear_models() if c[0] == case)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    y = rng.normal(size=200) if classes is None else rng.integers(0, classes, size=200)
    estimator.fit(x, y)
    model = skl2onnx.to_onnx(estimator, x[:1], target_opset={"": 17, "ai.onnx.ml": 3})
    compare(model, {model.graph.input[0].name: x}, tmp_path)
