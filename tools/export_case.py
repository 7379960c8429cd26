#!/usr/bin/env python3
"""Writes cases for `medfuse verify`: what a PyTorch module computes, forward and backward, with its noise floors.

    export_case.py --demo DIR                            cases of a few operations
    export_case.py models/net.py:Net --input 1x3x37x50 --out DIR   a case of each operation that a network runs

As functions: `export_case` writes one case of one module, `export_all` one for each distinct call of an operation in a
network. docs/verifying.md describes the format. Needs torch, safetensors and numpy.
"""

import argparse
import collections
import copy
import importlib.util
import json
import pathlib
import sys

import numpy
import torch
from safetensors.numpy import save_file
from torch import nn


DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def pair(value):
    return list(value) if isinstance(value, (tuple, list)) else [value, value]


def conv2d(m):
    if isinstance(m.padding, str):
        reach = [d * (k - 1) for d, k in zip(m.dilation, m.kernel_size)]
        if m.padding == "same" and any(r % 2 for r in reach):
            return None  # PyTorch pads one side more than the other
        padding = [r // 2 if m.padding == "same" else 0 for r in reach]
    else:
        padding = pair(m.padding)
    return {
        "op": "conv2d", "in_channels": m.in_channels, "out_channels": m.out_channels, "kernel": pair(m.kernel_size),
        "stride": pair(m.stride), "padding": padding, "dilation": pair(m.dilation), "groups": m.groups,
        "bias": m.bias is not None, "padding_mode": m.padding_mode,
    }


def linear(m):
    return {
        "op": "linear", "in_features": m.in_features, "out_features": m.out_features, "bias": m.bias is not None,
    }


def group_norm(m):
    return {"op": "group_norm", "groups": m.num_groups, "channels": m.num_channels, "eps": m.eps, "affine": m.affine}


def instance_norm(m):
    return {
        "op": "instance_norm", "channels": m.num_features, "eps": m.eps, "affine": m.affine,
        "track_running_stats": m.track_running_stats,
    }


def batch_norm(m):
    return {
        "op": "batch_norm", "channels": m.num_features, "eps": m.eps, "momentum": m.momentum, "affine": m.affine,
        "track_running_stats": m.track_running_stats,
    }


def upsample(m):
    if m.size is not None or m.mode not in ("nearest", "bilinear"):
        return None
    config = {"op": f"upsample_{m.mode}2", "scale": m.scale_factor}
    return config if m.mode == "nearest" else {**config, "align_corners": bool(m.align_corners)}


def pool(m):
    return {"op": "global_avg_pool"} if pair(m.output_size) == [1, 1] else None


# The modules whose attributes can be told: the configuration of their case, or None for a variant that has no name.
# An attribute that medfuse does not compute is written all the same: `medfuse verify` then says which.
OPERATIONS = {
    nn.Conv2d: conv2d,
    nn.Linear: linear,
    nn.GroupNorm: group_norm,
    nn.InstanceNorm2d: instance_norm,
    nn.BatchNorm2d: batch_norm,
    nn.ReLU: lambda m: {"op": "relu"},
    nn.SiLU: lambda m: {"op": "silu"},
    nn.LeakyReLU: lambda m: {"op": "leaky_relu", "negative_slope": m.negative_slope},
    nn.Tanh: lambda m: {"op": "tanh"},
    nn.Sigmoid: lambda m: {"op": "sigmoid"},
    nn.Softmax: lambda m: None if m.dim is None else {"op": "softmax", "dim": m.dim},
    nn.Upsample: upsample,
    nn.AdaptiveAvgPool2d: pool,
}


def describe(module):
    """The configuration of the module's case, or None if medfuse has no name for it."""
    known = OPERATIONS.get(type(module))
    return known and known(module)


def named(values, single):
    """Tensors by name: one is called `single`, several of a list by their number."""
    if isinstance(values, torch.Tensor):
        return {single: values}
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    return {str(name): value for name, value in pairs}


def record_calls(module, names, tensors):
    """Hooks that store the outputs of the submodules `names` as `act.NAME`, at the second call `act.NAME#2`."""
    calls = collections.Counter()

    def hook(name):
        def store(_module, _inputs, output):
            calls[name] += 1
            number = "" if calls[name] == 1 else f"#{calls[name]}"
            tensors[f"act.{name}{number}"] = output.detach().clone()
        return store

    return [module.get_submodule(name).register_forward_hook(hook(name)) for name in names]


def compute(module, inputs, dtype, loss_weights, activations):
    """Runs a copy of the module in `dtype`, forward and backward; the tensors of the case by name."""
    module = copy.deepcopy(module).to(dtype)
    inputs = {name: value.detach().to(dtype).requires_grad_() for name, value in inputs.items()}
    tensors = {}
    hooks = record_calls(module, activations, tensors)
    # Clones, since a module may work in place.
    outputs = named(module(*[value.clone() for value in inputs.values()]), "y")
    for hook in hooks:
        hook.remove()
    for name, output in outputs.items():
        if name not in loss_weights:
            loss_weights[name] = torch.randn(output.shape, generator=loss_weights["generator"])
        tensors[f"out.{name}"] = output
    loss = sum((loss_weights[name].to(dtype) * output).sum() for name, output in outputs.items())
    loss.backward()
    tensors["out.loss"] = loss.reshape(1)
    for prefix, values in (("grad.in.", inputs.items()), ("grad.param.", module.named_parameters())):
        tensors.update({prefix + name: value.grad for name, value in values if value.grad is not None})
    if module.training:
        buffers = module.named_buffers()
        tensors.update({f"after.{name}": value for name, value in buffers if value.is_floating_point()})
    return {name: value.detach().cpu().contiguous().numpy() for name, value in tensors.items()}


def noise_floor(single, double):
    """How far the float32 result is from the float64 one."""
    difference, norm = numpy.linalg.norm((single - double).ravel()), numpy.linalg.norm(double.ravel())
    relative = difference / norm if norm > 0 else float(difference > 0)
    return {
        "max_abs_err": float(numpy.abs(single - double).max()),
        "max_abs": float(numpy.abs(double).max()),
        "rel_l2": float(relative),
    }


def export_case(module, inputs, path, config=None, seed=0, activations=()):
    """Writes the case PATH.safetensors and PATH.json of what `module` computes from `inputs`.

    `inputs` is a tensor, which is called `in.x`, or a dict of tensors in the order of the module's arguments. `config`
    names the operation and its attributes; for the modules of OPERATIONS it is read off. The module's mode (`eval()` or
    `train()`) is the case's. The loss is the sum of the outputs times normal numbers that `seed` draws. `activations` names
    submodules whose outputs are part of the case: medfuse must have marked them (`Graph::mark`).
    """
    config = config or describe(module)
    if config is None:
        raise ValueError(f"{type(module).__name__} has no name in medfuse: give its config")
    if module.training and any(isinstance(m, DROPOUT) and m.p > 0 for m in module.modules()):
        raise ValueError("a module in training with dropout computes something else each time: set p to 0")
    inputs = named(inputs, "x")
    given = {f"in.{name}": value for name, value in inputs.items()}
    given.update({f"param.{name}": value for name, value in module.state_dict().items()})
    tensors = {
        name: value.detach().cpu().to(torch.float32 if value.is_floating_point() else value.dtype).contiguous().numpy()
        for name, value in given.items()
    }
    loss_weights = {"generator": torch.Generator().manual_seed(seed)}
    single = compute(module, inputs, torch.float32, loss_weights, activations)
    double = compute(module, inputs, torch.float64, loss_weights, activations)
    del loss_weights["generator"]
    tensors.update({f"w.{name}": value.numpy() for name, value in loss_weights.items()})
    tensors.update(single)
    sidecar = {
        "config": config,
        "train": module.training,
        "seed": seed,
        "torch": torch.__version__,
        "tensors": {name: [str(value.dtype), list(value.shape)] for name, value in tensors.items()},
        "noise_floor": {name: noise_floor(single[name].astype(numpy.float64), double[name]) for name in single},
    }
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, f"{path}.safetensors")
    pathlib.Path(f"{path}.json").write_text(json.dumps(sidecar, indent=1))


def export_all(model, inputs, folder, seed=0):
    """Runs `model` once and writes a case into `folder` for each distinct call of an operation that has a name.

    Calls are distinct if attributes or shapes differ; the first of a kind gives the case its weights, inputs and name,
    which is that of the layer. Returns the number of cases and, for the layers that have no name in medfuse, their kind
    of module.
    """
    calls, kinds, unknown = [], set(), {}

    def before(name):
        def store(module, arguments):
            config = describe(module)
            if config is None or len(arguments) != 1 or not isinstance(arguments[0], torch.Tensor):
                unknown[name] = type(module).__name__
                return
            kind = json.dumps([config, module.training, list(arguments[0].shape)])
            if kind not in kinds:
                kinds.add(kind)
                calls.append((name, module, copy.deepcopy(module.state_dict()), arguments[0].detach().clone(), config))
        return store

    leaves = [(name, m) for name, m in model.named_modules() if name and not any(m.children())]
    hooks = [m.register_forward_pre_hook(before(name)) for name, m in leaves]
    with torch.no_grad():
        model(*named(inputs, "x").values())
    for hook in hooks:
        hook.remove()
    written = collections.Counter()
    for name, module, state, x, config in calls:
        module = copy.deepcopy(module)
        module.load_state_dict(state)
        written[name] += 1
        number = "" if written[name] == 1 else f"#{written[name]}"
        export_case(module, x, pathlib.Path(folder) / (name + number), config, seed)
    return len(calls), unknown


def demo(folder):
    """Cases of a few operations on odd shapes."""
    torch.manual_seed(0)
    modules = {
        "conv3x3_stride2": (nn.Conv2d(5, 7, 3, stride=2, padding=1), (2, 5, 13, 9)),
        "conv_depthwise": (nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False), (1, 6, 11, 17)),
        "conv_reflect": (nn.Conv2d(3, 4, 7, padding=3, padding_mode="reflect"), (1, 3, 9, 12)),
        "linear": (nn.Linear(9, 4), (3, 9)),
        "group_norm": (nn.GroupNorm(3, 12), (2, 12, 7, 5)),
        "instance_norm": (nn.InstanceNorm2d(5, affine=True), (2, 5, 6, 7)),
        "batch_norm_eval": (nn.BatchNorm2d(5).eval(), (2, 5, 6, 7)),
        "batch_norm_train": (nn.BatchNorm2d(5), (3, 5, 6, 7)),
        "leaky_relu": (nn.LeakyReLU(0.2), (2, 3, 5, 7)),
        "softmax": (nn.Softmax(dim=1), (2, 5, 4, 3)),
        "upsample_nearest": (nn.Upsample(scale_factor=2), (1, 3, 5, 7)),
        "upsample_bilinear": (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), (1, 3, 5, 7)),
    }
    for name, (module, shape) in modules.items():
        export_case(module, torch.randn(shape), pathlib.Path(folder) / name)
    print(f"{len(modules)} cases in {folder}")


def load(source):
    """What `FILE.py:NAME` makes when it is called without arguments."""
    file, _, name = source.rpartition(":")
    if not file:
        sys.exit(f"{source}: FILE.py:NAME is needed")
    # The file may import its neighbours.
    sys.path.insert(0, str(pathlib.Path(file).resolve().parent))
    spec = importlib.util.spec_from_file_location("exported", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", metavar="FILE.py:NAME", help="a class or function that makes the network")
    parser.add_argument("--input", action="append", metavar="NxCxHxW", help="shape of an input, once for each argument")
    parser.add_argument("--out", metavar="DIR", help="where the cases go")
    parser.add_argument("--weights", metavar="FILE.pth", help="the network's state_dict, in place of its first weights")
    parser.add_argument("--train", action="store_true", help="training mode in place of eval()")
    parser.add_argument("--seed", type=int, default=0, help="of inputs, first weights and loss weights (default: 0)")
    parser.add_argument("--demo", metavar="DIR", help="write cases of a few operations")
    args = parser.parse_args()
    if args.demo:
        return demo(args.demo)
    if not (args.network and args.input and args.out):
        parser.error("a network, --input and --out are needed, or --demo")
    torch.manual_seed(args.seed)
    model = load(args.network).train(args.train)
    if args.weights:
        model.load_state_dict(torch.load(args.weights, weights_only=True, map_location="cpu"))
    inputs = [torch.randn([int(size) for size in shape.split("x")]) for shape in args.input]
    written, unknown = export_all(model, inputs, args.out, args.seed)
    print(f"{written} cases in {args.out}")
    for layer, kind in unknown.items():
        print(f"not known to medfuse: {layer} ({kind})")


if __name__ == "__main__":
    main()
