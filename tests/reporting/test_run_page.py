"""The page of a run in a real browser: masks against each other, which units survive, and methods without a search."""

import dataclasses

import pytest
import torch

from comparisons import made_up
from earlyworm.experiments.results import CandidateResult, RunResult
from earlyworm.masks.mask import Mask
from earlyworm.reporting.run_report import summary, write_report
from results import EMERGED


@pytest.fixture
def visit(open_page, tmp_path):
    """Open the report of a result in a browser."""

    def open_report(result: RunResult, mask: Mask | None = None, **options):
        write_report(result, tmp_path / "report.html", mask)
        return open_page(tmp_path / "report.html", **options)

    return open_report


def made_up_mask() -> Mask:
    """Of a small layer, of the largest that still has one cell per unit, and of one that has more units than cells."""
    return Mask.from_groups({
        "small": torch.tensor([True, False, True]),
        "most": torch.arange(512) % 2 == 0,
        "many": torch.arange(5120) < 2560 + 5,
    })  # fmt: skip


def figure(page, name: str) -> dict:
    return page.evaluate("id => ({ data: document.getElementById(id).data, layout: page.figures[id].layout })", name)


def test_the_matrix_is_symmetric_and_frames_the_window_of_emergence(visit):
    result = made_up("worm", epoch=9.0)
    page = visit(result)
    [picture] = figure(page, "matrix")["data"]
    assert picture["x"] == picture["y"] == list(range(10))
    assert picture["z"][7][2] == picture["z"][2][7] == pytest.approx(result.search.distances[7][2], abs=1e-4)
    assert all(picture["z"][i][i] == 0 for i in range(10))
    [frame] = figure(page, "matrix")["layout"]["shapes"]
    assert (frame["x0"], frame["x1"]) == (frame["y0"], frame["y1"]) == (4.5, 9.5)
    page.focus("#matrix")
    for key in ("ArrowRight", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    page.locator("#matrix .hoverlayer").get_by_text("epochs 2 and 0").wait_for()


def test_where_the_first_check_has_no_mask_the_matrix_begins_at_the_second(visit):
    whole = made_up("worm", epoch=9.0)
    shorter = tuple(row[1:] for row in whole.search.distances[1:])
    page = visit(dataclasses.replace(whole, search=dataclasses.replace(whole.search, distances=shorter)))
    assert figure(page, "matrix")["data"][0]["x"] == list(range(1, 10))
    [frame] = figure(page, "matrix")["layout"]["shapes"]
    assert frame["x0"] >= 0.5
    page.locator("#matrix ~ details summary").click()
    assert page.locator("#matrix ~ details tbody th").all_inner_texts() == [str(epoch) for epoch in range(1, 10)]


def test_every_unit_has_a_cell_and_many_share_one(visit):
    page = visit(EMERGED, mask=made_up_mask())
    small, most, many, names = figure(page, "units")["data"]
    assert small["z"] == [[1, 0, 1]]
    assert small["text"][0][1] == "unit 1: removed"
    assert (len(most["z"][0]), sum(most["z"][0])) == (512, 256)
    assert len(many["z"][0]) == 512
    assert many["z"][0][255:258] == [1, 0.5, 0]
    assert many["text"][0][256] == "units 2560 to 2569: 50% kept"
    assert names["text"] == ["<b>2 of 3</b>  small", "<b>256 of 512</b>  most", "<b>2565 of 5120</b>  many"]
    page.focus("#units")
    for key in ("ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    page.locator("#units .hoverlayer").get_by_text("unit 1: removed").wait_for()
    assert visit(EMERGED).locator("#units").count() == 0  # no ticket was given


CANDIDATES = (
    CandidateResult(0.3, 8.0, 0.81, (0.5, 0.25), 0.9, 10, 1.0, chosen=False, speed=0.75),
    CandidateResult(0.5, 9.0, 0.7, (0.4, 0.2), 0.925, 10, 1.0, chosen=True, speed=0.6),
    CandidateResult(0.7, None, None, (), None, 0, 0.0, chosen=False),
)


def test_the_ratios_to_choose_from_have_a_table_that_fits_a_phone(visit):
    config = dataclasses.replace(EMERGED.config, ratios=(0.3, 0.5, 0.7))
    page = visit(dataclasses.replace(EMERGED, config=config, candidates=CANDIDATES), width=390)
    table = page.locator("section:has(#candidates)")
    assert table.locator("tbody tr").all_inner_texts() == [
        "0.3\t8\t81.0%\t0.75\t90.0%\tno", "0.5\t9\t70.0%\t0.6\t92.5%\tyes", "0.7\t-\t-\t-\t-\tno"
    ]  # fmt: skip
    assert "each was retrained for 2 epochs" in " ".join(table.inner_text().split())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert visit(EMERGED).locator("#candidates").count() == 0


OTHERS = {
    "dense": ("Dense training, nothing pruned: 95.0% accuracy", {"accuracy"}),
    "narrow": ("A narrower network from the start: 35% of the MACs, 95.0% accuracy", {"accuracy", "layers"}),
    "random": ("A random ticket, drawn at epoch 0: 35% of the MACs, 95.0% accuracy", {"accuracy", "layers"}),
    "late": (
        "Pruned at epoch 20, without a search: 35% of the MACs, 95.0% accuracy (96.0% before pruning)",
        {"accuracy", "distance", "layers", "matrix"},
    ),
    "imp": ("Pruned in 3 rounds: 50% of the weights, 95.0% accuracy", {"accuracy", "layers"}),
    "rst": (
        "A random ticket, prepared until epoch 20: 35% of the MACs, 95.0% accuracy (96.0% before pruning)",
        {"accuracy", "distance", "layers", "matrix"},
    ),
}


@pytest.mark.parametrize("method", OTHERS)
def test_methods_that_do_not_search_say_what_they_do(visit, method):
    result = made_up(method)
    headline, figures = OTHERS[method]
    page = visit(result)
    assert page.locator("h1").inner_text() == headline
    assert {plot.get_attribute("id") for plot in page.locator(".plot").all()} == figures
    words = page.locator("body").inner_text()
    for wrong in ("emerge", "epsilon", "trigger", "drawn by force", "--search-epochs"):
        assert wrong not in words.split("All settings")[0]
    assert "None" not in summary(result)


def test_dense_training_has_one_line(visit):
    [line] = figure(visit(made_up("dense")), "accuracy")["data"]
    assert (line["name"], len(line["x"]), line["y"][-1]) == ("training, dense network", 31, 0.95)


def test_rounds_are_told_and_rewound_weights_begin_anew(visit):
    result = made_up("imp")
    page = visit(result)
    assert "the rounds left 190, 151, 120 weights" in page.locator("header").inner_text()
    retraining = figure(page, "accuracy")["data"][-1]
    assert retraining["x"][0] == result.search.epoch + 1  # the accuracy right after pruning is of other weights
