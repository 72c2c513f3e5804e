import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from asymrec.errors import EvaluationError
from asymrec.evaluation import charts, evaluate, paired_bootstrap
from asymrec.evaluation.report import PARTS, render, write_report
from asymrec.evaluation.summary import duration, ordinal, percent, summary

VOID = {"meta", "br"}


class Rows:
    def __init__(self, rows):
        self.offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        self.items = np.array([item for row in rows for item in row], np.int32)

    def take(self, rows):
        return Rows([self.items[self.offsets[row] : self.offsets[row + 1]] for row in rows])


class Page(HTMLParser):
    """Text, tags and a proof that every tag that opens closes."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


class Noisy:
    """Knows the targets, up to noise."""

    def __init__(self, targets, n_items, noise, counts, hint=1.0):
        self.targets, self.n, self.noise, self.counts, self.hint, self.at = targets, n_items, noise, counts, hint, 0

    def scores(self, histories):
        b = len(histories.offsets) - 1
        rng = np.random.default_rng(self.at)
        scores = rng.normal(size=(b, self.n)) * self.noise + np.log1p(self.counts) * 0.1
        scores[np.arange(b), self.targets[self.at : self.at + b]] += self.hint
        self.at += b
        return scores.astype(np.float32)


@pytest.fixture(scope="module")
def facts():
    return sample()


def sample():
    rng = np.random.default_rng(0)
    n, users = 300, 400
    counts = (2000 / np.arange(1, n + 1) ** 1.1).astype(np.int64)
    counts[-30:] = 0
    share = np.sqrt(counts + 1)
    targets = rng.choice(n, users, p=share / share.sum())
    data = SimpleNamespace(
        users=np.arange(users),
        histories=Rows([rng.choice(n, size) for size in rng.integers(1, 70, users)]),
        targets=Rows(targets[:, None]),
    )
    ids = np.arange(n) // 2 * 2  # two items share an id
    found = {
        name: evaluate(Noisy(targets, n, noise, counts, hint), data, n, counts, groups=ids if name == "AsymRec" else None)
        for name, noise, hint in (("AsymRec", 0.6, 0.8), ("item-kNN", 0.6, 0.7), ("popularity", 1e-3, 0))
    }
    epochs = range(1, 25)
    return {
        "title": "AsymRec on Little Films",
        "subtitle": "run of a test",
        "model": "AsymRec",
        "dataset": {
            **{"name": "Little Films", "users": 450, "items": n, "interactions": 15_345, "split": "leave-last-out", "part": "test"},
            "notes": ["no timestamps: file order"],
        },
        "metrics": {name: one.metrics for name, one in found.items()},
        "comparisons": [
            {"model": "AsymRec", "baseline": name, **paired_bootstrap(found["AsymRec"], found[name]).dict()}
            for name in ("item-kNN", "popularity")
        ],
        "curves": [
            {"epoch": e, "loss": 2 + 6 / e**0.5, "ndcg": 0.06 * (1 - np.exp(-e / 5)) - 2e-5 * e * e, "seconds": 4.2} for e in epochs
        ],
        "codebook": {
            "items": n, "width": 384, "code_shape": [16, 3], "codewords": 256, "energy_kept": 0.991, "energy_kept_start": 1.0,
            "space_r2": [0.61, 0.78, 0.86], "r2": 0.853, "neighbour_recall": 0.782, "usage_gini": 0.31, "dead_codebooks": 1,
            "perplexity": [[180 + 3 * f - 20 * level if (f, level) != (5, 2) else 1.4 for level in range(3)] for f in range(16)],
            "dead_codes": [[f % 3 + level for level in range(3)] for f in range(16)],
            "identical_ids": 0.004, "shared_ids": 0.0008, "repaired_identical_ids": 0.0, "repaired_shared_ids": 0.0,
        },
        "examples": [
            {
                "user": 17,
                "history": [f"An Old Film, Part {part} (19{part + 50})" for part in range(1, 15)],
                "recommended": [{"title": f"Suggested Film {at}", "score": 1 - at / 20, "hit": at == 3} for at in range(1, 11)],
                "targets": ["Suggested Film 3"],
            },
            {
                "user": "<b>eve</b>",
                "history": ["<script>alert('history')</script>"],
                "recommended": [{"title": "<img src=x onerror=alert(1)>", "score": -0.5, "hit": False}],
                "targets": ["<script>alert(2)</script> & more"],
            },
        ],
        "config": {"quantizer": {"facets": 16, "levels": 3}, "training": {"epochs": 60, "learning_rate": 0.002}},
        "environment": {"asymrec": "0.1.0", "torch": "2.13", "cores": 2},
        "seconds": {"item vectors": 12.0, "quantizer": 9.5, "training": 100.8, "evaluation": 3.1},
    }  # fmt: skip


def test_the_whole_page(facts, tmp_path):
    write_report(tmp_path / "report.html", facts)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    for heading in ("Data", "Accuracy", "For whom, and on what", "Learning", "Codebooks", "Some users", "How it was made"):
        assert ("h2", {}) in page.tags
        assert heading in page.text
    kept = facts["metrics"]["AsymRec"]["kept"]
    figures = f"{kept['ndcg@10']:.4f}", f"{kept['recall@20']:.4f}", f"{kept['novelty@10']:.2f}"
    for value in (*figures, "best 0.0", "78.2 %", "15,345", "4 earlier"):
        assert value in page.text, value
    assert facts["metrics"]["popularity"]["removed"]["recall@5"] != kept["recall@5"]
    assert f"{facts['metrics']['popularity']['removed']['recall@5']:.4f}" in page.text
    missed = facts["metrics"]["AsymRec"]["removed"]["missed"]
    assert missed > 0
    assert f"{percent(missed / 400)} of the held-out items were in the history already" in page.text
    assert "found at place 3" in page.text
    assert "not among the first 1" in page.text
    assert len([1 for tag, has in page.tags if tag == "i" and has["class"].startswith("cell")]) == 48
    assert len([1 for tag, has in page.tags if tag == "i" and has["class"] == "cell dead"]) == 1


def test_nothing_is_fetched_and_nothing_runs(facts):
    page = render(facts)
    assert not {tag for tag, _ in Page(page).tags} & {"script", "link", "img", "iframe", "object", "base"}
    assert not re.search(r"https?://|@import|url\(", page)
    assert "default-src 'none'" in page


def test_text_of_the_user_is_escaped(facts):
    nasty = "<script>alert('x')</script>\"&"
    page = render(
        facts
        | {
            "title": nasty,
            "subtitle": nasty,
            "model": nasty,
            "dataset": {"name": nasty, nasty: nasty, "users": 3, "notes": [nasty]},
            "metrics": {nasty: facts["metrics"]["AsymRec"], "item-kNN": facts["metrics"]["item-kNN"]},
            "comparisons": [facts["comparisons"][0] | {"model": nasty}],
            "config": {nasty: {nasty: nasty}},
            "environment": {nasty: nasty},
            "seconds": {nasty: 3},
        }
    )
    parsed = Page(page)
    assert "<script" not in page
    assert "<img" not in page
    assert "<b>eve" not in page
    assert "alert('history')" in parsed.text  # shown as text
    assert parsed.text.count(nasty) >= 10


@pytest.mark.parametrize("part", [part for part in PARTS if part not in ("title", "model")])
def test_missing_and_empty_parts_are_left_out(facts, part):
    alone = render({"title": "Only", part: facts[part]})
    assert len(Page(alone).text) > 10
    without = render({name: value for name, value in facts.items() if name != part})
    assert Page(without).text != Page(render(facts)).text
    empty = type(facts[part])()
    assert Page(render(facts | {part: empty})).text == Page(without).text


def test_slices_and_code_level_hits_are_shown(facts):
    text, metrics = Page(render(facts)).text, facts["metrics"]["AsymRec"]
    slices = metrics["slices"]
    for title in ("popularity", "training count"):
        assert f"NDCG@10 by {title} of the held-out item" in text
    assert "NDCG@10 by warm and cold items" in text and "cold among cold" in text and "Cold among cold: Held-out" in text
    for part in (slices["frequency"]["0-2"], slices["frequency"]["21+"], slices["warmth"]["cold_only"], slices["warmth"]["warm"]):
        assert f"{part['kept']['ndcg@10']:.4f}" in text and f"{part['users']} users" in text
    assert "0–2 times" in text and "21+ times" in text
    level = metrics["code_level"]
    assert f"150 of 300 {metrics['kept']['recall@10']:.4f} {level['kept']['recall@10']:.4f} {metrics['kept']['ndcg@10']:.4f}" in text
    assert f"{level['removed']['ndcg@10']:.4f}" in text
    assert "Protocol: standard." in text and "validation part" not in text
    alone = {"AsymRec": metrics | {"code_level": level | {"ids": 300}}}
    assert "Every item has a code id of its own" in Page(render({"metrics": alone})).text


def test_a_page_of_the_validation_part(facts):
    text = Page(render(facts | {"dataset": facts["dataset"] | {"part": "validation", "split": "untied"}})).text
    assert "On the validation part of Little Films, AsymRec puts" in text
    assert "Protocol: untied." in text and "Measured on the validation part, for tuning: the test was left alone." in text


def test_facts_of_an_older_version(facts):
    """Without code-level hits, warmth, frequency, split and part."""
    metrics = {
        name: {key: value for key, value in found.items() if key not in ("code_level", "slices")}
        | {"slices": {kind: found["slices"][kind] for kind in ("popularity", "history")}}
        for name, found in facts["metrics"].items()
    }
    data = {label: value for label, value in facts["dataset"].items() if label not in ("split", "part")}
    text = Page(render(facts | {"metrics": metrics, "dataset": data})).text
    assert "NDCG@10 by popularity of the held-out item" in text and "NDCG@10 by length of the history" in text
    shown = text.split("How to read")[0] + text.split("For whom")[1]
    assert not any(word in shown for word in ("Protocol:", "training count", "Cold among cold", "Hits by code id"))


def test_without_cold_targets_there_is_no_card_of_them(facts):
    metrics = facts["metrics"]["AsymRec"]
    slices = metrics["slices"] | {"warmth": metrics["slices"]["warmth"] | {"cold": {"users": 0, "items": 0, "interactions": 0}}}
    text = Page(render({"metrics": {"AsymRec": metrics | {"slices": slices}}})).text
    assert "warm and cold items" not in text and "training count" in text


def test_an_unknown_part_is_named():
    with pytest.raises(EvaluationError, match="a report has no part 'curve'"):
        render({"curve": []})


def test_one_protocol_one_model_and_odd_cutoffs():
    data = SimpleNamespace(users=np.arange(3), histories=Rows([[1], [2], [3]]), targets=Rows([[1, 2], [3], [0]]))
    found = evaluate(Noisy(np.array([1, 3, 0]), 6, 0.1, np.ones(6)), data, 6, np.ones(6, int), ks=(1, 3), history="removed")
    text = Page(render({"metrics": {"A": found.metrics}})).text
    assert "@3" in text
    assert "History kept" not in text.split("How to read")[0]
    assert "of a user's held-out items among its first 3 of 6" in text


def test_numbers_that_are_none_or_not_finite(facts):
    broken = [*facts["curves"][:3], {"epoch": 4, "loss": float("nan"), "ndcg": None, "seconds": None}]
    book = {"perplexity": [[3.0]], "codewords": 4}
    metrics = {"A": facts["metrics"]["AsymRec"] | {"effective_rank": None}}
    page = render({"curves": broken, "codebook": book, "metrics": metrics})
    assert "nan" not in Page(page).text.lower()
    assert "None" not in page


def test_the_summary_is_honest(facts):
    metrics = facts["metrics"]
    ahead = summary(facts)
    share = percent(metrics["AsymRec"]["kept"]["recall@10"])
    assert ahead.startswith(f"On Little Films, AsymRec puts the held-out item among its first 10 of 300 for {share} of 400 users.")
    assert "It is ahead of the strongest baseline, item-kNN" in ahead
    assert "1 codebook is dead" in ahead
    assert "24 epochs" in ahead
    assert "2 min" in ahead
    behind = summary(facts | {"model": "item-kNN", "comparisons": []})
    assert "It does not reach the strongest baseline, AsymRec, which is better by" in behind
    even = facts | {"comparisons": [facts["comparisons"][0] | {"low": -0.01, "high": 0.02}]}
    assert "the difference is within chance" in summary(even)
    level = {"A": metrics["AsymRec"], "B": metrics["AsymRec"]}
    assert "It is level with B" in summary({"metrics": level})
    # another winner when seen items are removed is said
    turned = {"A": metrics["AsymRec"], "B": metrics["popularity"] | {"removed": {**metrics["popularity"]["removed"], "ndcg@10": 0.9}}}
    assert "With items of the history removed from the lists, B is the best (0.9000)." in summary({"metrics": turned})


def test_prose_numbers():
    assert [percent(x) for x in (0, 0.00004, 0.0789, 0.5, 1)] == ["0 %", "0.004 %", "7.9 %", "50.0 %", "100 %"]
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 112)] == ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th"]
    assert [duration(s) for s in (0.25, 42, 600, 8000)] == ["0.2 s", "42 s", "10 min", "2 h 13 min"]


def test_ticks_are_round_and_inside():
    assert charts.ticks(0, 0.057) == pytest.approx([0, 0.02, 0.04])
    assert charts.ticks(1, 60) == pytest.approx([20, 40, 60])
    assert charts.ticks(3, 3) == [3]
    for low, high in ((0.1, 0.2), (-3, 4), (0, 1e-9), (995, 1005)):
        marks = charts.ticks(low, high)
        assert 2 <= len(marks) <= 6
        assert min(marks) >= low - 1e-12 and max(marks) <= high + 1e-9
        assert np.ptp(np.diff(marks)) < 1e-6


def test_a_curve_needs_two_points_and_a_bar_a_value():
    assert charts.line([(1, 0.5)], "loss") == ""
    assert charts.bars([("head", "", [None])], ["A"], "x") == ""
    assert "<svg" in charts.line([(1, 0.5), (2, 0.5)], "flat")
