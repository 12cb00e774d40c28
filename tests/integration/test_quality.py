"""How good the models are: ours against scikit-learn's logistic regression, both trained on the same rows and measured on the same others."""

import csv

import numpy as np
import onnxruntime
from conftest import ROOT, eventually
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

EXAMPLE = (ROOT / "configs/examples/credit.toml").read_text()
VIEW, _, REST = EXAMPLE.partition("# Ten-fold")
JOB = "[[job]]" + REST.split("[[job]]")[1].split("[[deployment]]")[0]  # the settings that the example ships
DATA = ROOT / "configs/examples/data/german_credit.csv"
SPLITS = 10


def test_auc_is_at_least_077_and_near_scikit_learn_on_ten_splits(cluster, tmp_path):
    with DATA.open() as f:
        rows = list(csv.DictReader(f))
    header = list(rows[0])
    columns = [c for c in header if c not in ("applicant_id", "class")]
    numbers = [c for c in columns if all(r[c].replace(".", "", 1).isdigit() for r in rows)]
    words = [c for c in columns if c not in numbers]
    y = np.array([r["class"] == "bad" for r in rows])
    splits = list(StratifiedShuffleSplit(SPLITS, test_size=0.2, random_state=0).split(y, y))

    views, jobs = "", ""
    for k in range(SPLITS):
        views += VIEW.replace('"applicants"', f'"split{k}"')
        job = JOB.replace('"applicants"', f'"split{k}"').replace('"credit"', f'"split{k}"')
        for key, value in (("seed", k + 1), ("test_fraction", "0.0"), ("folds", 0), ("workers", 1)):
            lines = [f"{key} = {value}" if line.startswith(f"{key} ") else line for line in job.splitlines() if not line.startswith("gate ")]
            job = "\n".join(lines) + "\n"
        jobs += job
    (tmp_path / "views.toml").write_text(views)
    cluster.run("apply", "-f", tmp_path / "views.toml")
    for k, (train, _) in enumerate(splits):
        with (tmp_path / f"{k}.csv").open("w") as f:
            writer = csv.DictWriter(f, header)
            writer.writeheader()
            writer.writerows(rows[i] for i in train)
        cluster.run("features", "ingest", f"split{k}", tmp_path / f"{k}.csv")
    (tmp_path / "jobs.toml").write_text(jobs)
    cluster.run("apply", "-f", tmp_path / "jobs.toml")

    ours, theirs = [], []
    for k, (train, test) in enumerate(splits):

        def finished(k=k):
            run = cluster.json("runs", "show", f"split{k}")
            assert run["phase"] != "failed", run
            return run["phase"] == "finished"

        eventually(f"job {k} is finished", finished, timeout=240)
        cluster.run("models", "export", f"split{k}", tmp_path / f"{k}.onnx", "--version", 1)
        session = onnxruntime.InferenceSession(str(tmp_path / f"{k}.onnx"), providers=["CPUExecutionProvider"])
        held_out = [rows[i] for i in test]
        feeds = {i.name: np.array([r[i.name] for r in held_out], dtype=object if "string" in i.type else np.float32).reshape(-1, 1) for i in session.get_inputs()}
        ours.append(roc_auc_score(y[test], session.run(["probability"], feeds)[0].reshape(-1)))

        table = np.array([[*(float(r[c]) for c in numbers), *(r[c] for c in words)] for r in rows], dtype=object)
        prepare = make_column_transformer((StandardScaler(), list(range(len(numbers)))), (OneHotEncoder(handle_unknown="ignore"), list(range(len(numbers), len(columns)))))
        model = make_pipeline(prepare, LogisticRegression(max_iter=2000)).fit(table[train], y[train])
        theirs.append(roc_auc_score(y[test], model.predict_proba(table[test])[:, 1]))

    print(f"AUC over {SPLITS} splits: ours {np.mean(ours):.4f} ({min(ours):.3f} to {max(ours):.3f}), scikit-learn {np.mean(theirs):.4f}")
    assert np.mean(ours) >= 0.77
    assert np.mean(ours) >= np.mean(theirs) - 0.02
