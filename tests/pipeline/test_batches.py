"""Images of many frames in full batches: order, failures, and too little memory."""

import threading
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from manifests.config import ConfigError
from pipeline.frame import Camera, Frame, FrameError
from pipeline.teachers.base import BatchTeacher
from pipeline.teachers.batches import Batches, Clock, batches_of, encode_frame


def camera(name: str, width_px: int = 4) -> Camera:
    return Camera(name, name, f"{name}.png", 0, np.eye(3), np.eye(4), width_px=width_px, height_px=2)


def frame_of(frame_id: str, *cameras: Camera) -> Frame:
    return Frame(frame_id, "s", 0, "l", "l.bin", None, np.eye(4), np.eye(4), cameras)


class Adder:
    """A network that adds up the pixels of an image; pixels are the frame's number, and "bad" ones cannot be read."""

    device = torch.device("cpu")
    batch = 4
    fixed_batch = False

    def __init__(self, fits: int = 99) -> None:
        self.fits = fits  # images that the memory holds
        self.sizes: list[int] = []

    def text(self, prompts: tuple[str, ...]) -> Any:
        raise NotImplementedError

    def segment(self, frame: Frame, encoding: Mapping[str, Any], text: Any) -> Any:
        raise NotImplementedError

    def encode(self, frame: Frame) -> dict[str, Any]:
        return encode_frame(self, frame)

    def prepare(self, frame: Frame, camera: Camera) -> npt.NDArray[Any]:
        assert threading.current_thread() is not threading.main_thread()
        if camera.name == "bad":
            raise FrameError("bad.png: cannot be decoded")
        return np.full((camera.height_px, camera.width_px), int(frame.frame_id), np.uint8)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        if len(batch) > self.fits:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        self.sizes.append(len(batch))
        return {"sum": batch.sum(dim=(1, 2))}

    def pack(self, camera: Camera, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        assert threading.current_thread() is not threading.main_thread()
        if camera.name == "odd":
            raise FrameError("odd.png: nothing in it")
        return {"sum": outputs["sum"] + 0}


def frames(n: int, *names: str) -> list[Frame]:
    return [frame_of(str(i), *map(camera, names or ("A", "B", "C"))) for i in range(n)]


def sums(encodings: list[Any]) -> list[Any]:
    return [one if isinstance(one, Exception) else {key: int(value) for key, value in one.items()} for one in encodings]


def test_the_parts_are_what_the_protocol_asks_for() -> None:
    assert isinstance(Adder(), BatchTeacher)
    assert not isinstance(object(), BatchTeacher)


def test_batches_are_filled_across_frames_and_results_come_in_order() -> None:
    teacher, clock = Adder(), Clock()
    found = sums(list(Batches(teacher, 4, 2, clock)(frames(5))))
    assert found == [{f"{name}/sum": 8 * i for name in "ABC"} for i in range(5)]
    assert teacher.sizes == [4, 4, 4, 3]
    assert clock.images == 15
    assert 0 < clock.model_s <= clock.wall_s


def test_images_of_other_shapes_have_batches_of_their_own() -> None:
    teacher = Adder()
    mixed = [frame_of(str(i), camera("A"), camera("wide", 6), camera("B")) for i in range(4)]
    found = sums(list(Batches(teacher, 4, 2)(mixed)))
    assert found == [{"A/sum": 8 * i, "wide/sum": 12 * i, "B/sum": 8 * i} for i in range(4)]
    assert teacher.sizes == [4, 4, 4]


def test_a_rare_shape_does_not_hold_up_the_rest() -> None:
    teacher, seen = Adder(), 0
    many = [frame_of("1", camera("A"), camera("wide", 6)), *frames(200, "A")]

    def counted() -> Any:
        nonlocal seen
        for one in many:
            seen += 1
            yield one

    first = next(Batches(teacher, 4, 2)(counted()))
    assert sums([first]) == [{"A/sum": 8, "wide/sum": 12}]
    assert seen < 100


def test_a_bad_image_fails_its_frame_and_no_other() -> None:
    todo = [*frames(2), frame_of("2", camera("A"), camera("bad")), frame_of("3", camera("odd")), *frames(1)]
    found = sums(list(Batches(Adder(), 4, 2)(todo)))
    assert [str(one) if isinstance(one, Exception) else "" for one in found] == [
        "",
        "",
        "bad.png: cannot be decoded",
        "odd.png: nothing in it",
        "",
    ]
    with pytest.raises(FrameError, match=r"bad.png"):
        encode_frame(Adder(), todo[2])


def test_a_batch_that_does_not_fit_is_halved_for_good() -> None:
    teacher = Adder(fits=3)
    batches = Batches(teacher, 8, 2)
    assert sums(list(batches(frames(6)))) == sums(list(Batches(Adder(), 8, 2)(frames(6))))
    assert batches.size == 2
    assert teacher.sizes == [2] * 9


def test_one_image_that_does_not_fit_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="one image of 4 x 2 pixels needs more memory than cpu has"):
        list(Batches(Adder(fits=0), 8, 2)(frames(1)))


def test_batches_of_one_size_are_filled_up() -> None:
    teacher = Adder()
    teacher.fixed_batch = True
    assert sums(list(Batches(teacher, 4, 2)(frames(2)))) == sums(list(Batches(Adder(), 4, 2)(frames(2))))
    assert teacher.sizes == [4, 4]


def test_a_cpu_sees_batches_of_one_size_whatever_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in (None, 1, 11):
        teacher = Adder()
        assert sums(list(batches_of(teacher, asked, 2)(frames(3, "A")))) == [{"A/sum": 8 * i} for i in range(3)]
        assert teacher.sizes == [2, 2]
    with pytest.raises(ConfigError, match="a batch of 2 images of 4 x 2 pixels needs more memory than cpu has"):
        list(batches_of(Adder(fits=1), None, 2)(frames(1)))
    other = Adder()
    monkeypatch.setattr(other, "device", torch.device("meta"), raising=False)
    assert (batches_of(other, 11, 2).size, batches_of(other, None, 2).size) == (11, 4)


def test_frames_without_cameras_have_empty_encodings() -> None:
    assert list(Batches(Adder(), 4, 2)([frame_of("0"), *frames(1), frame_of("2")]))[::2] == [{}, {}]


def test_stopping_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    stream = Batches(Adder(), 4, 2)(frames(50))
    assert isinstance(stream, Generator)
    next(stream)
    stream.close()
    assert threading.active_count() == before
