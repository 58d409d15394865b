"""The gateway with the fake engine as its supervised child: PORT TIMINGS_JSON [the fake engine's options]."""

import json
import sys
from pathlib import Path

from gateway.config.schema import Config
from gateway.engines.local import LocalEngine, Timing
from gateway.engines.spec import LMDEPLOY, EngineSpec
from gateway.media.pixel_budget import PixelBudget
from gateway.runtime.models import Model, Models, Replica
from gateway.runtime.service import Service
from gateway.scheduling.slots import Slots
from gateway.server import bind, run
from gateway.telemetry.metrics import Metrics

FAKE = str(Path(__file__).with_name("fake_engine.py"))


def main() -> None:
    port, timing, *options = sys.argv[1:]
    spec = EngineSpec(
        name="fake",
        command=("{python}", FAKE, "{folder}", "--port", "{port}", "--served-model-name", "{name}", *options),
        environment={"LENSMITH_ENGINE_KEY": "{key}"},
        # As LMDeploy's row, so that what the gateway settles for it is tested.
        refused=LMDEPLOY.refused,
        extra_fields=LMDEPLOY.extra_fields,
        raw_tokens=LMDEPLOY.raw_tokens,
        refused_in_text=LMDEPLOY.refused_in_text,
        encode_path=LMDEPLOY.encode_path,
        developer_role=LMDEPLOY.developer_role,
        drops_stop=LMDEPLOY.drops_stop,
        abort_path=LMDEPLOY.abort_path,
    )

    def load(metrics: Metrics, before: Models | None) -> tuple[Config, Models]:
        engine = LocalEngine(spec, Path("/nowhere"), "fake", name="fake-0", timing=Timing(**json.loads(timing)))
        model = Model(
            "fake", [Replica(engine, "fake")], budget=PixelBudget(), max_waiting=256, slots=Slots(metrics, "fake")
        )
        return Config.model_validate({"models": {"fake": {"replicas": [{"folder": "/nowhere"}]}}}), Models([model])

    run(Service(load, Metrics()), bind("127.0.0.1", int(port)))


if __name__ == "__main__":
    import click

    try:
        main()
    except click.ClickException as error:
        sys.exit(f"Error: {error.message}")
