"""The package as a package: what importing it costs, what it ships, needs and promises in its source."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from functools import partial
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import hooked_vlm
from hooked_vlm.errors import HookedVLMError

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hooked_vlm"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
OURSELVES = canonicalize_name(PROJECT["name"])


def parsed(source: Path) -> ast.Module:
    return ast.parse(source.read_text(encoding="utf-8"), str(source))


def named(source: Path) -> str:
    """A source file as pytest shows it."""
    return str(source.relative_to(PACKAGE))


def imports(tree: ast.AST) -> set[str]:
    """The modules that a tree imports, dotted; of ``from a import b`` both a and a.b."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


# --- what importing it costs ----------------------------------------------------------------------------


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh Python has loaded after some code, less those it starts with."""
    count = (
        "import sys; before = set(sys.modules)\n{}\nimport json; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", count.format(code)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return {name.partition(".")[0] for name in json.loads(ran.stdout.splitlines()[-1])}


def test_importing_the_package_loads_the_standard_library_alone():
    loaded = loaded_by("import hooked_vlm, hooked_vlm.errors")
    assert "hooked_vlm" in loaded
    assert loaded - sys.stdlib_module_names == {"hooked_vlm"}


HEAVY = {"torch", "transformers", "transformer_lens", "numpy", "PIL", "pandas", "datasets", "einops", "jaxtyping"}


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], *([name, "--help"] for name in ("hooks", "demo", "convert", "notice", "compare"))],
    ids=" ".join,
)
def test_asking_the_command_line_for_help_loads_nothing_heavy(words):
    code = f"""
sys.argv = ["hooked-vlm", *{words}]
from hooked_vlm.cli import main
try: main()
except SystemExit as stop: assert not stop.code
"""
    loaded = loaded_by(code)
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_a_public_name_loads_what_it_needs():
    assert {"torch", "transformer_lens"} <= loaded_by("from hooked_vlm import HookedVLM")


# --- the public face ------------------------------------------------------------------------------------


def test_the_version_is_written_once():
    assert importlib.metadata.version(PROJECT["name"]) == hooked_vlm.__version__
    assert "version" not in PROJECT and "version" in PROJECT["dynamic"]


def test_the_citation_names_the_version():
    assert f"\nversion: {hooked_vlm.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("name", hooked_vlm.__all__)
def test_a_public_name_imports(name):
    assert getattr(hooked_vlm, name) is not None
    assert name in dir(hooked_vlm)


def test_type_checkers_see_the_public_names():
    tree = parsed(PACKAGE / "__init__.py")
    (block,) = [
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    ]
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(hooked_vlm.__all__) - {"__version__"}


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(AttributeError, match=r"HookedClip.*HookedBLIP"):
        _ = hooked_vlm.HookedClip


# --- what it ships --------------------------------------------------------------------------------------


def test_the_wheel_ships_code_types_checkpoints_and_pages(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "hooked_vlm", ignore=shutil.ignore_patterns("__pycache__"))
    checkpoint = tmp_path / "hooked_vlm" / "zoo" / "a-checkpoint"
    checkpoint.mkdir(parents=True)
    data = ["config.json", "model.safetensors", "vocab.txt", "README.md", "chat_template.jinja"]
    for name in data:
        (checkpoint / name).write_text("data")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_nothing.py").write_text("")
    shipped = {Path(file.distribution_path).as_posix() for file in WheelBuilder(str(tmp_path)).recurse_included_files()}
    code = {f"hooked_vlm/{named(source)}" for source in SOURCES}
    pages = {f"hooked_vlm/{named(file)}" for end in ("j2", "css", "js", "json") for file in PACKAGE.rglob(f"*.{end}")}
    assert len(pages) > 4 and "hooked_vlm/datasets/words.json" in pages
    assert shipped >= code | pages | {"hooked_vlm/py.typed"} | {f"hooked_vlm/zoo/a-checkpoint/{name}" for name in data}
    assert all(path.startswith("hooked_vlm/") for path in shipped)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment in which the wheel is installed, and its dependencies are those of this one."""
    place = tmp_path_factory.mktemp("installed")
    run = partial(subprocess.run, check=True, capture_output=True, timeout=120)
    run([sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", place], cwd=ROOT)
    run([sys.executable, "-m", "venv", "--without-pip", place / "venv"])
    scripts = place / "venv" / ("Scripts" if os.name == "nt" else "bin")
    (wheel,) = place.glob("*.whl")
    assert wheel.name == f"hooked_vlm-{hooked_vlm.__version__}-py3-none-any.whl"
    run([sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--no-deps", "--no-index", wheel])
    (packages,) = (place / "venv").rglob("site-packages")
    # A path in a .pth file is searched, and the .pth files in it are not read: so the editable install is left out.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return scripts


ANSWERED = """
import json
import hooked_vlm
from hooked_vlm import HookedVLM, notice
from hooked_vlm.datasets import shapes

row = shapes.load("colour", 1, seed=5)[0]
models = [HookedVLM.from_pretrained(f"zoo:{name}-shapes") for name in ("blip", "llava")]
said = [model.generate(model.to_inputs(row["image"], row["prompt"]))[0] for model in models]
few = dict(corrupt=("image",), kinds=("cross_attn-heads",), examples=4)
notice.run(notice.NoticeConfig(model="zoo:blip-shapes", tasks=("colour",), **few), "run")
print(json.dumps([hooked_vlm.__file__, row["answer"], *said]))
"""


def test_the_installed_wheel_answers_and_writes_a_report_where_no_clone_is(installed, tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = partial(subprocess.run, cwd=tmp_path, env=env, check=True, capture_output=True, text=True, timeout=300)
    assert "notice" in run([installed / "hooked-vlm", "--help"]).stdout
    place, right, *said = json.loads(run([installed / "python", "-c", ANSWERED]).stdout.splitlines()[-1])
    assert Path(place).is_relative_to(installed.parent)
    assert said == [right, right]
    assert "cross_attn L" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


# --- what it needs --------------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    """The versions in constraints.txt by canonical name."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    versions = {canonicalize_name(match[1]): match[2] for match in found}
    assert len(versions) == len(lines), "a name is pinned twice"
    return versions


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_what_pyproject_asks_for_is_pinned_to_a_version_that_fits(requirement):
    if canonicalize_name(requirement.name) == OURSELVES:
        assert requirement.extras <= set(EXTRAS)
        return
    assert requirement.specifier, f"{requirement.name} has no lower bound"
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_everything_that_gets_installed_is_pinned():
    wanted, seen = [Requirement(f"{OURSELVES}[dev]")], set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            contexts = [{"extra": extra} for extra in (requirement.extras or {""})]
            exactly = any(clause.operator == "==" for clause in needed.specifier)  # pinned by its own parent
            if not exactly and (needed.marker is None or any(map(needed.marker.evaluate, contexts))):
                wanted.append(needed)
    names = {name for name, _ in seen} - {OURSELVES}
    assert len(names) > 50
    assert names <= set(pins()), names - set(pins())


DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless", "transformer_lens": "transformer-lens"}


def test_what_the_package_imports_is_declared():
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    extra = {
        canonicalize_name(Requirement(line).name)
        for name in ("figures", "inpaint", "quantized")
        for line in EXTRAS[name]
    }
    for source in SOURCES:
        top = {name.partition(".")[0] for name in imports(parsed(source))}
        needed = {
            canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in top - sys.stdlib_module_names - {"hooked_vlm"}
        }
        assert needed <= declared | extra, f"{named(source)} imports {needed - declared - extra}"


# --- what its source promises ---------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNIX_ALONE = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
UNSAFE_CALLS = {"torch.load", "eval", "exec", "pd.read_pickle", "pandas.read_pickle"}
UNPICKLES = "unpickling.py"  # a program of its own, whose process holds nothing
UNSAFE_OPTIONS = {("trust_remote_code", True), ("allow_pickle", True), ("use_safetensors", False)}


def unsafe(tree: ast.AST) -> list[str]:
    """What in a tree would unpickle, or run code that came with data."""
    found = sorted(name for name in imports(tree) if name.partition(".")[0] in UNSAFE_MODULES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [name] if name in UNSAFE_CALLS else []
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                found += [f"{name}({keyword.arg}={value})"] if (keyword.arg, value) in UNSAFE_OPTIONS else []
    return found


@pytest.mark.parametrize("source", SOURCES, ids=named)
def test_nothing_is_unpickled_and_no_code_of_a_checkpoint_is_run(source):
    allowed = ["torch.load"] if named(source) == UNPICKLES else []
    assert unsafe(parsed(source)) == allowed


def test_no_module_is_imported_that_one_operating_system_alone_has():
    for source in SOURCES:
        top = {name.partition(".")[0] for name in imports(parsed(source))}
        assert not top & UNIX_ALONE, f"{named(source)} imports {top & UNIX_ALONE}"


def test_the_one_program_that_unpickles_reads_weights_alone_and_nobody_imports_it():
    (source,) = (source for source in SOURCES if named(source) == UNPICKLES)
    (call,) = (
        node
        for node in ast.walk(parsed(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    )
    assert {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}["weights_only"] == "True"
    for other in SOURCES:
        assert not any("unpickling" in name for name in imports(parsed(other))), named(other)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import torch; torch.load('weights.bin')",
        "numpy.load('array.npy', allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, use_safetensors=False)",
        "eval('1')",
    ],
)
def test_the_search_for_unsafe_code_finds_it(line):
    assert unsafe(ast.parse(line))


def error_classes() -> list[tuple[str, ast.ClassDef]]:
    """The classes in the package whose name or whose base says that they are an error; a BaseException is none."""
    classes = [
        (named(source), node)
        for source in SOURCES
        for node in ast.walk(parsed(source))
        if isinstance(node, ast.ClassDef)
    ]
    return [
        (where, node)
        for where, node in classes
        if re.search(r"(Error|Exception)$", node.name)
        or any(re.search(r"(Error|(?<!Base)Exception)$", ast.unparse(base)) for base in node.bases)
    ]


@pytest.mark.parametrize(("where", "node"), error_classes(), ids=lambda v: v if isinstance(v, str) else v.name)
def test_every_error_is_of_the_family_and_says_when_it_is_raised(where, node):
    module = "hooked_vlm." + where.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    error = getattr(importlib.import_module(module), node.name)
    assert issubclass(error, HookedVLMError)
    assert ast.get_docstring(node)
    if error is not HookedVLMError:
        builtins = [base for base in error.__mro__ if base.__module__ == "builtins"]
        assert builtins[0] is not Exception, f"{node.name} fits no built-in exception"


def test_a_model_that_is_asked_for_has_a_type():
    untyped = [
        f"{named(source)}:{each.lineno}"
        for source in SOURCES
        for each in ast.walk(parsed(source))
        if isinstance(each, ast.arg)
        and each.arg == "model"
        and ast.unparse(each.annotation or ast.Name("Any")) == "Any"
    ]
    assert not untyped


# Each room and the rooms it may look into; arrows run one way.
ROOMS = {
    "errors": set(),
    "positions": {"errors"},
    "given": {"errors"},
    "unpickling": {"errors"},
    "options": {"errors"},
    "images": {"errors", "given"},
    "resizing": {"errors"},
    "components": {"errors", "options"},
    "hooks": {"errors", "options", "positions"},
    "datasets": {"errors", "given", "images"},
    "viz": {"errors", "images", "resizing"},
    # zoo: where a checkpoint that ships with the package lies
    "models": {"errors", "deprecated", "given", "options", "positions", "images", "resizing", "components", "zoo"},
    "patching": {"errors", "deprecated", "options", "positions", "components", "hooks", "models"},
    "analysis": {"errors", "options", "positions", "images", "hooks", "components", "models", "patching"},
    "deprecated": set(),
    "lens": {"deprecated"},
    "notice": {
        "errors",
        "given",
        "positions",
        "images",
        "datasets",
        "viz",
        "models",
        "patching",
        "analysis",
        "deprecated",
    },
}


@pytest.mark.parametrize("source", SOURCES, ids=named)
def test_arrows_run_one_way(source):
    room = source.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room not in ROOMS:
        assert room in {"__init__", "__main__", "cli", "demo", "zoo"}, f"{room} is a room that nobody has placed"
        return
    seen = {name.split(".")[1] for name in imports(parsed(source)) if name.startswith("hooked_vlm.")}
    assert seen <= ROOMS[room] | {room}, f"{named(source)} looks into {seen - ROOMS[room] - {room}}"


# --- the commands ---------------------------------------------------------------------------------------


def planned(target: str, venv: Path) -> str:
    """What `make` would run for a target, where there is no environment yet."""
    ran = subprocess.run(
        ["make", "-n", target, f"VENV={venv}"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return ran.stdout


@pytest.mark.parametrize(
    ("target", "runs"),
    [
        ("demo", ["hooked-vlm notice zoo:$model", "hooked-vlm compare runs/demo/blip-shapes runs/demo/llava-shapes"]),
        (
            "test",
            ["ruff check", "ruff format --check", "mypy", "-m pytest", "--doctest-modules", "--nbmake", "notebooks"],
        ),
        ("bench", ["tests.benchmarks.bench_forward"]),
        ("notebooks", ["-m pytest", "--nbmake", "notebooks"]),
        ("docs", ["-m mkdocs build --strict"]),
        ("lint", ["ruff check"]),
    ],
)
def test_a_target_makes_its_environment_and_runs(target, runs, tmp_path):
    plan = planned(target, tmp_path / "venv")
    wanted = ["-m venv", "-c constraints.txt torch", "-c constraints.txt -e '.[dev]'", *runs]
    places = [plan.find(command) for command in wanted]
    assert -1 not in places, [command for command, place in zip(wanted, places, strict=True) if place < 0]
    assert places[:3] == sorted(places[:3]) and all(place > places[2] for place in places[3:])


def test_an_environment_that_is_there_is_not_made_again(tmp_path):
    (tmp_path / ".installed").touch()
    assert "-m venv" not in planned("demo", tmp_path)
    os.utime(tmp_path / ".installed", (0, 0))  # older than pyproject.toml
    assert "-m venv" in planned("demo", tmp_path)


def test_ci_runs_make_test_from_any_directory(tmp_path):
    fake = tmp_path / "make"
    fake.write_text('#!/bin/sh\necho "make $* in $PWD"\nexit 3\n')
    fake.chmod(0o755)
    ran = subprocess.run(
        [ROOT / ".ci" / "run"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stdout == f"make test in {ROOT}\n"
    assert ran.returncode == 3


def test_pre_commit_downloads_nothing():
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (\S+)", config) == ["local"]
    assert set(re.findall(r"language: (\S+)", config)) == {"system"}
    assert {"ruff", "ruff-format", "mypy"} == set(re.findall(r"- id: (\S+)", config))
