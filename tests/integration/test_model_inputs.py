"""`falaj model run|train|evaluate` on .npz and CSV: the same as on .npy, and bad files are refused with the place and the remedy."""

import io
import json
import zipfile

import numpy as np
import pytest
from conftest import ROOT, falaj
from onnx import TensorProto, helper, numpy_helper
from test_model import array, f32, refused, save

DIGITS = ROOT / "configs/examples/data/digits.csv"
CREDIT = ROOT / "configs/examples/data/german_credit.csv"


def affine(path, inputs, outputs, seed=0):
    random = np.random.default_rng(seed)
    weights = [numpy_helper.from_array(random.normal(size=(inputs, outputs)).astype(np.float32) * 0.1, "w"),
               numpy_helper.from_array(np.zeros(outputs, np.float32), "b")]
    return save(path, [helper.make_node("Gemm", ["x", "w", "b"], ["y"])], [f32("x", "N", inputs)], [f32("y", "N", outputs)], weights)


def ran(model, out, *inputs):
    falaj("model", "run", model, *(word for i in inputs for word in ("-i", i)), "-O", out)
    return np.load(out / "y.npy")


def test_arrays_of_npz_files_are_the_same_as_npy(tmp_path):
    model = affine(tmp_path / "m.onnx", 3, 2)
    x = np.random.default_rng(1).normal(size=(700, 3)).astype(np.float32)
    expected = ran(model, tmp_path / "a", f"x={array(tmp_path, 'x.npy', x)}")
    for name, write in {"stored": np.savez, "deflated": np.savez_compressed}.items():
        path = tmp_path / f"{name}.npz"
        write(path, x=x, columns=np.asfortranarray(x), ids=np.arange(700))
        np.testing.assert_array_equal(ran(model, tmp_path / name, f"x={path}"), expected)
        np.testing.assert_array_equal(ran(model, tmp_path / name, f"x={path}:columns"), expected)
        assert f"{name}.npz: array 'ids': the values are int64; float32 is needed" in refused("run", model, "-i", f"x={path}:ids")
        assert "it has no array 'z'; there are: x, columns, ids" in refused("run", model, "-i", f"x={path}:z")


def test_csv_columns_become_rows(tmp_path):
    model = affine(tmp_path / "m.onnx", 2, 2)
    path = tmp_path / "d.csv"
    path.write_text('name,a,"b, c",note\nx,1,2.5,"p, q"\ny,-3e1, +4 ,\n"z\nz",0,-0.5,r\n')
    x = np.array([[1, 2.5], [-30, 4], [0, -0.5]], np.float32)
    expected = ran(model, tmp_path, f"x={array(tmp_path, 'x.npy', x)}")
    np.testing.assert_array_equal(ran(model, tmp_path, f"x={path}"), expected)
    plain = tmp_path / "plain.csv"
    plain.write_text("b,name,a\n2.5,x,1\n4,y,-30\n-.5,z,0\n")
    np.testing.assert_array_equal(ran(model, tmp_path, f"x={plain}:a,b"), expected)
    assert not np.array_equal(ran(model, tmp_path, f"x={plain}"), expected), "in the file's order it is another matrix"


def test_missing_numbers_are_nan_and_strings_are_columns_too(tmp_path):
    nodes = [helper.make_node("IsNaN", ["x"], ["m"]), helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT)]
    model = save(tmp_path / "nan.onnx", nodes, [f32("x", "N", 2)], [f32("y", "N", 2)])
    path = tmp_path / "d.csv"
    path.write_text("a,b,t\n,1,u\n2,NA,\n3,4,w\n")
    assert ran(model, tmp_path, f"x={path}").tolist() == [[1, 0], [0, 1], [0, 0]]
    text = helper.make_tensor_value_info("t", TensorProto.STRING, ["N", 1])
    upper = save(tmp_path / "upper.onnx", [helper.make_node("Identity", ["t"], ["y"])], [text],
                 [helper.make_tensor_value_info("y", TensorProto.STRING, ["N", 1])])
    assert ran(upper, tmp_path, f"t={path}:t").tolist() == [["u"], [""], ["w"]]
    assert "name the columns of strings" in refused("run", upper, "-i", f"t={path}")


def test_images_of_csv_rows_and_integers(tmp_path):
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)]
    names = ",".join(f"p{i}" for i in range(64))
    model = save(tmp_path / "image.onnx", nodes, [helper.make_tensor_value_info("x", TensorProto.INT32, ["N", 1, 8, 8])],
                 [helper.make_tensor_value_info("y", TensorProto.INT32, [])])
    values = np.loadtxt(DIGITS, delimiter=",", skiprows=1, dtype=str)
    assert ran(model, tmp_path, f"x={DIGITS}:{names}") == values[:, 1:65].astype(int).sum()


def test_training_from_csv_and_npz_is_training_from_npy(tmp_path):
    model = affine(tmp_path / "m.onnx", 3, 2)
    columns = ["duration", "credit_amount", "age"]
    lines = [line.split(",") for line in CREDIT.read_text().splitlines()]
    x = np.array([[float(row[lines[0].index(c)]) for c in columns] for row in lines[1:]], np.float32)
    verdict = [int(row[lines[0].index("class")] == "bad") for row in lines[1:]]
    scaled = tmp_path / "scaled.csv"
    x = (x / x.max(0)).astype(np.float32)
    scaled.write_text("applicant,bad,%s\n" % ",".join(columns)
                      + "".join(f"A{i},{v}," + ",".join(f"{value:.9g}" for value in row) + "\n" for i, (v, row) in enumerate(zip(verdict, x))))
    array(tmp_path, "x.npy", x)
    array(tmp_path, "y.npy", np.array(verdict))
    np.savez_compressed(tmp_path / "both.npz", x=x, labels=np.array(verdict), other=x)
    out = {}
    data = {
        "npy": ("--input", f"x={tmp_path / 'x.npy'}", "--labels", tmp_path / "y.npy"),
        "npz": ("--input", f"x={tmp_path / 'both.npz'}", "--labels", tmp_path / "both.npz"),
        "csv": ("--input", f"x={scaled}:{','.join(columns)}", "--labels", f"{scaled}:bad"),
    }
    for name, words in data.items():
        falaj("model", "train", model, *words, "--steps", 30, "--seed", 3, "-o", tmp_path / f"{name}.onnx")
        told = json.loads(falaj("model", "evaluate", tmp_path / f"{name}.onnx", *words, "--json").stdout)
        out[name] = ((tmp_path / f"{name}.onnx").read_bytes(), told["metrics"])
    assert out["npy"] == out["npz"] == out["csv"] and told["rows"] == 1000


@pytest.mark.parametrize("text, place", [
    ("a,b\n1,2\n3,4x\n", ":3:3: column 'b': '4x' is no number"),
    ("a,b\n1,2\n\n3\n", ":4:1: 1 fields, the header has 2"),
    ("a,b\n1,2\n3,4,5\n", ":3:1: 3 fields, the header has 2"),
    ("a,a\n1,2\n", ":1:1: two columns are named 'a'"),
    ("a,b\n", "has a header and no rows"),
    ("", "is empty"),
    ('a,b\n1,"2\n', ":2:3: this quote is not closed"),
    ("a,b\nx,y\n", "no column holds numbers"),
    ("a,b\n1,\xff\n", "not UTF-8"),
])
def test_bad_csv_is_refused_with_its_place(tmp_path, text, place):
    model = affine(tmp_path / "m.onnx", 2, 2)
    path = tmp_path / "bad.csv"
    path.write_bytes(text.encode("latin-1"))
    told = refused("run", model, "-i", f"x={path}", "-O", tmp_path / "out")
    assert f"input 'x': {path}" in told and place in told, told
    assert not (tmp_path / "out").exists()


def test_csv_says_what_cannot_be(tmp_path):
    model = affine(tmp_path / "m.onnx", 2, 2)
    path = tmp_path / "d.csv"
    path.write_text("a,b,c,k,h\n1,2,3,0,0.5\n4,5,6,1,\n")
    assert "has no column 'z'; its columns are: a, b, c, k, h" in refused("run", model, "-i", f"x={path}:a,z")
    train = lambda labels: refused("train", model, "-i", f"x={path}:a,b", "--labels", labels, "--steps", 1, "-o", tmp_path / "o.onnx")
    assert "5 columns, of which one is the labels" in train(path)
    assert "row 1, column 'h': there is no label" in train(f"{path}:h")
    assert "row 0: label 2 is not the number of one of 2 classes" in train(f"{path}:b")
    whole = save(tmp_path / "i.onnx", [helper.make_node("Identity", ["x"], ["y"])], [helper.make_tensor_value_info("x", TensorProto.INT8, ["N", 1])],
                 [helper.make_tensor_value_info("y", TensorProto.INT8, ["N", 1])])
    assert "row 0, column 'h': 0.5 is not a value of int8" in refused("run", whole, "-i", f"x={path}:h")
    path.write_text("h,k\n1,7\n,8\n")
    assert "row 1, column 'h': a missing value is not a value of int8" in refused("run", whole, "-i", f"x={path}:h")
    assert not (tmp_path / "o.onnx").exists()


def test_hostile_npz_files_are_refused(tmp_path):
    model = affine(tmp_path / "m.onnx", 2, 2)
    good = tmp_path / "good.npz"
    np.savez_compressed(good, x=np.ones((50, 2), np.float32))
    bad = tmp_path / "bad.npz"
    bad.write_bytes(good.read_bytes()[:-30])
    assert "bad.npz" in refused("run", model, "-i", f"x={bad}")
    bad.write_bytes(b"no zip at all")
    assert "this is no .npz file" in refused("run", model, "-i", f"x={bad}")
    # A small file whose array says that it is 16 GiB.
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 31, 2)})
    with zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * 5000)
    assert "bytes, 5000 are there" in refused("run", model, "-i", f"x={bad}")
    with zipfile.ZipFile(bad, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", header.getvalue())
    assert "packed by method 14" in refused("run", model, "-i", f"x={bad}")
