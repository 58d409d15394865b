"""The forward pass of a Qwen-VL model in parts: images to features, ids to hidden states, loss at the labels only."""

from __future__ import annotations

import math
from typing import Any

import torch

from finetune.families.batch import Batch


def encode_images(model: Any, pixels: Any, **layout: Any) -> Any:
    """[1 + D, tokens, hidden] features of images: the tower's output, then its D DeepStack features.

    `model` is the *ForConditionalGeneration module; layout: `grid_thw` [images, 3], and what a tower may be told
    besides (vision.Layouts). Works with what transformers 4.57 (a tuple or a tensor) and 5 (an output object) return.
    """
    visual = model.model.visual
    out = visual(pixels.to(visual.dtype), **layout)
    if isinstance(out, torch.Tensor):
        pooled, deep = out, []
    elif isinstance(out, tuple):
        pooled, deep = out[0], list(out[1])
    else:
        pooled, deep = out.pooler_output, list(getattr(out, "deepstack_features", None) or [])
    return torch.stack([pooled, *deep])


def hidden_states(model: Any, batch: Batch, features: Any | None, cache: Any | None = None, noise: float = 0.0) -> Any:
    """[B, L, hidden] last hidden states of the language model.

    `model` is the *ForConditionalGeneration module (adapters inside it work); features: [1 + D, image tokens, hidden],
    of a blank image if the batch has none but the vision tower must run (see TrainedVision.get);
    noise: NEFTune's alpha (arXiv:2310.05914): the text's embeddings get uniform noise of up to alpha / sqrt(L hidden).
    """
    core = model.model
    parts: dict[str, Any] = {} if batch.packed is None else {"packed": batch.packed}  # for attention
    embeddings = core.get_input_embeddings()(batch.ids)
    if noise:
        bound = noise / math.sqrt(embeddings.shape[1] * embeddings.shape[2])
        embeddings = embeddings + torch.empty_like(embeddings).uniform_(-bound, bound)
    if features is not None and not batch.images:
        # FSDP gathers and frees weights as gradients pass. They must come back through the language model, as they do
        # from an image in another process's batch: on a way of their own the processes would wait for each other.
        embeddings = embeddings + (0.0 * features.float().sum()).to(embeddings.dtype)
    elif features is not None:
        # Features are in the order of the text, whether of an image or of a video.
        is_image = (batch.ids == model.config.image_token_id) | (batch.ids == model.config.video_token_id)
        embeddings = embeddings.masked_scatter(is_image[..., None], features[0].to(embeddings.dtype))
        if len(features) > 1:
            parts |= {"visual_pos_masks": is_image, "deepstack_visual_embeds": list(features[1:])}
    return core.language_model(
        inputs_embeds=embeddings,
        position_ids=batch.positions,
        attention_mask=None if batch.attended is None else batch.attended.long(),
        past_key_values=cache,
        use_cache=cache is not None,
        **parts,
    ).last_hidden_state


class LabelLoss(torch.nn.Module):  # type: ignore[misc]
    """The summed cross entropy (float32) of a batch's label tokens; logits exist only at those positions.

    A module, so that DDP and FSDP can wrap it. `base` is the *ForConditionalGeneration module; noise: NEFTune's alpha,
    added only while `noisy` is true.
    """

    def __init__(self, base: Any, noise: float = 0.0) -> None:
        super().__init__()
        self.base, self.noise, self.noisy = base, noise, True
        self.measured: list[float] = []

    def parts(self, batch: Batch) -> int:
        """The label tokens."""
        return len(batch.labels)

    def forward(self, batch: Batch, images: Any | None) -> Any:
        """images: the features of the batch's images, or their (pixels, grids) if the vision tower is trained."""
        if isinstance(images, tuple):
            images = encode_images(self.base, images[0], grid_thw=images[1])
        states = hidden_states(self.base, batch, images, noise=self.noise if self.noisy else 0.0)
        logits = self.base.lm_head(states.flatten(0, 1)[batch.label_at]).float()
        return torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
