# shellcheck shell=bash
# Sourced by smoke and keep, in this directory.

# build [TARGET...]: builds all targets; sets `targets` to these, or to all, and `binaries` to where they are.
# The sanitizer is an unstable option of the compiler that the project is built with: no second one is needed.
build() {
  export RUSTC_BOOTSTRAP=1
  cargo fuzz --version >/dev/null 2>&1 || { echo "fuzz: installing cargo-fuzz" && cargo install --locked --quiet cargo-fuzz@0.13.2; }
  targets=("$@")
  [ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cargo fuzz list --fuzz-dir .)
  echo "fuzz: building" >&2
  cargo fuzz build --fuzz-dir . >&2
  # shellcheck disable=SC2034 # the scripts that source this
  binaries=${CARGO_TARGET_DIR:-target}/x86_64-unknown-linux-gnu/release
}

# find_inputs TARGET DIRECTORY: sets `inputs` to the directories with a target's inputs; what is kept of its corpus is unpacked below DIRECTORY.
# The first is corpus/TARGET, where new ones go.
find_inputs() {
  local kept=$2/$1.kept
  mkdir -p "corpus/$1" "$kept"
  [ ! -f "corpora/$1.tar.xz" ] || tar -C "$kept" -xJf "corpora/$1.tar.xz"
  # shellcheck disable=SC2034 # the scripts that source this
  inputs=("corpus/$1" "$kept")
  [ ! -d "seeds/$1" ] || inputs+=("seeds/$1")
}
