"""`falaj model boost`: trees from a CSV file or a matrix, as an ONNX model of the raw columns."""

import json

import numpy as np
import onnx
import pytest
from conftest import ROOT, falaj
from test_model import array, refused

CREDIT = ROOT / "configs/examples/data/german_credit.csv"
DIGITS = ROOT / "configs/examples/data/digits.csv"


def boost(*words, out):
    return json.loads(falaj("model", "boost", *words, "-o", out, "--json").stdout)


def test_credit_is_scored_from_its_csv(tmp_path):
    out, log = tmp_path / "credit.onnx", tmp_path / "log.csv"
    words = [CREDIT, "--label", "class", "--positive", "bad", "--exclude", "applicant_id", "--rounds", 80, "--lr", 0.05, "--leaves", 15, "--seed", 1]
    told = boost(*words, "--log", log, out=out)
    assert told["task"] == "binary" and told["rows"] == 800 and told["test_rows"] == 200 and told["columns"] == 20 and told["rounds"] == 80
    assert told["metrics"]["auc"] > 0.72 and told["last_loss"] < told["first_loss"]
    assert len(log.read_text().splitlines()) == 81
    model = onnx.load(out)
    onnx.checker.check_model(model)
    header = CREDIT.read_text().splitlines()[0].split(",")
    assert [i.name for i in model.graph.input] == [h for h in header if h not in ("applicant_id", "class")]
    # The file's own columns go in as they are, and the same trees come out for any number of threads.
    inputs = [word for name in (i.name for i in model.graph.input) for word in ("-i", f"{name}={CREDIT}:{name}")]
    falaj("model", "run", out, *inputs, "-O", tmp_path)
    probability = np.load(tmp_path / "probability.npy")[:, 0]
    verdict = np.array([line.split(",")[-1] == "bad" for line in CREDIT.read_text().splitlines()[1:]])
    assert probability[verdict].mean() > probability[~verdict].mean() + 0.2
    boost(*words, "--threads", 1, out=tmp_path / "one.onnx")
    boost(*words, "--threads", 3, out=tmp_path / "three.onnx")
    assert out.read_bytes() == (tmp_path / "one.onnx").read_bytes() == (tmp_path / "three.onnx").read_bytes()
    assert "HELD-OUT ROWS" in falaj("model", "boost", *words, "-o", out).stdout


def test_numbers_missing_values_and_early_stopping(tmp_path):
    random = np.random.default_rng(2)
    x = random.normal(size=(1500, 3))
    y = 2 * x[:, 0] + np.where(np.isnan(x[:, 1]), 0, x[:, 1]) ** 2 + random.normal(size=1500) * 0.1
    x[random.random(1500) < 0.2, 1] = np.nan
    lines = ["a,b,c,kind,y"]
    for row, target in zip(x, y):
        lines.append(",".join(["" if np.isnan(v) else f"{v:.9g}" for v in row] + [str(random.integers(0, 3)), f"{target:.9g}"]))
    path = tmp_path / "d.csv"
    path.write_text("\n".join(lines) + "\n")
    told = boost(path, "--label", "y", "--categories", "kind", "--rounds", 500, "--patience", 10, "--validation-fraction", 0.2, out=tmp_path / "m.onnx")
    assert told["task"] == "regression" and told["rounds"] < 500 and told["metrics"]["r2"] > 0.8
    kinds = {i.name: i.type.tensor_type.elem_type for i in onnx.load(tmp_path / "m.onnx").graph.input}
    assert kinds == {"a": onnx.TensorProto.FLOAT, "b": onnx.TensorProto.FLOAT, "c": onnx.TensorProto.FLOAT, "kind": onnx.TensorProto.STRING}


def test_matrices_and_classes(tmp_path):
    rows = np.loadtxt(DIGITS, delimiter=",", skiprows=1, dtype=str)
    x, y = rows[:, 1:65].astype(np.float32), rows[:, 65].astype(np.int64)
    np.savez(tmp_path / "d.npz", x=x, labels=y)
    words = ["--rounds", 20, "--leaves", 8, "--threads", 2]
    told = boost(array(tmp_path, "x.npy", x), "--labels", array(tmp_path, "y.npy", y), *words, out=tmp_path / "a.onnx")
    assert told["task"] == "multiclass" and told["columns"] == 64 and told["metrics"]["accuracy"] > 0.9
    boost(f"{tmp_path / 'd.npz'}:x", "--labels", tmp_path / "d.npz", *words, out=tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    pixels = ",".join(f"p{i}" for i in range(64))
    csv = boost(f"{DIGITS}:{pixels}", "--labels", f"{DIGITS}:digit", *words, out=tmp_path / "c.onnx")
    assert csv["metrics"] == told["metrics"] and csv["last_loss"] == told["last_loss"]


def test_what_cannot_be_is_refused(tmp_path):
    out = tmp_path / "out.onnx"
    told = lambda *words: refused("boost", *words, "-o", out)
    assert "no column 'zzz'" in told(CREDIT, "--label", "zzz")
    assert "--exclude nobody" in told(CREDIT, "--label", "class", "--exclude", "nobody")
    assert "give the labels by --label COLUMN" in told(CREDIT)
    assert "positive class 'ugly' does not occur" in told(CREDIT, "--label", "class", "--positive", "ugly")
    assert "leaves" in told(CREDIT, "--label", "class", "--leaves", 1)
    assert "--patience needs --validation-fraction" in told(CREDIT, "--label", "class", "--patience", 5)
    x = array(tmp_path, "x.npy", np.zeros((10, 2), np.float32))
    assert "has 10 rows, there are 9 labels" in told(x, "--labels", array(tmp_path, "y.npy", np.arange(9) % 2))
    assert "only CSV files have" in told(x, "--labels", x, "--exclude", "x0")
    gaps = tmp_path / "gaps.csv"
    gaps.write_text("a,y\n" + "".join(f"{i},{i % 2}\n" for i in range(50)) + "7,\n")
    assert "row 50: the label 'y' is missing" in told(gaps, "--label", "y")
    gaps.write_text("a,y\n1,0\nx,1\n")
    assert ":3:1: column 'a': 'x' is no number" in told(gaps, "--label", "y")
    assert not out.exists()
