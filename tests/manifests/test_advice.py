"""Advice is told with the recipe as it was typed, for whoever called make or afov."""

from __future__ import annotations

import shlex

import pytest

from manifests.advice import HEAL, MARK, STYLE, filled

RECIPE = "my/city.toml"


@pytest.mark.parametrize(
    ("text", "overrides", "by_make", "by_afov"),
    [
        (
            "x; run: make points RECIPE=...",
            (),
            f"x; run: make points RECIPE={RECIPE}",
            f"x; run: afov run {RECIPE} points",
        ),
        (
            "make index RECIPE=... ARGS=--again",
            ("a.b=c",),
            f"make index RECIPE={RECIPE} ARGS='--set a.b=c --again'",
            f"afov run {RECIPE} index --set a.b=c --again",
        ),
        (MARK, ("a=b",), f"python -m pipeline store mark {RECIPE} --set a=b", f"afov mark-store {RECIPE} --set a=b"),
        (
            HEAL,
            (),
            f"drop it with: make verify RECIPE={RECIPE} ARGS=--heal, and run the same command again",
            f"drop it with: afov verify {RECIPE} --heal, and run the same command again",
        ),
        (
            'make query RECIPE=... WORDS="fire hydrant"',
            (),
            f"make query RECIPE={RECIPE} WORDS='fire hydrant'",
            f"afov query {RECIPE} 'fire hydrant'",
        ),
        ("RECIPE=mine", (), "RECIPE=mine", "RECIPE=mine"),
    ],
)
def test_the_recipe_stands_where_the_message_leaves_its_place(
    text: str, overrides: tuple[str, ...], by_make: str, by_afov: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for style, told in (("make", by_make), ("afov", by_afov)):
        monkeypatch.setenv(STYLE, style)
        assert filled(text, RECIPE, overrides) == told


def test_what_a_shell_would_take_apart_is_quoted() -> None:
    exclude = "data.exclude=['x y']"
    told = filled("make pack RECIPE=...", "a b.toml", [exclude])
    assert shlex.split(told)[2:] == ["RECIPE=a b.toml", f"ARGS={shlex.join(['--set', exclude])}"]
