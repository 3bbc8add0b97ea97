"""What the viewer draws."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manifests.ontology import load_ontology
from manifests.storage.store import Store
from pipeline.look.browse import Browser
from pipeline.look.pictures import VERDICTS
from pipeline.look.viewer import ERRORS, LIDAR, mask_png, write_recording
from superpixels.segments import Segments
from tests.pipeline.test_report import add_predictions, build, built, folder, recipe_in  # noqa: F401


def test_segments_in_the_viewer_are_half_transparent_and_nothing_is_clear() -> None:
    ontology = load_ontology("nuscenes")
    car = int(np.flatnonzero(ontology.class_of_prompt == 4)[0])
    segments = Segments.from_label_map(np.array([[0, 1]]), [car], [1.0], np.ones((1, 2)))
    with Image.open(io.BytesIO(mask_png(segments, (4, 2), ontology))) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (2, 4, 4)
    assert (pixels[:, :2, 3] == 0).all() and (pixels[:, 2:] == [*ontology.classes[4].rgb, 115]).all()


def read_back(path: Path) -> dict[str, Any]:
    """Return what a recording of one frame shows, by entity and component."""
    from rerun import dataframe

    view = dataframe.load_recording(path).view(index="frame", contents="/**")
    [row] = view.select().read_all().to_pylist()
    return {name.lstrip("/"): value for name, value in row.items()}


def test_a_recording_tells_pose_time_classes_every_table_and_errors(folder: Path) -> None:  # noqa: F811
    pytest.importorskip("rerun", reason="Rerun is an extra: install/requirements-viewer.txt")
    recipe = recipe_in(folder)
    build(recipe, "label")
    add_predictions(recipe)
    write_recording(recipe, folder / "new" / "frames.rrd", 1, lambda items, _: items)
    (path,) = (folder / "new").iterdir()
    assert path.read_bytes()[:4] == b"RRF2"
    shown = read_back(path)
    browser = Browser.open(Store.open(recipe.run.store), recipe)
    item = browser.read(browser.choose(1)[0])
    assert shown["time"].timestamp() * 1e6 == pytest.approx(item.frame.timestamp_us, abs=1)
    classes = {
        one["class_id"]: one["class_description"]["info"]["label"] for one in shown[f"{LIDAR}:AnnotationContext"][0]
    }
    assert tuple(classes.values()) == recipe.ontology.class_names and classes[4] == "car"
    for name, label in item.labels.items():
        assert shown[f"{LIDAR}/labels/{name}:ClassId"] == label.tolist(), name
    verdicts = [one["class_description"]["info"]["label"] for one in shown[f"{LIDAR}/{ERRORS}:AnnotationContext"][0]]
    assert verdicts == list(VERDICTS)
    truth, said = item.labels["label"], item.labels["predict"]
    wrong = np.asarray(shown[f"{LIDAR}/{ERRORS}:ClassId"]) == verdicts.index("wrong")
    np.testing.assert_array_equal(wrong, (said != truth)[truth > 0])
    # the first frame that is shown of a drive stands at the origin, turned as the vehicle is
    assert np.allclose(shown["world/vehicle:Translation3D"][0], np.linalg.norm([0.0]), atol=5)
    turned = np.reshape(shown["world/vehicle:TransformMat3x3"][0], (3, 3), order="F")
    expected = item.frame.world_from_lidar @ np.linalg.inv(item.frame.ego_from_lidar)
    np.testing.assert_allclose(turned, expected[:3, :3], atol=1e-6)
