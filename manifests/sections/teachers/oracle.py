"""Section `[teacher]` of the simulated teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass

from manifests.fingerprint import Settings
from manifests.ontology import Ontology
from manifests.sections.data import DataConfig
from manifests.sections.teachers.base import TeacherSection
from manifests.tables.base import FrameRecord
from manifests.tables.labels import Label
from manifests.tables.sensors import Points, Project

CONFUSED: tuple[tuple[str, str, float], ...] = (
    ("truck", "bus", 0.25),
    ("truck", "trailer", 0.2),
    ("truck", "construction_vehicle", 0.15),
    ("truck", "car", 0.2),
    ("bus", "truck", 0.4),
    ("trailer", "truck", 0.6),
    ("construction_vehicle", "truck", 0.6),
    ("car", "truck", 0.05),
    ("bicycle", "motorcycle", 0.4),
    ("motorcycle", "bicycle", 0.4),
    ("pedestrian", "bicycle", 0.05),
    ("traffic_cone", "barrier", 0.2),
    ("barrier", "manmade", 0.5),
    ("barrier", "traffic_cone", 0.1),
    ("driveable_surface", "sidewalk", 0.08),
    ("driveable_surface", "other_flat", 0.04),
    ("other_flat", "driveable_surface", 0.4),
    ("other_flat", "sidewalk", 0.3),
    ("sidewalk", "driveable_surface", 0.4),
    ("sidewalk", "terrain", 0.2),
    ("terrain", "sidewalk", 0.2),
    ("terrain", "vegetation", 0.3),
    ("manmade", "vegetation", 0.15),
    ("vegetation", "manmade", 0.15),
    ("vegetation", "terrain", 0.1),
)
"""Who is taken for whom, and how large a part of its regions at confusion 1, by classes of the nuScenes dictionary.

The pairs are those that look alike, both ways. Large classes give little to small ones, in which it would be most of
what bears the name. The shares are our judgement, not a measurement of any teacher.
"""

MAPS = "classmaps"
"""The folder of class maps in the data root."""

TRUTH: tuple[type[FrameRecord], ...] = (Label, Project)
"""The tables that source "points" reads."""

_PROBABILITIES = (
    *("confusion", "synonyms", "drop", "merge", "persistence", "steadiness", "boundary_steadiness"),
    *("boundary_places", "score_noise"),
)

_LENGTHS = ("boundary_shift_px", "jitter_px", "jitter_deg", "patch_px", "half_life_s", "vector_noise", "grow_px")

_POSITIVE = ("boundary_length_px", "drop_area_px", "place_m", "slic_px", "slic_compactness")


@dataclass(frozen=True)
class OracleConfig(TeacherSection):
    """Section `[teacher]` with `name = "oracle"`. By default nothing is spoilt; recipes list what is.

    `source` is "maps" or "points", see above. `seed` of the noise; `dims` of the vectors, 8 or more. Lengths are in
    pixels of the camera image, whatever `segment.scale`; strengths 0 change nothing.

    Where things are. Boundaries move by about `boundary_shift_px` (standard deviation), in waves of about
    `boundary_length_px`, which should be several times the shift or small things tear. Then the whole map is moved by a
    normal `jitter_px` down and right, and turned by a normal `jitter_deg` degrees: a calibration slightly off.

    What is judged as one. A region is a connected piece of one fine class; pieces of uncountable classes are cut into
    patches of about `patch_px` (8 or more, or 0 for whole pieces). The following are probabilities per region, 0..1.

    What they are called. `confusion` times the share in `confused`, rows of (class, taken for, share): a region is
    taken for another class. `synonyms`: it gets another prompt than the first of its fine class, any of its class (of
    its fine class, where that is ignored). `drop`: it is lost in its surroundings, the likelier the smaller it is, by
    a factor exp(-area / `drop_area_px`); areas in square pixels of the image. `merge`: a larger neighbour of another
    class swallows it. `persistence` is the share of things and places about which confusion, drop and merge are decided
    once for a drive, not anew in each image: a teacher that takes a truck for a bus is mostly wrong again half a second
    later. It needs source "maps", whose maps of places tell what is the same; a region is then of one place, and there
    are no other patches.

    How long mistakes last. `steadiness` in the place of `persistence` says what real networks do (bench.real_fit): what
    decides about a place is a normal number of which that share of the variance belongs to the place and its class, the
    rest to the image, so that mistakes come and go where a call is close and stay elsewhere. With `half_life_s` half of
    all places are decided anew in that many seconds; 0 is never. Places are those of the maps, or with "points" squares
    of the ground, `place_m` wide. `boundary_steadiness` is the share of the variance of boundaries' shifts and of the
    jitter that stays where it is in the images of a camera. `boundary_places` is the share of the variance of shifts
    that belongs to the place in the world that a boundary is at, and fades with the half-life; `boundary_steadiness`
    divides the rest, and pixels that a boundary was moved over are scored as mistakes. `range_slope` moves the normal
    number down for each doubling of the range beyond 10 m, so that mistakes are the likelier the farther away; shares
    hold at 10 m.

    What is said of it. `vector_noise`: expected length of the Gaussian noise that is added to a segment's vector, which
    is its prompt's, before it is scaled to length 1 again; 1 leaves a cosine of about 0.7. `score_noise`, 0..1: the
    part of the score that is chance; the rest is the share of the segment's pixels that it names right. `scored` in its
    place are scores of what was judged as one, pixel by pixel where `group.scores` asks for them: rows of (where right,
    where wrong), evenly spaced quantiles from the least to the greatest; the closer a call, the lower.

    For "points": superpixels of `slic_px` x `slic_px` pixels and of `slic_compactness`; those without a labelled point
    are named as the nearest with one, if their centres are `grow_px` or less apart, and are else no segment.
    """

    has_encode = False
    simulated = True
    scores_pixels = True

    name: str = "oracle"
    source: str = "maps"
    seed: int = 0
    dims: int = 64
    boundary_shift_px: float = 0.0
    boundary_length_px: float = 40.0
    jitter_px: float = 0.0
    jitter_deg: float = 0.0
    patch_px: float = 0.0
    confusion: float = 0.0
    confused: tuple[tuple[str, str, float], ...] = CONFUSED
    synonyms: float = 0.0
    drop: float = 0.0
    drop_area_px: float = 200.0
    merge: float = 0.0
    persistence: float = 0.0
    steadiness: float = 0.0
    half_life_s: float = 0.0
    place_m: float = 2.0
    boundary_steadiness: float = 0.0
    boundary_places: float = 0.0
    range_slope: float = 0.0
    vector_noise: float = 0.0
    score_noise: float = 0.0
    scored: tuple[tuple[float, float], ...] = ()
    slic_px: float = 20.0
    slic_compactness: float = 10.0
    grow_px: float = 30.0

    def __post_init__(self) -> None:
        if self.name != "oracle":
            raise ValueError(f'name is "{self.name}"; these are the settings of "oracle"')
        if self.source not in ("maps", "points"):
            raise ValueError(f'source is "{self.source}"; choose "maps" or "points"')
        if self.seed < 0 or self.dims < 8:
            raise ValueError(f"seed is {self.seed} and dims {self.dims}; expected at least 0, and at least 8")
        for names, least, most in ((_PROBABILITIES, 0.0, 1.0), (_LENGTHS, 0.0, math.inf), (_POSITIVE, 0.5, math.inf)):
            for name in names:
                value: float = getattr(self, name)
                if not (least <= value <= most and math.isfinite(value)):
                    raise ValueError(f"{name} is {value}; expected a finite number, {least:g} to {most:g}")
        if self.persistence and self.source != "maps":
            raise ValueError(
                f'persistence is {self.persistence} and source "{self.source}"; only source "maps" knows what is the '
                "same in two images"
            )
        if self.steadiness and self.persistence:
            raise ValueError("steadiness and persistence are both set; each says how long mistakes last, so choose one")
        if not -2 <= self.range_slope <= 2:
            raise ValueError(f"range_slope is {self.range_slope}; expected -2 to 2")
        self._check_scored()
        if 0 < self.patch_px < 8:
            raise ValueError(f"patch_px is {self.patch_px}; expected 0, for whole regions, or at least 8")

    def _check_scored(self) -> None:
        """Raise ValueError for scores that are no quantiles."""
        if any(isinstance(row, str) or len(row) != 2 for row in self.scored):
            raise ValueError(f"scored has {list(self.scored)}; expected rows of two scores: where right, where wrong")
        for side in zip(*self.scored, strict=True):
            if list(side) != sorted(side) or not 0 < side[0] <= side[-1] <= 1:
                raise ValueError(
                    f"scored has {list(side)}; expected scores above 0 and up to 1, from least to greatest"
                )
        if len(self.scored) == 1:
            raise ValueError("scored has one row; expected two at least: the least score and the greatest")
        if self.scored and self.score_noise:
            raise ValueError("scored and score_noise are both set; each says how sure the teacher is, so choose one")

    @property
    def knows_places(self) -> bool:
        """Whether mistakes belong to places."""
        return bool(self.persistence or self.steadiness or self.moves_places)

    @property
    def moves_places(self) -> bool:
        """Whether boundaries are shifted by the place that they stand at."""
        return bool(self.boundary_places and self.boundary_shift_px)

    @property
    def measures_points(self) -> bool:
        """Whether points tell where pixels are: how far, or in which square of the ground."""
        return self.errs_by_range or (self.knows_places and self.source == "points")

    @property
    def errs_by_range(self) -> bool:
        """Whether how often things are taken for others depends on how far they are."""
        return bool(self.range_slope and self.confusion)

    @property
    def scores_from_rows(self) -> bool:
        """Whether scores of pixels take the rows that segments take."""
        return bool(self.scored)

    @property
    def templates(self) -> str:
        """Prompts have no sentences here."""
        return ""

    def idle(self) -> frozenset[str]:
        """Return the settings that change no row, as the others are set: those of a noise of strength 0."""
        idle = {
            "boundary_length_px": not self.boundary_shift_px,
            "confused": not self.confusion,
            "drop_area_px": not self.drop,
            "half_life_s": not (self.steadiness or self.moves_places),
            "place_m": not (self.knows_places and self.source == "points"),
            "boundary_places": not self.boundary_shift_px,
            "boundary_steadiness": not (self.boundary_shift_px or self.jitter_px or self.jitter_deg),
            "range_slope": not self.confusion,
            **dict.fromkeys(("slic_px", "slic_compactness", "grow_px"), self.source == "maps"),
        }
        return frozenset(name for name, is_idle in idle.items() if is_idle)

    def settings(self, stage: str) -> Settings:
        """Return the values that can change the rows of "text" or "segment"; both say that they are simulated."""
        values = self.counted()
        if stage == "text":
            values = {key: value for key, value in values.items() if key == "dims"}
        else:
            values.pop("dims", None)  # the vectors of table `text` have them
            values["source"] = self.source
        return {**values, "name": self.name, "simulated": True}

    @property
    def reads_files(self) -> bool:
        """Whether class maps are read."""
        return self.source == "maps"

    @property
    def index_columns(self) -> tuple[str, ...]:
        """Where and when the sweep was taken, where mistakes belong to places."""
        return ("timestamp_us", "world_from_lidar") if self.steadiness or self.moves_places else ()

    def needs(self) -> tuple[type[FrameRecord], ...]:
        """Return the tables that the truth is read from."""
        measured: tuple[type[FrameRecord], ...] = (Project, Points) if self.measures_points else ()
        return tuple(dict.fromkeys((*(TRUTH if self.source == "points" else ()), *measured)))

    def content(self, ontology: Ontology, data: DataConfig, stage: str) -> Settings:
        """Return what rows depend on beside the section: the way from labels to prompts, and which maps are read."""
        if stage == "text":
            return {"ontology": ontology.label_content(), "groups": [group.name for group in ontology.groups]}
        content = {"ontology": {**ontology.label_content(), **ontology.raw_content()}}
        return content if self.source == "points" else {**content, "maps": f"{MAPS}/{data.version}"}
