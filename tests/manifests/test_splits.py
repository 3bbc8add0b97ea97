"""Named scene lists select from the scenes there are."""

from pathlib import Path

import pytest

from manifests.splits import check_split, load_split, split_names

ALL_NUSCENES = tuple(f"scene-{i:04d}" for i in range(1, 1111))
ALL_SEQUENCES = tuple(f"{i:02d}" for i in range(22))


@pytest.mark.parametrize("name", ["train", "val", "test", "mini_train", "mini_val"])
def test_official_nuscenes_splits_equal_the_devkit(name: str) -> None:
    from nuscenes.utils.splits import create_splits_scenes

    assert load_split(name, "nuscenes", ALL_NUSCENES) == tuple(sorted(create_splits_scenes()[name]))


def test_joined_nuscenes_splits_hold_both_parts() -> None:
    def scenes(name: str) -> set[str]:
        return set(load_split(name, "nuscenes", ALL_NUSCENES))

    assert scenes("trainval") == scenes("train") | scenes("val")
    assert len(scenes("trainval")) == 850
    assert scenes("mini") == scenes("mini_train") | scenes("mini_val")
    assert len(scenes("mini")) == 10


def test_parametrize_and_verify_divide_train_into_600_and_100_scenes() -> None:
    train = load_split("train", "nuscenes", ALL_NUSCENES)
    parametrize = load_split("parametrize", "nuscenes", ALL_NUSCENES)
    verify = load_split("verify", "nuscenes", ALL_NUSCENES)
    assert (len(parametrize), len(verify)) == (600, 100)
    assert sorted(parametrize + verify) == sorted(train)
    assert (verify[0], verify[-1]) == ("scene-0008", "scene-1107")


def test_semantic_kitti_splits_are_those_of_the_benchmark() -> None:
    assert load_split("train", "semantic_kitti", ALL_SEQUENCES) == (*ALL_SEQUENCES[:8], "09", "10")
    assert load_split("val", "semantic_kitti", ALL_SEQUENCES) == ("08",)
    assert load_split("test", "semantic_kitti", ALL_SEQUENCES) == ALL_SEQUENCES[11:]
    assert load_split("trainval", "semantic_kitti", ALL_SEQUENCES) == ALL_SEQUENCES[:11]


def test_scenes_keep_the_order_of_the_data_set_and_absent_ones_are_left_out() -> None:
    assert load_split("mini_train", "nuscenes", ("scene-1094", "scene-0003", "scene-0061")) == (
        "scene-1094",
        "scene-0061",
    )


def test_all_is_every_scene_of_any_data_set() -> None:
    assert load_split("all", "my_logs", ("b", "a")) == ("b", "a")
    assert split_names("my_logs") == ("all",)


def test_a_text_file_is_a_split_of_any_data_set(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# two good drives\nday\n\n  night  # dark\n", encoding="utf-8")
    assert load_split(str(path), "my_logs", ("dawn", "night", "day")) == ("night", "day")


def test_a_file_as_windows_saves_it_names_the_same_scenes(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(b"\xef\xbb\xbfday\r\nnight\r\n")
    assert load_split(str(path), "my_logs", ("dawn", "night", "day")) == ("night", "day")
    path.write_bytes("day\nnight\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"mine.txt is no UTF-8 text; save it as UTF-8"):
        load_split(str(path), "my_logs", ("dawn", "night", "day"))


def test_a_scene_in_a_file_that_is_not_there_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("scene-0061\nscene-0l03\nmoon\n")
    with pytest.raises(
        ValueError,
        match=r"names scene 'moon', which is not among the 2 there are, and 1 more that are not there; mend the name",
    ):
        load_split(str(path), "nuscenes", ("scene-0061", "scene-0103"))
    path.write_text("scene-0061\nscene-0l03\n")
    with pytest.raises(
        ValueError, match=r"names scene 'scene-0l03', .* \(did you mean `scene-0103`\?\); mend the name"
    ):
        load_split(str(path), "nuscenes", ("scene-0061", "scene-0103"))


def test_an_empty_split_is_an_error_that_says_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"split 'mini_val' of nuscenes is empty here: .*\(scene-0003, scene-0061\)"):
        load_split("mini_val", "nuscenes", ("scene-0003", "scene-0061"))
    with pytest.raises(ValueError, match=r"among the 20 there are \(drive-0, .*drive-7, \.\.\.\)"):
        load_split("mini_val", "nuscenes", [f"drive-{i}" for i in range(20)])
    with pytest.raises(ValueError, match=r"split 'all' of my_logs is empty here: .*\(none\)"):
        load_split("all", "my_logs", ())


def test_an_unknown_split_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown split 'trian' of nuscenes; expected one of all, train, val, test"):
        load_split("trian", "nuscenes", ALL_NUSCENES)
    with pytest.raises(ValueError, match="unknown split 'verify' of semantic_kitti"):
        load_split("verify", "semantic_kitti", ALL_SEQUENCES)
    with pytest.raises(ValueError, match=r"unknown split '../splits/nuscenes_train'"):
        load_split("../splits/nuscenes_train", "nuscenes", ALL_NUSCENES)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.txt: there is no such split file"):
        load_split("nowhere.txt", "nuscenes", ALL_NUSCENES)


def test_every_name_on_offer_can_be_loaded() -> None:
    for dataset, available in (("nuscenes", ALL_NUSCENES), ("semantic_kitti", ALL_SEQUENCES)):
        for name in split_names(dataset):
            assert load_split(name, dataset, available)


def test_a_split_that_no_data_set_has_is_told_without_any_data(tmp_path: Path) -> None:
    for split, dataset in [("all", "folder"), ("mini_val", "nuscenes"), ("test", "semantic_kitti")]:
        check_split(split, dataset)
    with pytest.raises(ValueError, match="unknown split 'al' of folder; expected one of all, or the path"):
        check_split("al", "folder")
    with pytest.raises(FileNotFoundError, match="there is no such split file"):
        check_split(str(tmp_path / "mine.txt"), "folder")
    (tmp_path / "mine.txt").write_text("drive\n")
    check_split(str(tmp_path / "mine.txt"), "folder")
