"""Recipes: what they accept, and the sentence each mistake gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from manifests.config import ConfigError, RecipeFile, changed_values, parse_override, parse_section, read_recipe
from manifests.fingerprint import Json
from manifests.recipe import load_recipe
from manifests.sections.data import DataConfig, RunConfig


@dataclass(frozen=True)
class Example:
    count: int = 1
    rate: float = 0.5
    name: str = "a"
    on: bool = False
    many: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    either: int | None = None
    mode: Literal["fast", "exact"] = "fast"

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count is {self.count}; it cannot be negative")


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_a_section_takes_defaults_for_what_is_left_out() -> None:
    assert parse_section("data", {"rate": 1, "mode": "exact"}, Example) == Example(rate=1.0, mode="exact")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"cuont": 2}, r"\[data\] has no setting `cuont` \(did you mean `count`\?\)"),
        ({"count": 1.5}, "data.count is 1.5; expected int"),
        ({"count": True}, "data.count is True; expected int"),
        ({"rate": "1e-4"}, "data.rate is '1e-4'; expected float"),
        ({"on": 1}, "data.on is 1; expected bool"),
        ({"many": "x"}, "data.many is 'x'; expected"),
        ({"many": [1]}, "data.many is 1; expected str"),
        ({"pair": [1]}, "data.pair is"),
        ({"mode": "slow"}, "data.mode is 'slow'; choose one of 'fast', 'exact'"),
        ({"either": "x"}, "data.either is 'x'; expected"),
        ({"count": -1}, "count is -1; it cannot be negative"),
    ],
)
def test_a_wrong_value_gets_a_sentence(values: dict[str, Json], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_section("data", values, Example)


def test_overrides_replace_values_and_bare_words_are_strings(tmp_path: Path) -> None:
    path = recipe(tmp_path, '[data]\nroot = "/r"\nversion = "v1.0-mini"\n')
    file = read_recipe(path, ["data.version=v1.0-test", 'data.exclude=["a", "b"]', "run.workers=3"])
    assert file.name == "mine"
    assert file.section("data", DataConfig) == DataConfig(root="/r", version="v1.0-test", exclude=("a", "b"))
    assert file.section("run", RunConfig).workers == 3


def test_a_local_file_is_laid_over_a_recipe_and_below_overrides(tmp_path: Path) -> None:
    path = recipe(tmp_path, '[data]\nroot = "/r"\nversion = "v1.0-mini"\n[group]\nmin_points = 2\n')
    (tmp_path / "mine.local.toml").write_text('[data]\nroot = "/here"\n[run]\nworkers = 4\n')
    file = read_recipe(path, ["run.workers=5"])
    assert file.name == "mine" and file.sections["group"] == {"min_points": 2}
    assert file.section("data", DataConfig) == DataConfig(root="/here", version="v1.0-mini")
    assert file.section("run", RunConfig).workers == 5
    (tmp_path / "theirs.toml").write_text('base = "mine"\n')
    assert read_recipe(tmp_path / "theirs.toml").sections["data"]["root"] == "/r", "only that of the recipe itself"
    (tmp_path / "mine.local.toml").write_text('base = "city"\n')
    with pytest.raises(ConfigError, match=r"mine.local.toml: a local file .* has no base"):
        read_recipe(path)
    (tmp_path / "mine.local.toml").write_text("[grup]\n")
    with pytest.raises(ConfigError, match=r"mine.local.toml: there is no section \[grup\]"):
        load_recipe(path)


def test_the_local_file_of_a_built_in_recipe_lies_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "city.local.toml").write_text("[group]\nmin_points = 7\n")
    assert read_recipe("city").sections["group"]["min_points"] == 7
    assert read_recipe("city_scratch").sections.get("group", {}).get("min_points") != 7


def test_values_of_overrides_are_toml_where_they_can_be() -> None:
    assert parse_override("group.min_points=5") == ("group", "min_points", 5)
    assert parse_override("group.policy=confidence") == ("group", "policy", "confidence")
    assert parse_override("text.templates=") == ("text", "templates", "")


@pytest.mark.parametrize("override", ["group", "group=1", "group.=1", "=1"])
def test_a_malformed_override_gets_a_sentence(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_override(override)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[data\n", "not valid TOML"),
        ("data = 3\n", "`data` stands outside a section"),
        ("[data]\nroot = 'x'\nroot = 'y'\n", "not valid TOML"),
    ],
)
def test_a_malformed_recipe_gets_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_recipe(recipe(tmp_path, text))


def test_a_section_that_no_recipe_has_is_named_with_where_it_was_written(tmp_path: Path) -> None:
    path = recipe(tmp_path, "[dta]\nroot = 'x'\n")
    with pytest.raises(ConfigError, match=rf"{path}: there is no section \[dta\] \(did you mean `data`\?\)"):
        load_recipe(path)
    with pytest.raises(ConfigError, match=r"--set gruop\.policy=x: there is no section \[gruop\] \(did you mean"):
        load_recipe("city", ["gruop.policy=x"])


def test_a_missing_recipe_lists_the_built_in_ones(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("")
    with pytest.raises(ConfigError, match=rf"no recipe at {tmp_path}/mine \(did you mean `{tmp_path}/mine\.toml`\?\)"):
        read_recipe(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"did you mean `nuscenes_mini`"):
        read_recipe("nuscenes_minni")
    with pytest.raises(ConfigError, match="no recipe at nowhere"):
        read_recipe("nowhere")


def test_a_data_set_needs_a_root() -> None:
    with pytest.raises(ConfigError, match=r"data.root is empty"):
        RecipeFile("x").section("data", DataConfig)


def test_only_values_that_differ_from_the_default_count() -> None:
    assert changed_values(Example()) == {}
    assert changed_values(Example(count=2, many=("x",))) == {"count": 2, "many": ("x",)}


@pytest.mark.parametrize(
    "setting",
    [
        "run.runs",
        "distill.init",
        "predict.checkpoint",
        "evaluate.split",
        "teacher.folder",
        "data.ontology",
    ],
)
def test_a_path_that_is_an_address_is_refused_whichever_setting_it_is(tmp_path: Path, setting: str) -> None:
    """It would become a folder `s3:` in the working folder, without a word."""
    text = '[data]\nroot = "/r"\n[teacher]\nname = "artifacts"\nfolder = "x"\n'
    with pytest.raises(ConfigError, match=rf"{setting} is 's3://b/x', an address; .*only run.store, data.root, run"):
        load_recipe(recipe(tmp_path, text), [f"{setting}=s3://KEY:SECRET@b/x"])
    assert (
        load_recipe(recipe(tmp_path, text), ["run.store=s3://b/x", "run.ray_address=ray://h:1"]).run.store == "s3://b/x"
    )


def test_a_recipe_says_only_how_it_differs_from_its_base(tmp_path: Path) -> None:
    recipe(tmp_path, '[data]\nroot = "/r"\nversion = "v1.0-mini"\n[run]\nworkers = 3\n')
    (tmp_path / "other.toml").write_text('base = "mine"\n[data]\nversion = "v1.0-test"\n')
    (tmp_path / "third.toml").write_text('base = "other.toml"\n[run]\nworkers = 4\n')
    file = read_recipe(tmp_path / "third.toml")
    assert file.name == "third"
    assert file.section("data", DataConfig) == DataConfig(root="/r", version="v1.0-test")
    assert file.section("run", RunConfig).workers == 4


def test_a_base_may_be_a_built_in_recipe(tmp_path: Path) -> None:
    file = read_recipe(recipe(tmp_path, 'base = "nuscenes_mini"\n[data]\nroot = "/elsewhere"\n'))
    assert file.section("data", DataConfig) == DataConfig(root="/elsewhere", version="v1.0-mini")


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        ('"mine"', "cannot be its own base"),
        ('"nowhere"', "no recipe at nowhere"),
        ('"../other"', "name a built-in recipe, or a .toml file in the same folder"),
        ("3", "base is 3"),
    ],
)
def test_a_wrong_base_gets_a_sentence(tmp_path: Path, base: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_recipe(recipe(tmp_path, f"base = {base}\n"))


def test_another_teacher_than_that_of_the_base_begins_its_section_anew(tmp_path: Path) -> None:
    (tmp_path / "below.toml").write_text('[teacher]\nname = "oracle"\nseed = 3\n[run]\nstore = "s"\n')
    (tmp_path / "same.toml").write_text('base = "below"\n[teacher]\nname = "oracle"\nsource = "maps"\n')
    (tmp_path / "other.toml").write_text('base = "same"\n[teacher]\nname = "onnx"\nweights = "w.onnx"\n')
    (tmp_path / "more.toml").write_text('base = "other"\n[teacher]\ntop = 2\n')
    assert read_recipe(tmp_path / "same.toml").sections["teacher"] == {"name": "oracle", "seed": 3, "source": "maps"}
    found = read_recipe(tmp_path / "more.toml").sections
    assert found["teacher"] == {"name": "onnx", "weights": "w.onnx", "top": 2}
    assert found["run"] == {"store": "s"}
    with pytest.raises(ConfigError, match="seed"):  # --set changes one value, and says which others no longer fit
        load_recipe(tmp_path / "below.toml", ["teacher.name=onnx", "data.root=x"])
