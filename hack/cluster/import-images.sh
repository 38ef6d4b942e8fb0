#!/usr/bin/env bash
# Imports image archives into the containerd that CONTAINERD_ADDRESS names, but those that it has already:
#   import-images.sh RECORDS ARCHIVE...
# RECORDS is a directory beside containerd's store, with the digest of the archive of each name that was imported last.
set -euo pipefail
records=$1
shift
mkdir -p "$records"
for archive; do
  [ -e "$archive" ] || continue # a pattern that matched nothing
  record=$records/$(basename "$archive")
  digest=$(sha256sum <"$archive" | cut -d' ' -f1)
  [ "$(cat "$record" 2>/dev/null)" != "$digest" ] || continue
  said=$(ctr --namespace k8s.io images import --local "$archive" 2>&1) || { # silent where it is well
    printf 'cannot import %s: %s\n' "$archive" "$said" >&2
    exit 1
  }
  echo "$digest" >"$record"
done
