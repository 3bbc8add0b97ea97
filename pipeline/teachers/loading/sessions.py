"""Networks as ONNX files: the one door to onnxruntime. A file is verified, opened from memory, and held to its card."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.config import ConfigError
from manifests.foreign import instead_of_weights
from manifests.sections.teachers.card import Card
from manifests.sections.teachers.weights import Weights
from pipeline.teachers.loading.weights import first_line, weights_file

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Session:
    """A network that is ready to run, and what its card says of it."""

    session: Any
    card: Card
    source: str
    input_name: str
    dtype: Any
    output_name: str

    def size_px(self, height_px: int, width_px: int, focal_px: float) -> tuple[int, int]:
        """Return how large an image goes in, (height, width).

        As the card says, or, where sizes are free, so that the focal length becomes the card's.
        """
        said = self.card.input
        if said.height_px:
            return said.height_px, said.width_px
        scale = said.focal_px / focal_px if said.focal_px and focal_px > 0 else 1.0
        height, width = (max(1, round(side * scale / said.divisor_px)) for side in (height_px, width_px))
        return height * said.divisor_px, width * said.divisor_px

    def values(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Return an RGB image (H, W, 3) as it goes in, a batch of one."""
        said = self.card.input
        values: npt.NDArray[Any]
        pixels = image if said.order == "rgb" else image[..., ::-1]
        if self.dtype is np.uint8:
            values = pixels
        else:
            scaled = pixels.astype(np.float32) / np.float32(255 / said.white)
            values = (scaled - np.array(said.mean, np.float32)) / np.array(said.std, np.float32)
        if said.layout == "nchw":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values[None], self.dtype)

    def __call__(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the probabilities (c, h, w) of an RGB image of the size that goes in.

        Those of a class map are 0 and 1. Raises ConfigError where the card does not say what comes out.
        """
        try:
            [found] = self.session.run([self.output_name], {self.input_name: self.values(image)})
        except Exception as error:  # onnxruntime's own classes, which it does not export
            raise ConfigError(
                f"teacher.weights: {self.source} fails on an image of {image.shape[1]} x {image.shape[0]} pixels "
                f"({first_line(error)}); see height_px, width_px and divisor_px of its card {self.card.path}"
            ) from None
        return self.probabilities(np.asarray(found), image.shape[:2])

    def probabilities(self, found: npt.NDArray[Any], size_px: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Return what came out as probabilities (c, h, w); raises ConfigError where it is not what the card says."""
        said, n = self.card.output, len(self.card.classes.names)
        where = f"{self.card.path}: [output]"
        grid = tuple(-(-side // said.stride) for side in size_px)
        if said.kind == "classes":
            return one_hot(self.class_map(found, grid, where), n)
        channels = found[0] if said.layout == "nchw" else found[0].transpose(2, 0, 1) if found.ndim == 4 else found
        if found.ndim != 4 or channels.shape != (n, *grid):
            raise ConfigError(
                f"{where}: what comes out has shape {found.shape}; by layout, stride and the {n} names in [classes] "
                f"{(1, n, *grid) if said.layout == 'nchw' else (1, *grid, n)} is expected"
            )
        values = channels.astype(np.float32)
        if not np.isfinite(values).all():
            return values  # of one image: whoever asked tells which
        sums = values.sum(axis=0)
        are_shares = values.min() >= -1e-3 and np.abs(sums - 1).max() <= 1e-2
        if said.kind == "logits":
            if are_shares:
                raise ConfigError(f'{where}: kind is "logits", but they sum to 1 in every cell; is it "probabilities"?')
            values = np.exp(values - values.max(axis=0))
            return np.asarray(values / values.sum(axis=0), np.float32)
        if not are_shares:
            raise ConfigError(
                f'{where}: kind is "probabilities", but values are {values.min():.3g} to {values.max():.3g} and sum to '
                f'{sums.min():.3g} to {sums.max():.3g} in a cell; is it "logits"?'
            )
        return values

    def class_map(self, found: npt.NDArray[Any], grid: tuple[int, ...], where: str) -> npt.NDArray[np.int64]:
        """Return a map of classes (h, w); raises ConfigError where it is none."""
        n = len(self.card.classes.names)
        squeezed = found.reshape([side for side in found.shape if side != 1] or [1])
        if squeezed.shape != tuple(side for side in grid if side != 1):
            raise ConfigError(f"{where}: what comes out has shape {found.shape}; expected a map of {grid} classes")
        if not np.isin(squeezed, np.arange(n)).all():
            odd = squeezed[~np.isin(squeezed, np.arange(n))].ravel()[0]
            raise ConfigError(f"{where}: the map holds {odd}; expected 0 to {n - 1}, the {n} names in [classes]")
        return squeezed.reshape(grid).astype(np.int64)


def one_hot(class_map: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.float32]:
    """Return probabilities (n, h, w) that are 1 for the class of each cell."""
    return np.asarray(np.arange(n)[:, None, None] == class_map, np.float32)


def open_session(weights: Weights, card: Card, device: str) -> Session:
    """Return a network from its verified file; raises ConfigError for files and cards that do not fit together.

    The file is opened from the bytes whose digest is pinned: tensors that it keeps in other files are refused. On a CPU
    it runs on one thread, so that how it runs changes no bit.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            'teacher "onnx" needs onnxruntime, which is not installed; run: pip install -c install/constraints.txt '
            "onnxruntime (onnxruntime-gpu for CUDA)"
        ) from None

    path = weights_file(weights)
    with path.open("rb") as file:
        if instead := instead_of_weights(file):
            raise ConfigError(f"teacher.{weights.key}: {path} {instead}")
        content = file.read()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers(device, onnxruntime))
    except Exception as error:  # onnxruntime's own classes, which it does not export
        raise ConfigError(
            f"teacher.{weights.key}: {path} cannot be opened as an ONNX network ({first_line(error)}); it is damaged, "
            "keeps its tensors in other files (save it as one), or needs a newer onnxruntime than "
            f"{onnxruntime.__version__}"
        ) from None
    found = one_of(session.get_inputs(), card.input.name, f"{card.path}: [input]")
    check_input(found, card)
    output = one_of(session.get_outputs(), card.output.name, f"{card.path}: [output]")
    return Session(session, card, str(path), found.name, _DTYPES[found.type], output.name)


def providers(device: str, onnxruntime: Any) -> list[Any]:
    """Return on what a network runs, by `run.device`; raises ConfigError where that is a GPU and there is none."""
    cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    kind, _, number = device.partition(":")
    if kind == "cuda" and not cuda:
        raise ConfigError(
            f'run.device is "{device}", but onnxruntime {onnxruntime.__version__} has no CUDA here; install '
            'onnxruntime-gpu in its place, or set run.device = "cpu"'
        )
    if kind == "cpu" or not cuda:
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": int(number or 0), "use_tf32": "0"}), "CPUExecutionProvider"]


def one_of(nodes: list[Any], name: str, where: str) -> Any:
    """Return the input or output of a name, or the only one; raises ConfigError."""
    names = [node.name for node in nodes]
    if name in names or (not name and len(nodes) == 1):
        return nodes[names.index(name) if name else 0]
    raise ConfigError(f"{where}: name is {name!r}, and the network has {', '.join(names)}; name one of them")


def check_input(node: Any, card: Card) -> None:
    """Raise ConfigError unless an input takes one image of three channels of the card's layout and size."""
    said, where = card.input, f"{card.path}: [input]"
    if node.type not in _DTYPES:
        raise ConfigError(f"{where}: {node.name} takes {node.type}; expected {', '.join(_DTYPES)}")
    plain = (said.white, said.mean, said.std) == (255.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    if _DTYPES[node.type] is np.uint8 and not plain:
        raise ConfigError(f"{where}: {node.name} takes bytes, as they are: set white = 255, and no mean and std")
    shape = list(node.shape)
    expected: list[int | str] = [1, 3, said.height_px or "any", said.width_px or "any"]
    if said.layout == "nhwc":
        expected = [expected[0], *expected[2:], 3]
    fits = len(shape) == 4 and all(
        not isinstance(is_, int) or is_ == should for is_, should in zip(shape, expected, strict=True)
    )
    if not fits:
        raise ConfigError(
            f"{where}: {node.name} has shape {shape}, but by layout, height_px and width_px it is {expected} (0 for "
            "both sizes: the network takes any)"
        )
