"""The usual way: point labels and training samples made from the data set's own files, anew for every frame.

Step by step as the AFOV reference implementation does it, on the same libraries: the cloud is copied for every camera
and moved through four poses with the nuScenes devkit, each mask of a camera is a comparison over all its pixels, images
are decoded, and MinkowskiEngine finds the voxels. It is the yardstick of the benchmark and nothing else uses it.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import view_points
from PIL import Image
from pyquaternion import Quaternion
from torch import Tensor

from manifests.ontology import Ontology
from pipeline.datasets.nuscenes import CAMERAS, LIDAR
from trainer.network.sparse import Minkowski

NO_LABEL = -1
UNIT = 0.1  # metres; the reference's azimuth cells are 1 degree


@dataclass(frozen=True, eq=False)
class View:
    """One image of a frame, and what its mask files say: `label_map` (H, W), segments from 1, `prompt_id` (n,)."""

    record: dict[str, Any]
    image: npt.NDArray[np.uint8] | None
    label_map: npt.NDArray[np.integer[Any]]
    prompt_id: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sample:
    """One training sample.

    `cells` (v, 3) int32 and `features` (v, 1) are the voxels. Aligned with point-pixel pairs (m): `pair_voxel` int64,
    `pair_pixel` int64 (m, 3), which is view, row and column. `label_maps` (views, H, W). Aligned with the segments of
    all views (s): `vectors` float32 (s, d), `names` int64 (s, 3), which is view, segment from 1, and prompt. `images`
    float32 (views, 3, H, W), 0..1, or None where they were left out.
    """

    cells: Tensor
    features: Tensor
    pair_voxel: Tensor
    pair_pixel: Tensor
    label_maps: Tensor
    vectors: Tensor
    names: npt.NDArray[np.int64]
    images: Tensor | None


@dataclass(frozen=True, eq=False)
class Target:
    """One frame for distillation: `cells` (v, 3) int32, `features` (v, 1), and the class of each, `labels` (v,)."""

    cells: Tensor
    features: Tensor
    labels: Tensor


class UsualWay:
    """Makes labels and samples of one key frame after the other.

    `tables` is the devkit's `NuScenes`; `masks` the folder with `<token>.png`, `.json` and `.pt` of every image;
    `labels` a folder for the point labels. With `images` off the JPEGs, whose pixels neither labels nor losses depend
    on, are not opened: the reference always decodes them.
    """

    def __init__(self, tables: Any, root: Path, masks: Path, labels: Path, ontology: Ontology) -> None:
        self._tables, self._root, self._masks, self._labels = tables, root, masks, labels
        self._ontology = ontology

    def label_file(self, frame_id: str) -> Path:
        """Return where the point labels of a frame are kept."""
        return self._labels / f"{self._record(frame_id, LIDAR)['token']}_lidarseg.npy"

    def _record(self, frame_id: str, channel: str) -> dict[str, Any]:
        record = self._tables.get("sample_data", self._tables.get("sample", frame_id)["data"][channel])
        return record  # type: ignore[no-any-return]

    def cloud(self, frame_id: str) -> LidarPointCloud:
        """Return the sweep of a frame as the devkit reads it, float32."""
        return LidarPointCloud.from_file(str(self._root / self._record(frame_id, LIDAR)["filename"]))

    def views(self, frame_id: str, images: bool) -> list[View]:
        """Return what the files of every image say."""
        found = []
        for name in CAMERAS:
            record = self._record(frame_id, name)
            token = record["token"]
            image = np.array(Image.open(self._root / record["filename"])) if images else None
            label_map = np.array(Image.open(self._masks / f"{token}.png"))
            with (self._masks / f"{token}.json").open() as file:
                prompt_id = np.array([entry["category_id"] for entry in json.load(file)], np.int64)
            found.append(View(record, image, label_map, prompt_id))
        return found

    def point_labels(self, frame_id: str, images: bool = True) -> npt.NDArray[np.int32]:
        """Return the label of every point of a frame in the official format; see `label_points`."""
        return self.label_points(frame_id, self.cloud(frame_id), self.views(frame_id, images))

    def label_points(self, frame_id: str, cloud: LidarPointCloud, views: Sequence[View]) -> npt.NDArray[np.int32]:
        """Return 100 * superpoint + fine class of every point, (n,), -1 for none; the later camera wins.

        The chain of poses rounds to the element type of the cloud: float32 as the devkit reads it.
        """
        labels = np.full(cloud.nbr_points(), NO_LABEL, np.int32)
        n_superpoints = 0
        for view in views:
            point, row, col = self.pixels(frame_id, cloud, view)
            fine = self._ontology.fine_of_prompt[view.prompt_id]
            n_superpoints += label_by_masks(labels, point, view.label_map[row, col], fine, n_superpoints)
        return labels

    def pixels(
        self, frame_id: str, cloud: LidarPointCloud, view: View
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return point, row and column of every point that lands inside an image; the cloud itself stays in place."""
        get = self._tables.get
        sweep = self._record(frame_id, LIDAR)
        lidar = get("calibrated_sensor", sweep["calibrated_sensor_token"])
        ego_at_sweep = get("ego_pose", sweep["ego_pose_token"])
        ego_at_image = get("ego_pose", view.record["ego_pose_token"])
        camera = get("calibrated_sensor", view.record["calibrated_sensor_token"])
        moved = copy.deepcopy(cloud)
        for pose in (lidar, ego_at_sweep):  # sensor to vehicle, vehicle to world
            moved.rotate(Quaternion(pose["rotation"]).rotation_matrix)
            moved.translate(np.array(pose["translation"]))
        for pose in (ego_at_image, camera):  # and back down to the camera, at the image's time
            moved.translate(-np.array(pose["translation"]))
            moved.rotate(Quaternion(pose["rotation"]).rotation_matrix.T)
        depth_m = moved.points[2]
        u_px, v_px, _ = view_points(moved.points[:3], np.array(camera["camera_intrinsic"]), normalize=True)
        height, width = view.label_map.shape
        inside = depth_m > 1
        inside = np.logical_and(inside, u_px > 0)
        inside = np.logical_and(inside, u_px < width - 1)
        inside = np.logical_and(inside, v_px > 0)
        inside = np.logical_and(inside, v_px < height - 1)
        row, col = np.round(v_px[inside]).astype(np.int64), np.round(u_px[inside]).astype(np.int64)
        return np.flatnonzero(inside), row, col

    def sample(self, frame_id: str, images: bool = True, precision: type[np.floating[Any]] = np.float32) -> Sample:
        """Return the training sample of a frame, without random transforms; `precision` is that of the projection.

        Row k of a `.pt` file belongs to segment k; of FC-CLIP's two matrices the second is meant.
        """
        cloud, views = self.cloud(frame_id), self.views(frame_id, images)
        vectors = [torch.load(self._masks / f"{view.record['token']}.pt", map_location="cpu") for view in views]
        cloud.points = cloud.points.astype(precision, copy=False)
        point, pixel = [], []
        for number, view in enumerate(views):
            seen, row, col = self.pixels(frame_id, cloud, view)
            point.append(seen)
            pixel.append(np.stack([np.full_like(row, number), row, col], axis=1))
        cells, first_point, voxel_of_point = voxels(xyz_of(cloud))
        matrices = [matrix[1] if isinstance(matrix, list) else matrix for matrix in vectors]
        names = [
            [number, segment, prompt]
            for number, view in enumerate(views)
            for segment, prompt in enumerate(view.prompt_id.tolist(), start=1)
        ]
        scaled = [view.image / np.float32(255) for view in views if view.image is not None]
        return Sample(
            cells=cells,
            features=torch.from_numpy(cloud.points[3])[first_point][:, None],
            pair_voxel=voxel_of_point[torch.from_numpy(np.concatenate(point))],
            pair_pixel=torch.from_numpy(np.concatenate(pixel)),
            label_maps=torch.from_numpy(np.stack([view.label_map for view in views])),
            vectors=torch.cat([matrix[1:].float() for matrix in matrices]),
            names=np.array(names, np.int64).reshape(-1, 3),
            images=torch.from_numpy(np.stack(scaled)).permute(0, 3, 1, 2) if scaled else None,
        )

    def target(self, frame_id: str) -> Target:
        """Return a frame as distillation gets it: sweep and point labels from their files, voxels, class of each."""
        cloud = self.cloud(frame_id)
        labels = np.load(self.label_file(frame_id))
        cells, first_point, _ = voxels(xyz_of(cloud))
        of_first = labels[first_point.numpy()]
        classes = self._ontology.class_of_fine_labels(np.where(of_first == NO_LABEL, NO_LABEL, of_first % 100))
        features = torch.from_numpy(cloud.points[3])[first_point][:, None]
        return Target(cells, features, torch.from_numpy(classes.astype(np.int64)))


def label_by_masks(
    labels: npt.NDArray[np.int32],
    point: npt.NDArray[np.integer[Any]],
    segment: npt.NDArray[np.integer[Any]],
    fine_of_segment: npt.NDArray[np.integer[Any]],
    first_number: int,
) -> int:
    """Write the labels of one view's points over those of the views before, and return how many superpoints it has.

    Aligned, (p,): `point` indexes `labels`, `segment` is 1.. or 0 for none. One comparison over all pixels a mask.
    """
    number = first_number
    for one in np.unique(segment[segment > 0]):
        inside = segment == one
        labels[point[inside]] = 100 * number + fine_of_segment[one - 1]
        number += 1
    return number - first_number


def xyz_of(cloud: LidarPointCloud) -> Tensor:
    """Return the points of a cloud, (n, 3) float32."""
    return torch.from_numpy(cloud.points[:3].T.astype(np.float32, copy=False))


def voxels(xyz_m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return cylindrical cells (v, 3) int32 in MinkowskiEngine's order, the first point of each, and each point's."""
    x, y, z = xyz_m.T
    # NumPy's: the last bit of torch's is another on some processors, where a point in 30,000 would change its voxel
    azimuth_deg = torch.from_numpy(np.arctan2(y.numpy(), x.numpy())) * 180 / np.pi
    scaled = torch.stack([torch.sqrt(x**2 + y**2) / UNIT, azimuth_deg, z / UNIT], dim=1)
    cells, first_point, voxel_of_point = sparse_quantize()(scaled, return_index=True, return_inverse=True)
    return cells, first_point, voxel_of_point


@functools.cache
def sparse_quantize() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return MinkowskiEngine's function of that name."""
    Minkowski().convolution(1, 1, kernel_size=1, stride=1)  # imports MinkowskiEngine, by the one module that can
    from MinkowskiEngine.utils import sparse_quantize as function

    return function  # type: ignore[no-any-return]
