"""Keeps a network busy: images of many frames are decoded on threads, go through it in full batches, and are packed.

Three things overlap: reading and resizing the next images (CPU threads), the network on the batch at hand, and packing
the results of the batch before (CPU threads). A network on a device of its own has a thread of its own too, so that it
gets its batches one after the other whatever else goes on here. Batches are put together in pinned memory, from where a
GPU takes them while it computes the one before.

Several calls may be under way at once, one for each shard: the images of each have batches of their own, and who came
first goes first. A later one has its first images decoded by then, so that the end of a shard drains nothing. Threads
decode and not processes: Pillow lets go of the interpreter's lock while it decodes and resizes (`bench.feed --pools`
puts both side by side).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from manifests.config import ConfigError
from pipeline.frame import Camera, Frame
from pipeline.teachers.turns import Turn, Turns

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
    """One image on its way: first as network input, then in a batch, then as parts of an encoding.

    `parts` or `error` are there once its batch has gone through the network, or its image could not be read.
    """

    camera: Camera
    pixels: Future[NDArray[Any]]
    batch: Future[None] | None = None
    parts: Future[dict[str, NDArray[Any]]] | None = None
    error: Exception | None = None
    number: int = 0

    @property
    def done(self) -> bool:
        """Whether nobody has to wait for `result`."""
        if self.batch is None or not self.batch.done():
            return self.batch is None and self.error is not None
        return self.parts is None or self.parts.done()

    def result(self) -> dict[str, NDArray[Any]]:
        """Wait for the parts and return them; raises what went wrong."""
        if self.batch is not None:
            self.batch.result()
        if self.error is not None:
            raise self.error
        assert self.parts is not None
        return self.parts.result()


@dataclass(eq=False)
class _FrameUnderWay:
    """A frame under way."""

    views: list[_View]

    @property
    def launched(self) -> bool:
        return all(view.batch or view.error for view in self.views)

    @property
    def done(self) -> bool:
        return all(view.done for view in self.views)

    def encoding(self) -> dict[str, NDArray[Any]] | Exception:
        """Wait for the parts of every view and return them, or the first error."""
        found: dict[str, NDArray[Any]] = {}
        for view in self.views:
            try:
                found |= {f"{view.camera.name}/{name}": part for name, part in view.result().items()}
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
    of `size` for good. `apart`: the network has a thread of its own; by default where its device is none of the CPU's.
    """

    def __init__(
        self,
        teacher: ImageEncoder,
        size: int,
        threads: int,
        clock: Clock | None = None,
        steady: bool = False,
        apart: bool | None = None,
    ) -> None:
        self.teacher = teacher
        self.size = size
        self.steady = steady
        self.threads = threads
        self.clock = clock or Clock()
        self.apart = teacher.device.type != "cpu" if apart is None else apart
        self._turns = Turns()
        self._lock = threading.Lock()
        self._calls = 0
        self._pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor] | None = None

    def __call__(self, frames: Iterable[Frame]) -> Iterator[dict[str, NDArray[Any]] | Exception]:
        """Yield the encoding of every frame, `<camera>/<part>`, or what went wrong with it, in order.

        Raises ConfigError, which would end every frame alike. Of several calls at once, in threads, each gets the same
        batches as alone.
        """
        started = time.perf_counter()
        try:
            with self._turns.taken() as turn, self._threads() as (images, packers):
                yield from self._run(iter(frames), images, packers, turn)
        finally:
            self.clock.add("wall_s", time.perf_counter() - started)

    @contextmanager
    def _threads(self) -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor]]:
        """Give the threads that decode and those that pack, the same to all calls; the last call ends them."""
        with self._lock:
            self._calls += 1
            if self._pools is None:
                self._pools = (
                    ThreadPoolExecutor(self.threads, thread_name_prefix="decode"),
                    ThreadPoolExecutor(max(1, self.threads // 2), thread_name_prefix="pack"),
                )
            pools = self._pools
        try:
            yield pools
        finally:
            with self._lock:
                self._calls -= 1
                last = self._calls == 0
                if last:
                    self._pools = None
            if last:
                for pool in pools:
                    pool.shutdown(wait=True, cancel_futures=True)

    def _run(
        self, frames: Iterator[Frame], images: ThreadPoolExecutor, packers: ThreadPoolExecutor, turn: Turn
    ) -> Iterator[dict[str, NDArray[Any]] | Exception]:
        under_way: deque[_FrameUnderWay] = deque()
        decoding: deque[_View] = deque()
        shapes: dict[tuple[Any, ...], list[_View]] = {}  # decoded, and waiting for a full batch
        more, arrived = True, 0
        try:
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
                if decoding and (shape := self._decoded(decoding.popleft(), shapes, arrived + 1)):
                    arrived += 1
                    if len(shapes[shape]) >= self.size:
                        self._launch(shapes.pop(shape), packers, turn)
                # The last ones, and a rare shape that holds up too many others, go without a full batch. Who goes with
                # whom must not depend on how fast threads are: another batch may give other last bits.
                oldest = next(iter(shapes), None)
                if oldest and (not (more or decoding) or arrived - shapes[oldest][0].number > _HELD_UP * self.size):
                    self._launch(shapes.pop(oldest), packers, turn)
                last = not (more or decoding or shapes)
                if last:
                    turn.done()  # those who came later may go through the network
                while under_way and under_way[0].launched:
                    launched = sum(len(one.views) for one in under_way if one.launched)
                    if not (last or under_way[0].done or launched > _BATCHES_AHEAD * self.size):
                        break
                    yield under_way.popleft().encoding()
        finally:
            for view in decoding:
                view.pixels.cancel()

    def _decoded(self, view: _View, shapes: dict[tuple[Any, ...], list[_View]], number: int) -> tuple[Any, ...] | None:
        """Wait for an image and put it beside others of its shape, which is returned; None if it cannot be read."""
        try:
            pixels = view.pixels.result()
        except ConfigError:
            raise
        except Exception as error:  # of one frame; the others go on
            view.error = error
            return None
        view.number = number
        shape = (pixels.shape, pixels.dtype.str)
        shapes.setdefault(shape, []).append(view)
        return shape

    def _launch(self, views: list[_View], packers: ThreadPoolExecutor, turn: Turn) -> None:
        """Put a batch together and send it through the network, in this thread or in the network's."""
        n_images = self.size if self.teacher.fixed_batch or self.steady else 0
        pixels = stacked([view.pixels.result() for view in views], n_images, self.teacher.device)
        turn.wait()
        if self.apart:
            batch = network_thread().submit(self._go_through, views, pixels, packers)
        else:
            self._go_through(views, pixels, packers)
            batch = Future()
            batch.set_result(None)
        for view in views:
            view.batch = batch

    def _go_through(self, views: list[_View], pixels: torch.Tensor, packers: ThreadPoolExecutor) -> None:
        """Run the network on views of one shape, in smaller batches from here on where memory does not suffice.

        `pixels` (b, ...) are those of the views, and perhaps more, of which nothing is kept. Raises ConfigError.
        """
        done = 0
        while done < len(views):
            some = views[done : done + self.size]
            try:
                results = self._forward(self._part(pixels, done))
            except ConfigError:
                raise
            except Exception as error:  # of these frames; the others go on
                if out_of_memory(error):
                    self._halve(pixels[done : done + self.size])
                    continue
                for view in some:
                    view.error = error
            else:
                for row, view in enumerate(some):
                    view.parts = packers.submit(self._pack, view.camera, results, row)
                self.clock.add("images", len(some))
            done += len(some)

    def _part(self, pixels: torch.Tensor, start: int) -> torch.Tensor:
        """Return a batch from images: all of them, or, since memory did not suffice for so many, some."""
        part = pixels[start : start + self.size]
        lacking = self.size - len(part) if start and self.teacher.fixed_batch else 0
        return torch.cat([part, part[-1:].expand(lacking, *part.shape[1:])]) if lacking else part

    def _halve(self, pixels: torch.Tensor) -> None:
        """Have smaller batches from here on; raises ConfigError where that is no way out."""
        device = self.teacher.device
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if self.size == 1 or self.steady:
            what = "one image" if self.size == 1 else f"a batch of {self.size} images"
            raise ConfigError(
                f"{what} of {pixels.shape[2]} x {pixels.shape[1]} pixels needs more memory than {device} has; "
                "lower the size that the teacher sees, or use another device"
            )
        self.size = max(1, len(pixels) // 2)
        _log.warning("out of memory: batches hold %d images from here on", self.size)

    def _pack(self, camera: Camera, results: _Results, row: int) -> dict[str, NDArray[Any]]:
        outputs = {name: array[row] for name, array in results.arrays().items()}
        return self.clock.timed("pack_s", self.teacher.pack, camera, outputs)

    def _forward(self, pixels: torch.Tensor) -> _Results:
        """Run the network on a batch; on a GPU this returns before the results are there."""
        device = self.teacher.device
        if device.type != "cuda":
            with torch.inference_mode():
                outputs = self.clock.timed("model_s", self.teacher.forward, pixels.to(device))
            return _Results({name: one.cpu() for name, one in outputs.items()})
        event: Any = torch.cuda.Event
        start, end, copied = (event(enable_timing=True) for _ in range(3))
        # float32 is to mean float32: by default, torch lets convolutions of a GPU round to ten bits (TF32)
        with (
            torch.cuda.device(device),
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            batch = pixels.to(device, non_blocking=True)
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


@cache
def network_thread() -> ThreadPoolExecutor:
    """Return the one thread of this process that has networks compute on devices of their own.

    One for all of them: what it sets while they do (whether TF32 may be used) holds for the whole process.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="network")


def stacked(images: Sequence[NDArray[Any]], at_least: int, device: torch.device) -> torch.Tensor:
    """Return images of one shape as one batch (b, ...), the last one again where there are not as many as `at_least`.

    It is the one copy of them in memory, and pinned where the device is a GPU: torch hands such memory out again only
    when the copy from it is through.
    """
    n_images = max(len(images), at_least)
    kind = torch.from_numpy(np.empty(0, images[0].dtype)).dtype
    batch = torch.empty((n_images, *images[0].shape), dtype=kind, pin_memory=device.type == "cuda")
    rows = batch.numpy()
    for number in range(n_images):
        rows[number] = images[min(number, len(images) - 1)]
    return batch


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
