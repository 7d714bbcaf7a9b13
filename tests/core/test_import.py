"""Importing wattfare_mw is cheap and loads nothing that the app did not ask for."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import wattfare_mw
from wattfare_mw import framework

ROOT = Path(wattfare_mw.__file__).parent
#: Packages that an app does not need just to import ours.
HEAVY = {
    "agents", "aiohttp", "asgiref", "asyncio", "fastapi", "flask", "httpx", "httpx2",
    "langchain_core", "langchain_openai", "litestar", "msgspec", "openai", "pydantic",
    "pydantic_ai", "rich", "sqlalchemy", "ssl", "starlette", "uvicorn", "werkzeug",
}  # fmt: skip


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after this code."""
    code = f"import sys, json\nbefore = set(sys.modules)\n{code}\n"
    code += "print(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT.parent)},
    )
    return set(json.loads(done.stdout))


def test_package_alone_loads_nothing() -> None:
    loaded = loaded_by("import wattfare_mw; dir(wattfare_mw)")
    assert {name.partition(".")[0] for name in loaded}.isdisjoint(HEAVY)
    assert {name for name in loaded if name.startswith("wattfare_mw")} == {
        "wattfare_mw",
        "wattfare_mw.lazy",
    }


@pytest.mark.parametrize("name", ["WattfareError", "ConnectionStatus", "Request", "Chunk"])
def test_plain_value_loads_no_http_client(name: str) -> None:
    loaded = loaded_by(f"from wattfare_mw import {name}")
    roots = {module.partition(".")[0] for module in loaded}
    assert roots.isdisjoint(HEAVY - {"msgspec", "asyncio", "ssl"})


@pytest.mark.parametrize(
    "name", ["Wattfare", "AsyncWattfare", "WattfareMiddleware", "to_wattfare_error"]
)
def test_client_loads_no_framework_and_no_service(name: str) -> None:
    loaded = loaded_by(f"import wattfare_mw; wattfare_mw.{name}")
    roots = {module.partition(".")[0] for module in loaded}
    unwanted = {"aiohttp", "flask", "starlette", "litestar", "fastapi", "sqlalchemy", "uvicorn"}
    assert roots.isdisjoint(unwanted | {"openai", "pydantic", "httpx", "httpx2", "rich"})
    parts = {module.split(".")[1] for module in loaded if module.startswith("wattfare_mw.")}
    assert parts.isdisjoint({"service", "cli", "testing"})


def test_creating_a_client_loads_no_http_client_and_no_ai_library() -> None:
    loaded = loaded_by("import wattfare_mw; wattfare_mw.Wattfare('sk_test_1').user('ann')")
    assert loaded.isdisjoint({"httpx", "aiohttp", "httpx2"})
    assert loaded.isdisjoint({"agents", "langchain_core", "openai", "pydantic", "pydantic_ai"})


def test_integration_loads_only_its_own_library() -> None:
    loaded = loaded_by("import wattfare_mw; wattfare_mw.Wattfare('sk_test_1').user('ann').openai()")
    assert "openai" in loaded
    assert loaded.isdisjoint({"agents", "langchain_core", "langchain_openai", "pydantic_ai"})


@pytest.mark.parametrize(
    ("used", "unused"),
    [("WattfareASGIMiddleware", "wsgi"), ("WattfareWSGIMiddleware", "asgi"), ("Options", "asgi")],
)
def test_adapter_loads_only_its_driver(used: str, unused: str) -> None:
    loaded = loaded_by(f"from wattfare_mw.framework import {used}, adapt_options")
    assert f"wattfare_mw.middleware.{unused}" not in loaded


@pytest.mark.parametrize("module", [wattfare_mw, framework])
def test_every_public_name_exists(module: Any) -> None:
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(module.__all__) <= set(dir(module))
    assert homes_of(module).keys() == set(module.__all__)
    with pytest.raises(AttributeError, match=rf"'{module.__name__}' has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


@pytest.mark.parametrize("module", [wattfare_mw, framework])
def test_type_checker_sees_the_same_names(module: Any) -> None:
    # It reads the imports under TYPE_CHECKING, not the table that is used at run time.
    checked: dict[str, str] = {}
    for block in ast.parse(Path(module.__file__).read_text("utf-8")).body:
        for node in block.body if isinstance(block, ast.If) else ():
            assert isinstance(node, ast.ImportFrom)
            checked |= {alias.name: node.module or "" for alias in node.names}
    assert checked == homes_of(module)
    assert (ROOT / "py.typed").exists()


def test_docs_describe_each_public_name() -> None:
    for name in framework.__all__:
        assert f"`{name}`" in (framework.__doc__ or ""), name


def homes_of(module: Any) -> dict[str, str]:
    """The module that each name comes from."""
    return {name: home for home, names in module._HOMES.items() for name in names}


def test_module_is_public_or_says_that_it_is_private() -> None:
    public = {"framework", "integrations", "testing"}
    modules = {module.name for module in pkgutil.iter_modules(wattfare_mw.__path__)}
    assert public < modules
    for name in modules - public:
        docstring = importlib.import_module(f"wattfare_mw.{name}").__doc__
        assert name.startswith("_") or (docstring or "").startswith("Private: "), name
    for name in public:
        docstring = importlib.import_module(f"wattfare_mw.{name}").__doc__
        assert not (docstring or "").startswith("Private: "), name
