"""Reading pictures and masks of every form, and giving pictures back."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from stylemamba.pipeline.images import Content, collect, read_images, read_mask, to_pil

HEIGHT, WIDTH = 18, 20
BYTES = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
RGB, ALPHA, GREY = BYTES[..., :3], BYTES[..., 3], BYTES[..., 0]


def planes(array):
    """(H, W) or (H, W, C) in 0..255 -> (1, C, H, W) in [0, 1], the expectation of these tests."""
    array = array[..., None] if array.ndim == 2 else array
    return torch.tensor(array.astype(np.float32)).permute(2, 0, 1)[None] / 255


def one(image) -> Content:
    contents = read_images(image)
    assert len(contents) == 1
    return contents[0]


def assert_reads_as(image, rgb, alpha=None, atol=0.0):
    content = one(image)
    assert content.rgb.dtype == torch.float32
    torch.testing.assert_close(content.rgb, rgb, rtol=0, atol=atol)
    if alpha is None:
        assert content.alpha is None
    else:
        torch.testing.assert_close(content.alpha, alpha, rtol=0, atol=atol)


class TestNumpy:
    def test_uint8_rgb_rgba_and_grey(self):
        assert_reads_as(RGB, planes(RGB))
        assert_reads_as(BYTES, planes(RGB), planes(ALPHA))
        grey = planes(GREY).expand(1, 3, -1, -1)
        assert_reads_as(GREY, grey)
        assert_reads_as(GREY[..., None], grey)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.dtype(">f4")])
    def test_floats_of_any_width_and_byte_order(self, dtype):
        assert_reads_as((RGB / 255).astype(dtype), planes(RGB), atol=1e-3 if dtype == np.float16 else 1e-7)

    @pytest.mark.parametrize("dtype", [np.uint16, np.dtype(">u2")])
    def test_uint16_of_any_byte_order(self, dtype):
        assert_reads_as(RGB.astype(dtype) * np.array(257, dtype), planes(RGB), atol=1e-7)

    def test_a_batch_gives_one_content_each(self):
        batch = np.stack([BYTES, BYTES[::-1]])
        first, second = read_images(batch)
        assert torch.equal(first.rgb, planes(RGB)) and torch.equal(second.alpha, planes(ALPHA[::-1].copy()))

    def test_read_only_and_strided_arrays(self):
        frozen = RGB[:, ::-1]
        frozen.flags.writeable = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_reads_as(frozen, planes(np.ascontiguousarray(frozen)))


class TestPil:
    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
    def test_modes_without_alpha_read_as_pil_converts_them(self, mode):
        image = Image.fromarray(RGB).convert(mode)
        assert_reads_as(image, planes(np.array(image.convert("RGB"))))

    @pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
    def test_modes_with_alpha_keep_it(self, mode):
        image = Image.fromarray(BYTES).convert("RGBA" if mode == "PA" else mode)
        image = image.convert("PA") if mode == "PA" else image
        expected = np.array(image.convert("RGBA"))
        assert expected[..., 3].std() > 0
        assert_reads_as(image, planes(expected[..., :3]), planes(expected[..., 3]))

    @pytest.mark.parametrize("mode", ["P", "L", "RGB"])
    def test_a_transparent_colour_becomes_alpha(self, mode):
        image = Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        image.paste((255, 255, 255), (0, 0, 5, 5))
        image = image.quantize(2) if mode == "P" else image.convert(mode)
        image.info["transparency"] = image.getpixel((0, 0))
        content = one(image)
        assert not content.alpha[..., :5, :5].any() and content.alpha[..., 5:, :].all()

    @pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
    def test_16_bits_are_not_clipped_to_8(self, mode):
        counts = GREY.astype(np.uint16) * 257
        image = Image.fromarray(counts.astype({"I;16": "<u2", "I;16B": ">u2", "I": np.int32}[mode]))
        assert image.mode == mode
        assert_reads_as(image, planes(GREY).expand(1, 3, -1, -1), atol=1e-7)

    def test_floats_are_in_0_to_255_as_everywhere_in_pil(self):
        assert_reads_as(Image.fromarray(GREY).convert("F"), planes(GREY).expand(1, 3, -1, -1))


class TestTorch:
    def test_one_picture_a_batch_grey_and_alpha(self):
        rgb, alpha = planes(RGB), planes(ALPHA)
        assert_reads_as(rgb, rgb)
        assert_reads_as(rgb[0], rgb)
        assert_reads_as(rgb[0, 0], rgb[:, :1].expand(1, 3, -1, -1))
        assert_reads_as(rgb[0, :1], rgb[:, :1].expand(1, 3, -1, -1))
        assert_reads_as(torch.cat([rgb, alpha], 1), rgb, alpha)
        first, second = read_images(torch.cat([rgb, 1 - rgb]))
        assert torch.equal(first.rgb, rgb) and torch.equal(second.rgb, 1 - rgb)

    def test_counts(self):
        assert_reads_as(torch.tensor(RGB).permute(2, 0, 1), planes(RGB))
        counts = torch.tensor(RGB.astype(np.int32) * 257).to(torch.uint16).permute(2, 0, 1)
        assert_reads_as(counts, planes(RGB), atol=1e-7)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_floats_of_any_width(self, dtype):
        assert_reads_as(planes(RGB).to(dtype), planes(RGB), atol=2e-3)

    def test_a_little_overshoot_is_clamped(self):
        assert_reads_as(torch.full((3, 16, 16), 1.02), torch.ones(1, 3, 16, 16))
        assert_reads_as(torch.full((3, 16, 16), -0.02), torch.zeros(1, 3, 16, 16))


class TestLists:
    def test_nested_lists_and_batches_are_flattened_in_order(self):
        image = Image.fromarray(RGB)
        contents = read_images([image, [RGB[::-1], (planes(RGB),)], np.stack([RGB, RGB])])
        assert len(contents) == 5
        assert torch.equal(contents[1].rgb, planes(RGB[::-1].copy()))
        assert all(torch.equal(contents[i].rgb, planes(RGB)) for i in (0, 2, 3, 4))

    def test_sizes_may_differ(self):
        sizes = [content.size for content in read_images([RGB, RGB[:16, :17], Image.new("L", (31, 16))])]
        assert sizes == [(18, 20), (16, 17), (16, 31)]


def test_what_the_caller_gave_is_never_written_to():
    floats, array, image = planes(RGB), BYTES.copy(), Image.fromarray(BYTES)
    for content in read_images([floats, array, image]):
        content.rgb[:] = 0.5
    assert torch.equal(floats, planes(RGB))
    assert np.array_equal(array, BYTES) and np.array_equal(np.array(image), BYTES)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.full((3, 20, 20), torch.nan), ValueError, "NaN"),
        (np.full((20, 20), np.inf, np.float32), ValueError, "infinite"),
        (torch.empty(0, 3, 20, 20), ValueError, "empty batch"),
        (np.empty((0, 20, 20, 3), np.uint8), ValueError, "empty batch"),
        ([], ValueError, "empty batch"),
        ([Image.new("RGB", (20, 20)), []], ValueError, "empty batch"),
        (torch.empty(1, 3, 0, 20), ValueError, "20 x 0 px, wanted at least 16"),
        (np.empty((20, 0, 3), np.uint8), ValueError, "0 x 20 px, wanted at least 16"),
        (Image.new("RGB", (20, 0)), ValueError, "20 x 0 px, wanted at least 16"),
        (Image.new("RGB", (15, 20)), ValueError, "15 x 20 px, wanted at least 16"),
        (torch.zeros(3, 15, 20), ValueError, "20 x 15 px, wanted at least 16"),
        (torch.zeros(5, 20, 20), ValueError, r"\(5, 20, 20\), wanted .*C = 1, 3 or 4"),
        (np.zeros((20, 20, 5)), ValueError, r"\(20, 20, 5\), wanted .*C = 1, 3 or 4"),
        (torch.zeros(1, 20, 20, 3), ValueError, "channels first"),
        (torch.zeros(1, 1, 3, 20, 20), ValueError, r"\(1, 1, 3, 20, 20\)"),
        (torch.linspace(-1, 1, 1200).view(3, 20, 20), ValueError, r"\[-1, 1\], wanted \[0, 1\].*/ 2 \+ 0.5"),
        (torch.linspace(0, 255, 1200).view(3, 20, 20), ValueError, r"\[0, 255\], wanted \[0, 1\].*/ 255"),
        (np.zeros((20, 20, 3), np.int64), ValueError, "int64, wanted uint8"),
        (torch.zeros(3, 20, 20, dtype=torch.bool), ValueError, "bool, wanted uint8"),
        ("photo.png", TypeError, "str, wanted a PIL image"),
        (None, TypeError, "NoneType, wanted a PIL image"),
    ],
)
def test_what_is_no_picture_gives_one_clear_sentence(image, error, message):
    with pytest.raises(error, match=message) as raised:
        read_images(image)
    assert str(raised.value).startswith("image ") and "\n" not in str(raised.value)


SIZES = [(HEIGHT, WIDTH), (32, 16)]


class TestMasks:
    @pytest.mark.parametrize(
        "mask",
        [
            Image.fromarray(ALPHA),
            Image.fromarray(ALPHA.astype(np.uint16) * 257),
            Image.fromarray(ALPHA).convert("I"),
            Image.fromarray(ALPHA).convert("F"),
            Image.fromarray((ALPHA / 255).astype(np.float32)),
            ALPHA,
            ALPHA[..., None],
            ALPHA[None],
            ALPHA[None, ..., None],
            ALPHA.astype(np.uint16) * 257,
            (ALPHA / 255).astype(np.float64),
            torch.tensor(ALPHA),
            planes(ALPHA)[0, 0],
            planes(ALPHA)[0],
            planes(ALPHA),
            planes(ALPHA).double(),
            [planes(ALPHA)],
        ],
        ids=lambda m: (
            f"{type(m).__name__}-{getattr(m, 'dtype', getattr(m, 'mode', ''))}-{getattr(m, 'shape', '')}"
        ),
    )
    def test_every_form(self, mask):
        (read,) = read_mask(mask, SIZES[:1], "cpu")
        torch.testing.assert_close(read, planes(ALPHA), rtol=0, atol=1e-6)

    def test_yes_or_no(self):
        yes = ALPHA > 127
        expected = torch.tensor(yes).float()[None, None]
        ones = yes.astype(np.uint8)
        for mask in (
            yes, torch.tensor(yes), Image.fromarray(yes), yes.astype(np.int64), ones, torch.tensor(ones), Image.fromarray(ones),
        ):  # fmt: skip
            assert torch.equal(read_mask(mask, SIZES[:1], "cpu")[0], expected)

    def test_one_serves_all_and_is_resized_to_each(self):
        read = read_mask(torch.ones(1, 64, 64), SIZES, "cpu")
        assert [tuple(m.shape) for m in read] == [(1, 1, *size) for size in SIZES]
        assert all(torch.allclose(m, torch.ones(())) for m in read)

    def test_one_for_each(self):
        first, second = torch.ones(HEIGHT, WIDTH), torch.zeros(32, 16)
        for masks in ([first, second], [first[None], second[None]]):
            read = read_mask(masks, SIZES, "cpu")
            assert read[0].all() and not read[1].any()

    def test_resizing_keeps_left_left(self):
        half = torch.zeros(8, 8)
        half[:, :4] = 1
        (read,) = read_mask(half, [(64, 64)], "cpu")
        assert read[..., :24].eq(1).all() and read[..., 40:].eq(0).all()

    @pytest.mark.parametrize(
        ("mask", "error", "message"),
        [
            (torch.full((18, 20), -1.0), ValueError, r"\[-1, -1\], wanted \[0, 1\]"),
            (torch.full((18, 20), 255.0), ValueError, r"\[255, 255\], wanted \[0, 1\]"),
            (torch.full((18, 20), torch.nan), ValueError, "NaN"),
            (torch.zeros(18, 0), ValueError, r"\(18, 0\), wanted"),
            (np.zeros((18, 20, 3)), ValueError, r"\(18, 20, 3\), wanted .* no colours"),
            (torch.zeros(1, 3, 18, 20), ValueError, r"\(1, 3, 18, 20\), wanted .* no colours"),
            (torch.zeros(20), ValueError, r"\(20,\), wanted"),
            (torch.zeros(3, 18, 20), ValueError, "got 3 masks for 2 pictures"),
            ([], ValueError, "got 0 masks for 2 pictures"),
            ("mask.png", TypeError, "str, wanted a PIL image"),
        ],
    )
    def test_exception(self, mask, error, message):
        with pytest.raises(error, match=message):
            read_mask(mask, SIZES, "cpu")

    def test_the_mask_given_is_never_written_to(self):
        given_ = torch.ones(1, 1, *SIZES[0])
        read_mask(given_, SIZES[:1], "cpu")[0][:] = 0
        assert given_.all()


class TestGivingBack:
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(arrays(np.uint8, st.tuples(st.integers(16, 24), st.integers(16, 24), st.sampled_from([1, 3, 4]))))
    def test_8_bits_survive_reading_and_writing(self, array):
        content = one(array)
        back = np.array(to_pil(content.rgb, content.alpha))
        assert np.array_equal(back, np.broadcast_to(array, back.shape))

    def test_every_count_survives(self):
        ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
        assert np.array_equal(np.array(to_pil(one(ramp).rgb))[..., 0], ramp)

    def test_rounds_to_the_nearest_count(self):
        assert to_pil(torch.full((1, 3, 16, 16), 99.6 / 255)).getpixel((0, 0)) == (100, 100, 100)

    def test_out_of_range_is_clamped_and_not_wrapped(self):
        assert to_pil(torch.full((1, 3, 16, 16), 1.2)).getpixel((0, 0)) == (255, 255, 255)
        assert to_pil(torch.full((1, 3, 16, 16), -0.2)).getpixel((0, 0)) == (0, 0, 0)

    def test_one_batch_where_sizes_agree_and_a_list_where_not(self):
        same, other = Content(planes(RGB)), Content(torch.ones(1, 3, 16, 16))
        assert collect([same, same], "pt").shape == (2, 3, HEIGHT, WIDTH)
        assert collect([same, same], "np").shape == (2, HEIGHT, WIDTH, 3)
        assert [tuple(t.shape) for t in collect([same, other], "pt")] == [(3, HEIGHT, WIDTH), (3, 16, 16)]
        assert [a.shape for a in collect([same, other], "np")] == [(HEIGHT, WIDTH, 3), (16, 16, 3)]
        assert [i.size for i in collect([same, other], "pil")] == [(WIDTH, HEIGHT), (16, 16)]

    def test_alpha_comes_back_as_a_fourth_channel(self):
        content = Content(planes(RGB), planes(ALPHA))
        assert np.array_equal(np.array(collect([content], "pil")[0]), BYTES)
        assert torch.equal(collect([content], "pt"), planes(BYTES))
        assert np.array_equal(collect([content], "np"), planes(BYTES).permute(0, 2, 3, 1).numpy())
        assert len(collect([content, Content(planes(RGB))], "pt")) == 2  # 4 and 3 channels make no batch

    def test_half_precision_results_come_back_as_float32(self):
        half = Content(planes(RGB).half())
        assert collect([half], "pt").dtype == torch.float32 and collect([half], "np").dtype == np.float32
