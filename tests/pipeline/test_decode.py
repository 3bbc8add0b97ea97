"""Images decoded no larger than needed: JPEG's own half, quarter and eighth."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from manifests.config import ConfigError, parse_section
from manifests.sections.teachers.catseg import CatSegConfig
from manifests.sections.teachers.clip_dense import ClipDenseConfig
from pipeline.frame import Camera, FrameError, look_at_image, read_image, read_image_for
from pipeline.teachers.catseg import CatSeg
from pipeline.teachers.clip_dense import ClipDense
from tests.pipeline.test_teachers import frame_of, recipe_of


def camera_of(path: str, width_px: int = 0, height_px: int = 0) -> Camera:
    return Camera("C", "C", path, 0, np.eye(3), np.eye(4), 0, width_px, height_px)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one picture of smooth colours and grain, 400 x 224, as JPEG and as PNG."""
    root = tmp_path_factory.mktemp("street")
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)).resize(
        (400, 224), Image.Resampling.BICUBIC
    )
    picture = Image.fromarray((np.asarray(coarse) + rng.integers(-6, 7, (224, 400, 1))).clip(0, 255).astype(np.uint8))
    picture.save(root / "C.jpg", quality=92)
    picture.save(root / "C.png")
    return root


@pytest.mark.parametrize(
    ("wanted", "decoded"),
    [
        ((224, 400), (224, 400)),
        ((113, 200), (224, 400)),
        ((112, 200), (112, 200)),
        ((50, 60), (56, 100)),
        ((9, 9), (28, 50)),
    ],
)
def test_a_jpeg_comes_at_the_smallest_of_its_sizes_that_is_not_too_small(
    street: Path, wanted: tuple[int, int], decoded: tuple[int, int]
) -> None:
    pixels, size = read_image_for(street, camera_of("C.jpg"), lambda *full: wanted, scaled=True)
    assert size == wanted and pixels.shape == (*decoded, 3)
    everything, _ = read_image_for(street, camera_of("C.jpg"), lambda *full: wanted)
    np.testing.assert_array_equal(everything, read_image(street, camera_of("C.jpg")))
    of_png, _ = read_image_for(street, camera_of("C.png"), lambda *full: wanted, scaled=True)
    np.testing.assert_array_equal(of_png, read_image(street, camera_of("C.png")))


@given(height=st.integers(1, 400), width=st.integers(1, 700))
def test_what_is_decoded_is_never_smaller_than_what_is_wanted(street: Path, height: int, width: int) -> None:
    pixels, _ = read_image_for(street, camera_of("C.jpg"), lambda *full: (height, width), scaled=True)
    assert pixels.shape[0] >= min(height, 224) and pixels.shape[1] >= min(width, 400)


def test_a_truncated_file_is_found_at_any_size(street: Path) -> None:
    (street / "cut.jpg").write_bytes((street / "C.jpg").read_bytes()[:-600])
    for wanted in ((224, 400), (20, 30)):
        with pytest.raises(FrameError, match=r"cut.jpg: cannot be decoded as an image: .*truncated"):
            read_image_for(street, camera_of("cut.jpg"), lambda *full, wanted=wanted: wanted, scaled=True)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_look_finds_what_decoding_every_pixel_finds(street: Path, tmp_path: Path, progressive: bool) -> None:
    """Wherever a file is cut off, and whatever byte of it is another one."""
    with Image.open(street / "C.jpg") as image:
        image.save(tmp_path / "whole.jpg", quality=80, progressive=progressive)
    whole, rng = (tmp_path / "whole.jpg").read_bytes(), np.random.default_rng(0)
    assert look_at_image(tmp_path, camera_of("whole.jpg")) == (224, 400)

    def outcome(read: Any, content: bytes) -> str:
        (tmp_path / "it.jpg").write_bytes(content)
        try:
            read(tmp_path, camera_of("it.jpg"))
        except FrameError as error:
            return str(error)
        return "fine"

    told = []
    for cut in (*rng.integers(1, len(whole), 60), len(whole) - 1, len(whole) - 2, len(whole) - 3):
        told.append(outcome(read_image, whole[:cut]))
        assert outcome(look_at_image, whole[:cut]) == told[-1]
    assert sum("cannot be decoded" in one for one in told) > 55
    for place in rng.integers(2, len(whole), 60):
        other = bytearray(whole)
        other[place] ^= int(rng.integers(1, 256))
        assert outcome(look_at_image, bytes(other)) == outcome(read_image, bytes(other))


def test_a_file_is_held_against_the_size_that_was_indexed_not_the_one_it_is_decoded_at(street: Path) -> None:
    read_image_for(street, camera_of("C.jpg", 400, 224), lambda *full: (56, 100), scaled=True)
    with pytest.raises(FrameError, match="400 x 224 pixels now, 100 x 56 when it was indexed"):
        read_image_for(street, camera_of("C.jpg", 100, 56), lambda *full: (56, 100), scaled=True)


@pytest.mark.parametrize(("example", "kind"), [("clip_dense", ClipDense), ("catseg", CatSeg)])
def test_full_decoding_gives_the_bytes_it_always_gave_and_scaled_nearly_the_same(
    street: Path, tmp_path: Path, example: str, kind: Any
) -> None:
    recipe = recipe_of(example, tmp_path)
    (tmp_path / "C.jpg").write_bytes((street / "C.jpg").read_bytes())
    seen = {
        decode: kind.load(_with(recipe, decode=decode), "encode").prepare(frame_of(), camera_of("C.jpg", 400, 224))
        for decode in ("scaled", "full")
    }
    with Image.open(street / "C.jpg") as image:
        size = seen["full"].shape[-2], seen["full"].shape[-3]
        expected = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(seen["full"].reshape(expected.shape), expected)
    difference = np.abs(seen["scaled"].astype(int) - seen["full"])
    assert 0 < difference.mean() < 1.5


def _with(recipe: Any, **teacher: Any) -> Any:
    from dataclasses import replace

    return replace(recipe, teacher=replace(recipe.teacher, **teacher))


@pytest.mark.parametrize("section", [ClipDenseConfig, CatSegConfig])
def test_how_images_are_decoded_is_part_of_what_encode_depends_on_alone(section: Any) -> None:
    full = section(weights="random:0", decode="full")
    assert full.settings("encode")["decode"] == "full"
    assert "decode" not in {*full.settings("segment"), *full.settings("text")}
    with pytest.raises(ConfigError, match='decode is "fast"; choose "scaled" or "full"'):
        parse_section("teacher", {"weights": "random:0", "decode": "fast"}, section)
