"""Whether times make sense: their unit, their steps, and those of images beside those of sweeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.checks.findings import Finding
from pipeline.frame import Frame

STEPS_S = (0.004, 20.0)  # between frames of a scene: 250 Hz to three a minute; nuScenes 0.5, KITTI 0.1
APART_S = 0.15  # between an image and its sweep; nuScenes at most 0.05, TRI's car 0.09
FASTEST_M_S = 70.0  # of a vehicle
_UNITS = (("seconds", 1e-6), ("milliseconds", 1e-3), ("nanoseconds", 1e3))


def check_times(frames: Sequence[Frame]) -> Iterator[Finding]:
    """Yield what is wrong with the times of all listed frames, which need not be opened; scenes are in order."""
    scenes: dict[str, list[Frame]] = {}
    for frame in frames:
        scenes.setdefault(frame.scene, []).append(frame)
    steps = {scene: np.diff([frame.timestamp_us for frame in part]) / 1e6 for scene, part in scenes.items()}
    middle = {scene: float(np.median(step)) for scene, step in steps.items() if len(step)}
    found = [*step_faults(scenes, middle), *speed_faults(scenes, middle), *image_faults(frames)]
    yield from found
    if middle and not found:
        apart = [abs(camera.timestamp_us - frame.timestamp_us) / 1e6 for frame in frames for camera in frame.cameras]
        steps_s = dict.fromkeys(f"{step(middle.values()):.3g}" for step in (min, max))  # once where both are the same
        text = f"frames of a scene are {' to '.join(steps_s)} s apart, images and "
        yield Finding("ok", "times", f"{text}sweeps {max(apart, default=0):.3f} s at most")


def step_faults(scenes: dict[str, list[Frame]], middle: dict[str, float]) -> Iterator[Finding]:
    """Yield scenes whose frames come at once, in no order, or at steps of another unit."""
    still = [scene for scene, step in middle.items() if step == 0]
    if still:
        text = f"all frames of {told(still)} have the same time: only their order is known, which is all that `vote` "
        yield Finding("note", "times", f"{text}has to go by")
    odd = [scene for scene, step in middle.items() if step and not STEPS_S[0] <= step <= STEPS_S[1]]
    if odd:
        step = middle[odd[0]]
        fits = [name for name, factor in _UNITS if STEPS_S[0] <= step * 1e6 * (1e-6 / factor) <= STEPS_S[1]]
        unit = f"; they look like {fits[0]}" if len(fits) == 1 else ""
        text = f"frames of {told(odd)} are {step:.6g} s apart, if timestamps are microseconds as expected{unit}. 0.05 "
        yield Finding("problem", "times", f"{text}to 1 s is usual; convert the timestamps")
    back = [name for name, part in scenes.items() if any(np.diff([one.timestamp_us for one in part]) < 0)]
    if back:
        yield Finding("problem", "times", f"times of {told(back)} go back from one frame to the next; sort its frames")


def speed_faults(scenes: dict[str, list[Frame]], middle: dict[str, float]) -> Iterator[Finding]:
    """Yield scenes in which the vehicle would fly, or never moves."""
    fast: dict[str, float] = {}
    still = []
    for scene, step in middle.items():
        part = scenes[scene]
        place = np.array([frame.world_from_lidar[:3, 3] for frame in part])
        way_m = np.linalg.norm(np.diff(place, axis=0), axis=1)
        if len(part) > 2 and not np.isnan(way_m).any() and (way_m == 0).all():
            still.append(scene)
        if step > 0 and np.nanmedian(way_m) / step > FASTEST_M_S:
            fast[scene] = float(np.nanmedian(way_m)) / step
    if fast:
        scene, speed = next(iter(fast.items()))
        text = f"the vehicle would drive {speed:.0f} m/s in {told([*fast])}; are poses metres, and times microseconds?"
        yield Finding("problem", "poses", text)
    if still:
        text = (
            f"the pose of the vehicle is the same in all frames of {told(still)}: unless it stands, poses are unknown, "
        )
        yield Finding("note", "poses", f"{text}and labels must not be learnt from `vote`")


def image_faults(frames: Sequence[Frame]) -> Iterator[Finding]:
    """Yield cameras whose images were taken long before or after their sweeps."""
    apart: dict[str, list[float]] = {}
    for frame in frames:
        for camera in frame.cameras:
            apart.setdefault(camera.name, []).append((camera.timestamp_us - frame.timestamp_us) / 1e6)
    for name, differences in apart.items():
        late = float(np.median(differences))
        worst = max(differences, key=abs)
        if abs(late) > APART_S:
            text = f"{name}: images are {abs(late):.3g} s {'later' if late > 0 else 'earlier'} than sweeps (median); "
            text += f"up to {APART_S} s is usual. Is the unit microseconds in both, and is each image paired with the "
            yield Finding("problem", "times", f"{text}nearest sweep?")
        elif abs(worst) > APART_S:
            n = sum(abs(one) > APART_S for one in differences)
            text = f"{name}: {n} of {len(differences)} images are more than {APART_S} s off their sweeps, at most "
            yield Finding("note", "times", f"{text}{abs(worst):.3g} s; points land beside what they belong to there")


def told(names: Sequence[str]) -> str:
    """Return a few names, and how many more there are."""
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more scenes" if len(names) > 2 else "")
