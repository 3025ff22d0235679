"""
What the docs say of the code: files and functions that they name are there.
"""

import ast
import re
from pathlib import Path

import pytest

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
