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


# --- train, evaluate ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def blobs(tmp_path):
    """A two-layer net, and three clouds of points."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 90)
    x = rng.standard_normal((90, 4)).astype(np.float32) + 2 * np.eye(3, 4, dtype=np.float32)[labels]
    weights = {"w1": rng.standard_normal((4, 8)) / 2, "b1": np.zeros(8), "w2": rng.standard_normal((8, 3)) / 2, "b2": np.zeros(3)}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    held = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    model = save(tmp_path / "net.onnx", nodes, [f32("x", "N", 4)], [f32("y", "N", 3)], held)
    return model, array(tmp_path, "x.npy", x), array(tmp_path, "labels.npy", labels)


def train(model, x, labels, out, *options, steps=30):
    return falaj("model", "train", model, "--input", f"x={x}", "--labels", labels, "--loss", "cross-entropy", "--lr", "0.02", "--batch", "30", "--steps",
                 steps, "--output", out, *options)


def test_train_lowers_the_loss_and_changes_initialisers_only(blobs, tmp_path):
    model, x, labels = blobs
    log, out = tmp_path / "losses.csv", tmp_path / "trained.onnx"
    told = json.loads(train(model, x, labels, out, "--log", log, "--json").stdout)
    rows = log.read_text().splitlines()
    assert rows[0].startswith("step,loss") and len(rows) == 31 and [int(r.split(",")[0]) for r in rows[1:]] == list(range(1, 31))
    losses = [float(r.split(",")[1]) for r in rows[1:]]
    assert losses[-1] < losses[0] / 2 and told["first_loss"] == losses[0] and told["last_loss"] == losses[-1] and told["tensors"] == 4
    before, after = onnx.load(model), onnx.load(out)
    assert all(not np.array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b)) for a, b in zip(before.graph.initializer, after.graph.initializer))
    for old, new in zip(before.graph.initializer, after.graph.initializer):
        new.CopyFrom(old)
    assert before == after

    loss = lambda path: json.loads(falaj("model", "evaluate", path, "--input", f"x={x}", "--labels", labels, "--loss", "cross-entropy", "--json").stdout)
    assert loss(model)["rows"] == 90 and loss(out)["metrics"]["loss"] < loss(model)["metrics"]["loss"]
    assert loss(out)["metrics"]["accuracy"] > 0.8
    assert "accuracy" in falaj("model", "evaluate", out, "--input", f"x={x}", "--labels", labels).stdout


def test_train_is_the_same_for_a_seed_and_other_for_another(blobs, tmp_path):
    model, x, labels = blobs
    files = [tmp_path / f"{i}.onnx" for i in range(3)]
    for out, seed in zip(files, (1, 1, 2)):
        train(model, x, labels, out, "--seed", seed, steps=5)
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_weights_may_lie_in_a_file_beside_the_model(classifier, tmp_path):
    model, x, labels = classifier
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    train(model, x, labels, one, steps=3)
    train(model, x, labels, two, "--external-data", steps=3)
    beside = tmp_path / "two.onnx.data"
    assert two.stat().st_size < 4096 < 1_000_000 < beside.stat().st_size and not list(tmp_path.glob("*.part"))
    embedded, apart = onnx.load(one), onnx.load(two)  # the latter reads the file beside it
    assert [numpy_helper.to_array(a).tobytes() for a in embedded.graph.initializer] == [numpy_helper.to_array(b).tobytes() for b in apart.graph.initializer]
    again = tmp_path / "elsewhere"
    again.mkdir()
    train(two, x, labels, again / "two.onnx", "--external-data", steps=3)  # such a file is trained further, and nothing leads back to the first
    for name in ("two.onnx", "two.onnx.data"):
        assert (again / name).stat().st_size > 0
    onnx.checker.check_model(onnx.load(again / "two.onnx"))
    assert "cannot be written" in refused("train", model, "--input", f"x={x}", "--labels", labels, "--steps", 1, "--external-data", "--output", tmp_path / "no" / "x.onnx")


@pytest.mark.parametrize("options", [("--optimizer", "sgd", "--momentum", "0.9"), ("--optimizer", "adam"), ("--optimizer", "lamb"),
                                     ("--schedule", "cosine", "--warmup", "3"), ("--schedule", "step", "--every", "10"), ("--schedule", "plateau"),
                                     ("--clip-norm", "0.5"), ("--accumulate", "2"), ("--freeze", "w1", "--freeze", "b*")])
def test_every_way_to_train_lowers_the_loss(blobs, tmp_path, options):
    told = json.loads(train(*blobs, tmp_path / "out.onnx", "--json", *options).stdout)
    assert told["last_loss"] < told["first_loss"]


def test_training_that_goes_bad_stops_and_writes_nothing(blobs, tmp_path):
    model, x, labels = blobs
    out, log = tmp_path / "out.onnx", tmp_path / "log.csv"
    values = np.load(x)
    values[41, 2] = np.nan
    bad = array(tmp_path, "bad.npy", values)
    many = np.load(labels)
    many[7] = 3

    def told(*options, x=x, labels=labels, out=out):
        return refused("train", model, "--input", f"x={x}", "--labels", labels, "--batch", 30, "--steps", 50, "--no-shuffle", "--log", log, "--output", out, *options)

    assert "step 2: " in told(x=bad) and "input 'x', row 41" in told(x=bad)
    by_rate = told("--optimizer", "sgd", "--lr", "1e30")
    assert "step 2: " in by_rate or "step 3: " in by_rate, by_rate
    assert "made by" in by_rate or "parameter" in by_rate
    assert "row 7: label 3" in told(labels=array(tmp_path, "many.npy", many))
    assert "mse needs one label" in told("--loss", "mse")
    assert "'nothing*' is to be frozen" in told("--freeze", "w1", "--freeze", "nothing*")
    assert "90 rows" in told(x=array(tmp_path, "few.npy", values[:80]))
    assert "cannot be written" in told(out=tmp_path / "no" / "out.onnx")
    assert not out.exists() and not log.exists() and not list(tmp_path.glob("*.part"))


def test_training_leaves_steps_out_that_are_no_numbers_where_it_may(blobs, tmp_path):
    model, x, labels = blobs
    values = np.load(x)
    values[41, 2] = np.nan
    bad = array(tmp_path, "bad.npy", values)
    log, out = tmp_path / "losses.csv", tmp_path / "trained.onnx"
    told = json.loads(train(model, bad, labels, out, "--not-finite", "skip", "--log", log, "--json", "--no-shuffle").stdout)
    losses = [float(r.split(",")[1]) for r in log.read_text().splitlines()[1:]]
    without = [i for i, loss in enumerate(losses) if not np.isfinite(loss)]
    period = without[1] - without[0]  # the row comes once an epoch
    assert told["skipped"] == len(without) > 1 and without == list(range(without[0], 30, period))
    assert told["last_loss"] < told["first_loss"] and out.exists()
    assert f"{len(without)} steps left out" in train(model, bad, labels, out, "--not-finite", "skip", "--no-shuffle").stdout
    lines = refused("train", model, "--input", f"x={bad}", "--labels", labels, "--steps", 5, "--not-finite", "carry-on", "--output", out)
    assert "--not-finite" in lines and "skip" in lines


def test_bench_measures_answers_and_steps(affine, tmp_path):
    told = json.loads(falaj("model", "bench", affine, "--batch", 3, "--threads", 1, "--seconds", 0.01, "--json").stdout)
    assert sorted(told) == ["compile_ms", "p50_us", "p99_us", "peak_bytes", "rows_per_s"]
    assert 0 < told["p50_us"] <= told["p99_us"] and told["rows_per_s"] > 0 and told["compile_ms"] > 0
    steps = json.loads(falaj("model", "bench", affine, "--batch", 4, "--seconds", 0.01, "--train", "--json").stdout)
    assert 0 < steps["p50_us"] <= steps["p99_us"] and steps["rows_per_s"] > 0
    assert "P50" in falaj("model", "bench", affine, "--seconds", 0.01).stdout
    # One output is trained by BCE, tokens are looked up in the table they are for, and open sizes are asked for by name.
    table = numpy_helper.from_array(np.ones((3, 2), np.float32), "table")
    nodes = [helper.make_node("Gather", ["table", "token"], ["rows"]), helper.make_node("ReduceMean", ["rows"], ["y"], axes=[1, 2], keepdims=0)]
    tokens = helper.make_tensor_value_info("token", TensorProto.INT32, ["N", "T"])
    graph = helper.make_graph(nodes, "g", [tokens], [f32("y", "N")], [table])
    path = tmp_path / "tokens.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert "--size T=SIZE" in refused("bench", path)
    for extra in ([], ["--train"]):
        assert json.loads(falaj("model", "bench", path, "-b", 5, "--size", "T=7", "--seconds", 0.01, "--json", *extra).stdout)["p50_us"] > 0


def test_bench_refuses_what_it_cannot_do(affine, tmp_path):
    assert "f32 or bf16" in refused("bench", affine, "--precision", "int8", "--train")
    assert "--threads is 300" in refused("bench", affine, "--threads", 300)
    assert "--batch is 0" in refused("bench", affine, "--batch", 0)
    assert "NAME=SIZE" in refused("bench", affine, "--size", "T=x")
    fixed = save(tmp_path / "fixed.onnx", [helper.make_node("Relu", ["x"], ["y"])], [f32("x", 2, 2)], [f32("y", 2, 2)])
    assert "fixed sizes" in refused("bench", fixed, "--batch", 3)
    assert json.loads(falaj("model", "bench", fixed, "--batch", 2, "--seconds", 0.01, "--json").stdout)["p50_us"] > 0


# ---- quantize ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def classifier(tmp_path):
    """Three layers that tell by the sign of sums; samples and labels with it."""
    random = np.random.default_rng(7)
    sizes = [256, 512, 512, 4]
    weights, nodes, h = [], [], "x"
    for i, (n, m) in enumerate(zip(sizes, sizes[1:])):
        weights += [numpy_helper.from_array(random.normal(size=(n, m)).astype(np.float32) * n**-0.5, f"w{i}"), numpy_helper.from_array(np.zeros(m, np.float32), f"b{i}")]
        nodes.append(helper.make_node("Gemm", [h, f"w{i}", f"b{i}"], ["y" if m == 4 else f"g{i}"], name=f"fc{i}"))
        if m != 4:
            nodes.append(helper.make_node("Relu", [f"g{i}"], [f"h{i}"]))
        h = f"h{i}"
    path = save(tmp_path / "classifier.onnx", nodes, [f32("x", "N", 256)], [f32("y", "N", 4)], weights)
    x = array(tmp_path, "samples.npy", random.normal(size=(400, 256)).astype(np.float32))
    falaj("model", "run", path, "--input", f"x={x}", "--output-dir", tmp_path / "f32")
    labels = array(tmp_path, "labels.npy", np.load(tmp_path / "f32" / "y.npy").argmax(axis=1))
    return path, x, labels


def test_threads_change_no_bit_and_bfloat16_is_near(classifier, tmp_path):
    path, x, labels = classifier

    def ran(name, *options):
        falaj("model", "run", path, "--input", f"x={x}", "--output-dir", tmp_path / name, *options)
        return np.load(tmp_path / name / "y.npy")

    plain = ran("one")
    assert np.array_equal(ran("three", "--threads", 3), plain) and np.array_equal(ran("all", "--threads", 0), plain)
    rounded = ran("bf16", "--precision", "bf16")
    assert not np.array_equal(rounded, plain) and np.abs(rounded - plain).max() < 0.05 * np.abs(plain).max()
    cache = ("--cache", tmp_path / "cache")
    for precision, wanted in [("f32", plain), ("bf16", rounded)] * 2:  # what is kept for the one is not taken for the other
        assert np.array_equal(ran("kept", "--precision", precision, "--threads", 2, *cache), wanted)
    measured = lambda *options: json.loads(falaj("model", "evaluate", path, "--input", f"x={x}", "--labels", labels, "--json", *options).stdout)["metrics"]
    assert measured("--threads", 3) == measured() and measured("--precision", "bf16")["loss"] != measured()["loss"]
    assert "at most 256" in refused("run", path, "--input", f"x={x}", "--threads", 257)


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy"])
def test_quantize_writes_a_model_that_runs_on_integers(classifier, tmp_path, calibration):
    path, x, labels = classifier
    out, report = tmp_path / "int8.onnx", tmp_path / "report.json"
    told = falaj("model", "quantize", path, "--input", f"x={x}", "--labels", labels, "--loss", "cross-entropy", "--calibration", calibration,
                 "--budget", 0.1, "--seconds", 0.05, "--output", out, "--report", report, "--keep-anyway").stdout
    assert "fc1" in told and "int8" in told and str(out) in told
    facts = json.loads(report.read_text())
    assert facts["measure"] == "accuracy" and facts["f32"] == 1.0 and facts["int8"] >= 0.9 and facts["calibration"] == calibration
    assert [layer["name"] for layer in facts["layers"]] == ["fc0", "fc1", "fc2"] and all(layer["quantised"] for layer in facts["layers"])
    assert all(0 < layer["error"] < 0.2 for layer in facts["layers"])
    assert facts["bytes"]["int8"] < facts["bytes"]["f32"] / 3 and facts["speed"]["f32_us"] > 0 and facts["output"] == str(out)
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("Gemm") == 3 and ops.count("QuantizeLinear") == 3
    why = falaj("model", "info", out, "--why").stdout
    assert why.count("(QMatMul)") == 3 and "(Gemm)" not in why
    falaj("model", "run", out, "--input", f"x={x}", "--output-dir", tmp_path / "int8")
    agree = np.load(tmp_path / "int8" / "y.npy").argmax(axis=1) == np.load(labels)
    assert abs(agree.mean() - facts["int8"]) < 1e-9


def test_quantize_writes_nothing_over_its_budget(classifier, tmp_path):
    path, x, labels = classifier
    out, report = tmp_path / "int8.onnx", tmp_path / "report.json"
    kept = ["--keep", "fc0", "--keep", "fc1", "--keep", "fc2"]
    done = falaj("model", "quantize", path, "-i", f"x={x}", "--seconds", 0.01, "-o", out, "--report", report, *kept, check=False)
    assert done.returncode == 6 and "--keep-anyway" in done.stderr and not out.exists()
    facts = json.loads(report.read_text())
    assert facts["offered"] is False and facts["output"] is None and facts["loss"] == 0
    assert all(layer["why"] == "kept in float as asked" for layer in facts["layers"])


def test_quantize_refuses_bad_input(classifier, tmp_path):
    path, x, _ = classifier
    out = tmp_path / "int8.onnx"
    bad = np.load(x)
    bad[70, 3] = np.nan
    assert "rows from 64" in refused("quantize", path, "-i", f"x={array(tmp_path, 'bad.npy', bad)}", "-o", out)
    short = array(tmp_path, "short.npy", np.zeros(7, np.int64))
    assert "labels [7] for 400 rows" in refused("quantize", path, "-i", f"x={x}", "--labels", short, "-o", out)
    assert "there is no layer 'fc9'" in refused("quantize", path, "-i", f"x={x}", "--keep", "fc9", "-o", out)
    narrow = array(tmp_path, "narrow.npy", np.zeros((5, 3), np.float32))
    assert "float32[N, 256]" in refused("quantize", path, "-i", f"x={narrow}", "-o", out)
    assert not out.exists()


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_bench_measures_other_precisions(classifier, precision):
    told = json.loads(falaj("model", "bench", classifier[0], "--precision", precision, "--seconds", 0.01, "--json").stdout)
    assert told["p50_us"] > 0
    if precision == "int8":
        assert "f32 or bf16" in refused("bench", classifier[0], "--precision", precision, "--train")
    else:
        told = json.loads(falaj("model", "bench", classifier[0], "--precision", precision, "--train", "--threads", 2, "--seconds", 0.01, "--json").stdout)
        assert told["p50_us"] > 0
