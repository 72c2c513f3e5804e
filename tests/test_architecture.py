"""docs/architecture.md says who may import whom; here it is held to that."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "asymrec"


def order():
    lines = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("One direction only"))
    return re.findall(r"`(\w+)`", lines[at + 1])


def imported(path):
    """The parts of asymrec that a file imports, at its head or inside functions; imports for types alone are imports too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "asymrec":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asymrec."):
            yield node.module.split(".")[1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path):
    ranks = {name: rank for rank, name in enumerate(order())}
    home = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if home in ("__init__", "__main__"):
        return
    assert home in ranks, f"{home} is not in the list of docs/architecture.md"
    wrong = [name for name in imported(path) if ranks[name] > ranks[home]]
    assert not wrong, f"{home} imports {wrong} from its right"
