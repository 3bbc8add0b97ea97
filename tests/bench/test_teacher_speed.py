"""The measuring of teachers, with towers of a few layers on images of noise."""

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bench.teacher_speed import LARGE, SMALL, bench_recipe, bench_teacher
from manifests.sections.teachers.registry import TEACHER_SECTIONS
from tests.pipeline.tiny_networks import save_onnx

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run() -> Run:
    app = typer.Typer()
    app.command()(bench_teacher)

    def invoke(*words: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(word) for word in words])
        return result.exit_code, result.output

    return invoke


def test_a_teacher_is_measured_part_by_part(run: Run) -> None:
    words = ("clip_dense", "--images", 18, "--image-size", "160x90", "--batch", 4)
    status, text = run(*words, "--set", "run.device=cpu", "--set", "teacher.short_side_px=32")
    assert status == 0, text
    assert "There is no GPU here: a small tower runs on the CPU" in text
    assert "1: model tiny, weights random:0, short_side_px 32 on cpu" in " ".join(text.split())
    [row] = [line.split() for line in text.splitlines() if line.strip("│ ").startswith("1 ")]
    _, batch, whole, decode, model, pack, post, share = [word for word in row if word not in ("│", "┃")]
    assert batch == "2", "on a CPU, whatever is asked for"
    assert float(whole) <= float(model)
    assert min(map(float, (whole, decode, model, pack, post))) > 0
    assert 0 < int(share.rstrip("%")) <= 100


def test_every_teacher_with_a_network_has_towers_to_measure(tmp_path: Path) -> None:
    assert SMALL.keys() == LARGE.keys() == {name for name, kind in TEACHER_SECTIONS.items() if kind.has_encode}
    for towers in (SMALL, LARGE):
        for name, cases in towers.items():
            for case in cases if name not in ("onnx", "ensemble") else ():  # which have no networks of their own
                assert bench_recipe(name, tmp_path, case).teacher.settings("encode")["name"] == name


def test_a_network_of_one_s_own_is_measured_as_it_is(run: Run, tmp_path: Path) -> None:
    assert "give the path of an ONNX file" in run("onnx")[1]
    settings = save_onnx(tmp_path, dictionary="nuscenes")
    overrides = [word for key, value in settings.items() for word in ("--set", f"teacher.{key}={value}")]
    status, text = run("onnx", "--images", 6, "--image-size", "160x90", "--set", "run.device=cpu", *overrides)
    assert status == 0 and "a small tower" not in text and "%" in text, text


def test_a_teacher_of_two_networks_is_measured(run: Run) -> None:
    words = ("composite", "--images", 6, "--image-size", "160x90")
    status, text = run(*words, "--set", "run.device=cpu", "--set", "segment.scale=0.2")
    assert status == 0 and "%" in text, text


def test_a_teacher_without_a_network_is_not_measured(run: Run) -> None:
    assert run("artifacts")[0] == 2
    status, text = run("clip_dense", "--image-size", "160")
    assert status == 2 and "expected WIDTHxHEIGHT" in text
    status, text = run("clip_dense", "--set", "data.root=x")
    assert status == 2 and "only teacher, run and segment matter here" in text
