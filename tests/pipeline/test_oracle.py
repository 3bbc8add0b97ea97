"""The simulated teacher: perfect if nothing is spoilt, spoilt as the recipe says, and always marked as simulated."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from manifests.config import ConfigError
from manifests.ontology import Ontology, load_ontology
from manifests.recipe import Recipe, load_recipe
from manifests.sections.data import DataConfig, RunConfig
from manifests.sections.tables import GroupConfig, ProjectConfig, SegmentConfig, TextConfig
from manifests.sections.teachers.oracle import OracleConfig
from manifests.tables.base import F
from manifests.tables.labels import Label, Target
from manifests.tables.superpoints import Pairs
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.ray_pool import RayPool
from pipeline.engine.runner import Runner
from pipeline.frame import Camera, Frame, FrameError
from pipeline.teachers.oracle import Oracle
from pipeline.teachers.registry import TEACHERS
from superpixels.segments import Segments
from tests.refs import newest

NUSCENES = load_ontology("nuscenes")
RAW = {name: position for position, name in enumerate(fine.name for fine in NUSCENES.fine)}
ROAD, SIDEWALK, MANMADE, CAR, ADULT = (
    RAW[name]
    for name in (
        "flat.driveable_surface",
        "flat.sidewalk",
        "static.manmade",
        "vehicle.car",
        "human.pedestrian.adult",
    )
)
SKY, NOISE = RAW["static.other"], RAW["noise"]


def street(height: int = 90, width: int = 160) -> npt.NDArray[Any]:
    """A class map: sky, a wall, road and pavement below it, two cars and four people; a corner of noise."""
    raw = np.full((height, width), SKY, np.uint8)
    raw[20:] = MANMADE
    raw[50:] = ROAD
    raw[50:60, :50] = SIDEWALK
    raw[45:60, 60:80] = raw[45:60, 100:120] = CAR
    for left in (10, 30, 130, 140):
        raw[44:56, left : left + 3] = ADULT
    raw[-4:, -4:] = NOISE
    return raw


def camera(token: str, width_px: int = 160, height_px: int = 90) -> Camera:
    return Camera(token.upper(), token, f"{token}.png", 0, np.eye(3), np.eye(4), 0, width_px, height_px)


def frame_of(*cameras: Camera) -> Frame:
    return Frame("f", "s", 0, "l", "l.bin", None, np.eye(4), np.eye(4), cameras)


def with_maps(folder: Path) -> Path:
    """Make a folder a data root with class maps of cameras a, b and c."""
    maps = folder / "classmaps" / "v1.0-city"
    maps.mkdir(parents=True)
    for token in "abc":
        Image.fromarray(street()).save(maps / f"{token}.png")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return with_maps(tmp_path)


def recipe_at(
    root: Path, *, segmentation: SegmentConfig | None = None, ontology: Ontology = NUSCENES, **values: Any
) -> Recipe:
    return Recipe(
        name="test",
        data=DataConfig(root=str(root), version="v1.0-city"),
        run=RunConfig(),
        teacher=OracleConfig(**values),
        project=ProjectConfig(),
        text=TextConfig(),
        segment=segmentation or SegmentConfig(scale=1.0),
        group=GroupConfig(),
        ontology=ontology,
    )


def see(recipe: Recipe, *tokens: str) -> list[Segments]:
    """The segments of some cameras."""
    vectors = TEACHERS["oracle"].load(recipe, "text").text(recipe.ontology.prompts)
    teacher = TEACHERS["oracle"].load(recipe, "segment")
    return teacher.segment(frame_of(*map(camera, tokens or ("a",))), {}, vectors)


def fine_map(found: Segments) -> npt.NDArray[Any]:
    """The fine class of each pixel as named, -1 for none."""
    return np.append(-1, NUSCENES.fine_of_prompt[found.prompt_id])[found.label_map()]


def class_map(found: Segments) -> npt.NDArray[Any]:
    return np.append(0, NUSCENES.class_of_prompt[found.prompt_id])[found.label_map()]


def assert_equal(one: Segments, other: Segments) -> None:
    for field in fields(Segments):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


EVERYTHING: dict[str, Any] = {
    "boundary_shift_px": 2.0,
    "boundary_length_px": 20.0,
    "jitter_px": 2.0,
    "jitter_deg": 1.0,
    "patch_px": 20.0,
    "confusion": 0.8,
    "synonyms": 0.5,
    "drop": 0.8,
    "merge": 0.3,
    "vector_noise": 0.5,
    "score_noise": 0.5,
}


# -- mistakes that last


def places_of(root: Path, tokens: str = "abc") -> None:
    """Write maps of places: the two cars are 1 and 2, the people 3 to 6, all else squares of a chess board."""
    row, col = np.mgrid[:90, :160] // 10
    place = (1000 + 250 * row + col).astype(np.uint16)
    place[45:60, 60:80], place[45:60, 100:120] = 1, 2
    for number, left in enumerate((10, 30, 130, 140), start=3):
        place[44:56, left : left + 3] = number
    folder = root / "placemaps" / "v1.0-city"
    folder.mkdir(parents=True)
    for token in tokens:
        Image.fromarray(place).save(folder / f"{token}.png")


def share_alike(root: Path, **values: Any) -> float:
    """How large a part of the pixels that two images name wrongly, in either, both name alike."""
    one, other = (class_map(found) for found in see(recipe_at(root, confusion=1.0, patch_px=10.0, **values), "a", "b"))
    right = NUSCENES.class_of_fine[NUSCENES.fine_of_raw_labels(street())]
    wrong = (one != right) | (other != right)
    return float((one == other)[wrong].mean())


def test_mistakes_that_last_are_the_same_in_two_images_of_a_drive(root: Path) -> None:
    places_of(root)
    fresh, some, all_last = (share_alike(root, persistence=share) for share in (0.0, 0.5, 1.0))
    assert all_last == 1
    assert fresh < some < 0.9


def test_a_thing_that_is_missed_for_good_is_missed_in_every_image(root: Path) -> None:
    places_of(root)
    recipe = recipe_at(root, drop=0.5, drop_area_px=1e6, persistence=1.0)
    drawn = [class_map(found) for found in see(recipe, "a", "b", "c")]
    for other in drawn[1:]:
        np.testing.assert_array_equal(other, drawn[0])
    redrawn = class_map(see(replace(recipe, teacher=replace(recipe.teacher, seed=1)))[0])
    assert (redrawn != drawn[0]).any()


def test_what_lasts_needs_maps_of_places(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no folder .*placemaps"):
        see(recipe_at(root, persistence=0.5))
    places_of(root, "b")
    with pytest.raises(FrameError, match=r"^placemaps/v1\.0-city/a\.png: No such file"):
        see(recipe_at(root, persistence=0.5))
    with pytest.raises(ValueError, match='only source "maps" knows'):
        OracleConfig(source="points", persistence=0.5)


# -- nothing is spoilt


def test_without_noise_the_segments_are_the_stored_map(root: Path) -> None:
    [found] = see(recipe_at(root))
    truth = np.where(street() == NOISE, -1, street().astype(int))  # no prompt names noise
    np.testing.assert_array_equal(fine_map(found), truth)
    areas = dict(zip(NUSCENES.fine_of_prompt[found.prompt_id].tolist(), found.area_px.tolist(), strict=True))
    assert areas == {fine: int((truth == fine).sum()) for fine in (ADULT, CAR, ROAD, SIDEWALK, MANMADE, SKY)}
    assert (found.score == 1).all()
    first = [NUSCENES.fine_of_prompt.tolist().index(fine) for fine in areas]
    assert found.prompt_id.tolist() == first


def test_without_noise_a_vector_is_the_vector_of_its_prompt(root: Path) -> None:
    recipe = recipe_at(root)
    vectors = Oracle.load(recipe, "text").text(NUSCENES.prompts)
    [found] = see(recipe)
    np.testing.assert_allclose(found.vector, vectors[found.prompt_id], atol=1e-3)


def test_a_smaller_map_takes_the_pixel_in_the_middle_of_each_cell(root: Path) -> None:
    [found] = see(recipe_at(root, segmentation=SegmentConfig(scale=0.2)))
    expected = street()[2::5, 2::5].astype(int)
    np.testing.assert_array_equal(fine_map(found), np.where(expected == NOISE, -1, expected))


def test_components_are_views_of_their_own_if_the_recipe_splits(root: Path) -> None:
    for split, cars, people in (("class", 1, 1), ("components", 2, 4)):
        [found] = see(recipe_at(root, segmentation=SegmentConfig(scale=1.0, split=split)))
        fine = NUSCENES.fine_of_prompt[found.prompt_id]
        assert ((fine == CAR).sum(), (fine == ADULT).sum()) == (cars, people)


def test_small_segments_are_left_out_if_the_recipe_says_so(root: Path) -> None:
    segmentation = SegmentConfig(scale=1.0, split="components", min_area_px=40)
    [found] = see(recipe_at(root, segmentation=segmentation))
    assert ADULT not in fine_map(found)
    assert CAR in fine_map(found)


# -- every kind of noise


def agreement(root: Path, tokens: str = "abc", **values: Any) -> float:
    """The share of pixels whose class is right."""
    truth = NUSCENES.class_of_fine[street()]
    return float(np.mean([class_map(found) == truth for found in see(recipe_at(root, **values), *tokens)]))


@pytest.mark.parametrize(
    "noise",
    [
        {"boundary_shift_px": 2.0},
        {"jitter_px": 3.0},
        {"jitter_deg": 4.0},
        {"confusion": 1.0, "patch_px": 20.0},
        {"drop": 1.0},
        {"merge": 0.5},
        EVERYTHING,
    ],
)
def test_noise_spoils_a_part_and_a_part_only(root: Path, noise: dict[str, Any]) -> None:
    assert 0.4 < agreement(root, **noise) < 0.999


def test_patches_and_synonyms_alone_change_no_class(root: Path) -> None:
    assert agreement(root, patch_px=20.0, synonyms=1.0, vector_noise=1.0, score_noise=1.0) == 1.0


def test_lengths_are_pixels_of_the_image_whatever_the_scale(root: Path) -> None:
    """A shift read in pixels of the smaller map would spoil five times as much."""
    Image.fromarray(np.kron(street(), np.ones((5, 5), np.uint8))).save(root / "classmaps" / "v1.0-city" / "big.png")
    spoilt = {}
    for scale in (1.0, 0.2):
        recipe = recipe_at(root, segmentation=SegmentConfig(scale=scale), jitter_px=8.0)
        teacher = Oracle.load(recipe, "segment")
        [found] = teacher.segment(frame_of(camera("big", 800, 450)), {}, teacher.text(NUSCENES.prompts))
        truth = NUSCENES.class_of_fine[street()]
        step = found.height_px // 90
        spoilt[scale] = (class_map(found)[step // 2 :: step, step // 2 :: step] != truth).mean()
    assert spoilt[0.2] == pytest.approx(spoilt[1.0], rel=0.25)


def test_synonyms_stay_in_the_class_and_cross_fine_classes(root: Path) -> None:
    segmentation = SegmentConfig(scale=1.0, split="components")
    fine = set()
    for seed in range(10):
        [found] = see(recipe_at(root, segmentation=segmentation, synonyms=1.0, seed=seed))
        people = NUSCENES.class_of_prompt[found.prompt_id] == NUSCENES.class_names.index("pedestrian")
        assert people.sum() == 4
        fine |= set(NUSCENES.fine_of_prompt[found.prompt_id[people]].tolist())
        assert not set(found.prompt_id.tolist()) & set(see(recipe_at(root))[0].prompt_id.tolist())
    assert len(fine) == 4  # adult, child, construction worker, police officer


def test_what_is_ignored_scatters_over_its_own_fine_class_only(root: Path) -> None:
    names = set()
    for seed in range(10):
        [found] = see(recipe_at(root, synonyms=1.0, seed=seed))
        names |= {NUSCENES.prompts[k] for k in found.prompt_id if NUSCENES.class_of_prompt[k] == 0}
    assert names == {"sky", "cloudy sky", "clear sky", "overcast"}


def test_the_table_of_confusions_says_who_is_taken_for_whom(root: Path) -> None:
    confused = (("car", "bus", 1.0),)
    [found] = see(recipe_at(root, confusion=1.0, confused=confused))
    expected = np.where(street() == NOISE, -1, street().astype(int))
    is_bus = NUSCENES.class_of_fine == NUSCENES.class_names.index("bus")
    np.testing.assert_array_equal(is_bus[fine_map(found)], expected == CAR)
    np.testing.assert_array_equal(fine_map(found)[expected != CAR], expected[expected != CAR])


def test_a_score_tells_right_from_wrong_as_far_as_it_is_no_chance(root: Path) -> None:
    confused = (("car", "bus", 0.5), ("pedestrian", "traffic_cone", 0.5))
    segmentation = SegmentConfig(scale=1.0, split="components")
    for score_noise, gap in ((0.0, 0.99), (0.5, 0.5), (1.0, 0.0)):
        right: list[float] = []
        wrong: list[float] = []
        for seed in range(20):
            values: dict[str, Any] = {"confusion": 1.0, "confused": confused, "seed": seed, "score_noise": score_noise}
            [found] = see(recipe_at(root, segmentation=segmentation, **values))
            classes = np.array(NUSCENES.class_names)[NUSCENES.class_of_prompt[found.prompt_id]]
            right += found.score[np.isin(classes, ("car", "pedestrian"))].tolist()
            wrong += found.score[np.isin(classes, ("bus", "traffic_cone"))].tolist()
        assert len(wrong) > 20
        assert np.mean(right) - np.mean(wrong) == pytest.approx(gap, abs=0.1)
        assert min(wrong) > 0


def test_noise_moves_vectors_by_as_much_as_asked(root: Path) -> None:
    recipe = recipe_at(root, vector_noise=0.5, dims=256)
    vectors = Oracle.load(recipe, "text").text(NUSCENES.prompts)
    for found in see(recipe, "a", "b"):
        cosine = (found.vector * vectors[found.prompt_id]).sum(axis=1)
        np.testing.assert_allclose(cosine, 1 / np.sqrt(1.25), atol=0.05)


# -- chance


def test_a_camera_looks_the_same_in_any_company(root: Path) -> None:
    recipe = recipe_at(root, **EVERYTHING)
    together = dict(zip("abc", see(recipe, "a", "b", "c"), strict=True))
    reversed_ = dict(zip("cba", see(recipe, "c", "b", "a"), strict=True))
    for token in "abc":
        assert_equal(together[token], reversed_[token])
        assert_equal(together[token], see(recipe, token)[0])


def test_cameras_and_seeds_differ(root: Path) -> None:
    one, other = see(recipe_at(root, **EVERYTHING), "a", "b")
    assert (fine_map(one) != fine_map(other)).any()
    [again] = see(recipe_at(root, **EVERYTHING, seed=1), "a")
    assert (fine_map(one) != fine_map(again)).any()


def test_other_noise_stays_where_it_is_when_one_strength_changes(root: Path) -> None:
    alone = see(recipe_at(root, confusion=0.8, patch_px=20.0))[0]
    more = see(recipe_at(root, confusion=0.8, patch_px=20.0, vector_noise=0.5, score_noise=0.5))[0]
    np.testing.assert_array_equal(alone.label_map(), more.label_map())
    np.testing.assert_array_equal(alone.prompt_id, more.prompt_id)


# -- what is not as it should be


def test_a_missing_map_is_named(root: Path) -> None:
    with pytest.raises(FrameError, match=r"^classmaps/v1\.0-city/d\.png: No such file"):
        see(recipe_at(root), "d")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (np.zeros((80, 160), np.uint8), r"a\.png: has 160 x 80 pixels, the image has 160 x 90"),
        (np.zeros((90, 160, 3), np.uint8), r"a\.png: has pixels of kind RGB"),
        (np.full((90, 160), 77, np.uint8), r"a\.png: raw labels \[77\] are not in ontology 'nuscenes'"),
    ],
)
def test_a_map_that_does_not_fit_is_named(root: Path, content: npt.NDArray[Any], sentence: str) -> None:
    Image.fromarray(content).save(root / "classmaps" / "v1.0-city" / "a.png")
    with pytest.raises(FrameError, match=sentence):
        see(recipe_at(root))


def test_a_truncated_map_is_named(root: Path) -> None:
    path = root / "classmaps" / "v1.0-city" / "a.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FrameError, match=r"classmaps/v1\.0-city/a\.png: "):
        see(recipe_at(root))


def test_a_token_does_not_leave_the_root(root: Path) -> None:
    with pytest.raises(FrameError, match="leaves the data root"):
        see(recipe_at(root), "../../a")


def test_a_root_without_maps_is_told_about_the_other_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'there is no folder .*classmaps.* teacher.source = "points"'):
        Oracle.load(recipe_at(tmp_path), "segment")
    assert Oracle.load(recipe_at(tmp_path), "text").text(NUSCENES.prompts).shape == (175, 64)


def test_confusions_need_classes_that_the_dictionary_has(root: Path) -> None:
    kitti = load_ontology("semantic_kitti")
    with pytest.raises(
        ConfigError, match=r'teacher.confused: confused names class "\w+"; the class dictionary has car'
    ):
        Oracle.load(recipe_at(root, ontology=kitti, confusion=0.5), "segment")
    Oracle.load(recipe_at(root, ontology=kitti), "segment")  # the default table is of no consequence at strength 0
    wordless = replace(NUSCENES, groups=tuple(group for group in NUSCENES.groups if group.name != "barrier"))
    with pytest.raises(ConfigError, match='class "barrier" has no prompt to be named by'):
        Oracle.load(recipe_at(root, ontology=wordless, confusion=0.5), "segment")


# -- words


# -- identities


# -- points


# -- from a data set to what the trainer reads


@pytest.fixture
def simulated(shared: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Loads a recipe over the one key frame of scene-0008 of the simulated root."""
    copy = tmp_path / "nuscenes"
    shutil.copytree(shared / "golden" / "nuscenes_tiny", copy, copy_function=os.symlink)
    (tmp_path / "one.txt").write_text("scene-0008\n")
    path = tmp_path / "simulated.toml"
    path.write_text(
        f'[data]\nroot = "{copy}"\nsplit = "{tmp_path / "one.txt"}"\n'
        f'[teacher]\nname = "oracle"\nsource = "points"\nslic_px = 15\n'
        f'[segment]\nscale = 0.5\n[run]\nstore = "{tmp_path / "store"}"\n'
    )
    return lambda *overrides: load_recipe(path, overrides)


def row_of(recipe: Recipe, kind: type[F]) -> F:
    store = Runner(recipe).store
    found = newest(store, recipe.name).table(kind.table)
    [row] = store.every(kind, found.fingerprint, found.shards)
    return row


def test_labelled_points_come_back_as_pseudo_labels(simulated: Callable[..., Recipe]) -> None:
    recipe = simulated()
    assert Runner(recipe).run(["points", "pairs", "target"], InlinePool(recipe)) == []
    target, label, pairs = row_of(recipe, Target), row_of(recipe, Label), row_of(recipe, Pairs)
    seen = target.seen & (label.label > 0) & (target.label > 0)
    assert seen.sum() > 5000
    assert (target.label == label.label)[seen].mean() > 0.95
    assert pairs.vector.shape[1] == 64
    manifest = Runner(recipe).store.manifests("segment")[0]
    teacher: Any = manifest.identity.settings["teacher"]
    assert teacher["simulated"] is True
    assert set(manifest.identity.needs) == {"text", "label", "project"}


def test_what_is_judged_has_its_score_in_every_pixel_and_mistakes_depend_on_the_range(
    simulated: Callable[..., Recipe],
) -> None:
    settings = {
        "teacher.confusion": 1.0,
        "teacher.confused": '[["driveable_surface", "sidewalk", 0.4], ["manmade", "vegetation", 0.4]]',
        "teacher.steadiness": 0.99,
        "teacher.half_life_s": 4.0,
        "teacher.range_slope": 0.3,
        "teacher.scored": "[[0.6, 0.1], [1.0, 0.5]]",
        "group.scores": "pixel",
    }
    recipe = simulated(*(f"{name}={value}" for name, value in settings.items()))
    assert Runner(recipe).run(["points", "target"], InlinePool(recipe)) == []
    target, label = row_of(recipe, Target), row_of(recipe, Label)
    named = target.seen & (label.label > 0) & (target.label > 0)
    wrong = named & (target.label != label.label)
    score = target.confidence / 255
    assert 0.1 < wrong.sum() / named.sum() < 0.6
    assert score[named & ~wrong].mean() > 0.65 and score[wrong].mean() < 0.5
    assert len(np.unique(target.confidence[named])) > 10, "more than one score a class"
    (found,) = Runner(recipe).store.manifests("score")
    assert set(found.identity.needs) == {"segment", "text", "label", "project", "points"}


@pytest.fixture(scope="module")
def ray_stopped_afterwards() -> Iterator[None]:
    yield
    import ray

    ray.shutdown()


@pytest.mark.usefixtures("ray_stopped_afterwards")
def test_workers_of_ray_draw_the_same_noise(simulated: Callable[..., Recipe], tmp_path: Path) -> None:
    noise = [f"teacher.{name}={value}" for name, value in EVERYTHING.items()] + ["segment.scale=0.1"]
    inline = simulated(*noise)
    assert Runner(inline).run(["segment"], InlinePool(inline)) == []
    on_ray = simulated(*noise, f"run.store={tmp_path / 'other'}", "run.pool=ray")
    with RayPool(on_ray) as pool:
        assert Runner(on_ray).run(["segment"], pool) == []
    shards = [newest(Runner(recipe).store, recipe.name).table("segment").shards for recipe in (inline, on_ray)]
    assert shards[0] == shards[1]
