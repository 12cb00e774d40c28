"""`falaj model train --checkpoint`: a run that is killed and resumed leaves the same bytes as one that was left alone."""

import json
import signal
import subprocess

import numpy as np
import pytest
from conftest import FALAJ, SLOW, eventually, falaj
from onnx import helper, numpy_helper
from test_model import array, f32, refused, save

STEPS = 400


@pytest.fixture
def run(tmp_path):
    """The words of a run that takes long enough to be killed: two hidden layers, and a loss that goes on falling."""
    random = np.random.default_rng(5)
    sizes = [20, 128, 128, 4]
    nodes, held, value = [], [], "x"
    for i, (a, b) in enumerate(zip(sizes, sizes[1:])):
        held += [numpy_helper.from_array((random.normal(size=(a, b)) / np.sqrt(a)).astype(np.float32), f"w{i}"),
                 numpy_helper.from_array(np.zeros(b, np.float32), f"b{i}")]
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [f"g{i}"]))
        value = f"g{i}"
        if i < 2:
            nodes.append(helper.make_node("Relu", [value], [f"r{i}"]))
            value = f"r{i}"
    model = save(tmp_path / "m.onnx", nodes, [f32("x", "N", 20)], [f32(value, "N", 4)], held)
    x = array(tmp_path, "x.npy", random.normal(size=(3000, 20)).astype(np.float32))
    y = array(tmp_path, "y.npy", random.integers(0, 4, 3000))
    return ["model", "train", model, "--input", f"x={x}", "--labels", y, "--batch", 128, "--steps", STEPS, "--seed", 7, "--lr", 0.003]


def changed(run, *options):
    """The run's words with these options, which take the place of the same ones."""
    words = list(run)
    for option in options:
        if option in words and str(option).startswith("--"):
            del words[words.index(option) : words.index(option) + 2]
    return [*words, *options]


def go(run, tmp_path, name, *options):
    return falaj(*changed(run, *options), "--log", tmp_path / f"{name}.csv", "--output", tmp_path / f"{name}.onnx")


def bytes_of(tmp_path, name):
    return (tmp_path / f"{name}.onnx").read_bytes(), (tmp_path / f"{name}.csv").read_bytes()


@pytest.mark.parametrize("options", [("--schedule", "cosine", "--warmup", 20), ("--optimizer", "sgd", "--momentum", 0.9, "--schedule", "plateau", "--accumulate", 2)])
def test_a_run_killed_half_way_and_resumed_has_the_same_bytes(run, tmp_path, options):
    go(run, tmp_path, "whole", *options)
    checkpoint = tmp_path / "state"
    words = [FALAJ, *map(str, run), *map(str, options), "--checkpoint", str(checkpoint), "--checkpoint-every", "10", "--output", str(tmp_path / "killed.onnx"),
             "--log", str(tmp_path / "killed.csv")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    eventually("a checkpoint is there", checkpoint.exists, timeout=60 * SLOW)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"
    assert not (tmp_path / "killed.onnx").exists() and not (tmp_path / "killed.csv").exists()
    told = json.loads(go(run, tmp_path, "resumed", *options, "--resume", checkpoint, "--json").stdout)
    assert 0 < told["resumed_at"] < STEPS and told["resumed_at"] % 10 == 0
    assert bytes_of(tmp_path, "resumed") == bytes_of(tmp_path, "whole")


def test_a_run_goes_on_with_more_steps(run, tmp_path):
    go(run, tmp_path, "whole", "--steps", 30)
    go(run, tmp_path, "part", "--steps", 20, "--checkpoint", tmp_path / "state", "--checkpoint-every", 20)
    go(run, tmp_path, "rest", "--steps", 30, "--resume", tmp_path / "state")
    assert bytes_of(tmp_path, "rest") == bytes_of(tmp_path, "whole")
    finished = json.loads(go(run, tmp_path, "again", "--steps", 20, "--resume", tmp_path / "state", "--json").stdout)
    assert finished["resumed_at"] == 20 and bytes_of(tmp_path, "again") == bytes_of(tmp_path, "part")


def test_checkpoints_of_other_runs_and_damaged_ones_are_refused(run, tmp_path):
    state = tmp_path / "state"
    go(run, tmp_path, "part", "--steps", 10, "--checkpoint", state, "--checkpoint-every", 5)
    out = tmp_path / "out.onnx"
    resume = lambda *options, words=run, path=state, steps=20: refused(*changed(words[1:], "--steps", steps, "--resume", path, "--output", out, *options))
    assert "its --lr is 0.003" in resume("--lr", 0.1)
    assert "its --seed is 7" in resume("--seed", 8)
    assert "its --schedule is constant" in resume("--schedule", "cosine")
    other = tmp_path / "other.npy"
    np.save(other, np.random.default_rng(1).normal(size=(3000, 20)).astype(np.float32))
    assert "its input is" in resume(words=[*run[:4], f"x={other}", *run[5:]])
    trained = [*run[:2], tmp_path / "part.onnx", *run[3:]]
    assert "its model is" in resume(words=trained)
    assert "is of step 10, --steps is 7" in resume(steps=7)
    whole = state.read_bytes()
    damaged = tmp_path / "damaged"
    damaged.write_bytes(whole[:-100])
    assert f"{damaged}: the checkpoint is damaged or cut off" in resume(path=damaged)
    damaged.write_bytes(whole[:8] + b"\x07" + whole[9:])
    assert "format 7, this program knows format 1" in resume(path=damaged)
    damaged.write_bytes(b"something else")
    assert "this is no checkpoint" in resume(path=damaged)
    assert "no-such" in resume(path=tmp_path / "no-such")
    assert not out.exists()
    assert "needs --checkpoint FILE" in refused(*run[1:], "--output", out, "--checkpoint-every", 5)
    assert "needs --checkpoint-every" in refused(*run[1:], "--output", out, "--checkpoint", state)
    assert "cannot be written" in refused(*run[1:], "--output", out, "--checkpoint", tmp_path / "no" / "state", "--checkpoint-every", 5)
