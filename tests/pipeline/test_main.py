"""The pipeline's command line: what it prints, and its exit status for every kind of trouble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from manifests.storage.sealed import write_sealed
from manifests.storage.store import Store
from manifests.tables.document import document
from manifests.tables.registry import TABLES
from pipeline.__main__ import app

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def recipe(shared: Path, tmp_path: Path) -> Path:
    """A recipe of one simulated scene with one key frame, whose masks are read from files."""
    golden = shared / "golden"
    (tmp_path / "one.txt").write_text("scene-0008\n")
    path = tmp_path / "tiny.toml"
    path.write_text(
        f'[data]\nroot = "{golden / "nuscenes_tiny"}"\nsplit = "{tmp_path / "one.txt"}"\n'
        f'[teacher]\nname = "artifacts"\nvoid = true\nfolder = "{golden / "superpixels_tiny"}"\n'
        f'[run]\nstore = "{tmp_path / "store"}"\n'
    )
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command and returns exit status and everything printed."""
    monkeypatch.setenv("COLUMNS", "200")

    def command(*words: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(word) for word in words])
        return result.exit_code, result.output

    return command


@pytest.mark.parametrize("words", [("report", "{}", "--out"), ("export", "{}"), ("store", "export", "{}", "pack")])
def test_a_place_to_write_that_is_an_address_is_refused(
    run: Run, recipe: Path, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, text = run(*(word.format(recipe) for word in words), "s3://KEY:SECRET@bucket/out")
    assert status == 2 and "s3:/bucket/out is an address" in text and "SECRET" not in text
    assert not (tmp_path / "s3:").exists()


def test_plan_run_why_verify_and_gc_tell_one_story(run: Run, recipe: Path, tmp_path: Path) -> None:
    status, text = run("plan", recipe)
    assert status == 0 and "nothing built with these settings" in text and "GB free" in text
    assert "scooter" in text and "pavilion" in text  # the reference's dictionary holds both twice
    assert not (tmp_path / "store").exists()  # a plan builds nothing

    status, text = run("run", "pack", recipe)
    assert status == 0 and "target: 1 of 1 shards" in text
    assert run("run", "pack", recipe) == (0, "pack: everything is built already\n")

    status, text = run("why", recipe, "--set", "group.min_points=3")
    assert status == 0 and "settings.min_points: (default) -> 3" in text and "segment: built" in text

    status, text = run("verify", recipe)
    assert status == 0 and "0 damaged" in text
    (shard,) = (tmp_path / "store" / "pairs").rglob("*.parquet")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    status, text = run("verify", recipe, "--heal")
    assert status == 3 and "1 damaged and dropped" in text and "sha256 differs" in text and "make pairs" in text
    assert "1 damaged" not in run("verify", recipe)[1]
    status, text = run("run", "pack", recipe)
    assert status == 0 and "pairs: 1 of 1 shards" in text and "group" not in text
    assert run("verify", recipe)[0] == 0
    (manifest,) = (tmp_path / "store" / "group").rglob("manifest.json")
    manifest.write_bytes(manifest.read_bytes()[:-9])
    status, text = run("verify", recipe)
    assert status == 3 and "its bytes have changed" in text and "--heal" in text
    assert run("verify", recipe, "--heal")[0] == 3 and not manifest.exists()
    assert run("run", "pack", recipe)[0] == 0 and run("verify", recipe)[0] == 0

    assert run("run", "group", recipe, "--set", "group.min_points=3")[0] == 0
    assert "0 files" in run("gc", recipe)[1]  # young files may belong to a run in progress
    status, text = run("gc", recipe, "--min-age-hours", "0", "--delete")
    assert status == 0 and "group.min_points: 3 -> (default)" in text and "\n0 files" in text  # both are kept
    status, text = run("gc", recipe, "--min-age-hours", "0", "--delete", "--forget")
    assert status == 0 and "deleted" in text and "\n0 files" not in text
    assert run("verify", recipe)[0] == 0


def test_a_recipe_may_have_more_in_its_pack_than_training_reads(run: Run, recipe: Path) -> None:
    also = ("--set", 'run.pack_also=["label"]')
    assert "label" in run("plan", recipe, *also)[1] and "label" not in run("plan", recipe)[1]
    status, text = run("plan", recipe, "--set", 'run.pack_also=["labels"]')
    assert status == 2 and 'run.pack_also has "labels"' in text


def test_who_receives_tables_builds_nothing_of_them_again(run: Run, recipe: Path, tmp_path: Path) -> None:
    assert run("run", "pack,text", recipe)[0] == 0
    here = Store.open(tmp_path / "store")
    status, text = run("store", "export", recipe, "pack", tmp_path / "tables.tar")
    assert status == 0 and "segment/" in text and "text/" in text, text
    theirs = ("--set", f"run.store={tmp_path / 'theirs'}")
    assert run("store", "import", tmp_path / "tables.tar", "--into", tmp_path / "theirs")[0] == 0
    there = Store.open(tmp_path / "theirs")
    name = next(iter(there.refs()))
    assert there.expect_ref(name).tables == here.expect_ref(name).tables and there.unreferenced(0) == []
    status, text = run("run", "pack,text", recipe, *theirs)
    assert status == 0 and "pack,text: everything is built already" in text
    assert there.expect_ref(name).tables == here.expect_ref(name).tables
    assert run("verify", recipe, *theirs)[0] == 0

    status, text = run("store", "export", recipe, "pairs", tmp_path / "alone.tar", "--alone")
    assert status == 0 and "segment/" not in text
    assert run("store", "import", tmp_path / "alone.tar", "--into", tmp_path / "third")[0] == 0
    third = Store.open(tmp_path / "third")
    assert third.expect_ref(name).tables == {} and third.unreferenced(0) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--set", "group.polciy=confidence"), "[group] has no setting `polciy` (did you mean `policy`?)"),
        (("--set", "group.policy=best"), 'policy is "best"; choose'),
        (("--set", "grupo.policy=best"), "there is no section [grupo]"),
        (("--set", "teacher.name=nobody"), 'teacher.name is "nobody"; there are artifacts'),
        (("--set", "data.ontology=nowhere"), "data.ontology:"),
        (("--set", "data.version=v9.9"), "v9.9"),
        (("--set", "data.split=mini_val"), "data.split:"),
        (("--set", "data.dataset=lyft"), "lyft"),
    ],
)
def test_a_wrong_recipe_ends_with_a_sentence_and_status_2(
    run: Run, recipe: Path, words: tuple[str, ...], sentence: str
) -> None:
    status, text = run("plan", recipe, *words)
    assert status == 2 and sentence in text and "Traceback" not in text


def test_an_unknown_stage_and_a_missing_recipe_are_status_2(run: Run, recipe: Path) -> None:
    assert run("run", "pakc", recipe)[0] == 2
    status, text = run("plan", "nowhere")
    assert status == 2 and "nuscenes_mini" in text


def test_a_run_with_bad_frames_lists_them_and_ends_with_status_1(run: Run, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, text = run("run", "pack", recipe, "--set", f"data.root={tmp_path / 'empty'}")
    assert status == 2  # no tables: nothing can be listed at all
    masks = tmp_path / "masks"
    masks.mkdir()
    source = recipe.read_text().split('folder = "')[1].split('"')[0]
    for file in Path(source).iterdir():
        if file.suffix != ".json":
            (masks / file.name).symlink_to(file)
    status, text = run("run", "pack", recipe, "--set", f"teacher.folder={masks}")
    assert status == 1 and "segment" in text and "1 frames failed" in text and "exclude = [" in text


def test_verify_reads_the_files_of_runs_too_and_keeps_them(run: Run, recipe: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs" / recipe.stem / "distill"
    chosen = ("--set", f"run.runs={tmp_path / 'runs'}")
    assert run("run", "index", recipe)[0] == 0
    write_sealed(runs / "run.json", {"epochs": 12})
    status, text = run("verify", recipe, *chosen)
    assert status == 0 and "runs in" in text and "0 damaged" in text
    changed = (runs / "run.json").read_bytes().replace(b"12", b"13")
    (runs / "run.json").write_bytes(changed)
    status, text = run("verify", recipe, *chosen, "--heal")
    assert status == 3 and "its bytes have changed since it was written" in text and "1 damaged" in text
    assert (runs / "run.json").read_bytes() == changed


def test_a_verify_without_tables_says_what_to_run(run: Run, recipe: Path) -> None:
    status, text = run("verify", recipe)
    assert status == 3 and f"make pack RECIPE={recipe}" in text


def test_pictures_show_the_frame(run: Run, recipe: Path, tmp_path: Path) -> None:
    assert run("run", "pack", recipe)[0] == 0
    status, text = run("pictures", recipe, "--out", tmp_path / "pictures")
    (path,) = (tmp_path / "pictures").rglob("*.png")
    assert status == 0 and path.name in text and path.parent.name == "scene-0008"
    with Image.open(path) as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24) or []) > 1000


def test_before_any_network_has_looked_points_are_drawn_by_depth_and_no_picture_replaces_another(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, text = run("pictures", recipe)
    assert status == 3 and "holds nothing of recipe tiny yet" in text
    assert run("run", "points,project", recipe)[0] == 0
    status, text = run("pictures", recipe)
    assert status == 0 and "coloured by depth, since nothing is named yet: recipe tiny has no table `segment`" in text
    (path,) = Path("pictures/tiny/scene-0008").iterdir()
    assert path.name.endswith("-depth.png")
    before = path.read_bytes()
    with Image.open(path) as picture:
        assert picture.width > 1500 and "frame " in picture.info["Description"]
    # the same again is itself, and what is given this folder for another recipe is told
    assert run("pictures", recipe)[0] == 0 and path.read_bytes() == before
    status, text = run("pictures", recipe, "--set", "run.name=other", "--out", "pictures/tiny")
    assert status == 2 and "would be overwritten by one of recipe other" in text and path.read_bytes() == before


def test_a_store_of_another_kind_gives_a_sentence(run: Run, recipe: Path) -> None:
    status, text = run("run", "pack", recipe, "--set", "run.store=nowhere://x")
    assert status == 3 and "cannot be opened" in text


def test_the_description_of_the_tables_is_up_to_date() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "data.md"
    assert page.read_text(encoding="utf-8") == document(), "run: make docs"
    assert all(f"## `{name}`" in document() for name in TABLES)


def test_a_stray_file_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "target" / "0123456789ab").mkdir(parents=True)
    (tmp_path / "target" / "0123456789ab" / "stray.parquet").write_bytes(b"x")
    assert Store.open(tmp_path).shards("target", "0123456789ab") == {}


def test_a_plan_says_what_an_image_costs_to_keep(run: Run, recipe: Path, shared: Path, tmp_path: Path) -> None:
    dense = tmp_path / "dense.toml"
    dense.write_text(
        f'[data]\nroot = "{shared / "golden" / "nuscenes_tiny"}"\n[run]\nstore = "{tmp_path / "store"}"\n'
        f'[teacher]\nname = "clip_dense"\nweights = "w.pt"\nweights_sha256 = "{"ab" * 32}"\nquick_gelu = true\n'
    )
    told = " ".join(run("plan", dense)[1].split())
    assert "encode keeps about 1434 kB per image" in told  # 28 x 50 cells, 512 values, float16
    assert "about 717 kB" in " ".join(run("plan", dense, "--set", "teacher.kept=int8")[1].split())
    assert "kB per image" not in run("plan", dense, "--set", "run.keep_encode=false")[1]


def test_a_recipe_is_checked_whole_whoever_reads_it(run: Run, recipe: Path) -> None:
    from trainer.__main__ import app as trainer

    status, text = run("plan", recipe, "--set", "distill.epoch=3")
    assert status == 2 and "did you mean `epochs`" in text
    told = CliRunner().invoke(trainer, ["check", str(recipe), "--set", "group.polcy=confidence"])
    assert told.exit_code == 2 and "did you mean `policy`" in told.output
