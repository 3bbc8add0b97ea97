"""The report in a real browser: at three widths, light and dark, by keyboard, printed, as one file."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.look.report import write_report
from tests.browser import Chromium, installed
from tests.pipeline.test_report import add_predictions, add_runs, build, recipe_in

TEMPLATES = Path(__file__).parents[2] / "pipeline/look/templates"

FAINT_TEXT = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const part = (one) => { one /= 255; return one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b) + 0.05;
  const behind = (one) => { for (; one; one = one.parentElement) {
    const colour = rgb(getComputedStyle(one).backgroundColor); if (colour.length < 4 || colour[3] > 0) return colour; }
    return [255, 255, 255]; };
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !one.checkVisibility() || ["SCRIPT", "OPTION"].includes(one.tagName)) continue;
    const [text, ground] = [rgb(getComputedStyle(one).color), behind(one)].map(light);
    const apart = Math.max(text, ground) / Math.min(text, ground);
    if (apart < 4.5) found.push(one.tagName + " " + one.textContent.slice(0, 40));
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def page(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a simulated frame with predictions, a run and scores."""
    folder, golden = tmp_path_factory.mktemp("browser"), shared / "golden"
    (folder / "one.txt").write_text("scene-0008\n")
    (folder / "tiny.toml").write_text(
        f'[data]\nroot = "{golden / "nuscenes_tiny"}"\nsplit = "{folder / "one.txt"}"\n'
        f'[teacher]\nname = "artifacts"\nvoid = true\nfolder = "{golden / "superpixels_tiny"}"\n'
    )
    recipe = recipe_in(folder)
    build(recipe, "points", "pairs", "target", "label")
    add_predictions(recipe)
    add_runs(recipe)
    write_report(recipe, folder / "single", 1, single_file=True)
    return write_report(recipe, folder / "out", 1)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    program = installed()
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    with Chromium(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("width", [400, 1400, 2400])
def test_nothing_is_cut_off_and_all_text_can_be_read(page: Path, chromium: Chromium, width: int) -> None:
    for dark in (False, True):
        chromium.open(page, width, dark)
        assert chromium.ask("document.documentElement.scrollWidth") <= width
        assert chromium.ask(FAINT_TEXT) == []
    assert chromium.ask("[...document.images].filter(one => one.getAttribute('src') && !one.naturalWidth).length") == 0
    assert chromium.errors == []


def test_the_large_view_is_opened_moved_asked_and_left_by_keyboard(page: Path, chromium: Chromium) -> None:
    chromium.open(page, 1400)
    for _ in range(60):
        chromium.press("Tab")
        if chromium.ask("document.activeElement.dataset.cloud"):
            break
    assert chromium.ask("document.activeElement.dataset.large") == "Pseudo-labels"
    chromium.press("Enter")
    assert chromium.ask("document.getElementById('large').open && document.activeElement.id") == "large-canvas"
    title = "document.getElementById('large-title').textContent"
    assert chromium.ask(title).endswith(": Pseudo-labels")
    seen = "document.getElementById('large-canvas').toDataURL()"
    first = chromium.ask(seen)
    chromium.press("4")
    assert chromium.ask(title).endswith(": Errors of the predictions") and chromium.ask(seen) != first
    assert chromium.ask(FAINT_TEXT) == []
    # the driven surface is right ahead: moved there, the view says what the middle is
    chromium.press("+", "+", "ArrowUp")
    told = chromium.ask("document.getElementById('large-status').textContent")
    assert re.search(r"m away, .* seen by a camera\. Pseudo-labels: .*Truth: ", told) or told == "No point is here."
    # a class is hidden and comes back
    chromium.press("1")
    before = chromium.ask(seen)
    button = "document.querySelector('#large-legend button')"
    chromium.ask(f"{button}.focus()")
    chromium.press("Enter")
    assert chromium.ask(f"{button}.getAttribute('aria-pressed')") == "false" and chromium.ask(seen) != before
    chromium.press("Enter")
    assert chromium.ask(seen) == before
    chromium.press("p")
    assert "CAM_" in chromium.ask(title) and chromium.ask("document.getElementById('large-canvas').hidden")
    chromium.press("Escape")
    assert not chromium.ask("document.getElementById('large').open")
    focused = "document.activeElement.dataset.large"
    assert "CAM_" in chromium.ask(f"new Promise(done => setTimeout(() => done({focused}), 50))")
    assert chromium.errors == []


def test_frames_are_sifted_by_scene_and_class(page: Path, chromium: Chromium) -> None:
    chromium.open(page, 1400)
    shown = "[...document.querySelectorAll('section.frame')].filter(one => one.checkVisibility()).length"

    def choose(name: str, value: str) -> int:
        chromium.ask(
            f"(() => {{ const one = document.getElementById('filter').elements.{name}; one.value = {value!r};"
            " one.dispatchEvent(new Event('change', {bubbles: true})) })()"
        )
        return int(chromium.ask(shown))

    here = chromium.ask("document.querySelector('section.frame').dataset.classes").split()
    missing = next(str(number) for number in range(1, 17) if str(number) not in here)
    assert (choose("scene", "scene-0008"), choose("kind", here[0]), choose("kind", missing)) == (1, 1, 0)
    assert chromium.ask("document.getElementById('n-shown').textContent") == "0 of 1 frames"


def test_one_file_is_all_of_it(page: Path, chromium: Chromium) -> None:
    single = page.parents[1] / "single" / "index.html"
    assert [path.name for path in single.parent.iterdir()] == ["index.html"]
    assert 1e6 < single.stat().st_size < 8e6
    chromium.open(single, 1400)
    assert chromium.ask("document.images.length") > 10 and "pictures/" not in single.read_text(encoding="utf-8")
    chromium.ask("document.querySelector('[data-large]').focus()")
    chromium.press("Enter")
    assert chromium.ask("document.querySelector('dialog img').naturalWidth") > 300
    assert chromium.errors == []


def test_printing_keeps_all_columns(page: Path, chromium: Chromium, tmp_path: Path) -> None:
    chromium.open(page, 1400)
    (tmp_path / "page.pdf").write_bytes(chromium.pdf())
    if shutil.which("pdftotext") is None:
        pytest.skip("there is no pdftotext on this machine")
    words = ["pdftotext", "-layout", str(tmp_path / "page.pdf"), "-"]
    text = " ".join(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())
    last = chromium.ask("[...document.querySelectorAll('table tr:last-child td:last-child')].map(one => one.innerText)")
    assert len(last) > 3 and all(" ".join(one.split()) in text for one in last if one.strip())
    assert "AUGRC" in text and "cameras agree" in text and "Previous" not in text


def test_colours_of_the_page_can_be_told_apart_where_there_is_no_browser() -> None:
    """Text over bars and notices too, which no browser is asked about."""
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{[^}]*--page[^}]*\}", style)
    themes = [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in blocks]
    assert len(themes) == 2
    for theme in themes:
        for text in ("text", "quiet", "link"):
            assert all(contrast(theme[text], theme[ground]) >= 4.5 for ground in ("page", "card")), (text, theme)
        assert contrast(theme["text"], theme["bar"]) >= 4.5 and contrast(theme["text"], theme["warn"]) >= 4.5


def contrast(one: str, other: str) -> float:
    """How far two colours differ in luminance, 1 to 21, as the guidelines for web content count it."""

    def luminance(colour: str) -> float:
        shares = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return bright / dark
