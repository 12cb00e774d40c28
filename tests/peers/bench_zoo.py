#!/usr/bin/env python3
"""Common networks beside onnxruntime, one thread: do the answers agree, and how long do they take?

Needs from PyPI: torch torchvision onnx onnxruntime numpy. Weights are random. FALAJ names the program (default: build/release/falaj).
"""
import argparse
import pathlib
import subprocess
import tempfile
import warnings

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional

import bench_models as bench

VISION = ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "mnasnet1_0", "squeezenet1_1", "shufflenet_v2_x1_0", "regnet_y_400mf", "densenet121",
          "googlenet", "inception_v3", "vgg11_bn", "resnext50_32x4d", "convnext_tiny", "vit_b_16", "swin_t"]


class Segmentation(nn.Module):
    """Convolutions of wide dilation over a MobileNet."""

    def __init__(self):
        super().__init__()
        self.model = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)

    def forward(self, x):
        return self.model(x)["out"]


class Unet(nn.Module):
    def __init__(self, bilinear):
        super().__init__()
        widths = [16, 32, 64, 128]
        pair = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU())
        larger = lambda a, b: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True) if bilinear else nn.ConvTranspose2d(a, b, 2, 2)
        self.first, self.out = pair(3, 16), nn.Conv2d(16, 2, 1)
        self.down = nn.ModuleList(pair(widths[i], widths[i + 1]) for i in range(3))
        self.up = nn.ModuleList(larger(widths[i + 1], widths[i]) for i in (2, 1, 0))
        self.joined = nn.ModuleList(pair((widths[i + 1] if bilinear else widths[i]) + widths[i], widths[i]) for i in (2, 1, 0))

    def forward(self, x):
        levels = [self.first(x)]
        for down in self.down:
            levels.append(down(functional.max_pool2d(levels[-1], 2)))
        y = levels[-1]
        for i, (up, joined) in enumerate(zip(self.up, self.joined)):
            y = joined(torch.cat([up(y), levels[2 - i]], 1))
        return self.out(y)


def generator():
    layers = []
    for a, b, stride, pad in ((100, 256, 1, 0), (256, 128, 2, 1), (128, 64, 2, 1)):
        layers += [nn.ConvTranspose2d(a, b, 4, stride, pad, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh())


class Detector(nn.Module):
    """Sigmoid-weighted units, pools of five by five, two scales: the parts of a YOLO."""

    def __init__(self):
        super().__init__()
        conv = lambda a, b, k=3, stride=1: nn.Sequential(nn.Conv2d(a, b, k, stride, k // 2, bias=False), nn.BatchNorm2d(b), nn.SiLU())
        self.stem = nn.Sequential(conv(3, 16, 3, 2), conv(16, 32, 3, 2), conv(32, 64, 3, 2), conv(64, 128, 3, 2))
        self.deep, self.before, self.after = conv(128, 256, 3, 2), conv(256, 128, 1), conv(512, 256, 1)
        self.joined, self.near, self.far = conv(384, 128, 1), nn.Conv2d(128, 85, 1), nn.Conv2d(256, 85, 1)

    def forward(self, x):
        middle = self.stem(x)
        pooled = [self.before(self.deep(middle))]
        for _ in range(3):
            pooled.append(functional.max_pool2d(pooled[-1], 5, 1, 2))
        deep = self.after(torch.cat(pooled, 1))
        middle = self.joined(torch.cat([functional.interpolate(deep, scale_factor=2, mode="nearest"), middle], 1))
        found = torch.cat([head.flatten(2).transpose(1, 2) for head in (self.near(middle), self.far(deep))], 1)
        place, size, rest = found.split((2, 2, 81), 2)
        return torch.cat([place.sigmoid() * 2 - 0.5, (size.sigmoid() * 2) ** 2, rest.sigmoid()], 2)


class Denoiser(nn.Module):
    """Group normalisation, shortcuts and two scales: the parts of a diffusion model."""

    def __init__(self):
        super().__init__()
        block = lambda a, b: nn.Sequential(nn.GroupNorm(8, a), nn.SiLU(), nn.Conv2d(a, b, 3, 1, 1), nn.GroupNorm(8, b), nn.SiLU(), nn.Conv2d(b, b, 3, 1, 1))
        self.first, self.last, self.skip = nn.Conv2d(3, 32, 3, 1, 1), nn.Conv2d(32, 3, 3, 1, 1), nn.Conv2d(32, 64, 1)
        self.a, self.b, self.c, self.d = block(32, 32), block(32, 64), block(64, 64), block(96, 32)

    def forward(self, x):
        x = self.first(x)
        a = x + self.a(x)
        small = functional.avg_pool2d(a, 2)
        b = self.skip(small) + self.b(small)
        b = b + self.c(b)
        return self.last(self.d(torch.cat([functional.interpolate(b, scale_factor=2, mode="nearest"), a], 1)))


class Reader(nn.Module):
    """PyTorch's own encoder layers over 128 tokens."""

    def __init__(self, width=256):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, activation="gelu", batch_first=True)
        self.tokens, self.places = nn.Embedding(1000, width), nn.Parameter(torch.randn(1, 128, width) * 0.02)
        self.layers, self.head = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.layers(self.tokens(x) + self.places)[:, 0])


class Listener(nn.Module):
    """Causal convolutions over time."""

    def __init__(self):
        super().__init__()
        layers = []
        for i in range(5):
            layers += [nn.ConstantPad1d((2 ** (i + 1), 0), 0), nn.Conv1d(64 if i else 8, 64, 3, dilation=2**i), nn.PReLU(), nn.InstanceNorm1d(64, affine=True)]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(64, 4)

    def forward(self, x):
        return self.head(self.layers(x).mean(2))


def vision(name):
    plain = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    size = 299 if name == "inception_v3" else 224
    return lambda: (torchvision.models.get_model(name, weights=None, **plain), torch.randn(1, 3, size, size))


MODELS = {name: vision(name) for name in VISION} | {
    "deeplabv3_mobilenet": lambda: (Segmentation(), torch.randn(1, 3, 256, 256)),
    "unet, transposed": lambda: (Unet(False), torch.randn(1, 3, 128, 128)),
    "unet, bilinear": lambda: (Unet(True), torch.randn(1, 3, 128, 128)),
    "generator": lambda: (generator(), torch.randn(1, 100, 1, 1)),
    "detector": lambda: (Detector(), torch.randn(1, 3, 256, 256)),
    "denoiser": lambda: (Denoiser(), torch.randn(1, 3, 64, 64)),
    "reader": lambda: (Reader(), torch.randint(0, 1000, (1, 128))),
    "listener": lambda: (Listener(), torch.randn(1, 8, 256)),
    "lstm": lambda: (bench.Recurrent(nn.LSTM), torch.randn(1, 50, 64)),
    "gru": lambda: (bench.Recurrent(nn.GRU), torch.randn(1, 50, 64)),
}


def apart(path, session, folder):
    """The largest difference of the answers, as a share of the largest answer; what went wrong, where something did."""
    values = bench.feed(session, 1)
    wanted = session.run(None, values)[0]
    given = []
    for name, value in values.items():
        np.save(folder / f"{name}.npy", value)
        given += ["--input", f"{name}={folder / name}.npy"]
    done = subprocess.run([bench.FALAJ, "model", "run", path, *given, "--output-dir", folder], capture_output=True, text=True)
    if done.returncode != 0:
        return done.stderr.strip()
    return float(np.abs(np.load(folder / "y.npy") - wanted).max() / max(np.abs(wanted).max(), 1e-9))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="models whose name holds one of these")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    ratios = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for model, make in MODELS.items():
            if args.only and not any(word in model for word in args.only):
                continue
            torch.manual_seed(0)
            module, sample = make()
            path = bench.exported(module, sample, folder / "model.onnx")
            session = bench.session(str(path))
            off = apart(path, session, folder)
            if isinstance(off, str):
                print(f"{model:<22} {off}", flush=True)
                continue
            mine, theirs = bench.in_turns(lambda: bench.ours(path, args.batch, args.seconds), lambda: bench.net_us(session, args.batch, args.seconds))
            ratios[model] = theirs / mine if mine and theirs else None
            text = lambda v: "-" if v is None else f"{v:.2f}"
            print(f"{model:<22} ours {text(mine):>12} us  onnxruntime {text(theirs):>12} us  ratio {text(ratios[model]):>6}  apart {off:.1e}", flush=True)
    measured = [r for r in ratios.values() if r]
    if measured:
        print(f"geometric mean {np.exp(np.mean(np.log(measured))):.2f}, least {min(measured):.2f} of {len(measured)} models")


if __name__ == "__main__":
    main()
