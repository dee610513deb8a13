"""What is shipped is what is here: package list, data files, requirements, a light root module."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pathspec
import pytest
from PIL import Image

import rollout_trainer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it along where the standard library lacks it

ROOT = Path(__file__).resolve().parents[2]
NOT_PACKAGES = {"tests", "tools", "demo", "benchmarks", "build", "dist", "out", "runs"}
# ComfyUI's own modules, aiohttp of its server, av, which it brings, and psutil, which host/report.py does without.
HOST_OR_OPTIONAL = {
    "aiohttp", "av", "comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "nodes", "psutil",
    "sentencepiece", "server",
}  # fmt: skip
DATA_FOLDERS = ("web", "workflows", "subgraphs", "locales")


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders_with_code() -> set[str]:
    """Dotted names of the pack's folders that hold Python files."""
    rooms = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    code = [path for room in rooms if room.name not in NOT_PACKAGES for path in room.rglob("*.py")]
    return {"rollout_trainer"} | {
        ".".join(("rollout_trainer", *path.parent.relative_to(ROOT).parts)) for path in code
    }


def test_package_list_equals_the_tree(pyproject):
    # An editable install hides a missing entry, a wheel does not.
    assert set(pyproject["tool"]["setuptools"]["packages"]) == folders_with_code()


def test_every_package_has_an_init():
    assert [name for name in folders_with_code() if not (folder_of(name) / "__init__.py").is_file()] == []


def folder_of(package: str) -> Path:
    """Return the folder of a package given by its dotted name."""
    return ROOT.joinpath(*package.split(".")[1:])


def requirements(lines) -> dict[str, str]:
    """Map package name to the rest of each requirement line."""
    wanted = (line.strip() for line in lines)
    pairs = (re.fullmatch(r"([\w.-]+)\s*(.*)", line) for line in wanted if line and line[0] not in "#-")
    return {pair[1].lower(): pair[2] for pair in pairs}


def test_requirements_are_the_dependencies_without_torch_and_the_front_end(pyproject):
    dependencies = requirements(pyproject["project"]["dependencies"])
    # What ComfyUI's registry reads as a range of front ends; ComfyUI itself says which one it starts with.
    assert dependencies.pop("comfyui-frontend-package")
    # torch in requirements.txt would replace the build that a ComfyUI's owner chose.
    assert dependencies.pop("torch")
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert requirements(text.splitlines()) == dependencies


def test_every_third_party_import_is_a_dependency(pyproject):
    code = [path for package in folders_with_code() for path in folder_of(package).glob("*.py")]
    assert third_party(code) <= requirements(pyproject["project"]["dependencies"]).keys()


def test_everything_that_tests_import_is_pinned():
    # Else a test passes on the machine of its author and nowhere else.
    folders = ("tests", "tools", "demo", "benchmarks")
    code = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    pins = requirements((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    theirs = {path.stem for path in code} | {path.parent.name for path in code}
    assert third_party(code) - theirs <= pins.keys() | {
        "torch",
        "rollout_trainer",
        "tomli",
    }  # pytest brings tomli


def third_party(code: list[Path]) -> set[str]:
    """Names of the packages that modules import, without the standard library's and ComfyUI's."""
    nodes = [node for path in code for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    tops = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - HOST_OR_OPTIONAL
    return {"pillow" if name == "PIL" else name for name in tops}


def test_constraints_pin_every_direct_requirement_within_its_bounds():
    pins = requirements((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    for name in ("requirements.txt", "requirements-dev.txt"):
        for package, bound in requirements((ROOT / name).read_text(encoding="utf-8").splitlines()).items():
            assert pins[package].startswith("=="), package
            assert numbers(pins[package]) >= numbers(bound), package
    assert not pins.keys() & {"torch", "torchvision", "torchaudio"}


def numbers(version: str) -> list[int]:
    """Return the release numbers in a version or bound."""
    return [int(number) for number in re.findall(r"\d+", version)]


def test_version_is_stated_once_in_effect(pyproject):
    text = (ROOT / "__init__.py").read_text(encoding="utf-8")
    assert re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1] == pyproject["project"]["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == pyproject["project"]["version"]


def test_registry_has_what_it_asks_for(pyproject):
    assert pyproject["project"]["urls"]["Repository"].startswith("https://")
    comfy = pyproject["tool"]["comfy"]
    assert {"PublisherId", "DisplayName", "requires-comfyui"} <= comfy.keys()
    kinds = [kind for kind in pyproject["project"]["classifiers"] if kind.startswith("Operating System")]
    assert kinds == ["Operating System :: OS Independent"]
    # Versions as the registry takes them: an operator and three numbers.
    (front_end,) = (
        dependency.removeprefix("comfyui-frontend-package")
        for dependency in pyproject["project"]["dependencies"]
        if dependency.startswith("comfyui-frontend-package")
    )
    for version in (comfy["requires-comfyui"], front_end):
        assert re.fullmatch(r">=\d+\.\d+\.\d+", version)
    for key, size in (("Icon", (400, 400)), ("Banner", (1260, 540))):  # square, up to 400; 21 to 9
        picture = ROOT / "docs" / comfy[key].rpartition("/")[2]
        assert comfy[key].startswith("https://raw.githubusercontent.com/")
        with Image.open(picture) as image:
            assert image.size == size
    # WEB_DIRECTORY in __init__.py names the scripts; naming them here too would load each of them twice.
    assert "web" not in comfy


def test_loading_the_root_imports_nothing_heavy():
    # As ComfyUI does it: by path, under a name that is no valid identifier.
    script = (
        "import importlib.util, sys\n"
        "before = set(sys.modules)\n"
        f"spec = importlib.util.spec_from_file_location('pack-1_x_0', {str(ROOT / '__init__.py')!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules[spec.name] = module\n"
        "spec.loader.exec_module(module)\n"
        "assert module.comfy_entrypoint and not hasattr(module, 'NODE_CLASS_MAPPINGS')\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pack-1_x_0"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names of the files in a wheel built from a copy of the sources."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("building a wheel needs setuptools")
    source = tmp_path_factory.mktemp("source") / "my pack-1.0.x"
    clutter = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")

    def ignore(folder: str, names: list[str]) -> set[str]:
        return clutter(folder, names) | (NOT_PACKAGES & set(names) if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, source, ignore=ignore)
    script = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-c", script, str(out)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(out / done.stdout.split()[-1]) as archive:
        return set(archive.namelist())


def shipped() -> set[str]:
    """Where in a wheel the pack's own files belong."""
    code = [path for name in folders_with_code() for path in folder_of(name).glob("*.py")]
    data = [path for folder in DATA_FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {f"rollout_trainer/{path.relative_to(ROOT).as_posix()}" for path in [*code, *data]}


def test_wheel_holds_the_whole_pack_and_nothing_else(wheel):
    assert {name for name in wheel if ".dist-info/" not in name} == shipped()


def test_wheel_holds_the_licence(wheel):
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in wheel if ".dist-info/licenses/" in name}


# -- the registry's archive ------------------------------------------------------------------------


def tracked() -> list[str]:
    """Paths of the files that git knows, which is what comfy-cli packs."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("the registry's archive is made of the files that git tracks, and this is no clone")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def sizes(names: list[str]) -> Counter[str]:
    """Bytes by folder at the root, and by folder in demo/; files at the root are "."."""
    total: Counter[str] = Counter()
    for name in names:
        parts = name.split("/")
        depth = 2 if parts[0] == "demo" else 1
        total["/".join(parts[:-1][:depth]) or "."] += (ROOT / name).stat().st_size
    return total


def test_the_registrys_archive_holds_the_pack_and_its_demo_and_little_else():
    left_out = pathspec.PathSpec.from_lines("gitignore", (ROOT / ".comfyignore").read_text().splitlines())
    names = tracked()
    kept = [name for name in names if not left_out.match_file(name)]
    in_, out = sizes(kept), sizes([name for name in names if left_out.match_file(name)])
    print(
        *(f"{folder:16} {in_[folder]:>10,} in {out[folder]:>10,} out" for folder in sorted(in_ | out)),
        sep="\n",
    )
    code = [path for name in folders_with_code() for path in folder_of(name).glob("*.py")]
    data = [path for folder in DATA_FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    needed = [path for path in (*code, *data, *(ROOT / "demo" / "data").iterdir()) if path.suffix != ".ts"]
    needed = [path for path in needed if path.relative_to(ROOT).as_posix() in names]
    starting = (ROOT / "host" / "remote.py", ROOT / "host" / "standalone" / "watcher.py")  # processes
    needed = [path for path in needed if path not in (ROOT / "dev.py", *starting)]
    assert {path.relative_to(ROOT).as_posix() for path in needed} <= set(kept)
    rest = {
        "requirements.txt",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "NOTICE",
        "demo/NOTICE",
        "demo/README.md",
    }
    assert rest | {name for name in names if name.startswith("demo/model/")} <= set(kept)
    assert not in_.keys() & {
        "tests",
        "tools",
        "benchmarks",
        "demo/make",
        "demo/unseen",
        ".ci",
        ".github",
    }
    demo = sum(in_[f"demo/{folder}"] for folder in ("model", "data", "grey", "clips"))
    assert in_.total() - demo < 4_000_000  # 3.3 MB in 2026-11, 1.5 of them workflows with their thumbnails


FORBIDDEN_MODULES = {"subprocess", "multiprocessing", "pip", "ensurepip", "pickle", "pty"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "os.execv", "os.execve", "os.spawnv"}


def breaches(path: Path) -> list[str]:
    """What a module does that the registry's scan forbids: start processes, run text as code, unpickle."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        called = [ast.unparse(node.func)] if isinstance(node, ast.Call) else []
        found += [name for name in names if name.partition(".")[0] in FORBIDDEN_MODULES]
        found += [name for name in called if name in FORBIDDEN_CALLS]
    return [f"{path.name}: {name}" for name in found]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The registry's archive as a folder: what `comfy node pack` zips, unpacked."""
    left_out = pathspec.PathSpec.from_lines("gitignore", (ROOT / ".comfyignore").read_text().splitlines())
    packed = tmp_path_factory.mktemp("archive") / "node.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        for name in tracked():
            if not left_out.match_file(name):
                made.write(ROOT / name, name)
    assert packed.stat().st_size < 17_000_000
    folder = packed.parent / "rollout-trainer"
    with zipfile.ZipFile(packed) as made:
        made.extractall(folder)
    return folder


def test_the_registrys_archive_starts_no_process_and_runs_no_text(archive):
    code = list(archive.rglob("*.py"))
    assert len(code) > 100
    assert [breach for path in code for breach in breaches(path)] == []
    # The scan would find it.
    assert "remote.py: subprocess" in breaches(ROOT / "host" / "remote.py")


def test_the_registrys_archive_works_without_what_it_leaves_out(archive, tmp_path):
    # Under another name, so that nothing of the checkout can stand in.
    script = (
        "import importlib.util, sys\n"
        f"root = {str(archive)!r}\n"
        "spec = importlib.util.spec_from_file_location('packed', root + '/__init__.py',"
        " submodule_search_locations=[root])\n"
        "sys.modules['packed'] = module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "from packed.__main__ import main\n"
        "workflow = root + '/workflows/quickstart.json'\n"
        "print(main(['validate', workflow]), main(['validate', workflow, '--comfyui', root]))\n"
    )
    command = [sys.executable, "-I", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 1", done.stdout + done.stderr
    assert "--comfyui must be run from a clone" in done.stderr


def test_the_host_finds_one_folder_of_templates():
    # It lists those of any folder with such a name, and serves the files of the first it finds alone.
    taken = {"example_workflows", "example", "examples", "workflow", "workflows"}
    assert {path.name for path in ROOT.iterdir()} & taken == {"workflows"}


def test_a_missing_package_ends_in_one_line_with_the_command():
    line = rollout_trainer.missing(ModuleNotFoundError("No module named 'peft'", name="peft"))
    assert "needs the Python package peft" in line
    assert f'"{sys.executable}" -m pip install -r "{ROOT / "requirements.txt"}"' in line
    assert "\n" not in line
