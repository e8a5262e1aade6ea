"""Scores, intervals and paired differences, against plain definitions."""

import numpy as np
import pytest

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import scores


def make(size=400, right=0.7, seed=0, confidence=None):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 50, size)
    top = (labels[:, None] + 1 + np.arange(5)) % 50
    hit = draw.random(size) < right
    top[hit, 0] = labels[hit]
    second = ~hit & (draw.random(size) < 0.5)
    top[second, 3] = labels[second]
    return {
        "top": top.astype(np.int16),
        "labels": labels.astype(np.int16),
        "nll": draw.gamma(2, size=size).astype(np.float32),
        "brier": draw.random(size).astype(np.float32),
        "confidence": (draw.random(size) if confidence is None else np.full(size, confidence)).astype(
            np.float32
        ),
        "ids": draw.permutation(10**6)[:size].astype("<u8"),
    }


def score(found):
    return scores.score(scores.columns_of(found))


def differ(ours, theirs):
    return scores.differ(scores.columns_of(ours), scores.columns_of(theirs))


def calibration_error(found):
    """Guo et al. 2017, equation 3, bin by bin."""
    hit = found["top"][:, 0] == found["labels"]
    total = 0.0
    for b in range(15):
        inside = (found["confidence"] > b / 15) & (found["confidence"] <= (b + 1) / 15)
        if b == 0:
            inside |= found["confidence"] == 0
        if inside.any():
            total += inside.sum() * abs(hit[inside].mean() - found["confidence"][inside].mean())
    return total / len(hit)


def test_scores_are_their_definitions():
    found = make()
    got = score(found)
    assert got["top1"].value == np.mean(found["top"][:, 0] == found["labels"])
    assert got["top5"].value == np.mean(
        [own in top for own, top in zip(found["labels"], found["top"], strict=True)]
    )
    assert got["top5"].value > got["top1"].value
    assert got["nll"].value == pytest.approx(found["nll"].mean(dtype=np.float64))
    assert got["brier"].value == pytest.approx(found["brier"].mean(dtype=np.float64))
    assert got["ece"].value == pytest.approx(calibration_error(found))


def test_a_network_as_confident_as_it_is_right_is_calibrated():
    found = make(right=0.5, confidence=0.5)
    hit = (found["top"][:, 0] == found["labels"]).mean()
    assert score(found)["ece"].value == pytest.approx(abs(hit - 0.5))


def test_intervals_hold_the_truth_about_95_times_in_a_hundred():
    inside = {"top1": 0, "nll": 0}
    for seed in range(60):
        got = score(make(size=300, right=0.7, seed=seed))
        inside["top1"] += got["top1"].low <= 0.7 <= got["top1"].high
        inside["nll"] += got["nll"].low <= 2.0 <= got["nll"].high  # the mean of gamma(2)
    assert all(50 <= count <= 60 for count in inside.values()), inside  # 57 ± 2


def test_an_interval_is_as_wide_as_the_binomials():
    size, right = 2000, 0.6
    got = score(make(size, right, seed=3))["top1"]
    width = 2 * 1.96 * np.sqrt(got.value * (1 - got.value) / size)
    assert got.high - got.low == pytest.approx(width, rel=0.1)
    assert got.low < got.value < got.high


@pytest.mark.parametrize(("right", "interval"), [(1.0, (0.9119, 1.0)), (0.0, (0.0, 0.0881))])
def test_no_example_right_or_all_of_them_is_no_certainty(right, interval):
    found = make(size=40, right=right)
    got = score(found)["top1"]
    assert got.value == right
    assert (got.low, got.high) == pytest.approx(interval, abs=1e-4)  # of 40: tables of Clopper and Pearson


def test_the_interval_of_the_calibration_error_holds_its_estimate():
    got = score(make(size=200))["ece"]
    assert 0 <= got.low < got.value < got.high


def test_scores_of_the_same_predictions_repeat_exactly():
    assert score(make()) == score(make())


def test_a_difference_is_paired_by_id_whatever_the_order():
    ours, theirs = make(seed=1), make(seed=1)
    wrong = np.flatnonzero(ours["top"][:, 0] == ours["labels"])[:30]
    theirs["top"] = theirs["top"].copy()
    theirs["top"][wrong, 0] = (theirs["labels"][wrong] + 7) % 50
    shuffled = np.random.default_rng(0).permutation(400)
    theirs = {name: value[shuffled] for name, value in theirs.items()}
    found = differ(ours, theirs)
    assert found.scores["top1"].value == pytest.approx(30 / 400)
    assert 0 < found.scores["top1"].low < 30 / 400 < found.scores["top1"].high
    assert found.scores["nll"] == (0, 0, 0)
    assert sorted(found.gained[:, 0]) == sorted(wrong)
    assert (ours["ids"][found.gained[:, 0]] == theirs["ids"][found.gained[:, 1]]).all()
    assert not len(found.lost)
    back = differ(theirs, ours)
    assert len(back.lost) == 30
    assert back.scores["top1"].value == pytest.approx(-30 / 400)


def test_pairing_narrows_the_interval_where_networks_agree():
    ours, theirs = make(seed=1), make(seed=1)
    theirs["top"] = theirs["top"].copy()
    theirs["top"][:5, 0] = (theirs["labels"][:5] + 7) % 50
    apart = score(ours)["top1"]
    paired = differ(ours, theirs).scores["top1"]
    assert paired.high - paired.low < (apart.high - apart.low) / 2


def test_predictions_of_other_images_are_refused():
    ours, theirs = make(), make()
    theirs["ids"] = theirs["ids"].copy()
    theirs["ids"][3] = 10**7
    with pytest.raises(Refusal, match=r"not judged on the same images: 400 and 400, 399 of them in both"):
        differ(ours, theirs)


def test_the_interval_of_a_calibrated_network_holds_its_estimate_too():
    for seed in range(30):
        found = make(size=160, seed=seed)
        hit = np.random.default_rng(seed).random(160) < found["confidence"]
        found["top"][:, 0] = np.where(hit, found["labels"], (found["labels"] + 1) % 50)
        got = score(found)["ece"]
        assert 0 <= got.low <= got.value <= got.high


def real(top, answers, ids=None):
    found = make(size=len(top))
    found["top"] = np.repeat(np.array(top, np.int16)[:, None], 5, axis=1)
    return scores.answered(found | {"ids": np.arange(len(top), dtype="<u8")}, answers)


def test_an_answer_is_right_if_it_is_any_of_the_right_ones_and_unanswerable_images_do_not_count():
    got = scores.score(real([1, 2, 3, 4], [(7, 1), (3,), (), (4,)]))
    assert list(got) == ["top1"]
    assert got["top1"].value == pytest.approx(2 / 3)
    assert 0 <= got["top1"].low <= got["top1"].value <= got["top1"].high <= 1
    with pytest.raises(Refusal, match="none of the 2 images has a right answer"):
        real([1, 2], [(), ()])


def test_a_difference_of_answers_is_of_the_images_that_have_one():
    answers = [(7, 1), (3,), (), (4,), (5,)]
    ours, theirs = real([1, 3, 0, 4, 0], answers), real([1, 0, 9, 4, 5], answers)
    found = scores.differ(ours, theirs)
    assert found.scores["top1"].value == 0
    assert ours.rows[found.gained[:, 0]].tolist() == [1]
    assert ours.rows[found.lost[:, 0]].tolist() == [4]
