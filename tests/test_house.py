"""Guards of the house itself: what ships, who may import whom, and what a start may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import skumatch

ROOT = Path(__file__).parents[1]
ROOMS = ("skumatch", "cli", "finetune", "eval", "export")
MAY_IMPORT = {
    "skumatch": set[str](),
    "finetune": {"eval"},
    "eval": set[str](),
    "export": {"eval"},
    "cli": {"finetune", "eval", "export", "cli"},
}
HOMES = {  # the modules that may import a vendor's library: its runtime, and what writes files for it
    "onnxruntime": {"skumatch/runtime/providers.py", "export/precision.py", "export/int8.py"},
    "openvino": {"skumatch/runtime/openvino.py", "export/openvino.py"},
    "nncf": {"export/openvino.py"},
    "faiss": {"skumatch/index/exact.py"},
    "pymilvus": {"skumatch/milvus/client.py", "skumatch/milvus/trouble.py"},
    "grpc": {"skumatch/milvus/trouble.py"},
    "timm": {"skumatch/towers/timm.py"},
    "open_clip": {"skumatch/towers/open_clip.py"},
    "transformers": {"skumatch/towers/hf.py", "skumatch/towers/sentences.py"},
    "sklearn": {"skumatch/catalogue/tfidf.py", "finetune/pair_scorer.py"},
    "sqlalchemy": {f"skumatch/serve/{name}.py" for name in ("review_tables", "reviews", "tallies")}
    | {f"skumatch/serve/catalogue_{name}.py" for name in ("tables", "changes", "store")},
}
ONE_HOME = ("tensorrt", "milvus_lite", "ray", "sparse_dot_topn", "fsspec", "prometheus_client", "uvloop")
# of the service alone, which nothing else imports at its top
SERVICE = {"fastapi", "starlette", "uvicorn", "httptools", "h11", "uvloop"}
SERVICE |= {"pydantic", "prometheus_client", "sqlalchemy"}
LIGHT = "skumatch.serve.settings"  # the one module of the service that others import
HEAVY = {
    "torch",
    "torchvision",
    "numpy",
    "PIL",
    "cv2",
    "pyarrow",
    "pandas",
    "faiss",
    "timm",
    "open_clip",
    "transformers",
}
HEAVY |= {"onnxruntime", "onnx", "huggingface_hub", "safetensors", "scipy", "sklearn"}
FORBIDDEN = {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}


def modules() -> list[Path]:
    """Return every module of the five rooms, each once (the links lead to rooms that are walked themselves)."""
    found = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            inside = [parent for parent in path.parents if ROOT in parent.parents]
            if not any(parent.is_symlink() for parent in inside):
                found.append(path)
    return found


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.AST, path: Path) -> Iterator[str]:
    """Yield the absolute dotted names that ``tree`` imports; relative ones are resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_at_once(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the statements that run on import: not those inside functions or TYPE_CHECKING."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        typing_only = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        if typing_only or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        pending.extend(ast.iter_child_nodes(node))


def test_the_walk_sees_all_rooms() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in modules()}
    assert {"skumatch/towers/open_clip.py", "cli/__init__.py", "finetune/trainer.py", "export/__init__.py"} <= names
    assert not any(name.startswith("skumatch/cli/") for name in names) and len(names) > 40


def test_listed_packages_are_those_on_disk() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT).parts for path in modules()}
    assert set(settings["packages"]) == {".".join(p if p[0] == "skumatch" else ("skumatch", *p)) for p in folders}
    assert settings["package-dir"] == {n if n == "skumatch" else f"skumatch.{n}": n for n in ROOMS}
    for folder in folders:
        assert ROOT.joinpath(*folder, "__init__.py").is_file(), folder


def test_data_files_beside_the_code_are_shipped() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    homes = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    shipped: set[Path] = set()
    for package, patterns in listed.items():
        outer = ".".join(package.split(".")[:2])
        home = homes.get(outer, package.replace(".", "/"))
        shipped.update(path for pattern in patterns for path in (ROOT / home).glob(pattern))
    there = {
        path
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and path.resolve() == path.absolute()
    }
    assert there <= shipped, there - shipped


def test_the_links_lead_to_the_rooms() -> None:
    for room in ROOMS[1:]:
        link = ROOT / "skumatch" / room
        assert link.is_symlink() and str(link.readlink()) == f"../{room}"
        assert link.resolve() == ROOT / room


def test_the_links_are_committed_as_links() -> None:
    command = ["git", "-C", str(ROOT), "ls-files", "--stage", "skumatch/cli", *(f"skumatch/{r}" for r in ROOMS[2:])]
    try:
        listed = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["120000"] * 4


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    allowed = MAY_IMPORT[room] | {room}
    for path in modules():
        if path.relative_to(ROOT).parts[0] != room:
            continue
        for name in imports(parsed(path), path):
            top, _, rest = name.partition(".")
            assert top not in ROOMS[1:], f"{path}: import skumatch.{top} instead"
            other = rest.partition(".")[0]
            if top == "skumatch" and other in ROOMS[1:]:
                assert other in allowed, f"{path} imports {name}"


def test_no_room_is_imported_as_a_name_from_skumatch() -> None:
    for path in modules():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and node.module == "skumatch":
                assert not {alias.name for alias in node.names} & set(ROOMS), path


def test_each_vendors_library_has_its_home() -> None:
    found: dict[str, set[str]] = {}
    for path in modules():
        for name in imports(parsed(path), path):
            found.setdefault(name.partition(".")[0], set()).add(path.relative_to(ROOT).as_posix())
    for library, homes in HOMES.items():
        assert found[library] == homes, library
    for library in ONE_HOME:
        assert len(found.get(library, set())) <= 1, f"{library}: {found[library]}"


def test_the_services_libraries_stay_in_the_service() -> None:
    for path in modules():
        of_service = "serve" in path.relative_to(ROOT).parts
        for name in imports(parsed(path), path):
            assert of_service or name.partition(".")[0] not in SERVICE, f"{path} imports {name}"
        for node in imported_at_once(parsed(path)) if not of_service else ():
            for name in imports(node, path):
                service = name.startswith("skumatch.serve") and not name.startswith(LIGHT)
                assert not service, f"{path} imports {name} at its top"


def test_heavy_imports_are_inside_functions() -> None:
    vendors = (set(HOMES) | set(ONE_HOME)) - SERVICE
    for path in modules():
        light = path.relative_to(ROOT).parts[0] == "cli" or path == ROOT / "skumatch" / "__init__.py"
        for node in imported_at_once(parsed(path)):
            for name in imports(node, path):
                top = name.partition(".")[0]
                assert top not in vendors, f"{path} imports {name} at its top"
                assert not light or top not in HEAVY, f"{path} imports {name} at its top"


def test_nothing_is_pickled() -> None:
    for path in modules():
        tree = parsed(path)
        used = {name.partition(".")[0] for name in imports(tree, path)}
        assert not used & FORBIDDEN, f"{path} imports {used & FORBIDDEN}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                only = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert only.get("weights_only") == "True", f"{path}:{node.lineno}"
            assert not (isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.save"), f"{path}:{node.lineno}"
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", f"{path}:{node.value.lineno}"


def test_source_is_ascii() -> None:
    for path in (*modules(), *sorted((ROOT / "bench").rglob("*.py"))):  # tests hold data in other scripts
        assert path.read_bytes().isascii(), path


def test_every_module_says_what_it_is_for_and_asserts_nothing() -> None:
    for path in modules():
        tree = parsed(path)
        assert ast.get_docstring(tree), f"{path} has no docstring"
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), f"{path} has an assert"


def start(code: str) -> set[str]:
    """Run ``code`` in a fresh Python; return the heavy modules that it loaded."""
    code += "\nimport sys; print('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED")[2].split()) & HEAVY


def test_importing_skumatch_is_light() -> None:
    assert start("import skumatch; skumatch.__all__; dir(skumatch)") == set()


def test_importing_and_helping_from_the_command_line_is_light() -> None:
    assert start("import skumatch.cli.app") == set()
    ask = "import sys; sys.argv = ['skumatch', '--help']\nfrom skumatch.cli.app import main\n"
    assert start(ask + "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code") == set()


def test_every_public_name_resolves() -> None:
    assert len(set(skumatch.__all__)) == len(skumatch.__all__)
    for name in skumatch.__all__:
        assert getattr(skumatch, name) is not None
    unknown = "no_such_name"
    with pytest.raises(AttributeError, match=unknown):
        getattr(skumatch, unknown)
    assert set(skumatch.__all__) <= set(dir(skumatch))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert skumatch.__version__ == version
