"""The ONNX project's own backend tests (the data in the `onnx` package), run by test_onnx_backend in one process.

As a program: `python tests/integration/test_onnx_backend.py [--ops] [--list KIND]` prints the counts, by op if asked.
"""
import argparse
import collections
import os
import pathlib
import subprocess
import sys
import tempfile

import onnx
from onnx.backend.test.loader import load_model_tests

ROOT = pathlib.Path(__file__).resolve().parents[2]
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
# What expects NumPy's own random draws, and data that are wrong in the package.
EXEMPT = ("test_bernoulli", "test_training_dropout", "test_qlinearmatmul_2D_int8", "test_qlinearmatmul_3D_int8")


def runner():
    given = os.environ.get("FALAJ")
    folders = [pathlib.Path(given).parent] if given else [ROOT / "build" / preset for preset in ("dev", "release", "asan")]
    return next((f / "test_onnx_backend" for f in folders if (f / "test_onnx_backend").exists()), None)


def ops_of(folder):
    try:
        model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    except Exception:
        return ["?"]
    names = {node.op_type for node in model.graph.node}
    return sorted(names)


def run_all(program):
    """[(kind, name, outcome, how, message, folder)] of all tests; a crash is an outcome, and the next tests still run."""
    results = []
    pending = {}
    for kind in KINDS:
        for case in load_model_tests(kind=kind):
            folder = pathlib.Path(case.model_dir) if case.model_dir else None
            if folder is None or not (folder / "model.onnx").exists():
                results.append((kind, case.name, "no-data", "-", "the model must be downloaded", folder))
            else:
                pending[str(folder)] = (kind, case)
    with tempfile.TemporaryDirectory() as temporary:
        while pending:
            listing = pathlib.Path(temporary) / "list.txt"
            listing.write_text("".join(f"{folder} {case.rtol} {case.atol}\n" for folder, (_, case) in pending.items()))
            done = subprocess.run([program, "--gtest_filter=OnnxBackend.*"], env={**os.environ, "FALAJ_ONNX_BACKEND": str(listing)},
                                  capture_output=True, text=True, errors="replace", timeout=900)
            started = None
            for line in done.stdout.splitlines():
                words = line.split(" ", 4)
                if words[0] == "START":
                    started = words[1]
                elif words[0] == "RESULT":
                    kind, case = pending.pop(words[1])
                    results.append((kind, case.name, words[2], words[3], words[4] if len(words) > 4 else "", pathlib.Path(words[1])))
                    started = None
            if started is not None:
                kind, case = pending.pop(started)
                results.append((kind, case.name, "crash", "-", f"exit {done.returncode}: {done.stderr[-300:]}", pathlib.Path(started)))
            elif pending:
                raise RuntimeError(f"the runner stopped early: {done.stdout[-500:]} {done.stderr[-500:]}")
    return results


def exempt(name):
    return name.startswith(EXEMPT)


def summary(results):
    counts = collections.Counter(outcome for _, name, outcome, *_ in results)
    wrong = [r for r in results if r[2] in ("wrong", "crash") and not exempt(r[1])]
    return counts, wrong


def test_onnx_backend():
    import pytest

    program = runner()
    if program is None:
        pytest.skip("test_onnx_backend is not built")
    results = run_all(program)
    counts, wrong = summary(results)
    print(f"ONNX {onnx.__version__} backend tests: {dict(counts)} of {len(results)}")
    assert not wrong, "\n".join(f"{name}: {outcome}: {message}" for _, name, outcome, _, message, _ in wrong)
    if onnx.__version__ == "1.17.0":
        assert len(results) == 1437
        assert counts["pass"] >= 1150, counts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ops", action="store_true", help="what fails, by op")
    parser.add_argument("--list", help="list the tests with this outcome, or all that do not pass (not-pass)")
    arguments = parser.parse_args()
    program = runner()
    if program is None:
        sys.exit("test_onnx_backend is not built")
    results = run_all(program)
    counts, wrong = summary(results)
    print(f"{len(results)} tests of ONNX {onnx.__version__}: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.most_common()))
    print(f"wrong or crashed, not counting random draws and wrong data: {len(wrong)}")
    hows = collections.Counter(how for _, _, outcome, how, *_ in results if outcome == "pass")
    print("passed by: " + ", ".join(f"{how} {n}" for how, n in hows.items()))
    if arguments.ops:
        table = collections.defaultdict(collections.Counter)
        for _, _, outcome, _, _, folder in results:
            for op in ops_of(folder) if folder else ["?"]:
                table[op][outcome] += 1
        for op, outcomes in sorted(table.items()):
            if set(outcomes) != {"pass"}:
                print(f"  {op}: " + ", ".join(f"{n} {outcome}" for outcome, n in outcomes.items()))
    if arguments.list:
        for _, name, outcome, how, message, _ in sorted(results, key=lambda r: (r[2], r[1])):
            if outcome == arguments.list or (arguments.list == "not-pass" and outcome != "pass"):
                print(f"{outcome} {name} ({how}): {message}")


if __name__ == "__main__":
    main()
