"""Compares two engines' answers to the same conversations: where they differ, and whether rounding explains it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gateway.verify.cases import Case
from gateway.verify.greedy import GreedyAnswer
from modelfiles import counted
from modelfiles.server.verify import Check


@dataclass
class EngineComparison:
    """One engine against the reference.

    deltas: the absolute differences of log-probabilities in nats, of every token up to the first different one; tied:
    answers that differ first at a token for which the reference had an alternative within the tolerance; problems:
    differences that rounding does not explain, a sentence each.
    """

    engine: str
    answers: int = 0
    same_prompts: int = 0
    same_answers: int = 0
    tied: int = 0
    tokens: int = 0
    same_tokens: int = 0
    deltas: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def mean_delta(self) -> float | None:
        return sum(self.deltas) / len(self.deltas) if self.deltas else None

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


def compare_engines(
    engine: str, cases: list[Case], expected: list[GreedyAnswer], answers: list[GreedyAnswer], tolerance: float
) -> EngineComparison:
    """Compare an engine's answers with the reference's. `tolerance` in nats: see `lensmith verify --help`."""
    comparison = EngineComparison(engine)
    for case, reference, answer in zip(cases, expected, answers, strict=True):
        problem = _compare_case(comparison, case, reference, answer, tolerance)
        if problem:
            comparison.problems.append(f"{case.name}: {problem}.")
    judged = len([case for case in cases if not case.shrunk])
    mean = comparison.mean_delta
    comparison.checks = [
        Check("answers", comparison.answers == len(cases), f"{comparison.answers} of {len(cases)}"),
        Check(
            "prompt tokens",
            comparison.same_prompts == len(cases),
            f"the same in {comparison.same_prompts} of {len(cases)}",
        ),
        Check(
            "greedy tokens",
            comparison.same_answers + comparison.tied == judged,
            f"{comparison.same_answers} of {counted(judged, 'answer')} the same"
            + (f", {comparison.tied} part at a tie" if comparison.tied else "")
            + f"; {comparison.same_tokens} of {comparison.tokens} tokens",
        ),
    ]
    if mean is None:
        comparison.checks.append(Check("log-probabilities", True, "the engine gives none"))
    else:
        detail = f"differ by {mean:.4f} nats on average, {max(comparison.deltas):.4f} at most "
        detail += f"(limit {tolerance:g} on average)"
        comparison.checks.append(Check("log-probabilities", mean <= tolerance, detail))
    return comparison


def _compare_case(
    comparison: EngineComparison, case: Case, reference: GreedyAnswer, answer: GreedyAnswer, tolerance: float
) -> str:
    """Adds the case to the counts; returns a sentence on what is wrong with it, or an empty string."""
    if reference.error or answer.error:
        return f"the reference failed, {reference.error}" if reference.error else answer.error
    comparison.answers += 1
    if answer.prompt_tokens != reference.prompt_tokens:
        return (
            f"the prompt has {answer.prompt_tokens} tokens, but {reference.prompt_tokens} for the reference: another "
            "chat template, or pictures of another size"
        )
    comparison.same_prompts += 1
    if case.shrunk:  # the gateway and transformers shrink with different rounding
        return ""
    ours, theirs = reference.tokens, answer.tokens
    if ours is None or theirs is None:
        comparison.same_answers += answer.text == reference.text
        comparison.tokens += len(ours or ())
        comparison.same_tokens += len(ours or ()) if answer.text == reference.text else 0
        return "" if answer.text == reference.text else f"answers {answer.text!r}, but the reference {reference.text!r}"
    same = next((index for index, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a.text != b.text), None)
    same = min(len(ours), len(theirs)) if same is None else same
    comparison.deltas += [abs(a.log_prob - b.log_prob) for a, b in zip(ours[:same], theirs[:same], strict=True)]
    comparison.tokens += len(ours)
    comparison.same_tokens += same
    if same == len(ours) == len(theirs):
        comparison.same_answers += 1
        return ""
    if same == len(ours) or same == len(theirs):
        comparison.same_answers += answer.text == reference.text
        longer = "ends later" if same == len(ours) else "ends earlier"
        return "" if answer.text == reference.text else f"{longer} ({answer.text!r} and {reference.text!r})"
    other = theirs[same].text
    gap = ours[same].log_prob - ours[same].top.get(other, float("-inf"))
    if gap <= tolerance:
        comparison.tied += 1
        return ""
    names = [text.decode("utf-8", "replace") for text in (other, ours[same].text)]
    likelier = f"{gap:.2f} nats likelier" if math.isfinite(gap) else "far likelier"
    return f"token {same + 1} is {names[0]!r}, but {names[1]!r} for the reference, {likelier} there"
