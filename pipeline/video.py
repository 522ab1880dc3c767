"""Video files: frames in, upright and in sRGB; frames out, with the sound, the times and the size of the original.

Responsible for reading and writing by PyAV. Knows nothing of models.
"""

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from .atomic_write import atomic_write

WRITABLE = (".mp4", ".mov", ".mkv", ".m4v", ".webm")
_QUALITY = {"libx264": {"crf": "16", "preset": "medium"}, "libvpx-vp9": {"crf": "24", "b": "0"}, "mpeg4": {}}
_BT709, _UNSPECIFIED, _BT2020 = 1, 2, (9, 10)
# Seconds, in which times are given: a stream's own unit changes when its header is written.
_TICK = Fraction(1, 90000)
_HD = 720  # lines from which on players take BT.709 where a file says nothing


class VideoError(ValueError):
    """A video that cannot be read or written, with the reason in one sentence."""


class VideoFile:
    """What a video says of itself: `size` (height, width) of its frames when upright, `pixel_shape`, width by height of one of
    their pixels, `rate`, `frames` (0 if it does not say)."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        try:
            with av.open(str(self.path)) as container:
                stream = _video_stream(container, self.path)
                first = next(container.decode(stream), None)
                stated = stream.sample_aspect_ratio
                self.rate = Fraction(stream.average_rate or stream.base_rate or 25)
                seconds = stream.duration * stream.time_base if stream.duration else None
                if seconds is None and container.duration:
                    seconds = Fraction(container.duration, av.time_base)
                self.frames = stream.frames or round((seconds or 0) * self.rate)
        except (av.error.FFmpegError, OSError) as error:
            raise _unreadable(self.path, error) from error
        if first is None:
            raise VideoError(f"{self.path} holds no frame that can be decoded: it is empty or cut off.")
        self.size = _upright(first).shape[:2]
        shape = Fraction(stated or 1)
        self.pixel_shape = 1 / shape if round(first.rotation / 90) % 2 else shape

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames (H, W, 3) uint8."""
        try:
            with av.open(str(self.path)) as container:
                for frame in container.decode(_video_stream(container, self.path)):
                    yield _upright(frame)
        except av.error.FFmpegError as error:
            raise _unreadable(self.path, error) from error

    def key_frames(self, count: int) -> list[np.ndarray]:
        """`count` frames that follow each other, from the middle: what a fit with temporal terms wants."""
        start = max(0, (self.frames - count) // 2)
        chosen: list[np.ndarray] = []
        for index, frame in enumerate(self):
            if index >= start or not self.frames:
                chosen.append(frame)
            if len(chosen) == count:
                break
        if not chosen:  # it claimed more frames than it has
            chosen = [frame for frame, _ in zip(self, range(count), strict=False)]
        return chosen


def restyle_video(
    source: VideoFile,
    target: str | os.PathLike,
    restyle: Callable[[Iterator[np.ndarray]], Iterator[np.ndarray]],
    on_frame: Callable[[int], None] | None = None,
) -> int:
    """Writes `target` with what `restyle` makes of the frames, and with everything else of the source: sound, times of the
    frames, size. Whole or not at all, whenever it is left. Returns the number of frames.

    restyle: frames (H, W, 3) uint8 of sRGB, upright, to as many of the same size. on_frame: called with the number done.
    """
    target = Path(target)
    if target.suffix.lower() not in WRITABLE:
        raise VideoError(f"{target} ends in {target.suffix!r}, wanted one of {', '.join(WRITABLE)}.")
    with atomic_write(target) as part:
        try:
            with av.open(str(source.path)) as reader, av.open(str(part), "w") as writer:
                done = _copy(source, reader, writer, restyle, on_frame)
        except av.error.FFmpegError as error:
            raise VideoError(
                f"{source.path} could not be turned into {target}: {error.strerror or error}."
            ) from error
        if not done:
            raise VideoError(f"{source.path} holds no frame that can be decoded: it is empty or cut off.")
    return done


def _copy(source, reader, writer, restyle, on_frame) -> int:
    video = _video_stream(reader, source.path)
    # Without a context no decoder is known, and none of the stream's packets can be read.
    heard = [stream for stream in reader.streams.audio if stream.codec_context is not None]
    sounds = {stream.index: _add_sound(writer, stream) for stream in heard}
    out = _add_video(writer, source)
    times: list[tuple[int | None, Fraction]] = []

    def frames() -> Iterator[np.ndarray]:
        for packet in reader.demux([video, *heard]):
            if packet.stream is video:
                for frame in packet.decode():
                    times.append((frame.pts, frame.time_base))
                    yield _upright(frame)
            else:
                sounds[packet.stream.index](packet)

    done, last = 0, -1
    for pixels in restyle(frames()):
        pts, base = times.pop(0)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(
            format=out.pix_fmt, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        # Times are kept, so that a film of uneven frame rate stays with its sound; never two frames at one time.
        seconds = done / source.rate if pts is None else pts * base
        frame.pts, frame.time_base = max(round(seconds / _TICK), last + 1), _TICK
        last = frame.pts
        writer.mux(out.encode(frame))
        done += 1
        if on_frame is not None:
            on_frame(done)
    writer.mux(out.encode(None))
    for finish in sounds.values():
        finish(None)
    return done


def _add_video(writer, source: VideoFile):
    known = writer.supported_codecs
    codec = next(
        (name for name in _QUALITY if name in known and name in av.codecs_available),
        writer.default_video_codec,
    )
    out = writer.add_stream(codec, rate=source.rate, options=_QUALITY.get(codec, {}))
    out.height, out.width = source.size
    # Half the colours suit every player, but only even sizes.
    out.pix_fmt = "yuv420p" if not (out.height % 2 or out.width % 2) else "yuv444p"
    out.time_base = _TICK
    context = out.codec_context
    context.time_base = _TICK
    context.sample_aspect_ratio = source.pixel_shape
    context.color_range, context.colorspace = ColorRange.MPEG, _BT709
    context.color_primaries, context.color_trc = _BT709, _BT709
    return out


def _add_sound(writer, stream) -> Callable[[av.Packet | None], None]:
    """Takes packets of the source's sound, None at the end: as they are where the file type holds them, else anew."""
    if stream.codec_context.name in writer.supported_codecs:
        copied = writer.add_stream_from_template(stream)

        def copy(packet: av.Packet | None) -> None:
            if packet is not None and packet.dts is not None:
                packet.stream = copied
                writer.mux(packet)

        return copy

    codec = writer.default_audio_codec
    encoded = writer.add_stream(codec, rate=48000 if codec == "opus" else stream.rate)  # opus knows few rates
    fitting = av.AudioResampler(
        format=encoded.codec_context.format, layout=stream.layout.name, rate=encoded.codec_context.sample_rate
    )

    def encode(packet: av.Packet | None) -> None:
        for frame in [None] if packet is None else packet.decode():
            for resampled in fitting.resample(frame):
                writer.mux(encoded.encode(resampled))
        if packet is None:
            writer.mux(encoded.encode(None))

    return encode


def _video_stream(container, path: Path):
    if not container.streams.video:
        raise VideoError(f"{path} holds no video, only {len(container.streams.audio)} sound tracks.")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8 as a player shows it: full range, the right matrix of colours, turned."""
    space = int(frame.colorspace)
    is_hd = space == _BT709 or (space == _UNSPECIFIED and frame.height >= _HD)
    source = Colorspace.ITU709 if is_hd else Colorspace.ITU601
    if space in _BT2020:  # BT.709 is the nearest that an older PyAV names
        source = getattr(Colorspace, "BT2020", Colorspace.ITU709)
    rgb = frame.reformat(format="rgb24", src_colorspace=source, dst_color_range=ColorRange.JPEG)
    return np.rot90(rgb.to_ndarray(), round(frame.rotation / 90))


def _unreadable(path: Path, error: Exception) -> VideoError:
    reason = getattr(error, "strerror", None) or error
    return VideoError(f"{path} cannot be read as a video, it may be damaged or of an unknown kind: {reason}.")
