# shellcheck shell=bash
# What the scripts tell the person who waits for them.
started_us=${EPOCHREALTIME/./}

step() { # step WORD...: one line with the time since the script began
  local elapsed_us=$((${EPOCHREALTIME/./} - started_us))
  printf '[%5d.%d s] %s\n' $((elapsed_us / 1000000)) $((elapsed_us / 100000 % 10)) "$*"
}

die() { # die WORD...: says what is wrong and what to do about it
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# wait_for SECONDS WHAT COMMAND...: runs COMMAND until it succeeds, for what has no event to wait for. It may say 3 for never.
wait_for() {
  local until=$((SECONDS + $1)) what=$2 code
  shift 2
  while :; do
    code=0
    "$@" >/dev/null 2>&1 || code=$?
    [ $code != 0 ] || return 0
    if [ $code = 3 ] || [ $SECONDS -ge $until ]; then
      echo "$what: still not so" >&2
      return 1
    fi
    sleep 0.2
  done
}
