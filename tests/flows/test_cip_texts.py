"""Every text of pages is in every catalogue, and a catalogue has no other."""

import ast
from pathlib import Path

import pytest

from switch.web.cip_common import TEMPLATES, environment
from switch.web.cip_texts import CATALOGUES, ENGLISH, SPANISH

WEB = Path(__file__).parents[2] / "switch" / "web"
SITE = "sof.html"  # of the simulated site: no page of ours


def texts() -> set[str]:
    """What templates and pages say, in English."""
    templates = environment(ENGLISH)
    found = set()
    for path in TEMPLATES.glob("*.html"):
        for _, _, text in templates.extract_translations(path.read_text()):
            found.add(text[0] if isinstance(text, tuple) else text)
    found.discard(None)  # a variable: its texts are marked where it is made
    for path in WEB.glob("cip*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "N_":
                found.add(ast.literal_eval(call.args[0]))
    return found


@pytest.mark.parametrize("language", sorted(set(CATALOGUES) - {ENGLISH}))
def test_a_catalogue_is_whole(language: str) -> None:
    assert set(CATALOGUES[language]) == texts()


def test_placeholders_are_the_same_in_every_language() -> None:
    for english, spanish in SPANISH.items():
        for text in (english, spanish):
            assert sorted(_names(english)) == sorted(_names(text)), english


def _names(text: str) -> list[str]:
    return [part.partition(")")[0] for part in text.split("%(")[1:]]


def test_templates_say_nothing_that_is_not_in_a_catalogue() -> None:
    for path in TEMPLATES.glob("*.html"):
        if path.name != SITE:
            text = path.read_text().replace(" · ", "")
            assert text.isascii(), f"{path.name} has words of its own"
