"""Frames in Rerun, an interactive viewer: points with their classes in space, images with segments in the cameras.

Rerun is an extra that nothing else needs; this module is its only door.
"""

from __future__ import annotations

import io
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from manifests.config import ConfigError
from manifests.ontology import Ontology
from manifests.recipe import Recipe
from manifests.storage.places import root_of
from manifests.storage.store import Store
from manifests.tables.base import UInt8
from manifests.tables.labels import Label
from manifests.tables.sensors import Index, Points
from manifests.tables.teacher import Segment
from pipeline.frame import read_image
from pipeline.look.browse import Browser, FrameRows, Place, Track
from pipeline.look.pictures import MASK_OPACITY, VERDICTS, heat
from pipeline.look.query import Asked, asked_of
from pipeline.stages.segment import views_of
from superpixels.segments import Segments

LIDAR = "world/vehicle/lidar"
ERRORS = "errors"
LAYERS = {name: f"labels/{name}" for name in ("refine", "predict", "target", "correct", "vote", "group", "label")}
"""The entity of every table of labels, the best first, the truth ("label") last."""

POINT_RADIUS_M = 0.06


def view_frames(recipe: Recipe, n_frames: int, track: Track) -> list[str]:
    """Open at most `n_frames` frames in the viewer and return when it is closed; see `write_recording` for the rest.

    Raises ConfigError where the viewer cannot be opened, say without a screen.
    """
    elsewhere = "write a recording with --out frames.rrd and open it elsewhere"
    if sys.platform == "linux" and not os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}:
        raise ConfigError(f"there is no screen here to open the viewer on; {elsewhere}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{recipe.name}.rrd"
        not_shown = write_recording(recipe, path, n_frames, track)
        # started as a module, because its program need not be on PATH; the default address is open to the network
        done = subprocess.run([sys.executable, "-m", "rerun", "--bind", "127.0.0.1", str(path)], check=False)
    if done.returncode:
        raise ConfigError(f"the viewer ended with status {done.returncode}; {elsewhere}")
    return not_shown


def write_recording(recipe: Recipe, path: Path, n_frames: int, track: Track) -> list[str]:
    """Write at most `n_frames` frames, evenly chosen, as a Rerun recording (.rrd), which appears when it is whole.

    Returns sentences on labels and queries that there are and that are not shown.

    Raises ConfigError where Rerun is not installed or the file cannot be written, and otherwise like `Browser.read`.
    """
    try:
        import rerun
    except ImportError:
        raise ConfigError(
            "the viewer needs Rerun, which is an extra; run: .venv/bin/python -m pip install -c "
            "install/constraints.txt -r install/requirements-viewer.txt"
        ) from None
    browser = Browser.open(Store.open(recipe.run.store), recipe)
    places = browser.choose(n_frames)
    cameras = [camera.name for camera in browser.read(places[0]).frame.cameras]
    asked, not_asked = asked_of(browser, recipe.run.runs)
    recording = rerun.RecordingStream(f"AFOV {recipe.name}")
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        scratch.parent.mkdir(parents=True, exist_ok=True)
        recording.save(scratch)
        recording.log("world", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        classes = [(one.name, one.rgb) for one in recipe.ontology.classes]
        verdicts = [(name, tuple(bytes.fromhex(colour[1:]))) for name, colour in VERDICTS.items()]
        recording.log(LIDAR, class_list(rerun, classes), static=True)
        recording.log(f"{LIDAR}/{ERRORS}", class_list(rerun, verdicts), static=True)
        layers = [LAYERS[name] for name in LAYERS if name in browser.tables]
        if "label" in browser.tables:
            layers.append(ERRORS)
        layers += [asked_layer(one, by) for one in asked for by in one.rankings]
        recording.send_blueprint(layout(layers, cameras))
        origins_m: dict[str, NDArray[np.float64]] = {}
        for number, place in enumerate(track(places, "frames")):
            item = browser.read(place)
            recording.set_time("frame", sequence=number)
            recording.set_time("time", timestamp=np.datetime64(item.rows[Index].timestamp_us, "us"))
            first_m = finite_or_still(item.rows[Index].world_from_lidar)[:3, 3]
            log_frame(rerun, recording, item, recipe, origins_m.setdefault(item.frame.scene, first_m))
            log_heat(rerun, recording, item, place, asked)
        recording.disconnect()  # closes the file
        scratch.replace(path)
    except OSError as error:
        raise ConfigError(f"recording {path} cannot be written: {error}; --out names another file") from None
    finally:
        scratch.unlink(missing_ok=True)
    return [*browser.not_shown(), *not_asked]


def layout(layers: Sequence[str], cameras: Sequence[str]) -> Any:
    """Return where things stand in the viewer: one view in space per layer of points, images below."""
    from rerun import blueprint

    spaces = [blueprint.Spatial3DView(origin=LIDAR, contents=f"{LIDAR}/{layer}/**", name=layer) for layer in layers]
    drive = blueprint.Spatial3DView(origin="world", contents=["world/vehicle", f"{LIDAR}/{layers[0]}/**"], name="drive")
    images = [blueprint.Spatial2DView(origin=f"{LIDAR}/{name}", name=name) for name in cameras]
    return blueprint.Blueprint(
        blueprint.Vertical(blueprint.Grid(*spaces, drive, grid_columns=4), blueprint.Grid(*images, grid_columns=3)),
        collapse_panels=True,
    )


def class_list(rerun: Any, names: Sequence[tuple[str, Sequence[int]]]) -> Any:
    """Return an AnnotationContext: name and colour (r, g, b) of class 0, 1, ...

    It is built of Arrow, since Rerun 0.23 builds it of Python values with NumPy 2 alone.
    """
    batch = rerun.components.AnnotationContextBatch
    classes = [
        {
            "class_id": number,
            "class_description": {
                "info": {"id": number, "label": name, "color": int.from_bytes(bytes((*rgb, 255)), "big")},
                "keypoint_annotations": [],
                "keypoint_connections": [],
            },
        }
        for number, (name, rgb) in enumerate(names)
    ]
    kind = batch(None).as_arrow_array().type
    return rerun.AnnotationContext(pa.array([classes], type=kind))


def log_frame(rerun: Any, recording: Any, item: FrameRows, recipe: Recipe, origin_m: NDArray[np.float64]) -> None:
    """Log one frame at the current time: where the vehicle is, its points by table of labels, errors, and images.

    Every table of labels is an entity, whose classes have the names and colours of the dictionary. Where there is
    truth, the best labels beside it have a layer of errors too. The world is counted from `origin_m` (3,), since
    its coordinates may be too large for the viewer's float32.
    """
    frame, labels = item.frame, item.labels
    log_pose(rerun, recording, item, origin_m)
    points = item.rows[Points]
    for name, layer in LAYERS.items():
        label = labels.get(name)
        shown = points.xyz_m if label is not None else points.xyz_m[:0]  # else those of the frame before would stay
        recording.log(f"{LIDAR}/{layer}", points_of(rerun, shown, np.zeros(0) if label is None else label))
    if Label.table in labels:
        truth, judged = labels[Label.table], judged_labels(labels)
        verdict = np.where(judged == 0, 2, np.where(judged == truth, 0, 1))
        recording.log(f"{LIDAR}/{ERRORS}", points_of(rerun, points.xyz_m[truth > 0], verdict[truth > 0]))
    else:
        recording.log(f"{LIDAR}/{ERRORS}", points_of(rerun, points.xyz_m[:0], np.zeros(0)))
    root = root_of(recipe.data)
    for camera, segments in zip(frame.cameras, views_of(item.rows[Segment]), strict=True):
        path = f"{LIDAR}/{camera.name}"
        lidar_from_cam = np.linalg.inv(camera.cam_from_lidar)
        recording.log(path, rerun.Transform3D(translation=lidar_from_cam[:3, 3], mat3x3=lidar_from_cam[:3, :3]))
        size = camera.width_px, camera.height_px
        recording.log(path, rerun.Pinhole(image_from_camera=camera.intrinsics, resolution=size))
        recording.log(f"{path}/image", rerun.Image(read_image(root, camera)).compress())
        mask = rerun.EncodedImage(
            contents=mask_png(segments, size, recipe.ontology), media_type="image/png", draw_order=1
        )
        recording.log(f"{path}/segments", mask)
    recording.log("frame", rerun.TextDocument(f"{frame.scene} {frame.frame_id}"))


def points_of(rerun: Any, xyz_m: NDArray[np.float32], class_ids: NDArray[Any]) -> Any:
    """Return points (n, 3) whose colours and names are those of their classes (n,)."""
    return rerun.Points3D(xyz_m, class_ids=class_ids.astype(np.uint16), radii=POINT_RADIUS_M)


def judged_labels(labels: Mapping[str, UInt8]) -> UInt8:
    """Return the best labels of a frame that are not the truth, (n,)."""
    return next(labels[name] for name in LAYERS if name in labels and name != Label.table)


def log_pose(rerun: Any, recording: Any, item: FrameRows, origin_m: NDArray[np.float64]) -> None:
    """Log where the vehicle stands in the world, and the LiDAR on it; without a pose it stays at the origin."""
    index = item.rows[Index]
    ego_from_lidar = finite_or_still(index.ego_from_lidar)
    world_from_ego = finite_or_still(index.world_from_lidar) @ np.linalg.inv(ego_from_lidar)
    known = bool(np.isfinite(index.world_from_lidar).all())
    for path, pose, from_m in (
        ("world/vehicle", world_from_ego, origin_m if known else np.zeros(3)),
        (LIDAR, ego_from_lidar, np.zeros(3)),
    ):
        recording.log(path, rerun.Transform3D(translation=pose[:3, 3] - from_m, mat3x3=pose[:3, :3]))


def finite_or_still(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a pose (4, 4), or the unit matrix where it is not known."""
    return pose if np.isfinite(pose).all() else np.eye(4)


def asked_layer(asked: Asked, by: str) -> str:
    """Return the name of the layer of a query."""
    return f"asked_{asked.query.slug}_{by}"


def log_heat(rerun: Any, recording: Any, item: FrameRows, place: Place, asked: Sequence[Asked]) -> None:
    """Log, for every query, the points that are more like it than ordinary ones, in the colours of the report."""
    xyz_m = item.rows[Points].xyz_m
    for one in asked:
        margins = one.margins(place, item.frame.frame_id, len(xyz_m))
        for by, ranking in one.rankings.items():
            margin = margins.get(by, np.full(len(xyz_m), np.nan, np.float32))
            rgb, shown = heat(margin, ranking.low, ranking.high)
            colours = (255 * rgb[shown]).round().astype(np.uint8)
            points = rerun.Points3D(xyz_m[shown], colors=colours, radii=POINT_RADIUS_M)
            recording.log(f"{LIDAR}/{asked_layer(one, by)}/points", points)


def mask_png(segments: Segments, size: tuple[int, int], ontology: Ontology) -> bytes:
    """Return segments in the colours of their classes, half transparent, as a PNG of `size` (width, height) pixels."""
    from PIL import Image

    rgb = ontology.rgb_of_class
    alpha = np.where(np.arange(len(rgb)) > 0, round(255 * MASK_OPACITY), 0).astype(np.uint8)
    class_of_segment = np.append(0, ontology.class_of_prompt[segments.prompt_id])
    colours = np.column_stack([rgb, alpha])[class_of_segment[segments.label_map()]]
    file = io.BytesIO()
    Image.fromarray(colours).resize(size, Image.Resampling.NEAREST).save(file, "png", compress_level=1)
    return file.getvalue()
