"""`falaj model run|bench --cache`: compiled models are kept, used again, and never used for what they are not."""

import json
import os
import time

import numpy as np
import onnx
import pytest
from conftest import eventually, falaj
from onnx import TensorProto, helper, numpy_helper


def save(path, factor, **options):
    """y = relu(x w) with w full of `factor`."""
    info = lambda name, width: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])
    weights = numpy_helper.from_array(np.full((64, 32), factor, np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])], "g", [info("x", 64)], [info("y", 32)], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path, **options)
    return path


def settle(path):
    """As a file that was written a minute ago and not since; the time of its last change of state cannot be set, so it is waited for."""
    os.utime(path, (time.time() - 60, time.time() - 60))
    eventually("the file is old enough", lambda: time.time() - os.stat(path).st_ctime > 4.0)


@pytest.fixture
def ones(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 64), np.float32))
    return tmp_path / "x.npy"


def answer(model, x, cache, tmp_path):
    falaj("model", "run", model, "-i", f"x={x}", "-O", tmp_path / "out", "--cache", cache)
    return np.load(tmp_path / "out" / "y.npy")


def kept(cache):
    return sorted(p.name for p in cache.glob("*.model"))


def test_what_was_compiled_is_used_again(tmp_path, ones):
    model, cache = save(tmp_path / "m.onnx", 2), tmp_path / "cache"
    settle(model)
    np.testing.assert_array_equal(answer(model, ones, cache, tmp_path), np.full((2, 32), 128))
    assert len(kept(cache)) == 1 and len(list(cache.glob("*.digest"))) == 1
    assert (cache.stat().st_mode & 0o777) == 0o700
    written = (cache / kept(cache)[0]).stat().st_ino
    np.testing.assert_array_equal(answer(model, ones, cache, tmp_path), np.full((2, 32), 128))
    assert (cache / kept(cache)[0]).stat().st_ino == written, "it was taken as it was"
    told = json.loads(falaj("model", "bench", model, "--seconds", "0.05", "--json", "--cache", cache).stdout)
    assert told["start_ms"] >= told["compile_ms"] > 0
    assert len(kept(cache)) == 2, "other options are another entry"


def test_a_model_that_changes_under_its_name_is_another_one(tmp_path, ones):
    model, cache = tmp_path / "m.onnx", tmp_path / "cache"
    for factor in (1, 3, 1, 2):
        save(model, factor)  # of the same size, within the same second
        np.testing.assert_array_equal(answer(model, ones, cache, tmp_path), np.full((2, 32), 64 * factor))
    assert len(kept(cache)) == 3, "content counts, not name or time"


def test_data_in_other_files_count_too(tmp_path, ones):
    model, cache, data = tmp_path / "m.onnx", tmp_path / "cache", tmp_path / "m.data"
    save(model, 1, save_as_external_data=True, location="m.data", size_threshold=0)
    settle(model)
    settle(data)
    np.testing.assert_array_equal(answer(model, ones, cache, tmp_path), np.full((2, 32), 64))
    assert len(kept(cache)) == 1
    data.write_bytes(np.full((64, 32), 5, np.float32).tobytes())
    np.testing.assert_array_equal(answer(model, ones, cache, tmp_path), np.full((2, 32), 320))
    data.unlink()
    assert "m.data" in falaj("model", "run", model, "-i", f"x={ones}", "-O", tmp_path / "out", "--cache", cache, check=False).stderr


@pytest.mark.parametrize("harm", [lambda b: b[:5000], lambda b: b[:100] + b"\xff" * 8 + b[108:], lambda b: b"", lambda b: b"x" * len(b)])
def test_damage_is_noticed_and_mended(tmp_path, ones, harm):
    model, cache = save(tmp_path / "m.onnx", 2), tmp_path / "cache"
    answer(model, ones, cache, tmp_path)
    entry = cache / kept(cache)[0]
    whole = entry.read_bytes()
    entry.write_bytes(harm(whole))
    np.testing.assert_array_equal(answer(model, ones, cache, tmp_path), np.full((2, 32), 128))
    assert entry.stat().st_size == len(whole)


def test_a_folder_of_others_is_not_believed(tmp_path, ones):
    model, cache = save(tmp_path / "m.onnx", 2), tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    done = falaj("model", "run", model, "-i", f"x={ones}", "-O", tmp_path / "out", "--cache", cache, check=False)
    assert done.returncode == 4 and "chmod 700" in done.stderr
    done = falaj("model", "bench", model, "--train", "--cache", cache, check=False)
    assert done.returncode == 2 and "leave it out" in done.stderr
