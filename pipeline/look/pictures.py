"""Pictures of a frame: its images with segments and projected points, and its points from above."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manifests.ontology import Ontology
from manifests.storage.places import Root
from manifests.tables.base import UInt8
from manifests.tables.labels import Target
from manifests.tables.sensors import Points, Project
from manifests.tables.teacher import Segment
from pipeline.frame import Camera, Frame, read_image
from pipeline.look.browse import FrameRows
from pipeline.stages.segment import views_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MASK_OPACITY = 0.45
BIRDS_EYE_M = 50.0  # half the side of the view from above; nuScenes is annotated about this far
RINGS_M = (20.0, 40.0)

# Night sky: every class colour stands out against it, light ones too.
GROUND = "#15181d"
FAINT = "#3d444d"
QUIET = "#7d8894"

SVG_STYLE = ":root { --quiet: #59636e } @media (prefers-color-scheme: dark) { :root { --quiet: #98a3b0 } }"
"""Colours of words and lines in drawings: those of the page that shows them."""

VERDICTS: Mapping[str, str] = {"right": "#4c6a92", "wrong": "#ff5a36", "no answer": "#ffd23f"}
"""Colours of an error map; they differ in lightness, too."""

HEAT = "inferno"
HEAT_FROM = 0.3
"""The colour map of heat, and where it starts: what is darker would be lost against the night sky."""

CHANGES: Mapping[str, str] = {"made right": "#5ee08c", "made wrong": "#ff5a36", "still wrong": "#ffd23f"}
"""Colours of a map of changes, where there is truth to tell."""


@dataclass(frozen=True)
class Panel:
    """One view from above: a title, and per point a colour, float (n, 3) in 0..1, and whether it matters, bool (n,).

    Points that do not matter (no label, nothing to compare with) are drawn small and faint. `about` is a sentence.
    """

    title: str
    about: str
    rgb: NDArray[np.float64]
    shown: NDArray[np.bool_]


def camera_pictures(item: FrameRows, root: Root, ontology: Ontology, width_px: int) -> list[NDArray[np.uint8]]:
    """Return every image of a frame, (h, w, 3), reduced to at most `width_px`, with its segments and points.

    Segments and points are coloured by class; a point by its own pseudo-label, so one that another camera named
    otherwise stands out against its segment. Points behind something nearer are left out. Raises FrameError if an image
    cannot be read.
    """
    project, label = item.rows[Project], item.rows[Target].label
    pictures = []
    for view, (camera, segments) in enumerate(zip(item.frame.cameras, views_of(item.rows[Segment]), strict=True)):
        image, scale = reduced(root, camera, width_px)
        picture = tint(image, segments.label_map(), ontology, segments.prompt_id)
        seen = np.flatnonzero((project.view == view) & ~project.occluded)
        dot(picture, *pixels(project, seen, scale), ontology.rgb_of_class[label[project.point[seen]]])
        pictures.append(picture)
    return pictures


def reduced(root: Root, camera: Camera, width_px: int) -> tuple[NDArray[np.uint8], float]:
    """Return an image (h, w, 3), reduced to at most `width_px`, and by which factor; raises FrameError."""
    from PIL import Image

    scale = min(1.0, width_px / camera.width_px)
    size = max(1, round(camera.width_px * scale)), max(1, round(camera.height_px * scale))
    return np.asarray(Image.fromarray(read_image(root, camera)).resize(size, Image.Resampling.BOX)), scale


def tint(
    image: NDArray[np.uint8], label_map: NDArray[np.uint16], ontology: Ontology, prompt_id: NDArray[np.int32]
) -> NDArray[np.uint8]:
    """Return the image (h, w, 3) with every segment in the colour of its class; the map may be of another size."""
    height, width = image.shape[:2]
    rows = np.arange(height) * label_map.shape[0] // height
    columns = np.arange(width) * label_map.shape[1] // width
    class_of_segment = np.concatenate([[0], ontology.class_of_prompt[prompt_id]]).astype(np.intp)
    classes = class_of_segment[label_map[rows[:, None], columns[None, :]]]
    colour = ontology.rgb_of_class[classes].astype(np.float32)
    opacity = np.where(classes > 0, MASK_OPACITY, 0.0).astype(np.float32)[..., None]
    tinted: NDArray[np.uint8] = ((1 - opacity) * image + opacity * colour).astype(np.uint8)
    return tinted


def pixels(
    project: Project, pair: NDArray[np.integer[Any]], scale: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column (p,) of some pairs of a row of `project` in an image reduced by `scale`."""
    row = ((project.v_px[pair] + 0.5) * scale).astype(int)  # pixel centres are whole numbers, edges halves
    column = ((project.u_px[pair] + 0.5) * scale).astype(int)
    return row, column


def dot(
    picture: NDArray[np.uint8],
    row: NDArray[np.integer[Any]],
    column: NDArray[np.integer[Any]],
    rgb: NDArray[np.uint8],
    side_px: int = 2,
) -> None:
    """Paint a square dot for each point onto a picture (h, w, 3), the last on top; what sticks out is cut off."""
    height, width = picture.shape[:2]
    for down, right in np.ndindex(side_px, side_px):
        inside = (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
        picture[row[inside] + down, column[inside] + right] = rgb[inside]


def panels(labels: Mapping[str, UInt8], ontology: Ontology) -> list[Panel]:
    """Return the views from above of a frame: pseudo-labels, predictions and truth as far as they exist, and errors.

    `labels` are those of its points, (n,), by table.

    The last one compares predictions (without any: pseudo-labels) with the truth, or without truth the two others.
    """
    named = {"target": "Pseudo-labels", "predict": "Predictions", "refine": "Refined labels", "label": "Truth"}
    corrected = "group" in labels and not np.array_equal(labels["group"], labels["target"])
    about = {
        "target": "what the student learns: what the teacher's segments name, corrected"
        if corrected
        else "what the teacher's segments name, and the student learns",
        "predict": "what the student says of every point",
        "refine": "the best labels: after a vote of the sweeps before and after, or flat interaction, or both",
        "label": "read for this report and for evaluation only",
    }
    found = [
        Panel(title, about[name], ontology.rgb_of_class[labels[name]] / 255.0, labels[name] > 0)
        for name, title in named.items()
        if name in labels
    ]
    answer = "predict" if "predict" in labels else "target"
    if "label" in labels:
        found.append(errors(labels[answer], labels["label"], f"Errors of the {named[answer].lower()}"))
    elif answer == "predict":
        found.append(errors(labels["predict"], labels["target"], "Predictions against pseudo-labels", "as taught"))
    return found


def errors(answer: NDArray[np.uint8], reference: NDArray[np.uint8], title: str, right: str = "right") -> Panel:
    """Return an error map: right, wrong or no answer, where the reference has a class."""
    verdict = np.where(answer == 0, 2, np.where(answer == reference, 0, 1))
    colours = np.array([rgb_of(colour) for colour in VERDICTS.values()])
    judged = reference > 0
    share = np.bincount(verdict[judged], minlength=3) / max(1, np.count_nonzero(judged))
    about = ", ".join(
        f"{part:.0%} {name}" for part, name in zip(share, (right, *list(VERDICTS)[1:]), strict=True) if part > 0
    )
    return Panel(title, about or "nothing to compare with", colours[verdict], judged)


def changes(
    before: NDArray[np.uint8], after: NDArray[np.uint8], truth: NDArray[np.uint8] | None, title: str, ontology: Ontology
) -> Panel:
    """Return a map of the points whose label is another than before: by what became of it, or without truth by class.

    Where there is truth, changed points that it says nothing of are left out.
    """
    changed = before != after
    about = [f"{np.count_nonzero(changed & (before == 0)):,} points that had no label got one"]
    about += [f"{np.count_nonzero(changed & (before > 0)):,} labels were replaced"]
    if truth is None:
        return Panel(title, ", ".join(about), ontology.rgb_of_class[after] / 255.0, changed)
    judged = changed & (truth > 0)
    verdict = np.where(after == truth, 0, np.where(before == truth, 1, 2))
    count = np.bincount(verdict[judged], minlength=3)
    about += [f"{number:,} {name}" for number, name in zip(count, CHANGES, strict=True)]
    return Panel(title, ", ".join(about), np.array([rgb_of(colour) for colour in CHANGES.values()])[verdict], judged)


def heat(margin: NDArray[np.float32], low: float, high: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the colour of points by a number each, float (n, 3) in 0..1, and which of them exceed `low`, bool (n,).

    The colours run from `low` to `high`, and stay the same beyond. NaN is what nothing is known of; it is not shown.
    """
    from matplotlib import colormaps

    share = np.clip((np.nan_to_num(margin, nan=low) - low) / max(high - low, 1e-6), 0, 1)
    return colormaps[HEAT](HEAT_FROM + (1 - HEAT_FROM) * share)[:, :3], np.nan_to_num(margin, nan=-np.inf) > low


def heat_scale() -> list[str]:
    """Return colours of the scale of heat, coldest first, such as #4c6a92."""
    rgb, _ = heat(np.linspace(0, 1, 6, dtype=np.float32), 0, 1)
    return ["#" + bytes((255 * one).round().astype(np.uint8)).hex() for one in rgb]


def heat_pictures(
    item: FrameRows, root: Root, rgb: NDArray[np.float64], shown: NDArray[np.bool_], width_px: int
) -> list[NDArray[np.uint8]]:
    """Return every image of a frame, (h, w, 3), grey and dark, with the points that are shown in their colours.

    Sizes, points behind something nearer, and errors as in `camera_pictures`. What is brighter lies on top.
    """
    project, pictures = item.rows[Project], []
    colours = (255 * rgb).round().astype(np.uint8)
    for view, camera in enumerate(item.frame.cameras):
        image, scale = reduced(root, camera, width_px)
        picture = np.repeat((0.6 * image.mean(axis=2, keepdims=True)).astype(np.uint8), 3, axis=2)
        seen = np.flatnonzero((project.view == view) & ~project.occluded & shown[project.point])
        seen = seen[np.argsort(rgb[project.point[seen]].sum(axis=1), kind="stable")]
        dot(picture, *pixels(project, seen, scale), colours[project.point[seen]])
        pictures.append(picture)
    return pictures


def rgb_of(colour: str) -> tuple[float, float, float]:
    """Return a colour such as #4c6a92 as shares of red, green and blue."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red / 255, green / 255, blue / 255


def from_above(frame: Frame, xyz_m: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return points (n, 3), LiDAR frame, as to the right and ahead of the LiDAR, (n, 2), as the vehicle drives."""
    ahead, left = frame.ego_from_lidar[:2, :3]
    seen: NDArray[np.float32] = np.stack([-(xyz_m @ left), xyz_m @ ahead], axis=1).astype(np.float32)
    return seen


def draw_panel(axis: Axes, xyz_m: NDArray[np.float32], panel: Panel) -> None:
    """Draw points to the right and ahead (n, 2) from above, the faint ones below the others, with rings of equal range.

    Pulses that came back from nothing are at the middle, where nothing is seen of them.
    """
    from matplotlib.patches import Circle

    axis.set_facecolor(GROUND)
    for radius_m in RINGS_M:
        axis.add_patch(Circle((0, 0), radius_m, fill=False, color=FAINT, lw=0.8))
        axis.text(0, radius_m, f"{radius_m:g} m", color=QUIET, fontsize=8, ha="center", va="bottom")
    faint = ~panel.shown
    axis.scatter(xyz_m[faint, 0], xyz_m[faint, 1], s=1.2, c=FAINT, lw=0)
    axis.scatter(xyz_m[panel.shown, 0], xyz_m[panel.shown, 1], s=4.0, c=panel.rgb[panel.shown], lw=0)
    axis.set(xlim=(-BIRDS_EYE_M, BIRDS_EYE_M), ylim=(-BIRDS_EYE_M, BIRDS_EYE_M), xticks=[], yticks=[], aspect="equal")


def save_panel(path: Path, xyz_m: NDArray[np.float32], panel: Panel, side_px: int) -> None:
    """Write one view from above, of points to the right and ahead (n, 2), as a square picture without margins."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side_px / 100, side_px / 100), dpi=100)
    draw_panel(figure.add_axes((0, 0, 1, 1)), xyz_m, panel)
    figure.savefig(path)


def save_image(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture (h, w, 3); the ending of the path says how."""
    from PIL import Image

    Image.fromarray(picture).save(path, quality=88)


def frame_figure(item: FrameRows, root: Root, ontology: Ontology) -> Figure:
    """Return one picture of all of a frame: images above, views from above and the classes that occur below."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    frame, rows = item.frame, item.rows
    views, planes = camera_pictures(item, root, ontology, 960), panels(item.labels, ontology)
    columns = 3
    image_rows = max(1, -(-len(views) // columns))
    plane_inch = 18 / (len(planes) + 0.35)
    figure = Figure(figsize=(18, 3.6 * image_rows + plane_inch + 0.6), layout="constrained")
    upper, lower = np.ravel(figure.subfigures(2, 1, height_ratios=[3.6 * image_rows, plane_inch], squeeze=False))
    axes = np.atleast_1d(upper.subplots(image_rows, columns)).ravel()
    for axis, camera, picture in zip(axes, frame.cameras, views, strict=False):
        axis.imshow(picture)
        axis.set_title(camera.name, fontsize=9, parse_math=False)
    for axis in axes:
        axis.set_axis_off()
    below = np.atleast_1d(lower.subplots(1, len(planes) + 1, width_ratios=[1] * len(planes) + [0.35])).ravel()
    for axis, panel in zip(below, planes, strict=False):
        draw_panel(axis, from_above(frame, rows[Points].xyz_m), panel)
        axis.set_title(panel.title, fontsize=9)
    entries = [(ontology.class_names[one], ontology.rgb_of_class[one] / 255.0) for one in classes_in(item.labels)]
    if planes[-1].title not in ("Pseudo-labels", "Truth"):
        entries += [(name, rgb_of(colour)) for name, colour in VERDICTS.items()]
    handles = [Line2D([], [], marker="s", ls="", color=tuple(rgb), label=name) for name, rgb in entries]
    below[-1].legend(handles=handles, loc="center left", frameon=False, fontsize=9)
    below[-1].set_axis_off()
    labelled = float((rows[Target].label > 0).mean()) if frame.n_points else 0.0
    figure.suptitle(
        f"{frame.scene}  {frame.frame_id}   {frame.n_points:,} points, {labelled:.0%} with a pseudo-label",
        fontsize=11,
        parse_math=False,
    )
    return figure


def save_curves(
    path: Path,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    single: Sequence[tuple[float, float]] = (),
    along: str = "step",
) -> None:
    """Write curves by name, as points (step, value), as an SVG that suits a light page and a dark one.

    `single` are values of single steps, which scatter about the means; they stay in the background. `along` names
    what runs from left to right.
    """
    from matplotlib.figure import Figure

    with as_svg():
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axis = figure.add_subplot()
        if single:
            axis.plot(*np.array(single, np.float64).T, color=QUIET, lw=0.6, label="total of single steps")
        for name, points in curves.items():
            step, value = np.array(points, np.float64).T
            axis.plot(step, value, marker="o" if len(step) < 40 else "", ms=4, lw=1.6, label=name)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["bottom", "left"]].set_color(QUIET)
        axis.tick_params(colors=QUIET)
        axis.grid(color=QUIET, alpha=0.25, lw=0.6)
        axis.set(xlabel=along, title=title)
        for text in figure.legend(loc="outside lower center", ncols=4, frameon=False).get_texts():
            text.set_parse_math(False)
        save_svg(path, figure)


def as_svg() -> AbstractContextManager[None]:
    """Return a context in which figures for `save_svg` are drawn."""
    import matplotlib

    return matplotlib.rc_context({"svg.hashsalt": "", "text.color": QUIET, "axes.labelcolor": QUIET})


def save_svg(path: Path, figure: Figure) -> None:
    """Write a figure as an SVG whose words have the colours of the page, light or dark.

    It bears no date and no maker: the same figure is the same bytes.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    head, tag, rest = file.getvalue().replace(QUIET, "var(--quiet)").partition("<defs>")
    path.write_text(f"{head}<style>{SVG_STYLE}</style>{tag}{rest}", encoding="utf-8")


def save_confusion(path: Path, matrix: NDArray[np.int64], names: Sequence[str]) -> None:
    """Write a confusion matrix as an SVG: of each true class (row) the share of its points that got each answer, in %.

    `matrix` (n + 1, n + 1) counts points, rows are true classes, columns answers, 0 is no class; `names` are those of
    all n + 1 classes. Points without a true class are left out, and so is a column or row without points.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows, columns = np.flatnonzero(matrix.sum(axis=1)), np.flatnonzero(matrix[1:].sum(axis=0))
    rows = rows[rows > 0]
    counts = matrix[np.ix_(rows, columns)]
    shares = 100 * counts / np.maximum(matrix[rows].sum(axis=1, keepdims=True), 1)
    side = 1.6 + 0.42 * max(len(rows), len(columns), 4)
    with as_svg():
        figure = Figure(figsize=(side, side), layout="constrained")
        axis = figure.add_subplot()
        axis.pcolormesh(shares, cmap="Blues", vmin=0, vmax=100, edgecolors=QUIET, linewidth=0.3)
        blues = matplotlib.colormaps["Blues"]
        for row, column in zip(*np.nonzero(shares >= 0.5), strict=True):
            colour = readable_on(blues(shares[row, column] / 100))
            text = f"{shares[row, column]:.0f}"
            axis.text(column + 0.5, row + 0.5, text, color=colour, fontsize=8, ha="center", va="center")
        labels = ["no answer" if index == 0 else names[index] for index in columns]
        axis.set_xticks(np.arange(len(columns)) + 0.5, labels, rotation=60, ha="right", parse_math=False)
        axis.set_yticks(np.arange(len(rows)) + 0.5, [names[index] for index in rows], parse_math=False)
        axis.set(xlabel="answer", ylabel="truth", aspect="equal", ylim=(len(rows), 0))
        axis.tick_params(colors=QUIET, length=0, labelsize=9)
        axis.spines[:].set_visible(False)
        save_svg(path, figure)


def readable_on(rgb: Sequence[float]) -> str:
    """Return black or white, whichever is the easier to read on a colour, shares of red, green and blue."""
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in rgb[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"  # either contrast is 4.6 there


def classes_in(labels: Mapping[str, UInt8]) -> list[int]:
    """Return the classes that points of a frame bear in any table that is drawn, ascending, 0 left out."""
    present: set[int] = set()
    for name in ("target", "predict", "refine", "label"):
        if name in labels:
            present.update(np.unique(labels[name]).tolist())
    return sorted(present - {0})
