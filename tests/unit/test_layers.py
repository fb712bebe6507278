"""The direction of imports: a module imports lower ranks, and peers only inside its own package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pelotontx"

RANKS = {
    "errors": 0,
    "wire": 0,
    "net": 1,
    "flow": 1,
    "broker": 2,
    "web": 2,
    "gateway": 3,
    "backend": 3,
    "client": 3,
    "django": 3,
    "ops": 3,
    "config": 4,
    "demo": 4,
    "services": 5,
    "tap": 6,
    "cli": 6,
    "httpd": 6,
    "__main__": 7,
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    """The top-level module or package: pelotontx.net.http is in the room net."""
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            base = node.module or ""
            names = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base
                for alias in node.names
            ]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "pelotontx")


EDGES = sorted(
    {(module, target) for module, path in MODULES.items() for target in imports(path)}
    - {(module, module) for module in MODULES}
)


def test_every_room_has_a_rank() -> None:
    assert {room(module) for module in MODULES} - {""} <= RANKS.keys()


@pytest.mark.parametrize(("module", "target"), EDGES)
def test_imports_point_down(module: str, target: str) -> None:
    here, there = room(module), room(target)
    if there in ("", "errors") or here == there:
        return
    assert RANKS[there] < RANKS[here], f"{module} (rank {RANKS[here]}) imports {target}"


def test_imports_inside_a_room_have_no_cycle() -> None:
    inside: dict[str, set[str]] = {}
    for module, target in EDGES:
        # A package that offers the names of its modules is no cycle.
        if room(module) == room(target) and MODULES[module].name != "__init__.py":
            inside.setdefault(module, set()).add(target)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for target in inside.get(module, ()):
                visit(target, (*path, module))
            done.add(module)

    for module in inside:
        visit(module, ())


FORBIDDEN_IN_WIRE = {"asyncio", "logging", "os", "random", "socket", "time", "twisted"}


@pytest.mark.parametrize("module", sorted(name for name in MODULES if room(name) == "wire"))
def test_wire_has_no_io_clock_or_logging(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            assert name.split(".")[0] not in FORBIDDEN_IN_WIRE


# The outermost rooms. Inside a function: the demo, as a user's own code does; threads for bodies,
# which are iterated where no reactor is at hand, as Twisted's `deferToThread` does.
GLOBAL_REACTOR = {
    *("pelotontx.tap", "pelotontx.cli", "pelotontx.httpd", "pelotontx.demo.callee"),
    "pelotontx.net.threads",
}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_the_outermost_modules_import_the_global_reactor(module: str) -> None:
    if any(module == name or module.startswith(f"{name}.") for name in GLOBAL_REACTOR):
        return
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            assert "twisted.internet.reactor" not in {base + alias.name for alias in node.names}
