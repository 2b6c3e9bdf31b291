# SPDX-License-Identifier: Apache-2.0
"""README.md is correct: its links, its Python example, its commands, its numbers."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lampo.weights.default_model import cached_default_model

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    "README.md",
    "docs/development.md",
    "docs/engine.md",
    "docs/performance.md",
    "docs/server.md",
    "benchmarks/README.md",
    "docs/benchmarking.md",
]


def code_blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = ROOT / document
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert not [link for link in links if not (path.parent / link).exists()]


@pytest.mark.model
@pytest.mark.parametrize("document", ["README.md", "docs/engine.md"])
def test_python_examples(tmp_path, document):
    if cached_default_model() is None:
        pytest.skip("the default model is not cached; `lampo pull` fetches it")
    examples = code_blocks("python", (ROOT / document).read_text())
    script = tmp_path / "example.py"
    script.write_text("\n".join(examples))
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) >= 5


def test_commands_and_options_exist():
    commands = [
        shlex.split(line, comments=True)
        for block in code_blocks("bash")
        for line in block.splitlines()
        if "lampo " in line
    ]
    used: dict[str, set[str]] = {}
    for words in commands:
        if "lampo" in words:
            name, *rest = words[words.index("lampo") + 1 :]
            used.setdefault(name, set()).update(word for word in rest if word.startswith("-"))
    assert {"generate", "chat", "doctor", "pull"} <= used.keys()
    main = "import sys; from lampo.cli.main import main; sys.exit(main())"
    for name, options in used.items():
        result = subprocess.run(
            [sys.executable, "-c", main, name, "--help"], capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        missing = [option for option in options if not re.search(rf"{option}\b", result.stdout)]
        assert not missing, (name, missing)


def test_numbers_are_those_of_the_result_files():
    script = ROOT / "benchmarks" / "readme_table.py"
    result = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
