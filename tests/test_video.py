"""Video files in and out: what is kept of them, and what becomes of them when something goes wrong."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from stylemamba.pipeline.video import VideoError, VideoFile, restyle_video


def frame(index=0, height=48, width=64):
    """Bright on the top left, colours on the right; a square moves with the index."""
    pixels = np.full((height, width, 3), 40, np.uint8)
    pixels[: height // 3, : width // 3] = 230
    pixels[:, -width // 4 :] = (200, 60, 30)
    pixels[height // 2 : height // 2 + 8, 4 + 4 * index : 12 + 4 * index] = (20, 90, 220)
    return pixels


def write_clip(
    path,
    count=6,
    rate=12,
    size=(48, 64),
    sound="aac",
    full_range=False,
    pts=None,
    pix_fmt="yuv420p",
    codec="libx264",
    space=1,  # BT.709
    pixel_shape=1,
):
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=rate, options={"crf": "4"})
        video.height, video.width, video.pix_fmt = *size, pix_fmt
        context = video.codec_context
        context.color_range = ColorRange.JPEG if full_range else ColorRange.MPEG
        context.colorspace, context.sample_aspect_ratio = space, Fraction(pixel_shape)
        audio = out.add_stream(sound, rate=44100) if sound else None
        for index in range(count):
            picture = av.VideoFrame.from_ndarray(frame(index, *size), format="rgb24").reformat(
                format=pix_fmt, dst_colorspace=Colorspace.BT2020 if space == 9 else Colorspace.ITU709,
                dst_color_range=ColorRange.JPEG if full_range else ColorRange.MPEG,
            )  # fmt: skip
            picture.pts, picture.time_base = pts[index] if pts else index, Fraction(1, rate)
            out.mux(video.encode(picture))
        out.mux(video.encode(None))
        if audio is not None:
            samples = np.sin(np.arange(44100 // 2) / 20).astype(np.float32)[None]
            tone = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            tone.sample_rate, tone.pts = 44100, 0
            resampler = av.AudioResampler(format=audio.codec_context.format, layout="mono", rate=44100)
            for part in resampler.resample(tone):
                out.mux(audio.encode(part))
            out.mux(audio.encode(None))
    return path


def turn(path, degrees):
    """Writes a rotation into the header, as telephones do."""
    matrix = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1)}[degrees]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    values = (matrix[0], matrix[1], 0, matrix[2], matrix[3], 0, 0, 0, 0)
    for index, value in enumerate(values):
        data[at + 4 * index : at + 4 * index + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    data[at + 32 : at + 36] = (1 << 30).to_bytes(4, "big")
    path.write_bytes(data)


def same(frames):
    return frames


def sound_of(path):
    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(audio=0) if packet.size]


def times_of(path):
    with av.open(str(path)) as file:
        return [float(f.pts * f.time_base) for f in file.decode(video=0)]


def near(actual, expected):
    return np.abs(actual.astype(int) - expected.astype(int)).mean()


class TestReading:
    def test_what_a_clip_says_of_itself(self, tmp_path):
        clip = VideoFile(write_clip(tmp_path / "clip.mp4"))
        assert (clip.size, clip.rate, clip.frames) == ((48, 64), 12, 6)
        assert len(list(clip)) == 6

    @pytest.mark.parametrize("full_range", [False, True])
    def test_colours_of_both_ranges(self, tmp_path, full_range):
        clip = VideoFile(write_clip(tmp_path / "clip.mp4", full_range=full_range))
        for index, pixels in enumerate(clip):
            assert near(pixels, frame(index)) < 4
            assert abs(int(pixels[5, 5, 0]) - 230) <= 2 and abs(int(pixels[44, 30, 0]) - 40) <= 2

    def test_colours_of_hdr_films(self, tmp_path):
        """BT.2020's matrix. What the 10 bits hold beyond is cut off."""
        for index, pixels in enumerate(VideoFile(write_clip(tmp_path / "clip.mp4", space=9))):
            assert near(pixels, frame(index)) < 4
            assert np.abs(pixels[4, -8].astype(int) - (200, 60, 30)).max() <= 4

    @pytest.mark.parametrize(("degrees", "corner"), [(90, (slice(0, 10), slice(-10, None))), (180, (slice(-10, None), slice(-10, None)))])  # fmt: skip
    def test_frames_stand_upright(self, tmp_path, degrees, corner):
        path = write_clip(tmp_path / "clip.mp4")
        turn(path, degrees)
        clip = VideoFile(path)
        assert clip.size == ((64, 48) if degrees == 90 else (48, 64))
        first = next(iter(clip))
        assert first.shape[:2] == clip.size
        assert first[corner].mean() > 200  # the bright corner was turned clockwise

    def test_key_frames_follow_each_other_in_the_middle(self, tmp_path):
        clip = VideoFile(write_clip(tmp_path / "clip.mp4", count=9))
        frames, chosen = list(clip), clip.key_frames(3)
        assert all(np.array_equal(a, b) for a, b in zip(chosen, frames[3:6], strict=True))
        assert len(clip.key_frames(50)) == 9

    @pytest.mark.parametrize(
        "content", [b"", b"no video at all", b"\x00\x00\x00\x20ftypisom" + b"\x00" * 200]
    )
    def test_a_file_that_is_none_gives_one_sentence(self, tmp_path, content):
        path = tmp_path / "clip.mp4"
        path.write_bytes(content)
        with pytest.raises(VideoError, match="clip.mp4 (cannot be read as a video|holds no)") as raised:
            VideoFile(path)
        assert "\n" not in str(raised.value)

    def test_sound_alone_is_no_video(self, tmp_path):
        with av.open(str(tmp_path / "tone.mp4"), "w") as out:
            audio = out.add_stream("aac", rate=44100)
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            tone.sample_rate, tone.pts = 44100, 0
            out.mux(audio.encode(tone))
            out.mux(audio.encode(None))
        with pytest.raises(VideoError, match="holds no video, only 1 sound tracks"):
            VideoFile(tmp_path / "tone.mp4")


class TestWriting:
    def restyle(self, tmp_path, restyle=same, name="out.mp4", **clip):
        source = write_clip(tmp_path / "clip.mp4", **clip)
        target = tmp_path / name
        return source, target, restyle_video(VideoFile(source), target, restyle)

    def test_colours_size_rate_and_sound_stay(self, tmp_path):
        source, target, done = self.restyle(tmp_path)
        after = VideoFile(target)
        assert done == 6 and (after.size, after.rate, after.frames) == ((48, 64), 12, 6)
        for index, pixels in enumerate(after):
            assert near(pixels, frame(index)) < 5
        assert sound_of(target) == sound_of(source) and sound_of(target)
        assert times_of(target) == pytest.approx(times_of(source), abs=1e-3)

    @pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mov"])
    def test_times_stay_in_every_file_type(self, tmp_path, suffix):
        """Without sound the header waits for the coder's first packet, which comes after dozens of frames."""
        source, target, _ = self.restyle(tmp_path, name=f"out{suffix}", sound=None, count=70)
        assert times_of(target) == pytest.approx(times_of(source), abs=2e-3)

    def test_pixels_keep_their_shape(self, tmp_path):
        source, target, _ = self.restyle(tmp_path, pixel_shape=Fraction(4, 3))
        with av.open(str(target)) as file:
            assert file.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
        turn(source, 90)
        assert VideoFile(source).pixel_shape == Fraction(3, 4)

    def test_sound_that_nothing_decodes_is_left_out(self, tmp_path):
        source = write_clip(tmp_path / "clip.mp4")
        source.write_bytes(source.read_bytes().replace(b"mp4a", b"zzzz"))
        done = restyle_video(VideoFile(source), tmp_path / "out.mp4", same)
        assert done == len(list(VideoFile(tmp_path / "out.mp4"))) == 6

    def test_uneven_times_stay(self, tmp_path):
        source, target, _ = self.restyle(tmp_path, pts=[0, 1, 4, 5, 9, 10])
        assert times_of(target) == pytest.approx(times_of(source), abs=1e-3)

    def test_what_is_made_of_the_frames_is_written(self, tmp_path):
        _, target, _ = self.restyle(tmp_path, lambda frames: (255 - f for f in frames))
        for index, pixels in enumerate(VideoFile(target)):
            assert near(pixels, 255 - frame(index)) < 5

    def test_sound_that_the_file_type_does_not_hold_is_coded_anew(self, tmp_path):
        _, target, _ = self.restyle(tmp_path, name="out.webm")
        with av.open(str(target)) as file:
            assert file.streams.audio[0].codec_context.name in ("opus", "vorbis")
            seconds = sum(f.samples / f.sample_rate for f in file.decode(audio=0))
        assert seconds == pytest.approx(0.5, abs=0.1)

    def test_a_film_without_sound(self, tmp_path):
        _, target, _ = self.restyle(tmp_path, sound=None)
        with av.open(str(target)) as file:
            assert not file.streams.audio

    def test_odd_sizes_stay(self, tmp_path):
        _, target, _ = self.restyle(tmp_path, size=(47, 65), pix_fmt="yuv444p")
        assert VideoFile(target).size == (47, 65)

    def test_one_frame_is_a_film(self, tmp_path):
        _, target, done = self.restyle(tmp_path, count=1, sound=None)
        assert done == 1 and len(list(VideoFile(target))) == 1

    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
    def test_left_early_it_leaves_no_file(self, tmp_path, error):
        def stop(frames):
            for index, pixels in enumerate(frames):
                if index == 3:
                    raise error
                yield pixels

        with pytest.raises(error):
            self.restyle(tmp_path, stop)
        assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]

    def test_a_file_that_was_there_stays_until_the_new_one_is_whole(self, tmp_path):
        (tmp_path / "out.mp4").write_text("precious")

        def stop(frames):
            raise KeyboardInterrupt
            yield

        with pytest.raises(KeyboardInterrupt):
            self.restyle(tmp_path, stop)
        assert (tmp_path / "out.mp4").read_text() == "precious"

    def test_a_clip_that_was_cut_off_gives_a_sentence_or_the_frames_it_has(self, tmp_path):
        source = write_clip(tmp_path / "clip.mkv", count=30)
        source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        done = restyle_video(VideoFile(source), tmp_path / "out.mp4", same)
        assert 0 < done < 30 and len(list(VideoFile(tmp_path / "out.mp4"))) == done

    def test_other_suffixes_are_refused(self, tmp_path):
        source = VideoFile(write_clip(tmp_path / "clip.mp4"))
        with pytest.raises(VideoError, match=r"ends in '.gif', wanted one of .mp4"):
            restyle_video(source, tmp_path / "out.gif", same)

    def test_progress_counts_frames(self, tmp_path):
        seen = []
        source = VideoFile(write_clip(tmp_path / "clip.mp4"))
        restyle_video(source, tmp_path / "out.mp4", same, seen.append)
        assert seen == [1, 2, 3, 4, 5, 6]
