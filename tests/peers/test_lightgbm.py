"""Gradient-boosted trees here and in LightGBM: the same rows and settings give the same AUC, and the exported model gives onnxruntime what we say.

Our side is run by test_kernels (TreesPeer), found through FALAJ_TEST_KERNELS or in the build folders; only a release build's speed counts.
"""
import os
import pathlib
import statistics
import subprocess
import time

import numpy as np
import onnxruntime
import pytest
from sklearn.metrics import roc_auc_score

lightgbm = pytest.importorskip("lightgbm")

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROWS, COLUMNS, TEST_ROWS = 100_000, 30, 50_000
ROUNDS, LEAVES, RATE = 200, 31, 0.1


def runner():
    given = os.environ.get("FALAJ_TEST_KERNELS")
    candidates = [pathlib.Path(given)] if given else [ROOT / "build" / preset / "test_kernels" for preset in ("release", "dev")]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    pytest.skip("test_kernels is not built")


def rows(rng, count):
    x = rng.standard_normal((count, COLUMNS), dtype=np.float32)
    score = np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.5 * np.abs(x[:, 3]) + 0.7 * (x[:, 4] > 0.3) * x[:, 5] + x[:, 6:15] @ np.linspace(0.5, 0.1, 9)
    missing = rng.random((count, COLUMNS)) < np.linspace(0, 0.2, COLUMNS)
    x[missing] = np.nan
    score += 0.5 * missing[:, 20]
    return x, (rng.random(count) < 1 / (1 + np.exp(-score))).astype(np.float32)


def ours(folder, threads):
    (folder / "settings.txt").write_text(f"{ROWS} {threads} {ROUNDS} {LEAVES} {RATE}\n")
    done = subprocess.run([runner(), "--gtest_filter=TreesPeer.*"], env={**os.environ, "FALAJ_TREES_DIR": str(folder)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return sum(map(float, (folder / "seconds.txt").read_text().split()))


def theirs(x, y, threads):
    start = time.perf_counter()
    data = lightgbm.Dataset(x, y)
    parameters = {"objective": "binary", "num_leaves": LEAVES, "learning_rate": RATE, "num_threads": threads, "verbose": -1}
    model = lightgbm.train(parameters, data, num_boost_round=ROUNDS)
    return time.perf_counter() - start, model


@pytest.mark.parametrize("threads", [1, 2])
def test_auc_and_speed(tmp_path, threads):
    x, y = rows(np.random.default_rng(1), ROWS + TEST_ROWS)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    our_times, their_times = [], []
    for _ in range(3):  # in turns, so that both see the same machine
        our_times.append(ours(tmp_path, threads))
        seconds, model = theirs(x[:ROWS], y[:ROWS], threads)
        their_times.append(seconds)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    test, labels = x[ROWS:], y[ROWS:]
    probability = session.run(["probability"], {f"x{i}": test[:, i : i + 1] for i in range(COLUMNS)})[0][:, 0]
    our_auc, their_auc = roc_auc_score(labels, probability), roc_auc_score(labels, model.predict(test))
    our_time, their_time = statistics.median(our_times), statistics.median(their_times)
    print(f"\n{ROWS} x {COLUMNS} rows, {ROUNDS} trees of {LEAVES} leaves, {threads} thread(s): {our_time:.2f} s, LightGBM {lightgbm.__version__} {their_time:.2f} s: "
          f"{their_time / our_time:.2f} x its speed ({runner().parent.name} build); AUC {our_auc:.4f}, LightGBM {their_auc:.4f}")
    assert our_auc > their_auc - 0.003
