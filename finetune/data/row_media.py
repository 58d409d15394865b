"""A row's images and videos: where they are in its text, and the files they name."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from modelfiles import counted

IMAGE, VIDEO = "<image>", "<video>"
MARKS = re.compile(f"({IMAGE}|{VIDEO})")
INLINE = ("data:", "http://", "https://")
# How JPEG, PNG, WebP and GIF files begin in base64.
BASE64 = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD")


@dataclass(frozen=True)
class Video:
    """A video: its file (a URL only until it is refused), or its frames in order, each as an image is given."""

    source: Path | str | tuple[Path | str, ...]

    @property
    def files(self) -> tuple[Path | str, ...]:
        """The file, or the frames'."""
        return self.source if isinstance(self.source, tuple) else (self.source,)


def media_of(record: dict[str, Any]) -> list[Path | str | Video]:
    """The images and videos that a line names."""
    videos = [
        Video(tuple(map(Path, video)) if isinstance(video, list) else Path(video)) for video in record.get("videos", [])
    ]
    return [*map(Path, record.get("images", [])), *videos]


@dataclass
class InlineMedia:
    """What the content parts of OpenAI's messages hold."""

    images: list[str] = field(default_factory=list)
    videos: list[str | list[str]] = field(default_factory=list)


def flatten(parts: list[Any], inline: InlineMedia, location: str) -> str:
    """OpenAI's content parts as one text with <image> and <video> marks."""
    text = ""
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            if found := MARKS.search(part["text"]):
                raise FinetuneError(f"{location}: a text part cannot hold {found[0]}; add a part for it.")
            text += part["text"]
            continue
        given = part.get(kind) if kind in ("image_url", "image", "video_url", "video") else None
        given = given["url"] if isinstance(given, dict) and "url" in given else given
        if kind in ("video_url", "video") and (video := _video(given)):
            inline.videos.append(video)
            text += VIDEO
        elif kind == "image" and given is None:  # TRL's part, whose image is in the row's `images`
            text += IMAGE
        elif kind in ("image_url", "image") and (given := one_image(given)) is not None:
            inline.images.append(given.removeprefix("file://"))
            text += IMAGE
        else:
            raise FinetuneError(
                f"{location}: a part must be a text, an image_url or an image, a video_url or a video (a path or a "
                f"list of frames), not {str(part)[:80]}."
            )
    return text


def read_images(images: Any, column: str, source: str) -> list[str]:
    """A row's images."""
    found = [one_image(image) for image in _listed(images, column, source)]
    if None in found:
        raise FinetuneError(f"{source}: {column!r} must be a list of paths.")
    return [image for image in found if image is not None]


def read_videos(videos: Any, column: str, source: str) -> list[str | list[str]]:
    """A row's videos: each a path, or the list of its frames."""
    found = [_video(video) for video in _listed(videos, column, source)]
    if None in found:
        raise FinetuneError(f"{source}: {column!r} must be a list of paths, or of lists of frames' paths.")
    return [video for video in found if video is not None]


def _listed(values: Any, column: str, source: str) -> list[Any]:
    """A column's values; csv files give one path, or a JSON list."""
    if values is None or values == "":
        return []
    if isinstance(values, str) and values.startswith("["):
        try:
            values = json.loads(values)
        except ValueError:
            raise FinetuneError(f"{source}: {column!r} is not a path or a JSON list of paths.") from None
    return values if isinstance(values, list) else [values]


def _video(video: Any) -> str | list[str] | None:
    """A video's path or URL, or its frames; None if it is neither."""
    if isinstance(video, list):
        frames = [frame for frame in map(one_image, video) if frame is not None]
        return frames if frames and len(frames) == len(video) else None
    video = video.get("path") if isinstance(video, dict) else video
    return video.removeprefix("file://") if isinstance(video, str) and video else None


def one_image(image: Any) -> str | None:
    """A path, URL or data URI; Hugging Face's parquet files hold {"bytes": ..., "path": ...}."""
    if isinstance(image, dict) and isinstance(image.get("bytes"), bytes):
        return "data:image/unknown;base64," + base64.b64encode(image["bytes"]).decode()
    image = image.get("path") if isinstance(image, dict) else image
    if not isinstance(image, str):
        return None
    if image.startswith(BASE64) and len(image) > 255 and "." not in image:  # longer than a file's name can be
        return "data:image/unknown;base64," + image
    return image


def shown(medium: Path | str | Video) -> str:
    """An image or a video as messages name it."""
    if isinstance(medium, Video):
        first = shown(medium.files[0])
        return f"of {counted(len(medium.files), 'frame')} from {first}" if isinstance(medium.source, tuple) else first
    return str(medium) if isinstance(medium, Path) else f"{medium[:40]}..."


def resolve(name: str, media: Path) -> Path | str:
    """A path relative to the folder `media`; a URL or data URI as it is."""
    return name if name.startswith(INLINE) else _path(name, media)


@lru_cache(4096)  # rows that follow one another often ask about the same images
def _path(name: str, media: Path) -> Path:
    return media / name
