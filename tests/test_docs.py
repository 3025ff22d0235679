"""
What the docs say of the code: files and functions that they name are there, and settings are as
they say.
"""

import ast
import re
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from dalston.gateway.settings import GatewaySettings
from dalston.orchestrator.worker.settings import WorkerSettings

ROOT = Path(__file__).parents[1]
FILE = re.compile(
    r"`((?:gateway|orchestrator|triton|model_repository|client|cli|bench|tests|docs)/[\w/.-]+\.\w+)`"
)
NAMED = re.compile(r"`([A-Z]\w*(?:\.\w+)?|[a-z]\w*_\w+|admit)`")
DOCS = sorted(ROOT.glob("docs/*.md")) + [ROOT / "README.md"]


def defined(path: Path) -> set[str]:
    """Classes, functions and methods of a file, as Class.method."""
    found = set[str]()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
            found |= {
                f"{node.name}.{part.name}"
                for part in node.body
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
            }
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
    return found


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_files_that_a_page_names_are_there(doc: Path) -> None:
    if doc.name == "log.md":
        return  # it tells of files that are gone
    missing = {name for name in FILE.findall(doc.read_text("utf-8")) if not (ROOT / name).exists()}
    assert missing == set()


@pytest.mark.parametrize("page", ["a-chunk-of-audio.md", "contributing.md"])
def test_functions_on_the_way_of_a_chunk_are_where_the_page_says(page: str) -> None:
    text = (ROOT / "docs" / page).read_text("utf-8")
    text = text.split("## Set-up")[0]
    files = {Path(name) for name in FILE.findall(text) if name.endswith(".py")}
    known = set[str]().union(*(defined(ROOT / file) for file in files)) | {"Snapshot"}
    named = {name for name in NAMED.findall(text)}
    assert named - known == set()
    assert len(named) >= 5


def test_the_tree_of_the_readme_has_every_folder_of_the_first_two_levels() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    tree = text.split("## The tree")[1].split("\n## ")[0]
    for top in ("gateway", "orchestrator"):
        for folder in (ROOT / top).iterdir():
            if folder.is_dir() and folder.name != "__pycache__":
                assert re.search(rf"^  {folder.name}/ ", tree, re.MULTILINE), f"{top}/{folder.name}"


def test_the_table_of_settings_says_what_the_code_does() -> None:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    table = text.split("\n## Settings\n")[1].split("\n- **")[0]
    kinds: dict[str, list[type[BaseSettings]]] = {
        "worker": [WorkerSettings],
        "gateway": [GatewaySettings],
        "both": [WorkerSettings, GatewaySettings],
    }
    rows = re.findall(r"^\| (`.*?) \| (\w+) \| (.*?) \|", table, re.MULTILINE)
    assert len(rows) > 30
    for names, of, defaults in rows:
        said = [value.strip("`") for value in defaults.split(", ")]
        for name, value in zip(names.split(", "), said, strict=True):
            for kind in kinds.get(of, ()):
                fields = {field.alias: field for field in kind.model_fields.values()}
                default = fields[name.strip("`")].default
                if isinstance(default, bool):
                    default = int(default)
                if isinstance(default, float):
                    default = f"{default:g}"
                if isinstance(default, list | tuple):
                    default = ",".join(default)
                unset = default in (None, "") or default == {} or default is PydanticUndefined
                # WORKER_ENDPOINT: what it is without one.
                assert value == ("–" if unset else str(default)) or value.startswith("ws://"), name
