"""Training here and in PyTorch: the same model, rows and order give the same losses and weights over 100 AdamW steps.

The models are exported by PyTorch's stock exporters, both of them, before PyTorch trains its own copy. Biases of the attention's keys and of
convolutions before a BatchNormalization are left out: their gradients are zero but for rounding, which Adam makes whole steps of.
"""
import csv
import os
import pathlib
import subprocess

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
FALAJ = os.environ.get("FALAJ", str(ROOT / "build/release/falaj"))
STEPS = 100
torch.set_num_threads(1)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 3))

    def forward(self, x):
        return self.net(x)


class WideAndDeep(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(6, 1)
        self.tables = nn.ModuleList(nn.Embedding(n, 4) for n in (7, 5, 11))
        self.deep = nn.Sequential(nn.Linear(6 + 12, 32), nn.ReLU(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, numbers, codes):
        embedded = [table(codes[:, i]) for i, table in enumerate(self.tables)]
        return self.wide(numbers) + self.deep(torch.cat([numbers, *embedded], dim=1))


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.a = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.a_norm = nn.BatchNorm2d(outputs)
        self.b = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.b_norm = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x):
        y = self.b_norm(self.b(torch.relu(self.a_norm(self.a(x)))))
        return torch.relu(y + self.skip(x))


class ResNet(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2))
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2))
        self.head = nn.Linear(2 * width, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x):
        n, t, w = x.shape
        q, k, v = (part.view(n, t, self.heads, w // self.heads).transpose(1, 2) for part in self.qkv(x).split(w, dim=2))
        scores = q @ k.transpose(-2, -1) / (w // self.heads) ** 0.5
        future = torch.ones(t, t, dtype=torch.bool).triu(1)
        y = torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, w))


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 4)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Gpt(nn.Module):
    """Two layers; the head is the embedding."""

    def __init__(self, vocabulary=50, width=32, length=16):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        nn.init.normal_(self.tokens.weight, std=0.1)
        nn.init.normal_(self.places.weight, std=0.1)
        self.layers = nn.Sequential(Layer(width), Layer(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.layers(x)))


class Recurrent(nn.Module):
    """Two layers that read a sequence both ways, one that reads what they say."""

    def __init__(self, kind):
        super().__init__()
        self.both = kind(6, 10, num_layers=2, bidirectional=True, batch_first=True)
        self.last = kind(20, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.last(self.both(x)[0])[0][:, -1])


def tables(rng):
    x = rng.standard_normal((128, 24), dtype=np.float32)
    return Mlp, {"x": x}, (np.abs(x[:, 0]) + x[:, 1]).astype(np.int64).clip(0, 2), 32, "cross-entropy"


def wide_and_deep(rng):
    numbers = rng.standard_normal((128, 6), dtype=np.float32)
    codes = np.stack([rng.integers(0, n, 128) for n in (7, 5, 11)], axis=1)
    return WideAndDeep, {"numbers": numbers, "codes": codes}, ((codes[:, 0] > 3) ^ (numbers[:, 0] > 0)).astype(np.float32)[:, None], 32, "bce"


def images(rng):
    labels = rng.integers(0, 4, 64)
    x = rng.standard_normal((64, 3, 12, 12), dtype=np.float32) + labels[:, None, None, None].astype(np.float32) / 2
    return ResNet, {"x": x}, labels, 16, "cross-entropy"


def wide_images(rng):
    """Its channels come in blocks of sixteen, on processors with AVX-512."""
    return (lambda: ResNet(32), *images(rng)[1:])


def texts(rng):
    ids = (rng.integers(0, 50, (32, 1)) + np.arange(17) * rng.integers(1, 4, (32, 1))) % 50
    return Gpt, {"ids": ids[:, :-1].copy()}, ids[:, 1:].copy(), 8, "cross-entropy"


def sequences(rng, kind):
    x = rng.standard_normal((64, 9, 6), dtype=np.float32)
    return (lambda: Recurrent(kind)), {"x": x}, (np.abs(x[:, :, 0].sum(axis=1)) + x[:, 4, 1]).astype(np.int64).clip(0, 2), 16, "cross-entropy"


def lstm(rng):
    return sequences(rng, nn.LSTM)


def gru(rng):
    return sequences(rng, nn.GRU)


LOSSES = {
    "cross-entropy": lambda y, t: nn.functional.cross_entropy(y.reshape(-1, y.shape[-1]), t.reshape(-1)),
    "bce": nn.functional.binary_cross_entropy_with_logits,
}


def newer(**options):
    """Those that this PyTorch's exporter knows."""
    return {name: value for name, value in options.items() if name in torch.onnx.export.__code__.co_varnames}


def export(model, inputs, path, dynamo):
    samples = tuple(torch.from_numpy(v[:3]) for v in inputs.values())
    axes = {name: {0: "N"} for name in inputs}
    if not dynamo:
        # Exported for inference, BatchNormalizations go into convolutions, and tensors of equal values become one: all the scales of the GPT; and
        # recurrent weights are written in the order of ONNX's gates.
        apart = any(isinstance(m, (nn.BatchNorm2d, Layer, nn.RNNBase)) for m in model.modules())
        mode = torch.onnx.TrainingMode.TRAINING if apart else torch.onnx.TrainingMode.EVAL
        fold = mode == torch.onnx.TrainingMode.EVAL
        torch.onnx.export(model, samples, str(path), input_names=list(inputs), output_names=["y"], dynamic_axes={**axes, "y": {0: "N"}}, opset_version=17,
                          training=mode, do_constant_folding=fold, **newer(dynamo=False))
        return
    pytest.importorskip("onnxscript")
    model.eval()
    # Newer exporters fold BatchNormalizations into convolutions, and write recurrent weights in another order.
    changed = any(isinstance(m, (nn.BatchNorm2d, nn.RNNBase)) for m in model.modules())
    rows = torch.export.Dim("N", min=2, max=4096)
    exported = torch.export.export(model, samples, dynamic_shapes=tuple({0: rows} for _ in inputs))
    try:
        program = torch.onnx.export(exported, samples, dynamo=True, input_names=list(inputs), output_names=["y"], **newer(optimize=not changed))
    except torch.onnx.OnnxExporterError as error:  # 2.5.1 cannot write views by a symbolic size
        pytest.skip(f"PyTorch {torch.__version__} cannot export this model: {type(error).__name__}")
    program.save(str(path), external_data=True)


def initializers(path):
    return {i.name: numpy_helper.to_array(i, base_dir=str(path.parent)) for i in onnx.load(str(path)).graph.initializer}


def pairs_of(initial, parameters):
    """[(name of the file's initialiser, PyTorch's name, transposed?)]: by value, and by name where values tell nothing."""
    found = []
    for name, value in initial.items():
        for theirs, tensor in parameters.items():
            told = np.unique(value).size > 1
            if name == theirs or (told and value.shape == tensor.shape and np.array_equal(value, tensor)):
                found.append((name, theirs, False))
                break
            if told and value.ndim == 2 and value.shape == tensor.T.shape and np.array_equal(value, tensor.T):
                found.append((name, theirs, True))
                break
    return found


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("case", [tables, wide_and_deep, images, wide_images, texts, lstm, gru],
                         ids=["mlp", "wide_and_deep", "resnet", "wide_resnet", "gpt", "lstm", "gru"])
def test_losses_and_weights_follow_pytorch(case, dynamo, tmp_path):
    torch.manual_seed(3)
    make, inputs, labels, batch, loss = case(np.random.default_rng(3))
    model = make()
    with torch.no_grad():  # newer exporters make one of all tensors that are equal: no two scales or shifts are
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.02)
    path = tmp_path / "model.onnx"
    export(model, inputs, path, dynamo)
    parameters = {name: p.detach().numpy().copy() for name, p in model.state_dict().items() if p.ndim > 0}
    pairs = pairs_of(initializers(path), parameters)
    assert {theirs for _, theirs, _ in pairs} >= {name for name, _ in model.named_parameters()}, "not all parameters were found in the file"

    for name, value in {**inputs, "labels": labels}.items():
        np.save(tmp_path / f"{name}.npy", value)
    given = [word for name in inputs for word in ("--input", f"{name}={tmp_path / name}.npy")]
    done = subprocess.run([FALAJ, "model", "train", path, *given, "--labels", tmp_path / "labels.npy", "--loss", loss, "--optimizer", "adamw", "--lr", "1e-3",
                           "--weight-decay", "0.01", "--batch", str(batch), "--steps", str(STEPS), "--no-shuffle", "--log", tmp_path / "losses.csv",
                           "--output", tmp_path / "trained.onnx"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    feeds = [torch.from_numpy(v) for v in inputs.values()]
    target = torch.from_numpy(labels)
    theirs = []
    for step in range(STEPS):
        first = step * batch % len(labels)
        optimizer.zero_grad()
        value = LOSSES[loss](model(*(f[first:first + batch] for f in feeds)), target[first:first + batch])
        value.backward()
        optimizer.step()
        theirs.append(value.item())
    with open(tmp_path / "losses.csv", newline="") as file:
        ours = [float(row["loss"]) for row in csv.DictReader(file)]
    off = np.max(np.abs(np.array(ours) - theirs) / np.abs(theirs))
    trained = initializers(tmp_path / "trained.onnx")
    after = {name: p.detach().numpy() for name, p in model.state_dict().items()}
    apart = max(float(np.max(np.abs(trained[name].T - after[theirs] if t else trained[name] - after[theirs]))) for name, theirs, t in pairs)
    moved = max(float(np.max(np.abs(after[theirs] - parameters[theirs]))) for _, theirs, _ in pairs)
    print(f"\n{case.__name__}: loss {theirs[0]:.4f} -> {theirs[-1]:.4f}, losses apart {off:.2e} relative, weights {apart:.2e} (moved {moved:.2e})")
    assert theirs[-1] < theirs[0]
    assert off < 1e-4
    assert apart < 1e-3
