"""The metrics beyond their vectors: what must fail, what must be exact, and that a report can be read alone."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from stylemamba.pipeline import metrics
from stylemamba.pipeline.aesthetic import AestheticRater
from stylemamba.pipeline.losses import directional_loss, mean_std_loss
from stylemamba.pipeline.perceptual import VGGFeatures


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class TestSSIM:
    @pytest.mark.parametrize("shape", [(16, 20), (3, 16, 20), (2, 3, 16, 20)])
    def test_equal_is_1_and_unrelated_is_far_below(self, shape):
        a, b = images(*shape), images(*shape, seed=1)
        torch.testing.assert_close(metrics.ssim(a, a), torch.tensor(1.0))
        assert metrics.ssim(a, b) < 0.5

    def test_channels_and_batch_are_averaged(self):
        a, b = images(2, 3, 16, 16), images(2, 3, 16, 16, seed=1)
        single = [metrics.ssim(a[i, c], b[i, c]) for i in range(2) for c in range(3)]
        torch.testing.assert_close(metrics.ssim(a, b), torch.stack(single).mean())

    def test_exception(self):
        a = images(16, 16)
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            metrics.ssim(a * 255, a * 255)
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            metrics.ssim(a * 2 - 1, a)
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            metrics.ssim(a, torch.full_like(a, math.nan))
        with pytest.raises(ValueError, match="equal"):
            metrics.ssim(a, images(16, 17))
        with pytest.raises(ValueError, match="11x11"):
            metrics.ssim(a[:10], a[:10])


def test_psnr():
    a, b = images(3, 8, 8), images(3, 8, 8, seed=1)
    mse = ((a - b) ** 2).mean().item()
    assert math.isclose(metrics.psnr(a, b), -10 * math.log10(mse), rel_tol=1e-5)
    assert math.isclose(metrics.psnr(a * 255, b * 255, data_range=255), -10 * math.log10(mse), rel_tol=1e-5)
    assert metrics.psnr(a, a) == math.inf
    with pytest.raises(ValueError, match="wanted all in"):
        metrics.psnr(a * 255, b * 255)


def test_a_report_is_json_that_every_reader_takes():
    text = metrics.as_json({"psnr": {"value": math.inf, "interval": (1.5, math.nan)}, "of": ["a", 2]})

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    wanted = {"psnr": {"value": None, "interval": [1.5, None]}, "of": ["a", 2]}
    assert json.loads(text, parse_constant=refuse) == wanted


def test_frechet_distance_of_a_set_to_itself_is_0_even_with_fewer_samples_than_features():
    features = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    mean, covariance = features.mean(0), features.T.cov()
    assert abs(metrics.frechet_distance(mean, covariance, mean, covariance)) < 1e-6
    torch.testing.assert_close(
        metrics.frechet_distance(mean, covariance, mean + 1, covariance), torch.tensor(64.0).double()
    )


class TestFID:
    def test_equal_sets_are_0_and_a_shift_is_its_square(self):
        features = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
        shift = torch.arange(8.0)
        assert abs(metrics.fid(features, features)) < 1e-6
        assert math.isclose(metrics.fid(features, features + shift), (shift**2).sum(), rel_tol=1e-6)

    def test_of_scaled_sets_along_one_axis(self):
        """Covariances that commute: Tr(S1 + S2 - 2 (S1 S2)^(1/2)) is the squared difference of the deviations."""
        features = torch.randn(40, 1, generator=torch.Generator().manual_seed(0)).double()
        features = features - features.mean()
        assert math.isclose(metrics.fid(features, 3 * features), (2 * features.std()) ** 2, rel_tol=1e-9)

    def test_exception(self):
        with pytest.raises(ValueError, match="of one network"):
            metrics.fid(torch.zeros(4, 3), torch.zeros(4, 2))
        with pytest.raises(ValueError, match="M > 1"):
            metrics.fid(torch.zeros(4, 3), torch.zeros(1, 3))


class TestBootstrap:
    def test_of_a_constant_is_that_constant(self):
        assert metrics.bootstrap_interval([0.25] * 7, 0) == (0.25, 0.25)
        assert metrics.bootstrap_interval([math.inf, math.inf], 0) == (math.inf, math.inf)

    def test_width_is_that_of_the_normal_approximation(self):
        values = torch.randn(400, generator=torch.Generator().manual_seed(0))
        low, high = metrics.bootstrap_interval(values, 0)
        assert math.isclose(high - low, 2 * 1.96 * values.std() / 20, rel_tol=0.1)
        assert low < values.mean() < high

    def test_pairs_of_a_group_are_drawn_together(self):
        """Four copies of each number say no more than the number."""
        values = torch.randn(50, generator=torch.Generator().manual_seed(0))
        groups = torch.arange(50).repeat_interleave(4)
        alone = metrics.bootstrap_interval(values, 0)
        copies = metrics.bootstrap_interval(values.repeat_interleave(4), 0, groups=groups)
        naive = metrics.bootstrap_interval(values.repeat_interleave(4), 0)
        assert math.isclose(copies[1] - copies[0], alone[1] - alone[0], rel_tol=1e-6)
        assert naive[1] - naive[0] < 0.6 * (copies[1] - copies[0])

    def test_seed_and_statistic(self):
        rows = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
        other = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
        assert metrics.bootstrap_interval(rows[:, 0], 1) == metrics.bootstrap_interval(rows[:, 0], 1)
        assert metrics.bootstrap_interval(rows[:, 0], 1) != metrics.bootstrap_interval(rows[:, 0], 2)
        low, high = metrics.bootstrap_interval(
            rows, 0, statistic=lambda drawn: metrics.fid(drawn, other), resamples=200
        )
        assert low < metrics.fid(rows, other) < high

    def test_exception(self):
        with pytest.raises(ValueError, match="at least one"):
            metrics.bootstrap_interval([], 0)
        with pytest.raises(ValueError, match="3 values and 2 groups"):
            metrics.bootstrap_interval([1.0, 2.0, 3.0], 0, groups=[0, 1])


class TestCFSD:
    def test_feature(self):
        a, b = images(2, 3, 4, 5), images(2, 3, 4, 5, seed=1)
        desired = 0.0
        for s, c in zip(a.double(), b.double(), strict=True):
            F_s, F_c = s.flatten(1).T / 3, c.flatten(1).T / 3
            Q, P = (F_s @ F_s.T).softmax(1), (F_c @ F_c.T).softmax(1)
            desired += (P * (P / Q).log()).sum() / 2
        torch.testing.assert_close(metrics.cfsd(a.double(), b.double()), desired)

    @pytest.mark.parametrize("rows", [1, 7, 20])
    def test_chunks_change_nothing(self, rows):
        a, b = images(2, 3, 4, 5).double(), images(2, 3, 4, 5, seed=1).double()
        torch.testing.assert_close(metrics.cfsd(a, b, rows=rows), metrics.cfsd(a, b))

    def test_zero_for_equal_only(self):
        a, b = images(1, 3, 4, 5).double(), images(1, 3, 4, 5, seed=1).double()
        assert abs(metrics.cfsd(a, a)) < 1e-12 < metrics.cfsd(a, b)

    def test_exception(self):
        with pytest.raises(ValueError, match="equal shapes"):
            metrics.cfsd(images(1, 3, 4, 4), images(1, 3, 4, 5))


def test_embedding_scores_are_blind_to_length():
    image, text = images(2, 8) - 0.5, images(2, 8, seed=1) - 0.5
    torch.testing.assert_close(metrics.cosine(3 * image, text), metrics.cosine(image, text))
    assert metrics.clipscore(image, -image).tolist() == [0, 0]
    rating = metrics.aesthetic_linear(image, torch.ones(8), 2.0)
    assert rating.shape == (2,)
    torch.testing.assert_close(metrics.aesthetic_linear(5 * image, torch.ones(8), 2.0), rating)


class ToyEncoder:
    """Embeds a picture by its mean colour and a text by its letters."""

    name, image_size, logit_scale, logit_bias = "toy", 8, 10.0, -1.0

    def embed_images(self, pictures):
        return torch.nn.functional.normalize(pictures.mean(dim=(2, 3)), dim=-1)

    def embed_texts(self, texts):
        counts = torch.tensor([[text.count(letter) + 1.0 for letter in "aei"] for text in texts])
        return torch.nn.functional.normalize(counts, dim=-1)


class TestScore:
    def test_every_row_says_how_it_was_taken(self):
        perceptual = VGGFeatures(channels=(3, 4, 4, 4, 4))
        stylized, content = images(2, 3, 32, 40), images(2, 3, 32, 40, seed=1)
        report = metrics.score(
            stylized, content, "a fine etching", encoder=ToyEncoder(), perceptual=perceptual, seed=7
        )
        assert set(report) == {
            "ssim", "psnr", "lpips", "vgg_normalised", "vgg_clipstyler", "cfsd", "siglip_cos", "siglip_prob", "dir_sim",
        }  # fmt: skip
        for row in report.values():
            assert {"encoder", "range", "resolution", "resize"} <= set(row)
            assert row["seed"] == 7 and row["pairs"] == 2 and row["range"] == "[0, 1]"
            assert math.isclose(row["value"], sum(row["per_image"]) / 2)
        assert report["ssim"]["resolution"] == "40x32"
        assert report["lpips"]["encoder"] == perceptual.name
        assert (report["dir_sim"]["encoder"], report["dir_sim"]["resolution"]) == ("toy", "8x8")

    def test_values(self):
        stylized, content = images(1, 3, 32, 40), images(1, 3, 32, 40, seed=1)
        encoder, perceptual = ToyEncoder(), VGGFeatures(channels=(3, 4, 4, 4, 4))
        report = metrics.score(stylized, content, "an eel", encoder=encoder, perceptual=perceptual)
        values = {name: row["value"] for name, row in report.items()}
        FY, FX = encoder.embed_images(stylized), encoder.embed_images(content)
        FT, Fsrc = encoder.embed_texts(["an eel"]), encoder.embed_texts(["a plain photo"])
        maps = [perceptual(image, ["relu3_1"])["relu3_1"] for image in (stylized, content)]
        desired = {
            "ssim": metrics.ssim(stylized, content),
            "lpips": perceptual.lpips(stylized, content),
            "cfsd": metrics.cfsd(*maps),
            "siglip_cos": (FY * FT).sum(),
            "siglip_prob": torch.sigmoid(10 * (FY * FT).sum() - 1),
            "dir_sim": 1 - directional_loss(FY, FX, FT, Fsrc),
        }
        for name, value in desired.items():
            assert math.isclose(values[name], value, rel_tol=1e-4, abs_tol=1e-6), name

    def test_style_distance_is_the_mean_over_the_paintings(self):
        perceptual = VGGFeatures(channels=(3, 4, 4, 4, 4))
        a, paintings = images(1, 3, 32, 40), [images(3, 48, 48, seed=1), images(3, 36, 60, seed=2)]
        row = metrics.score(a, a, style=paintings, perceptual=perceptual)["mean_std"]
        maps = [
            list(perceptual(x, perceptual.style_taps).values()) for x in (a, *(p[None] for p in paintings))
        ]
        desired = (mean_std_loss(maps[0], maps[1]) + mean_std_loss(maps[0], maps[2])) / 2
        assert math.isclose(row["value"], desired, rel_tol=1e-5) and row["encoder"] == perceptual.name
        assert metrics.score(a, a, style=a, perceptual=perceptual)["mean_std"]["value"] == 0

    def test_interval_holds_the_mean(self):
        report = metrics.score(images(4, 3, 16, 16), images(4, 3, 16, 16, seed=1), seed=3)
        low, high = report["psnr"]["interval"]
        assert low < report["psnr"]["value"] < high

    def test_only_what_is_given_is_scored(self):
        a = images(1, 3, 16, 16)
        assert set(metrics.score(a, a)) == {"ssim", "psnr"}
        assert set(metrics.score(a, a, encoder=ToyEncoder())) == {"ssim", "psnr"}

    def test_a_prompt_without_an_encoder_is_said(self, caplog):
        a = images(1, 3, 16, 16)
        assert set(metrics.score(a, a, "ink")) == {"ssim", "psnr"}
        assert "no encoder" in caplog.text

    def test_another_family_and_an_unknown_bias(self):
        encoder = ToyEncoder()
        encoder.family, encoder.logit_bias = "clip", None
        a = images(1, 3, 16, 16)
        assert set(metrics.score(a, a, "ink", encoder=encoder)) == {"ssim", "psnr", "clip_cos", "dir_sim"}

    def test_pictures_in_any_form_one_content_for_all(self):
        arrays = [(images(20, 24, 3, seed=seed).numpy() * 255).astype(np.uint8) for seed in range(3)]
        pictures = [Image.fromarray(array) for array in arrays]
        report = metrics.score(pictures[:2], pictures[2], ["ink", "oil"], encoder=ToyEncoder())
        again = metrics.score(np.stack(arrays[:2]), arrays[2], ["ink", "oil"], encoder=ToyEncoder())
        assert report == again and report["ssim"]["pairs"] == 2

    def test_exception(self):
        a = images(2, 3, 16, 16)
        with pytest.raises(ValueError, match="resize one"):
            metrics.score(a, images(2, 3, 16, 17))
        with pytest.raises(ValueError, match="2 stylized pictures and 3 contents"):
            metrics.score(a, images(3, 3, 16, 16))
        with pytest.raises(ValueError, match="3 prompts for 2"):
            metrics.score(a, a, ["x", "y", "z"], encoder=ToyEncoder())


class TestAesthetic:
    def head(self, folder, **changes):
        weight = torch.randn(1, 3, generator=torch.Generator().manual_seed(0))
        torch.save(
            {"linear.weight": weight, "linear.bias": torch.tensor([5.0]), **changes}, folder / "head.pth"
        )
        return folder / "head.pth", weight[0]

    def test_file_to_row(self, tmp_path):
        path, weight = self.head(tmp_path)
        rater = AestheticRater.from_file(path, ToyEncoder())
        a = images(2, 3, 16, 16)
        b = 1 - a
        of_a, of_b = ([3**0.5 * float(weight @ e) + 5 for e in ToyEncoder().embed_images(x)] for x in (a, b))
        report = metrics.score(a, b, aesthetic=rater)
        row, difference = report["aesthetic"], report["aesthetic_difference"]
        assert row["per_image"] == pytest.approx(of_a, rel=1e-5)
        assert difference["per_image"] == pytest.approx(
            [abs(x - y) for x, y in zip(of_a, of_b, strict=True)], rel=1e-4
        )
        assert row["resolution"] == "8x8" and "toy" in row["encoder"] and "head@" in row["encoder"]

    def test_exception(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="Simulacra"):
            AestheticRater.from_file(tmp_path / "none.pth", ToyEncoder())
        path, _ = self.head(tmp_path, **{"linear.weight": torch.zeros(4)})
        with pytest.raises(ValueError, match="linear.weight"):
            AestheticRater.from_file(path, ToyEncoder())
        path, _ = self.head(tmp_path, **{"linear.weight": torch.zeros(1, 5)})
        with pytest.raises(ValueError, match="gives 3 numbers"):
            AestheticRater.from_file(path, ToyEncoder())(images(1, 3, 16, 16))


def test_the_structural_distance_is_a_divergence_in_single_precision_too():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 64, 24, 24, generator=generator)
    content = 0.4 + 0.01 * noise  # rows of S that are nearly uniform
    stylised = content + 0.002 * torch.randn(content.shape, generator=generator)
    exact = metrics.cfsd(stylised.double(), content.double())
    assert exact > 0
    torch.testing.assert_close(metrics.cfsd(stylised, content).double(), exact, rtol=1e-3, atol=0)
    assert metrics.cfsd(content, content) == 0
