"""`falaj model`: ONNX files and arrays on disk, without a cluster."""

import json

import numpy as np
import onnx
import pytest
from conftest import falaj
from onnx import TensorProto, helper, numpy_helper


def save(path, nodes, inputs, outputs, initializers=(), **options):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path, **options)
    return path


def f32(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def array(folder, name, value):
    np.save(folder / name, value)
    return folder / name


def refused(*args):
    done = falaj("model", *args, check=False)
    assert done.returncode not in (0, -6, -11), done.stdout
    assert done.stderr.count("\n") <= 3, done.stderr
    return done.stderr


@pytest.fixture
def affine(tmp_path):
    weights = [numpy_helper.from_array(np.array([[1, 2], [3, 4]], np.float32), "w"), numpy_helper.from_array(np.array([10, 20], np.float32), "b")]
    return save(tmp_path / "affine.onnx", [helper.make_node("Gemm", ["x", "w", "b"], ["y/out"])], [f32("x", "N", 2)], [f32("y/out", "N", 2)], weights)


def test_run_writes_an_array_for_each_output(affine, tmp_path):
    x = array(tmp_path, "x.npy", np.array([[1, 1], [0, 2], [-1, 0]], np.float32))
    told = falaj("model", "run", affine, "--input", f"x={x}", "--output-dir", tmp_path / "out" / "deep").stdout
    written = tmp_path / "out" / "deep" / "y_out.npy"
    assert told.strip() == str(written)
    np.testing.assert_array_equal(np.load(written), [[14, 26], [16, 28], [9, 18]])
    again = json.loads(falaj("model", "run", affine, "-i", f"x={x}", "-O", tmp_path, "--json").stdout)
    assert again == {"outputs": [str(tmp_path / "y_out.npy")], "interpreted": None}


def test_info_tells_what_a_model_is(affine):
    told = falaj("model", "info", affine, "--why").stdout
    assert "1 nodes, 6 parameters in 24 bytes" in told and "float32[N, 2]" in told and "Gemm" in told
    facts = json.loads(falaj("model", "info", affine, "--json").stdout)
    assert facts["inputs"] == [{"name": "x", "kind": "tensor", "dtype": "float32", "shape": ["N", 2]}]
    assert facts["ops"] == {"Gemm": 1} and facts["opsets"] == {"ai.onnx": 18} and facts["parameters"] == 6 and facts["interpreted"] is None


def test_sequences_strings_and_odd_types_travel_as_arrays(tmp_path):
    text = helper.make_tensor_value_info("t", TensorProto.STRING, ["N"])
    parts = helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, ["K"])
    half = helper.make_tensor_value_info("h", TensorProto.BFLOAT16, ["N"])
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["parts"], axis=0),
        helper.make_node("StringNormalizer", ["t"], ["u"], case_change_action="UPPER"),
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16),
    ]
    path = save(tmp_path / "m.onnx", nodes, [f32("x", "N"), text], [parts, helper.make_tensor_value_info("u", TensorProto.STRING, ["M"]), half])
    x = array(tmp_path, "x.npy", np.array([1, -2.5], np.float32))
    t = array(tmp_path, "t.npy", np.array(["naïve", "b"]))
    told = json.loads(falaj("model", "run", path, "-i", f"x={x}", "-i", f"t={t}", "-O", tmp_path / "out", "--json").stdout)
    assert "SplitToSequence" in told["interpreted"]
    load = lambda name: np.load(tmp_path / "out" / name)
    assert load("parts.0.npy").tolist() == [1.0] and load("parts.1.npy").tolist() == [-2.5]
    assert load("u.npy").tolist() == ["NAÏVE", "B"]
    assert load("h.npy").dtype == np.dtype("<u2") and load("h.npy").tolist() == [0x3F80, 0xC020]
    assert "interpreter: " in falaj("model", "info", path).stdout


def test_weights_beside_the_model_and_nowhere_else(tmp_path):
    inside = tmp_path / "models"
    inside.mkdir()
    weight = numpy_helper.from_array(np.arange(1000, dtype=np.float32), "w")
    path = save(inside / "big.onnx", [helper.make_node("Add", ["x", "w"], ["y"])], [f32("x", 1)], [f32("y", 1000)], [weight],
                save_as_external_data=True, location="big.data", size_threshold=0)
    x = array(tmp_path, "x.npy", np.array([0.5], np.float32))
    falaj("model", "run", path, "-i", f"x={x}", "-O", tmp_path / "out")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "y.npy"), np.arange(1000) + 0.5)

    data = inside / "big.data"
    data.rename(tmp_path / "elsewhere")
    assert "big.data" in refused("info", path)
    data.symlink_to(tmp_path / "elsewhere")
    assert "leads out of the model's folder" in refused("info", path)
    data.unlink()
    data.write_bytes(b"short")
    assert "bytes" in refused("info", path)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../elsewhere"
    onnx.save(model, path)
    assert "inside the model's folder" in refused("info", path)


def test_bad_input_is_refused_and_nothing_is_written(affine, tmp_path):
    good = array(tmp_path, "good.npy", np.ones((2, 2), np.float32))
    out = tmp_path / "out"
    run = lambda *inputs: refused("run", affine, *(word for i in inputs for word in ("--input", i)), "-O", out)
    assert "--input x=FILE.npy" in run()
    assert "the model's inputs are: x" in run(f"z={good}")
    assert "float32 is needed" in run(f"x={array(tmp_path, 'd.npy', np.ones((2, 2)))}")
    assert "'x'" in run(f"x={array(tmp_path, 's.npy', np.ones((2, 3), np.float32))}")
    assert "no-such.npy" in run(f"x={tmp_path / 'no-such.npy'}")
    cut = tmp_path / "cut.npy"
    cut.write_bytes(good.read_bytes()[:-1])
    assert "damaged" in run(f"x={cut}")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(affine.read_bytes()[:50])
    assert "broken.onnx" in refused("run", broken, "--input", f"x={good}", "-O", out)
    assert not out.exists()
