"""The metrics beyond their vectors: what must fail, what must be exact, and that a report can be read alone."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from stylemamba.pipeline import metrics
from stylemamba.pipeline.losses import directional_loss
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


def test_frechet_distance_of_a_set_to_itself_is_0_even_with_fewer_samples_than_features():
    features = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    mean, covariance = features.mean(0), features.T.cov()
    assert abs(metrics.frechet_distance(mean, covariance, mean, covariance)) < 1e-6
    torch.testing.assert_close(
        metrics.frechet_distance(mean, covariance, mean + 1, covariance), torch.tensor(64.0).double()
    )


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

    def test_only_what_is_given_is_scored(self):
        a = images(1, 3, 16, 16)
        assert set(metrics.score(a, a)) == {"ssim", "psnr"}
        assert set(metrics.score(a, a, encoder=ToyEncoder())) == {"ssim", "psnr"}

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
