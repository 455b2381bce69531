"""The page of a comparison in a real browser."""

import pytest

from comparisons import METHODS_SHOWN, ONE, cells, comparison_of, made_up, undone
from earlyworm.comparisons.comparison import Comparison
from earlyworm.errors import RunError
from earlyworm.reporting.comparison_report import write_comparison_report

FIGURES = {"decision", "curves", "distances", "emergence", "drop", "layers"}
ERROR = "out of memory <script>alert(1)</script>: lower --batch-size"


HEADLINE = (
    "worm ends more accurate than early-bird: of 4, 2 are within noise and 1 is less accurate "
    "(3 seeds: too few to be sure)"
)
TWO = comparison_of(
    *cells("resnet20"), *cells("vgg16_bn"),
    undone("imp", 0, ERROR, model="vgg16_bn"), undone("imp", 1, model="vgg16_bn"),
    title="Two networks", marks=("worm was trained at another lr",),
)  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Where the page of a comparison lies; each is written once."""
    folder, written = tmp_path_factory.mktemp("pages"), {}

    def page_of(comparison: Comparison):
        if id(comparison) not in written:
            path = folder / f"{len(written)}.html"
            write_comparison_report(comparison, path)
            written[id(comparison)] = comparison, path
        return written[id(comparison)][1]

    return page_of


@pytest.fixture
def visit(open_page, pages):
    """Open the page of a comparison in a browser."""
    return lambda comparison, width=1100, **options: open_page(pages(comparison), width, **options)


def methods_in(page, figure: str) -> set[str]:
    """The methods that a figure shows: those with a trace that has data, or with a column."""
    found = page.evaluate(
        """id => document.getElementById(id).data.filter(({ visible, x }) => visible !== false && x.length)
            .flatMap(({ meta, type, x }) => type === "heatmap" ? x : meta?.method ?? [])""",
        figure,
    )
    return set(found)


def shown(page) -> set[str]:
    """The figures that are to be seen, with something drawn in them."""
    plots = [plot for plot in page.locator(".plot").all() if plot.is_visible()]
    boxes = {plot.get_attribute("id"): plot.locator(".main-svg").first.bounding_box() for plot in plots}
    assert all(box["width"] > 300 and box["height"] > 150 for box in boxes.values())
    return set(boxes)


@pytest.mark.parametrize(("comparison", "width"), [(ONE, 1100), (TWO, 390)], ids=["one", "two on a phone"])
def test_page_shows_its_figures_and_never_scrolls_sideways(visit, comparison, width):
    page = visit(comparison, width)
    assert shown(page) == FIGURES
    assert methods_in(page, "decision") == methods_in(page, "curves") == set(METHODS_SHOWN)
    assert methods_in(page, "distances") == methods_in(page, "emergence") == {"early-bird", "worm", "greedy"}
    assert methods_in(page, "drop") == methods_in(page, "layers") == set(METHODS_SHOWN) - {"dense"}
    for details in page.locator("details").all():
        details.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_page_says_what_was_found_and_how(visit):
    page = visit(TWO)
    assert page.locator("h1").inner_text() == "Two networks"
    verdicts = page.locator(".verdicts li").all_inner_texts()
    expected = f"{HEADLINE}."
    assert verdicts == [f"{model} on digits, ratio 0.5: {expected}" for model in ("resnet20", "vgg16_bn")]
    assert "worm was trained at another lr" in page.locator(".notice").inner_text()
    # Text from outside is text, even where it looks like a script.
    assert ERROR in page.locator(".errors").inner_text()
    words = page.locator("body").inner_text()
    for told in (TWO.command, "earlyworm 0.1.0, torch 2.9.0", "Still to be done: 1 of 32 runs", "cpu"):
        assert told in words
    page.get_by_text("Every run and its command").click()
    rows = page.locator("details tbody tr")
    assert rows.count() == len(TWO.outcomes)
    assert TWO.outcomes[0].command in rows.first.inner_text()
    assert "failed" in rows.nth(30).inner_text()
    assert "waiting" in rows.nth(31).inner_text()


def test_the_title_of_one_setting_is_what_it_says(visit):
    page = visit(ONE)
    assert page.locator("h1").inner_text() == HEADLINE
    table = page.locator("main table").first.inner_text()
    assert all(method in table for method in METHODS_SHOWN)
    assert "Less accurate than early-bird at the end: random -2.0 for" in page.locator("header").inner_text().replace(
        "\N{NO-BREAK SPACE}", " "
    )
    assert page.locator("#setting").count() == 0


def test_names_do_not_lie_on_each_other(visit):
    alike = [
        made_up(f, s, final=0.95 + 0.001 * s) for f in ("early-bird", "worm", "greedy", "constant") for s in (0, 1)
    ]
    page = visit(comparison_of(*alike), width=390)
    labels = page.locator("#decision .annotation-text")
    assert sorted(labels.all_text_contents()) == ["constant", "early-bird", "greedy", "worm"]
    boxes = [label.bounding_box() for label in labels.all()]
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            apart = one["x"] >= other["x"] + other["width"] or other["x"] >= one["x"] + one["width"]
            assert apart or abs(one["y"] - other["y"]) >= one["height"] - 3


@pytest.mark.parametrize("keys", [False, True], ids=["mouse", "keyboard"])
def test_a_method_is_hidden_in_all_figures_at_once(visit, keys):
    page = visit(ONE)
    chip = page.locator("[data-method=worm]")
    if keys:
        for _ in range(2):  # early-bird's button comes first
            page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.dataset.method") == "worm"
        page.keyboard.press("Space")
    else:
        chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    for figure in FIGURES:
        found = methods_in(page, figure)
        assert found
        assert "worm" not in found
    page.wait_for_function("!document.querySelector('#decision').textContent.includes('worm')")
    assert page.locator("#emergence .yaxislayer-above .ytick").count() == 2
    page.keyboard.press("Space") if keys else chip.click()
    assert all("worm" in methods_in(page, figure) for figure in FIGURES)
    page.get_by_role("button", name="none", exact=True).click()
    assert not any(methods_in(page, figure) for figure in FIGURES)
    page.get_by_role("button", name="all", exact=True).click()
    assert methods_in(page, "decision") == set(METHODS_SHOWN)


def test_another_setting_has_other_figures_and_numbers(visit):
    better = [
        made_up(method, seed, model="vgg16_bn", final=0.99) for method in ("early-bird", "dense") for seed in (0, 1)
    ]
    page = visit(comparison_of(*cells("resnet20"), *better))
    page.locator("[data-method=dense]").click()
    page.get_by_label("Setting").focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("document.getElementById('decision').data.length === 2")
    assert methods_in(page, "decision") == {"early-bird"}  # what is hidden stays so
    assert page.evaluate("document.getElementById('decision').data[0].y") == [0.99]
    assert page.locator("main table").nth(0).is_hidden()
    assert "99.0" in page.locator("main table").nth(1).inner_text()
    page.get_by_label("Setting").select_option(index=0)
    page.wait_for_function("document.getElementById('decision').data.length === 5")


def test_figures_without_anything_to_show_are_left_out(visit):
    page = visit(
        comparison_of(*(made_up(method, seed) for method in ("dense", "narrow") for seed in (0, 1)), baseline="dense")
    )
    assert shown(page) == {"decision", "curves", "layers"}
    empty = visit(comparison_of(undone("early-bird", 0), undone("worm", 0, "it failed")))
    assert empty.locator("h1").inner_text() == "Nothing to compare with early-bird yet"
    assert "it failed" in empty.locator(".errors").inner_text()


def test_curves_over_flops_or_epochs_and_close_up(visit):
    page = visit(ONE)
    assert page.evaluate("document.getElementById('curves').layout.xaxis.title.text") == "training FLOPs"
    page.get_by_label("epochs", exact=True).focus()
    page.keyboard.press("Space")
    assert page.evaluate("document.getElementById('curves').layout.xaxis.title.text") == "epoch"
    page.wait_for_function("document.querySelectorAll('#curves .annotation-text').length === 5")
    page.get_by_label("close-up of the end").check()
    page.wait_for_function("document.getElementById('curves').layout.yaxis.range[0] > 0.7")


def test_values_are_read_with_the_keyboard(visit):
    page = visit(ONE)
    page.focus("#decision")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.locator("#decision .hoverlayer").get_by_text("final accuracy 95.2%").wait_for()
    page.focus("#layers")
    page.keyboard.press("ArrowRight")
    page.locator("#layers .hoverlayer").get_by_text("50.0% kept").wait_for()


def test_dark_mode_changes_the_colours_and_follows_a_change(visit):
    page = visit(ONE)
    looks = """[getComputedStyle(document.body).backgroundColor,
        document.querySelector('#decision .trace:nth-child(2) .point').style.fill,
        getComputedStyle(document.querySelector('.chip:nth-child(2) svg')).color]"""
    light = page.evaluate(looks)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"fill => {looks}[1] !== fill", arg=light[1])
    dark = page.evaluate(looks)
    assert all(one != other for one, other in zip(light, dark, strict=True))
    assert (light[1], dark[1]) == (light[2], dark[2])  # the key has the colours of the figures


def test_numbers_are_there_without_javascript(visit):
    page = visit(TWO, java_script_enabled=False)
    assert all(table.is_visible() for table in page.locator("main > section .wide:not(details *) table").all())
    page.locator("summary").last.click()
    assert "95.2%" in page.locator("details table").last.inner_text()


def test_a_page_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*choose another place"):
        write_comparison_report(ONE, tmp_path / "file" / "report.html")
