"""The quality benchmark: its formulas, its lists of prompts and held-out material, its baselines through every score."""

import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from stylemamba import VGGFeatures

ROOT = Path(__file__).parents[1]


def load(name: str, folder: str):
    """A script of the repository as a module; scripts import their neighbours by name, so it is put where they look."""
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def quality():
    before = dict(sys.modules)
    load("fusion", "benchmarks")
    load("style_judge", "benchmarks")
    load("lpips_jax", "benchmarks")
    load("lpips_alexnet", "benchmarks")
    yield load("quality", "benchmarks")
    for name in (
        "manifest",
        "fusion",
        "style_judge",
        "lpips_jax",
        "lpips_alexnet",
        "quality",
        "held_out",
        "test_style_judge",
    ):
        sys.modules.pop(name, None)
        if name in before:
            sys.modules[name] = before[name]


@pytest.fixture(scope="module")
def entries():
    return json.loads((ROOT / "benchmarks" / "prompts.json").read_text())


def held_out():
    return json.loads((ROOT / "training" / "held_out.json").read_text())


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class TestPrompts:
    def test_24_labels_of_every_kind(self, entries):
        assert len({entry["label"] for entry in entries}) == 24
        kinds = Counter(entry["kind"] for entry in entries)
        assert (
            set(kinds) == {"artist", "movement", "medium", "material", "light"} and min(kinds.values()) >= 3
        )

    def test_every_text_is_another_one_and_no_held_out_caption(self, entries):
        texts = [entry[key].casefold() for entry in entries for key in ("prompt", "reworded")]
        assert len(set(texts)) == 48
        assert not set(texts) & {caption.casefold() for caption in held_out()["captions"]}

    def test_rewording_shares_no_word_with_the_prompt_but_a_name(self, entries):
        names = {"monet", "klimt", "turner", "rembrandt", "beardsley", "dore", "malevich"}
        small = set("a an the of in on by and with to as for this it like first world war".split())
        for entry in entries:
            prompt, reworded = (
                set(re.findall(r"\w+", entry[key].casefold())) for key in ("prompt", "reworded")
            )
            assert not (prompt & reworded) - names - small, entry


def test_held_out_photos():
    photos = held_out()["photos"]
    assert len(set(photos)) == 52
    assert all(p.startswith("eval/content-") for p in photos[:12])
    assert all(p.startswith("content/") for p in photos[12:])


def test_hold_out_leaves_each_label_a_caption_and_ignores_the_order():
    load("manifest", "training")
    module = load("held_out", "training")
    rows = [
        {"kind": "content", "file": f"content/{i}.webp", "label": "x", "captions": ["x"]} for i in range(60)
    ]
    rows += [
        {"kind": "style", "file": "s", "label": f"l{n}", "captions": [f"l{n}c{i}" for i in range(n)]}
        for n in (2, 3, 5)
    ]
    rows += [
        {"kind": "eval", "role": "content", "file": "eval/a"},
        {"kind": "eval", "role": "style", "file": "eval/b"},
    ]
    found = module.hold_out(rows)
    assert found == module.hold_out(rows[::-1])
    assert found["photos"][0] == "eval/a" and len(found["photos"]) == 41
    assert sorted(caption[:2] for caption in found["captions"]) == ["l3", "l5"]


def test_colour_transfer_gives_mean_and_deviation_of_the_painting(quality):
    photo, painting = images(1, 3, 32, 32), 0.4 + 0.2 * images(1, 3, 20, 24, seed=1)  # nothing is clipped
    result = quality.colour_transfer(photo, painting)
    torch.testing.assert_close(result.mean((2, 3)), painting.mean((2, 3)), atol=1e-3, rtol=0)
    torch.testing.assert_close(result.std((2, 3)), painting.std((2, 3)), atol=1e-3, rtol=0)


def test_monotone(quality):
    assert quality.monotone([1.0, 0.9, 0.9, 0.2], "ssim") and not quality.monotone([1.0, 0.8, 0.9], "ssim")
    assert quality.monotone([0.0, 0.1, 0.1], "lpips") and not quality.monotone([0.0, 0.2, 0.1], "lpips")


def test_a_bar_is_passed_at_its_bound_and_never_unmeasured(quality):
    assert quality.passes(0.6, ">=", 0.6) and not quality.passes(0.599, ">=", 0.6)
    assert quality.passes(1.5, "<=", 1.5) and not quality.passes(1.501, "<=", 1.5)
    assert not quality.passes(None, "<=", 1.5) and not quality.passes(float("nan"), ">=", 0.0)


def lpips_of_random_alexnet():
    sizes = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))
    layers = [
        {"weight": images(out, wide, side, side, seed=out) - 0.5, "bias": torch.zeros(out)}
        for out, wide, side in sizes
    ]
    return sys.modules["lpips_alexnet"].LpipsAlexNet(layers, "random AlexNet")


@pytest.fixture
def scored(quality, pipe, tmp_path):
    """Two photos, two labels, methods without a model, through every score."""
    judging = sys.modules["style_judge"]
    alexnet = judging.AlexFeatures(load("test_style_judge", "tests").random_alexnet(), "random")
    files = []
    for i in range(6):
        files.append(f"{i}.png")
        Image.fromarray((images(40, 50, 3, seed=i) ** (1 + i) * 255).byte().numpy()).save(
            tmp_path / files[-1]
        )
    squares = [judging.square(Image.open(tmp_path / file)) for file in files]
    statistics = torch.cat([judging.channel_statistics(alexnet(one)) for one in squares])
    artworks = judging.Artworks(statistics, files, ["a", "a", "a", "b", "b", "b"])
    vgg = VGGFeatures(channels=(4, 4, 4, 4, 4))
    entries = [{"label": label, "prompt": label, "reworded": label} for label in "ab"]
    judge = judging.StyleJudge(artworks)
    scorer = quality.Scorer(judge, artworks, alexnet, lpips_of_random_alexnet(), pipe, vgg, tmp_path, entries)
    todo = quality.jobs([tmp_path / files[0], tmp_path / files[5]], entries, artworks, tmp_path, 64, seed=0)
    methods = {
        "identity": quality.Method(lambda job: job.photo, prompted=False),
        "negative": quality.Method(lambda job: 1 - job.photo, prompted=False),
        "model": quality.Method(lambda job: quality.photo_square(job.painting, 64)),
    }
    return todo, scorer, quality.evaluate(todo, methods, scorer, tmp_path / "kept"), tmp_path


class TestEvaluate:
    def test_jobs_are_led_by_the_label_asked_for_and_by_another(self, scored):
        todo = scored[0]
        assert [(job.photo_number, job.prompt_number) for job in todo] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        for job in todo:
            own, other = int(job.painting.stem) // 3, int(job.unrelated.stem) // 3
            assert "ab"[own] == job.entry["label"] != "ab"[other]

    def test_identity_is_perfect_against_the_photo_and_the_negative_is_not(self, scored):
        scores = scored[2][0]
        for one, other in zip(scores["identity"], scores["negative"], strict=True):
            assert one["vgg_normalised"] == 0 < other["vgg_normalised"]
            assert one["ssim"] > 0.999 and one["lpips"] < 1e-6 and one["cfsd"] < 1e-4
            assert other["ssim"] < 0.5 and other["lpips"] > 1e-4
            assert one["lpips_shift_tolerant"] < 1e-6 and other["lpips_shift_tolerant"] > 1e-4
            assert one["dir_own"] == pytest.approx(0, abs=1e-3)  # it has gone nowhere

    def test_the_judge_knows_its_own_artworks(self, scored):
        scores = scored[2][0]
        ranks = [
            one["rank"] for one in scores["identity"]
        ]  # photo 0 is an artwork of "a", photo 1 one of "b"
        assert ranks == [0, 1, 1, 0]
        assert [one["top1"] for one in scores["identity"]] == [1, 0, 0, 1]
        assert all(one["top5"] for one in scores["identity"])

    def test_a_row_for_each_score_that_says_how_it_was_taken(self, quality, scored):
        todo, scorer, (scores, *_), _ = scored
        rows = quality.table(scores, scorer, [job.prompt_number for job in todo], 64, seed=3)
        assert set(rows["model"]) == set(quality.COLUMNS) - {
            "prob_own"
        }  # the tiny pipeline has no scale and bias
        for name, row in rows["model"].items():
            assert row["pairs"] == 4 and row["seed"] == 3 and row["range"] == "[0, 1]", name
            assert row["interval"][0] <= row["value"] <= row["interval"][1] + 1e-9, name
            assert row["encoder"] or name == "ssim"
        assert rows["model"]["lpips"]["resolution"] == "64x64"
        networks = [rows["model"][column]["encoder"] for column in ("lpips", "lpips_shift_tolerant")]
        assert networks == ["random AlexNet", "random"]
        assert "own" in rows["model"]["cos_own"]["encoder"]

    def test_without_an_alexnet_of_its_own_lpips_is_the_judges(self, quality, scored, pipe):
        todo, scorer, (scores, *_), folder = scored
        nothing = sys.modules["style_judge"].Artworks(torch.zeros(0, 1), [], [])
        alone = quality.Scorer(scorer.judge, nothing, scorer.alexnet, None, pipe, None, folder, [])
        _, found = alone.views(1 - todo[0].photo, todo[0])
        assert "lpips_shift_tolerant" not in found
        assert found["lpips"] == pytest.approx(scores["negative"][0]["lpips_shift_tolerant"])
        assert alone.how("lpips", 64)["encoder"] == scorer.alexnet.name

    def test_pictures_of_different_prompts_are_compared_and_all_are_kept(self, scored):
        between, folder = scored[2][2], scored[3]
        assert len(between) == 2 and all(distance > 0 for distance in between)
        kept = sorted(str(file.relative_to(folder / "kept")) for file in (folder / "kept").rglob("*.png"))
        assert kept == [
            "identity/00.png", "identity/01.png", "model/00-a.png", "model/00-b.png", "model/01-a.png", "model/01-b.png",
            "negative/00.png", "negative/01.png",
        ]  # fmt: skip
