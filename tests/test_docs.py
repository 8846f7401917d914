"""The commands of README.md and docs/, and the code of the notebooks, run as they are printed.

A fenced block ```bash is run in a copy of the repository, after the blocks above it. The comment
`<!-- not run: REASON -->` on the line before it skips it. `<!-- run with 2 steps -->` shortens its
runs, whose images are in the folder FOLDER. The blocks ```python of a document are run as one
program.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(
    r"(?:<!-- (?P<comment>[^\n]+) -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)```", re.DOTALL
)
SHORTEN = """python() {
    case "$*" in *igpt_tf.main*) set -- "$@" --gin_param=train.num_steps=2 ;; esac
    command python "$@"
}
"""

pytestmark = pytest.mark.docs


def blocks(path, language):
    """The blocks of a document, "bash" or "python", that are to be run."""
    found = []
    for match in BLOCK.finditer(path.read_text(encoding="utf-8")):
        comment = match["comment"] or ""
        if match["language"] == language and not comment.startswith("not run: "):
            found.append((SHORTEN if comment == "run with 2 steps" else "") + match["code"])
    return found


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))


@pytest.fixture
def copy(tmp_path):
    """A copy of the repository with its own environment, and images in FOLDER."""

    def ignored(folder, names):
        at_root = {".git", ".venv", "runs", "data"} if folder == str(ROOT) else set()
        return set(names) & ({"__pycache__"} | at_root)

    shutil.copytree(ROOT, tmp_path / "copy", ignore=ignored)
    os.symlink(ROOT / ".venv", tmp_path / "copy" / ".venv")
    (tmp_path / "copy" / "FOLDER").mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (60, 40, 36, 3), "uint8")):
        Image.fromarray(image).save(tmp_path / "copy" / "FOLDER" / f"{i}.png")
    return tmp_path / "copy"


def run(copy, *command):
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "IGPT_CACHE": str(copy / ".cache"),
    }
    ended = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, f"{command[-1]}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"


def documents_with(language):
    return pytest.mark.parametrize(
        "path", [path for path in DOCUMENTS if blocks(path, language)], ids=lambda path: path.name
    )


@documents_with("bash")
def test_the_commands_of_a_document_run(path, copy):
    for code in blocks(path, "bash"):
        run(copy, "bash", "-euo", "pipefail", "-c", code)


@documents_with("python")
def test_the_python_code_of_a_document_runs(path, copy):
    run(copy, sys.executable, "-c", "\n".join(blocks(path, "python")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_code_of_a_notebook_runs(path, copy):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    plain = re.sub(r"^( *)[!%].*$", r"\1pass", code, flags=re.MULTILINE)  # shell and magic lines
    run(copy, sys.executable, "-c", "import matplotlib; matplotlib.use('Agg')\n" + plain)
