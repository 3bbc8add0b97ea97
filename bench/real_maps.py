"""What the second small network of the shared folder says of the real frames, as finished maps for teacher `ensemble`.

    python -m bench.real_maps data/kitti_deeplab

runs DeepLab by the script that lies beside its weights in ../shared/data/teachers-real, on every image of recipe
`kitti_real`, and writes what teacher `artifacts` reads: names of pixels, and how likely each is. It needs
opencv-python-headless and ai-edge-litert, which nothing else here does. What is there already is left as it is.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from manifests.config import ConfigError
from manifests.recipe import Recipe, load_recipe
from manifests.sections.teachers.artifacts import TEXT
from manifests.sections.teachers.onnx import OnnxConfig
from manifests.storage.places import root_of
from pipeline.datasets.registry import open_dataset
from pipeline.frame import Camera, read_image
from pipeline.teachers.artifacts import PROMPTS, SCORE_IMAGE
from pipeline.teachers.oracle import direction

NETWORKS = Path("../shared/data/teachers-real")
SIZE_PX = (1248, 384)  # at which images of KITTI have the focal length that it was made for
CLASSES = 19  # of Cityscapes, in the order of its train ids, which the card of ESPNetv2 names too
DIMS = 64


def deeplab(folder: Path) -> Any:
    """Return the network as the shared script has it; raises ConfigError where it is not there."""
    path = folder / "real_teacher.py"
    spec = importlib.util.spec_from_file_location("real_teacher", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"{path} is not there; the networks lie in the shared folder beside the checkout")
    module: Any = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        module.MODELS = folder / "models"
        return module.DeepLab()
    except ImportError as error:
        raise ConfigError(f"{error}; run: pip install opencv-python-headless ai-edge-litert") from None


def probabilities(network: Any, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what the network says of an image and of its mirror image on average, (classes, h, w)."""
    straight = network.probabilities(image, SIZE_PX)
    mirrored = network.probabilities(np.ascontiguousarray(image[:, ::-1]), SIZE_PX)[:, :, ::-1]
    return np.asarray((straight + mirrored) / 2, np.float32)


def write_maps(folder: Path, camera: Camera, probability: NDArray[np.float32], prompt: NDArray[np.int64]) -> None:
    """Write the files of one image; `prompt` (classes,) names each class of the network."""
    import torch
    from PIL import Image

    from superpixels.pooling import strip_argmax

    best, score = strip_argmax(probability, camera.height_px, camera.width_px)
    present, ids = np.unique(best, return_inverse=True)
    ids = ids.reshape(best.shape).astype(np.uint8) + 1
    area = np.bincount(ids.ravel())[1:]
    records = [
        {"id": number, "category_id": int(prompt[one]), "area": int(size)}
        for number, (one, size) in enumerate(zip(present, area, strict=True), 1)
    ]
    vectors = np.zeros((len(present) + 1, DIMS), np.float32)
    vectors[1:, 0] = 1  # nothing reads vectors of a member
    torch.save(torch.from_numpy(vectors), folder / f"{camera.token}.pt")
    (folder / f"{camera.token}.json").write_text(json.dumps(records))
    Image.fromarray(np.rint(255 * np.clip(score, 0, 1)).astype(np.uint8)).save(folder / f"{camera.token}{SCORE_IMAGE}")
    Image.fromarray(ids).save(folder / f"{camera.token}.png")  # last: it says that the others are there


def write_all(recipe: Recipe, folder: Path, network: Any) -> int:
    """Write the files of all images of a recipe that are not there yet; return how many these were."""
    import torch

    assert isinstance(recipe.teacher, OnnxConfig)
    ontology = recipe.ontology
    prompt = np.array([rows[0] for rows in recipe.teacher.the_card.prompts_of(ontology)[:CLASSES]])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROMPTS).write_text("\n".join(ontology.prompts) + "\n", encoding="utf-8")
    text = np.stack([direction(one, DIMS) for one in ontology.prompts]).astype(np.float32)
    torch.save(torch.from_numpy(text), folder / TEXT)
    written = 0
    for frame in open_dataset(recipe.data).frames():
        for camera in frame.cameras:
            if not (folder / f"{camera.token}.png").is_file():
                image = read_image(root_of(recipe.data), camera)
                sized = replace(camera, width_px=image.shape[1], height_px=image.shape[0])
                write_maps(folder, sized, probabilities(network, image), prompt)
                written += 1
    return written


def main(
    out: Annotated[Path, typer.Argument(help="The folder to write.")] = Path("data/kitti_deeplab"),
    networks: Annotated[Path, typer.Option(help="Where the networks and their script lie.")] = NETWORKS,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE")] = None,
) -> None:
    """Write what DeepLab says of the real frames as files for teacher artifacts."""
    try:
        recipe = load_recipe("kitti_real", set_ or [])
        print(f"{write_all(recipe, out, deeplab(networks))} images written to {out}")
    except ConfigError as error:
        raise SystemExit(f"real_maps: {error}") from None


if __name__ == "__main__":
    typer.run(main)
