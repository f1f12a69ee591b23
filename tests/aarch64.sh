#!/usr/bin/env bash
# A folder with Python and ONNX Runtime of another processor, for the tests that ask for HARNESS_AARCH64=FOLDER.
# Needs qemu-user-static and debootstrap; 350 MB, a minute. ONNX Runtime above 1.20 does not start under qemu 7.
set -euo pipefail
root=$1
debootstrap --foreign --arch=arm64 --variant=minbase --include=python3 bookworm "$root" ${2:+"$2"} # a mirror of your own
for package in "$root"/var/cache/apt/archives/*.deb; do dpkg -x "$package" "$root"; done
mkdir -p "$root/wheels" "$root/opt/site"
platforms=(--platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64)
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.11 --implementation cp "${platforms[@]}" \
    -d "$root/wheels" onnxruntime==1.20.1 numpy==2.2.6
for wheel in "$root"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$root/opt/site"; done
cat > "$root/python" <<END
#!/bin/sh
exec qemu-aarch64-static -L "$root" -E PYTHONHOME="$root/usr" -E PYTHONPATH="$root/opt/site" "$root/usr/bin/python3.11" "\$@"
END
chmod +x "$root/python"
