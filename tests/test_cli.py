"""Exit codes and errors of one line, shown by real processes."""

import errno
import os
import subprocess
import sys

import pytest

from tests import programs

PROGRAM = """
'''What the program is for.'''
import sys
from absl import flags
from igpt_tf import cli, config, errors
flags.DEFINE_string("workdir", None, "A folder.")
flags.DEFINE_list("images", None, "Files.")
flags.DEFINE_multi_integer("sizes", [3], "Numbers.")
def main():
    flag = flags.FLAGS
    {body}
cli.run(main)
"""


def run(body, *arguments, **environment):
    """Runs a program whose `main` is `body`."""
    command = [sys.executable, "-c", PROGRAM.format(body=body), *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, encoding="utf-8"
    )


def refusal(body, *arguments, **environment):
    """stderr of a program that ends with exit code 2 and one line."""
    ended = run(body, *arguments, **environment)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("error: ")
    return ended.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--workdri=x"], "workdir"),
        (["workdir=x"], "two dashes"),
        (["--sizes=many"], "sizes"),
        (["--workdir=gs://bucket/run"], "only local files"),
        (["--images=a,s3://bucket/a.png"], "only local files"),
        (["--workdir=~no_such_user/run"], "home folder"),
        ([b"--workdir=\xff"], "UTF-8"),
    ],
)
def test_wrong_arguments_are_refused(arguments, part):
    assert part in refusal("pass", *arguments)


def test_home_folders_are_expanded_in_all_paths():
    body = "print(flag.workdir, flag.images, flag.sizes, flag.gin_param)"
    arguments = ["--workdir=~/run", "--images=~/a,b", "--sizes=4", "--gin_param=a.b='~'"]
    ended = run(body, *arguments, HOME="/home/user")
    assert ended.stdout == "/home/user/run ['/home/user/a', 'b'] [4] [\"a.b='~'\"]\n"


def test_help_describes_the_program_and_its_flags():
    ended = run("pass", "--help")
    assert ended.returncode == 0 and not ended.stderr
    assert all(text in ended.stdout for text in ("What the program is for", "--workdir", "A gin"))


def test_text_that_the_terminal_cannot_show_is_escaped():
    line = refusal("raise errors.InputError('bad name \\x1b[31m. Received: \\n  x')")
    assert line == "error: bad name \\x1b[31m. Received: x\n"
    ended = run("print('\\u00e9\\udcff')", PYTHONIOENCODING="ascii")
    assert ended.returncode == 0 and ended.stdout == "\\xe9\\udcff\n"


def test_the_program_ends_quietly_when_the_reader_of_its_output_ends():
    body = "[print('x' * 1000) for _ in range(1000)]"
    command = [sys.executable, "-c", PROGRAM.format(body=body)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize(
    "error",
    [
        f"OSError({errno.ENOSPC}, 'full', 'evaluate.png.part')",
        f"OSError({errno.EDQUOT}, 'full')",
        "OSError('512 requested and 96 written')",  # NumPy
        "RuntimeError('IoError(Os {{ code: 28, message: \"No space left on device\" }})')",
    ],
)
def test_a_full_disk_ends_any_program_in_one_line(error):
    line = refusal(f"raise {error.format()}", "--workdir=here")
    assert "no space left" in line and "workdir=here" in line


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_an_image_written_to_a_full_disk_ends_in_one_line():
    image = "__import__('PIL.Image').Image.new('RGB', (9, 9))"
    assert "no space left" in refusal(f"{image}.save(open('/dev/full', 'wb'), 'PNG')")


def test_lack_of_memory_ends_in_one_line_that_names_what_needs_less():
    assert "gradient_accumulation_steps" in refusal("raise MemoryError()")


def test_other_errors_show_a_traceback():
    for error in (f"OSError({errno.EISDIR}, 'a directory')", "TypeError('missing 1 required')"):
        ended = run(f"raise {error}")
        assert ended.returncode == 1 and "Traceback" in ended.stderr


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs Linux")
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("check_serving", ["--saved_model=nowhere"]),
        ("evaluate", ["--saved_model=nowhere"]),
        ("export_huggingface", ["--saved_model=nowhere"]),
        ("fit_palette", ["--images=nowhere"]),
        ("plan", ["--gin_file=nowhere", "--memory_gb=1"]),
    ],
)
def test_programs_check_their_workdir_first(tool, arguments):
    line = programs.refused_at_once(f"tools.{tool}", *arguments, "--workdir=/proc")
    assert "the workdir cannot be written" in line
