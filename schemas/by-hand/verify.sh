#!/usr/bin/env bash
# Checks an evidence bundle with public tools alone, each of which knows nothing of Expunge:
#
#   schemas/by-hand/verify.sh BUNDLE POLICY.json      BUNDLE: a directory, or a zip file
#
#   go       golang.org/x/mod: the checkpoint, and that every statement is in the log
#   node     @sigstore/verify: every statement's signature, under its role
#   openssl  every statement's signature once more, and time stamps
#
# What they do not do is the arithmetic over the statements: that is `expunge verify`, or steps 5 to 10 of EVIDENCE.md.
# A tool that is missing is said aloud, and the exit code is then 3; 1 means that something does not verify.
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: verify.sh BUNDLE POLICY.json" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
policy=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -d "$1" ]; then
  bundle=$(cd "$1" && pwd)
else
  bundle=$work/bundle
  python3 -m zipfile -e "$1" "$bundle"
fi

left_out=0
missing() { echo "*** left out, no $1 on this machine: $2" >&2; left_out=3; }

if command -v go >/dev/null; then
  (cd "$here/go" && go build -o "$work/byhand" .)
  "$work/byhand" "$bundle" "$policy" || exit 1
else
  missing go "checkpoint and inclusion"
fi

if command -v npm >/dev/null; then
  cp "$here/node/package.json" "$here/node/verify.mjs" "$work/"
  (cd "$work" && npm install --silent --no-save --no-package-lock --no-audit --no-fund --ignore-scripts)
  node "$work/verify.mjs" "$bundle" "$policy" || exit 1
else
  missing npm "signatures and roles"
fi

if command -v openssl >/dev/null; then
  python3 "$here/openssl.py" "$bundle" "$policy" || exit 1
else
  missing openssl "signatures and time stamps"
fi
exit "$left_out"
