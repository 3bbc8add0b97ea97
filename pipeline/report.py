"""Pictures of what the tables hold: per frame its images with segments and projected points, and a bird's-eye view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manifests.ontology import Ontology
from manifests.rows import Row
from manifests.store import Ref, Store, StoreError
from pipeline.frame import Frame, frame_of, read_image
from pipeline.recipe import Recipe
from pipeline.stages.segment import segments_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURED = ("index", "points", "project", "segment", "group", "target")
MASK_OPACITY = 0.45
BIRDS_EYE_M = 50.0  # half the side of the bird's-eye view; nuScenes is annotated about this far


@dataclass(frozen=True)
class FrameTables:
    """The rows of one frame, by table; `label` only where it was built."""

    frame: Frame
    rows: Mapping[str, Row]


def frames_of(store: Store, ref: Ref, limit: int | None = None) -> list[FrameTables]:
    """Return the frames of a recipe with the rows that pictures need, failed ones left out; at most `limit`.

    Raises StoreError naming the make target if a table is missing.
    """
    names = [*PICTURED, *(name for name in ("label",) if name in ref.tables)]
    tables = {name: ref.table(name) for name in names}
    found: list[FrameTables] = []
    for position, shard in enumerate(tables["index"].shards):
        readers = {
            name: store.open_shard(name, table.fingerprint, table.shards[position]) for name, table in tables.items()
        }
        for row_number in range(shard.rows):
            if limit is not None and len(found) >= limit:
                return found
            rows = {name: reader.row(row_number) for name, reader in readers.items()}
            if all(row["status"] == "ok" for row in rows.values()):
                found.append(FrameTables(frame_of(rows["index"]), rows))
    return found


def draw_frame(tables: FrameTables, root: Path, ontology: Ontology, path: Path) -> None:
    """Write a PNG of one frame: every image with its segments and the points seen in it, and the points from above.

    Segments and points are coloured by class; a point is coloured by its own pseudo-label, so a point that another
    camera named otherwise stands out against its segment. Raises FrameError if an image cannot be read.
    """
    from matplotlib.figure import Figure

    frame, rows = tables.frame, tables.rows
    columns = 3
    image_rows = max(1, -(-len(frame.cameras) // columns))
    clouds = [("pseudo-label", rows["target"]["label"])]
    if "label" in rows:
        clouds.append(("truth", rows["label"]["label"]))
    figure = Figure(figsize=(18, 3.6 * image_rows + 9), layout="constrained")
    upper, lower = np.ravel(figure.subfigures(2, 1, height_ratios=[3.6 * image_rows, 9], squeeze=False))
    axes = np.atleast_1d(upper.subplots(image_rows, columns)).ravel()
    segments = segments_of(rows["segment"])
    for view, camera in enumerate(frame.cameras):
        picture = tint(read_image(root, camera), segments[view].label_map(), ontology, segments[view].prompt_id)
        axes[view].imshow(picture)
        seen = np.flatnonzero((rows["project"]["view"] == view) & ~rows["project"]["occluded"])
        labels = rows["target"]["label"][rows["project"]["point"][seen]]
        colours = ontology.rgb_of_class[labels] / 255.0
        axes[view].scatter(rows["project"]["u_px"][seen], rows["project"]["v_px"][seen], c=colours, s=1.2, lw=0)
        axes[view].set_title(camera.name, fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    planes = np.atleast_1d(lower.subplots(1, len(clouds) + 1, width_ratios=[9] * len(clouds) + [2])).ravel()
    for axis, (title, label) in zip(planes, clouds, strict=False):
        draw_from_above(axis, rows["points"]["xyz_m"], label, ontology, title)
    draw_legend(planes[-1], ontology, [label for _, label in clouds])
    labelled = float((rows["target"]["label"] > 0).mean())
    figure.suptitle(
        f"{frame.scene}  {frame.frame_id}   {frame.n_points} points, {labelled:.0%} with a pseudo-label", fontsize=11
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def tint(
    image: NDArray[np.uint8], label_map: NDArray[np.uint16], ontology: Ontology, prompt_id: NDArray[np.int32]
) -> NDArray[np.uint8]:
    """Return the image (h, w, 3) with every segment in the colour of its class; the map may be of lower resolution."""
    height, width = image.shape[:2]
    rows = np.arange(height) * label_map.shape[0] // height
    columns = np.arange(width) * label_map.shape[1] // width
    class_of_segment = np.concatenate([[0], ontology.class_of_prompt[prompt_id]]).astype(np.intp)
    classes = class_of_segment[label_map][rows[:, None], columns[None, :]]
    colour = ontology.rgb_of_class[classes].astype(np.float32)
    opacity = np.where(classes > 0, MASK_OPACITY, 0.0).astype(np.float32)[..., None]
    tinted: NDArray[np.uint8] = ((1 - opacity) * image + opacity * colour).astype(np.uint8)
    return tinted


def draw_from_above(
    axis: Axes, xyz_m: NDArray[np.float32], label: NDArray[np.uint8], ontology: Ontology, title: str
) -> None:
    """Draw points of the LiDAR frame from above, unlabelled ones in light grey below the others."""
    for chosen, size in ((label == 0, 0.4), (label > 0, 1.6)):
        colours: Any = ontology.rgb_of_class[label[chosen]] / 255.0 if size > 1 else "0.88"
        axis.scatter(xyz_m[chosen, 0], xyz_m[chosen, 1], s=size, c=colours, lw=0)
    axis.set(xlim=(-BIRDS_EYE_M, BIRDS_EYE_M), ylim=(-BIRDS_EYE_M, BIRDS_EYE_M), xlabel="x [m]", ylabel="y [m]")
    axis.set_aspect("equal")
    axis.set_title(f"{title}, from above (LiDAR frame)", fontsize=10)


def draw_legend(axis: Axes, ontology: Ontology, labels: Sequence[NDArray[np.uint8]]) -> None:
    """List the classes that occur, in their colours."""
    from matplotlib.lines import Line2D

    present = sorted({int(item) for label in labels for item in np.unique(label)} - {0})
    handles = [
        Line2D([], [], marker="s", ls="", color=tuple(ontology.rgb_of_class[item] / 255.0), label=name)
        for item in present
        for name in [ontology.class_names[item]]
    ]
    handles.append(Line2D([], [], marker="s", ls="", color="0.88", label="no label"))
    axis.legend(handles=handles, loc="center left", frameon=False, fontsize=10)
    axis.set_axis_off()


def draw_frames(recipe: Recipe, folder: Path, limit: int) -> list[Path]:
    """Write one PNG per frame of the recipe into `folder` and return the paths; see `draw_frame`."""
    store = Store.open(recipe.run.store)
    tables = frames_of(store, store.read_ref(recipe.name), limit)
    if not tables:
        raise StoreError(f"recipe {recipe.name} has no frame that could be drawn; all rows failed")
    paths = []
    for item in tables:
        path = folder / f"{item.frame.scene}_{item.frame.timestamp_us}.png".replace("/", "_")
        draw_frame(item, Path(recipe.data.root), recipe.ontology, path)
        paths.append(path)
    return paths
