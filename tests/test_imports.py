"""The table of rooms: imports only go down it, and the light install never needs a heavy package."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import annotary
from annotary import registry
from tests.conftest import child_environment

PACKAGE = Path(annotary.__file__).parent

MAY_IMPORT = {
    "records": set(),
    "errors": set(),
    "weights": set(),
    "registry": {"errors"},
    "cards": {"errors"},
    "hub": {"errors"},
    "exif": set(),
    "images": {"cards", "exif", "records", "errors"},
    "preprocess": {"cards", "records", "errors"},
    "sources": {"records", "errors", "registry"},
    "sinks": {"records", "errors", "registry"},
    "runtime": {"errors"},
    "models": {"cards", "hub", "preprocess", "runtime", "errors", "registry", "weights"},
    "tasks": {"models", "preprocess", "records", "cards", "errors", "runtime"},
    "pipeline": {
        *("tasks", "sources", "sinks", "images", "preprocess", "cards", "records", "errors"),
        "runtime",
    },
    "catalog": {
        *("tasks", "sources", "sinks", "images", "preprocess", "cards", "records", "errors"),
        *("runtime", "models", "pipeline"),
    },
    "curation": {
        *("tasks", "sources", "sinks", "images", "preprocess", "cards", "records", "errors"),
        *("runtime", "models", "pipeline", "catalog"),
    },
    "datasets": {
        *("tasks", "sources", "sinks", "images", "cards", "records", "errors", "registry"),
        *("runtime", "models", "pipeline"),
    },
    "training": {
        *("tasks", "sources", "sinks", "images", "preprocess", "cards", "records", "errors"),
        *("runtime", "models", "catalog", "evaluation", "weights"),
    },
    "evaluation": {"tasks", "sources", "cards", "records", "errors"},
    "export": {
        *("models", "sources", "images", "preprocess", "cards", "records", "errors"),
        "runtime",
    },
    "drawing": {"tasks", "sinks", "cards", "records", "errors"},
    "inputs": {"sources", "images", "cards", "records", "errors"},
    "api": {"*"},
    "autodistill": {"*"},
    "cli": {"*"},
    "__init__": {"api", "errors", "records"},
    "__main__": {"cli"},
}
"""Room to the rooms that it may import from, as in the table of docs/design.md."""

NEEDS_EXTRAS = {
    "annotary.models._blip_decoder",
    "annotary.models._blip_judging",
    "annotary.models._blip_tower",
    "annotary.models._efficientnet_backbone",
    "annotary.models._efficientnet_lite",
    "annotary.models._joytag_vit",
    "annotary.models._owl_network",
    "annotary.models._transformers_loading",
    "annotary.models._transformers_towers",
    "annotary.models._vision_tagger_network",
    "annotary.autodistill",
    "annotary.training._averaging",
    "annotary.training._integer_tower",
    "annotary.training._feeding",
    "annotary.training._learning",
    "annotary.training._run_parts",
    "annotary.training._trial",
    "annotary.training._validation",
    "annotary.training.augmentation",
    "annotary.training.backbones",
    "annotary.training.captioner",
    "annotary.training.checkpoints",
    "annotary.training.contrastive",
    "annotary.training.distributed",
    "annotary.training.efficientnet",
    "annotary.training.heads",
    "annotary.training.loading",
    "annotary.training.losses",
    "annotary.training.network",
    "annotary.training.optimisers",
    "annotary.training.probe",
    "annotary.training.probe_run",
    "annotary.training.tagger",
    "annotary.training.trainer",
}
"""Modules, and packages with all below them, that only the extras bring to life."""

HEAVY = (
    "torch",
    "transformers",
    "onnx",
    "openvino",
    "nncf",
    "sklearn",
    "pyarrow",
    "lancedb",
    "ray",
    "fastapi",
    "scipy",
    "supervision",
    "autodistill",
    "cv2",
    "pandas",
)


def modules() -> list[str]:
    paths = sorted(PACKAGE.rglob("*.py"))
    names = [
        ".".join(("annotary", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in paths
    ]
    return [name.removesuffix(".__init__") for name in names]


def light_modules() -> list[str]:
    return [
        name
        for name in modules()
        if name != "annotary.__main__"
        and not any(name == heavy or name.startswith(heavy + ".") for heavy in NEEDS_EXTRAS)
    ]


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports from, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import"
            if node.module == "annotary":
                found |= {alias.name for alias in node.names if alias.name != "__version__"}
            elif node.module.startswith("annotary."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("annotary.")
            }
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_go_down_the_table(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in MAY_IMPORT, f"{room} is not in the table"
    allowed = MAY_IMPORT[room]
    if "*" not in allowed:
        assert imported_rooms(path) <= {*allowed, room}


def test_the_table_is_acyclic():
    def below(room: str, seen: tuple[str, ...]) -> None:
        assert room not in seen, " -> ".join((*seen, room))
        for lower in MAY_IMPORT[room] - {"*"}:
            below(lower, (*seen, room))

    for room in MAY_IMPORT:
        below(room, ())


def test_no_file_is_named_for_nothing():
    vague = {"utils", "util", "helpers", "common", "base", "manager", "misc"}
    assert not [path for path in PACKAGE.rglob("*.py") if path.stem.strip("_") in vague]


def test_files_and_functions_stay_small():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") < 600, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno <= 100, f"{path}: {node.name}"


IMPORT_ALL = """
import importlib, json, sys
names, heavy = json.loads(sys.argv[1]), json.loads(sys.argv[2])

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in heavy:
            raise ModuleNotFoundError(f"the light install has no {name}", name=name)

sys.meta_path.insert(0, Refuse())
for name in names:
    importlib.import_module(name)
assert not [name for name in sys.modules if name.split(".")[0] in heavy]
print(len(names), sys.modules["annotary"].__file__)
"""


def import_all(python: str, environment: dict[str, str]) -> str:
    command = [
        python,
        "-W",
        "error",
        "-c",
        IMPORT_ALL,
        json.dumps(light_modules()),
        json.dumps(HEAVY),
    ]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_light_modules_import_without_heavy_packages():
    assert import_all(sys.executable, child_environment()).startswith(f"{len(light_modules())} ")


def core_python() -> str:
    """The Python of an environment that has the core install alone; `scripts/test` makes it."""
    python = os.environ.get("ANNOTARY_CORE_PYTHON")
    if not python:
        pytest.skip("scripts/test makes the environment with the core install alone")
    return python


def test_the_core_install_has_no_torch_and_imports_everything():
    python = core_python()
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    )
    installed = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert "annotary" in installed
    assert not installed & set(HEAVY)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    assert "site-packages" in import_all(python, environment)


def test_help_imports_no_heavy_package():
    """Of annotary, and of every command."""
    commands = [[], *([name] for name in registry.names("cli"))]
    code = (
        "import sys\nfrom annotary.cli import main\n"
        f"for command in {commands!r}:\n"
        "    try:\n        main([*command, '--help'])\n    except SystemExit:\n        pass\n"
        f"print([m for m in {(*HEAVY, 'onnxruntime', 'httpx', 'rich')!r} if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=True,
    )
    assert result.stdout.rstrip().endswith("[]")


def test_public_names_exist():
    for name in annotary.__all__:
        assert getattr(annotary, name) is not None
    assert annotary.__all__ == sorted(annotary.__all__, key=str.casefold)
