# shellcheck shell=bash
# For hack/kvm-test/run and hack/bench-machine/run: the initramfs that emulated machines and their small guests start from, and what keeps
# such a machine awake. To be sourced.

# modules KERNEL TREE LIST NAME...: copies modules of a kernel (hack/guest/kernel) and what they depend on into TREE, and lists them there in
# the order of insmod.
modules() {
  local kernel=$1 tree=$2 list=$3 version
  shift 3
  version=$(basename "$(readlink "$kernel/vmlinuz")")
  mkdir -p "$tree/modules"
  modprobe --dirname="$kernel" --set-version="${version#vmlinuz-}" --show-depends --all "$@" |
    awk '$1 == "insmod" && !seen[$2]++ { print $2 }' |
    while read -r module; do
      cp "$module" "$tree/modules/"
      basename "$module"
    done >"$tree/modules/$list"
}

# initramfs TREE FILE: packs a tree that has an init, with busybox.
initramfs() {
  mkdir -p "$1"/{bin,dev,proc,sys,tmp}
  cp "$(command -v busybox)" "$1/bin/busybox"
  (cd "$1" && find . -print0 | cpio --quiet --null --create --format=newc --owner=0:0) >"$2"
}

# heartbeat: what an emulated machine's serial port hears. QEMU's emulation of SVM loses an interrupt once in some hours, after which an idle
# machine sleeps for ever: another interrupt wakes it.
heartbeat() {
  trap '' PIPE # the machine's end is no failure of this
  while sleep 2 && echo; do :; done 2>/dev/null
}
