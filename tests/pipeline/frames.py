"""Frames and cameras that tests of teachers look through: no lens, no pose of their own."""

from __future__ import annotations

import numpy as np

from pipeline.frame import Camera, Frame


def frame_of(*cameras: Camera) -> Frame:
    """Return a frame with these cameras."""
    return Frame("f", "s", 0, "l", "l.bin", None, np.eye(4), np.eye(4), cameras)


def camera_of(name: str, width_px: int, height_px: int) -> Camera:
    """Return a camera whose image is `<name>.png`."""
    return Camera(name, name, f"{name}.png", 0, np.eye(3), np.eye(4), width_px=width_px, height_px=height_px)
