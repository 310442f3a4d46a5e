#!/usr/bin/env bash
# What only a machine with an NVIDIA GPU can show: builds the CUDA ops, tests them, benchmarks them, alone and in whole
# detectors, and runs them under compute-sanitizer. Unattended, without network, on the Python and the torch that are
# installed.
#
#   scripts/gpu_check.sh OUT [STAGE...]
#
# By default all stages run, in this order:
#
#   build                                       the CUDA ops, in place, for the GPU that is there
#   cuda                                        tests/ops/test_cuda.py: what only a GPU shows
#   values                                      the other tests of the ops, on CUDA
#   quick                                       a benchmark of DGFE in bfloat16, five minutes at most
#   models                                      the tests of the detectors, on CUDA
#   memcheck synccheck initcheck racecheck      every op under that tool of compute-sanitizer
#   benchmarks                                  of all ops
#   detectors                                   benchmarks of whole ones
#
# Prints what the stages print. OUT gets <stage>.log, JSON of each benchmark, and table.md of all the JSON that is there.
# A stage that fails, or that something is missing for, does not keep the others from running. The last lines are a
# summary with the first failures of each stage; the exit status tells whether all passed. Each stage may take nine
# minutes: where a command may not take longer, call them one by one. Environment variables:
#
#   PYTHON            the interpreter (python3)
#   STAGE_SECONDS     a stage is stopped after this time (540)
#   BENCHMARKS        which files `benchmarks` runs, for example "bench_dgfe"; by default all but bench_detectors
#   SRTOD_COMMIT      what is being tested; needed where the tree comes without its history
#   MAX_JOBS, TORCH_CUDA_ARCH_LIST, CUDA_HOME   as for every build, see CONTRIBUTING.md
set -Eeuo pipefail

stages=(build cuda values quick models memcheck synccheck initcheck racecheck benchmarks detectors)
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
export PYTHONPATH="$root:$root/scripts${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 SRTOD_CUDA=1
export MAX_JOBS=${MAX_JOBS:-$(nproc)}
unset SRTOD_REFERENCE SRTOD_COOPERATIVE

# --- what is missing ------------------------------------------------------------------------------------------------

# What no stage can do without.
check_prerequisites() {
  command -v "$python" > /dev/null || fail "there is no $python; PYTHON=... names another interpreter"
  "$python" - << 'END' || exit 2
import sys

def fail(problem: str) -> None:
    sys.exit(f"gpu_check: {problem}")

if sys.version_info < (3, 10):
    fail(f"Python 3.10 or newer is needed, and {sys.executable} is {sys.version.split()[0]}")
try:
    import torch
except ImportError as error:
    fail(f"{sys.executable} cannot import torch ({error}): pip install torch")
if torch.version.cuda is None:
    fail(f"torch {torch.__version__} is built without CUDA: pip install torch --force-reinstall "
         "--index-url https://download.pytorch.org/whl/cu130")
if not torch.cuda.is_available():
    fail("no GPU: torch sees none (does nvidia-smi list one? does the driver suit "
         f"torch {torch.__version__}, CUDA {torch.version.cuda}?)")
END
}

# Prints what keeps this stage from running, with its cure; nothing if it can run.
what_is_missing() {
  "$python" - "$1" << 'END'
import importlib.util
import sys

stage = sys.argv[1]
modules = {"setuptools": {"build"}, "ninja": {"build"},
           "pytest": {"cuda", "values", "quick", "models", "benchmarks", "detectors"}, "hypothesis": {"values"},
           "torchvision": {"models", "detectors"}, "pycocotools": {"models"},
           "pytest_benchmark": {"quick", "benchmarks", "detectors"}}
missing = [name.replace("_", "-") for name, users in modules.items()
           if stage in users and importlib.util.find_spec(name) is None]
if missing:
    print(f"{sys.executable} lacks {', '.join(missing)}: pip install {' '.join(missing)}")
elif stage == "build":
    import setuptools

    if int(setuptools.__version__.split(".")[0]) < 77:
        print(f"setuptools {setuptools.__version__} is too old: pip install 'setuptools>=77'")
END
  case $1 in
    build)
      if ! command -v nvcc > /dev/null && [[ ! -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]]; then
        echo "no nvcc: put the CUDA toolkit's bin folder on the PATH, or name the toolkit in CUDA_HOME"
      fi
      command -v "${CXX:-g++}" > /dev/null || echo "no C++ compiler: install g++, or name one in CXX"
      ;;
    *check)
      [[ $(sanitizer) ]] || echo "no compute-sanitizer, which is part of the CUDA toolkit: put its bin folder on the PATH"
      ;;
    quick | benchmarks | detectors)
      if [[ -z ${SRTOD_COMMIT:-} ]] && ! git -C "$root" rev-parse HEAD > /dev/null 2>&1; then
        echo "results need a commit: the tree has no history, so name it in SRTOD_COMMIT"
      fi
      ;;
  esac
}

sanitizer() {
  command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2> /dev/null || true
}

# --- the stages -----------------------------------------------------------------------------------------------------

need_cuda_ops() {
  "$python" -c 'import sys; from srtod import ops; sys.exit(not ops.is_fused("cuda"))' && return
  "$python" -m srtod.info
  echo "the CUDA ops are not usable (see above); the stage \`build\` builds them"
  return 1
}

seconds_left() { # keeps some for the test that runs, and to write results in
  local left=$((stage_seconds - stage_seconds / 10 - 5 - SECONDS))
  echo $((left > 1 ? left : 1))
}

run_pytest() {
  "$python" -m pytest -p pytest_unattended --seconds "$(seconds_left)" -k cuda -q -p no:cacheprovider "$@"
}

# The ids of all cases on CUDA have "cuda" in them, as has tests/ops/test_cuda.py.
cuda_tests() {
  need_cuda_ops || return
  run_pytest -m "not slow" --tb short --durations 15 "$@" || return
  if ! grep -Eq '[1-9][0-9]* passed' "$out/$GPU_CHECK_STAGE.log"; then
    echo "no test ran on the GPU: all were skipped"
    return 1
  fi
}

run_build() {
  nvcc --version || true
  "$python" setup.py build_ext --inplace
  "$python" -m srtod.info
  need_cuda_ops
}

run_cuda() {
  cuda_tests tests/ops/test_cuda.py
}

run_values() { # the comparison with the reference first
  local status=0
  cuda_tests tests/ops/test_reference.py || status=$?
  cuda_tests tests/ops --ignore tests/ops/test_cuda.py --ignore tests/ops/test_reference.py || status=$?
  return "$status"
}

run_models() {
  cuda_tests tests/models
}

# Nothing is filtered by kernel: initcheck has to see PyTorch's kernels write what srtod's read. Without PyTorch's cache
# each tensor is an allocation of its own, so that memcheck sees an access beyond it. Errors that CUDA's functions
# return are PyTorch's to judge; srtod checks its own.
sanitize() {
  need_cuda_ops
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$(sanitizer)" --tool "$1" --error-exitcode 9 --print-limit 50 \
    --report-api-errors no "$python" scripts/sanitize_ops.py --seconds "$(seconds_left)"
}

run_memcheck() { sanitize memcheck; }
run_synccheck() { sanitize synccheck; }
run_initcheck() { sanitize initcheck; }
run_racecheck() { sanitize racecheck; }

# One file of benchmarks/, with options of pytest.
measure() {
  local name=$1
  shift
  run_pytest "benchmarks/$name.py" --benchmark-json "$out/$name.json" "$@"
}

run_quick() {
  need_cuda_ops
  stage_seconds=$((stage_seconds < 300 ? stage_seconds : 300))
  run_pytest benchmarks/bench_dgfe.py -k "cuda and bfloat16 and not (eager or compile or authors)" --rounds 5 \
    --benchmark-json "$out/quick.json"
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

# --- all of them ----------------------------------------------------------------------------------------------------

# Ends by itself before its time is over, if nothing hangs; then pytest gets a chance to sum up before all is killed.
run_stage() {
  GPU_CHECK_STAGE=$1 timeout --signal INT --kill-after 20 "$stage_seconds" bash "$root/scripts/gpu_check.sh" "$out" \
    > "$out/$1.log" 2>&1
}

check_prerequisites
summary=()
exit_status=0
for stage in "${stages[@]}"; do
  start=$SECONDS
  log=$out/$stage.log
  echo "=== $stage, see $log"
  missing=$(what_is_missing "$stage" 2>&1) || missing=${missing:-its prerequisites cannot be checked}
  if [[ $missing ]]; then
    echo "$missing"
    summary+=("$stage: NOT RUN: $missing")
    exit_status=1
    continue
  fi
  : > "$log"
  tail -n +1 -s 0.2 -f "$log" &
  follower=$!
  status=0
  run_stage "$stage" || status=$?
  sleep 0.5
  kill "$follower" 2> /dev/null || true
  wait "$follower" 2> /dev/null || true
  case $status in
    0) result=passed ;;
    124 | 137) result="FAILED: stopped after STAGE_SECONDS=$stage_seconds" ;;
    *) result="FAILED with status $status" ;;
  esac
  counts=$({ grep -E '^[0-9]+ (passed|failed|skipped|deselected|error).* in |^every op ran in|^sanitize_ops: ' "$log" ||
    true; } | paste -sd ';')
  summary+=("$stage: $result in $((SECONDS - start)) s${counts:+ ($counts)}")
  if [[ $status -ne 0 ]]; then
    exit_status=1
    # The first failures, or where the stage is none of tests its last lines.
    first=$({ grep -E '^FAILED .* after |^========= .*(Invalid|Error|hazard)|the [0-9]+ seconds are over' "$log" || true; } |
      head -n 4)
    while read -r line; do
      summary+=("    ${line:0:200}")
    done <<< "${first:-$(grep . "$log" | tail -n 3)}"
  fi
done

results=("$out"/bench_*.json)
[[ -e $out/bench_dgfe.json || ! -e $out/quick.json ]] || results+=("$out/quick.json")
if [[ -e ${results[-1]} ]]; then
  if "$python" benchmarks/report.py "${results[@]}" > "$out/table.md"; then
    head -n 40 "$out/table.md"
  else
    exit_status=1
    summary+=("table.md: FAILED, for want of results")
  fi
fi
echo "=== summary"
printf '%s\n' "${summary[@]}"
exit "$exit_status"
