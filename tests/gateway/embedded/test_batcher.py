"""The waiting list and the generating thread, without HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from gateway.embedded.generation.batcher import Batcher
from gateway.embedded.generation.model import load_model
from gateway.embedded.generation.prompt import Prompt
from gateway.embedded.generation.sampling import Sampler
from gateway.embedded.generation.sequences import RunningSequence
from gateway.embedded.generation.text import Detokenizer
from gateway.embedded.generation.waiting_list import SMALL_BATCH, WaitingList, choose_batch
from gateway.embedded.metrics import EmbeddedMetrics
from gateway.embedded.protocol import GenerationRequest, SamplingParams, TokenLogProb
from modelfiles.folder.model_folder import ModelFolder


def sequence(length: int) -> RunningSequence:
    ids = torch.zeros((1, length), dtype=torch.long)
    prompt = Prompt({"input_ids": ids}, images=0)
    return RunningSequence(
        prompt, 0, Sampler(SamplingParams(), ids[0], 8, 0), Detokenizer(), 8, None, asyncio.Queue(), streamed=False
    )


def lengths(sequences: list[RunningSequence]) -> list[int]:
    return [sequence.prompt.length for sequence in sequences]


def test_a_batch_is_the_oldest_row_and_those_nearest_in_length():
    assert lengths(choose_batch([sequence(n) for n in (50, 900, 10, 49, 300, 60)], 4)) == [50, 49, 60, 10]


def test_a_batch_is_not_mostly_padding_unless_it_is_small():
    assert lengths(choose_batch([sequence(n) for n in (20, 30, SMALL_BATCH)], 8)) == [20, 30]
    assert lengths(choose_batch([sequence(n) for n in (SMALL_BATCH, 30, 40)], 8)) == [SMALL_BATCH]
    assert lengths(choose_batch([sequence(n) for n in (20, SMALL_BATCH // 4)], 8)) == [20, SMALL_BATCH // 4]


def test_taking_from_the_waiting_list():
    waiting = WaitingList(2, EmbeddedMetrics())
    sequences = [sequence(5), sequence(6), sequence(7), sequence(8)]
    waiting.add(sequences)
    assert waiting.remove([sequences[1]]) == 1
    assert waiting.remove([sequences[1]]) == 0
    assert waiting.take() == [sequences[0], sequences[2]]
    assert waiting.take() == [sequences[3]]
    waiting.close()
    assert waiting.take() == []


def test_a_batch_waits_for_rows_that_are_being_prepared():
    waiting = WaitingList(2, EmbeddedMetrics())
    sequences = [sequence(5), sequence(6)]
    waiting.preparing(1)
    waiting.add(sequences[:1])
    taken: list[list[RunningSequence]] = []
    thread = threading.Thread(target=lambda: taken.append(waiting.take()))
    thread.start()
    waiting.add(sequences[1:])
    waiting.preparing(-1)
    thread.join(10)
    assert taken == [sequences]


@pytest.fixture(scope="module")
def loaded(model_dir):
    return load_model(ModelFolder.open(model_dir), "float32", {})


def answers(loaded, requests: list[GenerationRequest]) -> list[tuple[str, str, list[TokenLogProb]]]:
    """(text, finish reason or "error", log-probabilities) of each request, one after another."""

    async def ask_all() -> list[tuple[str, str, list[TokenLogProb]]]:
        batcher = Batcher(loaded, 4, EmbeddedMetrics(), asyncio.get_running_loop())
        thread = threading.Thread(target=batcher.run)
        thread.start()
        found = []
        try:
            for request in requests:
                sequences = await asyncio.to_thread(batcher.make_sequences, request)
                batcher.submit(sequences)
                text, ended, entries = "", None, []
                while ended is None:
                    piece = await asyncio.wait_for(sequences[0].pieces.get(), 60)
                    text += piece.text
                    entries += piece.log_probs
                    ended = "error" if piece.error else piece.finish_reason
                found.append((text, ended, entries))
        finally:
            batcher.stop()
            await asyncio.to_thread(thread.join)
        return found

    return asyncio.run(ask_all())


HELLO = GenerationRequest(
    "tiny",
    [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
    SamplingParams(temperature=0),
    max_tokens=6,
)


def test_an_end_token_ends_the_answer_and_does_not_show(loaded):
    request = replace(HELLO, top_logprobs=0)
    [(whole, _, entries)] = answers(loaded, [request])
    third = next(i for i in range(loaded.vocab_size) if loaded.token_bytes.raw(i) == entries[2].token)
    ending = replace(loaded, eos_ids=loaded.eos_ids | {third})
    [(text, reason, shown)] = answers(ending, [request])
    assert (reason, shown) == ("stop", entries[:2])
    assert text == b"".join(entry.token for entry in entries[:2]).decode("utf-8", "replace")
    assert whole.startswith(text)


@pytest.fixture
def broken(loaded, request) -> Iterator[None]:
    norm = loaded.model.model.language_model.norm.weight
    kept = norm.detach().clone()
    norm.data.fill_(float("nan"))
    yield
    norm.data.copy_(kept)


def test_a_batch_that_fails_ends_with_an_error_and_the_next_one_runs(loaded, monkeypatch, capfd):
    whole = answers(loaded, [HELLO])
    generate, calls = loaded.model.generate, []

    def fail_once(**arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return generate(**arguments)

    monkeypatch.setattr(loaded.model, "generate", fail_once)
    assert answers(loaded, [HELLO, HELLO]) == [("", "error", []), *whole]
    assert "out of memory" in capfd.readouterr().err


@pytest.mark.usefixtures("broken")
def test_logits_that_are_no_numbers_are_an_error_not_an_answer(loaded, capfd):
    assert answers(loaded, [HELLO]) == [("", "error", [])]
    assert "not finite" in capfd.readouterr().err
