# shellcheck shell=bash
# The root file system of the emulated node: Debian's packages, its cloud kernel's modules and the cluster's components. See
# emulated-disk.sh for the disk that it becomes.

readonly emulated_packages=(ca-certificates conntrack curl e2fsprogs ethtool iproute2 kmod mount nftables openssh-server procps strace)

digest_of() { sha256sum | cut -c1-16; } # of its standard input

emulated_packages_archive() { # prints a tar of Debian's packages alone
  local archive temporary
  archive=$cache/emulated/packages-$(printf '%s\n' "${emulated_packages[@]}" bookworm 1 | digest_of).tar
  if [ ! -s "$archive" ]; then
    temporary=$(mktemp -d "$cache/emulated/.new-XXXXXX")
    "$hack/images/debian" tree "$temporary/root" --variant=minbase \
      --include="$(IFS=, && echo "${emulated_packages[*]}")" \
      --dpkgopt=path-exclude=/usr/share/doc/* --dpkgopt=path-exclude=/usr/share/man/* \
      --dpkgopt=path-exclude=/usr/share/locale/* >&2
    rm -rf "$temporary"/root/{var/cache/apt,var/lib/apt/lists,etc/ssh/ssh_host_*}
    tar --create --file "$archive.new" --directory "$temporary/root" --exclude='./dev/*' --xattrs .
    mv "$archive.new" "$archive"
    rm -rf --one-file-system "$temporary"
  fi
  echo "$archive"
}

make_emulated_tree() { # make_emulated_tree TREE KERNEL: KERNEL is what hack/guest/kernel printed
  local tree=$1 kernel=$2 packages
  packages=$(emulated_packages_archive)
  mkdir -p "$tree"
  tar --extract --file "$packages" --directory "$tree" --xattrs
  cp -a "$kernel/lib/modules" "$tree/lib/"
  mkdir -p "$tree"/opt/node/bin/cni "$tree"/var/lib/{containerd,kubelet}
  cp "$components"/{containerd,containerd-shim-runc-v2,ctr,runc,kubelet,kube-proxy} "$tree/opt/node/bin/"
  cp "$components"/cni/* "$tree/opt/node/bin/cni/"
  # The rest of the start comes with each power-on, so that a change there needs no new disk.
  cat >"$tree/sbin/node" <<'INIT'
#!/bin/sh
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/node
tar xf /dev/vdb -C /run/node
exec /run/node/emulated-node-init.sh
INIT
  chmod 755 "$tree/sbin/node"
}

# Unpacking an image in the emulated machine would take twenty times as long: a native containerd does it, whose root is the tree's.
preload_images() { # preload_images TREE ARCHIVE...
  local tree=$1 scratch
  shift
  scratch=$(mktemp -d "$cache/emulated/.new-XXXXXX")
  cat >"$scratch/config.toml" <<CONFIG
version = 3
root = "$tree/var/lib/containerd"
state = "$scratch"
oom_score = 0
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$scratch/containerd.sock"
CONFIG
  # Its mounts, and it itself, end with this process's namespaces, whatever happens.
  # shellcheck disable=SC2016 # expanded in those namespaces
  unshare --mount --pid --fork --kill-child --mount-proc bash -euc '
    log=$1/log
    export CONTAINERD_ADDRESS=$1/containerd.sock CONTAINERD_NAMESPACE=k8s.io
    containerd --config "$1/config.toml" >"$log" 2>&1 &
    daemon=$!
    records=$2 import=$3
    shift 3
    until ctr version >/dev/null 2>&1; do
      kill -0 $daemon || { cat "$log" >&2; exit 1; }
      sleep 0.1
    done
    "$import" "$records" "$@" >/dev/null
    kill $daemon
    wait $daemon || true' preload "$scratch" "$tree/var/lib/containerd/imported" "$hack/cluster/import-images.sh" "$@"
  rm -rf "$scratch"
}

make_initrd() { # make_initrd KERNEL FILE: mounts the disk and goes there
  local kernel=$1 file=$2 scratch version module number=10
  version=$(basename "$kernel"/lib/modules/*)
  scratch=$(mktemp -d "$cache/emulated/.new-XXXXXX")
  mkdir "$scratch"/{bin,dev,proc,root,modules}
  cp /usr/bin/busybox "$scratch/bin/"
  for module in virtio_pci virtio_blk ext4; do modprobe --dirname "$kernel" --set-version "$version" --show-depends $module; done |
    awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r module; do
    cp "$module" "$scratch/modules/$((number++))-$(basename "$module")"
  done
  cat >"$scratch/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do insmod "$module"; done
mount -t ext4 -o rw,noatime /dev/vda /root
mount --move /dev /root/dev
mount --move /proc /root/proc
exec switch_root /root /sbin/node
INIT
  chmod 755 "$scratch/init"
  (cd "$scratch" && find . | cpio --quiet --create --format newc) | gzip -1 >"$file"
  rm -rf "$scratch"
}
