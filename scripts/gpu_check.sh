#!/usr/bin/env bash
# What only a machine with an NVIDIA GPU can show: builds the CUDA ops, tests them, runs them under compute-sanitizer
# and benchmarks them, alone and in whole detectors. Unattended, without network, on the Python and the torch that are
# installed.
#
#   scripts/gpu_check.sh OUT [STAGE...]
#
# The stages are build, tests, models, sanitizer, benchmarks (of the ops) and detectors (whole ones, benchmarked); by
# default all run. OUT gets <stage>.log, JSON of each file of benchmarks, and table.md of all the JSON that is there. A
# failing stage does not keep the later ones from running; the exit status tells whether all passed, and the last lines
# are a summary. Each stage may take nine minutes: where a command may not take longer, call them one by one.
# Environment variables:
#
#   PYTHON            the interpreter (python3)
#   STAGE_SECONDS     a stage is stopped after this time (540)
#   BENCHMARKS        which files `benchmarks` runs, for example "bench_dgfe"; by default all but bench_detectors
#   SRTOD_COMMIT      what is being tested; needed where the tree comes without its history
#   MAX_JOBS, TORCH_CUDA_ARCH_LIST, CUDA_HOME   as for every build, see CONTRIBUTING.md
set -Eeuo pipefail

stages=(build tests models sanitizer benchmarks detectors)
python=${PYTHON:-python3}
stage_seconds=${STAGE_SECONDS:-540}
benchmarks=${BENCHMARKS:-bench_dgfe bench_difference_map}

fail() {
  echo "gpu_check: $1" >&2
  exit 2
}

usage() {
  fail "usage: scripts/gpu_check.sh OUT [STAGE...], where a stage is one of: ${stages[*]}"
}

[[ $# -ge 1 && $1 != -* ]] || usage
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
if [[ $# -gt 0 ]]; then
  for stage in "$@"; do
    [[ " ${stages[*]} " == *" $stage "* ]] || usage
  done
  stages=("$@")
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 SRTOD_CUDA=1
export MAX_JOBS=${MAX_JOBS:-$(nproc)}
unset SRTOD_REFERENCE SRTOD_COOPERATIVE

wants() {
  [[ " ${stages[*]} " == *" $1 "* ]]
}

wants_table() {
  wants benchmarks || wants detectors
}

# Says all that is missing, each with its cure, before anything runs.
check_prerequisites() {
  command -v "$python" > /dev/null || fail "there is no $python; PYTHON=... names another interpreter"
  "$python" - "${stages[@]}" << 'END' || exit 2
import importlib.util
import sys

stages = set(sys.argv[1:])
modules = {"torch": stages, "setuptools": {"build"}, "ninja": {"build"},
           "pytest": {"tests", "models", "benchmarks", "detectors"}, "hypothesis": {"tests"},
           "torchvision": {"models", "detectors"}, "pycocotools": {"models"},
           "pytest_benchmark": {"benchmarks", "detectors"}}
missing = [name.replace("_", "-") for name, users in modules.items() if users & stages
           and importlib.util.find_spec(name) is None]
problems = []
if missing:
    problems.append(f"{sys.executable} lacks {', '.join(missing)}: pip install {' '.join(missing)}")
if sys.version_info < (3, 10):
    problems.append(f"Python 3.10 or newer is needed, and {sys.executable} is {sys.version.split()[0]}")
if "torch" not in missing:
    import torch

    if torch.version.cuda is None:
        problems.append(f"torch {torch.__version__} is built without CUDA: pip install torch --force-reinstall "
                        "--index-url https://download.pytorch.org/whl/cu130")
    elif not torch.cuda.is_available():
        problems.append("no GPU: torch sees none (does nvidia-smi list one? does the driver suit "
                        f"torch {torch.__version__}, CUDA {torch.version.cuda}?)")
if "build" in stages and "setuptools" not in missing:
    import setuptools

    if int(setuptools.__version__.split(".")[0]) < 77:
        problems.append(f"setuptools {setuptools.__version__} is too old: pip install 'setuptools>=77'")
for problem in problems:
    print(f"gpu_check: {problem}", file=sys.stderr)
sys.exit(bool(problems))
END
  if wants build && ! command -v nvcc > /dev/null && [[ ! -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]]; then
    fail "no nvcc: put the CUDA toolkit's bin folder on the PATH, or name the toolkit in CUDA_HOME"
  fi
  if wants build && ! command -v "${CXX:-g++}" > /dev/null; then
    fail "no C++ compiler: install g++, or name one in CXX"
  fi
  if wants_table && [[ -z ${SRTOD_COMMIT:-} ]] && ! git -C "$root" rev-parse HEAD > /dev/null 2>&1; then
    fail "results need a commit: the tree has no history, so name it in SRTOD_COMMIT"
  fi
}

sanitizer() {
  command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2> /dev/null || true
}

need_cuda_ops() {
  "$python" -c 'import sys; from srtod import ops; sys.exit(not ops.is_fused("cuda"))' && return
  "$python" -m srtod.info
  echo "the CUDA ops are not usable (see above); the stage \`build\` builds them"
  return 1
}

run_build() {
  nvcc --version || true
  "$python" setup.py build_ext --inplace
  "$python" -m srtod.info
  need_cuda_ops
}

# The ids of all cases on CUDA have "cuda" in them, as has tests/ops/test_cuda.py.
cuda_tests() {
  need_cuda_ops
  "$python" -m pytest "tests/$1" -m "not slow" -k cuda -q -p no:cacheprovider --durations 15
  if ! grep -Eq '[1-9][0-9]* passed' "$out/$GPU_CHECK_STAGE.log"; then
    echo "no test ran on the GPU: all were skipped"
    return 1
  fi
}

run_tests() {
  cuda_tests ops
}

run_models() {
  cuda_tests models
}

# Nothing is filtered by kernel: initcheck has to see PyTorch's kernels write what srtod's read. Without PyTorch's cache
# each tensor is an allocation of its own, so that memcheck sees an access beyond it.
run_sanitizer() {
  need_cuda_ops
  if [[ -z $(sanitizer) ]]; then
    echo "no compute-sanitizer, which is part of the CUDA toolkit: put its bin folder on the PATH"
    return 1
  fi
  local tool failed=0
  for tool in memcheck racecheck initcheck synccheck; do
    echo "--- $tool, stopped after $((stage_seconds / 4 - 5)) s"
    # Errors that CUDA's functions return are PyTorch's to judge; srtod checks its own.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout --kill-after 5 $((stage_seconds / 4 - 5)) \
      "$(sanitizer)" --tool "$tool" --error-exitcode 9 --print-limit 50 --report-api-errors no \
      "$python" scripts/sanitize_ops.py || {
        echo "$tool FAILED with status $?"
        failed=1
      }
  done
  return "$failed"
}

# One file of benchmarks/, with options of pytest. Interrupted, pytest still writes what it has.
measure() {
  local name=$1 left=$((stage_seconds - 15 - SECONDS))
  shift
  timeout --signal INT --kill-after 10 $((left > 1 ? left : 1)) \
    "$python" -m pytest "benchmarks/$name.py" -k cuda -q -p no:cacheprovider --benchmark-json "$out/$name.json" "$@"
}

run_benchmarks() {
  need_cuda_ops
  local name status=0 # if one comparison fails, or time is up, the others still make a table
  local -a files
  read -ra files <<< "$benchmarks"
  for name in "${files[@]}"; do
    measure "$name" || status=$?
  done
  return "$status"
}

run_detectors() {
  need_cuda_ops
  measure bench_detectors --rounds 5
}

# Runs one stage in a shell of its own, where a failing command ends the stage and nothing else.
if [[ ${GPU_CHECK_STAGE:-} ]]; then
  "run_$GPU_CHECK_STAGE"
  exit
fi

check_prerequisites
summary=()
exit_status=0
for stage in "${stages[@]}"; do
  start=$SECONDS
  echo "=== $stage, see $out/$stage.log"
  status=0
  GPU_CHECK_STAGE=$stage timeout --kill-after 10 "$stage_seconds" bash "$root/scripts/gpu_check.sh" "$out" \
    > "$out/$stage.log" 2>&1 || status=$?
  case $status in
    0) result=passed ;;
    124 | 137) result="FAILED: stopped after STAGE_SECONDS=$stage_seconds" ;;
    *) result=FAILED ;;
  esac
  if [[ $status -ne 0 ]]; then
    exit_status=1
    tail -n 25 "$out/$stage.log" | cut -c 1-300
  fi
  summary+=("$stage: $result in $((SECONDS - start)) s")
done

if wants_table; then
  results=("$out"/bench_*.json)
  if [[ -e ${results[0]} ]] && "$python" benchmarks/report.py "${results[@]}" > "$out/table.md"; then
    head -n 40 "$out/table.md"
  else
    exit_status=1
    summary+=("table.md: FAILED, for want of results")
  fi
fi
echo "=== summary"
for stage in tests models benchmarks detectors; do
  wants "$stage" && grep -E '[0-9]+ (passed|failed|skipped).* in ' "$out/$stage.log" | tail -n 1 | sed "s/^/$stage: /"
done || true
printf '%s\n' "${summary[@]}"
exit "$exit_status"
