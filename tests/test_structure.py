"""The shape of the package: which way imports point, what is named in one place only, which types are public."""

import ast
import copy
import dataclasses
import functools
import graphlib
import inspect
import itertools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

import ssl_jax
from ssl_jax import data, losses, methods
from ssl_jax.methods import toolkit

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "ssl_jax").rglob("*.py"))
PROGRAM_TEXT = [*FILES, *sorted((ROOT / "benchmarks").glob("*.py"))]

# Part of ssl_jax -> the other parts that it may import.
MAY_IMPORT = {
    "keys": set(),
    "ops": set(),
    "compiled": {"paths"},
    "stores": set(),
    "paths": {"stores"},
    "config": {"keys"},
    "data": {"keys", "ops", "paths", "stores"},
    "optim": {"keys"},
    "recipes": {"config"},
    "losses": {"ops"},
    "health": {"ops"},
    "dist": {"compiled", "ops"},
    "models": {"keys", "ops"},
    "methods": {"keys", "losses", "models", "ops", "optim"},
    "workdir": {"config", "data", "dist", "paths", "stores"},
    "weights": {"compiled", "data", "models", "paths", "workdir"},
    "report": {"data", "health", "methods", "paths", "workdir"},
    "training": {
        *("config", "data", "dist", "health", "keys", "methods", "models", "ops", "optim"),
        *("paths", "stores", "weights", "workdir"),
    },
    "planning": {"config", "dist", "keys", "models", "ops", "training", "workdir"},
    "evaluation": {
        *("compiled", "config", "data", "dist", "health", "methods", "models", "ops", "optim", "paths", "report"),
        *("training", "weights", "workdir"),
    },
    "exporting": {"evaluation", "models", "paths", "report", "weights", "workdir"},
    "pretraining": {
        *("compiled", "config", "data", "dist", "evaluation", "methods", "models", "paths"),
        *("training", "weights", "workdir"),
    },
    "studies": {"compiled", "config", "data", "evaluation", "keys", "pretraining", "training", "weights", "workdir"},
    "configs": {"recipes", "studies"},
    "cli": {
        *("compiled", "config", "data", "dist", "evaluation", "exporting", "keys", "paths", "planning"),
        *("pretraining", "stores", "report", "studies", "training", "weights", "workdir"),
    },
    "__init__": {"config", "evaluation", "exporting", "pretraining", "weights"},
    "__main__": {"config"},
}
# What sees a ConfigDict: what writes, reads, changes or parses configs.
CONFIG_DICTS = {"config", "configs", "recipes", "studies", "workdir", "pretraining", "planning", "cli", "training"}
# Of data: from the files to the device. Each imports what is left of it only; the other files of data none of these.
DATA_FLOW = [
    *("sources", "uniform", "bands", "record_source", "folder_source", "list_source", "array_files", "tar_source"),
    *(
        "parquet_source",
        "array_record_source",
        "packed_source",
        "synthetic",
        "emoji_source",
        "tfds_source",
        "window_source",
        "opening",
        "packing_records",
        "packing",
        "given",
        "statistics",
        "reader",
        "pipeline",
        "input_speed",
        "segmentation",
        "augment",
    ),
]


def part(path: Path) -> str:
    """The part of ssl_jax that a file belongs to: its package there, or its own name."""
    return path.relative_to(ROOT / "ssl_jax").parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported anywhere in the tree: "ssl_jax.data.sources", "jax.sharding.Mesh"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}; name the module in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


class WithoutFunctions(ast.NodeTransformer):
    """Leaves what runs when a module is loaded."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        return None


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_imports_point_one_way_without_circles():
    found = {own: set() for own in MAY_IMPORT}
    for path in FILES:
        own = part(path)
        assert own in MAY_IMPORT, f"say in MAY_IMPORT what ssl_jax/{own} may import"
        ours = {name.split(".")[1] for name in imports(parse(path)) if name.startswith("ssl_jax.")}
        assert ours - {own} <= MAY_IMPORT[own], path
        found[own] |= ours - {own}
    assert found == MAY_IMPORT, "MAY_IMPORT allows what nothing imports"
    graphlib.TopologicalSorter(MAY_IMPORT).prepare()  # raises where there is a circle


def test_no_part_imports_a_private_name_of_another():
    for path in FILES:
        for name in imports(parse(path)):
            _, *names = name.split(".")
            if name.startswith("ssl_jax.") and names[0] != part(path):
                assert not [one for one in names if one.startswith("_")], f"{path} imports {name}"


def test_data_flows_one_way():
    for path in sorted((ROOT / "ssl_jax" / "data").glob("[!_]*.py")):
        found = {name.split(".")[2] for name in imports(parse(path)) if name.startswith("ssl_jax.data.")}
        left = DATA_FLOW[: DATA_FLOW.index(path.stem)] if path.stem in DATA_FLOW else []
        assert found.isdisjoint(set(DATA_FLOW) - set(left)), path


def test_reading_and_ordering_images_need_no_jax():
    waiting, seen = ["pipeline"], set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        path = ROOT / "ssl_jax" / "data" / name
        for file in [path.with_suffix(".py")] if path.with_suffix(".py").exists() else path.glob("*.py"):
            for imported in imports(parse(file)):
                assert not re.match(r"(jax|flax|optax)\b", imported), f"{file} imports {imported}"
                if imported.startswith("ssl_jax.data.") and imported.split(".")[2] not in seen:
                    waiting.append(imported.split(".")[2])
    assert "sources" in seen


def test_only_dist_names_meshes_and_shardings():
    named = "|".join(["sharding", "make_mesh", "set_mesh", "shard_map", "pmap", "NamedSharding", "P"])
    for path in FILES:
        tree = parse(path)
        attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        found = [name for name in attributes | set(imports(tree)) if re.match(rf"jax\.({named})\b", name)]
        assert part(path) == "dist" or not found, path


def test_a_config_is_parsed_once_and_nothing_below_sees_one():
    for path in FILES:
        if part(path) not in CONFIG_DICTS:
            found = [name for name in imports(parse(path)) if re.match(r"(ml_collections|absl)\b", name)]
            assert not found, path


def test_other_frameworks_and_pickle_stay_out():
    late = r"(tensorflow|tensorflow_datasets)\b"  # slow to import, or not installed
    for path in FILES:
        tree = copy.deepcopy(parse(path))
        assert not [name for name in imports(tree) if re.match(r"(torch|torchvision|timm|pickle)\b", name)], path
        assert not [name for name in imports(WithoutFunctions().visit(tree)) if re.match(late, name)], path


def test_nothing_that_is_read_can_run_code():
    readers = r"(pickle|cloudpickle|dill|joblib|marshal|shelve)\b"
    for path in PROGRAM_TEXT:
        tree = parse(path)
        assert not [name for name in imports(tree) if re.match(readers, name)], path
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            where = f"{path}:{call.lineno}"
            assert ast.unparse(call.func) not in ("eval", "exec", "os.system", "yaml.load", "torch.load"), where
            options = {option.arg: ast.unparse(option.value) for option in call.keywords}
            for name in ("allow_pickle", "shell"):
                assert options.get(name, "False") == "False", where


def test_the_programs_load_neither_tensorflow_nor_torch(tmp_path):
    # Stand-ins, so that an import that only succeeds where they are installed is seen too.
    for name in ("tensorflow", "torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    code = "import sys, ssl_jax.cli.train, ssl_jax.cli.evaluate; print({'tensorflow', 'torch'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_a_run_waits_for_orbax_only_when_it_saves():
    code = "import sys, ssl_jax.cli.train; print('orbax' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


PUBLIC = [
    *(getattr(space, name) for space in (ssl_jax, losses, methods, data, toolkit) for name in space.__all__),
    *methods.METHODS.values(),
]


def signatures(public: Any) -> Iterator[tuple[str, inspect.Signature]]:
    """Of a function, or of a class's public methods, properties and constructor."""
    if inspect.isfunction(public):
        yield public.__name__, inspect.signature(public)
    elif inspect.isclass(public):
        protocol = getattr(public, "_is_protocol", False)
        if dataclasses.is_dataclass(public) or ("__init__" in vars(public) and not protocol):
            made = inspect.signature(public)
            yield public.__name__, made.replace(return_annotation=public)
        for name, member in vars(public).items():
            function = getattr(member, "fget", None) or getattr(member, "func", None) or member
            if not name.startswith("_") and inspect.isfunction(function):
                yield f"{public.__name__}.{name}", inspect.signature(function)


def test_public_signatures_have_types_and_know_methods_configs_and_batches():
    seen = set()
    for name, signature in itertools.chain.from_iterable(map(signatures, PUBLIC)):
        seen.add(name)
        assert signature.return_annotation is not inspect.Signature.empty, name
        for parameter in signature.parameters.values():
            if parameter.name == "self":
                continue
            assert parameter.annotation is not inspect.Parameter.empty, f"{name}: {parameter.name} has no type"
            if parameter.name in ("method", "config", "batch"):
                assert "Any" not in str(parameter.annotation), f"{name}: {parameter}"
    assert {"pretrain", "nt_xent", "SimCLR", "SimCLR.loss", "Method.views", "Base.features", "folder"} <= seen


def test_strict_files_are_relaxed_for_untyped_libraries_only():
    strict = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]["strict"]
    for place in strict:
        assert (ROOT / place).exists(), place
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "type: ignore" not in text, path
        for rules in re.findall(r"# pyright: (?!ignore\[)(.*)", text):
            switched_off = set(rules.split(", "))
            assert switched_off <= {"reportUnknownMemberType=false", "reportMissingTypeStubs=false"}, path
            assert any(path.is_relative_to(ROOT / place) for place in strict), f"{path} is not strict"


def test_every_package_imported_is_required():
    distributions = metadata.packages_distributions()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    required = {
        canonical(re.split(r"[<>=\[]", line)[0])
        for line in [*lines("requirements.txt"), *itertools.chain(*extras.values())]
    }
    for path in FILES:
        for name in imports(parse(path)):
            package = name.split(".")[0]
            if package in sys.stdlib_module_names or package in ("ssl_jax", "jaxlib", "tensorflow"):
                continue
            assert required & {canonical(d) for d in distributions[package]}, f"{path.name} imports {package}"


def test_extra_and_test_requirements_agree():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert ["-r requirements.txt", *extras["test"]] == lines("requirements-test.txt")


def test_the_lock_pins_what_is_required_within_its_range():
    pins = dict(line.split("==") for line in lines("requirements.lock"))
    pinned = {canonical(name): version for name, version in pins.items()}
    assert len(pinned) == len(lines("requirements.lock"))
    for line in lines("requirements-test.txt")[1:] + lines("requirements.txt"):
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[canonical(requirement.name)]), line


def lines(name: str) -> list[str]:
    text = (ROOT / name).read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
