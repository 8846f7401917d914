"""The wheel, the command `igpt`, `make setup` and the files for clusters."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from igpt_tf import config
from tests import programs

ROOT = Path(__file__).resolve().parents[1]


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


def build(kind, folder):
    """Builds a "wheel" or an "sdist" and returns its path."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    ended = run(*command, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    [path] = folder.iterdir()
    return path


def files_below(folder, root):
    """{path relative to root} of the files below a folder."""
    return {
        path.relative_to(root).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_package_with_its_gin_files_and_tools(tmp_path):
    names = set(zipfile.ZipFile(build("wheel", tmp_path)).namelist())
    shipped = {f"igpt_tf/{path}" for path in files_below(ROOT / "gin", ROOT)}
    shipped |= {f"igpt_tf/{path}" for path in files_below(ROOT / "tools", ROOT)}
    expected = files_below(ROOT / "igpt_tf", ROOT) | shipped
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_the_source_distribution_holds_what_the_wheel_is_built_from(tmp_path):
    path = build("sdist", tmp_path)
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = {"pyproject.toml", "requirements.txt", "gin/base.gin", "tools/sample.py", "LICENSE"}
    assert needed <= names and not any(name.startswith("tests/") for name in names)


def test_igpt_lists_and_runs_every_program(tmp_path):
    listed = run(sys.executable, "-m", "igpt_tf", "--help")
    commands = [line.split()[0] for line in listed.stdout.splitlines() if line.startswith("  ")]
    assert {"pretrain", "probe", "sample", "finetune", "low-data"} <= set(commands)
    assert len(commands) == len(list((ROOT / "tools").glob("*.py"))) + 1
    for command in commands:
        assert "\n  --" in programs.done("igpt_tf", command, "--help")  # its flags
    for command in ("pretrain", "probe", "low_data"):
        ended = run(sys.executable, "-m", "igpt_tf", command)
        assert ended.returncode == 2 and "is missing" in ended.stderr


def test_an_unknown_command_is_refused_with_the_closest_one():
    ended = run(sys.executable, "-m", "igpt_tf", "sampel")
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "did you mean sample?" in ended.stderr


@pytest.mark.slow
def test_the_installed_package_trains_and_samples_in_an_empty_folder(tmp_path):
    wheel = build("wheel", tmp_path / "dist")
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"), check=True)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    run(*command, "--no-deps", "--no-index", str(wheel), check=True)
    [site] = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    folder = tmp_path / "empty"
    folder.mkdir()
    igpt = str(tmp_path / "venv" / "bin" / "igpt")
    location = run(str(python), "-c", "import igpt_tf; print(igpt_tf.__file__)", cwd=folder)
    assert location.stdout.startswith(str(site))
    short = ["train.num_steps=20", "intervals.probe_every=0", "intervals.sample_every=0"]
    training = [f"--gin_param={binding}" for binding in (*short, "build_optimizer.warmup_steps=2")]
    run_file = "--gin_file=gin/runs/digits_tiny_ar.gin"
    ended = run(igpt, "pretrain", run_file, "--workdir=runs/digits", *training, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    model = "--saved_model=runs/digits/export"
    ended = run(igpt, "sample", model, "--workdir=samples", "--num_images=2", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert os.listdir(folder / "samples")
    ended = run(igpt, "pretrain", "--gin_file=nothing.gin", "--workdir=x", cwd=folder)
    assert ended.returncode == 2 and str(folder) in ended.stderr and str(site) in ended.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_setup_installs_cuda_where_there_is_an_nvidia_gpu(tmp_path):
    def recipe(*variables, **environment):
        command = ["make", "-n", "-B", ".venv/.installed", *variables]
        return run(*command, cwd=ROOT, env={**os.environ, **environment}).stdout

    none = f"NVIDIA={tmp_path / 'none'}"
    assert "requirements.lock" in recipe(none)
    if not shutil.which("nvidia-smi"):
        assert "-r requirements-cuda.lock" not in recipe(none)
    assert "-r requirements-cuda.lock" in recipe("NVIDIA=/dev/null")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    assert "-r requirements-cuda.lock" in recipe(none, PATH=path)
    program.write_text("#!/bin/sh\nexit 9\n")  # the driver is installed, a GPU is not
    assert "-r requirements-cuda.lock" not in recipe(none, PATH=path)


def load_yaml(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_the_kubeflow_job_starts_a_run_file_with_parsable_bindings():
    spec = load_yaml("deploy/tfjob.yaml")["spec"]["tfReplicaSpecs"]["Worker"]
    [container] = spec["template"]["spec"]["containers"]
    command, *arguments = container["args"]
    assert command == "pretrain" and container["name"] == "tensorflow"
    flags = [argument.split("=", 1) for argument in arguments]
    assert [
        value for flag, value in flags if flag == "--gin_file" and not (ROOT / value).is_file()
    ] == []
    bindings = "\n".join(value for flag, value in flags if flag == "--gin_param")
    assert config.parse_bindings(bindings)["train.strategy"] == "@multi_worker_strategy()"
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_serving_file_mounts_the_model_under_its_name():
    serving = load_yaml("deploy/serving-compose.yaml")["services"]["serving"]
    assert serving["volumes"][0]["target"] == f"/models/{serving['environment']['MODEL_NAME']}"
    lock = (ROOT / "requirements.lock").read_text()
    assert f"tensorflow-serving-api=={serving['image'].split(':')[1]}" in lock


def test_the_dockerfile_names_files_that_exist():
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
    assert copied and all((ROOT / name).exists() for names in copied for name in names)
    assert 'ENTRYPOINT ["igpt"]' in lines
    if shutil.which("hadolint"):
        run("hadolint", str(ROOT / "deploy" / "Dockerfile"), check=True)


def test_the_slurm_script_parses_and_asks_for_its_arguments():
    script = str(ROOT / "deploy" / "slurm.sh")
    run("bash", "-n", script, check=True)
    assert "usage: sbatch" in run("bash", script).stderr


def test_ci_and_pre_commit_run_what_the_repository_has():
    steps = load_yaml(".github/workflows/ci.yml")["jobs"]["test"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps] and (ROOT / ".ci/run").is_file()
    [hook] = load_yaml(".pre-commit-config.yaml")["repos"][0]["hooks"]
    assert hook["entry"] == "make lint"


def test_the_citation_names_the_version_of_the_package():
    import igpt_tf

    assert load_yaml("CITATION.cff")["version"] == igpt_tf.__version__
