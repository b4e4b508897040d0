#!/usr/bin/env bash
# ONNX Runtime's wheels have no headers. This unpacks those of Debian's libonnxruntime-dev into the folder $1, without
# installing anything: by an apt folder of its own, since the package came with Debian 13.
set -euo pipefail
target=$1
[ ! -e "$target/usr/include/onnxruntime/onnxruntime_cxx_api.h" ] || exit 0
command -v apt-get > /dev/null || { echo "no apt-get: set ONNXRUNTIME_INCLUDE to a folder with ONNX Runtime's headers"; exit 1; }
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Label: Debian' 'Identifier: Packages' | head -1)
[ -n "$mirror" ] || mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep '/debian/$' | head -1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
printf 'Types: deb\nURIs: %s\nSuites: trixie\nComponents: main\nSigned-By: %s\n' \
    "$mirror" /usr/share/keyrings/debian-archive-keyring.gpg > "$work/debian.sources"
chmod -R a+rX "$work"
options=(-qq -o "Dir::Etc::sourcelist=$work/debian.sources" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o Dir::State::status=/dev/null -o APT::Sandbox::User=root)
apt-get "${options[@]}" update
(cd "$work" && apt-get "${options[@]}" download libonnxruntime-dev)
mkdir -p "$target"
dpkg-deb -x "$work"/libonnxruntime-dev_*.deb "$target"
