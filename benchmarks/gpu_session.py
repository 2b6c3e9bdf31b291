#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What to run in the first minutes on a machine with a GPU: two calls of at most 5 minutes each.

    python benchmarks/gpu_session.py OUT first
    python benchmarks/gpu_session.py OUT second --failed OUT_OF_THE_FIRST/session.json
    python benchmarks/gpu_session.py OUT full [--seconds 3000]

first: builds and installs this tree's lampo for the GPU that is there; tests of Hopper's
instructions; GPU tests that cover every kernel once; and, beside their peers, the smallest
benchmarks that mean something: attention, top-p, linear, a model. second: the failed tests once
more, with blocking launches, and compute-sanitizer's four tools over a choice of tests. full: all
GPU tests and benchmarks.

Steps come in order of importance and have a time limit each; a step that would end after the time
of the call is cut short or left out, and the session says so. OUT gets a log of each step, the JSON
files of the benchmarks, the tests' reports, and session.json with all results, rewritten after each
step. The exit status says whether all went well.

Needs nvcc, CMake, Ninja, a torch with CUDA and the packages of PACKAGES; nothing is downloaded.
What is missing is said first, and costs only the tests and benchmarks that use it. Peers as in
README.md. LAMPO_MODELS is where random models go, LAMPO_COMMIT what the results call a tree without
its git history. --rehearse tries all of it out on the simulated GPU of tests/cuda_on_cpu/, without
the build and compute-sanitizer.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SECONDS = {"first": 300, "second": 300, "full": 3000}
LEAST = 10  # seconds that are worth beginning a step for
# Of every kernel and of a whole model; the longest take seconds.
REPRESENTATIVE = (
    "test_cuda_model or test_merge or test_silu or test_embedding or (test_append_kv and 8)"
    " or (test_options and decode and sliding_window) or (test_shapes and 80 and mixed and False)"
    " or (test_cache_dtypes and 80 and decode and dtype1) or (test_layer_norm and shape5)"
    " or (test_rms_norm and shape7) or test_wgmma or (test_dense and 33-40 and dtype1-dtype1)"
    " or (test_packed and 40-544-9 and dtype1) or test_graph"
    " or (test_captured and not other_lengths) or test_check_values"
    " or test_cases_agree_with_the_reference or (test_causal_conv and dtype1)"
    " or (test_gated_delta and dims1 and dtype1)"
)
# Of mbarrier, TMA and wgmma against their models: what the simulation of a Hopper GPU rests on.
INSTRUCTIONS = "tests/cuda/test_hopper_instructions.py"
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# Modules that the build, the GPU tests and the benchmarks import; lampo's other dependencies and
# optional ones are not needed.
PACKAGES = (
    *("torch", "numpy", "tokenizers", "safetensors", "gguf", "jinja2", "huggingface_hub"),
    *("filelock", "typer", "rich", "transformers", "pytest", "pytest_timeout", "hypothesis"),
    *("scipy", "scikit_build_core", "pybind11"),
)
PROGRAMS = ("nvcc", "cmake", "ninja", "compute-sanitizer")
TEST_SECONDS = 20  # of one GPU test; the longest take seconds
COMPILED_SECONDS = 50  # of the first test of instructions, in which nvcc compiles their kernels


@dataclass
class Result:
    """One step: `status` is ok, failed, cut short or left out."""

    name: str
    status: str
    seconds: float = 0.0
    last_line: str = ""
    passed: int | None = None
    failed: list[str] = field(default_factory=list)  # node ids of tests


class Session:
    """Runs steps until the time is over.

    Args:
        out: folder of logs and results.
        seconds: from now on.
        clock, run: for tests.
    """

    def __init__(
        self,
        out: Path,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        run: Callable[..., Any] = subprocess.run,
    ) -> None:
        self.out = out
        self._clock, self._run = clock, run
        self._end = clock() + seconds
        self.results: list[Result] = []
        out.mkdir(parents=True, exist_ok=True)

    def step(self, name: str, limit: float, command: list[str], **environment: str) -> Result:
        """Runs a command for at most `limit` seconds; `OUT/name.log` has what it prints."""
        left = self._end - self._clock()
        result = Result(name, "left out", last_line=f"{max(left, 0):.0f} s were left")
        if left >= LEAST:
            begin = self._clock()
            log = self.out / f"{name}.log"
            with log.open("w") as file:
                try:
                    ran = self._run(
                        command,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        stdin=subprocess.DEVNULL,
                        cwd=ROOT,
                        env=os.environ | environment,
                        timeout=min(limit, left),
                    )
                    result.status = "ok" if ran.returncode == 0 else f"failed ({ran.returncode})"
                except subprocess.TimeoutExpired:
                    result.status = "cut short"
            result.seconds = round(self._clock() - begin, 1)
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            result.last_line = lines[-1][:160] if lines else ""
        return self._add(result)

    def note(self, name: str, status: str, text: str) -> None:
        """A result without a command."""
        self._add(Result(name, status, last_line=text))

    def _add(self, result: Result) -> Result:
        self.results.append(result)
        seconds = f"{result.seconds:5.0f} s"
        print(f"{result.name:<22} {seconds}  {result.status}  {result.last_line}", flush=True)
        self.save()
        return result

    def tests(self, name: str, limit: float, arguments: list[str], **environment: str) -> None:
        """Runs pytest and reads its report.

        A test that hangs ends pytest, without a report: then the log is read, and the tests after
        that one are run by another pytest, in what is left of the limit.
        """
        report = self.out / f"{name}.xml"
        pytest = [sys.executable, "-m", "pytest", "-v", "--continue-on-collection-errors"]
        command = [*pytest, f"--junitxml={report}", *arguments]
        result = self.step(name, limit, command, **environment)
        if report.exists():
            result.passed, result.failed = read_report(report)
        elif result.status != "left out":
            verdicts = read_log((self.out / f"{name}.log").read_text(errors="replace"))
            kinds = list(verdicts.values())
            result.passed = kinds.count("PASSED")
            result.failed = [t for t, kind in verdicts.items() if kind in ("FAILED", "ERROR", "")]
            if "" in kinds and result.status != "cut short":
                rest = [*arguments, *(f"--deselect={test}" for test in verdicts)]
                self.tests(f"{name}_rest", limit - result.seconds, rest, **environment)
        self.save()

    def save(self) -> None:
        document = {
            "commit": os.environ.get("LAMPO_COMMIT", ""),
            "seconds_left": round(self._end - self._clock(), 1),
            "steps": [asdict(result) for result in self.results],
        }
        (self.out / "session.json").write_text(json.dumps(document, indent=1))

    @property
    def failed(self) -> bool:
        return any(result.status != "ok" for result in self.results)


def read_report(report: Path) -> tuple[int, list[str]]:
    """The number of passed tests of pytest's XML report, and the ids of the failed ones."""
    passed, failed = 0, []
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            path = case.attrib["classname"].replace(".", "/")
            failed.append(f"{path}.py::{case.attrib['name']}")
        elif "skipped" not in kinds:
            passed += 1
    return passed, failed


def read_log(log: str) -> dict[str, str]:
    """The tests and their verdicts by the output of `pytest -v`; empty for one that never ended."""
    return dict(
        re.findall(
            r"^(tests/\S+?\.py::.*?) *(?:(PASSED|SKIPPED|FAILED|ERROR)\b.*|\++ Timeout.*)?$",
            log,
            re.MULTILINE,
        )
    )


def missing() -> list[str]:
    """What the calls need and this machine lacks."""
    packages = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return packages + [name for name in PROGRAMS if shutil.which(name) is None]


def gpu_test_files() -> list[str]:
    """The files with GPU tests, as pytest is given them."""
    found = [
        path.relative_to(ROOT)
        for path in sorted((ROOT / "tests").glob("*/test_*.py"))
        if "mark.gpu" in path.read_text()
    ]
    return [str(path) for path in found]


def failed_tests(session: Path) -> list[str]:
    """The ids of the tests that failed in an earlier session, by its session.json."""
    steps = json.loads(session.read_text())["steps"]
    return list(dict.fromkeys(name for step in steps for name in step["failed"]))


class Plan:
    """The steps of the calls.

    Args:
        session: runs them.
        rehearse: without a GPU.
        models: folder of random models.
    """

    def __init__(self, session: Session, models: Path, *, rehearse: bool = False) -> None:
        self._session = session
        self._models = models
        self._rehearse = rehearse
        self._device = ["--device", "cpu", "--quick"] if rehearse else ["--device", "cuda"]
        self._tests = ["--cuda-on-cpu"] if rehearse else []
        self._slower = 10 if rehearse else 1  # the simulated GPU is

    def first(self) -> None:
        self._require()
        self._build()
        peers = self._compile_peers()
        self._pytest("instructions", 60, [INSTRUCTIONS], seconds=COMPILED_SECONDS)
        self._pytest("tests", 75, ["-k", REPRESENTATIVE, *gpu_test_files()])
        self._benchmark("attention", 50, "--few")
        self._prompts_by_wgmma(20, "--few")
        self._benchmark("sample", 35, "--few")
        self._model("Llama-3.1-8B-quarter", "bf16", 70, "--few")
        self._benchmark("linear", 40, "--few")
        self._model("SmolLM2-135M", "q4_1", 40, "--few")
        for peer in peers:
            peer.kill()

    def second(self, failed: list[str]) -> None:
        if failed:
            again = ["-v", "--tb=long", *failed]
            self._pytest("failed_again", 80, again, COMPILED_SECONDS, CUDA_LAUNCH_BLOCKING="1")
        self._sanitize(count=12, seconds=50)

    def full(self) -> None:
        self._require()
        self._build()
        peers = self._compile_peers()
        for file in gpu_test_files():
            self._pytest(Path(file).stem, 200, [file], seconds=COMPILED_SECONDS)
        for name in ("attention", "sample", "linear"):
            self._benchmark(name, 350)
        self._prompts_by_wgmma(100)
        for shape, form in (("Llama-3.1-8B", "bf16"), ("Llama-3.1-8B", "q4_0")):
            self._model(shape, form, 200)
        self._sanitize(count=60, seconds=200)
        for peer in peers:
            peer.kill()

    def _require(self) -> None:
        """Says what is missing, and goes on."""
        if absent := missing() if not self._rehearse else []:
            self._session.note("packages", "failed", f"missing: {', '.join(absent)}")

    def _build(self) -> None:
        if self._rehearse:
            return
        python = [sys.executable, "-m"]
        self._session.step(
            "install",
            200,
            [*python, "pip", "install", "--no-build-isolation", "--no-deps", "."],
            LAMPO_CUDA="ON",
            LAMPO_TEST_HOOKS="ON",
            LAMPO_CUDA_ARCHITECTURES=architecture(),
            CMAKE_BUILD_PARALLEL_LEVEL=str(os.cpu_count()),
        )
        self._session.step("doctor", 30, [*python, "lampo", "doctor"])

    def _compile_peers(self) -> list[subprocess.Popen[bytes]]:
        """Lets FlashInfer compile its kernels beside the tests, where it is installed."""
        if self._rehearse or importlib.util.find_spec("flashinfer") is None:
            return []
        attention, sample = "bench_gpu_attention.py", "bench_gpu_sample.py"
        scripts = [(attention, "--peers", f"FlashInfer {kind}") for kind in ("cuda", "fa2", "fa3")]
        started = []
        for script, *options in [*scripts, (sample,)]:
            command = [sys.executable, str(ROOT / "benchmarks" / script), *options]
            command += ["--quick", "--repeats", "3"]
            name = "_".join(["compile", *options[1:], script])
            with (self._session.out / f"{name}.log").open("w") as log:
                started.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        return started

    def _pytest(
        self,
        name: str,
        limit: float,
        arguments: list[str],
        seconds: int = TEST_SECONDS,
        **environment: str,
    ) -> None:
        options = ["-m", "gpu", *self._tests]
        if not self._rehearse:
            options += [f"--timeout={seconds}", "--timeout-method=thread"]
        arguments = [*options, *arguments]
        self._session.tests(name, limit * self._slower, arguments, **environment)

    def _benchmark(self, name: str, limit: float, *options: str) -> None:
        script = ROOT / "benchmarks" / f"bench_gpu_{name}.py"
        self._run_benchmark(f"gpu_{name}", limit, script, [*options])

    def _prompts_by_wgmma(self, limit: float, *options: str) -> None:
        script = ROOT / "benchmarks" / "bench_gpu_attention.py"
        options = (*options, "--cases", "prefill", "--peers", "none")
        asked = {"LAMPO_CUDA_ATTENTION": "wgmma"}
        self._run_benchmark("gpu_attention_wgmma", limit, script, [*options], **asked)

    def _model(self, shape: str, form: str, limit: float, *options: str) -> None:
        shape = "tiny" if self._rehearse else shape
        folder = self._models / f"{shape}.{form}"
        make = ROOT / "benchmarks" / "make_random_model.py"
        command = [sys.executable, str(make), shape, str(folder), "--format", form]
        self._session.step(f"write_{shape}.{form}", limit * self._slower, command)
        script = ROOT / "benchmarks" / "bench_gpu_decode.py"
        self._run_benchmark(f"gpu_{shape}.{form}", limit, script, [str(folder), *options])

    def _run_benchmark(
        self, name: str, limit: float, script: Path, options: list[str], **environment: str
    ) -> None:
        json_file = ["--json", str(self._session.out / f"{name}.json")]
        command = [sys.executable, str(script), *options, *self._device, *json_file]
        self._session.step(name, limit * self._slower, command, **environment)

    def _sanitize(self, count: int, seconds: float) -> None:
        if self._rehearse:
            return
        tests = some_tests(count)
        for tool in TOOLS:
            # initcheck has to see what torch's kernels write.
            only = ["--kernel-name", "kns=lampo"] if tool != "initcheck" else []
            command = ["compute-sanitizer", "--tool", tool, "--report-api-errors", "no"]
            command += ["--error-exitcode", "99", *only, sys.executable, "-m", "pytest"]
            command += ["-m", "gpu", "-v", "-p", "no:cacheprovider", *tests]
            # Every tensor has its own allocation, so that accesses beside it are seen.
            self._session.step(tool, seconds, command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def some_tests(count: int) -> list[str]:
    """GPU tests, evenly chosen; none that captures, which torch cannot while its cache of memory is
    off, and none of huge tensors."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--collect-only", "-q"]
    text = subprocess.run([*command, *gpu_test_files()], capture_output=True, text=True, cwd=ROOT)
    unfit = ("cuda_model", "captured", "offsets_beyond", "test_graph")
    ids = [
        line
        for line in text.stdout.splitlines()
        if "::" in line and not any(word in line for word in unfit)
    ]
    return [ids[i * len(ids) // count] for i in range(min(count, len(ids)))]


def architecture() -> str:
    """LAMPO_CUDA_ARCHITECTURES for the first GPU; Hopper's own instructions need the "a"."""
    command = ["nvidia-smi", "--id=0", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        found = ""
    return {"": "90a", "9.0": "90a"}.get(found, found.replace(".", ""))


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("call", choices=SECONDS)
    parser.add_argument("--seconds", type=float, help="time of the call (default: 300; full: 3000)")
    parser.add_argument("--failed", type=Path, help="session.json with the tests to run again")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU")
    args = parser.parse_args(None if arguments is None else list(arguments))
    os.environ |= {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    session = Session(args.out.resolve(), args.seconds or SECONDS[args.call])
    models = Path(os.environ.get("LAMPO_MODELS", f"{tempfile.gettempdir()}/lampo_models"))
    plan = Plan(session, models, rehearse=args.rehearse)
    if args.call == "second":
        plan.second(failed_tests(args.failed) if args.failed else [])
    else:
        getattr(plan, args.call)()
    session.save()
    return int(session.failed)


if __name__ == "__main__":
    sys.exit(main())
