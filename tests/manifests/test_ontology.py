"""The class dictionaries: the maps of the published method, raw labels, and what a wrong file says."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from manifests.ontology import Ontology, as_tokenized, load_ontology, parse_ontology

SMALL = """
name = "small"
version = 3
raw_mask = 0xFFFF

[[class]]
name = "ignore"
colour = "#000000"
[[class]]
name = "car"
colour = "#ff7A1a"
[[class]]
name = "road"
colour = "#808080"
ground = true

[[fine]]
name = "sky"
class = "ignore"
raw = [0]
[[fine]]
name = "sedan"
class = "car"
raw = [10, 252]
[[fine]]
name = "asphalt"
class = "road"
raw = [40]

[[group]]
name = "cars"
fine = "sedan"
thing = true
prompts = ["car", "suv"]
[[group]]
name = "roads"
fine = "asphalt"
thing = false
prompts = ["road", " SUV"]
[[group]]
name = "heaven"
fine = "sky"
thing = false
prompts = ["sky"]
"""


@pytest.fixture(scope="module")
def nuscenes() -> Ontology:
    return load_ontology("nuscenes")


@pytest.fixture(scope="module")
def semantic_kitti() -> Ontology:
    return load_ontology("semantic_kitti")


def small_with(tmp_path: Path, old: str, new: str) -> Path:
    assert old in SMALL
    path = tmp_path / "mine.toml"
    path.write_text(SMALL.replace(old, new, 1), encoding="utf-8")
    return path


def test_nuscenes_has_175_prompts_in_31_groups_32_fine_and_16_coarse_classes(nuscenes: Ontology) -> None:
    assert (len(nuscenes.prompts), len(nuscenes.groups), len(nuscenes.fine), len(nuscenes.classes)) == (175, 31, 32, 17)
    per_class = np.bincount(nuscenes.class_of_prompt, minlength=17).tolist()
    assert per_class == [44, 3, 5, 7, 8, 4, 4, 13, 2, 5, 7, 8, 4, 4, 6, 47, 4]
    assert sum(per_class[1:]) == 131
    assert nuscenes.prompts[111] == " rolling hills"


def test_nuscenes_things_are_the_first_23_groups_and_ten_classes(nuscenes: Ontology) -> None:
    assert nuscenes.thing_of_prompt.tolist() == [True] * 96 + [False] * 79
    assert np.flatnonzero(nuscenes.thing_of_class).tolist() == list(range(1, 11))
    assert nuscenes.ground_class_ids == (11, 12, 13, 14)


def test_nuscenes_maps_equal_those_of_the_reference_files(nuscenes: Ontology, shared: Path) -> None:
    maps = json.loads((shared / "design" / "checkpoints" / "afov_dictionary_maps.json").read_text())
    assert len(nuscenes.prompts) == maps["n"]
    assert nuscenes.group_of_prompt.tolist() == maps["group_of_prompt"]
    assert nuscenes.fine_of_group.tolist() == maps["nusc32_of_group"]
    assert nuscenes.class_of_prompt.tolist() == maps["nusc16_of_prompt"]
    assert nuscenes.thing_of_prompt.sum() == maps["n_thing_prompts"]
    assert [list(d.prompt_ids) for d in nuscenes.duplicates()] == maps["duplicates"]
    with np.load(shared / "golden" / "tmp_vocab.npz") as golden:
        assert list(nuscenes.prompts) == golden["words"].tolist()
        assert nuscenes.group_of_prompt.tolist() == golden["class_of_word"].tolist()
        assert nuscenes.fine_of_group.tolist() == golden["real_class_of_class"].tolist()
        assert nuscenes.class_of_fine.tolist() == golden["category_of_real_class"].tolist()


def test_nuscenes_classes_equal_those_of_the_devkit(nuscenes: Ontology) -> None:
    from nuscenes.eval.lidarseg.utils import LidarsegClassMapper

    # The two tables are constants of the class; its constructor would want a whole data set.
    mapper = LidarsegClassMapper.__new__(LidarsegClassMapper)
    mapper.ignore_class = mapper.get_ignore_class()
    coarse_id, coarse_of_fine = mapper.get_coarse2idx(), mapper.get_fine2coarse()
    assert {name: i for i, name in enumerate(nuscenes.class_names)} == coarse_id
    assert {f.name: f.coarse for f in nuscenes.fine} == coarse_of_fine
    assert [f.raw for f in nuscenes.fine] == [(i,) for i in range(32)]


def test_nuscenes_fine_order_equals_the_category_table_of_lidarseg(nuscenes: Ontology, shared: Path) -> None:
    table = shared / "golden" / "nuscenes_tiny" / "v1.0-trainval" / "category.json"
    index = {row["name"]: row["index"] for row in json.loads(table.read_text())}
    assert {f.name: f.raw[0] for f in nuscenes.fine} == index


def test_repeated_prompts_are_reported_and_kept(nuscenes: Ontology) -> None:
    scooter, pavilion = nuscenes.duplicates()
    assert (scooter.prompt, scooter.prompt_ids, scooter.groups) == (
        "scooter",
        (28, 74),
        ("motorcycle", "personal_mobility"),
    )
    assert str(pavilion) == "prompt 'pavilion' occurs at 149 (manmade), 161 (manmade); only the first can win"
    assert nuscenes.prompts[28] == nuscenes.prompts[74] == "scooter"


def test_prompts_that_differ_in_case_and_blanks_are_the_same_text(tmp_path: Path) -> None:
    (duplicate,) = load_ontology(small_with(tmp_path, "small", "small")).duplicates()
    assert (duplicate.prompt_ids, duplicate.groups) == ((1, 3), ("cars", "roads"))


LONG = " ".join(["ground that may be driven over by a car or by a truck and that is not a road"] * 6)
TWINS = [
    (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")),
    ("car &amp; van", "car & van"),
    ("car &amp;amp; van", "car & van"),
    ("car", "\uff23\uff21\uff32"),
    ("builder\u2019s hut", "builder's hut"),
    ("a \ufb01eld", "a field"),
    ("Traffic  light", "traffic light"),
    ("stop-sign", "stop - sign"),
    (LONG + " of grass", LONG + " of sand"),
]
OTHERS = [
    ("car", "cars"),
    ("café", "cafe"),
    ("stop-sign", "stop sign"),
    (LONG[:200] + " of grass", LONG[:200] + " of sand"),
]


@pytest.mark.parametrize(("one", "other"), [*TWINS, *OTHERS])
def test_prompts_that_the_tokenizer_reads_alike_are_told_and_no_others(one: str, other: str) -> None:
    from pipeline.teachers.loading.towers import build_clip

    _, tokenizer = build_clip("tiny")
    alike = bool((tokenizer([one]) == tokenizer([other])).all())
    assert alike == ((one, other) in TWINS)
    assert (as_tokenized(one) == as_tokenized(other)) == alike


def test_semantic_kitti_raw_labels_become_the_19_classes_of_the_benchmark(semantic_kitti: Ontology) -> None:
    classes_of_raw = {
        0: (0, 1, 52, 99), 1: (10, 252), 2: (11,), 3: (15,), 4: (18, 258), 5: (13, 16, 20, 256, 257, 259),
        6: (30, 254), 7: (31, 253), 8: (32, 255), 9: (40, 60), 10: (44,), 11: (48,), 12: (49,), 13: (50,), 14: (51,),
        15: (70,), 16: (71,), 17: (72,), 18: (80,), 19: (81,),
    }  # fmt: skip
    for class_id, raw in classes_of_raw.items():
        assert semantic_kitti.class_of_raw_labels(np.array(raw)).tolist() == [class_id] * len(raw)
    assert sorted(r for f in semantic_kitti.fine for r in f.raw) == sorted(
        r for raw in classes_of_raw.values() for r in raw
    )
    assert len(semantic_kitti.classes) == 20
    assert np.flatnonzero(semantic_kitti.thing_of_class).tolist() == list(range(1, 9))


def test_every_class_can_be_reached_from_a_prompt(nuscenes: Ontology, semantic_kitti: Ontology) -> None:
    for ontology in (nuscenes, semantic_kitti):
        assert set(ontology.class_of_prompt.tolist()) == set(range(len(ontology.classes)))
    assert semantic_kitti.duplicates() == ()


def test_colours_can_be_told_apart(nuscenes: Ontology, semantic_kitti: Ontology) -> None:
    from skimage.color import deltaE_ciede2000, rgb2lab

    for ontology in (nuscenes, semantic_kitti):
        lab = rgb2lab(ontology.rgb_of_class[None] / 255)[0]
        difference = deltaE_ciede2000(lab[:, None], lab[None])
        assert difference[~np.eye(len(lab), dtype=bool)].min() > 10  # about 2 is the least a person sees


def test_instance_bits_of_raw_labels_are_dropped(semantic_kitti: Ontology) -> None:
    raw = np.array([(7 << 16) | 10, (65535 << 16) | 259, 40], dtype=np.uint32)
    assert semantic_kitti.class_of_raw_labels(raw).tolist() == [1, 5, 9]
    assert semantic_kitti.fine[semantic_kitti.fine_of_raw_labels(raw)[1]].name == "moving-other-vehicle"


def test_real_label_files_are_covered(semantic_kitti: Ontology, shared: Path) -> None:
    files = sorted((shared / "data" / "semantickitti-real").glob("sequences/*/labels/*.label"))
    assert files
    for file in files:
        raw = np.fromfile(file, dtype=np.uint32)
        assert semantic_kitti.class_of_raw_labels(raw).shape == raw.shape


@pytest.mark.parametrize("raw", [[5], [65535], [260], [-1]])
def test_an_unknown_raw_label_is_an_error_that_names_it(semantic_kitti: Ontology, raw: list[int]) -> None:
    with pytest.raises(ValueError, match=f"{raw[0] & 0xFFFF}.*are not in ontology 'semantic_kitti'"):
        semantic_kitti.class_of_raw_labels(np.array([10, *raw]))


def test_raw_labels_outside_nuscenes_or_not_whole_are_errors(nuscenes: Ontology) -> None:
    for raw in (-1, 32, 255):
        with pytest.raises(ValueError, match="not in ontology 'nuscenes'"):
            nuscenes.class_of_raw_labels(np.array([raw]))
    with pytest.raises(ValueError, match="whole numbers"):
        nuscenes.class_of_raw_labels(np.array([1.0]))


def test_no_fine_label_is_class_0_whichever_way_the_modulo_rounds(nuscenes: Ontology) -> None:
    label = np.array([-1, 100 * 3 + 17], dtype=np.int32)
    rounds_down, truncates = np.mod(label, 100), np.fmod(label, 100)
    assert (rounds_down[0], truncates[0]) == (99, -1)
    assert nuscenes.class_of_fine_labels(rounds_down).tolist() == [0, 4]
    assert nuscenes.class_of_fine_labels(truncates).tolist() == [0, 4]
    with pytest.raises(ValueError, match=r"\[32\] are not in ontology"):
        nuscenes.class_of_fine_labels(np.array([32]))


def test_contents_are_json_and_change_only_with_what_they_name(tmp_path: Path) -> None:
    before = load_ontology(small_with(tmp_path, "small", "small"))

    def changed(old: str, new: str) -> set[str]:
        after = load_ontology(small_with(tmp_path, old, new))
        contents = ("prompt_content", "label_content", "raw_content")
        return {c for c in contents if json.dumps(getattr(before, c)()) != json.dumps(getattr(after, c)())}

    assert changed("#808080", "#909090") == set()
    assert changed("version = 3", "version = 4") == set()
    assert changed('"suv"', '"sports car"') == {"prompt_content"}
    assert changed('fine = "sky"', 'fine = "asphalt"') == {"label_content"}
    assert changed("thing = true", "thing = false") == {"label_content"}
    assert changed("[10, 252]", "[10]") == {"raw_content"}
    assert changed('class = "car"', 'class = "road"') == {"label_content", "raw_content"}


def test_a_dictionary_without_fine_classes_uses_its_classes(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    fine = SMALL[SMALL.index("[[fine]]") : SMALL.index("[[group]]")]
    text = (
        SMALL.replace(fine, "")
        .replace('"sedan"', '"car"')
        .replace('"asphalt"', '"road"')
        .replace('"sky"\n', '"ignore"\n')
    )
    path.write_text(text, encoding="utf-8")
    own = load_ontology(str(path))
    assert own.class_of_prompt.tolist() == [1, 1, 2, 2, 0]
    with pytest.raises(ValueError, match="not in ontology 'small'"):
        own.class_of_raw_labels(np.array([0]))


def test_the_arrays_cannot_be_changed_by_accident(nuscenes: Ontology) -> None:
    with pytest.raises(ValueError, match="read-only"):
        nuscenes.class_of_prompt[0] = 1


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "ignore"', 'name = "nothing"', "first class must be named 'ignore'"),
        ('class = "car"', 'class = "cat"', "fine class 'sedan' names class 'cat'"),
        ('fine = "sedan"', 'fine = "limousine"', "group 'cars' names fine class 'limousine'"),
        ('name = "road"', 'name = "car"', "class 'car' is empty or defined more than once"),
        ("[10, 252]", "[10, 40]", "raw label 40 stands for 'sedan' and for 'asphalt'"),
        ("[10, 252]", "[65546]", "raw label 65546 of 'sedan' is not in 0..65535"),
        ("[10, 252]", '["10"]', "raw holds '10'; expected only values of type int"),
        ("thing = true", 'thing = "yes"', "thing is 'yes'; expected a value of type bool"),
        ("thing = true\n", "", "number 0 .cars. has no 'thing'"),
        ("version = 3", "version = true", "version is True; expected a value of type int"),
        ("#808080", "grey", "colour is 'grey'; expected six hexadecimal digits"),
        ('["car", "suv"]', "[]", "group 'cars' has no prompts"),
        ('"suv"', '" "', "group 'cars' has an empty prompt"),
        ("ground = true", "grund = true", r"number 2 \(road\) has unknown keys \['grund'\]"),
        ("raw_mask", "raw_msk", "unknown keys"),
        ("version = 3", "version = ", "mine.toml: Invalid value"),
    ],
)
def test_a_wrong_dictionary_says_what_is_wrong_and_in_which_file(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        load_ontology(small_with(tmp_path, old, new))
    assert "mine.toml" in str(error.value)


def test_a_dictionary_with_too_many_classes_or_no_prompt_is_an_error() -> None:
    table = {
        "name": "wide",
        "version": 1,
        "class": [{"name": "ignore", "colour": "#000000"}],
        "group": [{"name": "a", "fine": "c1", "thing": True, "prompts": ["a"]}],
    }
    colour = "#000000"
    many = [{"name": f"c{i}", "colour": colour} for i in range(1, 257)]
    with pytest.raises(ValueError, match="257 classes; expected 2 to 256"):
        parse_ontology(table | {"class": [*table["class"], *many]})  # type: ignore[misc]
    with pytest.raises(ValueError, match="100 fine classes; at most 99"):
        parse_ontology(table | {"class": [*table["class"], *many[:99]]})  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"there is no .*group"):
        parse_ontology(table | {"class": [*table["class"], *many[:1]], "group": []})  # type: ignore[misc]


def test_an_unknown_name_lists_the_known_ones_and_a_missing_file_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"unknown ontology 'waymo'; expected nuscenes, semantic_kitti or a .toml file"
    ):
        load_ontology("waymo")
    with pytest.raises(ValueError, match="unknown ontology"):
        load_ontology("../ontologies/nuscenes")
    with pytest.raises(FileNotFoundError, match=r"nowhere.toml: there is no such ontology file"):
        load_ontology("nowhere.toml")
