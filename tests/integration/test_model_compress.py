"""`falaj model prune` and `distill`: what comes out is what the report says, and only what is better and good enough comes out."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT, falaj
from onnx import helper, numpy_helper
from test_model import array, f32, refused, save

DIGITS = ROOT / "configs/examples/data/digits.csv"
CONFLICT = 6


def network(path, sizes, seed=1):
    random = np.random.default_rng(seed)
    nodes, held, value = [], [], "x"
    for i, (a, b) in enumerate(zip(sizes, sizes[1:])):
        held += [numpy_helper.from_array((random.normal(size=(a, b)) * np.sqrt(2 / a)).astype(np.float32), f"w{i}"),
                 numpy_helper.from_array(np.zeros(b, np.float32), f"b{i}")]
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [f"g{i}"]))
        value = f"g{i}"
        if i < len(sizes) - 2:
            nodes.append(helper.make_node("Relu", [value], [f"r{i}"]))
            value = f"r{i}"
    return save(path, nodes, [f32("x", "N", sizes[0])], [f32(value, "N", sizes[-1])], held)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Pixels and digits, some held out, and a network that has learnt them."""
    folder = tmp_path_factory.mktemp("digits")
    rows = np.loadtxt(DIGITS, delimiter=",", skiprows=1, dtype=str)
    order = np.random.default_rng(3).permutation(len(rows))
    x, y = rows[order, 1:65].astype(np.float32) / 16, rows[order, 65].astype(np.int64)
    np.savez_compressed(folder / "train.npz", x=x[:1400], labels=y[:1400])
    np.savez_compressed(folder / "test.npz", x=x[1400:], labels=y[1400:])
    data = ["--input", f"x={folder / 'train.npz'}", "--labels", folder / "train.npz"]
    test = ["--test-input", f"x={folder / 'test.npz'}", "--test-labels", folder / "test.npz"]
    falaj("model", "train", network(folder / "new.onnx", [64, 256, 192, 10]), *data, "--steps", 300, "--lr", 0.002, "-o", folder / "net.onnx")
    return folder, data, test


def weights_of(path):
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


def accuracy(model, folder):
    told = falaj("model", "evaluate", model, "--input", f"x={folder / 'test.npz'}", "--labels", folder / "test.npz", "--json").stdout
    return json.loads(told)["metrics"]["accuracy"]


def answers_alike(model, folder, tmp_path):
    """Here and by onnxruntime."""
    x = np.load(folder / "test.npz")["x"]
    falaj("model", "run", model, "-i", f"x={folder / 'test.npz'}", "-O", tmp_path / "answers")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (written,) = (tmp_path / "answers").iterdir()
    np.testing.assert_allclose(np.load(written), session.run(None, {"x": x})[0], rtol=1e-4, atol=1e-4)


def test_channels_go_and_the_model_is_smaller_and_faster(digits, tmp_path):
    folder, data, test = digits
    out, report = tmp_path / "small.onnx", tmp_path / "report.json"
    told = json.loads(falaj("model", "prune", folder / "net.onnx", "--method", "channels", "--amount", 0.5, *data, *test, "--steps", 150, "--lr", 0.002,
                            "--budget", 0.02, "--seconds", 0.2, "--report", report, "--log", tmp_path / "log.csv", "-o", out, "--json").stdout)
    assert told == json.loads(report.read_text()) and told["offered"] and told["want"] == "faster" and told["why_not"] is None
    assert [(l["name"], l.get("channels"), l.get("kept")) for l in told["layers"]] == [("w0", 256, 128), ("w1", 192, 96), ("w2", None, None)]
    assert "result of the model" in told["layers"][2]["whole"]
    onnx.checker.check_model(onnx.load(out))
    assert {n: w.shape for n, w in weights_of(out).items()} == {"w0": (64, 128), "b0": (128,), "w1": (128, 96), "b1": (96,), "w2": (96, 10), "b2": (10,)}
    answers_alike(out, folder, tmp_path)
    assert onnx.load(out).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert told["after"]["parameters"] == sum(w.size for w in weights_of(out).values()) < told["before"]["parameters"] / 2
    assert told["after"]["bytes"] < told["before"]["bytes"] / 2 and told["after"]["p50_us"] < told["before"]["p50_us"]
    assert accuracy(out, folder) == pytest.approx(told["after"]["metrics"]["accuracy"], abs=1e-6)
    assert accuracy(out, folder) > 0.98 * accuracy(folder / "net.onnx", folder)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 151
    kept = {p.key: p.value for p in onnx.load(out).metadata_props}["falaj.compression"]
    assert json.loads(kept)["after"] == told["after"], "the report is kept with the model"


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_small_weights_become_zeros_and_stay_zeros(digits, tmp_path, scope):
    folder, data, test = digits
    out = tmp_path / "sparse.onnx"
    words = ["model", "prune", folder / "net.onnx", "--amount", 0.8, "--scope", scope, *data, *test, "--steps", 100, "--seconds", 0.05, "--budget", 0.03]
    told = json.loads(falaj(*words, "-o", out, "--json").stdout)
    before, after = onnx.load(folder / "net.onnx"), onnx.load(out)
    assert before.graph.node == after.graph.node
    weights = weights_of(out)
    for layer in told["layers"]:
        zeros = int((weights[layer["name"]] == 0).sum())
        assert zeros == layer["zeros"] and layer["weights"] == weights[layer["name"]].size
        assert scope == "global" or zeros >= int(0.8 * layer["weights"])
    assert sum(l["zeros"] for l in told["layers"]) >= 0.8 * sum(l["weights"] for l in told["layers"]) - 3
    assert any(not np.array_equal(weights[n], w) and n.startswith("b") for n, w in weights_of(folder / "net.onnx").items()), "the rest was trained"
    assert told["want"] == "packed" and told["after"]["packed_bytes"] < 0.5 * told["before"]["packed_bytes"]
    assert "SPARSITY" in falaj(*words[:-2], "--budget", 0.5, "-o", tmp_path / "again.onnx").stdout


def test_weights_of_what_is_made_may_lie_in_a_file_beside_it(digits, tmp_path):
    folder, data, test = digits
    ways = {
        "prune": ["prune", folder / "net.onnx", *data, *test, "--amount", 0.3, "--budget", 0.5, "--seconds", 0.05],
        "distill": ["distill", network(tmp_path / "student.onnx", [64, 32, 10]), "--teacher", folder / "net.onnx", *data, *test, "--steps", 2, "--budget", 0.99, "--seconds", 0.05,
                    "--want", "smaller"],
        "quantize": ["quantize", folder / "net.onnx", *data, "--budget", 0.5, "--seconds", 0.05, "--keep-anyway"],
    }
    for name, words in ways.items():
        one, two = tmp_path / f"{name}.onnx", tmp_path / f"{name}_beside.onnx"
        done = [falaj("model", *words, "-o", out, "--report", tmp_path / "report.json", *more, check=False) for out, more in ((one, []), (two, ["--external-data"]))]
        assert [d.returncode for d in done] == [0, 0], [d.stderr for d in done]
        beside = two.with_name(two.name + ".data")
        assert beside.stat().st_size > two.stat().st_size and not one.with_name(one.name + ".data").exists()
        assert accuracy(two, folder) == accuracy(one, folder)
        if name != "quantize":
            assert json.loads((tmp_path / "report.json").read_text())["after"]["bytes"] == pytest.approx(two.stat().st_size + beside.stat().st_size, abs=2000)  # but for the report in it


def test_what_is_not_good_enough_is_not_offered(digits, tmp_path):
    folder, data, test = digits
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    prune = lambda *options: falaj("model", "prune", folder / "net.onnx", *data, *test, "--seconds", 0.05, "-o", out, "--report", report, *options, check=False)
    done = prune("--method", "channels", "--amount", 0.95)
    assert done.returncode == CONFLICT and "of its accuracy, the budget is 0.01" in done.stderr
    told = json.loads(report.read_text())
    assert not told["offered"] and "budget" in told["why_not"] and told["output"] is None and told["accuracy_lost"] > 0.01
    done = prune("--amount", 0.3, "--want", "smaller", "--budget", 0.5)
    assert done.returncode == CONFLICT and "its file is not smaller" in done.stderr
    done = prune("--amount", 1.5)
    assert done.returncode == 2 and "must be larger than 0 and smaller than 1" in done.stderr
    assert not out.exists()
    linear = save(tmp_path / "linear.onnx", [helper.make_node("Gemm", ["x", "w", "b"], ["y"])], [f32("x", "N", 64)], [f32("y", "N", 10)],
                  [numpy_helper.from_array(np.ones((64, 10), np.float32), "w"), numpy_helper.from_array(np.zeros(10, np.float32), "b")])
    assert "no layer's channels can be removed: w: its channels are a result of the model" in refused("prune", linear, "--method", "channels", *data, "-o", out)


def test_a_small_model_learns_from_a_large_one(digits, tmp_path):
    folder, data, test = digits
    # Few labels, many rows: what the teacher says of the rest is worth something.
    train = np.load(folder / "train.npz")
    student = network(tmp_path / "student.onnx", [64, 16, 10], seed=4)
    out = tmp_path / "taught.onnx"
    words = ["model", "distill", student, "--teacher", folder / "net.onnx", *data, *test, "--temperature", 3, "--teacher-share", 0.7, "--steps", 400, "--lr", 0.01,
             "--seconds", 0.1, "--log", tmp_path / "log.csv", "--want", "smaller"]
    told = json.loads(falaj(*words, "-o", out, "--json").stdout)
    assert told["offered"] and told["last_loss"] < told["first_loss"] and told["untrained"]["accuracy"] < 0.4
    assert told["before"]["metrics"]["accuracy"] == pytest.approx(accuracy(folder / "net.onnx", folder), abs=1e-6)
    assert told["after"]["metrics"]["accuracy"] == pytest.approx(accuracy(out, folder), abs=1e-6)
    assert accuracy(out, folder) > 0.95 * accuracy(folder / "net.onnx", folder) and told["after"]["bytes"] < told["before"]["bytes"] / 10
    # It learns the teacher, not only the labels: with labels that say nothing it still becomes good.
    np.savez(tmp_path / "noise.npz", x=train["x"], labels=np.random.default_rng(1).integers(0, 10, len(train["x"])))
    noise = ["--input", f"x={tmp_path / 'noise.npz'}", "--labels", tmp_path / "noise.npz"]
    alone = tmp_path / "alone.onnx"
    falaj("model", "distill", student, "--teacher", folder / "net.onnx", *noise, *test, "--teacher-share", 1, "--steps", 400, "--lr", 0.01, "--seconds", 0.05, "-o", alone)
    assert accuracy(alone, folder) > 0.9


def test_a_teacher_that_does_not_fit_is_refused(digits, tmp_path):
    folder, data, test = digits
    out = tmp_path / "out.onnx"
    student = network(tmp_path / "student.onnx", [64, 8, 9])
    distill = lambda *options, student=student: refused("distill", student, "--teacher", folder / "net.onnx", *data, "--steps", 5, "--seconds", 0.05, "-o", out, *options)
    assert "the teacher has 10 outputs, the model 9" in distill()
    assert "temperature is 0" in distill("--temperature", 0)
    assert "distillation is for cross-entropy, bce and mse" in distill("--loss", "l1")
    weak = network(tmp_path / "weak.onnx", [64, 1, 10])
    done = falaj("model", "distill", weak, "--teacher", folder / "net.onnx", *data, "--steps", 3, "--seconds", 0.05, "-o", out, check=False)
    assert done.returncode == CONFLICT and "of its accuracy, the budget is 0.05" in done.stderr
    other = network(tmp_path / "other.onnx", [10, 10])
    assert "teacher: input 'x'" in refused("distill", student, "--teacher", other, *data, "--steps", 5, "-o", out)
    assert not out.exists()
