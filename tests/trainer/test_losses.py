"""Objectives: contrastive pre-training and segmentation."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from manifests.sections.training import Negatives, TmpConfig
from trainer.objectives.losses import (
    Counts,
    GlobalBatch,
    TmpTerms,
    counts,
    lovasz_softmax,
    pool_superpoints,
    segmentation_loss,
    soft_text_target,
    tmp_loss,
)

GOLDEN = Path(__file__).parent.parent / "golden"
PARITY = TmpConfig(clamp_cosines=False)


def _unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def _one_pair_each(
    points: Tensor,
    vector: Tensor,
    prompt: Tensor,
    text: Tensor,
    target: Tensor,
    config: TmpConfig = PARITY,
    frame: Tensor | None = None,
) -> TmpTerms:
    """The loss where superpoint i consists of voxel i."""
    rows = torch.arange(len(points))
    frame = torch.zeros_like(rows) if frame is None else frame
    return tmp_loss(points, rows, rows, vector, prompt, frame, text, target, config)


# --- Superpoints ---


def test_a_superpoint_is_the_mean_over_its_pairs() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    mean, counts = pool_superpoints(features, torch.tensor([0, 1, 1, 0, 1]), torch.tensor([2, 0, 2, 2, 2]), 3)
    assert counts.tolist() == [1, 0, 4]
    torch.testing.assert_close(mean, torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.5, 0.5]]), rtol=2e-6, atol=0)


def test_gradients_reach_only_voxels_that_own_a_pair() -> None:
    features = _unit(6, 4).requires_grad_()
    mean, _ = pool_superpoints(features, torch.tensor([4, 1, 4]), torch.tensor([0, 1, 1]), 2)
    mean.square().sum().backward()
    assert features.grad is not None
    assert (features.grad != 0).any(1).tolist() == [False, True, False, False, True, False]


# --- Text target ---


def test_the_target_spreads_over_siblings_by_cosine() -> None:
    text = torch.tensor([[2.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    target = soft_text_target(text, torch.tensor([0, 0, 1]), weight=0.2)
    # Raw row 0: own 0.2 + 0.8 * 1, sibling 0.8 * 0.6.
    torch.testing.assert_close(target, torch.tensor([[1, 0.48, 0], [0.48, 1, 0], [0, 0, 1.48]]) / 1.48)


@given(st.integers(0, 200), st.booleans())
def test_target_rows_are_distributions_within_the_group_that_favour_their_own_prompt(seed: int, squared: bool) -> None:
    rng = np.random.default_rng(seed)
    group = torch.from_numpy(rng.integers(0, 4, 12))
    target = soft_text_target(_unit(12, 3, seed=seed), group, power=2.0 if squared else 1.0)
    torch.testing.assert_close(target.sum(1), torch.ones(12))
    assert (target >= 0).all()
    assert (target[group[:, None] != group] == 0).all()
    assert (target.diagonal() >= target.amax(1)).all()
    for prompt in range(12):
        if (group == group[prompt]).sum() == 1:
            assert target[prompt, prompt] == 1


def test_negative_cosines_are_clamped_or_kept() -> None:
    text, group = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 0])
    assert soft_text_target(text, group).tolist() == [[1, 0], [0, 1]]
    assert soft_text_target(text, group, clamp=False)[0, 1] == pytest.approx(-0.8 / 0.2)
    with pytest.raises(ValueError, match="clamp the cosines"):
        soft_text_target(text, group, power=0.5, clamp=False)


# --- Contrastive pre-training ---


def test_identical_masks_are_told_apart_by_chance() -> None:
    points = _unit(5, 8)
    terms = _one_pair_each(points, torch.ones(5, 8), torch.zeros(5, dtype=torch.int64), _unit(3, 8), torch.eye(3))
    assert terms.image.item() == pytest.approx(math.log(5), rel=1e-5)


def test_orthonormal_superpoints_that_equal_their_masks_cost_nothing_when_cold() -> None:
    basis = torch.eye(6)
    costs = [
        _one_pair_each(basis, basis, torch.arange(6), basis, torch.eye(6), TmpConfig(temperature=temperature)).image
        for temperature in (1.0, 0.2, 0.02)
    ]
    assert costs[0] > costs[1] > costs[2] and costs[2].item() == pytest.approx(0, abs=1e-6)


def test_the_text_term_is_at_least_the_entropy_of_its_target() -> None:
    text, group = _unit(9, 5), torch.arange(9) // 3
    target = soft_text_target(text, group)
    entropy = -(target * target.clamp(min=1e-30).log()).sum(1)
    for prompt in range(9):
        for seed in range(5):
            terms = _one_pair_each(_unit(1, 5, seed=seed), _unit(1, 5), torch.tensor([prompt]), text, target)
            assert terms.text > entropy[prompt] - 1e-5


def _random_batch(seed: int, n_superpoints: int = 12) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, size: int) -> Tensor:
        return torch.randint(high, (size,), generator=generator)

    return {
        "voxel_features": _unit(40, 6, seed=seed),
        "pair_voxel": draw(40, 60),
        "pair_superpoint": draw(n_superpoints, 60),
        "superpoint_vector": _unit(n_superpoints, 6, seed=seed + 1),
        "superpoint_prompt": draw(7, n_superpoints),
        "superpoint_frame": draw(3, n_superpoints).sort().values,
        "text": _unit(7, 6, seed=seed + 2),
        "target": soft_text_target(_unit(7, 6, seed=seed + 2), torch.tensor([0, 0, 0, 1, 1, 2, 3])),
    }


@pytest.mark.parametrize("negatives", ["local", "frame", "global"])
@given(seed=st.integers(0, 50))
def test_the_order_of_superpoints_and_pairs_does_not_matter(negatives: Negatives, seed: int) -> None:
    batch, config = _random_batch(seed), TmpConfig(negatives=negatives)
    generator = torch.Generator().manual_seed(seed)
    pairs, points = torch.randperm(60, generator=generator), torch.randperm(12, generator=generator)
    shuffled = batch | {
        "pair_voxel": batch["pair_voxel"][pairs],
        "pair_superpoint": torch.argsort(points)[batch["pair_superpoint"]][pairs],
        **{name: batch[name][points] for name in batch if name.startswith("superpoint_")},
    }
    for one, other in zip(tmp_loss(**batch, config=config), tmp_loss(**shuffled, config=config), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_superpoints_without_points_do_not_contribute() -> None:
    batch = _random_batch(3)
    extra = {
        "superpoint_vector": torch.cat([batch["superpoint_vector"], torch.full((2, 6), torch.nan)]),
        "superpoint_prompt": torch.cat([batch["superpoint_prompt"], torch.tensor([0, 1])]),
        "superpoint_frame": torch.cat([batch["superpoint_frame"], torch.tensor([2, 5])]),
    }
    for negatives in ("local", "frame", "global"):
        config = TmpConfig(negatives=negatives)
        assert tmp_loss(**batch | extra, config=config) == tmp_loss(**batch, config=config)


def test_an_empty_batch_costs_nothing_and_pulls_nowhere() -> None:
    features = _unit(4, 6).requires_grad_()
    none = torch.zeros(0, dtype=torch.int64)
    batch = _random_batch(0) | {"voxel_features": features, "pair_voxel": none, "pair_superpoint": none}
    terms = tmp_loss(**batch, config=TmpConfig())
    terms.total.backward()
    assert [term.item() for term in terms] == [0, 0, 0]
    assert features.grad is not None and (features.grad == 0).all()


def test_hundreds_of_masks_in_one_image_stay_apart() -> None:
    points = _unit(400, 64)
    ours = _one_pair_each(points, points, torch.arange(400) % 7, _unit(7, 64), torch.eye(7)).image
    expected = F.cross_entropy(points @ points.T / 0.07, torch.arange(400))
    assert ours.item() == pytest.approx(expected.item(), rel=1e-4)


def test_frames_as_negatives_give_the_mean_of_single_frames() -> None:
    batch = _random_batch(1)
    config = TmpConfig(negatives="frame")
    alone = []
    for frame in batch["superpoint_frame"].unique():
        mine = batch["superpoint_frame"] == frame
        of_pair = mine[batch["pair_superpoint"]]
        new_index = mine.cumsum(0) - 1
        alone.append(
            tmp_loss(
                **batch
                | {
                    "pair_voxel": batch["pair_voxel"][of_pair],
                    "pair_superpoint": new_index[batch["pair_superpoint"][of_pair]],
                    **{name: batch[name][mine] for name in batch if name.startswith("superpoint_")},
                },
                config=PARITY,
            )
        )
    together = tmp_loss(**batch, config=config)
    for term, singles in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(term, torch.stack(singles).mean())


def test_superpoints_of_the_same_prompt_are_no_negatives_when_masked() -> None:
    points = _unit(3, 8)
    same = torch.tensor([4, 4, 4])
    masked = _one_pair_each(points, points, same, _unit(5, 8), torch.eye(5), TmpConfig(mask_same_prompt=True))
    assert masked.image.item() == pytest.approx(0, abs=1e-6)
    different = torch.tensor([1, 2, 3])
    kept = _one_pair_each(points, points, different, _unit(5, 8), torch.eye(5), TmpConfig(mask_same_prompt=True))
    plain = _one_pair_each(points, points, different, _unit(5, 8), torch.eye(5))
    assert kept.image == plain.image > 0


def test_renormalised_superpoints_ignore_how_far_their_voxels_spread() -> None:
    spread = torch.tensor([[1.0, 0.0], [0.0, 1.0], [math.sqrt(0.5), math.sqrt(0.5)]])
    zeros = torch.zeros(1, dtype=torch.int64)
    arguments = (torch.tensor([[0.0, 1.0]]), zeros, zeros, torch.eye(2), torch.eye(2), TmpConfig(renormalise=True))
    both = tmp_loss(spread, torch.tensor([0, 1]), torch.tensor([0, 0]), *arguments)
    middle = tmp_loss(spread, torch.tensor([2]), torch.tensor([0]), *arguments)
    torch.testing.assert_close(both.text, middle.text)


def test_the_total_weighs_its_terms() -> None:
    terms = tmp_loss(**_random_batch(5), config=TmpConfig(image_weight=0.25, text_weight=2.0))
    assert terms.total.item() == pytest.approx(0.25 * terms.image.item() + 2 * terms.text.item())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"image_weight": -1.0}, "image_weight is -1.0"),
        ({"image_weight": 0.0, "text_weight": 0.0}, "both 0"),
        ({"negatives": "all"}, "negatives is 'all'"),
        ({"target_weight": 1.5}, "own weight is 1.5"),
        ({"target_power": 0.0}, "power of the cosines is 0.0"),
        ({"target_power": 1.5, "clamp_cosines": False}, "clamp the cosines"),
    ],
)
def test_config_values_out_of_range_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TmpConfig(**fields)


def test_the_pretraining_loss_equals_the_reference_implementation() -> None:
    golden, words = np.load(GOLDEN / "tmp_loss_a.npz"), np.load(GOLDEN / "tmp_vocab.npz")
    view, row, col = golden["pairing_images"].T
    segment = golden["superpixels"][view, row, col].astype(np.int64)
    # The files number segments from 1 and their features from 0.
    row_of = {(image, number + 1): i for i, (image, number, _) in enumerate(golden["features_ids"].tolist())}
    kept = segment > 0
    superpoint = [row_of[key] for key in zip(view[kept].tolist(), segment[kept].tolist(), strict=True)]
    text = torch.from_numpy(golden["text_embedding"][:175])
    target = soft_text_target(text, torch.from_numpy(words["class_of_word"].astype(np.int64)), clamp=False)
    prompt = torch.from_numpy(golden["features_ids"][:, 2].astype(np.int64))
    features = torch.from_numpy(golden["output_points"]).requires_grad_()
    pair_voxel = torch.from_numpy(golden["pairing_points"][kept].astype(np.int64))

    pooled, counts = pool_superpoints(features, pair_voxel, torch.tensor(superpoint), len(prompt))
    np.testing.assert_allclose(pooled[counts > 0].detach(), golden["k"], atol=1e-6)
    vectors = torch.from_numpy(golden["features_vec"])
    np.testing.assert_allclose(F.normalize(vectors, dim=1)[counts > 0], golden["qi"], atol=1e-6)
    np.testing.assert_allclose(target[prompt[counts > 0]], golden["target"], atol=1e-6)

    frame = torch.zeros_like(prompt)
    terms = tmp_loss(features, pair_voxel, torch.tensor(superpoint), vectors, prompt, frame, text, target, PARITY)
    assert terms.total.item() == pytest.approx(float(golden["loss"]), rel=1e-5)
    assert terms.image.item() == pytest.approx(float(golden["nce_image"]), rel=1e-5)
    assert terms.text.item() == pytest.approx(float(golden["nce_text"]), rel=1e-5)
    terms.total.backward()
    assert features.grad is not None
    expected = golden["grad_output_points"]
    np.testing.assert_allclose(features.grad, expected, atol=1e-5 * np.abs(expected).max())


def test_both_softmaxes_equal_the_reference_implementation() -> None:
    golden = np.load(GOLDEN / "nce_loss.npz")
    points = torch.from_numpy(golden["k"]).requires_grad_()
    prompt, text, target = torch.arange(120), torch.from_numpy(golden["q2"]), torch.from_numpy(golden["target"])
    terms = _one_pair_each(points, torch.from_numpy(golden["q"]), prompt, text, target)
    for term, loss, gradient in ((terms.image, "loss", "grad_k"), (terms.text, "loss_soft", "grad_k_soft")):
        assert term.item() == pytest.approx(float(golden[loss]), rel=1e-5)
        (got,) = torch.autograd.grad(term, points, retain_graph=True)
        np.testing.assert_allclose(got, golden[gradient], atol=1e-5 * np.abs(golden[gradient]).max())


def _in_parts(batch: dict[str, Tensor], config: TmpConfig) -> TmpTerms:
    """The sum of the shares of a batch's frames, each gone through alone."""
    with_points = torch.bincount(batch["pair_superpoint"], minlength=len(batch["superpoint_frame"])) > 0
    frames = batch["superpoint_frame"][with_points]
    whole = GlobalBatch(Counts(len(frames), len(frames.unique()), len(frames.unique())))
    shares = []
    for frame in batch["superpoint_frame"].unique():
        kept = batch["superpoint_frame"][batch["pair_superpoint"]] == frame
        alone = batch | {name: batch[name][kept] for name in ("pair_voxel", "pair_superpoint")}
        shares.append(tmp_loss(**alone, config=config, global_batch=whole))
    return TmpTerms(*(torch.stack(terms).sum() for terms in zip(*shares, strict=True)))


def test_the_shares_of_parts_add_up_to_the_loss_of_the_whole() -> None:
    batch = _random_batch(1)
    for one, other in zip(
        _in_parts(batch, TmpConfig(negatives="frame")),
        tmp_loss(**batch, config=TmpConfig(negatives="frame")),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_local_negatives_are_those_of_a_device_and_the_loss_is_the_mean_over_devices() -> None:
    batch = _random_batch(1)  # with a frame on each device, a device's negatives are its frame's
    for one, other in zip(
        _in_parts(batch, TmpConfig(negatives="local")),
        tmp_loss(**batch, config=TmpConfig(negatives="frame")),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_a_device_without_superpoints_gathers_rows_as_wide_as_those_of_the_others() -> None:
    """A table row without superpoints does not tell how wide their vectors are; unequal widths stop all devices."""
    gathered: list[Tensor] = []

    def gather(rows: Tensor) -> tuple[Tensor, int]:
        gathered.append(rows)
        return rows, 0

    batch = _random_batch(0)
    nothing = {name: batch[name][:0] for name in ("pair_voxel", "pair_superpoint", "superpoint_prompt")}
    nothing |= {"superpoint_frame": batch["superpoint_frame"][:0], "superpoint_vector": torch.zeros(0, 0)}
    whole = GlobalBatch(Counts(5, 1, 1), 2, gather)
    assert tmp_loss(**{**batch, **nothing}, config=TmpConfig(negatives="global"), global_batch=whole).total == 0
    assert gathered[0].shape == (0, batch["text"].shape[1])


def test_global_negatives_are_those_of_every_device() -> None:
    config = TmpConfig(negatives="global", mask_same_prompt=True)
    batch, other = _random_batch(1), _random_batch(2)
    joined = {
        name: torch.cat([batch[name], other[name] + shift])
        for name, shift in (("voxel_features", 0), ("pair_voxel", 40), ("pair_superpoint", 12), ("superpoint_frame", 3))
    } | {name: torch.cat([batch[name], other[name]]) for name in ("superpoint_vector", "superpoint_prompt")}
    together = tmp_loss(**batch | joined, config=config)

    def owned(part: dict[str, Tensor]) -> Tensor:
        return torch.bincount(part["pair_superpoint"], minlength=12) > 0

    n_rows = int(owned(batch).sum() + owned(other).sum())

    def gather_from(parts: tuple[dict[str, Tensor], ...], own: int) -> Callable[[Tensor], tuple[Tensor, int]]:
        def gather(rows: Tensor) -> tuple[Tensor, int]:
            name = "superpoint_vector" if rows.ndim == 2 else "superpoint_prompt"
            everything = [part[name][owned(part)] for part in parts]
            assert torch.equal(everything[own], rows)
            return torch.cat(everything), sum(len(one) for one in everything[:own])

        return gather

    shares = [
        tmp_loss(
            **part | {"text": batch["text"], "target": batch["target"]},
            config=config,
            global_batch=GlobalBatch(Counts(n_rows, 6, 2), 2, gather_from((batch, other), own)),
        )
        for own, part in enumerate((batch, other))
    ]
    for term, parts in zip(together, zip(*shares, strict=True), strict=True):
        torch.testing.assert_close(term, torch.stack(parts).sum())


# --- Segmentation ---


def test_the_lovasz_term_has_its_known_values() -> None:
    labels = torch.tensor([1, 2, 2])
    probabilities = torch.tensor([[0.1, 0.7, 0.2], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    assert lovasz_softmax(probabilities, labels).item() == pytest.approx(0.45)
    assert lovasz_softmax(F.one_hot(labels, 3).float(), labels).item() == 0


def test_ignored_rows_neither_cost_nor_learn() -> None:
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([1, 0, 2, 3, 0, 1, 1, 0])
    terms = segmentation_loss(logits, labels)
    alone = segmentation_loss(logits[labels > 0], labels[labels > 0])
    assert terms == alone and terms.total == terms.cross_entropy + terms.lovasz
    terms.total.backward()
    assert logits.grad is not None
    assert ((logits.grad != 0).any(1) == (labels > 0)).all()


def test_a_batch_without_labels_costs_nothing_and_pulls_nowhere() -> None:
    logits = torch.randn(5, 4, requires_grad=True)
    terms = segmentation_loss(logits, torch.zeros(5, dtype=torch.int64))
    terms.total.backward()
    assert [term.item() for term in terms] == [0, 0, 0]
    assert logits.grad is not None and (logits.grad == 0).all()


def test_scan_by_scan_the_lovasz_term_is_the_mean_over_scans_and_parts_add_up() -> None:
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    labels, frame = torch.tensor([1, 0, 2, 3, 0, 1, 1, 0, 2]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    terms = segmentation_loss(logits, labels, frame, "scan")
    scans = [lovasz_softmax(logits[rows].softmax(1), labels[rows]) for rows in ([0, 2, 3], [5, 6], [8])]
    torch.testing.assert_close(terms.lovasz, torch.stack(scans).mean())
    torch.testing.assert_close(terms.cross_entropy, segmentation_loss(logits, labels).cross_entropy)

    whole = GlobalBatch(Counts(6, 3, 2))
    first, rest = frame == 0, frame > 0
    shares = [segmentation_loss(logits[p], labels[p], frame[p], "scan", global_batch=whole) for p in (first, rest)]
    for term, parts in zip(terms, zip(*shares, strict=True), strict=True):
        torch.testing.assert_close(term, torch.stack(parts).sum())


# For the label: probability 0.7, 0.5 and 0.3.
THREE_VOXELS = torch.tensor([[0.1, 0.7, 0.2], [0.2, 0.3, 0.5], [0.1, 0.6, 0.3]]).log()
THREE_LABELS = torch.tensor([1, 2, 2])


def test_a_voxel_counts_as_much_as_it_weighs() -> None:
    terms = segmentation_loss(THREE_VOXELS, THREE_LABELS, weight=torch.tensor([100, 50, 0], dtype=torch.uint8))
    assert terms.cross_entropy.item() == pytest.approx(-(2 * math.log(0.7) + math.log(0.5)) / 3)
    # Class 1: both rows err by 0.3, and together they cost the whole IoU.
    # Class 2: its only row errs by 0.5, most of all, and costs the whole IoU; the 0.2 of the other adds nothing.
    assert terms.lovasz.item() == pytest.approx((0.3 + 0.5) / 2)
    twice = torch.tensor([0, 0, 1])
    counted = segmentation_loss(THREE_VOXELS[twice], THREE_LABELS[twice])
    for term, expected in zip(terms, counted, strict=True):
        torch.testing.assert_close(term, expected)


def test_equal_weights_are_none_and_no_weight_teaches_nothing() -> None:
    for lovasz in ("batch", "scan"):
        frame = torch.tensor([0, 0, 1])
        plain = segmentation_loss(THREE_VOXELS, THREE_LABELS, frame, lovasz)
        same = torch.full((3,), 255, dtype=torch.uint8)
        weighted = segmentation_loss(THREE_VOXELS, THREE_LABELS, frame, lovasz, weight=same)
        for term, expected in zip(weighted, plain, strict=True):
            torch.testing.assert_close(term, expected)
        logits = THREE_VOXELS.clone().requires_grad_()
        nothing = segmentation_loss(logits, THREE_LABELS, frame, lovasz, weight=torch.zeros_like(same))
        nothing.total.backward()
        assert [term.item() for term in nothing] == [0, 0, 0]
        assert logits.grad is not None and (logits.grad == 0).all()


def test_the_shares_of_weighted_parts_add_up() -> None:
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    labels, frame = torch.tensor([1, 0, 2, 3, 0, 1, 1, 0, 2]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    weight = torch.tensor([9, 8, 7, 6, 5, 4, 3, 2, 1])
    terms = segmentation_loss(logits, labels, frame, "scan", weight=weight)
    first, rest = frame == 0, frame > 0
    parts = [counts(frame[p & (labels > 0)], weight[p & (labels > 0)]) for p in (first, rest)]
    assert [part.weight for part in parts] == [22, 8]
    whole = GlobalBatch(Counts(6, 3, 2, 30))
    shares = [
        segmentation_loss(logits[p], labels[p], frame[p], "scan", global_batch=whole, weight=weight[p])
        for p in (first, rest)
    ]
    for term, some in zip(terms, zip(*shares, strict=True), strict=True):
        torch.testing.assert_close(term, torch.stack(some).sum())


@pytest.mark.parametrize("case", ["a", "b", "c", "noignore"])
def test_the_segmentation_loss_equals_the_reference_implementation(case: str) -> None:
    golden = np.load(GOLDEN / "lovasz_ce.npz")
    logits = torch.from_numpy(golden[f"{case}_logits"]).requires_grad_()
    labels = torch.from_numpy(golden[f"{case}_labels"].astype(np.int64))
    terms = segmentation_loss(logits, labels, ignore=-1 if case == "noignore" else 0)
    assert terms.total.item() == pytest.approx(float(golden[f"{case}_loss"]), rel=1e-5)
    assert terms.cross_entropy.item() == pytest.approx(float(golden[f"{case}_ce"]), rel=1e-5)
    assert terms.lovasz.item() == pytest.approx(float(golden[f"{case}_lovasz"]), rel=1e-5)
    terms.total.backward()
    assert logits.grad is not None
    expected = golden[f"{case}_grad"]
    np.testing.assert_allclose(logits.grad, expected, atol=1e-5 * np.abs(expected).max())
