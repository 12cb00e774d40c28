"""Models that onnxruntime's quantiser writes, QDQ and QOperator, run here on integers and agree with onnxruntime within one quantum; ours run
there."""
import json
import os
import pathlib
import subprocess

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

quantization = pytest.importorskip("onnxruntime.quantization")
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def falaj():
    given = os.environ.get("FALAJ")
    candidates = [pathlib.Path(given)] if given else [ROOT / "build" / preset / "falaj" for preset in ("release", "dev")]
    for candidate in candidates:
        if candidate.exists():
            return lambda *args: subprocess.run([candidate, *map(str, args)], capture_output=True, text=True, check=True).stdout
    pytest.skip("falaj is not built")


class Builder:
    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.nodes, self.weights = [], []

    def known(self, *shape, size=1.0):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array((self.random.normal(size=shape) * size).astype(np.float32), name))
        return name

    def add(self, op, *inputs, **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"{op}_{len(self.nodes)}", **attributes))
        return name

    def conv(self, x, maps, channels, kernel, stride=1, group=1):
        fan = channels // group * kernel * kernel
        return self.add("Conv", x, self.known(maps, channels // group, kernel, kernel, size=fan**-0.5), self.known(maps), kernel_shape=[kernel] * 2,
                        strides=[stride] * 2, pads=[kernel // 2] * 4, group=group)

    def model(self, shape, result, outputs):
        self.nodes.append(helper.make_node("Identity", [result], ["y"]))
        graph = helper.make_graph(self.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
                                  [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", outputs])], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def mlp(seed):
    b, h = Builder(seed), "x"
    for n, m in ((24, 64), (64, 50), (50, 7)):
        h = b.add("Gemm", h, b.known(m, n, size=n**-0.5), b.known(m), transB=1)
        h = h if m == 7 else b.add("Relu", h)
    return b.model((24,), h, 7), (24,)


def products(seed):
    b = Builder(seed)
    h = b.add("Relu", b.add("Add", b.add("MatMul", "x", b.known(24, 40, size=0.2)), b.known(40)))
    h = b.add("Add", b.add("MatMul", h, b.known(40, 6, size=0.2)), b.known(6))
    return b.model((24,), h, 6), (24,)


def network(seed):
    b = Builder(seed)
    h = b.add("MaxPool", b.add("Relu", b.conv("x", 16, 3, 7, 2)), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    h = b.add("Relu", b.add("Add", b.conv(b.add("Relu", b.conv(h, 16, 16, 3)), 16, 16, 3), h))
    h = b.add("Relu", b.add("Add", b.conv(b.add("Relu", b.conv(h, 24, 16, 3, 2)), 24, 24, 3), b.conv(h, 24, 16, 1, 2)))
    h = b.add("Relu", b.conv(h, 24, 24, 3, group=24))
    h = b.add("Flatten", b.add("GlobalAveragePool", h))
    return b.model((3, 32, 32), b.add("Gemm", h, b.known(24, 10, size=0.2), b.known(10)), 10), (3, 32, 32)


class Samples(quantization.CalibrationDataReader):
    def __init__(self, values):
        self.left = [{"x": v[None]} for v in values]

    def get_next(self):
        return self.left.pop() if self.left else None


def theirs(path, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def ours(falaj, path, x, folder):
    np.save(folder / "x.npy", x)
    falaj("model", "run", path, "--input", f"x={folder / 'x.npy'}", "--output-dir", folder / "ours")
    return np.load(folder / "ours" / "y.npy")


def last_scale(model):
    """Of the value that the output is dequantised from; by the largest weight scale times that of its input where it is not."""
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    makers = {o: n for n in model.graph.node for o in n.output}
    node = makers["y"]
    while node.op_type in ("Identity", "Flatten"):
        node = makers[node.input[0]]
    assert node.op_type == "DequantizeLinear", node.op_type
    return float(constants[node.input[1]].ravel()[0])


@pytest.mark.parametrize("types", [("QUInt8", "QInt8"), ("QInt8", "QInt8")], ids=["u8s8", "s8s8"])
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("make", [mlp, products, network])
def test_their_quantised_models_agree_within_one_quantum(falaj, tmp_path, make, per_channel, form, types):
    model, shape = make(3)
    random = np.random.default_rng(5)
    onnx.save(model, tmp_path / "f32.onnx")
    quantization.quantize_static(tmp_path / "f32.onnx", tmp_path / "int8.onnx", Samples(random.normal(size=(64, *shape)).astype(np.float32)),
                                 quant_format=getattr(quantization.QuantFormat, form), per_channel=per_channel,
                                 activation_type=getattr(quantization.QuantType, types[0]), weight_type=getattr(quantization.QuantType, types[1]))
    x = random.normal(size=(50, *shape)).astype(np.float32)
    a, b = ours(falaj, tmp_path / "int8.onnx", x, tmp_path), theirs(tmp_path / "int8.onnx", x)
    quanta = np.abs(a - b) / last_scale(onnx.load(tmp_path / "int8.onnx"))
    # A tie inside may fall the other way there, which moves what is computed from it.
    assert quanta.max() < (2.01 if make is network else 1.01) and (quanta < 1.01).mean() > 0.99, (quanta.max(), (quanta > 0.01).mean())
    why = falaj("model", "info", tmp_path / "int8.onnx", "--why")
    for left in ("(Gemm)", "(MatMul)", "(Conv)", "(QLinear", "(QGemm)", "(MaxPool)", "no integer product"):
        assert left not in why, why


@pytest.mark.parametrize("make", [mlp, products, network])
def test_our_quantised_models_run_there(falaj, tmp_path, make):
    model, shape = make(4)
    random = np.random.default_rng(6)
    onnx.save(model, tmp_path / "f32.onnx")
    x = random.normal(size=(64, *shape)).astype(np.float32)
    np.save(tmp_path / "samples.npy", x)
    falaj("model", "quantize", tmp_path / "f32.onnx", "--input", f"x={tmp_path / 'samples.npy'}", "--budget", 1, "--seconds", 0.01, "--keep-anyway",
          "--output", tmp_path / "int8.onnx", "--report", tmp_path / "report.json")
    assert all(layer["quantised"] for layer in json.loads((tmp_path / "report.json").read_text())["layers"])
    onnx.checker.check_model(onnx.load(tmp_path / "int8.onnx"), full_check=True)
    a, b, f32 = ours(falaj, tmp_path / "int8.onnx", x, tmp_path), theirs(tmp_path / "int8.onnx", x), theirs(tmp_path / "f32.onnx", x)
    spread = f32.std()
    assert np.abs(a - b).max() < 0.05 * spread and np.sqrt(((a - f32) ** 2).mean()) < 0.1 * spread
