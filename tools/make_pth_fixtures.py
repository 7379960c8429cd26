#!/usr/bin/env python3
"""Writes the small PyTorch checkpoints under tests/data/weights. Needs no PyTorch.

Stand-ins for torch's classes are pickled under torch's names, which gives the same opcodes that torch.save
writes: a zip archive with data.pkl and data/KEY (PyTorch 1.6 and later), or the legacy row of pickles.
The archives carry a fixed date, so a second run writes the same bytes.
"""

import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "weights"


def module(name, **members):
    made = types.ModuleType(name)
    sys.modules[name] = made
    for key, value in members.items():
        value.__module__ = name
        value.__qualname__ = value.__name__ = key
        setattr(made, key, value)
    return made


def _rebuild_tensor_v2(*args):
    raise AssertionError("never called")


def _rebuild_parameter(*args):
    raise AssertionError("never called")


SIZES = {"Float": "f", "Double": "d", "Half": "e", "BFloat16": None, "Long": "q"}
KINDS = {kind: type(kind + "Storage", (), {}) for kind in SIZES}
module("torch", **{kind + "Storage": made for kind, made in KINDS.items()})
module("torch._utils", _rebuild_tensor_v2=_rebuild_tensor_v2, _rebuild_parameter=_rebuild_parameter)


class Storage:
    """Elements of one type; `declared` is the count that the pickle claims."""

    def __init__(self, kind, values, declared=None):
        self.kind, self.values = kind, values
        self.declared = len(values) if declared is None else declared

    def raw(self):
        if self.kind == "BFloat16":
            return b"".join(struct.pack("<f", v)[2:] for v in self.values)
        return struct.pack(f"<{len(self.values)}{SIZES[self.kind]}", *self.values)


class Tensor:
    def __init__(self, storage, offset, shape, stride):
        self.args = (storage, offset, shape, stride, False, OrderedDict())

    def __reduce__(self):
        return _rebuild_tensor_v2, self.args


class Parameter:
    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        return _rebuild_parameter, (self.tensor, True, OrderedDict())


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Pickler(pickle._Pickler):
    def __init__(self, file, protocol, legacy):
        super().__init__(file, protocol)
        self.legacy, self.keys = legacy, {}

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        key = self.keys.setdefault(id(obj), (str(len(self.keys)), obj))[0]
        fields = ("storage", KINDS[obj.kind], key, "cpu", obj.declared)
        return fields + (None,) if self.legacy else fields


def dump(obj, protocol, legacy):
    file = io.BytesIO()
    pickler = Pickler(file, protocol, legacy)
    pickler.dump(obj)
    return file.getvalue(), [pair for pair in pickler.keys.values()]


def add_zip64_end(path):
    """Puts the zip64 end records between the directory and the end record, as torch.save always does."""
    data = path.read_bytes()
    head, end = data[:-22], data[-22:]
    entries, size, offset = struct.unpack("<HII", end[10:20])
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 0, 45, 0, 0, entries, entries, size, offset)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(head), 1)
    path.write_bytes(head + record + locator + end)


def write_zip(name, obj, protocol=2, compress=zipfile.ZIP_STORED, root="archive"):
    pkl, storages = dump(obj, protocol, legacy=False)
    entries = [("data.pkl", pkl), ("byteorder", b"little")]
    entries += [(f"data/{key}", storage.raw()) for key, storage in storages]
    entries += [("version", b"3\n")]
    with zipfile.ZipFile(OUT / name, "w", compress) as archive:
        for entry, data in entries:
            info = zipfile.ZipInfo(f"{root}/{entry}", (1980, 1, 1, 0, 0, 0))
            info.compress_type = compress
            archive.writestr(info, data)
    add_zip64_end(OUT / name)


def write_legacy(name, obj):
    system = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    pkl, storages = dump(obj, 2, legacy=True)
    keys = sorted(key for key, _ in storages)
    with open(OUT / name, "wb") as file:
        for header in (0x1950A86A20F9469CFC6C, 1001, system):
            file.write(pickle.dumps(header, 2))
        file.write(pkl)
        file.write(pickle.dumps(keys, 2))
        for key in keys:
            storage = dict(storages)[key]
            file.write(struct.pack("<q", len(storage.values)) + storage.raw())


class StateDict(OrderedDict):
    """An OrderedDict with the `_metadata` attribute that torch puts on a state_dict, pickled as BUILD state."""

    def __reduce__(self):
        return OrderedDict, (), {"_metadata": OrderedDict({"": {"version": 1}})}, None, iter(self.items())


def floats(*values):
    return Tensor(Storage("Float", values), 0, (len(values),), (1,))


def state_dict():
    shared = Storage("Float", [0.5, -1.0, 2.0, 3.0, 4.5, -6.25, 100.0, 200.0])
    weights = StateDict()
    weights["layer.weight"] = Parameter(Tensor(shared, 0, (2, 3), (3, 1)))
    weights["layer.transposed"] = Tensor(shared, 0, (3, 2), (1, 3))
    weights["layer.tail"] = Tensor(shared, 6, (2,), (1,))
    weights["half"] = Tensor(Storage("Half", [1.5, -0.25, 65504.0]), 0, (3,), (1,))
    weights["brain"] = Tensor(Storage("BFloat16", [1.0, -2.5]), 0, (2,), (1,))
    weights["double"] = Tensor(Storage("Double", [0.1]), 0, (1,), (1,))
    weights["norm.num_batches_tracked"] = Tensor(Storage("Long", [12345]), 0, (), ())
    return weights


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    write_zip("zip.pth", state_dict())
    write_zip("zip_protocol4.pth", state_dict(), protocol=4)
    write_zip("zip_deflated.pth", state_dict(), compress=zipfile.ZIP_DEFLATED)
    # With a root of 21 letters the first directory entry is as long as the zip64 end records: some readers
    # then take the second entry for the first.
    write_zip("zip_root21.pth", state_dict(), root="dmfnet_unet_epoch_100")
    write_legacy("legacy.pth", state_dict())
    write_zip(
        "nested.pth",
        {
            "epoch": 3,
            "state_dict": OrderedDict({"module.a.weight": floats(1.0, 2.0), "module.b": floats(3.0)}),
            "optimizer": {"state": {0: {"exp_avg": floats(9.0)}}},
        },
    )
    evil = {"w": floats(1.0), "hook": Call(os.system, "echo pwned")}
    write_zip("evil.pth", evil)
    write_zip("evil_protocol4.pth", evil, protocol=4)
    write_legacy("evil_legacy.pth", evil)
    write_zip("expanded.pth", {"w": Tensor(Storage("Float", [1.0]), 0, (1 << 20, 1 << 10), (0, 0))})
    write_zip("overdeclared.pth", {"w": Tensor(Storage("Float", [1.0], 1 << 28), 0, (1 << 28,), (1,))})
    write_zip("twice.pth", {"a.b": floats(1.0), "a": {"b": floats(2.0)}})
    write_zip("no_tensors.pth", {"epoch": 3})
    write_zip("big_count.pth", {"n": Tensor(Storage("Long", [(1 << 24) + 1]), 0, (), ())})


if __name__ == "__main__":
    main()
