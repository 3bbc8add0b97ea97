"""Stage `group`: segments become superpoints in every view, and every point gets at most one pseudo-label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from manifests.ontology import Ontology
from manifests.recipe import Recipe
from manifests.sections.tables import GroupConfig
from manifests.stages import SPECS
from manifests.tables.base import Bool, Float16, UInt8, UInt16
from manifests.tables.sensors import PointOfPair, Project
from manifests.tables.superpoints import Group, NamedPoints
from manifests.tables.teacher import Score, SegmentMaps
from pipeline.frame import Camera
from pipeline.geometry import axis_distance
from pipeline.lenses import unbent_radius
from pipeline.stages.base import FrameFunction, FrameInput, Stage
from pipeline.stages.segment import views_of
from superpixels.lifting import NO_SUPERPOINT, Policy, resolve, shared_and_agreed, superpoints
from superpixels.segments import Segments


def prepare(recipe: Recipe) -> FrameFunction[Group]:
    """Return the function that groups the pairs of a frame by the segment they hit."""

    def group(inputs: FrameInput) -> Group:
        frame, pairs = inputs.frame, inputs.rows[Project]
        segments = views_of(inputs.rows[SegmentMaps])
        scores = inputs.rows[Score].score if recipe.group.scores == "pixel" else None
        return group_frame(pairs, frame.cameras, segments, frame.n_points, recipe.group, recipe.ontology, scores)

    return group


def group_frame(  # long: every column of the row follows from those before it
    pairs: Project,
    cameras: Sequence[Camera],
    segments: Sequence[Segments],
    n_points: int,
    config: GroupConfig,
    ontology: Ontology,
    pixel_score: UInt8 | None = None,
) -> Group:
    """Return the row of table `group` from the row of `project` and the segments of each view.

    Occluded pairs are left out from the start unless `config.occluded` keeps them, so they count for no superpoint and
    reach neither stage `pairs` nor a label. A point whose winning superpoint is of an ignored class (sky, say) keeps
    its superpoint but has label 0. Confidence is the teacher's score of the winning segment in 1/255, at least 1 where
    that score is above 0; it is 0 where the label is 0, whatever the score. With `pixel_score` (p,), one per pair of
    `project` in 1/255, it is that of the pixel in which the camera that wins sees the point, and so are the scores by
    which cameras are compared.
    """
    candidate = np.arange(len(pairs.point)) if config.occluded else np.flatnonzero(~pairs.occluded)
    view = pairs.view[candidate]
    hit = segment_at(view, pairs.row_px[candidate], pairs.col_px[candidate], cameras, segments)
    found = superpoints(pairs.point[candidate], view, hit)
    large = found.n_points >= config.min_points
    kept = large[found.pair_superpoint]
    pair = candidate[hit > 0][kept]
    pair_superpoint = (np.cumsum(large) - 1)[found.pair_superpoint[kept]]

    superpoint_view, superpoint_segment = found.view[large], found.segment[large]
    first = np.cumsum([0, *map(len, segments)])[superpoint_view]
    of_segment = first + superpoint_segment - 1
    prompt = np.concatenate([np.empty(0, np.int32), *(one.prompt_id for one in segments)])[of_segment]
    score = np.concatenate([np.empty(0, np.float16), *(one.score for one in segments)])[of_segment]

    point_superpoint = resolve(
        pairs.point[pair],
        pair_superpoint,
        n_points,
        cast(Policy, config.policy),
        pair_score=score[pair_superpoint] if pixel_score is None else pixel_score[pair].astype(np.float32),
        pair_axis_distance=None if config.policy == "last_camera" else axis_distances(pairs, pair, cameras),
    )
    has = point_superpoint != NO_SUPERPOINT
    label = np.zeros(n_points, np.uint8)
    label[has] = ontology.class_of_prompt[prompt][point_superpoint[has]]
    confidence = np.zeros(n_points, np.uint8)
    if pixel_score is None:
        confidence[has] = in_255ths(score)[point_superpoint[has]]
    else:
        wins = pair_superpoint == point_superpoint[pairs.point[pair]]
        confidence[pairs.point[pair[wins]]] = pixel_score[pair[wins]]
    confidence[label == 0] = 0
    return Group(
        frame_id=pairs.frame_id,
        superpoint_view=superpoint_view,
        superpoint_segment=superpoint_segment,
        superpoint_prompt=prompt,
        superpoint_fine=ontology.fine_of_prompt[prompt].astype(np.uint8),
        superpoint_score=score,
        pair=pair.astype(np.int32),
        pair_superpoint=pair_superpoint.astype(np.int32),
        point_superpoint=point_superpoint,
        label=label,
        confidence=confidence,
    )


def segment_at(
    view: UInt8,
    row_px: UInt16,
    col_px: UInt16,
    cameras: Sequence[Camera],
    segments: Sequence[Segments],
) -> UInt16:
    """Return the segment at each image pixel, (p,), 0 for none; pairs are sorted by view.

    A label map of lower resolution than its image is read at the map pixel that covers the image pixel.
    """
    bound = np.searchsorted(view, np.arange(len(cameras) + 1))
    found = [np.empty(0, np.uint16)]
    for start, stop, camera, one in zip(bound[:-1], bound[1:], cameras, segments, strict=True):
        row = row_px[start:stop].astype(np.int64) * one.height_px // camera.height_px
        col = col_px[start:stop].astype(np.int64) * one.width_px // camera.width_px
        found.append(one.lookup(row, col))
    return np.concatenate(found)


def axis_distances(pairs: Project, pair: npt.NDArray[np.int64], cameras: Sequence[Camera]) -> npt.NDArray[np.float64]:
    """Return how far from the optical axis each of the chosen pairs is seen, as a tangent, (q,); sorted by view."""
    bound = np.searchsorted(pairs.view[pair], np.arange(len(cameras) + 1))
    distances = [np.empty(0)]
    for start, stop, camera in zip(bound[:-1], bound[1:], cameras, strict=True):
        u_px, v_px = (pixel[pair[start:stop]].astype(np.float64) for pixel in (pairs.u_px, pairs.v_px))
        distances.append(unbent_radius(camera.lens, axis_distance(u_px, v_px, camera.intrinsics)))
    return np.concatenate(distances)


def in_255ths(score: Float16) -> UInt8:
    """Return scores as whole 255ths: 0 for 0 and below, at least 1 for anything above, 255 from 1 upwards."""
    scaled = np.rint(np.clip(score.astype(np.float32), 0, 1) * 255)
    return np.where(score > 0, np.maximum(scaled, 1), 0).astype(np.uint8)


def agreement(project: PointOfPair, group: NamedPoints, ontology: Ontology) -> tuple[Bool, Bool]:
    """Return what superpixels.lifting.shared_and_agreed does of a frame, from rows of its tables."""
    named = ontology.class_of_prompt[group.superpoint_prompt][group.pair_superpoint]
    return shared_and_agreed(project.point[group.pair], named, len(group.label), len(ontology.classes))


STAGE = Stage(
    table=SPECS["group"],
    prepare=prepare,
    apart=tuple(name for name in Group.schema.names if name != "point_superpoint"),
    index_columns=("n_points", "width_px", "height_px", "intrinsics", "lens", "distortion"),
    count=lambda row: {
        "superpoints": len(row.superpoint_view),
        "pairs": len(row.pair),
        "labelled_points": int(np.count_nonzero(row.label)),
    },
    kilobytes_per_frame=lambda recipe: 90.0,
)
