"""Results as JSON, and as a page in a real browser."""

import json

import pytest

from earlyworm.errors import ConfigError, RunError
from earlyworm.experiments.results import (
    RunResult,
)
from earlyworm.reporting.run_report import write_report
from results import EMERGED, FORCED, NOT_EMERGED, SAMPLES


@pytest.fixture(params=SAMPLES)
def result(request) -> RunResult:
    return SAMPLES[request.param]


def test_json_round_trip(result):
    assert RunResult.from_json(result.to_json()) == result


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"parameters"', '"params"'),
        lambda text: text.replace('"layers"', '"layer"'),
        lambda text: text.replace('"seed": 0', '"seed": 0, "extra": 1'),
    ],
)
def test_damaged_json_names_the_file_and_the_cure(damage):
    with pytest.raises((RunError, ConfigError)) as caught:
        RunResult.from_json(damage(EMERGED.to_json()), "runs/a/result.json")
    message = str(caught.value)
    assert "\n" not in message
    assert "extra" in message or ("runs/a/result.json is damaged" in message and "--overwrite" in message)


def test_another_schema_is_refused():
    text = json.dumps({**json.loads(EMERGED.to_json()), "schema": 7})
    with pytest.raises(RunError, match="schema 7, but this version reads 1"):
        RunResult.from_json(text)


def test_a_report_replaces_the_old_one_and_leaves_nothing_else(tmp_path, result):
    path = tmp_path / "new" / "report.html"
    path.parent.mkdir()
    path.write_text("the old one")
    write_report(result, path)
    assert result.config.command() in path.read_text(encoding="utf-8")
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_a_report_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*report\.html .*choose another place"):
        write_report(EMERGED, tmp_path / "file" / "report.html")


@pytest.fixture
def visit(open_page, tmp_path):
    """Open the report of a result in a browser."""

    def open_report(result: RunResult, width: int = 1100, **options):
        path = tmp_path / "report.html"
        write_report(result, path)
        return open_page(path, width, **options)

    return open_report


def sizes(page) -> list[tuple[float, float]]:
    boxes = [plot.bounding_box() for plot in page.locator(".plot .main-svg:first-child").all()]
    return [(box["width"], box["height"]) for box in boxes]


@pytest.mark.parametrize("width", [1100, 375])
def test_page_shows_its_figures_and_never_scrolls_sideways(visit, result, width):
    page = visit(result, width)
    shown = sizes(page)
    assert len(shown) == (2 if result.ticket is None else 3)
    assert all(w > 300 and h > 150 for w, h in shown)
    for details in page.locator("details").all():
        details.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_page_says_what_happened(visit):
    page = visit(EMERGED)
    assert (
        page.locator("h1").inner_text()
        == "A ticket emerged at epoch 9: 43% of the MACs, 97.2% accuracy (96.1% before pruning)"
    )
    table = page.locator("main > section table").first.inner_text()
    assert "0.43" in table
    assert "-25.3 points" in table
    # Text from outside is text, even where it looks like a script.
    assert EMERGED.notes[0] in page.locator("body").inner_text()
    changed = page.locator(".changed").all_text_contents()
    assert all(any(name in text for text in changed) for name in ("method", "model", "lr"))
    assert "earlyworm run --method worm --model vgg16_bn" in page.locator("code").inner_text()
    assert all(name in page.locator(".settings").text_content() for name in ("momentum", "check_every", "overwrite"))


@pytest.mark.parametrize(
    ("result", "headline"),
    [
        (NOT_EMERGED, "No ticket emerged"),
        (
            FORCED,
            "No ticket emerged; the newest mask, drawn by force: "
            "43% of the MACs, 97.2% accuracy (96.1% before pruning)",
        ),
    ],
)
def test_page_without_emergence_says_so(visit, result, headline):
    page = visit(result)
    assert page.locator("h1").inner_text() == headline
    assert "smallest window maximum reached 0.138" in page.locator("header").inner_text()
    assert "emergence" not in page.locator("#distance .legend").text_content()


def test_dark_mode_differs_and_follows_a_change(visit):
    page = visit(EMERGED)
    looks = (
        "[getComputedStyle(document.body).backgroundColor, document.querySelector('#distance .js-line').style.stroke]"
    )
    light = page.evaluate(looks)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "stroke => document.querySelector('#distance .js-line').style.stroke !== stroke", arg=light[1]
    )
    dark = page.evaluate(looks)
    assert dark[0] != light[0]
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert visit(EMERGED, color_scheme="dark").evaluate(looks) == dark


def test_figures_can_be_told_apart_without_colour(visit):
    page = visit(EMERGED)
    for figure in ("#distance", "#accuracy"):
        lines = page.locator(f"{figure} .scatterlayer .js-line")
        dashes = lines.evaluate_all("lines => lines.map(line => line.style.strokeDasharray)")
        assert len(set(dashes)) == len(dashes) > 1
    assert page.locator("#layers pattern").count() > 0


def test_values_are_read_with_the_keyboard(visit):
    page = visit(EMERGED)
    page.focus("#distance")
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    hover = page.locator("#distance .hoverlayer")
    hover.get_by_text("chi 0.003, 528 units truncated").wait_for()
    assert "epoch 6" in hover.text_content()
    page.focus("#layers")
    page.keyboard.press("ArrowDown")
    page.locator("#layers .hoverlayer").get_by_text("kept : 81.3%").wait_for()


def test_numbers_are_there_without_javascript(visit):
    page = visit(EMERGED, java_script_enabled=False)
    page.locator("summary").first.click()
    assert page.locator("details").first.locator("tr").nth(7).inner_text().split() == [
        "6", "0.1084", "0.1381", "0.003", "528", "0.3113", "92.8%",
    ]  # fmt: skip
