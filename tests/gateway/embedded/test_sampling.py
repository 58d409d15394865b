"""The next token: exact argmax, filters, penalties and seeds."""

from __future__ import annotations

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gateway.embedded.generation.sampling import Sampler, log_probs
from gateway.embedded.protocol import SamplingParams

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def sampler(prompt: tuple[int, ...] = (), choice: int = 0, **settings) -> Sampler:
    return Sampler(SamplingParams(**settings), torch.tensor(prompt, dtype=torch.long), len(LOGITS), choice)


def shares(draws: int = 4000, **settings) -> list[float]:
    drawer = sampler(seed=0, **settings)
    counts = torch.bincount(torch.tensor([drawer.pick(LOGITS) for _ in range(draws)]), minlength=len(LOGITS))
    return (counts / draws).tolist()


def test_temperature_zero_takes_the_likeliest_token():
    assert [sampler(temperature=0).pick(LOGITS) for _ in range(20)] == [0] * 20


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 0.01])
def test_a_tiny_temperature_is_as_good_as_zero(temperature):
    assert sampler(temperature=temperature).pick(LOGITS) == 0


def test_draws_follow_the_softmax_at_the_temperature():
    expected = (LOGITS / 0.7).softmax(-1).tolist()
    assert shares(temperature=0.7) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "warpers"),
    [
        ({"top_k": 2}, [TopKLogitsWarper(2)]),
        ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        ({"top_p": 0.01}, [TopPLogitsWarper(0.01)]),
        ({"temperature": 1.5, "top_k": 4, "top_p": 0.8},
         [TemperatureLogitsWarper(1.5), TopKLogitsWarper(4), TopPLogitsWarper(0.8)]),
    ],
)  # fmt: skip
def test_filters_leave_the_distribution_that_transformers_leaves(settings, warpers):
    scores = LOGITS[None]
    for warper in warpers:
        scores = warper(None, scores)
    assert shares(**settings) == pytest.approx(scores[0].softmax(-1).tolist(), abs=0.03)


def test_min_p_drops_tokens_far_less_likely_than_the_likeliest():
    seen = shares(min_p=0.3)
    assert [share > 0 for share in seen] == [True, True, False, False, False, False]  # exp(-1) > 0.3 > exp(-1.5)


def test_the_same_seed_draws_the_same_and_each_choice_its_own():
    def draws(choice: int, seed: int) -> list[int]:
        drawer = sampler(seed=seed, choice=choice)
        return [drawer.pick(LOGITS) for _ in range(50)]

    assert draws(0, 7) == draws(0, 7)
    assert draws(1, 7) == draws(0, 8)
    assert draws(0, 7) != draws(1, 7)
    assert draws(3, 2**63 - 1) == draws(3, 2**63 - 1)
    assert draws(0, -(2**63)) == draws(0, -(2**63))


def test_the_presence_penalty_acts_once_and_the_frequency_penalty_each_time():
    presence = sampler(temperature=0, presence_penalty=1.2)
    assert [presence.pick(LOGITS) for _ in range(4)] == [0, 1, 0, 0]  # 2.0 -> 0.8 < 1.0 -> -0.2, then 0.8 stays
    frequency = sampler(temperature=0, frequency_penalty=0.6)
    assert [frequency.pick(LOGITS) for _ in range(5)] == [0, 0, 1, 0, 2]


def test_negative_penalties_favour_what_was_said():
    drawer = sampler(temperature=0, presence_penalty=-1.5)
    drawer.counts[1] = 1
    assert drawer.pick(LOGITS) == 1


def test_the_repetition_penalty_covers_prompt_and_answer_as_in_transformers():
    drawer = sampler(prompt=(0, 5), temperature=0, repetition_penalty=2.5)
    history = [0, 5]
    for _ in range(5):
        expected = RepetitionPenaltyLogitsProcessor(2.5)(torch.tensor([history]), LOGITS[None].clone()).argmax().item()
        assert drawer.pick(LOGITS) == expected
        history.append(expected)


def test_picking_leaves_the_logits_alone():
    before = LOGITS.clone()
    sampler(prompt=(0,), presence_penalty=1, repetition_penalty=2, top_p=0.5, seed=1).pick(LOGITS)
    assert torch.equal(LOGITS, before)


def test_log_probs_are_the_log_softmax():
    expected = LOGITS.log_softmax(-1)
    value, top = log_probs(LOGITS, 3, 2)
    assert value == pytest.approx(expected[3].item())
    assert top == [(0, pytest.approx(expected[0].item())), (1, pytest.approx(expected[1].item()))]
    assert log_probs(LOGITS, 3, 0)[1] == []
