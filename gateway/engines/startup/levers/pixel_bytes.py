"""Pictures go to the engine's process as the bytes of their pixels, a quarter of what LMDeploy sends.

A Qwen3-VL's processor makes normalised numbers of the pixels, each picture twice (the model looks at pairs of frames),
in one thread, and LMDeploy sends them in 16 bit. Here the pixels are cut into patches as they are, and a table of what
becomes of each of the 256 values goes along: `vision_inputs` looks them up on the GPU, with the same result bit for
bit. The first pictures are given to the processor as well; if it comes to anything else, its result is used from
then on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lmdeploy.utils import get_logger
from lmdeploy.vl.constants import Modality
from lmdeploy.vl.model.base import VisionModel
from lmdeploy.vl.model.qwen3 import Qwen3VLModel
from PIL import Image
from torchvision.transforms.v2 import functional as tvF
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from gateway.engines.startup.levers.pixel_table import look_up, to_bytes

LOG = get_logger("lmdeploy")
MODEL_TYPE = "qwen3_vl"  # of config.json; others inherit from its classes and take other numbers
CHECKED = 2  # requests whose result is compared with the processor's


class PixelBytes:
    """What one processor does with pictures, as far as this lever can do it."""

    def __init__(self, processor: Any, dtype: torch.dtype) -> None:
        images = processor.image_processor
        self.tokenizer = processor.tokenizer
        self.patch, self.merge, self.frames = images.patch_size, images.merge_size, images.temporal_patch_size
        self.shortest, self.longest = images.size["shortest_edge"], images.size["longest_edge"]
        self.resample = images.resample
        values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
        normalised = images.rescale_and_normalize(
            values, images.do_rescale, images.rescale_factor, images.do_normalize, images.image_mean, images.image_std
        )
        self.table = normalised.reshape(3, 256).to(dtype)
        self.table_bytes = to_bytes(self.table)
        self.left = CHECKED

    def patches(self, picture: Image.Image) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """The picture's patches, [patches, 3 * patch * patch] uint8, and its grid (1, rows, columns)."""
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
        unit = self.patch * self.merge
        height, width = smart_resize(
            picture.height, picture.width, factor=unit, min_pixels=self.shortest, max_pixels=self.longest
        )
        pixels = np.asarray(picture)  # [height, width, 3]
        if (height, width) != pixels.shape[:2]:
            tensor = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()
            resized = tvF.resize(tensor, [height, width], interpolation=RESAMPLE[self.resample], antialias=True)
            pixels = resized.permute(1, 2, 0).numpy()
        rows, columns = height // unit, width // unit
        cut = pixels.reshape(rows, self.merge, self.patch, columns, self.merge, self.patch, 3)
        # [rows, columns, merge, merge, 3, patch, patch]: the patches that are merged later lie together
        patches = np.ascontiguousarray(cut.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(-1, 3 * self.patch**2)
        return torch.from_numpy(patches), (1, rows * self.merge, columns * self.merge)

    def normalised(self, patches: torch.Tensor) -> torch.Tensor:
        """The processor's numbers for `patches`, [patches, 3 * frames * patch * patch]."""
        return look_up(patches, self.table, self.frames)


RESAMPLE = {
    Image.Resampling.BICUBIC: tvF.InterpolationMode.BICUBIC,
    Image.Resampling.BILINEAR: tvF.InterpolationMode.BILINEAR,
}


def expand(token_ids: list[int], image_token: int, counts: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Each image token repeated as often as its picture has tokens; where each picture's tokens begin and end.

    Raises ValueError if there are not as many image tokens as pictures.
    """
    if token_ids.count(image_token) != len(counts):
        raise ValueError(f"{token_ids.count(image_token)} image tokens for {len(counts)} pictures")
    expanded: list[int] = []
    offsets = []
    begin = 0
    for count in counts:
        at = token_ids.index(image_token, begin)
        expanded += token_ids[begin:at]
        offsets.append((len(expanded), len(expanded) + count))
        expanded += [image_token] * count
        begin = at + 1
    return expanded + token_ids[begin:], offsets


def bytes_preprocess(original: Any) -> Any:
    """VisionModel.preprocess that sends pixels' bytes where a request has pictures only."""

    def preprocess(
        self: Any, messages: list[dict[str, Any]], input_prompt: Any, mm_processor_kwargs: Any = None
    ) -> dict[str, Any]:
        def stock() -> dict[str, Any]:
            result: dict[str, Any] = original(self, messages, input_prompt, mm_processor_kwargs)
            return result

        known = self.hf_config.model_type == MODEL_TYPE and not self.__dict__.get("_lensmith_off")
        if not known or mm_processor_kwargs or not isinstance(input_prompt, str):
            return stock()
        items = VisionModel.collect_multimodal_items(messages)
        if not items or any(kind != Modality.IMAGE or not isinstance(data, Image.Image) for kind, data, _ in items):
            return stock()
        try:
            if "_lensmith_bytes" not in self.__dict__:
                self._lensmith_bytes = PixelBytes(self.processor, self.mm_feature_dtype)
            return checked(self._lensmith_bytes, self.image_token_id, input_prompt, [d for _, d, _ in items], stock)
        except Exception as error:
            LOG.warning("Pictures are sent as LMDeploy does, not as bytes: %s: %s", type(error).__name__, error)
            self._lensmith_off = True
            return stock()

    return preprocess


def checked(
    pixel_bytes: PixelBytes, image_token: int, prompt: str, pictures: list[Image.Image], stock: Any
) -> dict[str, Any]:
    """The request with its pictures as bytes. Raises ValueError if the processor came to another result."""
    cut = [pixel_bytes.patches(picture) for picture in pictures]
    counts = [rows * columns // pixel_bytes.merge**2 for _, (_, rows, columns) in cut]
    token_ids, offsets = expand(pixel_bytes.tokenizer(prompt)["input_ids"], image_token, counts)
    if pixel_bytes.left:
        theirs = stock()
        if theirs["input_ids"] != token_ids:
            raise ValueError("the processor's tokens differ")
        for (patches, grid), picture in zip(cut, theirs["multimodal"], strict=True):
            same = picture["image_grid_thw"].tolist() == list(grid)
            if not same or not torch.equal(pixel_bytes.normalised(patches), picture["pixel_values"]):
                raise ValueError("the processor's pixel values differ")
        pixel_bytes.left -= 1
    multimodal = [
        {
            "modality": Modality.IMAGE,
            "pixel_values": patches,
            "image_grid_thw": grid,
            "offset": offset,
            "image_token_id": image_token,
            "table": pixel_bytes.table_bytes,
        }
        for (patches, grid), offset in zip(cut, offsets, strict=True)
    ]
    return {"input_ids": token_ids, "multimodal": multimodal}


def pull() -> None:
    Qwen3VLModel.preprocess = bytes_preprocess(Qwen3VLModel.preprocess)
