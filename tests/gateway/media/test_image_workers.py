"""Images that engines would read differently, or that are larger than the model looks at, are written anew."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import contextlib
import io
import json
import math
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw, ImageStat

from gateway.config.settings import Settings
from gateway.media.checks import ImagePart
from gateway.media.headers import ImageHeader, inspect
from gateway.media.messages import pack_head, read_message
from gateway.media.pixel_budget import LOW_DETAIL, PixelBudget
from gateway.media.prepare import read_images
from gateway.media.worker import decode
from tests.support.gateway.image_corpus import ihdr, png
from tests.support.gateway.images import close, sent_on, uri, workers
from tests.support.gateway.processes import Process, fake_engine, lensmith_serve, until
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


PNG_BYTES = base64.b64decode(uri(quarters("RGB"), "PNG").split(",")[1])
TEXT = base64.b64encode(PNG_BYTES).decode()
LINES = base64.encodebytes(PNG_BYTES).decode()


@pytest.mark.parametrize(
    "url",
    [
        f"data:image;base64,{TEXT}",
        f"data:image/jpeg;base64,{TEXT}",
        f"data:application/octet-stream;base64,{TEXT}",
        f"data:image/png;charset=utf-8;base64,{TEXT}",
        f"DATA:IMAGE/PNG;BASE64,{TEXT}",
        f"data:;base64,{TEXT}",
        f"data:image/png;base64,{LINES}",
        f"data:image/png;base64, {TEXT}",
        f"data:image/png;base64,{TEXT.rstrip('=')}",
    ],
)
def test_a_sloppy_uri_reaches_the_engine_written_anew(shrinking: Process, url: str) -> None:
    assert sent_on(shrinking, url)[1] == f"data:image/png;base64,{TEXT}"


@pytest.mark.parametrize(("sent", "reaches"), [("", None), ("original", "high")])
def test_a_sloppy_detail_reaches_the_engine_as_a_known_one(shrinking: Process, sent: str, reaches: str | None) -> None:
    url = uri(quarters("RGB"), "PNG")
    parts = [{"type": "text", "text": "echo"}, {"type": "image_url", "image_url": {"url": url, "detail": sent}}]
    body = {"model": "fake", "messages": [{"role": "user", "content": parts}]}
    answer = httpx.post(shrinking.url + CHAT, json=body).json()["choices"][0]["message"]["content"]
    assert json.loads(answer)["body"]["messages"][0]["content"][1]["image_url"].get("detail") == reaches


def test_a_large_photo_is_shrunk_in_proportion(shrinking: Process) -> None:
    image, url = sent_on(shrinking, uri(quarters("RGB", (2400, 1200)), "JPEG"))
    assert url.startswith("data:image/jpeg")
    assert image.width * image.height <= BUDGET
    assert image.width / image.height == pytest.approx(2, rel=0.02)
    assert close(image, 0.25, 0.25, RED)
    assert close(image, 0.75, 0.25, LIME)
    assert close(image, 0.25, 0.75, BLUE)


def test_a_large_photo_with_a_second_picture_is_still_a_photo(shrinking: Process) -> None:
    second = [Image.new("RGB", (40, 20), "black")]
    url = uri(quarters("RGB", (2400, 1200)), "MPO", save_all=True, append_images=second)
    image, written = sent_on(shrinking, url)
    assert written.startswith("data:image/jpeg;base64,")
    assert image.width / image.height == pytest.approx(2, rel=0.02)
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

        def ask(side: int) -> tuple[dict[str, str], bytes]:
            assert worker.stdin is not None
            assert worker.stdout is not None
            job = {"expected": (side, side), "size": (10, 10)}
            lines = zlib.compress(bytes(side * (1 + side // 8)), 1)
            file = png(ihdr(side, side, depth=1, color=0), (b"IDAT", lines))
            worker.stdin.write(pack_head(job, file) + file)
            worker.stdin.flush()
            answer = read_message(worker.stdout)
            assert answer is not None
            return answer

        png_header = {"media_type": "image/png"}, b"\x89PNG"
        assert (ask(80)[0], ask(80)[1][:4]) == png_header
        assert ask(13_600) == ({"error": "needs too much memory"}, b"")
        assert (ask(80)[0], ask(80)[1][:4]) == png_header
        worker.kill()


def test_an_image_that_takes_too_long_is_given_up(engine: Process) -> None:
    with lensmith_serve("--engine", engine.url, "--image-pixels", str(BUDGET), "--image-seconds", "0.01") as gateway:
        gateway.wait_until("/ready", 200)
        parts = [{"type": "image_url", "image_url": {"url": uri(quarters("RGB", (3000, 3000)), "JPEG")}}]
        body = {"model": "fake", "messages": [{"role": "user", "content": parts}]}
        error = envelope(httpx.post(gateway.url + CHAT, json=body, timeout=30), 400)
        assert error["message"].endswith("could not be decoded within 0.01 s.")
        until("the worker's end", lambda: not workers(gateway))


def test_a_model_that_is_not_ready_costs_no_decoding() -> None:
    with (
        fake_engine() as gone,
        lensmith_serve("--engine", gone.url, "--image-pixels", str(BUDGET)) as gateway,
    ):
        gateway.wait_until("/ready", 200)
        gone.end()
        gateway.wait_until("/ready", 503)
        error = envelope(httpx.post(gateway.url + CHAT, json=photo(), timeout=30), 503)
        assert error["code"] == "engine_unavailable"
        assert not workers(gateway)
        assert gateway.metric("lensmith_image_pixels_count") == 0


def test_large_images_are_read_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def spy(data: bytes) -> ImageHeader:
        threads.append(threading.current_thread())
        return inspect(data)

    monkeypatch.setattr("gateway.media.checks.inspect", spy)
    noise = uri(Image.effect_noise((1200, 1200), 90).convert("RGB"), "PNG")
    parts = [ImagePart(f"messages[{at}]", {"url": url}) for at, url in enumerate((noise, uri(quarters("L"), "PNG")))]
    images = asyncio.run(read_images(parts, Settings(), PixelBudget(), None, lambda _: None))
    assert [image.header.width for image in images] == [1200, 80]
    assert threads[0] is not threading.main_thread()
    assert threads[1] is threading.main_thread(), "a small one is not worth the way"


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB."""
    stat = ImageStat.Stat(ImageChops.difference(one, other))
    return 10 * math.log10(255**2 / max(1e-9, sum(stat.sum2) / sum(stat.count)))


@pytest.mark.parametrize("size", [(1600, 1200), (1184, 864), (880, 640), (224, 160)])
def test_the_jpeg_decoders_own_scaling_costs_less_than_writing_the_jpeg_again(size: tuple[int, int]) -> None:
    soft = [
        Image.effect_noise((40 + band, 30), 120).resize((4000, 3000), Image.Resampling.BICUBIC) for band in range(3)
    ]
    grain = Image.effect_noise((1600, 1200), 60).resize((4000, 3000), Image.Resampling.BICUBIC)
    photo = Image.merge("RGB", [Image.blend(band, grain, 0.3) for band in soft])
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=90)
    exact = Image.open(file).resize(size, Image.Resampling.BICUBIC)
    written = io.BytesIO()
    exact.save(written, "JPEG", quality=95, subsampling=0)
    fast, _ = decode(file.getvalue(), (4000, 3000), size)
    assert fast.size == size
    assert psnr(fast, exact) > max(48, psnr(Image.open(written), exact))


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
