"""Two ways to have shards built: in this process, or by Ray actors. The same worker, the same bytes."""

from __future__ import annotations

from manifests.recipe import Recipe
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.ray_pool import RayPool


def make_pool(recipe: Recipe) -> InlinePool | RayPool:
    """Return the pool that the recipe's `[run]` section asks for; use it in a `with` block."""
    return RayPool(recipe) if recipe.run.pool == "ray" else InlinePool(recipe)
