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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manifests.config import ConfigError
from manifests.ontology import Ontology
from manifests.recipe import Recipe
from manifests.storage.store import Store
from manifests.tables.sensors import Points
from manifests.tables.teacher import Segment
from pipeline.frame import read_image
from pipeline.look.browse import Browser, FrameRows, Place, Track
from pipeline.look.pictures import MASK_OPACITY, heat
from pipeline.look.query import Asked, asked_of
from pipeline.stages.segment import views_of
from superpixels.segments import Segments

LAYERS = {"target": "pseudo_labels", "predict": "predictions", "label": "truth"}
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
        recording.log("lidar", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        layers = [LAYERS[name] for name in LAYERS if name in browser.tables]
        layers += [asked_layer(one, by) for one in asked for by in one.rankings]
        recording.send_blueprint(layout(layers, cameras))
        for number, place in enumerate(track(places, "frames")):
            recording.set_time("frame", sequence=number)
            item = browser.read(place)
            log_frame(rerun, recording, item, recipe)
            log_heat(rerun, recording, item, place, asked)
        recording.disconnect()  # closes the file
        scratch.replace(path)
    except OSError as error:
        raise ConfigError(f"recording {path} cannot be written: {error}; --out names another file") from None
    finally:
        scratch.unlink(missing_ok=True)
    return [*browser.not_shown(), *not_asked]


def layout(layers: Sequence[str], cameras: Sequence[str]) -> Any:
    """Return where things stand in the viewer: one view in space per layer of points side by side, images below."""
    from rerun import blueprint

    spaces = [blueprint.Spatial3DView(origin="lidar", contents=f"lidar/{layer}/**", name=layer) for layer in layers]
    images = [blueprint.Spatial2DView(origin=f"lidar/{name}", name=name) for name in cameras]
    return blueprint.Blueprint(
        blueprint.Vertical(blueprint.Horizontal(*spaces), blueprint.Grid(*images, grid_columns=3)),
        collapse_panels=True,
    )


def log_frame(rerun: Any, recording: Any, item: FrameRows, recipe: Recipe) -> None:
    """Log one frame at the current time: its points by kind of label and class, and per camera image and segments.

    Every class has an entity of its own, which names it where the mouse is and can be hidden. Rerun's own list of
    classes (AnnotationContext) is not used: in 0.23 it needs NumPy 2.
    """
    frame, ontology, labels = item.frame, recipe.ontology, item.labels
    xyz_m = item.rows[Points].xyz_m
    for name, layer in LAYERS.items():
        label = labels.get(name)
        for number, one in enumerate(ontology.classes):
            chosen = xyz_m[label == number] if label is not None else np.empty((0, 3), np.float32)
            points = rerun.Points3D(chosen, colors=one.rgb, radii=POINT_RADIUS_M)
            recording.log(f"lidar/{layer}/{one.name}", points)
    root = Path(recipe.data.root)
    for camera, segments in zip(frame.cameras, views_of(item.rows[Segment]), strict=True):
        path = f"lidar/{camera.name}"
        lidar_from_cam = np.linalg.inv(camera.cam_from_lidar)
        recording.log(path, rerun.Transform3D(translation=lidar_from_cam[:3, 3], mat3x3=lidar_from_cam[:3, :3]))
        size = camera.width_px, camera.height_px
        recording.log(path, rerun.Pinhole(image_from_camera=camera.intrinsics, resolution=size))
        recording.log(f"{path}/image", rerun.Image(read_image(root, camera)).compress())
        mask = rerun.EncodedImage(contents=mask_png(segments, size, ontology), media_type="image/png", draw_order=1)
        recording.log(f"{path}/segments", mask)
    recording.log("frame", rerun.TextDocument(f"{frame.scene} {frame.frame_id}"))


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
            recording.log(f"lidar/{asked_layer(one, by)}/points", points)


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
