# SPDX-License-Identifier: Apache-2.0
# Sourced by scripts/quickstart, scripts/test and .ci/run, in the repository root.
#
#   setup [EXTRA...]   makes .venv hold this tree's lampo with these extras of pyproject.toml
#
# Does nothing where that is so already: .venv/lampo-stamp holds a hash of everything that goes into
# the build, and the extras. PYTHON names the interpreter of a new .venv (python3); LAMPO_CUDA and
# the usual variables of CMake and pip are respected. Says what it does on stderr.

say() { printf '%s\n' "$*" >&2; }

die() {
  say "$*"
  exit 1
}

# stage NAME COMMAND...: shows what the command is at, then the time it took, or the end of what it
# printed, all of which is in build/setup.log.
stage() {
  local name=$1 start=$SECONDS log=build/setup.log status=0
  shift
  if [ -t 2 ]; then printf '%-32s' "$name" >&2; fi
  "$@" 2>&1 </dev/null | tee "$log" | progress "$name" || status=$?
  if [ -t 2 ]; then printf '\r\033[K' >&2; fi
  if [ "$status" -eq 0 ]; then
    say "$(printf '%-32s%d s' "$name" $((SECONDS - start)))"
  else
    say "$(printf '%-32sfailed after %d s:' "$name" $((SECONDS - start)))"
    tail -n 40 "$log" >&2
    die "All of it is in $log."
  fi
}

# progress NAME: the latest line of stdin and the seconds so far, in place on a terminal, elsewhere
# every progress_seconds. Of a compilation the line is Ninja's count and the file.
progress_seconds=15
progress() {
  local name=$1 start=$SECONDS next=$progress_seconds line='' part text width now
  width=$(stty size <&2 2>/dev/null) || true
  width=${width#* }
  [ "${width:-0}" -ge 40 ] || width=80
  while true; do
    part=''
    if IFS= read -r -t 1 part; then
      part=${part%$'\r'}
      part=${part#"${part%%[! ]*}"}
      part=${part/Building *CMakeFiles\//}
      line=${part:-$line}
    elif [ $? -le 128 ]; then # the end; above: a second without a line
      break
    fi
    now=$((SECONDS - start))
    printf -v text '%-32s%d s  %s' "$name" "$now" "$line"
    if [ -t 2 ]; then
      printf '\r\033[K%s' "${text:0:width-1}" >&2
    elif [ "$now" -ge "$next" ]; then
      next=$((now + progress_seconds))
      say "${text:0:120}"
    fi
  done
}

sha256() { if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi; }

# Everything that an installed lampo depends on, as one line.
build_key() {
  {
    find CMakeLists.txt pyproject.toml constraints.txt cmake csrc python tests/hooks -type f \
      ! -name '*.so' ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 cat
    find CMakeLists.txt cmake csrc python tests/hooks -type f ! -name '*.so' ! -name '*.pyc' | LC_ALL=C sort
    pwd && readlink .venv/bin/python || true
    for name in LAMPO_CUDA LAMPO_CUDA_ARCHITECTURES LAMPO_WERROR LAMPO_TEST_HOOKS CC CXX CXXFLAGS CUDACXX CUDAHOSTCXX CUDA_HOME \
      CMAKE_ARGS SKBUILD_CMAKE_DEFINE; do
      printf '%s=%s\n' "$name" "${!name-}"
    done
  } | sha256 | cut -c 1-64
}

make_venv() {
  local python=${PYTHON:-python3}
  command -v "$python" >/dev/null || die "lampo needs Python 3.10 or newer; $python was not found."
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "lampo needs Python 3.10 or newer; $python is $("$python" -V 2>&1). PYTHON names another one."
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$python lacks venv or pip (Debian, Ubuntu: apt-get install python3-venv)."
  # Not over one that a stopped run left half-made.
  stage "Python environment in .venv" "$python" -m venv --clear .venv
}

check_compiler() {
  local compiler=${CXX:-}
  if [ -z "$compiler" ]; then
    compiler=$(command -v c++ || command -v g++ || command -v clang++) ||
      die "lampo needs a C++20 compiler (Debian, Ubuntu: apt-get install g++)."
  fi
  echo 'static_assert(__cplusplus > 201703L);' | ${compiler} -std=c++20 -x c++ -fsyntax-only - 2>/dev/null ||
    die "lampo needs a C++20 compiler; $compiler is none (g++ 11 and clang++ 14 are). CXX names another one."
  .venv/bin/python -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    die "Python's C headers are missing (Debian, Ubuntu: apt-get install python3-dev)."
}

# CMake 3.24 or newer, from pip unless the system has one.
cmake_requirement() {
  local version
  version=$(cmake --version 2>/dev/null | sed -n 's/^cmake version //p') || true
  [ "$(printf '%s\n' 3.24 "${version:-0}" | sort -V | head -n 1)" = 3.24 ] || echo 'cmake>=3.24'
}

setup() {
  mkdir -p build
  if command -v flock >/dev/null; then # one set-up at a time
    exec 9>build/setup.lock
    flock -n 9 || { say "Waiting for another set-up to end." && flock 9; }
  fi
  .venv/bin/python -c 'import pip' 2>/dev/null || make_venv
  local key extras stamp=.venv/lampo-stamp
  key=$(build_key)
  # Extras stay once they are installed.
  extras=$(printf '%s\n' $(sed -n 2p "$stamp" 2>/dev/null) "$@" | sort -u | xargs)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$(printf '%s\n' "$key" "$extras")" ]; then
    check_compiler
    # torch first and by name: whatever asks for a range of versions later is content with this one.
    local pip=(.venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt)
    stage "torch and build tools" "${pip[@]}" torch scikit-build-core pybind11 ninja \
      $(cmake_requirement)
    # Verbose, else pip keeps to itself what CMake and Ninja print.
    stage "lampo: compile and install" "${pip[@]}" -v --no-build-isolation ".${extras:+[${extras// /,}]}"
    sed -n 's/^ *-- lampo: \(CUDA backend .*\)/\1/p' build/setup.log >&2
    printf '%s\n' "$key" "$extras" >"$stamp.new"
    mv "$stamp.new" "$stamp"
  fi
  exec 9>&-
}
