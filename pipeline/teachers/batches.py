"""Keeps a network busy: images of many frames are decoded on threads, go through it in full batches, and are packed.

Three things overlap: reading and resizing the next images (CPU threads), the network on the batch at hand, and packing
the results of the batch before (CPU threads). On a GPU, copies go through pinned memory and do not wait for each other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from manifests.config import ConfigError
from pipeline.frame import Camera, Frame

if TYPE_CHECKING:
    from pipeline.teachers.base import ImageEncoder

T = TypeVar("T")

_log = logging.getLogger(__name__)

CPU_BATCH = 2  # see `batches_of`
_BATCHES_AHEAD = 2  # images decoded ahead of the network, and batches whose results are still under way
_HELD_UP = 4  # batches of other images after which one waits no longer for its own to fill up


@dataclass
class Clock:
    """Seconds spent on each part so far, summed over threads, and how many images went through; `wall_s` is the whole.

    `model_s` is the time that the device computes: on a GPU between two of its own events.
    """

    decode_s: float = 0.0
    model_s: float = 0.0
    pack_s: float = 0.0
    wall_s: float = 0.0
    images: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, part: str, seconds: float) -> None:
        """Add to one part; threads may do so at the same time."""
        with self._lock:
            setattr(self, part, getattr(self, part) + seconds)

    def timed(self, part: str, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function and add what it took to a part."""
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            self.add(part, time.perf_counter() - start)


@dataclass(eq=False)
class _View:
    """One image on its way: first as network input, then as parts of an encoding."""

    camera: Camera
    pixels: Future[NDArray[Any]]
    parts: Future[dict[str, NDArray[Any]]] | None = None
    error: Exception | None = None
    number: int = 0


@dataclass(eq=False)
class _FrameUnderWay:
    """A frame under way."""

    views: list[_View]

    @property
    def launched(self) -> bool:
        return all(view.parts or view.error for view in self.views)

    @property
    def done(self) -> bool:
        return all(view.error or (view.parts and view.parts.done()) for view in self.views)

    def encoding(self) -> dict[str, NDArray[Any]] | Exception:
        """Wait for the parts of every view and return them, or the first error."""
        found: dict[str, NDArray[Any]] = {}
        for view in self.views:
            try:
                if view.error:
                    return view.error
                assert view.parts is not None
                found |= {f"{view.camera.name}/{name}": part for name, part in view.parts.result().items()}
            except ConfigError:
                raise
            except Exception as error:  # of one frame; the others go on
                return error
        return found


class Batches:
    """Feeds the images of frames to a teacher's network, `size` at a time.

    `size` is halved, for good, where the device has too little memory for it: results then differ as those of other
    batches do (see docs/teachers.md). Batches hold images of one shape, so that the network sees few shapes; a teacher
    that asks for it by `fixed_batch` gets the last ones filled up to `size`. `steady`: all batches are filled up, and
    of `size` for good.
    """

    def __init__(
        self, teacher: ImageEncoder, size: int, threads: int, clock: Clock | None = None, steady: bool = False
    ) -> None:
        self.teacher = teacher
        self.size = size
        self.steady = steady
        self.threads = threads
        self.clock = clock or Clock()

    def __call__(self, frames: Iterable[Frame]) -> Iterator[dict[str, NDArray[Any]] | Exception]:
        """Yield the encoding of every frame, `<camera>/<part>`, or what went wrong with it, in order.

        Raises ConfigError, which would end every frame alike.
        """
        started = time.perf_counter()
        images = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        packers = ThreadPoolExecutor(max(1, self.threads // 2), thread_name_prefix="pack")
        try:
            yield from self._run(iter(frames), images, packers)
        finally:
            images.shutdown(wait=True, cancel_futures=True)
            packers.shutdown(wait=True, cancel_futures=True)
            self.clock.add("wall_s", time.perf_counter() - started)

    def _run(
        self, frames: Iterator[Frame], images: ThreadPoolExecutor, packers: ThreadPoolExecutor
    ) -> Iterator[dict[str, NDArray[Any]] | Exception]:
        under_way: deque[_FrameUnderWay] = deque()
        decoding: deque[_View] = deque()
        shapes: dict[tuple[Any, ...], list[_View]] = {}  # decoded, and waiting for a full batch
        more, arrived = True, 0
        while more or under_way:
            while more and len(decoding) < _BATCHES_AHEAD * self.size:
                frame = next(frames, None)
                if frame is None:
                    more = False
                    break
                views = [
                    _View(one, images.submit(self.clock.timed, "decode_s", self.teacher.prepare, frame, one))
                    for one in frame.cameras
                ]
                decoding += views
                under_way.append(_FrameUnderWay(views))
            if decoding:
                view = decoding.popleft()
                try:
                    pixels = view.pixels.result()
                except ConfigError:
                    raise
                except Exception as error:  # of one frame; the others go on
                    view.error = error
                else:
                    view.number = arrived = arrived + 1
                    shape = (pixels.shape, pixels.dtype.str)
                    shapes.setdefault(shape, []).append(view)
                    if len(shapes[shape]) >= self.size:
                        self._launch(shapes.pop(shape), packers)
            # The last ones, and a rare shape that holds up too many others, go without a full batch. Who goes with whom
            # must not depend on how fast threads are: another batch may give other last bits.
            oldest = next(iter(shapes), None)
            if oldest and (not (more or decoding) or arrived - shapes[oldest][0].number > _HELD_UP * self.size):
                self._launch(shapes.pop(oldest), packers)
            last = not (more or decoding or shapes)
            while under_way and under_way[0].launched:
                launched = sum(len(one.views) for one in under_way if one.launched)
                if not (last or under_way[0].done or launched > _BATCHES_AHEAD * self.size):
                    break
                yield under_way.popleft().encoding()

    def _launch(self, views: list[_View], packers: ThreadPoolExecutor) -> None:
        """Run the network on views of one shape, in smaller batches from here on where memory does not suffice."""
        while views:
            some = views[: self.size]
            try:
                pixels = np.stack([view.pixels.result() for view in some])
                if (self.teacher.fixed_batch or self.steady) and len(some) < self.size:
                    pixels = np.concatenate([pixels, pixels[-1:].repeat(self.size - len(some), axis=0)])
                results = self._forward(pixels)
            except ConfigError:
                raise
            except Exception as error:  # of these frames; the others go on
                if not out_of_memory(error):
                    for view in some:
                        view.error = error
                    views = views[len(some) :]
                    continue
                results = None
            if results is None:
                if self.teacher.device.type == "cuda":
                    torch.cuda.empty_cache()
                if self.size == 1 or self.steady:
                    what = "one image" if self.size == 1 else f"a batch of {self.size} images"
                    raise ConfigError(
                        f"{what} of {pixels.shape[2]} x {pixels.shape[1]} pixels needs more memory than "
                        f"{self.teacher.device} has; lower the size that the teacher sees, or use another device"
                    )
                self.size = max(1, len(pixels) // 2)
                _log.warning("out of memory: batches hold %d images from here on", self.size)
                continue
            for row, view in enumerate(some):
                view.parts = packers.submit(self._pack, view.camera, results, row)
            self.clock.images += len(some)
            views = views[len(some) :]

    def _pack(self, camera: Camera, results: _Results, row: int) -> dict[str, NDArray[Any]]:
        outputs = {name: array[row] for name, array in results.arrays().items()}
        return self.clock.timed("pack_s", self.teacher.pack, camera, outputs)

    def _forward(self, pixels: NDArray[Any]) -> _Results:
        """Run the network on a batch; on a GPU this returns before the results are there."""
        device = self.teacher.device
        if device.type != "cuda":
            with torch.inference_mode():
                outputs = self.clock.timed("model_s", self.teacher.forward, torch.from_numpy(pixels).to(device))
            return _Results({name: one.cpu() for name, one in outputs.items()})
        event: Any = torch.cuda.Event
        start, end, copied = (event(enable_timing=True) for _ in range(3))
        # float32 is to mean float32: by default, torch lets convolutions of a GPU round to ten bits (TF32)
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            batch = torch.from_numpy(pixels).pin_memory().to(device, non_blocking=True)
            start.record()
            outputs = self.teacher.forward(batch)
            end.record()
            host = {
                name: torch.empty(one.shape, dtype=one.dtype, pin_memory=True).copy_(one, non_blocking=True)
                for name, one in outputs.items()
            }
            copied.record()

        def wait() -> None:
            copied.synchronize()
            self.clock.add("model_s", start.elapsed_time(end) / 1000)

        return _Results(host, wait)


def batches_of(teacher: ImageEncoder, batch: int | None, threads: int) -> Batches:
    """Return what feeds a teacher's network, `batch` images at a time; None: as many as the teacher likes.

    On a CPU it is always the same number, whatever is asked for: BLAS and oneDNN choose their kernels by the shape of
    a batch, and another kernel gives other last bits. There is little to gain there from larger ones.
    """
    if teacher.device.type == "cpu":
        return Batches(teacher, CPU_BATCH, threads, steady=True)
    return Batches(teacher, batch or teacher.batch, threads)


def encode_frame(teacher: ImageEncoder, frame: Frame) -> dict[str, NDArray[Any]]:
    """Return the encoding of one frame, its images batched together; raises what went wrong."""
    [found] = batches_of(teacher, None, max(1, len(frame.cameras)))([frame])
    if isinstance(found, Exception):
        raise found
    return found


class _Results:
    """What the network gave for a batch, on the host; on a GPU the copy may still be under way."""

    def __init__(self, host: Mapping[str, torch.Tensor], wait: Callable[[], None] = lambda: None) -> None:
        self._host = host
        self._wait = wait
        self._arrived = False
        self._lock = threading.Lock()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Wait until all is there and return it by name; row i belongs to image i."""
        with self._lock:
            if not self._arrived:
                self._wait()
                self._arrived = True
        return {name: one.numpy() for name, one in self._host.items()}


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device, or the host, has too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
