"""Descriptions of scenes of data set `folder`, small and with all that one can say, and a recipe over real drives."""

from __future__ import annotations

from pathlib import Path

POINTS = 'points = "points/{frame}.npy"\n'
LABELS = 'labels = "labels/{frame}.npy"\n'
MOUNT = "ego_from_lidar = { rotation = [1, 0, 0, 0], translation = [0, 0, 1.8] }\n"
FRONT = """\
[[camera]]
name = "front"
images = "front/{frame}.png"
intrinsics = [[4, 0, 4], [0, 4, 3], [0, 0, 1]]
cam_from_lidar = [[0, -1, 0, 0.5], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
"""
REAR = """\
[[camera]]
name = "rear"
images = "rear/{frame}.png"
intrinsics = [[4, 0, 4], [0, 4, 3], [0, 0, 1]]
ego_from_cam = { rotation = [0.5, -0.5, -0.5, 0.5], translation = [-1, 0, 1.8] }
"""
LATER = """\
[[frame]]
name = "b"
timestamp_us = 2000000
world_from_ego = { rotation = [1, 0, 0, 0], translation = [7, 0, 0] }
without = ["front"]
"""
FIRST = """\
[[frame]]
name = "a"
timestamp_us = 1000000
world_from_ego = { rotation = [1, 0, 0, 0], translation = [0, 0, 0] }
[frame.image.front]
"""
ELSEWHERE = 'file = "elsewhere/1.png"\n'
EXPOSED = """\
timestamp_us = 1000050
world_from_ego = { rotation = [1, 0, 0, 0], translation = [0.25, 0, 0] }
"""

SMALL = POINTS + MOUNT + FRONT + FIRST + EXPOSED
"""One camera, one frame."""
SCENE = "\n".join((POINTS + LABELS + MOUNT, FRONT, REAR, LATER, FIRST + ELSEWHERE + EXPOSED))
"""Two cameras and two frames, the later one first and without its front image."""


def clip_over(root: Path) -> str:
    """Return the recipe of a tiny dense CLIP with random weights over drives of data set `folder`."""
    return f"""
        [data]
        dataset = "folder"
        root = "{root}"
        [teacher]
        name = "clip_dense"
        model = "tiny"
        weights = "random:0"
        short_side_px = 112
        [text]
        templates = "single"
        [segment]
        scale = 0.1
        """
