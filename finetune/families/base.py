"""The seam between the training loop and the families of models.

A family says how a folder's chats become token ids (`read`), how rows become a batch for the model (`feed`), what the
loss of a batch is (`loss`), and what can be merged. All else, the loop and its adapters, is the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finetune.encoding.encoded import Encoded
from finetune.encoding.encoder import Encoder
from finetune.families.batch import Batch
from finetune.media.bank import Bank
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder


@dataclass(frozen=True)
class Reader:
    """What reads a dataset for a model: its folder, its processor, the images, and what encodes chats."""

    folder: ModelFolder
    processor: Any
    bank: Bank
    encoder: Encoder


class Feed(Protocol):
    """Rows made ready for one model, their images decoded in the background."""

    def prefetch(self, rows: Sequence[Encoded]) -> None:
        """Starts to make what `batch` will need for these rows."""

    def batch(self, rows: Sequence[Encoded]) -> tuple[Batch, Any]:
        """The rows padded on the right with their labels, and their images, for `Family.loss`. Raises FinetuneError."""

    def generate(
        self, prompts: Sequence[Encoded], max_new_tokens: int, rows: int | None = None
    ) -> Iterator[tuple[int, list[int]]]:
        """(index, greedy answer ids) of each prompt, in any order, without the end-of-turn token.

        rows: most prompts answered at once; None: what suits the model and the memory. To be resumed under
        `torch.no_grad()`. Raises FinetuneError.
        """

    def question(self, prompt: Encoded) -> str:
        """What the prompt asks last."""

    def close(self) -> None: ...


class Family(Protocol):
    def read(self, folder: ModelFolder, recipe: Recipe) -> Reader:
        """Loads the folder's processor. Raises FinetuneError if the recipe asks for what the family cannot."""

    def feed(
        self,
        base: Any,
        reader: Reader,
        images: Sequence[int],
        reused: bool = False,
        processes_per_host: int = 1,
        folder: Path | None = None,
    ) -> Feed:
        """base: the *ForConditionalGeneration module; images: the rows' in the order of their use.

        reused: whether they are used more than once; processes_per_host: how many processes of the run share this
        machine's memory; folder: the run's, on whose disk may be kept what memory does not hold.
        """

    def loss(self, base: Any, noise: float) -> Any:
        """A module whose `forward(batch, images)` is a batch's summed float32 loss, of its label tokens or its pairs.

        noise: NEFTune's alpha, added while its attribute `noisy` is true. Its `measured` are sums over the last batch
        of what else it knows, its `parts(batch)` what the loss is a sum over.
        """
