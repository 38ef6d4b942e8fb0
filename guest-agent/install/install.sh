#!/bin/sh
# Installs Tandem's guest agent from the directory that this file is in, and starts it: systemd or OpenRC. To be run by root; again is fine.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
program=/usr/local/sbin/tandem-guest-agent

mkdir -p "${program%/*}"
# Under another name first: a program that runs cannot be written to.
cp "$here/tandem-guest-agent" "$program.new"
chmod 755 "$program.new"
mv "$program.new" "$program"
# With SELinux a file has the label of the directory that it was made in, unless it is told.
if command -v restorecon >/dev/null; then restorecon "$program"; fi

if [ -d /run/systemd/system ]; then
  cp "$here/tandem-guest-agent.service" /etc/systemd/system/
  systemctl daemon-reload
  systemctl enable tandem-guest-agent.service
  systemctl restart tandem-guest-agent.service
elif command -v rc-update >/dev/null; then
  cp "$here/tandem-guest-agent.openrc" /etc/init.d/tandem-guest-agent
  chmod 755 /etc/init.d/tandem-guest-agent
  rc-update add tandem-guest-agent default
  rc-service tandem-guest-agent restart
else
  echo "install.sh: neither systemd nor OpenRC: have your init run $program, and again whenever it ends" >&2
  exit 1
fi
