"""Inputs that the doctor once passed, built from real frames by ../shared/cases/logs: what it must say of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from manifests.recipe import load_recipe
from pipeline.checks.calibration import check_calibration
from pipeline.checks.doctor import check_files
from pipeline.checks.findings import Finding
from pipeline.checks.machine import check_disk
from pipeline.datasets.registry import open_dataset
from pipeline.engine.runner import Runner
from tests.pipeline.conftest import Made


def sensors(recipe_path: Path) -> Iterator[Finding]:
    recipe = load_recipe(recipe_path)
    return check_files(recipe, list(open_dataset(recipe.data).frames()), 8)


def problems(findings: Iterator[Finding]) -> list[str]:
    return [finding.text for finding in findings if finding.level == "problem"]


def test_c02_points_go_through_the_lens_that_the_tables_give(made: Made) -> None:
    """Its images were distorted for this case; seen through the lens of its tables, edges fit as before."""
    findings = list(sensors(made("c02_camera_distortion") / "r.toml"))
    assert problems(iter(findings)) == []
    said = [one.text for one in findings if one.about == "images"]
    assert len(said) == 6
    assert said[0].startswith("CAM_FRONT has distortion coefficients: points land in its raw images as brown [-0.3,")


def test_c08_an_inverted_matrix_is_told_with_the_angle_it_is_off(made: Made) -> None:
    found = problems(sensors(made("c08_inverted_extrinsics") / "r.toml"))
    assert any(
        "left: the LiDAR's up lies 90 degrees off the image's up" in text and "inverted" in text for text in found
    )


def test_c11_images_that_were_resized_without_their_camera_matrix_are_told(made: Made) -> None:
    found = problems(sensors(made("c11_images_resized") / "r.toml"))
    assert any(
        "CAM_FRONT: the principal point (816, 492) lies outside the images of 800 x 450 pixels" in text
        for text in found
    )
    assert len({text.split(":")[0] for text in found if "principal point" in text}) == 6


def test_c15_a_sweep_of_returns_from_nothing_is_told(made: Made) -> None:
    findings = list(sensors(made("c15_zero_returns") / "r.toml"))
    assert any("33% of its points lie exactly at the sensor" in finding.text for finding in findings)
    assert problems(iter(findings)) == []


def test_c25_a_recipe_whose_name_no_store_takes_is_told_before_the_run(made: Made) -> None:
    found = problems(check_disk(Runner(load_recipe(made("c25_doctor_ok_run_refuses") / "meine_aufnahmen_ü.toml"))))
    assert any("'meine_aufnahmen_ü' is not a name within the store" in text for text in found)


def test_a_log_without_cameras_is_a_note() -> None:
    assert [finding.level for finding in check_calibration([])] == ["note"]
