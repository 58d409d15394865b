"""The models the gateway serves: names, replicas, places, and what a request gets where it is silent."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateway.engines.base import Engine
from gateway.engines.extra_fields import ExtraField
from gateway.engines.spec import EngineSpec
from gateway.errors import ApiError, bad_request
from gateway.media.checks import ImagePart
from gateway.media.pixel_budget import PixelBudget
from gateway.scheduling.affinity import affinity
from gateway.scheduling.router import Assignment, Outcome, Router, Target
from gateway.scheduling.slots import Slots
from gateway.tenants.limits import Tenant
from modelfiles import counted

Fields = Mapping[str, ExtraField] | None


class Replica(Target):
    """An engine, the name it knows the model by, and how many answers of it to have there at once."""

    def __init__(self, engine: Engine, model: str, slots: int = 0) -> None:
        super().__init__(engine.name, slots or engine.spec.slots, up=False)
        self.engine = engine
        self.model = model


class Model:
    """One model under all its names. `budget` is what it makes of an image, `slots` its places and its queue."""

    def __init__(
        self,
        name: str,
        replicas: Sequence[Replica],
        *,
        aliases: Sequence[str] = (),
        sampling: Mapping[str, Any] | None = None,
        budget: PixelBudget,
        max_waiting: int,
        slots: Slots,
    ) -> None:
        self.name = name
        self.replicas = list(replicas)
        self.aliases = list(aliases)
        self.sampling = dict(sampling or {})
        self.budget = budget
        self.spec = self._combined_spec()
        self.router = Router(self.replicas)
        self.slots = slots
        self.retired = False  # another configuration has taken over
        self._max_waiting = max_waiting

    def look(self) -> None:
        """See which replicas are up, and let as many requests run as they have places."""
        self.spec = self._combined_spec()  # what answers at a URL is known once it has answered
        for replica in self.replicas:
            up = replica.engine.ready and replica.model in replica.engine.served
            if up and not replica.up:
                self.router.restore(replica)
            replica.up = up
        self._resize()

    def _combined_spec(self) -> EngineSpec:
        spec = combined([replica.engine.spec for replica in self.replicas])
        return dataclasses.replace(spec, max_pixels=self.budget.max_pixels)

    def _resize(self) -> None:
        # At least one, so that those who wait are told when nothing is up any more.
        if not self.retired:
            self.slots.resize(max(1, self.router.slots), self._max_waiting)

    @property
    def ready(self) -> bool:
        return any(not self.router.is_closed_to_all(replica) for replica in self.replicas)

    @property
    def withdrawn(self) -> bool:
        """Whether all its engines work and none has it: an adapter that turned out to change nothing."""
        return all(replica.engine.ready and not replica.up for replica in self.replicas)

    @property
    def reason(self) -> str:
        """Why it can't be used, in a sentence for each replica."""
        return " ".join(dict.fromkeys(self._reason(replica) for replica in self.replicas))

    def _reason(self, replica: Replica) -> str:
        """What is the matter with a replica; empty if nothing is."""
        if not replica.engine.ready:
            return replica.engine.reason
        if not replica.up:
            return f"{replica.name} serves {', '.join(replica.engine.served)}, not '{replica.model}'."
        cooldown = self.router.cooldown(replica)
        if not cooldown:
            return ""
        went = "could not be reached by" if replica.unreachable else "failed"
        failed = counted(replica.failures, "request")
        return f"{replica.name} {went} {failed} in a row; it is tried again in {cooldown:.1f} s."

    @property
    def retry_after(self) -> float:
        if any(replica.up for replica in self.replicas):
            return self.router.retry_after
        return min(replica.engine.retry_after for replica in self.replicas)

    def unavailable(self) -> ApiError:
        return ApiError(503, self.client_reason, code="engine_unavailable", retry_after=self.retry_after)

    @property
    def client_reason(self) -> str:
        """`reason` as clients may read it: engines are numbered, their addresses are the operator's business."""
        reasons = []
        for number, replica in enumerate(self.replicas, 1):
            url, reason = replica.engine.url, self._reason(replica)
            for address in (str(url).rstrip("/"), f"{url.host}:{url.port}"):
                reason = reason.replace(address, f"engine {number}")
            reasons.append(reason)
        return " ".join(dict.fromkeys(reasons))

    def fill_in(self, body: dict[str, Any]) -> None:
        """Put the model's sampling defaults where the request is silent; null is silence."""
        for field, value in self.sampling.items():
            if field == "max_tokens" and body.get("max_completion_tokens") is not None:
                continue
            if body.get(field) is None:
                body[field] = value

    def affinity(self, body: dict[str, Any], images: Sequence[ImagePart]) -> bytes | None:
        """See `affinity`; None where there is nothing to choose from."""
        return affinity(body, [part.url for part in images[:1]]) if len(self.replicas) > 1 else None

    def release(self, assignment: Assignment, outcome: Outcome) -> None:
        """The request is over at this replica. `Router.release`, and places follow."""
        target = assignment.target
        cooled = target.cooldown_until
        self.router.release(assignment, outcome)
        if target.cooldown_until != cooled:
            self._resize()

    def begun(self, assignment: Assignment) -> None:
        """`Router.begun`, and places follow."""
        if assignment.half_open:
            self.router.begun(assignment)
            self._resize()

    def described(self) -> dict[str, Any]:
        """What /ready says of it."""
        replicas = []
        for replica in self.replicas:
            reason = self._reason(replica)
            about = {"reason": reason} if reason else {}
            replicas.append({"name": replica.name, "ready": not self.router.is_closed_to_all(replica), **about})
        return {"ready": self.ready, "replicas": replicas}


def combined(specs: Sequence[EngineSpec]) -> EngineSpec:
    """What may be asked of a model whichever of its replicas gets the request."""
    first, *others = specs
    for spec in others:
        first = dataclasses.replace(
            first,
            refused={**spec.refused, **first.refused},
            developer_role=first.developer_role and spec.developer_role,
            continues_answer=first.continues_answer and spec.continues_answer,
            continue_fields={**spec.continue_fields, **first.continue_fields},
            negative_top_k=first.negative_top_k and spec.negative_top_k,
            drops_stop=first.drops_stop or spec.drops_stop,
            forces_named_tool=first.forces_named_tool and spec.forces_named_tool,
            pins_arguments=first.pins_arguments and spec.pins_arguments,
            greedy_choices=first.greedy_choices and spec.greedy_choices,
            abort_path=first.abort_path if first.abort_path == spec.abort_path else "",
            extra_fields=_common(first.extra_fields, spec.extra_fields),
            raw_tokens=first.raw_tokens or spec.raw_tokens,
            refused_in_text={**spec.refused_in_text, **first.refused_in_text},
            tokenize_path=first.tokenize_path if first.tokenize_path == spec.tokenize_path else "",
            encode_path=first.encode_path if first.encode_path == spec.encode_path else "",
        )
    return first


def _common(first: Fields, other: Fields) -> Fields:
    """The extra fields that both engines take; None is an engine that is not known."""
    if first is None or other is None:
        return other if first is None else first
    return {name: rule for name, rule in first.items() if other.get(name) == rule}


class Models:
    """All models, found by name or alias, and the engines behind them."""

    def __init__(self, models: Iterable[Model]) -> None:
        self.all = list(models)
        self._by_name = {name: model for model in self.all for name in (model.name, *model.aliases)}
        self.engines = list(dict.fromkeys(replica.engine for model in self.all for replica in model.replicas))

    def look(self) -> None:
        for model in self.all:
            model.look()

    @property
    def names(self) -> list[str]:
        """Names and aliases."""
        return list(self._by_name)

    @property
    def listed(self) -> list[str]:
        """The names of models that there are as far as their engines say."""
        return [name for name, model in self._by_name.items() if not model.withdrawn]

    def get(self, name: str) -> Model | None:
        return self._by_name.get(name)

    def allowed(self, tenant: Tenant | None, name: str) -> bool:
        """Whether the holder of a key may use the model of this name; a key that names the model allows its aliases."""
        return tenant is None or tenant.may_use(name) or tenant.may_use(self._by_name[name].name)

    def find(self, body: dict[str, Any]) -> Model:
        """The model a request asks for. Raises ApiError 400 or 404."""
        name = body.get("model")
        if not isinstance(name, str) or not name:
            raise bad_request("'model' is required and must be a string.", "model", "missing_required_parameter")
        found = self._by_name.get(name)
        if found is None and name.endswith(":latest"):  # Ollama's name for a model without a tag
            body["model"] = name = name.removesuffix(":latest")
            found = self._by_name.get(name)
        if found is None:
            raise ApiError(
                404,
                "There is no such model; GET /v1/models lists those there are.",
                code="model_not_found",
                param="model",
            )
        return found

    @property
    def failure(self) -> str | None:
        """Why the gateway can never serve anything, once all its engines were given up."""
        failures = [engine.failure for engine in self.engines if engine.failure is not None]
        return " ".join(failures) if len(failures) == len(self.engines) else None
