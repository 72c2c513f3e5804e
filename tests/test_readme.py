"""The README and docs/python.md are run as they stand, on a small shop; the pages of `asymrec.reference` are what it makes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyarrow import csv
from small import SETTINGS, environment, settings, tables

import asymrec
from asymrec.config import PRESETS, Recipe
from asymrec.models import MODELS
from asymrec.ranking.examples import ExamplesConfig
from asymrec.ranking.ranker import RankerConfig
from asymrec.ranking.schema import Field, History, Label
from asymrec.reference import PAGES

ROOT = Path(__file__).parents[1]
QUICK = {name: value for name, value in SETTINGS.items() if name not in ("text", "views", "batch")} | {"encoder": "hashed"}


def blocks(path: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / path).read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def shop(tmp_path) -> Path:
    """A folder `shop` as the documents speak of it, with anna among its users."""
    interactions, items = tables()
    named = pc.if_else(pc.equal(interactions["user_id"], 1), "anna", pc.cast(interactions["user_id"], pa.string()))
    own = {column: pc.binary_join_element_wise("P", pc.cast(pc.subtract(table["item_id"], 99), pa.string()), "-")
           for column, table in (("interactions", interactions), ("items", items))}  # fmt: skip
    (tmp_path / "shop").mkdir()
    clicks = {"user": named, "item": own["interactions"], "timestamp": interactions["timestamp"]}
    csv.write_csv(pa.table(clicks), tmp_path / "shop/interactions.csv")
    csv.write_csv(pa.table({"item": own["items"], "title": items["title"]}), tmp_path / "shop/items.csv")
    return tmp_path


def test_the_shell_blocks_of_the_readme(shop):
    script = "\n".join(blocks("README.md", "bash"))
    assert {"fit", "recommend", "evaluate", "codes"} <= set(re.findall(r"^asymrec (\w+)", script, re.M))
    for target in re.findall(r"^make (\w+)", script, re.M):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)
    # the shop is small and so are the settings; all else is what the reader would type
    quick = " ".join(f"'{part}'" for part in settings(text=None, views=[], encoder="hashed"))
    command = f'"{sys.executable}" -m asymrec "$@"'
    shim = f'asymrec() {{ if [ "$1" = fit ]; then {command} {quick}; else {command}; fi; }}'
    script = "\n".join(line for line in script.splitlines() if not line.startswith("make "))
    done = subprocess.run(["bash", "-ec", f"{shim}\n{script}"], cwd=shop, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (shop / "runs/first/report.html").exists()
    assert "user anna" in done.stdout and "4 facets x 2 levels" in done.stdout


@pytest.mark.parametrize("path", ["README.md", "docs/python.md"])
def test_the_python_blocks(path, shop):
    code = "\n".join(blocks(path, "python"))
    assert code.count("AsymRec(") >= 1
    code = re.sub(r"\b(AsymRec|Recipe\.of)\((?:None, )?(.*?)\)(?=\.|\)|$)", _quick, code, flags=re.M)
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=shop, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (shop / "my-model/manifest.json").exists()


def _quick(call: re.Match[str]) -> str:
    """The same call with the settings of a quick fit, where the document does not give a setting itself."""
    given = re.findall(r"(\w+)=", call[2])
    more = ", ".join(f"{name}={value!r}" for name, value in QUICK.items() if name not in given)
    return f"{call[1]}({'None, ' if call[1] == 'Recipe.of' else ''}{call[2]}, {more})"


def test_links_of_the_documents_lead_somewhere():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert "://" in link or (path.parent / link).exists(), f"{path.name}: {link}"


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_of_reference_are_not_stale(name):
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == PAGES[name](), "run: make docs"


def test_every_setting_is_explained():
    page = PAGES["configuration.md"]()
    for section in (*(field.annotation for field in Recipe.model_fields.values()), RankerConfig, ExamplesConfig, Field, History, Label):
        for name, field in section.model_fields.items():
            assert field.description, name
            assert f"| `{name}` |" in page


def test_every_option_is_explained():
    for line in re.findall(r"^\* `(.*)$", PAGES["commands.md"](), re.M):
        assert re.search(r"`: \w", line), line


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_valid(name):
    assert Recipe.read(name) != Recipe()


def test_the_paper_preset_is_the_papers_objective():
    recipe = Recipe.read("paper", epochs=3)
    assert (recipe.training.objective, recipe.network.repeat, recipe.training.epochs) == ("heads", False, 3)
    assert (recipe.quantizer.facets, recipe.quantizer.levels, recipe.quantizer.codewords) == (16, 3, 256)


def test_every_model_is_named_by_its_class():
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    for name, model in MODELS.items():
        assert f"`{name}`" in page and re.search(rf"`{model.__name__}\b", page) and getattr(asymrec, model.__name__) is model
