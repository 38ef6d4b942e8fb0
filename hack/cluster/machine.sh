# shellcheck shell=bash
# What this machine must have before anything can be built or started on it.

readonly least_go=1.26 least_rust=1.95

check_machine() {
  [ "$(id -u)" = 0 ] || die "must be root: it makes namespaces, mounts and cgroups. Try: sudo -E $0"
  [ "$(uname -sm)" = "Linux x86_64" ] || die "needs Linux on x86-64; this is $(uname -sm)"
  command -v apt-get >/dev/null || die "needs Debian 12 or a system like it, with apt"
  check_version go $least_go "$(go env GOVERSION 2>/dev/null | sed 's/^go//')" "get it from https://go.dev/dl/ and put its bin on PATH"
  check_version rustc $least_rust "$(rustc --version 2>/dev/null | cut -d' ' -f2)" "get it from https://rustup.rs, or: rustup update stable"
}

check_version() { # check_version PROGRAM LEAST FOUND HOW_TO_GET_IT
  [ -n "$3" ] || die "needs $1 $2 or newer, and finds none on PATH: $4"
  printf '%s\n' "$2" "$3" | sort --version-sort --check=quiet || die "needs $1 $2 or newer, and finds $3: $4"
}

# What the scripts here and the ones that they call need, beyond what every Debian has.
readonly debian_packages=(busybox-static ca-certificates conntrack cpio curl debian-archive-keyring e2fsprogs gcc iproute2 kmod libblkid-dev
  libc6-dev libseccomp-dev mmdebstrap mount nftables openssh-client openssl pkg-config procps qemu-system-x86 socat util-linux)

install_packages() { # only what is missing, and with archives of our own: two apt-get at once can lose each other's
  local installed package
  local -a missing=()
  installed=$(dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p')
  for package in "${debian_packages[@]}" "$@"; do grep -qxF "$package" <<<"$installed" || missing+=("$package"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  step "installing Debian packages: ${missing[*]}"
  mkdir -p "$cache/apt-install/partial"
  {
    apt-get -q -o DPkg::Lock::Timeout=600 update
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 -o Dir::Cache::archives="$cache/apt-install" \
      --no-install-recommends install "${missing[@]}"
  } >"$cache/apt-install/log" 2>&1 || die "apt-get could not install ${missing[*]}; see $cache/apt-install/log"
}

cpu_has_kvm() { # whether this machine's /dev/kvm can boot an ordinary kernel: a paravirtual one comes without either flag
  grep -qwE 'vmx|svm' /proc/cpuinfo && [ -c /dev/kvm ]
}
