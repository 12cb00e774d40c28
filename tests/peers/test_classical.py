"""Classical models as their own converters write them, against their own predictions: scikit-learn by skl2onnx, LightGBM by onnxmltools.

    FALAJ=build/release/falaj pytest tests/peers/test_classical.py        (needs scikit-learn, skl2onnx, lightgbm, onnxmltools)
"""
import os
import pathlib
import subprocess
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")
skl2onnx = pytest.importorskip("skl2onnx")
from sklearn import cluster, decomposition, ensemble, linear_model, naive_bayes, neighbors, neural_network, preprocessing, svm, tree  # noqa: E402
from sklearn.compose import ColumnTransformer  # noqa: E402
from sklearn.impute import SimpleImputer  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402

warnings.filterwarnings("ignore")
FALAJ = os.environ.get("FALAJ", str(pathlib.Path(__file__).resolve().parents[2] / "build/release/falaj"))
ROWS, COLUMNS = 300, 6


def data(classes):
    random = np.random.default_rng(7)
    x = random.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    score = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + 0.5 * x[:, 3]
    if classes is None:
        return x, score.astype(np.float32)
    return x, np.digitize(score, np.quantile(score, np.linspace(0, 1, classes + 1)[1:-1]))


def converted(estimator, x, **options):
    """What the converter itself cannot write is no test of ours; it says so."""
    try:
        return skl2onnx.to_onnx(estimator, x[:1], target_opset={"": 17, "ai.onnx.ml": 3}, **options)
    except (TypeError, ValueError) as e:
        pytest.skip(f"skl2onnx {skl2onnx.__version__}: {str(e)[:200]}")


def answers(model, inputs, folder):
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    command = [FALAJ, "model", "run", str(path), "--output-dir", str(folder / "out")]
    for i, (name, value) in enumerate(inputs.items()):
        np.save(folder / f"{i}.npy", value)
        command += ["--input", f"{name}={folder / f'{i}.npy'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {output.name: np.load(folder / "out" / f"{output.name}.npy") for output in model.graph.output}


CLASSIFIERS = {
    "logistic": linear_model.LogisticRegression(),
    "sgd": linear_model.SGDClassifier(random_state=1),
    "ridge": linear_model.RidgeClassifier(),
    "svc linear": svm.SVC(kernel="linear"),
    "svc rbf": svm.SVC(),
    "svc poly": svm.SVC(kernel="poly", degree=3, coef0=0.5),
    "svc sigmoid": svm.SVC(kernel="sigmoid", gamma=0.1),
    "svc with probabilities": svm.SVC(probability=True, random_state=1),
    "nu svc": svm.NuSVC(nu=0.3, probability=True, random_state=1),
    "linear svc": svm.LinearSVC(),
    "tree": tree.DecisionTreeClassifier(max_depth=6),
    "forest": ensemble.RandomForestClassifier(n_estimators=30, random_state=1),
    "extra trees": ensemble.ExtraTreesClassifier(n_estimators=30, random_state=1),
    "gradient boosting": ensemble.GradientBoostingClassifier(n_estimators=30, random_state=1),
    "histogram boosting": ensemble.HistGradientBoostingClassifier(max_iter=20),
    "ada boost": ensemble.AdaBoostClassifier(n_estimators=10, random_state=1),
    "naive bayes": naive_bayes.GaussianNB(),
    "neighbours": neighbors.KNeighborsClassifier(5),
    "mlp": neural_network.MLPClassifier(hidden_layer_sizes=(16,), max_iter=100, random_state=1),
}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(tmp_path, name, classes):
    x, y = data(classes)
    estimator = CLASSIFIERS[name].fit(x, y)
    model = converted(estimator, x, options={} if name == "linear svc" else {"zipmap": False})
    labels, scores = answers(model, {model.graph.input[0].name: x}, tmp_path).values()
    wrong = np.mean(labels.reshape(-1) != estimator.predict(x))
    assert wrong <= 0.004, f"{wrong:.2%} of the labels differ: more than what falls on a threshold"
    if hasattr(estimator, "predict_proba"):
        # Both sides compute in f32 here and f64 there; the coupling of pairs ends within a half percent.
        np.testing.assert_allclose(scores, estimator.predict_proba(x), atol=3e-3 if "prob" in name or "nu" in name else 2e-4)


REGRESSORS = {
    "linear": linear_model.LinearRegression(),
    "elastic net": linear_model.ElasticNet(0.01),
    "svr linear": svm.SVR(kernel="linear"),
    "svr rbf": svm.SVR(),
    "svr poly": svm.SVR(kernel="poly"),
    "nu svr": svm.NuSVR(),
    "tree": tree.DecisionTreeRegressor(max_depth=6),
    "forest": ensemble.RandomForestRegressor(n_estimators=30, random_state=1),
    "gradient boosting": ensemble.GradientBoostingRegressor(n_estimators=30, random_state=1),
    "histogram boosting": ensemble.HistGradientBoostingRegressor(max_iter=20),
    "neighbours": neighbors.KNeighborsRegressor(5),
    "mlp": neural_network.MLPRegressor(hidden_layer_sizes=(16,), max_iter=100, random_state=1),
}


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors(tmp_path, name):
    x, y = data(None)
    estimator = REGRESSORS[name].fit(x, y)
    model = converted(estimator, x)
    (given,) = answers(model, {model.graph.input[0].name: x}, tmp_path).values()
    np.testing.assert_allclose(given.reshape(-1), estimator.predict(x), rtol=1e-3, atol=1e-3)


OTHERS = {
    "standard scaler": preprocessing.StandardScaler(),
    "min max": preprocessing.MinMaxScaler(),
    "robust": preprocessing.RobustScaler(),
    "max abs": preprocessing.MaxAbsScaler(),
    "normalizer": preprocessing.Normalizer(),
    "binarizer": preprocessing.Binarizer(threshold=0.2),
    "polynomial": preprocessing.PolynomialFeatures(2),
    "bins": preprocessing.KBinsDiscretizer(4, encode="onehot-dense"),
    "pca": decomposition.PCA(3),
    "k means": cluster.KMeans(4, n_init=3, random_state=1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_transformers(tmp_path, name):
    x, _ = data(None)
    estimator = OTHERS[name].fit(x)
    model = converted(estimator, x)
    given = list(answers(model, {model.graph.input[0].name: x}, tmp_path).values())[-1]
    np.testing.assert_allclose(given.reshape(ROWS, -1), estimator.transform(x), rtol=1e-3, atol=1e-4)


def test_outliers_of_one_class(tmp_path):
    x, _ = data(None)
    estimator = svm.OneClassSVM(nu=0.1).fit(x)
    model = converted(estimator, x)
    labels = list(answers(model, {model.graph.input[0].name: x}, tmp_path).values())[0]
    assert np.mean(labels.reshape(-1) != estimator.predict(x)) <= 0.004


def test_a_pipeline_of_columns(tmp_path):
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    random = np.random.default_rng(3)
    numbers = random.normal(size=(ROWS, 3)).astype(np.float32)
    numbers[::7, 1] = np.nan
    colours = random.choice(["red", "green", "blue"], size=(ROWS, 1))
    y = (np.nan_to_num(numbers[:, 0]) + (colours[:, 0] == "red") > 0.3).astype(int)
    rows = np.concatenate([numbers.astype(object), colours.astype(object)], axis=1)
    columns = ColumnTransformer([("n", make_pipeline(SimpleImputer(), preprocessing.StandardScaler()), [0, 1, 2]), ("c", preprocessing.OneHotEncoder(), [3])])
    estimator = make_pipeline(columns, linear_model.LogisticRegression()).fit(rows, y)
    types = [(f"n{i}", FloatTensorType([None, 1])) for i in range(3)] + [("colour", StringTensorType([None, 1]))]
    model = skl2onnx.convert_sklearn(estimator, initial_types=types, options={"zipmap": False}, target_opset={"": 17, "ai.onnx.ml": 3})
    inputs = {f"n{i}": numbers[:, i : i + 1] for i in range(3)} | {"colour": colours}
    labels, scores = answers(model, inputs, tmp_path).values()
    np.testing.assert_array_equal(labels, estimator.predict(rows))
    np.testing.assert_allclose(scores, estimator.predict_proba(rows), atol=1e-4)


@pytest.mark.parametrize("objective", ["binary", "multiclass", "regression"])
def test_lightgbm(tmp_path, objective):
    lightgbm = pytest.importorskip("lightgbm")
    converters = pytest.importorskip("onnxmltools.convert")
    from onnxmltools.convert.common.data_types import FloatTensorType

    x, y = data({"binary": 2, "multiclass": 3, "regression": None}[objective])
    make = lightgbm.LGBMRegressor if objective == "regression" else lightgbm.LGBMClassifier
    estimator = make(n_estimators=40, num_leaves=15, n_jobs=1, verbose=-1).fit(x, y)
    extra = {} if objective == "regression" else {"zipmap": False}
    model = converters.convert_lightgbm(estimator, initial_types=[("x", FloatTensorType([None, COLUMNS]))], target_opset=15, **extra)
    given = list(answers(model, {"x": x}, tmp_path).values())
    wanted = estimator.predict(x) if objective == "regression" else estimator.predict_proba(x)
    np.testing.assert_allclose(given[-1].reshape(wanted.shape), wanted, rtol=1e-3, atol=1e-4)
