"""`python -m bench.doctor`: how many faults the doctor finds, and how often it cries wolf, on frames that are right.

Right frames are given one fault each by chance; a fault counts as found where the doctor would end with a problem.
Real frames are those of `shared/data`; the synthetic city is written first where it is not there. Writes the table of
docs/reliability.md.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.spatial.transform import Rotation

from bench.city.config import SIZES, CityConfig
from bench.city.generate import write_city
from manifests.sections.data import DataConfig
from manifests.storage.places import root_of
from pipeline.checks.alignment import fit_of
from pipeline.checks.belonging import MOST_PLACES, Around, Scenes, check_belonging
from pipeline.checks.calibration import Case, better_guesses, by_camera, case_of, judge_cases
from pipeline.checks.looks import Look, look_at, motions
from pipeline.checks.mounting import check_mounting
from pipeline.checks.signals import Array, Marks, Picture, View
from pipeline.checks.sweeps import check_sweeps
from pipeline.checks.times import check_times
from pipeline.datasets.registry import open_dataset
from pipeline.frame import Frame
from pipeline.geometry import inverse_pose
from pipeline.stages.index import check_frame

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
RELIABILITY = Path(__file__).resolve().parent.parent / "docs" / "reliability.md"
FRAMES = 4  # half as many as the doctor opens by itself: harder, and sooner done
CITY = SIZES["demo"]
FAST_M_S = 5.0
LEAST_TURN_DEG = 5.0
MARK = "doctor: written by bench/doctor.py"


@dataclass(frozen=True, eq=False)
class Bed:
    """Frames that are right, as the doctor opens them together, and what it makes of them."""

    name: str
    looks: tuple[Look, ...]
    cases: tuple[Case, ...]
    around: Around


Fault = Callable[[Bed, np.random.Generator], "Bed | None"]
"""Makes a bed with a fault by chance; None where such a bed cannot have it. Cases are those of the right one."""


# -- beds


def open_beds(data: DataConfig, name: str, n_beds: int) -> list[Bed]:
    """Return beds of at most `FRAMES` frames of a data set, each begun at another frame."""
    dataset, root = open_dataset(data), root_of(data)
    frames = list(dataset.frames())
    moving = motions(frames)
    chosen = [
        sorted({round(place) for place in np.linspace(start, len(frames) - 1, min(FRAMES, len(frames)))})
        for start in range(n_beds if len(frames) > FRAMES else 1)
    ]
    looks = {
        place: look_at(dataset, root, check_frame(dataset, root, frames[place]), moving.get(frames[place].frame_id))
        for place in sorted({place for places in chosen for place in places})
    }
    around = Scenes(frames, root)
    return [make_bed(name, [looks[place] for place in places], around) for places in chosen]


def make_bed(name: str, looks: Sequence[Look], around: Around) -> Bed:
    """Return a bed of frames that are right."""
    cameras = by_camera(looks)
    return Bed(name, tuple(looks), tuple(case_of(camera, views, cameras) for camera, views in cameras.items()), around)


def with_views(bed: Bed, change: Callable[[Look, View], View]) -> Bed:
    """Return the bed with every view changed; a view that comes back as it was is not judged again."""
    looks = [replace(look, views=tuple(change(look, view) for view in look.views)) for look in bed.looks]
    return replace(bed, looks=tuple(looks))


def some_cameras(bed: Bed, rng: np.random.Generator) -> set[str]:
    """Return one camera by chance, or all of them."""
    names = [case.name for case in bed.cases]
    return {str(rng.choice(names))} if rng.random() < 0.5 else set(names)


def posed(view: View, cam_from_lidar: Array) -> View:
    """Return the view with another pose of its camera."""
    return replace(view, camera=replace(view.camera, cam_from_lidar=cam_from_lidar))


# -- faults


def other_axes(bed: Bed, rng: np.random.Generator) -> Bed:
    """Return the same frames as by a LiDAR that is turned about its z axis: as right as before."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("z", rng.uniform(-180, 180), degrees=True).as_matrix()

    def turned(look: Look) -> Look:
        rotation = turn[:3, :3].T.astype(np.float32)
        marks = [Marks(one.xyz_m @ rotation, one.weight) for one in look.views[0].marks]
        back = inverse_pose(turn)
        views = [
            replace(posed(view, view.camera.cam_from_lidar @ back), marks=(marks[0], marks[1])) for view in look.views
        ]
        frame = replace(look.frame, ego_from_lidar=look.frame.ego_from_lidar @ back)
        return replace(look, frame=frame, xyz_m=look.xyz_m @ rotation, views=tuple(views), motion=None)

    looks = tuple(turned(look) for look in bed.looks)
    cameras = by_camera(looks)
    return replace(bed, looks=looks, cases=tuple(replace(case, views=cameras[case.name]) for case in bed.cases))


def wrong_matrix(spoil: Callable[[Array], Array]) -> Fault:
    """Return the fault of a matrix that is spoilt: cam_from_lidar or ego_from_cam, of one camera or of all.

    Some matrices are hardly spoilt: the quaternion of a camera that looks ahead, 0.5, -0.5, 0.5, -0.5, is the same turn
    read either way, but for the degree by which it looks elsewhere. Faults turn a camera by `LEAST_TURN_DEG` or more.
    """

    def fault(bed: Bed, rng: np.random.Generator) -> Bed:
        while True:
            right = other_axes(bed, rng) if rng.random() < 0.5 else bed
            wrong = spoilt(right, rng)
            if most_turn_deg(right, wrong) >= LEAST_TURN_DEG:
                return wrong

    def spoilt(bed: Bed, rng: np.random.Generator) -> Bed:
        names, of_ego = some_cameras(bed, rng), rng.random() < 0.5

        def change(look: Look, view: View) -> View:
            if view.camera.name not in names:
                return view
            if not of_ego:
                return posed(view, spoil(view.camera.cam_from_lidar))
            ego_from_cam = look.frame.ego_from_lidar @ inverse_pose(view.camera.cam_from_lidar)
            return posed(view, inverse_pose(spoil(ego_from_cam)) @ look.frame.ego_from_lidar)

        return with_views(bed, change)

    return fault


def most_turn_deg(right: Bed, wrong: Bed) -> float:
    """Return by how much a camera is turned at most, in degrees."""
    turns = [
        before.camera.cam_from_lidar[:3, :3].T @ after.camera.cam_from_lidar[:3, :3]
        for one, other in zip(right.looks, wrong.looks, strict=True)
        for before, after in zip(one.views, other.views, strict=True)
    ]
    return float(np.degrees(Rotation.from_matrix(turns).magnitude().max()))


def transposed(pose: Array) -> Array:
    """Return a pose whose rotation is the wrong way round, and whose translation is not."""
    spoilt = pose.copy()
    spoilt[:3, :3] = pose[:3, :3].T
    return spoilt


def xyzw(pose: Array) -> Array:
    """Return a pose whose quaternion was written x, y, z, w and read as w, x, y, z."""
    spoilt = pose.copy()
    quaternion = Rotation.from_matrix(pose[:3, :3]).as_quat()  # x, y, z, w
    spoilt[:3, :3] = Rotation.from_quat(quaternion, scalar_first=True).as_matrix()
    return spoilt


def swapped(bed: Bed, rng: np.random.Generator) -> Bed | None:
    """Two cameras have each other's pose."""
    names = [case.name for case in bed.cases]
    if len(names) < 2:
        return None
    first, second = (str(name) for name in rng.choice(names, 2, replace=False))
    other = {first: second, second: first}

    def change(look: Look, view: View) -> View:
        poses = {one.camera.name: one.camera.cam_from_lidar for one in look.views}
        return posed(view, poses[other[view.camera.name]]) if view.camera.name in other else view

    return with_views(bed, change)


def scaled(bed: Bed, rng: np.random.Generator) -> Bed:
    """Intrinsics are those of images 0.4 to 0.8 or 1.25 to 2.5 times as large."""
    scale = float(np.exp(rng.uniform(np.log(1.25), np.log(2.5))) ** rng.choice([-1, 1]))
    names = some_cameras(bed, rng)

    def change(look: Look, view: View) -> View:
        matrix = view.camera.intrinsics * [[scale], [scale], [1]]
        return replace(view, camera=replace(view.camera, intrinsics=matrix)) if view.camera.name in names else view

    return with_views(bed, change)


def yawed(bed: Bed, rng: np.random.Generator) -> Bed:
    """Return a camera is turned about the vehicle's up by 5 to 180 degrees, or the LiDAR is."""
    names, angle = some_cameras(bed, rng), rng.uniform(5, 180) * rng.choice([-1, 1])
    of_lidar = len(names) > 1

    def change(look: Look, view: View) -> View:
        if view.camera.name not in names:
            return view
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_rotvec(np.radians(angle) * look.up).as_matrix()
        if of_lidar:
            return posed(view, view.camera.cam_from_lidar @ turn)
        lidar_from_cam = inverse_pose(view.camera.cam_from_lidar)
        lidar_from_cam[:3, :3] = turn[:3, :3] @ lidar_from_cam[:3, :3]
        return posed(view, inverse_pose(lidar_from_cam))

    return with_views(bed, change)


def late(bed: Bed, rng: np.random.Generator) -> Bed | None:
    """Images are taken 0.2 to 1 s earlier or later than their times say, where the vehicle drives 5 m/s or more."""
    looks = [look for look in bed.looks if look.motion and look.motion.speed_m_s >= FAST_M_S]
    if not looks:
        return None
    names, off_s = some_cameras(bed, rng), rng.uniform(0.2, 1.0) * rng.choice([-1, 1])
    fast = replace(bed, looks=tuple(looks))

    def change(look: Look, view: View) -> View:
        if view.camera.name not in names or look.motion is None:
            return view
        return posed(view, view.camera.cam_from_lidar @ look.motion.later_from_now([off_s])[0])

    return with_views(fast, change)


@dataclass(frozen=True, eq=False)
class Shifted:
    """The frames around a frame where the images of some cameras stand so many places too early."""

    right: Around
    cameras: frozenset[str]
    places: int

    def _of(self, camera: str, places: int) -> int:
        return places + self.places if camera in self.cameras else places

    def picture(self, frame: Frame, camera: str, places: int) -> Picture | None:
        """Return the image that a camera has in the frame so many places later; None where there is none."""
        return self.right.picture(frame, camera, self._of(camera, places))

    def image_path(self, frame: Frame, camera: str, places: int) -> str:
        """Return the file of that image, nothing where there is none."""
        return self.right.image_path(frame, camera, self._of(camera, places))

    def step_s(self, frame: Frame) -> float:
        """Return how far its scene's frames are apart, in seconds."""
        return self.right.step_s(frame)


def of_other_frames(bed: Bed, rng: np.random.Generator) -> Bed | None:
    """Images are those of frames 0.2 to 1 s earlier or later in the scene, where the vehicle drives 5 m/s or more."""
    fast = [look for look in bed.looks if look.motion and look.motion.speed_m_s >= FAST_M_S]
    names = some_cameras(bed, rng)
    choices = []
    for sign in (-1, 1):
        for n in range(1, MOST_PLACES + 1):
            have = [look for look in fast if bed.around.image_path(look.frame, min(names), sign * n)]
            if have and 0.199 <= n * bed.around.step_s(have[0].frame) <= 1.001:
                choices.append((sign * n, have))
    if not choices:
        return None
    places, have = choices[int(rng.integers(len(choices)))]
    around = Shifted(bed.around, frozenset(names), places)

    def change(look: Look, view: View) -> View:
        picture = around.picture(look.frame, view.camera.name, 0) if view.camera.name in names else None
        return replace(view, picture=picture) if picture else view

    return with_views(replace(bed, looks=tuple(have), around=around), change)


def wrong_columns(bed: Bed, rng: np.random.Generator) -> Bed:
    """Sweeps of 3 to 6 columns (x, y, z, intensity, ring, time) are read as if they had 4 or 5."""
    are = int(rng.integers(3, 7))
    read_as = int(rng.choice([one for one in (4, 5) if one != are]))

    def change(look: Look) -> Look:
        n = len(look.xyz_m)
        ring, time = np.arange(n) % 32, np.linspace(0, 0.1, n)
        flat = np.column_stack([look.xyz_m, look.intensity, ring, time])[:, :are].astype(np.float32).ravel()
        rows = flat[: len(flat) // read_as * read_as].reshape(-1, read_as)
        return replace(look, xyz_m=rows[:, :3].copy(), intensity=rows[:, 3].copy(), views=())

    return replace(bed, looks=tuple(change(look) for look in bed.looks))


FAULTS: dict[str, Fault] = {
    "pose inverted": wrong_matrix(inverse_pose),
    "rotation transposed": wrong_matrix(transposed),
    "quaternion x, y, z, w": wrong_matrix(xyzw),
    "two cameras swapped": swapped,
    "intrinsics of another size": scaled,
    "turned by 5 degrees or more": yawed,
    "images 0.2 s off or more, at 5 m/s or more": late,
    "images of frames 0.2 s or more away, at 5 m/s or more": of_other_frames,
    "wrong number of columns": wrong_columns,
}


# -- judging


def is_found(bed: Bed) -> bool:
    """Return whether the doctor ends with a problem; cameras that are as they were are not judged again.

    It stops at the first problem, and asks what is cheap first; the doctor itself says all it finds.
    """
    if any(finding.level == "problem" for finding in check_sweeps([look for look in bed.looks if not look.views])):
        return True
    cameras, fits = by_camera(bed.looks), {}
    known = {case.name: case for case in bed.cases}
    changed = [name for name, views in cameras.items() if not same(views, known[name])]
    for name in changed:
        fits[name] = fit_of([view for _, view in cameras[name]])
        if any(one.level == "problem" for one in check_mounting(name, cameras[name], fits[name].aligned)):
            return True
    if isinstance(bed.around, Shifted) and next(check_belonging(bed.looks, bed.around), None):
        return True
    for name in changed:
        if next(better_guesses(name, cameras[name], cameras, fits[name]), None):
            return True
    cases = [replace(known[name], views=views, fit=fits.get(name, known[name].fit)) for name, views in cameras.items()]
    return any(finding.level == "problem" for finding in judge_cases(cases))


def same(views: Sequence[tuple[Look, View]], case: Case) -> bool:
    """Return whether views are among those of a case, untouched."""
    untouched = {id(view) for _, view in case.views}
    return all(id(view) in untouched for _, view in views)


def hit_rates(beds: Sequence[Bed], trials: int) -> Iterator[tuple[str, str, int, int]]:
    """Yield kind of fault, name of the data, faults found and faults made."""
    for kind, fault in FAULTS.items():
        counts: dict[str, list[int]] = {}
        rng = np.random.default_rng(zlib.crc32(kind.encode()))
        able = [bed for bed in beds if fault(bed, np.random.default_rng(0)) is not None]
        names = sorted({bed.name for bed in able})
        for trial in range(trials):
            here = [bed for bed in able if bed.name == names[trial % len(names)]]
            spoilt = fault(here[int(rng.integers(len(here)))], rng)
            assert spoilt is not None
            found = counts.setdefault(spoilt.name, [0, 0])
            found[0] += is_found(spoilt)
            found[1] += 1
        for name, (n_found, n_made) in counts.items():
            yield kind, name, n_found, n_made


def false_alarms(bed: Bed) -> list[str]:
    """Return the problems that are told of frames that are right: all together, and each frame alone."""
    told = [*judge_cases(bed.cases), *check_sweeps(bed.looks), *check_times([look.frame for look in bed.looks])]
    told += check_belonging(bed.looks, bed.around)
    for look in bed.looks:
        told += judge_cases(make_bed(bed.name, [look], bed.around).cases)
        told += check_belonging([look], bed.around)
    return [finding.text for finding in told if finding.level == "problem"]


def real_beds(shared: Path) -> list[Bed]:
    """Return beds of all real frames there are."""
    kitti = str(shared / "semantickitti-runs")
    return [
        *open_beds(DataConfig(root=str(shared / "nuscenes-real"), version="v1.0-mini"), "nuScenes", 1),
        *open_beds(DataConfig(root=str(shared / "tri-dgp-nuscenes"), version="v1.0-mini"), "TRI's car", 1),
        *open_beds(DataConfig(dataset="semantic_kitti", root=kitti, ontology="semantic_kitti"), "SemanticKITTI", 4),
    ]


def city_beds(root: Path, config: CityConfig = CITY) -> list[Bed]:
    """Return beds of the synthetic city, which is written where it is not there."""
    if not (root / config.version).is_dir():
        write_city(root, config, 2, lambda scene: None)
    return open_beds(DataConfig(root=str(root), version=config.version), "the city", 2)


def table(beds: Sequence[Bed], trials: int) -> str:
    """Return the table of docs/reliability.md."""
    names = list(dict.fromkeys(bed.name for bed in beds))
    rates: dict[str, dict[str, tuple[int, int]]] = {}
    for kind, name, found, made in hit_rates(beds, trials):
        rates.setdefault(kind, {})[name] = found, made
    lines = [f"| fault | {' | '.join(names)} | found |", f"|---|{'---:|' * (len(names) + 1)}"]
    for kind, by_name in rates.items():
        cells = ["{} of {}".format(*by_name[name]) if name in by_name else "" for name in names]
        found, made = (sum(one[part] for one in by_name.values()) for part in (0, 1))
        lines.append(f"| {kind} | {' | '.join(cells)} | {found / made:.1%} |")
    alarms = [text for bed in beds for text in false_alarms(bed)]
    n_frames = len({look.frame.frame_id for bed in beds for look in bed.looks})
    lines += ["", f"False alarms on the same {n_frames} frames as they are, together and each alone: {len(alarms)}."]
    return "\n".join(lines + [f"- {text}" for text in alarms])


def write_between(path: Path, text: str) -> None:
    """Put text between the two marks in a page."""
    page = path.read_text(encoding="utf-8")
    pattern = re.compile(f"(<!-- {re.escape(MARK)} -->\n).*?(<!-- end of doctor -->)", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"{path} has no place for the table: a line <!-- {MARK} --> and one <!-- end of doctor -->")
    path.write_text(pattern.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page), encoding="utf-8")


def main(
    trials: Annotated[int, typer.Option(min=1, help="How many faults of each kind.")] = 200,
    shared: Annotated[Path, typer.Option(help="Folder of the real data sets.")] = SHARED,
    city: Annotated[Path, typer.Option(help="The synthetic city, written where it is not there.")] = Path(
        "data/doctor"
    ),
    write: Annotated[bool, typer.Option(help="Write the table into docs/reliability.md.")] = False,
) -> None:
    """Count how many injected faults the doctor finds, and its false alarms."""
    text = table([*real_beds(shared), *city_beds(city)], trials)
    print(text)
    if write:
        write_between(RELIABILITY, text)


if __name__ == "__main__":
    typer.run(main)
