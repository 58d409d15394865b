"""Images that engines would read differently, or that are larger than the model looks at, are written anew."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import json
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from gateway.media.headers import ImageHeader
from gateway.media.pixel_budget import LOW_DETAIL, PixelBudget
from tests.support.gateway.image_corpus import ihdr, png
from tests.support.gateway.images import close, sent_on, uri, workers
from tests.support.gateway.processes import Process, lensmith_serve, until
from tests.support.gateway.requests import CHAT, envelope
from tests.support.paths import SHAPES_VL

BUDGET = 256 * 256


def quarters(mode: str, size: tuple[int, int] = (80, 40)) -> Image.Image:
    """Red, green, blue and white (or transparent) quarters."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    draw, (x, y) = ImageDraw.Draw(image), (size[0] // 2, size[1] // 2)
    for corner, color in (((0, 0), "red"), ((x, 0), "lime"), ((0, y), "blue")):
        draw.rectangle((*corner, corner[0] + x - 1, corner[1] + y - 1), color)
    return image if mode == "RGBA" else image.convert(mode)


RED, LIME, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_plain_image_within_the_budget_is_not_touched(shrinking: Process, format: str) -> None:
    url = uri(quarters("RGB"), format)
    assert sent_on(shrinking, url)[1] == url


def test_a_large_photo_is_shrunk_in_proportion(shrinking: Process) -> None:
    image, url = sent_on(shrinking, uri(quarters("RGB", (2400, 1200)), "JPEG"))
    assert url.startswith("data:image/jpeg")
    assert image.width * image.height <= BUDGET
    assert image.width / image.height == pytest.approx(2, rel=0.02)
    assert close(image, 0.25, 0.25, RED)
    assert close(image, 0.75, 0.25, LIME)
    assert close(image, 0.25, 0.75, BLUE)


def test_a_large_drawing_stays_lossless(shrinking: Process) -> None:
    image, url = sent_on(shrinking, uri(quarters("RGB", (1000, 1000)), "PNG"))
    assert url.startswith("data:image/png")
    assert image.getpixel((10, 10)) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_arrives_upright(shrinking: Process, orientation: int) -> None:
    upright = quarters("RGB")
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in undo.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, _ = sent_on(shrinking, uri(stored, "JPEG", exif=exif, quality=95))
    assert image.size == upright.size
    assert close(image, 0.25, 0.25, RED)
    assert close(image, 0.75, 0.25, LIME)
    assert close(image, 0.25, 0.75, BLUE)
    assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize(
    ("format", "mode"),
    [("PNG", "RGBA"), ("WEBP", "RGBA"), ("PNG", "P"), ("GIF", "P"), ("PNG", "1"), ("PNG", "LA"), ("JPEG", "CMYK")],
)
def test_every_other_kind_of_image_arrives_as_rgb(shrinking: Process, format: str, mode: str) -> None:
    stored = quarters("RGBA") if mode == "RGBA" else quarters("RGB").convert(mode)
    options = {"lossless": True} if format == "WEBP" else {}
    image, _ = sent_on(shrinking, uri(stored, format, **options))
    assert image.mode == "RGB"
    assert image.size == (80, 40)
    if mode in ("RGBA", "P", "CMYK"):
        assert close(image, 0.25, 0.25, RED)
        assert close(image, 0.25, 0.75, BLUE)
    if mode == "RGBA":
        assert close(image, 0.75, 0.75, WHITE), "transparency shows white"


def test_16_bit_grey_keeps_its_shades(shrinking: Process) -> None:
    grey = Image.new("I;16", (40, 40), 128 * 256)
    image, _ = sent_on(shrinking, uri(grey, "PNG"))
    assert image.getpixel((5, 5)) == (128, 128, 128)


def test_the_first_frame_of_an_animation_is_sent(shrinking: Process) -> None:
    frames = [Image.new("RGB", (30, 30), color) for color in ("red", "blue")]
    for format in ("GIF", "WEBP"):
        image, _ = sent_on(shrinking, uri(frames[0], format, save_all=True, append_images=frames[1:]))
        assert getattr(image, "n_frames", 1) == 1
        assert close(image, 0.5, 0.5, RED)


def test_low_detail_is_512_pixels_square(engine: Process, gateway: Process) -> None:
    image, _ = sent_on(gateway, uri(quarters("RGB", (2000, 2000)), "JPEG"), detail="low")
    assert image.size == (512, 512)
    url = uri(quarters("RGB", (2000, 2000)), "JPEG")
    assert sent_on(gateway, url, detail="high")[1] == url


def test_a_file_that_is_broken_inside_is_refused_in_our_words(shrinking: Process) -> None:
    good = uri(quarters("RGBA", (300, 300)), "PNG")
    data = bytearray(base64.b64decode(good.split(",")[1]))
    data[60:90] = b"\xff" * 30
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()}}]
    body = {"model": "fake", "messages": [{"role": "user", "content": parts}]}
    error = envelope(httpx.post(shrinking.url + CHAT, json=body), 400)
    assert error["message"] == "The image at messages[0].content[0] is broken."
    assert error["param"] == "messages[0].content[0]"


def test_a_worker_that_dies_fails_its_own_image_only_and_is_replaced(shrinking: Process) -> None:
    url = uri(quarters("RGB", (600, 600)), "JPEG")
    sent_on(shrinking, url)
    (worker,) = workers(shrinking)
    worker.send_signal(signal.SIGSTOP)  # so that the next image is surely the one it dies with
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        body = {"model": "fake", "messages": [{"role": "user", "content": parts}]}
        lost = pool.submit(httpx.post, shrinking.url + CHAT, json=body, timeout=30)
        ticks = "lensmith_event_loop_lag_seconds_count"
        start = shrinking.metric(ticks)
        until("the image is with the worker", lambda: shrinking.metric(ticks) > start + 1)
        worker.kill()
        assert envelope(lost.result(), 400)["message"].endswith("could not be decoded.")
    sent_on(shrinking, url)
    (replaced,) = workers(shrinking)
    assert replaced.pid != worker.pid


@contextlib.contextmanager
def stopped_worker(gateway: Process) -> Iterator[psutil.Process]:
    """The only worker, stopped, so that the next image surely stays with it."""
    sent_on(gateway, uri(quarters("RGB", (600, 600)), "JPEG"))
    (worker,) = workers(gateway)
    worker.send_signal(signal.SIGSTOP)
    try:
        yield worker
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.send_signal(signal.SIGCONT)


def photo(side: int = 600) -> dict:
    parts = [{"type": "image_url", "image_url": {"url": uri(quarters("RGB", (side, side)), "JPEG")}}]
    return {"model": "fake", "messages": [{"role": "user", "content": parts}]}


def test_a_client_that_goes_while_its_image_is_decoded_leaves_nothing_behind(
    shrinking: Process, engine: Process
) -> None:
    gone = shrinking.metric("lensmith_requests_total", status="499")
    started = httpx.get(engine.url + "/stats").json()["started"]
    with stopped_worker(shrinking) as worker:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(shrinking.url + CHAT, json=photo(), timeout=0.5)
        until("it is counted", lambda: shrinking.metric("lensmith_requests_total", status="499") == gone + 1)
        until("its worker ends", lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    assert shrinking.metric("lensmith_requests_running") == shrinking.metric("lensmith_requests_waiting") == 0
    assert httpx.post(shrinking.url + CHAT, json=photo()).status_code == 200
    assert httpx.get(engine.url + "/stats").json()["started"] == started + 2, "the engine was asked for the others only"


def test_only_so_many_requests_wait_for_a_worker(engine: Process) -> None:
    options = ["--image-pixels", str(BUDGET), "--image-workers", "1", "--max-waiting", "2"]
    with lensmith_serve("--engine", engine.url, *options) as gateway:
        gateway.wait_until("/ready", 200)
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            with stopped_worker(gateway):
                answers = [pool.submit(httpx.post, gateway.url + CHAT, json=photo(), timeout=30) for _ in range(6)]
                until("three are refused", lambda: sum(answer.done() for answer in answers) == 3)
                assert httpx.post(gateway.url + CHAT, json=photo(40)).status_code == 200, "it needs no worker"
            statuses = sorted(answer.result().status_code for answer in answers)
        assert statuses == [200, 200, 200, 503, 503, 503]
        refused = next(answer.result() for answer in answers if answer.result().status_code == 503)
        assert envelope(refused, 503)["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1


def test_a_worker_refuses_what_needs_too_much_memory_and_goes_on() -> None:
    """With a limit for images of one pixel: what Pillow needs of its own and half a gigabyte."""
    argv = [sys.executable, "-m", "gateway.media.worker", "1"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:

        def ask(side: int) -> bytes:
            assert worker.stdin is not None
            assert worker.stdout is not None
            job = json.dumps({"expected": (side, side), "size": (10, 10)}).encode()
            lines = zlib.compress(bytes(side * (1 + side // 8)), 1)
            text = base64.b64encode(png(ihdr(side, side, depth=1, color=0), (b"IDAT", lines)))
            for message in (job, text):
                worker.stdin.write(struct.pack(">I", len(message)) + message)
            worker.stdin.flush()
            status = worker.stdout.read(1)
            return status + worker.stdout.read(struct.unpack(">I", worker.stdout.read(4))[0])

        assert ask(80).startswith(b"+data:image/png;base64,")
        assert ask(13_600) == b"-needs too much memory"
        assert ask(80).startswith(b"+data:image/png;base64,")
        worker.kill()


def test_an_image_that_takes_too_long_is_given_up(engine: Process) -> None:
    with lensmith_serve("--engine", engine.url, "--image-pixels", str(BUDGET), "--image-seconds", "0.01") as gateway:
        gateway.wait_until("/ready", 200)
        parts = [{"type": "image_url", "image_url": {"url": uri(quarters("RGB", (3000, 3000)), "JPEG")}}]
        body = {"model": "fake", "messages": [{"role": "user", "content": parts}]}
        error = envelope(httpx.post(gateway.url + CHAT, json=body, timeout=30), 400)
        assert error["message"].endswith("could not be decoded within 0.01 s.")
        until("the worker's end", lambda: not workers(gateway))


SIDES = st.integers(1, 5000)


@given(SIDES, SIDES, st.sampled_from([1, 28, 32]), st.sampled_from([0, 4096]), st.sampled_from([0, 65_536, 1_000_000]))
def test_a_target_keeps_to_the_processors_limits(
    width: int, height: int, factor: int, min_pixels: int, max_pixels: int
) -> None:
    header = ImageHeader("PNG", width, height, plain=False)
    size = PixelBudget(factor, min_pixels, max_pixels).target(header, None)
    assert size is not None
    assert all(side % factor == 0 and side >= factor for side in size)
    ratio = max(width, height) / min(width, height)
    if max_pixels and ratio < 30:
        assert size[0] * size[1] <= max_pixels
    if min_pixels and ratio < 30 and width * height * 2 < min_pixels:
        assert size[0] * size[1] >= min_pixels


def test_the_target_is_the_processors_own_choice() -> None:
    """Figures of transformers' smart_resize for Qwen3-VL: factor 32, 65,536 to 16,777,216 pixels."""
    budget = PixelBudget(32, 65_536, 16_777_216)
    odd = {(1000, 700): (992, 704), (100, 80): (288, 256), (8000, 6000): (4704, 3520)}
    for size, target in odd.items():
        assert budget.target(ImageHeader("GIF", *size, plain=False), None) == target
    assert budget.target(ImageHeader("JPEG", 1000, 700), None) is None
    assert PixelBudget(32, 0, 0).target(ImageHeader("JPEG", 20, 700), None) == (32, 704)
    low = budget.target(ImageHeader("JPEG", 4000, 3000), "low")
    assert low is not None
    assert low[0] * low[1] <= LOW_DETAIL


def test_a_model_elsewhere_gets_images_as_its_folder_says(engine: Process, tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text(f"port: 0\nmodels: {{fake: {{folder: {SHAPES_VL}, replicas: [{{url: '{engine.url}'}}]}}}}\n")
    with lensmith_serve("--config", str(config)) as gateway:
        gateway.wait_until("/ready", 200)
        image, _ = sent_on(gateway, uri(quarters("RGB", (1000, 500)), "PNG"))
    assert (image.width % 32, image.height % 32) == (0, 0)
    assert 48_000 < image.width * image.height <= 256 * 256  # the most that examples/shapes-vl looks at
