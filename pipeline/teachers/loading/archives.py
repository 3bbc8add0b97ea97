"""Reads the tensors of a file of torch.save or torch.jit.save without running anything that the file brings.

Both are zip archives: `data.pkl` describes objects, and `data/0`, `data/1`, … hold the numbers. torch.load reads the
first kind if it holds tensors and plain values only, and refuses TorchScript. Here every class or function that a file
names is replaced by an inert stand-in, so that the tensors beside it can be had: nothing that it names is looked up, no
code of it is parsed.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_LIST_BUILDERS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")


class StandIn:
    """Takes the place of an object of a class that is not ours to build; `told` names the class, `state` its fields."""

    told = ""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.state: Any = None

    def __new__(cls, *arguments: Any, **named: Any) -> StandIn:
        """Take any arguments, as the class that is replaced might."""
        return super().__new__(cls)

    def __call__(self, *arguments: Any) -> StandIn:
        """Do nothing: a file may call what a call gave it."""
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Nothing is kept: what a foreign object holds is not ours to read."""

    def append(self, value: Any) -> None:
        """Nothing is kept."""

    def extend(self, values: Any) -> None:
        """Nothing is kept."""


def is_archive(path: Path) -> bool:
    """Return whether a file is a zip archive, as torch.save and torch.jit.save write them."""
    return zipfile.is_zipfile(path)


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive: it brings code beside its tensors."""
    if not is_archive(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())


def read_archive(path: Path) -> Any:
    """Return what a file of torch.save holds, foreign objects as stand-ins; tensors on the CPU.

    Raises pickle.UnpicklingError, zipfile.BadZipFile, KeyError or ValueError for a file that is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        return _Reader.of(archive).load()


def read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a TorchScript archive by the names that its modules' state_dict has; like `read_archive`.

    Attributes that hold tensors but are neither parameters nor buffers are among them: which is which, only the code
    of the archive says.
    """
    with zipfile.ZipFile(path) as archive:
        root = _Reader.of(archive).load()
    found: dict[str, torch.Tensor] = {}
    open_modules = [("", root)]
    while open_modules:
        prefix, module = open_modules.pop()
        if not isinstance(module, StandIn) or not isinstance(module.state, Mapping):
            continue
        for name, value in module.state.items():
            if isinstance(value, StandIn):
                open_modules.append((f"{prefix}{name}.", value))
            elif _is_tensor(value):
                found[f"{prefix}{name}"] = value
    return found


def stand_ins(content: Any) -> list[str]:
    """Return the names of the classes that stand-ins took the place of, in what `read_archive` returned."""
    told, open_values = set(), [content]
    while open_values:
        value = open_values.pop()
        if isinstance(value, StandIn):
            told.add(value.told)
        elif isinstance(value, Mapping):
            open_values += value.values()
        elif isinstance(value, list | tuple):
            open_values += value
    return sorted(told)


def _is_tensor(value: Any) -> bool:
    import torch

    return torch.is_tensor(value)


class _Reader(pickle.Unpickler):
    """Unpickles `data.pkl` of an archive; a class is one of a fixed few, or a stand-in."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}/data.pkl")))
        self._archive = archive
        self._folder = folder
        self._storages: dict[str, torch.Tensor] = {}
        self._kinds: dict[str, type[StandIn]] = {}
        if f"{folder}/byteorder" in archive.namelist():
            order = archive.read(f"{folder}/byteorder").decode()
            if order != sys.byteorder:
                raise ValueError(f"its numbers are {order}-endian, and this machine is {sys.byteorder}-endian")

    @classmethod
    def of(cls, archive: zipfile.ZipFile) -> _Reader:
        """Return the reader of an archive, whose entries all lie in one folder of any name."""
        for name in archive.namelist():
            folder, _, rest = name.partition("/")
            if rest == "data.pkl":
                return cls(archive, folder)
        raise ValueError("there is no data.pkl in it")

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name of the file stands for; nothing is imported."""
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            **{("torch.jit._pickle", builder): list for builder in _LIST_BUILDERS},
        }
        if (module, name) in known:
            return known[module, name]
        told = f"{module}.{name}"
        if told not in self._kinds:
            self._kinds[told] = type("StandIn", (StandIn,), {"told": told})
        return self._kinds[told]

    def persistent_load(self, pid: Any) -> torch.Tensor:
        """Return the numbers that a tensor is a view of, (n,)."""
        import torch

        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or pid[1] not in _STORAGES.values():
            raise pickle.UnpicklingError(f"its numbers are described in a way that is not known: {pid!r:.80}")
        _, kind, key, _, count = pid
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._folder}/data/{key}"))
            dtype: torch.dtype = getattr(torch, kind)
            if len(data) != count * dtype.itemsize:
                raise ValueError(f"data/{key} has {len(data)} bytes; expected {count * dtype.itemsize}")
            empty = torch.empty(0, dtype=dtype)
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else empty
        return self._storages[key]


def _tensor(storage: torch.Tensor, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    """Return the tensor that is a view of numbers, as torch describes it."""
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _parameter(data: torch.Tensor, *_: Any) -> torch.Tensor:
    """Return the tensor of a parameter."""
    return data
