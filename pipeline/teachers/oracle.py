"""Teacher `oracle`: ground truth made 2D and then spoilt on purpose. It is SIMULATED: no image is understood.

For trying, measuring and explaining everything behind the teacher without any network or weights. What a student learns
from it says nothing about label-free learning, since the true labels are where its masks come from. Therefore the
identities of its tables hold `simulated = true`, and TEACHERS marks it, for reports to say so.

The truth has two sources. "maps": the class maps that the synthetic city writes beside its images,
`classmaps/<version>/<camera token>.png`, one 8-bit grey pixel per image pixel that holds the label as label files store
it. `placemaps/...` beside them tell which pixels of a drive's images show the same thing or place (16 bits), for
mistakes that last. "points": true labels of the points that a camera sees (tables `label` and `project`), grown to SLIC
superpixels; for any labelled data set, but there is no segment far from all points.

Vectors of prompts are drawn, too: those of one group are close, those of different classes nearly orthogonal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests.config import ConfigError
from manifests.ontology import Ontology
from manifests.sections.teachers.oracle import MAPS, OracleConfig
from manifests.storage.places import Root, root_of
from manifests.tables.base import Rows
from manifests.tables.labels import Label
from manifests.tables.sensors import Points, Project
from pipeline.frame import Camera, Frame, FrameError, read_file, read_image
from pipeline.sources import FrameFiles
from pipeline.teachers.artifacts import read_label_map, reason
from pipeline.teachers.lasting import (
    Places,
    by_range,
    mapped,
    nearest_points,
    no_places,
    place_chances,
    place_shifts,
    region_means,
    squares,
    steady,
    stirred,
    told_scores,
)
from pipeline.teachers.noise import (
    NOTHING,
    Integers,
    Regions,
    chances,
    confuse,
    find_regions,
    generator,
    jitter,
    noisy_scores,
    noisy_vectors,
    scatter,
    share_table,
    shift_boundaries,
    swallow,
)
from superpixels.segments import Segments, Split, compact
from superpixels.slic import grow_labels, majority_labels, slic_superpixels

if TYPE_CHECKING:
    from manifests.recipe import Recipe
    from manifests.sections.tables import SegmentConfig

PLACES = "placemaps"

# Squares of the parts of a prompt's vector that its class, its group and its own words give; they sum to 1. Two prompts
# of a group have cosine 3/4 and two of a class 1/2, give or take 1 / sqrt(dims).
_PARTS = (1 / 2, 1 / 4, 1 / 4)


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What decides about mistakes in a view beside the truth: what each pixel shows, and its range in metres (H, W).

    The range is NaN where no point was seen, and None where nothing depends on it.
    """

    places: Places
    range_m: npt.NDArray[np.float64] | None


@dataclass(frozen=True, eq=False)
class Spoilt:
    """What is made of a view: its segments, and how sure the teacher says that it is of each pixel, (H, W)."""

    segments: Segments
    score_map: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Oracle:
    """The loaded teacher. `share` (classes, classes) is who is taken for whom; see pipeline.teachers.noise."""

    config: OracleConfig
    root: Root
    version: str
    ontology: Ontology
    segmentation: SegmentConfig
    share: npt.NDArray[np.float64]

    @classmethod
    def load(cls, recipe: Recipe, stage: str) -> Oracle:
        """Return the teacher; raises ConfigError for class maps or classes that are not there."""
        config, ontology = recipe.teacher, recipe.ontology
        assert isinstance(config, OracleConfig)
        root, version = root_of(recipe.data), recipe.data.version
        folders = (MAPS, PLACES) if config.knows_places else (MAPS,)
        for folder in folders if stage == "segment" and config.source == "maps" else ():
            if not (root / folder / version).is_dir():
                raise ConfigError(
                    f"teacher.source: there is no folder {root / folder / version}; only the synthetic city has such "
                    'maps: for other labelled data set teacher.source = "points" and no persistence'
                )
        try:
            share = share_table(config.confused if config.confusion else (), ontology.class_names)
        except ValueError as error:
            raise ConfigError(f"teacher.confused: {error}") from None
        without = sorted(set(np.flatnonzero(share.any(axis=0))) - set(ontology.class_of_prompt.tolist()))
        if without:
            raise ConfigError(
                f'teacher.confused: class "{ontology.class_names[without[0]]}" has no prompt to be named by'
            )
        return cls(config, root, version, ontology, recipe.segment, share)

    @staticmethod
    def files(recipe: Recipe) -> FrameFiles | None:
        """Return the maps that are read of every frame, if any."""
        config, version = recipe.teacher, recipe.data.version
        assert isinstance(config, OracleConfig)
        stored = (MAPS, PLACES) if config.knows_places else (MAPS,)
        folders = stored if config.source == "maps" else ()

        def names(frame: Frame) -> tuple[str, ...]:
            return tuple(f"{folder}/{version}/{one.token}.png" for one in frame.cameras for folder in folders)

        return FrameFiles(root_of(recipe.data), names) if folders else None

    def text(self, prompts: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """Return one unit vector per prompt, float32 (p, d); raises ValueError for prompts that are not ours.

        Each is the sum of directions drawn for the class (for the fine class, where that is ignored: ignored things
        have nothing in common), for the group and for the words of the prompt.
        """
        if prompts != self.ontology.prompts:
            raise ValueError("the prompts are not those of the class dictionary, whose groups their vectors depend on")
        pool_of_fine = pool_names(self.ontology)
        vectors = []
        for prompt, group, fine in zip(
            prompts, self.ontology.group_of_prompt, self.ontology.fine_of_prompt, strict=True
        ):
            names = f"class {pool_of_fine[fine]}", f"group {self.ontology.groups[group].name}", f"prompt {prompt}"
            parts = [direction(name, self.config.dims) for name in names]
            vectors.append(np.sqrt(_PARTS) @ parts)
        stacked = np.stack(vectors)
        return np.asarray(stacked / np.linalg.norm(stacked, axis=1, keepdims=True), np.float32)

    def encode(self, frame: Frame) -> dict[str, npt.NDArray[Any]]:
        """Raise ValueError: nothing here looks at images."""
        raise ValueError("teacher oracle has no encode half; it is simulated from true labels")

    def segment(self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]) -> list[Segments]:
        """Return the segments of every view, in camera order, from stored maps; see `segment_rows`."""
        return self.segment_rows(frame, Rows(), text)

    def segment_rows(self, frame: Frame, rows: Rows, text: npt.NDArray[Any]) -> list[Segments]:
        """Return the segments of every view, in camera order, on label maps of `segment.scale` times the image size.

        For source "points" the truth is that of tables `label` and `project`. Raises FrameError for a class
        map that is missing, of another size than its image or with unknown labels, and for an unreadable image.
        """
        return [found.segments for found in self.spoilt_views(frame, rows, text)]

    def spoilt_views(self, frame: Frame, rows: Rows, text: npt.NDArray[Any]) -> Iterator[Spoilt]:
        """Yield what is made of every view, in camera order, from maps or rows; raises as `segment_rows` does."""
        for view, camera in enumerate(frame.cameras):
            truth = self.true_map(frame, view, rows)
            yield self.spoil(truth, camera, text, frame, self.surroundings(frame, view, rows, *truth.shape))

    def pixel_scores(
        self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any], views: Sequence[Segments]
    ) -> list[npt.NDArray[Any]]:
        """Return the score of each pixel's segment, (H, W) for every view; see PixelTeacher."""
        return [np.append(np.float32(0), view.score.astype(np.float32))[view.label_map()] for view in views]

    def pixel_scores_of_rows(
        self, frame: Frame, rows: Rows, text: npt.NDArray[Any], views: Sequence[Segments]
    ) -> list[npt.NDArray[Any]]:
        """Return the score of each pixel of what was judged as one, (H, W) for every view; see RowPixelTeacher."""
        return [found.score_map for found in self.spoilt_views(frame, rows, text)]

    # -- the truth

    def true_map(self, frame: Frame, view: int, rows: Rows) -> npt.NDArray[np.int16]:
        """Return the fine class of each pixel of a view's label map, (H, W), -1 for none; raises FrameError."""
        camera = frame.cameras[view]
        height = max(1, round(camera.height_px * self.segmentation.scale))
        width = max(1, round(camera.width_px * self.segmentation.scale))
        if self.config.source == "points":
            return self.map_of_points(camera, view, rows[Label], rows[Project], height, width)
        return self.stored_map(camera, frame)[centres(camera.height_px, height)][:, centres(camera.width_px, width)]

    def stored_map(self, camera: Camera, frame: Frame) -> npt.NDArray[np.int16]:
        """Return the fine class of each pixel of an image, (H, W), -1 where it has no prompt; raises FrameError."""
        relative = f"{MAPS}/{self.version}/{camera.token}.png"
        stored = self.read(relative, camera, frame)
        present = np.flatnonzero(np.bincount(stored.ravel()))
        fine_of_raw = np.full(int(present[-1]) + 1, NOTHING, np.int16)
        try:
            fine_of_raw[present] = self.nameable(self.ontology.fine_of_raw_labels(present))
        except ValueError as error:
            raise FrameError(f"{relative}: {error}") from None
        return np.asarray(fine_of_raw[stored])

    def surroundings(self, frame: Frame, view: int, rows: Rows, height: int, width: int) -> Surroundings:
        """Return what decides about mistakes in a view beside the truth, on a smaller image; raises FrameError."""
        config, camera = self.config, frame.cameras[view]
        places, range_m = no_places(height, width), None
        if config.knows_places and config.source == "maps":
            stored = self.read(f"{PLACES}/{self.version}/{camera.token}.png", camera, frame)
            places = mapped(stored[centres(camera.height_px, height)][:, centres(camera.width_px, width)])
        if config.measures_points:
            pairs, xyz_m = rows[Project], rows[Points].xyz_m.astype(np.float64)
            pair = np.flatnonzero((pairs.view == view) & ~pairs.occluded)
            row = pairs.row_px[pair].astype(np.int64) * height // camera.height_px
            col = pairs.col_px[pair].astype(np.int64) * width // camera.width_px
            nearest = nearest_points(row, col, height, width)  # -1, of no point at all, is the last of each below
            if config.errs_by_range:
                range_m = np.append(np.linalg.norm(xyz_m[pairs.point[pair], :2], axis=1), np.nan)[nearest]
            if config.knows_places and config.source == "points":
                pose = frame.world_from_lidar
                world_m = xyz_m[pairs.point[pair]] @ pose[:3, :3].T + pose[:3, 3]
                name, dense = np.unique(squares(world_m, config.place_m), return_inverse=True)
                places = Places(np.append(dense + 1, 0).astype(np.int32)[nearest], name)
        return Surroundings(places, range_m)

    def read(self, relative: str, camera: Camera, frame: Frame) -> Integers:
        """Return the map of a camera's image at a path below the root, (H, W); raises FrameError."""
        content = read_file(self.root, relative, frame.files.get(relative, ""))
        try:
            return read_label_map(content, (camera.width_px, camera.height_px))
        except (ValueError, OSError) as error:
            raise FrameError(f"{relative}: {reason(error)}") from None

    def map_of_points(
        self, camera: Camera, view: int, truth: Label, pairs: Project, height: int, width: int
    ) -> npt.NDArray[np.int16]:
        """Return the fine class of each pixel of a smaller image, (height, width), -1 for none, from labelled points.

        A superpixel has the class of most of the points in it; points that another one hides do not count.
        """
        from PIL import Image

        pair = np.flatnonzero((pairs.view == view) & ~pairs.occluded)
        fine = self.nameable(self.ontology.fine_of_raw_labels(truth.raw[pairs.point[pair]]))
        pair, fine = pair[fine != NOTHING], fine[fine != NOTHING]
        row = pairs.row_px[pair].astype(np.int64) * height // camera.height_px
        col = pairs.col_px[pair].astype(np.int64) * width // camera.width_px
        image = Image.fromarray(read_image(self.root, camera)).resize((width, height), Image.Resampling.BOX)
        scale = height / camera.height_px
        superpixel = slic_superpixels(
            np.asarray(image), max(self.config.slic_px * scale, 1), compactness=self.config.slic_compactness
        )
        label = majority_labels(superpixel, row, col, fine)
        return grow_labels(superpixel, label, self.config.grow_px * scale).astype(np.int16)[superpixel]

    def nameable(self, fine: Integers) -> npt.NDArray[np.int16]:
        """Return fine classes with -1 in the place of those that no prompt names."""
        named = np.zeros(len(self.ontology.fine), np.bool_)
        named[self.ontology.fine_of_prompt] = True
        return np.where(named[fine], fine, NOTHING).astype(np.int16)

    # -- and what is made of it

    def mover(self, camera: Camera, frame: Frame, places: Places, scale: float) -> Callable[[Integers], Integers]:
        """Return what moves the boundaries of any map of a view (H, W), and then turns and moves it as a whole.

        `scale` is the height of the map as a share of the image's.
        """
        config, of_camera = self.config, f"{frame.scene} {camera.name}"
        shift_px, of_place = config.boundary_shift_px * scale, None
        if config.moves_places:
            of_place = place_shifts(
                places,
                frame.timestamp_us / 1e6,
                seed=config.seed,
                key=f"{frame.scene} boundary",
                half_life_s=config.half_life_s,
                reach_px=2 * shift_px,
            )

        def moved(one: Integers) -> Integers:
            shifted = shift_boundaries(
                one,
                generator(config.seed, camera.token, "boundary"),
                boundary_shift_px=shift_px,
                boundary_length_px=max(config.boundary_length_px * scale, 1),
                lasting=generator(config.seed, of_camera, "lasting boundary"),
                steadiness=config.boundary_steadiness,
                of_place=of_place,
                place_share=config.boundary_places,
            )
            return jitter(
                shifted,
                generator(config.seed, camera.token, "jitter"),
                jitter_px=config.jitter_px * scale,
                jitter_deg=config.jitter_deg,
                lasting=generator(config.seed, of_camera, "lasting jitter"),
                steadiness=config.boundary_steadiness,
            )

        return moved

    def spoil(  # long: one fault after another, in the order they are drawn
        self,
        truth: npt.NDArray[np.int16],
        camera: Camera,
        text: npt.NDArray[Any],
        frame: Frame,
        around: Surroundings,
    ) -> Spoilt:
        """Return the segments of a true map of fine classes (H, W), -1 for none, with all the noise of the recipe.

        Everything random is drawn for the camera's token, so neither order nor batch nor worker matters; what lasts,
        for the scene and the places in it.
        """
        config, ontology = self.config, self.ontology
        scale = truth.shape[0] / camera.height_px
        area_scale = truth.size / (camera.height_px * camera.width_px)

        def draws(name: str) -> np.random.Generator:
            return generator(config.seed, camera.token, name)

        moved = self.mover(camera, frame, around.places, scale)
        thing = np.zeros(len(ontology.fine), np.bool_)
        thing[ontology.fine_of_prompt] = ontology.thing_of_prompt
        regions = find_regions(
            moved(truth),
            thing,
            draws("patch"),
            patch_px=config.patch_px * scale,
            place_map=moved(around.places.map) if config.knows_places else None,
        )
        name = np.append(np.uint64(0), around.places.name)[regions.place]

        def decided(kind: str, rows: int) -> npt.NDArray[np.float64]:
            lasting = generator(config.seed, frame.scene, f"lasting {kind}")
            if not config.steadiness:
                places = name.astype(np.int64)
                return chances(places, draws(kind), lasting, rows=rows, persistence=config.persistence)
            return self.steady_chances(regions, name, frame, draws(kind).random((rows, len(regions))), kind)

        true_class = ontology.class_of_fine[regions.class_id]
        chance = decided("confusion", 1)[0]
        if around.range_m is not None:
            chance = by_range(chance, region_means(regions.region_map, around.range_m), config.range_slope)
        named_class = confuse(true_class, chance, self.share, config.confusion)
        prompt = np.where(
            named_class == true_class,
            first_prompt(ontology.fine_of_prompt, len(ontology.fine))[regions.class_id],
            first_prompt(ontology.class_of_prompt, len(ontology.classes))[named_class],
        )
        prompt = scatter(prompt, pools(ontology), draws("synonyms"), config.synonyms)
        taker = swallow(
            regions,
            decided("swallow", 2),
            drop=config.drop,
            drop_area_px=config.drop_area_px * area_scale,
            merge=config.merge,
        )
        prompt_map = np.append(0, prompt[taker]).astype(np.int32)[regions.region_map]
        split: Split = "component" if self.segmentation.split == "components" else "prompt"
        label_map, segment_prompt = compact(
            prompt_map, keep=regions.region_map > 0, split=split, min_area_px=max(1, self.segmentation.min_area_px)
        )
        if config.scored:
            named = ontology.class_of_prompt[prompt[taker]]
            score_map = self.score_map(regions, named, chance, truth, draws("score"))
            score = region_means(label_map, score_map)
        else:
            known = truth != NOTHING
            right = ontology.class_of_fine[truth] == np.append(0, ontology.class_of_prompt[segment_prompt])[label_map]
            score = noisy_scores(label_map, len(segment_prompt), right, known, draws("score"), config.score_noise)
            score_map = np.append(0, score)[label_map].astype(np.float32)
        segments = Segments.from_label_map(
            label_map,
            segment_prompt,
            np.maximum(score, 0.01),  # 0 would mean that the teacher named nothing
            noisy_vectors(text[segment_prompt], draws("vector"), config.vector_noise),
        )
        return Spoilt(segments, score_map)

    def steady_chances(
        self,
        regions: Regions,
        name: npt.NDArray[np.uint64],
        frame: Frame,
        image: npt.NDArray[np.float64],
        kind: str,
    ) -> npt.NDArray[np.float64]:
        """Return numbers in 0..1 to decide with, of which most belong to place and class of a region; see `steady`.

        `name` (n,) is the place of each region, 0 unknown; `image` (rows, n) was drawn for the image alone.
        """
        config = self.config
        thing = stirred([name, regions.class_id.astype(np.uint64)])
        found = np.empty_like(image)
        for row, drawn in enumerate(image):
            of_place = place_chances(
                thing,
                frame.timestamp_us / 1e6,
                seed=config.seed,
                key=f"{frame.scene} {kind} {row}",
                half_life_s=config.half_life_s,
            )
            found[row] = steady(np.where(name > 0, of_place, np.nan), drawn, config.steadiness)
        return found

    def score_map(
        self,
        regions: Regions,
        named_class: Integers,
        chance: npt.NDArray[np.float64],
        truth: npt.NDArray[np.int16],
        rng: np.random.Generator,
    ) -> npt.NDArray[np.float32]:
        """Return how sure the teacher says that it is of each pixel, (H, W), by how close a call its region was.

        `chance` (n,) decided what each region is called; of what was swallowed it says nothing, and chance does. Where
        boundaries belong to places, pixels that one was moved over, by `truth` (H, W), have scores of their own.
        """
        class_of_fine, scored = self.ontology.class_of_fine, np.array(self.config.scored)
        true_class = class_of_fine[regions.class_id]
        right = named_class == true_class
        wrong_below = self.share.sum(axis=1)[true_class] * self.config.confusion
        with np.errstate(divide="ignore", invalid="ignore"):
            doubt = np.where(right, (1 - chance) / (1 - wrong_below), chance / wrong_below)
        by_confusion = right == (chance >= wrong_below)
        doubt = np.clip(np.where(by_confusion & np.isfinite(doubt), doubt, rng.random(len(chance))), 0, 1)
        told = np.append(0, told_scores(right, doubt, scored))[regions.region_map]
        if self.config.moves_places:
            named_px, as_region = (np.append(0, one)[regions.region_map] for one in (named_class, right))
            crossed = (regions.region_map > 0) & (truth != NOTHING) & ((named_px == class_of_fine[truth]) != as_region)
            beyond = np.append(0, told_scores(~right, rng.random(len(chance)), scored))
            told = np.where(crossed, beyond[regions.region_map], told)
        return told.astype(np.float32)


def centres(size_px: int, n: int) -> npt.NDArray[np.int64]:
    """Return the pixels of a line of `size_px` in the middle of `n` equal parts, (n,); all of them for n = size_px."""
    return np.asarray((2 * np.arange(n) + 1) * size_px // (2 * n), np.int64)


def direction(name: str, dims: int) -> npt.NDArray[np.float64]:
    """Return a unit vector (dims,) that depends on nothing but its name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big")
    vector = np.random.default_rng(seed).standard_normal(dims)
    return np.asarray(vector / np.linalg.norm(vector))


def pool_names(ontology: Ontology) -> list[str]:
    """Return the name of what each fine class counts as: its class, or itself where that is ignored."""
    ignored = ontology.class_names[0]
    return [fine.name if fine.coarse == ignored else fine.coarse for fine in ontology.fine]


def pools(ontology: Ontology) -> npt.NDArray[np.int64]:
    """Return the pool of each prompt, (p,), 0..: prompts of one pool can stand for each other."""
    names = np.array(pool_names(ontology))[ontology.fine_of_prompt]
    return np.asarray(np.unique(names, return_inverse=True)[1], np.int64)


def first_prompt(owner_of_prompt: Integers, n_owners: int) -> npt.NDArray[np.int64]:
    """Return the first prompt of each fine class, or of each class, (n_owners,); 0 for those that have none."""
    owner, first = np.unique(owner_of_prompt, return_index=True)
    found = np.zeros(n_owners, np.int64)
    found[owner] = first
    return found
