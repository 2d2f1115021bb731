#!/usr/bin/env bash
# Is a change slower than what it is based on? All that .github/workflows/perf.yml does after installing, so that it runs locally too.
#
#   .github/perf.sh [CONFIG [BASE [CANDIDATE [OUT]]]] [-- OPTION...]
#
#   CONFIG      a YAML file or the name of a shipped configuration   (or PERF_CONFIG;    else ci)
#   BASE        a revision, folder or wheel                          (or PERF_BASE;      else the merge base with PERF_BRANCH)
#   CANDIDATE   the same; `.` is this folder, uncommitted work too   (or PERF_CANDIDATE; else HEAD)
#   OUT         the folder for what is left                          (or PERF_OUT;       else build/perf)
#   OPTION...   of `attnbench gate`: --factor, --plugin, --max-minutes, --require-conclusive, ...
#
# An argument that is empty counts as not given. PERF_BRANCH is origin/main if not given. `attnbench` must be on PATH:
#   PATH="$PWD/.venv/bin:$PATH" .github/perf.sh ci main . -- --max-minutes 10
#
# It leaves OUT/gate (report.html, verdicts.json, all launches), OUT/comment.md (the body of a comment, whose first line is a marker
# by which a bot finds the one to replace) and OUT/output.txt; adds to $GITHUB_STEP_SUMMARY where that is set, and prints
# annotations in the form that GitHub shows.
#
# What the gate ends with, and what becomes of the job:
#   0     nothing is slower                      passes
#   10    a cell is slower                       fails: the one code that means so
#   13    cells failed, or were lost             fails: the candidate is wrong, crashes, or does not run what the base runs
#   11    inconclusive or contaminated           fails; the gate gives it only with --require-conclusive, else 0
#   12    not comparable                         passes with a warning: nothing was told, and no rerun helps; fails with --require-conclusive
#   14    nothing was measured                   the same: such as the first pull request, whose base has no such cells
#   1     a bug in attnbench                     fails: a gate that is broken must not look like one that is open
#   2     usage or configuration                 fails: to be mended here or in the configuration
#   3     a file cannot be read or written       fails: the runner's disk, or a file that is not there
#   4     no process to measure in started       fails: run the job again
#   130   interrupted, or any other code         fails
set -euo pipefail

positional=()
while (($#)) && [[ $1 != -- ]]; do
  positional+=("$1")
  shift
done
if (($#)); then shift; fi
options=("$@")
if ((${#positional[@]} > 4)) || [[ ${positional[0]:-} == -* ]]; then
  echo "usage: .github/perf.sh [CONFIG [BASE [CANDIDATE [OUT]]]] [-- OPTION...]; its head says more" >&2
  exit 2
fi
config=${positional[0]:-${PERF_CONFIG:-ci}}
base=${positional[1]:-${PERF_BASE:-}}
candidate=${positional[2]:-${PERF_CANDIDATE:-HEAD}}
out=${positional[3]:-${PERF_OUT:-build/perf}}
branch=${PERF_BRANCH:-origin/main}

must_be_conclusive=false
for option in ${options[@]+"${options[@]}"}; do
  if [[ $option == --require-conclusive ]]; then must_be_conclusive=true; fi
done

mkdir -p "$out"
rm -rf "$out/gate" "$out/comment.md" "$out/output.txt"

# What the code means, for people; `fails` is what the job does.
judge() {
  fails=true
  case $code in
    0) fails=false words="Nothing is slower. What could not be told on this machine is INCONCLUSIVE, and no failure." ;;
    10) words="Something is slower." ;;
    13) words="Cells failed, or are lost that the base has." ;;
    11) words="Not everything could be told, and --require-conclusive asks for that." ;;
    12) fails=$must_be_conclusive words="What was asked for cannot be compared." ;;
    14) fails=$must_be_conclusive words="Nothing was measured: no cell runs in both." ;;
    1) words="attnbench has a bug: nothing was told." ;;
    2) words="What was asked for is no gate: see the arguments and the configuration." ;;
    3) words="A file could not be read or written." ;;
    4) words="No process to measure in could be started; what was measured is kept. Run the job again." ;;
    130) words="Interrupted; what was measured is kept." ;;
    *) words="The gate ended in a way that it has no code for." ;;
  esac
}

# The body of a comment: at most 65,536 characters are taken.
write_comment() {
  echo "<!-- attnbench gate: $(tr -cd '[:alnum:]._/-' <<<"$config") -->"
  if [[ -f $out/gate/summary.md ]]; then
    awk -v room=60000 '{ room -= length($0) + 1 } room < 0 { print "\n(cut here; the page has all of it)"; exit } { print }' \
      "$out/gate/summary.md"
  else
    echo "## attnbench gate: no verdict"
  fi
  echo
  echo "$words (code $code)"
  if [[ -n ${GITHUB_RUN_ID:-} ]]; then
    echo
    echo "[The run and its artefacts: the page and every launch]($GITHUB_SERVER_URL/$GITHUB_REPOSITORY/actions/runs/$GITHUB_RUN_ID)"
  fi
}

code=0
if [[ -z $base ]]; then
  tip=$(git rev-parse --verify --quiet "$candidate^{commit}" || git rev-parse --verify HEAD)
  if ! base=$(git merge-base "$tip" "$branch"); then
    echo "perf.sh: no merge base with $branch; fetch it with its history (actions/checkout: fetch-depth: 0), or give a BASE" >&2
    code=2
  fi
fi

folder=
if ((code == 0)); then
  echo "attnbench gate $config: $candidate against $base" >&2
  set +e # Ctrl-C is the gate's, which ends cleanly and says where its folder is
  attnbench gate "$config" --base "$base" --candidate "$candidate" ${options[@]+"${options[@]}"} | tee -i "$out/output.txt"
  code=${PIPESTATUS[0]}
  set -e
  folder=$(tail -n 1 "$out/output.txt")
fi
judge

if [[ -n $folder && -f $folder/gate.json ]]; then
  cp -R "$folder" "$out/gate"
else
  echo "perf.sh: the gate left no folder" >&2
fi
if [[ -f $out/gate/annotations.txt ]]; then cat "$out/gate/annotations.txt"; fi
write_comment >"$out/comment.md"
if [[ -n ${GITHUB_STEP_SUMMARY:-} ]]; then
  if [[ -f $out/gate/summary.md ]]; then cat "$out/gate/summary.md" >>"$GITHUB_STEP_SUMMARY"; fi
  printf '\n%s (code %d)\n' "$words" "$code" >>"$GITHUB_STEP_SUMMARY"
fi

if $fails; then
  echo "::error title=attnbench gate::$words (code $code)"
  exit "$code"
elif ((code)); then
  echo "::warning title=attnbench gate::$words (code $code)"
else
  echo "$words"
fi
