"""A page that holds the form of the chapter on planning, and what a reader does on it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

from browser import View

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "book" / "_static"
SCRIPTS = ("plan-formulas.js", "plan-calculator.js")
LOSS, N_GPUS = 2.1, 1024  # of the plan at which it opens here
PAGE = """<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>A page</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<link rel="stylesheet" href="course.css"><link rel="stylesheet" href="plan-calculator.css">
<style>*, *::before {{ box-sizing: border-box }}
html {{ background: var(--course-ground); color: light-dark(#222, #ddd); color-scheme: light dark }}</style>
<script>matchMedia("(prefers-color-scheme: dark)").onchange = (now) => {{
document.documentElement.dataset.theme = now.matches ? "dark" : "light" }}</script>
{scripts}</head><body><main class="bd-content"><article class="bd-article"><h1>A page</h1>{form}
</article></main></body></html>"""
ASSUMED = ("peak_flops_per_s", "mfu", "price_per_gpu_hour", "power_watts", "pue", "grid_kg_per_kwh")
START_AGAIN = """async () => {
  document.querySelector("form").reset();
  await new Promise((done) => setTimeout(done)); // after the form's own
}"""
FIELDS = """() => [...document.querySelector("form").elements].filter((field) => field.name)
  .map((field) => [field.name, field.value])"""
ROWS = """() => [...document.querySelectorAll(".plan-results tr")]
  .map((row) => [...row.children].map((cell) => cell.textContent))"""
ANSWER = """(texts) =>
  scalelabPlan.answer(texts, JSON.parse(document.querySelector("form").dataset.package))"""


def module_at(path: Path) -> Any:
    """The module in a file that no package holds."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def calculator() -> Any:
    """The module that writes the form."""
    return module_at(ROOT / "book" / "scaling-laws" / "planning_calculator.py")


def lay_out(folder: Path) -> None:
    """A page with the form, beside copies of the files that it needs."""
    form = calculator().form(LOSS, N_GPUS).data
    for file in ("course.css", "plan-calculator.css", *SCRIPTS):
        shutil.copy(STATIC / file, folder)
    shutil.copytree(STATIC / "fonts", folder / "fonts")
    scripts = "".join(f'<script defer src="{file}"></script>' for file in SCRIPTS)
    (folder / "index.html").write_text(PAGE.format(scripts=scripts, form=form), encoding="utf-8")


def start_again(view: View) -> None:
    """The form as it was at first."""
    view.tab.evaluate(START_AGAIN)


def fields(view: View) -> dict[str, str]:
    """What stands in each field."""
    return dict(view.tab.evaluate(FIELDS))


def fill(view: View, **values: str) -> None:
    """Choose and type, in order."""
    for name, value in values.items():
        box = view.tab.locator(f"[name={name}]")
        if name in ("law", "ask", "hardware", "precision"):
            box.select_option(value)
        else:
            if name in ASSUMED:
                box.evaluate("(node) => { node.closest('details').open = true; }")
            box.fill(value)


def shown_table(view: View) -> dict[str, list[str]]:
    """The rows of the result by their names; the head's under ""."""
    rows = view.tab.evaluate(ROWS)
    return {name: cells for name, *cells in rows}


def answered(view: View) -> dict[str, Any]:
    """The columns and Python's lines behind what is shown, unrounded."""
    return dict(view.tab.evaluate(ANSWER, fields(view)))


def status(view: View) -> str:
    """The line that screen readers announce."""
    return str(view.tab.locator("[role=status]").text_content())


def number_in(text: str) -> float:
    """1,234 and 13.4 billion and 2.1 · 10²² as numbers."""
    words = {"million": 1e6, "billion": 1e9, "trillion": 1e12}
    plain = text.replace(",", "").replace("\u00a0", "").split()
    if "·10" in plain[0]:
        digits, power = plain[0].split("·10")
        return float(digits) * 10.0 ** int(power.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")))
    return float(plain[0]) * words.get(plain[-1], 1.0)
