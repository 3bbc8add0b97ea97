"""What images say of themselves beside their pixels, and what is made of them: turns, depths, lenses, masks."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from manifests.storage.places import Root
from pipeline.checks.findings import Finding
from pipeline.checks.looks import Look
from pipeline.frame import read_file, read_mask

ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
MOST_MASKED = 0.6  # of an image


def check_images(looks: Sequence[Look], root: Root) -> Iterator[Finding]:
    """Yield what is worth knowing of the images of some frames, camera by camera, each thing once."""
    from PIL import Image

    told: dict[str, Finding] = {}
    for camera in (camera for look in looks for camera in look.frame.cameras):
        with Image.open(io.BytesIO(read_file(root, camera.image_path, camera.image_sha256))) as image:
            turn, mode = image.getexif().get(ORIENTATION, 1), image.mode
        if turn != 1:
            text = f"{camera.name}: {camera.image_path} has the EXIF orientation {turn}, which turns it in a viewer; "
            told.setdefault(f"{camera.name} turn", note(f"{text}here pixels and camera matrix are as it is stored"))
        if mode.startswith("I;16"):
            told.setdefault(f"{camera.name} depth", note(f"{camera.name}: of 16-bit images the upper 8 bits are taken"))
        if not camera.lens.straight:
            text = f"{camera.name} has distortion coefficients: points land in its raw images as {camera.lens.model} "
            text += f"{list(camera.lens.coefficients)} says; if its images are rectified already, take these out"
            told.setdefault(f"{camera.name} lens", note(text))
        mask = read_mask(root, camera) if f"{camera.name} mask" not in told else None
        if mask is not None:
            share = float(mask.mean())
            text = f"{camera.name}: {camera.mask_path} says that {share:.0%} of its images show the vehicle itself"
            text += "; is it bright where it should be dark?" if share > MOST_MASKED else ""
            told[f"{camera.name} mask"] = Finding("problem" if share > MOST_MASKED else "ok", "images", text)
    yield from told.values()


def note(text: str) -> Finding:
    """Return a thing that is worth knowing of images."""
    return Finding("note", "images", text)
