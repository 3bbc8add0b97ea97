"""Every teacher by its name in `[teacher] name`. Adding one is one file, one section of recipes, and one line below."""

from __future__ import annotations

from pipeline.teachers.artifacts import Artifacts
from pipeline.teachers.base import TeacherKind
from pipeline.teachers.catseg import CatSeg
from pipeline.teachers.clip_dense import ClipDense
from pipeline.teachers.composite import Composite
from pipeline.teachers.ensemble import Ensemble
from pipeline.teachers.fcclip import FcClip
from pipeline.teachers.onnx import Onnx
from pipeline.teachers.oracle import Oracle
from pipeline.teachers.san import San

TEACHERS: dict[str, TeacherKind] = {
    "artifacts": TeacherKind(Artifacts.load, files=Artifacts.files, text_content=Artifacts.text_content),
    "catseg": TeacherKind(CatSeg.load, kilobytes_per_frame=CatSeg.kilobytes_per_frame),
    "clip_dense": TeacherKind(ClipDense.load, kilobytes_per_frame=ClipDense.kilobytes_per_frame),
    "composite": TeacherKind(Composite.load, kilobytes_per_frame=Composite.kilobytes_per_frame),
    "ensemble": TeacherKind(
        Ensemble.load,
        files=Ensemble.files,
        text_content=Ensemble.text_content,
        kilobytes_per_frame=Ensemble.kilobytes_per_frame,
    ),
    "fcclip": TeacherKind(FcClip.load, kilobytes_per_frame=FcClip.kilobytes_per_frame),
    "onnx": TeacherKind(Onnx.load, kilobytes_per_frame=Onnx.kilobytes_per_frame),
    "oracle": TeacherKind(Oracle.load, files=Oracle.files),
    "san": TeacherKind(San.load, kilobytes_per_frame=San.kilobytes_per_frame),
}
