"""What the viewer draws."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from manifests.ontology import load_ontology
from pipeline.look.viewer import mask_png
from superpixels.segments import Segments


def test_segments_in_the_viewer_are_half_transparent_and_nothing_is_clear() -> None:
    ontology = load_ontology("nuscenes")
    car = int(np.flatnonzero(ontology.class_of_prompt == 4)[0])
    segments = Segments.from_label_map(np.array([[0, 1]]), [car], [1.0], np.ones((1, 2)))
    with Image.open(io.BytesIO(mask_png(segments, (4, 2), ontology))) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (2, 4, 4)
    assert (pixels[:, :2, 3] == 0).all() and (pixels[:, 2:] == [*ontology.classes[4].rgb, 115]).all()
