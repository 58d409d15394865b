"""The pages Train and Evaluate in a real Chromium: from a choice of data to marked answers."""

from __future__ import annotations

from contextlib import closing

import pytest
from playwright.sync_api import Page, expect

from studio.jobs.store import Jobs
from studio.workspace.folder import Workspace
from tests.support.gateway.processes import until
from tests.support.studio.data import shape_files
from tests.support.studio.datasets import imported
from tests.support.studio.server import StudioServer

SLOW = 120_000  # ms that a job may take


@pytest.fixture(scope="module", autouse=True)
def workspace(studio_server: StudioServer) -> Workspace:
    with closing(studio_server.client()) as client:
        imported(client, shape_files(), "shapes")
    return Workspace(studio_server.folder)


@pytest.fixture
def train(page: Page, studio_server: StudioServer) -> Page:
    page.goto(f"{studio_server.url}/train")
    expect(page.locator("#command")).to_contain_text("lensmith train runs/shapes-quick")
    return page


def test_recipe_and_command_follow_the_form(train: Page) -> None:
    train.get_by_text("Best", exact=True).click()
    expect(train.locator("#yaml")).to_contain_text("lora_rank: 32")
    expect(train.get_by_label("Name of the run")).to_have_value("shapes-best")
    train.locator(".advanced > summary").click()
    train.get_by_label("lora_rank").fill("3")
    expect(train.locator("#yaml")).to_contain_text("lora_rank: 3\n")
    expect(train.locator("#changed")).to_have_text("· 1 changed")


def test_a_wrong_value_is_a_sentence_beside_its_field_and_goes_when_it_is_right(train: Page) -> None:
    train.locator(".advanced > summary").click()
    train.get_by_placeholder("Find a key").fill("learning rate rises")
    expect(train.locator("[data-key=lora_rank]")).to_be_hidden()
    field = train.get_by_label("warmup_ratio")
    field.fill("<b>2</b>")
    beside = train.locator("[data-key=warmup_ratio] .problem")
    expect(beside).to_contain_text("input should be a valid number")
    expect(beside).to_contain_text("<b>2</b>")
    expect(field).to_have_attribute("aria-invalid", "true")
    field.fill("0.1")
    expect(beside).to_be_hidden()


def test_two_tabs_start_one_run_which_is_then_evaluated_and_marked(
    train: Page, studio_server: StudioServer, workspace: Workspace
) -> None:
    expect(train.locator("[data-starts=yes]")).to_have_text("Would start.", timeout=SLOW)
    other = train.context.new_page()
    other.goto(f"{studio_server.url}/train")
    for tab in (train, other):
        tab.get_by_label("Name of the run").fill("tabs")
        tab.locator(".advanced > summary").click()
        tab.get_by_label("max_steps").fill("2")
        expect(tab.locator("#yaml")).to_contain_text("runs/tabs/output")
    train.get_by_role("button", name="Start training").click()
    train.wait_for_url("**/runs/tabs")
    other.get_by_role("button", name="Start training").click()
    expect(other.locator("#messages")).to_contain_text("There is a “tabs” already")
    jobs = Jobs(workspace.folder / "jobs")
    assert len(jobs.list("train", run="tabs")) == 1
    until("the run is over", lambda: not jobs.list("train", run="tabs")[0].active)
    assert jobs.list("train", run="tabs")[0].state == "done"

    train.goto(f"{studio_server.url}/evaluate")
    train.get_by_label("Rows").fill("4")
    train.get_by_label("Longest answer, tokens").fill("4")
    train.get_by_role("button", name="Start the evaluation").click()
    expect(train.locator(".wall .answer")).to_have_count(4, timeout=SLOW)
    expect(train.get_by_role("row", name="Exact match")).to_be_visible()
    first = train.locator(".wall .answer").first
    expect(first.locator("img")).to_have_js_property("complete", True)
    assert first.locator("img").evaluate("image => image.naturalWidth") > 0
    first.locator("summary").click()
    first.get_by_label("Right answer").fill("a <i>red</i> one")
    first.get_by_role("button", name="Send to the data").click()
    expect(first.locator(".marked")).to_contain_text("a <i>red</i> one")
    train.goto(f"{studio_server.url}/data/shapes?text=one")
    expect(train.locator("#work")).to_contain_text("a <i>red</i> one")
