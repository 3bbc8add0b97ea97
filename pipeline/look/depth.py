"""Pictures of points on images before anything is named: coloured by depth, to judge calibration and times by eye."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manifests.storage.places import Root
from manifests.tables.sensors import Points, Project
from pipeline.look.browse import FrameRows
from pipeline.look.pictures import Panel, dot, draw_panel, from_above, pixels, reduced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEAR_M, FAR_M = 3.0, 60.0
"""Depths between which colours run, in equal steps of the logarithm; beyond them they stay the same."""
DEPTHS = "turbo"
TICKS_M = (3, 5, 10, 20, 40, 60)
DARKENED = 0.75  # the part of an image's brightness that is left, so that points stand out
IMAGE_PX, DOT_PX = 960, 3
LEVELS_M = (-2.5, 3.0)  # heights between which the view from above changes its colour


def depth_rgb(depth_m: NDArray[Any], low: float = NEAR_M, high: float = FAR_M) -> NDArray[np.float64]:
    """Return the colours of depths, float (n, 3) in 0..1: red is near, blue is far."""
    from matplotlib import colormaps

    share = np.log(np.clip(depth_m, low, high) / low) / np.log(high / low)
    rgb: NDArray[np.float64] = colormaps[DEPTHS](1 - share)[:, :3]
    return rgb


def depth_pictures(item: FrameRows, root: Root, width_px: int) -> list[NDArray[np.uint8]]:
    """Return every image of a frame, (h, w, 3), reduced to at most `width_px`, with the points it sees by depth.

    Near points lie on top of far ones, and those behind something nearer are left out. Raises FrameError if an image
    cannot be read.
    """
    project, pictures = item.rows[Project], []
    for view, camera in enumerate(item.frame.cameras):
        image, scale = reduced(root, camera, width_px)
        picture = (DARKENED * image).astype(np.uint8)
        seen = np.flatnonzero((project.view == view) & ~project.occluded)
        seen = seen[np.argsort(-project.depth_m[seen], kind="stable")]
        colours = (255 * depth_rgb(project.depth_m[seen])).round().astype(np.uint8)
        dot(picture, *pixels(project, seen, scale), colours, DOT_PX)
        pictures.append(picture)
    return pictures


def depth_panels(item: FrameRows) -> list[Panel]:
    """Return the views from above of a frame without labels: heights of all points, and which cameras see them."""
    from matplotlib import colormaps

    points, project = item.rows[Points], item.rows[Project]
    up = item.frame.ego_from_lidar[2, :3]
    share = np.clip((points.xyz_m @ up - LEVELS_M[0]) / (LEVELS_M[1] - LEVELS_M[0]), 0, 1)
    every = np.ones(len(points.xyz_m), np.bool_)
    view = np.full(len(every), -1)
    clear = ~project.occluded
    view[project.point[clear]] = project.view[clear]
    by_view = colormaps["tab10"](view % 10)[:, :3]
    low, high = LEVELS_M
    return [
        Panel("Height", f"{low:g} to {high:g} m above the LiDAR", colormaps["viridis"](share)[:, :3], every),
        Panel("Seen by a camera", f"{np.mean(view >= 0):.0%} of the points", by_view, view >= 0),
    ]


def depth_figure(item: FrameRows, root: Root) -> Figure:
    """Return one picture of a frame before anything is named: points on images by depth, and all of them from above."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    frame, views, planes = item.frame, depth_pictures(item, root, IMAGE_PX), depth_panels(item)
    columns = min(2, max(1, len(views)))
    rows, inch = max(1, -(-len(views) // columns)), 9.0
    shape = max((view.shape[0] / view.shape[1] for view in views), default=0.1)
    figure = Figure(figsize=(inch * columns + 1, (inch * shape + 0.4) * rows + inch + 0.6), layout="constrained")
    heights = [(inch * shape + 0.4) * rows, inch]
    upper, lower = np.ravel(figure.subfigures(2, 1, height_ratios=heights, squeeze=False))
    axes = np.atleast_1d(upper.subplots(rows, columns)).ravel()
    for axis, camera, picture in zip(axes, frame.cameras, views, strict=False):
        axis.imshow(picture)
        later_ms = (camera.timestamp_us - frame.timestamp_us) / 1e3
        axis.set_title(f"{camera.name}, {later_ms:+.0f} ms from the sweep", fontsize=12, parse_math=False)
    for axis in axes:
        axis.set_axis_off()
    scale = ScalarMappable(LogNorm(NEAR_M, FAR_M), ListedColormap(depth_rgb(np.geomspace(NEAR_M, FAR_M, 256))))
    bar = upper.colorbar(scale, ax=axes, fraction=0.02, pad=0.01, ticks=TICKS_M, format="%g")
    bar.minorticks_off()
    bar.set_label("depth in m: colours have to change where things in the image end", fontsize=12)
    for axis, panel in zip(lower.subplots(1, 2), planes, strict=True):
        draw_panel(axis, from_above(frame, item.rows[Points].xyz_m), panel)
        axis.set_title(f"{panel.title}: {panel.about}", fontsize=12)
    names = [camera.name for camera in frame.cameras]
    handles = [
        Line2D([], [], marker="s", ls="", color=f"C{number % 10}", label=name) for number, name in enumerate(names)
    ]
    if handles:
        lower.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    figure.suptitle(f"{frame.scene}  {frame.frame_id}   {frame.n_points:,} points", fontsize=12, parse_math=False)
    return figure
