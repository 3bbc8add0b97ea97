"""What type checking sees of tables: a column that is misspelt, read or written, does not pass `make lint`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SLIPS = {
    "group": ("pairs.view[candidate]", "pairs.veiw[candidate]", '"Project" has no attribute "veiw"'),
    "pairs": (
        "point=project.point[pair]",
        "piont=project.point[pair]",
        'Unexpected keyword argument "piont" for "Pairs"',
    ),
    "target": ("len(row.seen)", "len(row.sene)", '"Target" has no attribute "sene"'),
    "vote": ("one.rows[Coordinates].xyz_m", "one.rows[Coordinates].intensity", '"Coordinates" has no attribute "inten'),
}
"""By stage: what it says, what somebody might type, and what that is called; the last is no part of what is read."""


def test_a_misspelt_column_in_a_stage_is_found_without_running_it(tmp_path: Path) -> None:
    shadows, paths = [], []
    for stage, (right, wrong, _) in SLIPS.items():
        path = f"pipeline/stages/{stage}.py"
        text = (ROOT / path).read_text()
        assert right in text
        (tmp_path / f"{stage}.py").write_text(text.replace(right, wrong))
        shadows += ["--shadow-file", path, str(tmp_path / f"{stage}.py")]
        paths.append(path)
    # a cache of its own, since one of other options is thrown away
    own = ["--follow-imports=silent", f"--cache-dir={ROOT / '.mypy_cache' / 'slips'}"]
    command = [sys.executable, "-m", "mypy", *own, *shadows, *paths]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    for stage, (_, _, fault) in SLIPS.items():
        assert re.search(rf"^pipeline/stages/{stage}\.py:\d+: error: {re.escape(fault)}", told, re.MULTILINE), told
