# SPDX-License-Identifier: Apache-2.0
"""Modules loaded by commands, and the time of quick answers."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from string import ascii_lowercase

import pytest
from checkpoints import make_checkpoint, make_gguf

import lampo
from lampo.text.tokenizer import Tokenizer
from lampo.weights.read_ahead import read_ahead

HEAVY = ("torch", "numpy", "tokenizers", "jinja2", "huggingface_hub", "fastapi", "uvicorn")
QUICK = [
    [],
    ["--help"],
    ["--version"],
    ["generate", "--help"],
    ["generate", "--no-such-option"],
    ["serve", "--help"],
    ["bench"],
    ["bench", "serve", "--help"],
    ["bench", "op", "--help"],
    ["bench", "op"],
    ["bench", "op", "rms_norm", "--rows", "x"],
    ["bench", "op", "rms_norm", "--vocab", "8"],
    ["bench", "compare", "--help"],
    ["bench", "decode", "--help"],
    ["bench", "prefill", "--prompt", "x"],
    ["bench", "batch", "-m", "no such model", "--batch", "1"],
    ["bench", "serve", "--input-len", "x"],
    ["serve", "--port", "x"],
    ["generate", "-t", "warm", "Hi"],
    ["generate", "--top-p", "7", "Hi"],
    ["generate", "-m", "no such model", "Hi"],
    ["genrate"],
]


def python(code: str, *arguments: str) -> str:
    """A program's output; its last line names the heavy modules that it has loaded."""
    code += f"\nimport sys; print(*[m for m in {HEAVY} if m in sys.modules])"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_quick_answers_load_nothing_heavy(arguments: list[str]) -> None:
    code = "import sys; from lampo.cli.main import main; main(sys.argv[1:])"
    assert python(code, *arguments).splitlines()[-1] == ""


def test_typers_types_are_not_looked_at_for_help() -> None:
    """They take 0.1 s; the group's own --help is what keeps them away (cli/app.py)."""
    for arguments in (["generate", "--help"], ["generate", "--no-such-option"]):
        code = "import sys; from lampo.cli.main import main; main(sys.argv[1:])"
        code += "; print('pydantic' in sys.modules)"
        assert python(code, *arguments).splitlines()[-2] == "False"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of 256 tokens of context, and with others that are refused."""
    folder = tmp_path_factory.mktemp("models")
    make_checkpoint(folder / "good")
    make_gguf(folder / "good.gguf")
    for name, change in {
        "head_dim": {"head_dim": 12},
        "architecture": {"model_type": "mamba", "architectures": ["MambaForCausalLM"]},
        "experts": {"num_experts": 8},
    }.items():
        make_checkpoint(folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps(config | change))
    make_checkpoint(folder / "tensors")
    (folder / "tensors" / "model.safetensors").write_bytes(b"no tensors")
    (folder / "cut.gguf").write_bytes((folder / "good.gguf").read_bytes()[:-4096])
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "head_dim"], "head_dim"),
        (["-m", "architecture"], "is not supported (`lampo models` lists what is)"),
        (["-m", "experts"], "num_experts"),
        (["-m", "tensors"], "not a safetensors file"),
        (["-m", "cut.gguf"], "run past the end"),
        (["-m", "good", "--dtype", "int3"], "dtype: expected one of auto, "),
        (["-m", "good", "--device", "tpu"], "device: expected cpu, cuda or cuda:<index>"),
        (["-m", "good", "--max-model-len", "257"], "max_model_len: expected a value in [1, 256]"),
        (["-m", "good", "--stop-token-id", "320"], "token id 320 is not in the vocabulary of 320"),
        (["-m", "good", "--file", "none"], "none: No such file or directory"),
        (["profile", "-m", "good", "--depth", "255"], "depth: expected a value in [0, 254]"),
        (["-m", "good", "Hi " * 400], "but the context of 256 leaves room for 255"),
        (["-m", "good.gguf", "Hi " * 400], "but the context of 256 leaves room for 255"),
    ],
)
def test_mistakes_do_not_load_torch(arguments: list[str], message: str, models: Path) -> None:
    """Nor the weights: files, configurations and prompts are checked before."""
    code = f"import os, sys; os.chdir({str(models)!r}); sys.stderr = sys.stdout\n"
    code += "from lampo.cli.main import main; print(main(sys.argv[1:]))\n"
    if arguments[0] != "profile":
        has_prompt = "--file" in arguments or arguments[-1].startswith("Hi ")
        arguments = ["generate", *([] if has_prompt else ["Hi"]), *arguments]
    line, exit_code, loaded = python(code, *arguments).splitlines()
    assert line.startswith("lampo: error: ")
    assert message in line
    assert exit_code == "2"
    assert "torch" not in loaded


@pytest.mark.slow
@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_quick_answers_are_quick(arguments: list[str]) -> None:
    """0.1 to 0.2 s on the machine that this was written on, twice that here."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lampo", *arguments], capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.4


def test_attributes_are_lazy() -> None:
    assert python("import lampo; lampo.__version__; lampo.SamplingParams") == "\n"
    assert "torch" in python("from lampo import LLM")
    assert "torch" in python("import lampo; lampo.ops.linear")
    loaded = "import lampo, sys; print(*sorted(m for m in sys.modules if 'lampo' in m))"
    assert python(loaded).splitlines()[0] == "lampo"


def test_attributes() -> None:
    from lampo import LLM, CompletionOutput, Logprob, RequestOutput, SamplingParams, ops

    assert LLM.__module__ == "lampo.llm"
    assert ops.__name__ == "lampo.ops"
    assert {CompletionOutput, Logprob, RequestOutput, SamplingParams}
    assert dir(lampo) == sorted(lampo.__all__)
    assert all(getattr(lampo, name) is not None for name in dir(lampo))
    with pytest.raises(AttributeError, match="'lampo' has no attribute 'nosuch'"):
        _ = lampo.nosuch


@pytest.mark.slow
def test_type_checkers_see_through_lazy_attributes(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    user = tmp_path / "user.py"
    user.write_text(
        "import lampo\nfrom lampo import LLM, SamplingParams, ops\nfrom lampo.weights import pull\n"
        "reveal_type(LLM)\nreveal_type(SamplingParams(top_p=0.9).top_p)\n"
        "reveal_type(lampo.LLM().generate)\nreveal_type(ops.linear)\nSamplingParams(top_q=1)\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(user)]
    root = Path(lampo.__file__).parents[1]
    environment = {**os.environ, "MYPYPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    said = [line.partition(": ")[2] for line in done.stdout.splitlines() if "user.py:" in line]
    assert len(said) == 5, done.stdout + done.stderr
    assert "lampo.llm.LLM" in said[0]
    assert '"float | None"' in said[1]
    assert "list[lampo.outputs.RequestOutput]" in said[2]
    assert "Tensor" in said[3]
    assert "top_q" in said[4]


def test_a_command_ends_in_order(tmp_path: Path) -> None:
    """Nothing takes torch apart, yet all output arrives, and the code with it."""
    make_checkpoint(tmp_path / "tiny")
    command = [sys.executable, "-m", "lampo", "generate", "Hello", "-m", str(tmp_path / "tiny")]
    done = subprocess.run([*command, "--json", "-n", "4"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["finish_reason"]
    done = subprocess.run([*command, "--max-model-len", "2"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lampo: error: ")


def test_a_command_keeps_its_model_out_of_garbage_collection(tmp_path: Path) -> None:
    make_gguf(tmp_path / "tiny.gguf")
    code = """if True:
        import gc, sys
        from lampo.cli.options import ModelOptions
        from lampo.cli.session import open_llm
        gc.disable()  # as `program` does
        with open_llm(ModelOptions(model=sys.argv[1]), quiet=True):
            print(gc.isenabled(), gc.get_freeze_count() > 100_000)
    """
    assert python(code, str(tmp_path / "tiny.gguf")).splitlines()[0] == "True True"


def test_a_tokenizer_sets_off_no_garbage_collection() -> None:
    """18,000 merges as a list of tuples would start it 26 times."""
    merges = [f"{a} {b}" for a, b in product(ascii_lowercase, repeat=2)]
    merges += [f"{a}{b} {c}" for a, b, c in product(ascii_lowercase, repeat=3)]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*ascii_lowercase, *(m.replace(" ", "") for m in merges)],
        "tokenizer.ggml.merges": merges,
    }
    count = 0

    def collected(phase: str, info: dict[str, int]) -> None:
        nonlocal count
        count += phase == "stop"

    gc.collect()
    gc.callbacks.append(collected)
    try:
        tokenizer = Tokenizer.from_gguf(metadata)
    finally:
        gc.callbacks.remove(collected)
    assert count <= 4
    assert tokenizer.encode("abc") == [26 + 26**2 + 28]


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="asks Linux what is in its cache")
def test_read_ahead(tmp_path: Path) -> None:
    def is_cached(path: Path) -> bool:
        with path.open("rb") as file:
            try:
                return os.preadv(file.fileno(), [bytearray(1)], 3 << 20, os.RWF_NOWAIT) == 1
            except BlockingIOError:
                return False
            except OSError as error:
                pytest.skip(f"this file system cannot tell: {error}")

    (tmp_path / "a").mkdir()
    paths = [tmp_path / "a" / "m.safetensors", tmp_path / "m.gguf"]
    control = tmp_path / "control"  # asking brings a file into the cache: a third one is asked
    for path in (*paths, control):
        with path.open("wb") as file:
            file.write(os.urandom(4 << 20))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if is_cached(control):
        pytest.skip("this file system keeps all in memory")
    for model, path in ((tmp_path / "a", paths[0]), (tmp_path / "m.gguf", paths[1])):
        thread = read_ahead(model)
        assert thread is not None
        thread.join()
        assert is_cached(path)
    for nothing in (tmp_path / "none", Path("/dev"), Path("/dev/zero")):
        thread = read_ahead(nothing)
        assert thread is not None
        thread.join(timeout=30)
        assert not thread.is_alive()
