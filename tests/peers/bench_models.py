#!/usr/bin/env python3
"""Models here and in onnxruntime and OpenVINO, training here and in PyTorch: one table, all measured in this run on this machine.

    FALAJ=build/release/falaj tests/peers/bench_models.py [--only NAME ...] [--skip PART ...] [--seconds S] [--json]

Needs onnx, onnxruntime, numpy and torch from PyPI; lightgbm and onnxmltools for the tree ensemble, openvino for its columns: what is missing is
left out. All sides run on one thread, in turns, and each keeps its best median: a busy machine slows one turn, not one side. What a call of
onnxruntime or OpenVINO costs from Python is measured on a graph of one Identity and taken off; `falaj model bench` measures within the
process. f32 is compared with onnxruntime (OpenVINO stands beside it), bf16 with OpenVINO, for onnxruntime has none on processors, and INT8
with the better of both.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402
from torch import nn  # noqa: E402

try:
    import openvino
except ImportError:
    openvino = None

ROOT = pathlib.Path(__file__).resolve().parents[2]
FALAJ = os.environ.get("FALAJ", str(ROOT / "build/release/falaj"))
TURNS = 2
torch.set_num_threads(1)


# ---- the models --------------------------------------------------------------------------------------------------------------

def mlp(*sizes):
    layers = []
    for a, b in zip(sizes, sizes[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def small_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10))


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.a, self.a_norm = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.b, self.b_norm = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        plain = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if plain else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.b_norm(self.b(torch.relu(self.a_norm(self.a(x)))))
        return torch.relu(y + self.skip(x))


def resnet18(small=False):
    """For 224x224 and 1000 classes; small: for 32x32 and 10, with the stem that keeps such images' size."""
    stem = nn.Conv2d(3, 64, 3, 1, 1, bias=False) if small else nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    layers = [stem, nn.BatchNorm2d(64), nn.ReLU()] + ([] if small else [nn.MaxPool2d(3, 2, 1)])
    width = 64
    for outputs in (64, 128, 256, 512):
        layers += [Block(width, outputs, 1 if outputs == 64 else 2), Block(outputs, outputs, 1)]
        width = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10 if small else 1000))


class EncoderLayer(nn.Module):
    def __init__(self, width, heads, mask=None):
        super().__init__()
        self.mask = mask
        self.norm1, self.norm2, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        n, t, w = x.shape
        q, k, v = (part.view(n, t, self.heads, w // self.heads).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(w, dim=2))
        scores = q @ k.transpose(-2, -1) * (w // self.heads) ** -0.5
        weights = torch.softmax(scores if self.mask is None else scores + self.mask, dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, t, w))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """Four layers of width 256 over 64 tokens, the mean of which is classified."""

    def __init__(self, width=256, length=64):
        super().__init__()
        self.tokens, self.places = nn.Embedding(1000, width), nn.Parameter(torch.randn(length, width) * 0.1)
        self.layers = nn.Sequential(*(EncoderLayer(width, 8) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 8)

    def forward(self, tokens):
        return self.head(self.norm(self.layers(self.tokens(tokens) + self.places)).mean(dim=1))


class Recurrent(nn.Module):
    """Two layers over a sequence of 64 numbers a step, of whose last state ten classes are told."""

    def __init__(self, kind, width=256):
        super().__init__()
        self.layers, self.head = kind(64, width, num_layers=2, batch_first=True), nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.layers(x)[0][:, -1])


class Gpt(nn.Module):
    """Two layers of width 128 over 128 tokens, of which each predicts the next."""

    def __init__(self, width=128, length=128, words=256):
        super().__init__()
        mask = torch.full((length, length), -1e9).triu(1)
        self.tokens, self.places = nn.Embedding(words, width), nn.Parameter(torch.randn(length, width) * 0.1)
        self.layers = nn.Sequential(*(EncoderLayer(width, 4, mask) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, tokens):
        return self.head(self.norm(self.layers(self.tokens(tokens) + self.places)))


def exported(module, sample, path, training=False):
    """The model as PyTorch writes it; BatchNorm gets statistics that are not the ones it starts with, or stays to be trained."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator) * 0.1)
            part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.5)
    mode = {"training": torch.onnx.TrainingMode.PRESERVE} if training else {}
    torch.onnx.export(module.train(training), (sample,), str(path), input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
                      opset_version=17, **mode, do_constant_folding=not training, **({"dynamo": False} if "dynamo" in torch.onnx.export.__code__.co_varnames else {}))
    return path


def trees(path):
    """LightGBM's 200 trees of 31 leaves over 30 columns."""
    import lightgbm
    from onnxmltools.convert import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    random = np.random.default_rng(1)
    x = random.normal(size=(20000, 30)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] + np.sin(x[:, 2] * 2) + random.normal(size=len(x)) * 0.3 > 0).astype(int)
    model = lightgbm.LGBMClassifier(n_estimators=200, num_leaves=31, n_jobs=1, verbose=-1).fit(x, y)
    converted = convert_lightgbm(model, initial_types=[("x", FloatTensorType([None, 30]))], zipmap=False, target_opset=15)
    onnx.save(converted, path)
    return path


BY_NAME = ("lstm", "gru")  # measured where --only names them


def asked_for(name, wanted):
    return any(w in name for w in wanted) if wanted else not name.startswith(BY_NAME)


def models(folder, wanted):
    torch.manual_seed(1)
    image, tokens, sequence = torch.randn(2, 3, 224, 224), torch.randint(0, 1000, (2, 64)), torch.randn(2, 50, 64)
    makers = {
        "mlp 24-64-64-2": lambda p: exported(mlp(24, 64, 64, 2), torch.randn(2, 24), p),
        "mlp 256-1024^3-10": lambda p: exported(mlp(256, 1024, 1024, 1024, 10), torch.randn(2, 256), p),
        "small cnn": lambda p: exported(small_cnn(), torch.randn(2, 1, 28, 28), p),
        "resnet-18": lambda p: exported(resnet18(), image, p),
        "encoder 4x256": lambda p: exported(Encoder(), tokens, p),
        "lightgbm 200 trees": trees,
        "lstm 2x256": lambda p: exported(Recurrent(nn.LSTM), sequence, p),
        "gru 2x256": lambda p: exported(Recurrent(nn.GRU), sequence, p),
    }
    for name, make in makers.items():
        if not asked_for(name, wanted):
            continue
        try:
            yield name, make(folder / (name.replace(" ", "_") + ".onnx"))
        except ImportError as e:
            print(f"{name} is left out: {e}", file=sys.stderr)


# ---- measuring ---------------------------------------------------------------------------------------------------------------

def median_us(call, seconds):
    for _ in range(3):
        call()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times)) / 1e3


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # a warning in each call would be part of what is measured
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feed(s, batch):
    given = s.get_inputs()[0]
    shape = [batch if not isinstance(d, int) else d for d in given.shape]
    random = np.random.default_rng(2)
    value = random.integers(0, 1000, shape) if given.type == "tensor(int64)" else random.normal(size=shape).astype(np.float32)
    return {given.name: value}


def can_bind(s):
    """Some converters declare outputs of one row, which binding holds them to."""
    return all(not output.shape or not isinstance(output.shape[0], int) for output in s.get_outputs())


def runtime_us(s, batch, seconds, bound=True):
    """As their own benchmarks do it: inputs and outputs bound once, so that nothing is copied or made anew in a call."""
    if not bound:
        values = feed(s, batch)
        return median_us(lambda: s.run(None, values), seconds)
    binding = s.io_binding()
    for name, value in feed(s, batch).items():
        binding.bind_cpu_input(name, value)
    for output in s.get_outputs():
        binding.bind_output(output.name)
    return median_us(lambda: s.run_with_iobinding(binding), seconds)


def empty_graph():
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "empty", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def overhead_us(batch, seconds, bound=True):
    return runtime_us(session(empty_graph()), batch, seconds, bound)


def remainder(call, empty):
    """What is left of a call; None where that is too little to be told from noise."""
    return call - empty if call - empty > 0.1 * call else None


def net_us(s, batch, seconds):
    """Of a call of onnxruntime, without what Python costs."""
    return remainder(runtime_us(s, batch, seconds, can_bind(s)), overhead_us(batch, min(seconds, 0.3), can_bind(s)))


def vino(model, batch, precision, values):
    """A request of OpenVINO with its input bound, sizes fixed: dynamic ones are slower there."""
    core = openvino.Core()
    read = core.read_model(model)
    read.reshape({name: value.shape for name, value in values.items()})
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1,
                                                "PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()
    for name, value in values.items():
        request.set_tensor(name, openvino.Tensor(value, shared_memory=True))
    return request


def vino_us(path, s, batch, precision, seconds):
    """None where there is no OpenVINO, or it does not take the model; `s` says what the model takes."""
    if openvino is None:
        return None
    try:
        values, nothing = feed(s, batch), {"x": np.zeros((batch, 1), np.float32)}  # which requests read, and do not keep
        request = vino(str(path), batch, precision, values)
        empty = vino(empty_graph(), batch, precision, nothing)
    except RuntimeError as e:
        print(f"OpenVINO leaves {path.name} out: {str(e).splitlines()[0]}", file=sys.stderr)
        return None
    return remainder(median_us(request.infer, seconds), median_us(empty.infer, min(seconds, 0.3)))


def ours(path, batch, seconds, *extra, figure="p50_us"):
    command = [FALAJ, "model", "bench", str(path), "--batch", str(batch), "--seconds", str(seconds), "--json", *extra]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stderr, end="", file=sys.stderr)
        return None
    return json.loads(done.stdout)[figure]


def training_loss(module, x, classes):
    """Random labels, and the loss that `falaj model bench --train` takes: BCE of one output, otherwise cross-entropy."""
    with torch.no_grad():
        shape = module(x).shape
    if classes == 1:
        y = torch.randint(0, 2, shape).float()
        return lambda logits: nn.functional.binary_cross_entropy_with_logits(logits.float(), y)
    y = torch.randint(0, classes, shape[:-1])
    return lambda logits: nn.functional.cross_entropy(logits.float().flatten(0, -2), y.flatten())


def torch_step(module, sample, classes, batch, precision, compiled):
    x = torch.randn(batch, *sample.shape[1:]) if sample.is_floating_point() else torch.randint(0, classes, (batch, *sample.shape[1:]))
    loss = training_loss(module, x, classes)
    optimizer = torch.optim.AdamW(module.parameters())
    forward = torch.compile(module) if compiled else module

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = loss(forward(x))
        value.backward()
        optimizer.step()

    return step


def warm_model():
    """One of each kind of layer, small: what a step of it takes is libraries that wake up, and is taken off both sides."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))


def torch_peak_bytes(name, precision):
    """What training adds to the resident set of a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--peak-of", name, "--peak-precision", precision], capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else None


def print_torch_peak(name, precision):
    torch_step(warm_model(), torch.zeros(2, 3, 8, 8), 2, 2, precision, False)()
    status = lambda key: next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
    before = status("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    make, sample, classes, batch = TRAINED[name]
    step = torch_step(make().train(), sample, classes, batch, precision, False)
    for _ in range(5):
        step()
    print(status("VmHWM") - before)


def our_peak_bytes(path, batch, precision, folder):
    warm = exported(warm_model(), torch.zeros(2, 3, 8, 8), folder / "warm.onnx", training=True)
    peak = lambda model, rows: ours(model, rows, 0.05, "--train", "--precision", precision, figure="peak_bytes")
    return peak(path, batch) - peak(warm, 2)


def row(kind, name, batch, mine, theirs):
    return {"kind": kind, "model": name, "batch": batch, "ours_us": mine, "theirs_us": theirs, "ratio": theirs / mine if mine and theirs else None}


def in_turns(*measures):
    """The best of each, None where it has none."""
    turns = [[measure() for measure in measures] for _ in range(TURNS)]
    return [min((v for v in values if v is not None), default=None) for values in zip(*turns)]


def inference(folder, args):
    for name, path in models(folder, args.only):
        s = session(str(path))
        for batch in args.batch:
            mine, theirs, vinos = in_turns(lambda: ours(path, batch, args.seconds), lambda: net_us(s, batch, args.seconds),
                                           lambda: None if "trees" in name else vino_us(path, s, batch, "f32", args.seconds))
            yield row("inference", name, batch, mine, theirs)
            if vinos:
                yield row("to OpenVINO", name, batch, mine, vinos)


def halves(folder, args):
    for name, path in models(folder, args.only):
        if "trees" in name:
            continue
        s = session(str(path))
        for batch in args.batch:
            mine, theirs, own = in_turns(lambda: ours(path, batch, args.seconds, "--precision", "bf16"),
                                         lambda: vino_us(path, s, batch, "bf16", args.seconds), lambda: ours(path, batch, args.seconds))
            yield row("bf16", name, batch, mine, theirs)
            yield row("bf16 to own f32", name, batch, mine, own)


class Samples:
    """Random rows for onnxruntime's calibration."""

    def __init__(self, s):
        self.left = [feed(s, 8)]

    def get_next(self):
        return self.left.pop() if self.left else None


def integers(folder, args):
    """Both sides quantise by random rows, QDQ, weights by channel; trees stay out."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    for name, path in models(folder, args.only):
        if "trees" in name:
            continue
        whole, quantised = session(str(path)), path.with_suffix(".int8.onnx")
        quantize_static(path, quantised, Samples(whole), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
                        weight_type=QuantType.QInt8)
        s = session(str(quantised))
        for batch in args.batch:
            mine, theirs, vinos, own = in_turns(lambda: ours(path, batch, args.seconds, "--precision", "int8"), lambda: net_us(s, batch, args.seconds),
                                                lambda: vino_us(quantised, s, batch, "f32", args.seconds), lambda: ours(path, batch, args.seconds))
            yield row("int8", name, batch, mine, min((v for v in (theirs, vinos) if v), default=None))
            yield row("int8, onnxruntime", name, batch, mine, theirs)
            yield row("int8, OpenVINO", name, batch, mine, vinos)
            yield row("int8 to own f32", name, batch, mine, own)


TRAINED = {  # module, sample of its input, classes (1: BCE), batch
    "mlp 24-64-64-2": (lambda: mlp(24, 64, 64, 2), torch.zeros(2, 24), 2, 64),
    "mlp 64-512-512-256-1": (lambda: mlp(64, 512, 512, 256, 1), torch.zeros(2, 64), 1, 1024),
    "resnet-18 32x32": (lambda: resnet18(small=True), torch.zeros(2, 3, 32, 32), 10, 32),
    "gpt 2x128, 128 tokens": (lambda: Gpt(), torch.zeros(2, 128, dtype=torch.int64), 256, 8),
    "lstm 2x256, 50 steps": (lambda: Recurrent(nn.LSTM), torch.zeros(2, 50, 64), 10, 64),
    "gru 2x256, 50 steps": (lambda: Recurrent(nn.GRU), torch.zeros(2, 50, 64), 10, 64),
}


def training(folder, args):
    for name, (make, sample, classes, batch) in TRAINED.items():
        if not asked_for(name, args.only):
            continue
        torch.manual_seed(1)
        path = exported(make(), sample, folder / f"train_{name.replace(' ', '_')}.onnx", training=True)
        for precision in args.precision:
            for threads in args.threads:
                torch.set_num_threads(threads)
                extra = ["--train", "--threads", str(threads)] + (["--precision", precision] if precision != "f32" else [])
                steps = [torch_step(make().train(), sample, classes, batch, precision, compiled) for compiled in ([False, True] if args.compile else [False])]
                mine, theirs = [], [[] for _ in steps]
                for _ in range(TURNS):
                    mine.append(ours(path, batch, args.seconds, *extra))
                    for step, times in zip(steps, theirs):
                        times.append(median_us(step, args.seconds))
                mine = min((m for m in mine if m is not None), default=None)
                for kind, times in zip(("eager", "compiled"), theirs):
                    yield row(f"train {precision} {threads} thr, {kind}", name, batch, mine, min(times))
            if args.memory:
                torch.set_num_threads(1)
                yield row(f"peak KiB {precision}", name, batch, kib(our_peak_bytes(path, batch, precision, folder)),
                          kib(torch_peak_bytes(name, precision)))
        torch.set_num_threads(1)


def kib(value):
    return None if value is None else value / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="models whose name holds one of these; without it, all but the recurrent ones")
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 64])
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--skip", nargs="*", default=[], choices=["inference", "halves", "integers", "training"])
    parser.add_argument("--compile", action="store_true", help="beside torch.compile too (needs a C++ compiler)")
    parser.add_argument("--threads", nargs="*", type=int, default=[1], help="of training steps, on both sides")
    parser.add_argument("--precision", nargs="*", default=["f32"], choices=["f32", "bf16"], help="of training steps; PyTorch's bf16 is its autocast")
    parser.add_argument("--memory", action="store_true", help="what a training step takes at its peak, too, in KiB")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--peak-precision", default="f32", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="one object a line")
    args = parser.parse_args()
    if args.peak_of:
        print_torch_peak(args.peak_of, args.peak_precision)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for part in (inference, halves, integers, training):
            if part.__name__ in args.skip:
                continue
            for r in part(pathlib.Path(folder), args):
                rows.append(r)
                if args.json:
                    print(json.dumps(r), flush=True)
                else:
                    text = lambda v, digits: "-" if v is None else f"{v:.{digits}f}"
                    print(f"{r['kind']:<28} {r['model']:<22} {r['batch']:>5}  ours {text(r['ours_us'], 2):>12} us  theirs {text(r['theirs_us'], 2):>12} us  "
                          f"ratio {text(r['ratio'], 2):>7}", flush=True)
    for kind in ("inference", "bf16", "int8"):
        ratios = [r["ratio"] for r in rows if r["kind"] == kind and r["ratio"]]
        if not ratios or args.json:
            continue
        print(f"{kind}: geometric mean {np.exp(np.mean(np.log(ratios))):.2f}, least {min(ratios):.2f} (onnxruntime {onnxruntime.__version__}, torch {torch.__version__})")


if __name__ == "__main__":
    main()
