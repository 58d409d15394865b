"""`install` and `verify` end to end against a server that speaks Ollama's API and fails in many ways."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from modelfiles.cli.group import modelfile
from modelfiles.server.answers import AnswerComparison
from modelfiles.server.questions import Question, QuestionError, read_questions
from tests.support.modelfiles.fake_ollama import FakeOllama, running
from tests.support.modelfiles.model_folders import make_folder, write_json

ROWS = 40
STOPS = 'stop "<|im_end|>"\nstop "<|endoftext|>"'
COLOURS = ("red", "blue", "green", "black")


def run(*args: object) -> Result:
    return CliRunner().invoke(modelfile, [str(arg) for arg in args], env={"OLLAMA_HOST": None})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "models" / "model", min_pixels=1024 * 32 * 32)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(b"picture")
    rows = [
        {
            "conversations": [
                {"from": "human", "value": f"<image>Question {n}?"},
                {"from": "gpt", "value": COLOURS[n % 4]},
            ],
            "images": ["a.png"],
        }
        for n in range(ROWS)
    ]
    write_json(tmp_path / "rows.json", rows)
    return tmp_path / "rows.json"


@pytest.fixture
def ollama(model: Path) -> Iterator[FakeOllama]:
    """A server with a healthy model, whose prompts are the renderer's."""
    with running() as server:
        server.show_qwen3vl()
        right = {f"Question {n}?": COLOURS[n % 4] for n in range(ROWS)}
        server.answers, server.reference = dict(right), dict(right)
        yield server


def install(ollama: FakeOllama, model: Path, data: Path, *args: object) -> Result:
    given = ("--server", ollama.url, "--data", data, "--reference", f"{ollama.url}/v1", "--prompt", "renderer", *args)
    return run("install", model, "--name", "api-ok", *given)


def test_install_generates_pushes_and_proves(ollama: FakeOllama, model: Path, data: Path) -> None:
    result = install(ollama, model, data)
    assert result.exit_code == 0, result.output
    assert "40 of 40 right in Ollama, 40 through" in result.output
    assert "checks passed" in result.output
    assert [path.name for path in model.parent.iterdir()] == ["model"], "nothing is left beside the model"
    assert "writing manifest" in result.output


@pytest.mark.parametrize("name", ["Größe", "a b", "a/b/c/d", ":v1", "-a", ""])
def test_a_name_that_ollama_would_refuse_is_refused_before_anything_is_sent(
    name: str, ollama: FakeOllama, model: Path, tmp_path: Path
) -> None:
    result = run("install", model, "--name", name, "--server", ollama.url)
    assert result.exit_code == 2
    assert "Ollama takes no" in result.output
    assert run("generate", model, "-o", tmp_path / "stage").exit_code == 0
    assert run("push", "--server", ollama.url, tmp_path / "stage", "--", name).exit_code == 2
    assert not ollama.uploads


def forget(answers: int) -> Callable[[FakeOllama], None]:
    """A model that was not trained on so many of the questions."""

    def apply(server: FakeOllama) -> None:
        server.answers |= {f"Question {n}?": "a picture" for n in range(answers)}

    return apply


def other_shape(server: FakeOllama) -> None:
    server.show["model_info"] |= {"qwen3vl.block_count": 28}


FAULTS: dict[str, tuple[Callable[[FakeOllama], object], str]] = {
    "the untuned base": (forget(40), "answers are as good"),
    "a few answers lost": (forget(5), "answers are as good"),
    "another model": (other_shape, "has the folder's shape"),
    "empty replies": (lambda server: setattr(server, "empty", True), "answers"),
    "blind": (lambda server: setattr(server, "blind", True), "an image costs tokens"),
    "images of 64 tokens": (lambda server: setattr(server, "image_tokens", 64), "an image costs tokens"),
    "fused images": (lambda server: setattr(server, "fused", True), "two equal images are two"),
    "no vision": (lambda server: server.show.update(capabilities=["completion"]), "sees images"),
    "no projector": (lambda server: server.show.update(projector_info=None), "has a projector"),
    "other num_ctx": (lambda server: server.show.update(parameters="num_ctx 4096"), "num_ctx"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_install_is_not_fooled(fault: str, ollama: FakeOllama, model: Path, data: Path) -> None:
    apply, check = FAULTS[fault]
    apply(ollama)
    result = install(ollama, model, data)
    assert result.exit_code == 1, result.output
    # Empty replies end it: there is nothing that could be compared.
    assert f"FAIL {check}:" in result.output


def test_a_lost_answer_or_two_may_be_chance(ollama: FakeOllama, model: Path, data: Path) -> None:
    forget(4)(ollama)
    assert install(ollama, model, data).exit_code == 0


def test_as_bad_as_the_reference_is_no_fault_of_the_server(ollama: FakeOllama, model: Path, data: Path) -> None:
    forget(40)(ollama)
    ollama.reference = dict.fromkeys(ollama.reference, "a picture")
    result = install(ollama, model, data)
    assert result.exit_code == 0
    assert "0 of 40 right in Ollama" in result.output


def test_with_a_blank_fused_images_are_said_to_be_seen(ollama: FakeOllama, model: Path, data: Path) -> None:
    ollama.fused = True
    assert "with a blank, `[img] [img]`, both are seen" in install(ollama, model, data).output
    assert install(ollama, model, data, "--images-per-request", 1).output.count("two equal images") == 0


def test_qwen3_5_is_healthy_with_few_tokens(ollama: FakeOllama, tmp_path: Path, data: Path) -> None:
    """It gets no minimum: 256 x 256 pixels are 64 tokens."""
    model = make_folder(tmp_path / "other" / "model", "qwen3_5")
    text = json.loads((model / "config.json").read_text())["text_config"]
    ollama.image_tokens = 64
    ollama.show["model_info"] = {
        "general.architecture": "qwen35",
        "qwen35.block_count": text["num_hidden_layers"],
        "qwen35.embedding_length": text["hidden_size"],
    }
    output = install(ollama, model, data).output
    assert "ok   an image costs tokens" in output
    assert "ok   two equal images are two" in output


def test_a_vision_tower_inside_the_gguf_is_a_projector(ollama: FakeOllama, model: Path, data: Path) -> None:
    """As Ollama converts Qwen2.5-VL."""
    ollama.show |= {"projector_info": None}
    ollama.show["model_info"] |= {"qwen25vl.vision.block_count": 4}
    result = install(ollama, model, data)
    assert result.exit_code == 0
    assert "has a projector: inside the model's GGUF" in result.output


def test_verify_proves_the_answers_of_a_model_that_is_there(
    ollama: FakeOllama, model: Path, data: Path, tmp_path: Path
) -> None:
    stage = tmp_path / "stage"
    assert run("generate", model, "-o", stage, "--prompt", "renderer").exit_code == 0
    arguments = ("verify", stage, "api-ok", "--server", ollama.url, "--reference", f"{ollama.url}/v1")
    assert "answers: not asked" in run(*arguments).output
    assert run(*arguments, "--data", data).exit_code == 0
    forget(40)(ollama)
    assert run(*arguments).exit_code == 0, "without data there is nothing to see it by"
    result = run(*arguments, "--data", data, "--limit", 10)
    assert result.exit_code == 1
    assert "0 of 10 right in Ollama, 10 through" in result.output


def test_a_reference_that_does_not_answer_is_one_sentence(ollama: FakeOllama, model: Path, data: Path) -> None:
    result = install(ollama, model, data, "--reference", "http://127.0.0.1:9/v1")
    assert result.exit_code == 1
    assert "is no OpenAI API that answers" in result.output


def test_the_test_is_mcnemars() -> None:
    assert AnswerComparison([True] * 4, [True] * 4).p == 1
    assert AnswerComparison([False] * 5, [True] * 5).p == 1 / 32
    assert not AnswerComparison([False] * 4, [True] * 4).worse
    assert AnswerComparison([False] * 9 + [True], [True] * 9 + [False]).p == 11 / 1024
    assert not AnswerComparison([True] * 9, [False] * 9).worse


def test_images_keep_their_places() -> None:
    question = Question([("system", "Be brief."), ("user", "<image><image>Same?")], ["one", "two"], "no")
    assert question.ollama_messages()[1] == {"role": "user", "content": "Same?", "images": ["one", "two"]}
    between = Question([("user", "Is <image> like <image>?")], ["one", "two"], "no")
    assert between.ollama_messages()[0]["content"] == "Is [img] like [img]?"
    kinds = [part["type"] for part in between.openai_messages()[0]["content"]]
    assert kinds == ["text", "image_url", "text", "image_url", "text"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no rows"),
        ("{", "cannot be read"),
        ("[1]", "row 1 cannot be asked"),
        ('[{"messages": [{"role": "user", "content": "a"}]}]', "row 1 cannot be asked"),
        (
            '{"messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "b"}]}',
            "but 0 images",
        ),
    ],
)
def test_rows_that_cannot_be_asked_are_named(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(QuestionError, match=reason):
        read_questions(tmp_path / "rows.jsonl", 10)
