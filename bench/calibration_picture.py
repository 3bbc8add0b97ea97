"""A picture of right and of wrong calibration, docs/calibration.jpg, out of the synthetic city: nobody's data.

python -m bench.calibration_picture [OUT]
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image, ImageDraw, ImageFont
from scipy.spatial.transform import Rotation

from bench.city.config import CityConfig
from bench.city.generate import write_city
from manifests.sections.data import DataConfig
from manifests.sections.tables import ProjectConfig
from pipeline.datasets.registry import open_dataset
from pipeline.frame import Camera, Frame, read_image
from pipeline.geometry import inverse_pose
from pipeline.look.depth import DARKENED, depth_rgb
from pipeline.look.pictures import dot
from pipeline.stages.index import check_frame
from pipeline.stages.project import visible_pairs

SIZE_PX = 800, 450
LINE_PX = 30


def cases(camera: Camera) -> Mapping[str, Camera]:
    """Return a camera as it is, and with what goes wrong with calibrations most often."""
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("y", 5, degrees=True).as_matrix()
    scaled = camera.intrinsics * np.array([[0.8], [0.8], [1.0]])
    later = np.eye(4)
    later[2, 3] = -3.0  # along the axis: 0.25 s at 12 m/s
    return {
        "right: colours change where things in the image end": camera,
        "turned by 5 degrees: everything lies beside itself": replace(
            camera, cam_from_lidar=turned @ camera.cam_from_lidar
        ),
        "camera matrix of a smaller image: it fits in one corner only": replace(camera, intrinsics=scaled),
        "image 0.25 s late at 12 m/s: near things are off, far ones fit": replace(
            camera, cam_from_lidar=later @ camera.cam_from_lidar
        ),
        "inverted pose: points have another shape": replace(camera, cam_from_lidar=inverse_pose(camera.cam_from_lidar)),
    }


def panel(frame: Frame, root: Path, xyz_m: npt.NDArray[np.float32], camera: Camera) -> npt.NDArray[np.uint8]:
    """Return the image of a camera with the points that it would see, by depth."""
    alone = replace(frame, cameras=(camera,))
    pairs = visible_pairs(alone, xyz_m, ProjectConfig())
    picture = (DARKENED * read_image(root, camera)).astype(np.uint8)
    seen = np.flatnonzero(~pairs.occluded)
    seen = seen[np.argsort(-pairs.depth_m[seen], kind="stable")]
    colours = (255 * depth_rgb(pairs.depth_m[seen])).round().astype(np.uint8)
    dot(picture, pairs.row_px[seen].astype(int), pairs.col_px[seen].astype(int), colours, 3)
    return picture


def main(out: Annotated[Path, typer.Argument(help="The picture to write.")] = Path("docs/calibration.jpg")) -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = CityConfig(
            train_scenes=1, val_scenes=1, keyframes=1, image_width_px=SIZE_PX[0], image_height_px=SIZE_PX[1]
        )
        write_city(root, config, 1, lambda scene: None)
        dataset = open_dataset(DataConfig(root=str(root), version=config.version))
        frame = Frame.of(check_frame(dataset, root, next(dataset.frames())).index())
        xyz_m = dataset.read_cloud(frame).xyz_m
        camera = next(one for one in frame.cameras if one.name == "CAM_FRONT")
        panels = {text: panel(frame, root, xyz_m, one) for text, one in cases(camera).items()}
        panels = {"the image": read_image(root, camera)} | panels
    width, height = SIZE_PX
    sheet = Image.new("RGB", (2 * width, -(-len(panels) // 2) * (height + LINE_PX)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (text, picture) in enumerate(panels.items()):
        down, right = divmod(number, 2)
        draw.text((right * width + 8, down * (height + LINE_PX) + 5), text, "black", ImageFont.load_default(20))
        sheet.paste(Image.fromarray(picture), (right * width, down * (height + LINE_PX) + LINE_PX))
    sheet.resize((sheet.width * 3 // 4, sheet.height * 3 // 4), Image.Resampling.LANCZOS).save(out, quality=82)


if __name__ == "__main__":
    typer.run(main)
