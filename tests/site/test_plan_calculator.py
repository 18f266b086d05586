"""The calculator of the chapter on planning: what it shows, what it says of bad inputs, and who can use it.

It is tried on a page of its own that holds the chapter's form and loads the chapter's files; the last test
looks for both in the built site. Its formulas are held against scalelab.plan in test_plan_formulas.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from browser import SCHEMES, View, set_scheme, visit
from local_site import served
from plan_page import (
    ASSUMED,
    LOSS,
    N_GPUS,
    ROOT,
    SCRIPTS,
    STATIC,
    answered,
    calculator,
    fields,
    fill,
    lay_out,
    module_at,
    number_in,
    shown_table,
    start_again,
    status,
)

from scalelab.lab.scaling_laws.chinchilla_points import PUBLISHED
from scalelab.laws import ChinchillaLaw
from scalelab.plan import Assumptions, plan_budget, plan_loss, plan_serving

LAW = PUBLISHED["Besiroglu, printed"]
PARAMETERS = ("E", "A", "B", "alpha", "beta")
MODEL = ("n_params", "n_tokens", "flops", "loss", "tokens_per_param")
BILL = ("gpu_hours", "money", "energy_kwh", "co2_kg", "days")
RTOL = 1e-9

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("calculator")
    lay_out(folder)
    with served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def opened(browser: Any, site: str) -> Iterator[View]:
    with visit(browser, site, "index.html") as view:
        yield view
        assert not view.errors()
        assert not view.strangers()


@pytest.fixture
def view(opened: View) -> View:
    """One open page for all tests here, each beginning with the form as it was at first."""
    start_again(opened)
    return opened


# What it takes from the package -----------------------------------------------------------------------


def test_laws_and_defaults_on_the_page_are_the_package_s(view: View) -> None:
    known = json.loads(view.tab.locator(".plan-calculator form").get_attribute("data-package"))
    assumed = Assumptions()
    laws = [ChinchillaLaw(**{k: v for k, v in law.items() if k != "name"}) for law in known["laws"]]
    assert set(laws) == set(PUBLISHED.values())
    assert laws[0] == LAW
    assert {name: getattr(assumed, name) for name in known["defaults"]} == known["defaults"]
    shown = {name: float(value) for name, value in fields(view).items() if name in ASSUMED}
    assert shown == {
        "peak_flops_per_s": assumed.peak_flops_per_s,
        "power_watts": assumed.watts,
        **{n: v for n, v in known["defaults"].items() if isinstance(v, float)},
    }


def test_the_scripts_repeat_no_number_of_the_package() -> None:
    text = "".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    text = re.sub(r"/\*.*?\*/|//.*|`[^`]*`", "", text, flags=re.DOTALL)
    literals = {float(number) for number in re.findall(r"(?<![\w.])\d+\.?\d*(?:e\d+)?(?!\w)", text)}
    assumed = Assumptions()
    theirs = {getattr(law, name) for law in PUBLISHED.values() for name in PARAMETERS}
    theirs |= {assumed.mfu, assumed.pue, assumed.grid_kg_per_kwh, assumed.watts, assumed.peak_flops_per_s}
    assert literals
    assert not literals & theirs


def test_a_budget_typed_in_gives_the_package_s_plan(view: View) -> None:
    fill(view, ask="flops", flops="5.76e23", n_gpus="512")
    plan, table = plan_budget(LAW, 5.76e23, n_gpus=512), shown_table(view)
    assert table[""] == ["compute-optimal"]
    for row, wanted in {
        "Parameters N": plan.n_params, "Training tokens D": plan.n_tokens, "Loss, nats per token": plan.loss,
        "Tokens per parameter": plan.tokens_per_param, "Training, FLOPs": plan.flops,
        "Training, GPU-hours": plan.bill.gpu_hours, "Days on 512 GPUs": plan.bill.days,
        "Money, USD": plan.bill.money, "Energy, kWh": plan.bill.energy_kwh,
        "Carbon, kg CO₂e": plan.bill.co2_kg,
    }.items():  # fmt: skip
        assert number_in(table[row][0]) == pytest.approx(wanted, rel=1e-3), row
    assert f"{plan.n_params / 1e9:.2f} billion parameters" in status(view)


def test_it_opens_with_the_chapter_s_plan(view: View) -> None:
    plan = plan_loss(LAW, LOSS, n_gpus=N_GPUS)
    assert number_in(shown_table(view)["Training, FLOPs"][0]) == pytest.approx(plan.flops, rel=1e-3)
    assert "Days on 1,024 GPUs" in shown_table(view)
    assert status(view).startswith("Compute-optimal: 13.36 billion")


def test_another_question_is_asked_about_the_same_plan(view: View) -> None:
    fill(view, loss="1.95")
    before = shown_table(view)["Training, FLOPs"]
    for ask in ("flops", "gpu_hours", "money", "model", "loss"):
        fill(view, ask=ask)
        now = shown_table(view)["Training, FLOPs"][0]
        assert number_in(now) == pytest.approx(number_in(before[0]), rel=2e-3), ask
        visible = view.tab.locator(
            "[name=flops], [name=gpu_hours], [name=money], [name=loss], [name=n_params]"
        )
        assert [box.get_attribute("name") for box in visible.all() if box.is_visible()] == [
            "n_params" if ask == "model" else ask
        ]


def test_a_size_held_fast_shows_what_it_wastes(view: View) -> None:
    fill(view, ask="flops", flops="1e23", fixed_n_params="7e9")
    n_tokens = 1e23 / (6 * 7e9)
    loss = float(LAW.loss(7e9, n_tokens))
    table = shown_table(view)
    assert table[""] == ["compute-optimal", "with your N"]
    assert number_in(table["Training tokens D"][1]) == pytest.approx(n_tokens, rel=1e-3)
    wasted = number_in(table["FLOPs over the fewest for its loss"][1])
    assert wasted == pytest.approx(1e23 / LAW.flops_for(loss), rel=1e-3)
    fill(view, ask="loss", loss="2.0")
    table = shown_table(view)
    assert number_in(table["Training tokens D"][1]) == pytest.approx(LAW.tokens_for(7e9, 2.0), rel=1e-3)
    assert table["Loss, nats per token"] == ["2.0000", "2.0000"]


def test_a_served_model_is_smaller(view: View) -> None:
    fill(view, loss="2.0", served_tokens="1e13")
    life, table = plan_serving(LAW, 2.0, prompt_tokens=1e13), shown_table(view)
    assert table[""] == ["compute-optimal", "cheapest over its life"]
    assert number_in(table["Parameters N"][1]) == pytest.approx(life.best.n_params, rel=1e-3)
    assert number_in(table["Training and serving, FLOPs"][1]) == pytest.approx(life.best.cost, rel=1e-3)
    assert f"saves {100 * life.saving:.1f} %" in status(view)


def test_hardware_brings_its_peak_and_power(view: View) -> None:
    fill(view, hardware="t4")  # it has no bf16
    found, wanted = fields(view), Assumptions(hardware="t4", precision="fp16")
    assert found["precision"] == "fp16"
    assert (float(found["peak_flops_per_s"]), float(found["power_watts"])) == (
        wanted.peak_flops_per_s,
        wanted.watts,
    )
    fill(view, peak_flops_per_s="1e14")
    assert fields(view)["hardware"] == "other"


SPELLINGS = {
    "1e21": 1e21, "5.76e23": 5.76e23, "1,000,000": 1e6, "1_000_000": 1e6, "1 000 000.5": 1000000.5,
    " 7E9 ": 7e9, "+.5": 0.5, "−3": -3.0, "2.1e-3": 0.0021, "12.": 12.0,
}  # fmt: skip


def test_numbers_are_read_as_people_type_them(view: View) -> None:
    read = view.tab.evaluate("(all) => all.map((one) => scalelabPlan.readNumber('x', one))", list(SPELLINGS))
    assert read == list(SPELLINGS.values())


# name → (what is chosen and typed, the field that is to blame, words of its message)
BAD = {
    "nothing": ({"loss": ""}, "loss", ("empty", "1e21")),
    "words": ({"ask": "flops", "flops": "a lot"}, "flops", ('"a lot"', "write")),
    "a word of mathematics": ({"ask": "flops", "flops": "NaN"}, "flops", ('"NaN"', "not a number")),
    "infinity": ({"ask": "flops", "flops": "1e400"}, "flops", ("1e400", "more than")),
    "a suffix": ({"ask": "model", "n_params": "70B"}, "n_params", ('"70B"', "1e21")),
    "a decimal comma": ({"loss": "2,1"}, "loss", ('"2,1"', "not a number")),
    "less than nothing": ({"ask": "money", "money": "-3"}, "money", ("-3", "above 0")),
    "no hours": ({"ask": "gpu_hours", "gpu_hours": "0"}, "gpu_hours", ("got 0", "above 0")),
    "the floor": ({"loss": "1.8172"}, "loss", ("1.8172", "floor", "higher")),
    "below the floor": ({"loss": "1.5"}, "loss", ("1.5", "E = 1.8172", "higher")),
    "no data": ({"ask": "model", "n_tokens": "0"}, "n_tokens", ("got 0", "above 0")),
    "too small a model": ({"fixed_n_params": "1e6"}, "fixed_n_params", ("1000000", "larger model")),
    "half a GPU": ({"n_gpus": "2.5"}, "n_gpus", ("2.5", "whole number")),
    "a share in per cent": ({"mfu": "40"}, "mfu", ("40", "0.4 for 40 %")),
    "no building": ({"pue": "0.9"}, "pue", ("0.9", "at least 1")),
    "a negative grid": ({"grid_kg_per_kwh": "-1"}, "grid_kg_per_kwh", ("-1", "at least 0")),
    "free of charge": ({"ask": "money", "price_per_gpu_hour": "0"}, "price_per_gpu_hour", ("GPU-hours",)),
    "tokens to hand back": ({"served_tokens": "-1"}, "served_tokens", ("-1", "at least 0")),
    "a law without slope": ({"law": "own", "alpha": "0"}, "alpha", ("got 0", "above 0")),
    "a paste of text": ({"law": "own", "pasted": "E = 1.7"}, "pasted", ("JSON", "braces")),
    "a paste of another law": ({"law": "own", "pasted": '{"law": "isoflop", "a": 0.5}'}, "pasted",
                               ("isoflop", "--law chinchilla")),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_input_is_named_and_leaves_no_result(view: View, fault: str) -> None:
    typed, name, words = BAD[fault]
    before = shown_table(view)
    assert before
    fill(view, **typed)
    box = view.tab.locator("[aria-invalid=true]")
    assert box.count() == 1
    assert box.get_attribute("name") == name
    message = view.tab.locator(f"#{box.get_attribute('id')}-error")
    assert message.is_visible()
    assert f"{box.get_attribute('id')}-error" in box.get_attribute("aria-describedby")
    for word in words:
        assert word in message.text_content()
    assert status(view).startswith("No plan. ")
    assert message.text_content() in status(view)
    assert shown_table(view) == {}
    assert not view.tab.locator(".plan-results, .plan-python").first.is_visible()
    assert view.tab.locator(".plan-python pre").text_content() == ""
    start_again(view)
    assert shown_table(view) == before
    assert view.tab.locator("[aria-invalid], .plan-error:visible").count() == 0


def test_a_fit_s_json_becomes_the_law(view: View) -> None:
    law = PUBLISHED["Hoffmann, printed"]
    printed = {"made_by": "scalelab fit", "law": "chinchilla", "budgets": [],
               **{name: getattr(law, name) for name in PARAMETERS}}  # fmt: skip
    fill(view, law="own", pasted=json.dumps(printed, indent=1), ask="flops", flops="1e22")
    assert answered(view)["columns"][0]["n_params"] == pytest.approx(plan_budget(law, 1e22).n_params)
    fill(view, E="0")
    assert fields(view)["pasted"] == ""
    assert fields(view)["E"] == "0"
    assert answered(view)["columns"][0]["loss"] == pytest.approx(plan_budget(law, 1e22).loss - law.E)


ASKED = {
    "as it opens": {},
    "a budget": {"ask": "flops", "flops": "1e23", "n_gpus": ""},
    "hours on other hardware": {"ask": "gpu_hours", "gpu_hours": "1,000,000", "hardware": "a100-sxm4-80gb"},
    "money, everything changed": {"ask": "money", "money": "123456.78", "hardware": "t4", "mfu": "0.3",
                                  "price_per_gpu_hour": "0.35", "power_watts": "90", "pue": "1.25",
                                  "grid_kg_per_kwh": "0.05"},
    "a peak of one's own": {"peak_flops_per_s": "3.3e14", "mfu": "0.5"},
    "a size at a loss, served": {"loss": "1.99", "fixed_n_params": "2e10", "served_tokens": "2.5e12"},
    "a size at a budget": {"ask": "flops", "flops": "1e22", "fixed_n_params": "1e9"},
    "a model": {"ask": "model", "n_params": "70e9", "n_tokens": "1.4e12", "law": "1", "served_tokens": "0"},
    "a law of one's own": {"law": "own", "E": "0", "A": "12.5", "beta": "0.31", "loss": "1.25"},
}  # fmt: skip


@pytest.mark.parametrize("asked", ASKED)
def test_the_lines_of_python_give_the_same(view: View, asked: str) -> None:
    fill(view, **ASKED[asked])
    found = answered(view)
    assert view.tab.locator(".plan-python pre").text_content() == found["python"]
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(found["python"], names)
    columns = {column["name"]: column for column in found["columns"]}
    plan, best = names["plan"], columns["compute-optimal"]
    for name in MODEL:
        assert getattr(plan, name) == pytest.approx(best[name], rel=RTOL), name
    for name in BILL:
        wanted = getattr(plan.bill, name)
        assert best[name] == (None if wanted is None else pytest.approx(wanted, rel=RTOL)), name
    if own := columns.get("with your N") or columns.get("your model"):
        assert names["n_tokens"] == pytest.approx(own["n_tokens"], rel=RTOL)
        assert names["loss"] == pytest.approx(own["loss"], rel=RTOL)
    if "life" in names:
        longer = columns.get("cheapest over its life")
        assert names["life"].best.n_params == pytest.approx(longer["n_params"], rel=RTOL)
        assert names["life"].best.cost == pytest.approx(longer["life_flops"], rel=RTOL)
        assert names["life"].saving == pytest.approx(longer["saving"], rel=RTOL, abs=1e-12)
    assert printed.getvalue().count("compute   ") == (2 if "your model" in columns else 1)


def test_a_peak_beyond_the_table_has_no_line_of_python(view: View) -> None:
    fill(view, peak_flops_per_s="1e18")
    assert answered(view)["python"].startswith("# No accelerator")
    assert "1,0" not in status(view)
    assert shown_table(view)


# Who uses it how --------------------------------------------------------------------------------------


FULL = {"ask": "flops", "flops": "5.76e23", "fixed_n_params": "8e9", "served_tokens": "1e13"}


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_bars_a_reader_and_nothing_is_cut_off(browser: Any, site: str, width: int) -> None:
    with visit(browser, site, "index.html", width=width) as opened:
        for faulty in ({}, {"mfu": "40"}):
            fill(opened, law="own", **FULL, **faulty)
            for scheme in SCHEMES:
                assert set_scheme(opened, scheme) == scheme
                assert not opened.barriers()
                assert not opened.stops()
                assert not opened.overflow()


def test_every_field_has_a_label_of_its_own(view: View) -> None:
    bare = view.tab.evaluate(
        "() => [...document.querySelectorAll('input, select, textarea')].filter(({ labels }) =>"
        " labels.length !== 1 || !labels[0].textContent.trim()).map(({ name }) => name)"
    )
    assert bare == []


def test_the_keyboard_alone_makes_a_plan(view: View) -> None:
    view.tab.locator("[name=law]").focus()
    view.tab.keyboard.press("Tab")
    view.tab.keyboard.press("Home")  # "training FLOPs"
    view.tab.keyboard.press("Tab")
    view.tab.keyboard.press("ControlOrMeta+A")
    view.tab.keyboard.type("1e24")
    view.tab.keyboard.press("Enter")
    assert view.tab.url.endswith("index.html")
    assert number_in(shown_table(view)["Training, FLOPs"][0]) == pytest.approx(1e24)


def test_without_javascript_the_package_is_named(browser: Any, site: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    try:
        tab = context.new_page()
        tab.goto(site + "index.html")
        assert not tab.locator(".plan-calculator form").is_visible()
        assert "plan_budget" in tab.locator("noscript").inner_text()
    finally:
        context.close()


def test_on_paper_the_package_is_named_and_no_form_printed(view: View) -> None:
    assert not view.tab.locator(".plan-on-paper").is_visible()
    view.tab.emulate_media(media="print")
    shown = [view.tab.locator(part).is_visible() for part in (".plan-on-paper", ".plan-calculator form")]
    view.tab.emulate_media(media="screen")
    assert shown == [True, False]


NAMES_OF_ITS_OWN = """() => {
  const empty = document.createElement("iframe");
  document.body.append(empty);
  const common = new Set(Object.getOwnPropertyNames(empty.contentWindow));
  const own = Object.getOwnPropertyNames(window).filter((name) => !common.has(name) && isNaN(name));
  empty.remove();
  return own;
}"""


def test_the_scripts_share_one_name_and_nothing_else(view: View) -> None:
    assert view.tab.evaluate(NAMES_OF_ITS_OWN) == []
    view.tab.evaluate("() => { window.another_name = 1; }")  # which would be noticed
    assert view.tab.evaluate(NAMES_OF_ITS_OWN) == ["another_name"]
    view.tab.evaluate("() => { delete window.another_name; }")
    text = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    assert re.findall(r"^(?:const|let|var|function|class) (\w+)", text, flags=re.MULTILINE) == [
        "scalelabPlan"
    ]


def test_only_pages_with_a_calculator_load_it(pages: Mapping[str, Any]) -> None:
    extension = module_at(ROOT / "book" / "_ext" / "page_scripts.py")
    files = ["plan-calculator.css", *SCRIPTS]
    assert extension.files_for(calculator().form(LOSS, N_GPUS).data) == files
    assert extension.files_for("<p>Plain words about a plan-calculator.</p>") == []
    for path, page in pages.items():
        loaded = [file for file in files if any(f"/{file}" in resource for resource in page.resources)]
        assert loaded == (files if path == "book/scaling-laws/planning.html" else []), path
    assert "book/scaling-laws/planning.html" in pages
