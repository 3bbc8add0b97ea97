"""Whether points land where the image shows them: a verdict for every camera, and where else they would fit.

A camera whose marks fit where it is, and nowhere better, is right. Where they fit better by another angle, another
size of image, another time, or the pose of another camera, that is said. Where they fit nowhere, as at night, that
alone is a fault only beside cameras that fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from pipeline.checks.alignment import ALIGNED, Fit, ahead_only, best_turns, fit_of, level_frame, measure, turned
from pipeline.checks.findings import Finding
from pipeline.checks.looks import Look, Motion
from pipeline.checks.mounting import check_mounting, share_seen
from pipeline.checks.signals import Array, View

BETTER = 2.0  # deviations by which another calibration must fit better to be believed
ALONE = 6.0  # and a turn, of which there are many, by a single frame: chance came to 5.3 in one of the city
TRUSTED_FRAMES = 3  # from so many on, a camera that fits nowhere is wrong where others fit
NOWHERE = 3.0  # such a camera scores less
AT_ONCE_DEG = 2.0  # turns of several cameras that differ less are one
_ROLLS_DEG = np.array([a for a in range(-15, 16) if a])
_SCALES = 1.04 ** np.array([a for a in range(-26, 27) if a])
_WAYS_M = np.concatenate([np.arange(0.2, 3, 0.2), np.arange(3, 9, 0.4)])
_SLOW_M_S = 1.0  # slower, a wrong time moves nothing
_TURNED_DEG = 1.0  # a best fit that is nearer than this may be motion, or the clock of a camera

Views = list[tuple[Look, View]]


@dataclass(frozen=True, eq=False)
class Guess:
    """Another calibration that was tried: `what` it is, and how well marks fit with it; `turn_deg` if it is a turn."""

    what: str
    fit: Fit
    turn_deg: float | None = None
    moved: bool = False


@dataclass(frozen=True, eq=False)
class Case:
    """One camera: its views, how well marks fit, and the other calibration that fits better, if there is one."""

    name: str
    views: Views
    fit: Fit
    guess: Guess | None


def check_calibration(looks: Sequence[Look]) -> Iterator[Finding]:
    """Yield whether points land in every camera, and whether they land where the image shows them."""
    cameras = by_camera(looks)
    if not cameras:
        yield Finding("note", "calibration", "there are no cameras: nothing can be named from images")
        return
    yield told_shares(looks)
    cases = [case_of(name, views, cameras) for name, views in cameras.items()]
    yield from judge_cases(cases)


def by_camera(looks: Sequence[Look]) -> dict[str, Views]:
    """Return the views of every camera, by its name, with the frames they belong to."""
    cameras: dict[str, Views] = {}
    for look in looks:
        for view in look.views:
            cameras.setdefault(view.camera.name, []).append((look, view))
    return cameras


def told_shares(looks: Sequence[Look]) -> Finding:
    """Return how much of a sweep the cameras see."""
    shares = {
        name: np.mean([share_seen(look.xyz_m, view, view.camera.cam_from_lidar) for look, view in views])
        for name, views in by_camera(looks).items()
    }
    told = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    return Finding("ok", "calibration", f"of a sweep's points the cameras see: {told}")


def case_of(name: str, views: Views, cameras: Mapping[str, Views]) -> Case:
    """Return how well the marks of a camera fit, and what would fit better; `cameras` are all, for swapped poses."""
    own = fit_of([view for _, view in views])
    better = better_guesses(name, views, cameras, own)
    return Case(name, views, own, max(better, key=lambda guess: guess.fit.score, default=None))


def better_guesses(name: str, views: Views, cameras: Mapping[str, Views], own: Fit) -> Iterator[Guess]:
    """Yield the other calibrations that fit better than a camera's own; turns and swaps where its own does not fit."""
    tried = [by_time(views, own), by_lens(views, own), by_roll(views, own)]
    if not own.aligned:
        tried = [by_swap(name, views, cameras), *tried, by_turn(views)]
    for guess in chain(*tried):
        alone = guess.turn_deg is not None and len(views) == 1
        if guess.fit.score >= max(ALONE if alone else ALIGNED, own.score + BETTER):
            yield guess


def judge_cases(cases: Sequence[Case]) -> Iterator[Finding]:
    """Yield what was found of all cameras together."""
    told = ", ".join(f"{case.name} {case.fit.score:.1f}" for case in cases)
    yield Finding("ok", "calibration", f"images and sweeps fit ({ALIGNED} and more is sure): {told}")
    aligned = [case for case in cases if case.fit.aligned and not case.guess]
    wrong = set()
    for case in cases:
        for finding in check_mounting(case.name, case.views, case.fit.aligned and not case.guess):
            wrong |= {case.name} if finding.level == "problem" else set()
            yield finding
    yield from judge_together(cases)
    for case in cases:
        if case.guess:
            text = f"{case.name}: marks of the sweep fit {case.guess.what} ({case.guess.fit.score:.1f} deviations "
            text += (
                f"instead of {case.fit.score:.1f}). Look at `make pictures RECIPE=...`, where points lie on the images"
            )
            yield Finding("problem", "calibration", text)
        elif not case.fit.aligned and case.name not in wrong:
            yield nowhere(case, len(aligned), len(cases))


def judge_together(cases: Sequence[Case]) -> Iterator[Finding]:
    """Yield what several cameras say alike, which points at what they have in common."""
    turns = [case.guess.turn_deg for case in cases if case.guess and case.guess.turn_deg is not None]
    if len(turns) > 1 and 2 * len(turns) > len(cases):
        middle = float(np.median(turns))
        if sum(abs((one - middle + 180) % 360 - 180) < AT_ONCE_DEG for one in turns) * 2 > len(cases):
            text = f"{len(turns)} of {len(cases)} cameras fit if all are turned by about {abs(middle):.1f} degrees to "
            text += f"the {'right' if middle > 0 else 'left'}: not they are wrong, but the LiDAR's own pose "
            text += "(ego_from_lidar, in nuScenes layout its row of calibrated_sensor), or the axes of its points"
            yield Finding("problem", "calibration", text)
    moved = sum(bool(case.guess and case.guess.moved) for case in cases)
    if moved > 1 and 2 * moved > len(cases):
        text = f"{moved} of {len(cases)} cameras fit if the vehicle stood elsewhere: the times of images or sweeps, or "
        yield Finding("problem", "calibration", f"{text}the poses of the vehicle at them, are off")


def nowhere(case: Case, n_aligned: int, n_cases: int) -> Finding:
    """Return what to say of a camera whose marks fit nowhere better, and not well where they are."""
    trusted = len(case.views) >= TRUSTED_FRAMES and 2 * n_aligned > n_cases - 1 and n_cases > 1
    if trusted and case.fit.score < NOWHERE:
        text = f"{case.name}: marks of the sweep fit nowhere ({case.fit.score:.1f} deviations), while those of "
        text += f"{n_aligned} other cameras fit; its pose or intrinsics are wrong, its images are distorted, or they "
        text += "belong to other frames. Look at `make pictures RECIPE=...`, where points lie on the images"
        return Finding("problem", "calibration", text)
    text = f"{case.name}: edges are too faint, or too few frames were looked at, to confirm its calibration "
    text += f"({case.fit.score:.1f} deviations, {ALIGNED} would be sure); look at `make pictures RECIPE=...`"
    return Finding("note", "calibration", text)


# -- other calibrations


def by_lens(views: Views, own: Fit) -> Iterator[Guess]:
    """Yield the camera matrix of another size of image, and another focal length, that fit best."""

    def resized(_: Look, view: View, scale: float) -> View:
        matrix = view.camera.intrinsics * [[scale], [scale], [1]]
        return replace(view, camera=replace(view.camera, intrinsics=matrix))

    def zoomed(_: Look, view: View, scale: float) -> View:
        matrix = view.camera.intrinsics.copy()
        matrix[0, 0] *= scale
        matrix[1, 1] *= scale
        return replace(view, camera=replace(view.camera, intrinsics=matrix))

    for change, what in ((resized, "if the camera matrix is"), (zoomed, "if the focal length is")):
        scale = best_of(views, own, _SCALES, change)
        if scale is not None:
            fit = fit_of([change(look, view, scale) for look, view in views])
            text = f"{what} multiplied by {scale:.2f}: intrinsics seem to be those of images of another size"
            yield Guess(text, fit)


def by_roll(views: Views, own: Fit) -> Iterator[Guess]:
    """Yield the roll about the optical axis that fits best."""

    def rolled(_: Look, view: View, angle_deg: float) -> View:
        angle = math.radians(angle_deg)
        rotation = np.eye(4)
        rotation[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        return with_pose(view, rotation @ view.camera.cam_from_lidar)

    angle = best_of(views, own, _ROLLS_DEG, rolled)
    if angle is not None:
        fit = fit_of([rolled(look, view, angle) for look, view in views])
        yield Guess(f"if it is rolled by {angle:.0f} degrees about its optical axis; its pose seems to be wrong", fit)


def by_time(views: Views, own: Fit) -> Iterator[Guess]:
    """Yield how much earlier or later, or farther along, the images seem to have been taken."""
    known = [look.motion for look, _ in views if look.motion]
    speed_m_s = float(np.mean([one.speed_m_s for one in known])) if known else 0.0
    if known and speed_m_s < _SLOW_M_S:
        return

    def moved(look: Look, view: View, way_m: float) -> View:
        motion = look.motion if known else Motion(np.zeros(3), look.frame.ego_from_lidar[0, :3])
        if motion is None:
            return view
        later = motion.later_from_now([way_m / speed_m_s if known else way_m])[0]
        return with_pose(view, view.camera.cam_from_lidar @ later)

    way_m = best_of(views, own, np.concatenate([-_WAYS_M[::-1], _WAYS_M]), moved)
    if way_m is None:
        return
    text = f"if the vehicle is {abs(way_m):.1f} m {'ahead' if way_m > 0 else 'back'} when its images are taken"
    if known:
        late_s = way_m / speed_m_s
        text += f", which is {abs(late_s):.2f} s {'later' if late_s > 0 else 'earlier'} at {speed_m_s:.0f} m/s"
    text += ": times or poses of its images are off, or they belong to other frames"
    yield Guess(text, fit_of([moved(look, view, way_m) for look, view in views]), moved=True)


def by_turn(views: Views) -> Iterator[Guess]:
    """Yield the turns about the upright axis that fit best, all the way round."""
    up = np.mean([look.up for look, _ in views], axis=0)
    plain = [view for _, view in views]
    if np.abs(level_frame(plain[0].camera, up)[:, 2][2]) > 0.9:
        return  # it looks straight up or down, by its pose
    for right_deg, down_deg in best_turns(plain, up):
        fit = fit_of([turned(view, up, right_deg, down_deg) for view in plain])
        if max(abs(right_deg), abs(down_deg)) >= _TURNED_DEG:
            text = (
                f"if it is turned by {abs(right_deg):.1f} degrees to the {'right' if right_deg > 0 else 'left'}; its "
            )
            text += "pose seems to be wrong"
            yield Guess(text, fit, turn_deg=right_deg)


def by_swap(name: str, views: Views, cameras: Mapping[str, Views]) -> Iterator[Guess]:
    """Yield the pose of another camera with which a camera's images fit best."""
    total: dict[str, Array] = {}
    shared: dict[str, list[View]] = {}
    for other, theirs in cameras.items():
        poses = {look.frame.frame_id: view.camera.cam_from_lidar for look, view in theirs}
        both = [(view, poses[look.frame.frame_id]) for look, view in views if look.frame.frame_id in poses]
        if other != name and both:
            shared[other] = [with_pose(view, pose) for view, pose in both]
            total[other] = np.mean([mean_under(view) for view in shared[other]], axis=0)
    if total:
        other = max(total, key=lambda one: float(total[one].sum()))
        yield Guess(f"where it has the pose of {other}; cameras seem to be swapped", fit_of(shared[other]))


def mean_under(view: View) -> Array:
    """Return the mean of each layer under its marks, (2,), by the view's own calibration."""
    return np.asarray(measure(view, view.camera.cam_from_lidar[None], view.camera.intrinsics[None])[0])


def with_pose(view: View, cam_from_lidar: Array) -> View:
    """Return the view of a camera with another pose."""
    return replace(view, camera=replace(view.camera, cam_from_lidar=cam_from_lidar))


def best_of(views: Views, own: Fit, values: Array, change: Callable[[Look, View, float], View]) -> float | None:
    """Return the value for which marks fit best after a change, None unless that is better than with none."""
    total = np.zeros((len(values) + 1, 2))
    for look, view in views:
        near = ahead_only(view)
        cameras = [near.camera, *(change(look, near, float(value)).camera for value in values)]
        poses = np.stack([camera.cam_from_lidar for camera in cameras])
        total += measure(near, poses, np.stack([camera.intrinsics for camera in cameras]))
    gain = (own.weights @ (total - total[:1]).T).max(axis=0)
    return float(values[gain.argmax() - 1]) if gain.argmax() else None
