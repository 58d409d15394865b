"""Two engines' answers to the same conversations: where they differ, and whether rounding explains it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gateway.verify.answers import Answer
from gateway.verify.cases import Case
from modelfiles.server.verify import Check


@dataclass
class Comparison:
    """One engine against the reference.

    deltas: the absolute differences of log-probabilities in nats, of every token up to the first other one; tied:
    answers that part where the reference itself was undecided; problems: what rounding does not explain, a sentence
    each.
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


def compare(engine: str, cases: list[Case], expected: list[Answer], seen: list[Answer], tolerance: float) -> Comparison:
    """Compare an engine's answers with the reference's. `tolerance` in nats: see `lensmith verify --help`."""
    found = Comparison(engine)
    for case, reference, answer in zip(cases, expected, seen, strict=True):
        problem = _compare_case(found, case, reference, answer, tolerance)
        if problem:
            found.problems.append(f"{case.name}: {problem}.")
    judged = len([case for case in cases if not case.shrunk])
    mean = found.mean_delta
    found.checks = [
        Check("answers", found.answers == len(cases), f"{found.answers} of {len(cases)}"),
        Check("prompt tokens", found.same_prompts == len(cases), f"the same in {found.same_prompts} of {len(cases)}"),
        Check(
            "greedy tokens",
            found.same_answers + found.tied == judged,
            f"{found.same_answers} of {judged} answers the same"
            + (f", {found.tied} part at a tie" if found.tied else "")
            + f"; {found.same_tokens} of {found.tokens} tokens",
        ),
    ]
    if mean is None:
        found.checks.append(Check("log-probabilities", True, "the engine gives none"))
    else:
        detail = (
            f"differ by {mean:.4f} nats on average, {max(found.deltas):.4f} at most (limit {tolerance:g} on average)"
        )
        found.checks.append(Check("log-probabilities", mean <= tolerance, detail))
    return found


def _compare_case(found: Comparison, case: Case, reference: Answer, answer: Answer, tolerance: float) -> str:
    """Count the case; what is wrong with it, or ''."""
    if reference.error or answer.error:
        return f"the reference failed, {reference.error}" if reference.error else answer.error
    found.answers += 1
    if answer.prompt_tokens != reference.prompt_tokens:
        return (
            f"the prompt has {answer.prompt_tokens} tokens, but {reference.prompt_tokens} for the reference: another "
            "chat template, or pictures of another size"
        )
    found.same_prompts += 1
    if case.shrunk:  # whoever shrinks it rounds in another way
        return ""
    ours, theirs = reference.tokens, answer.tokens
    if ours is None or theirs is None:
        found.same_answers += answer.text == reference.text
        found.tokens += len(ours or ())
        found.same_tokens += len(ours or ()) if answer.text == reference.text else 0
        return "" if answer.text == reference.text else f"answers {answer.text!r}, but the reference {reference.text!r}"
    same = next((at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a.text != b.text), None)
    same = min(len(ours), len(theirs)) if same is None else same
    found.deltas += [abs(a.log_prob - b.log_prob) for a, b in zip(ours[:same], theirs[:same], strict=True)]
    found.tokens += len(ours)
    found.same_tokens += same
    if same == len(ours) == len(theirs):
        found.same_answers += 1
        return ""
    if same == len(ours) or same == len(theirs):
        found.same_answers += answer.text == reference.text
        longer = "ends later" if same == len(ours) else "ends earlier"
        return "" if answer.text == reference.text else f"{longer} ({answer.text!r} and {reference.text!r})"
    other = theirs[same].text
    gap = ours[same].log_prob - ours[same].top.get(other, float("-inf"))
    if gap <= tolerance:
        found.tied += 1
        return ""
    names = [text.decode("utf-8", "replace") for text in (other, ours[same].text)]
    likelier = f"{gap:.2f} nats likelier" if math.isfinite(gap) else "far likelier"
    return f"token {same + 1} is {names[0]!r}, but {names[1]!r} for the reference, {likelier} there"
