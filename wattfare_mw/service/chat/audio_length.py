"""Computes the length of audio in seconds from the sound data.

The length in a file's header is not used. A header can say one second before an hour of sound, and
a decoder still plays the hour. WAV is uncompressed, so the number of bytes gives the length. MP3 is
a sequence of frames, and the first four bytes of a frame give its length.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

#: A lower sample rate is invalid. With a very low one, a few bytes could be hours of sound.
_LEAST_RATE = 1000
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_HEADER = 12


def seconds(data: bytes) -> float | None:
    """The maximum time that a decoder plays, in seconds. None if this is neither WAV nor MP3, or if
    there is no maximum."""
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        return _wav(data)
    return _mp3(data)


def _wav(data: bytes) -> float | None:
    place = data.find(b"fmt ", _HEADER)
    if place < 0 or len(data) < place + 24:
        return None
    kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", data, place + 8)
    frame = channels * bits // 8
    if kind not in (_PCM, _FLOAT, _EXTENSIBLE) or rate < _LEAST_RATE or frame < 1 or bits % 8:
        return None
    if data.find(b"fmt ", place + 4) >= 0:
        return None  # decoders differ in which of two formats they use
    # All bytes after the format and the header of the sound: some decoders play beyond the length
    # in the file.
    return max(len(data) - place - 32, 0) / (frame * rate)


# Kilobits a second by version and layer, and samples a second, as the first bytes of a frame name
# them: ISO/IEC 11172-3 and 13818-3.
_V1_L1 = (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448)
_V1_L2 = (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
_V1_L3 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_V2_L1 = (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)
_V2_L23 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
#: Bytes outside of frames count as sound at the lowest bit rate.
_LEAST_BYTES_A_SECOND = 1000
#: A file is not MP3 if the next frame must be searched for this often.
_MOST_SEARCHES = 1000


class _Frame(NamedTuple):
    length: int
    seconds: float
    kind: tuple[int, int, int]


def _mp3(data: bytes) -> float | None:
    place = _behind_tags(data)
    total = 0.0
    frames = searches = skipped = 0
    end = len(data)
    frame = _frame(data, place)
    while place + 4 <= end:
        if frame is not None:
            following = _frame(data, place + frame.length)
            ends = place + frame.length + 4 > end
            # A decoder goes from frame to frame, and accepts a frame if the next one is of the same
            # kind.
            if ends or frames or (following is not None and following.kind == frame.kind):
                total += frame.seconds
                frames += 1
                place += frame.length
                frame = following
                continue
        searches += 1
        if searches > _MOST_SEARCHES:
            return None
        found = data.find(b"\xff", place + 1)
        found = end if found < 0 else found
        skipped += found - place
        place = found
        frame = _frame(data, place)
    return total + skipped / _LEAST_BYTES_A_SECOND if frames else None


def _behind_tags(data: bytes) -> int:
    place = 0
    while data[place : place + 3] == b"ID3" and len(data) >= place + 10:
        size = data[place + 6 : place + 10]
        if any(byte & 0x80 for byte in size):
            break
        length = size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3]
        place += 10 + length
    return place


def _frame(data: bytes, place: int) -> _Frame | None:
    """The frame that begins at this position."""
    if place + 4 > len(data):
        return None
    first, second, third = data[place], data[place + 1], data[place + 2]
    if first != 0xFF or second & 0xE0 != 0xE0:
        return None
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    rate_index, sample_index = third >> 4, third >> 2 & 3
    if version == 1 or layer == 4 or not 0 < rate_index < 15 or sample_index == 3:
        return None
    first_version = version == 3
    if first_version:
        kilobits = (_V1_L1, _V1_L2, _V1_L3)[layer - 1][rate_index]
    else:
        kilobits = (_V2_L1 if layer == 1 else _V2_L23)[rate_index]
    rate = _RATES[version][sample_index]
    padding = third >> 1 & 1
    if layer == 1:
        samples, length = 384, (12000 * kilobits // rate + padding) * 4
    else:
        samples = 1152 if layer == 2 or first_version else 576
        length = samples // 8 * 1000 * kilobits // rate + padding
    return _Frame(length, samples / rate, (version, layer, rate)) if length > 4 else None
