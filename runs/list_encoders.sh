#!/usr/bin/env bash
# Print the table [encoders] of a suite.  Files and folders become absolute: those of a suite are relative to its file.
# usage: runs/list_encoders.sh NAME=ENCODER …
set -euo pipefail
printf '\n[encoders]\n'
for named in "$@"; do
  name=${named%%=*} spec=${named#*=} prefix=
  while [[ $spec =~ ^((size|blocks)=[0-9]+|chess): ]]; do
    prefix+=${BASH_REMATCH[0]}
    spec=${spec#"${BASH_REMATCH[0]}"}
  done
  [ -e "$spec" ] && spec=$(realpath "$spec")
  printf '"%s" = "%s"\n' "$name" "$prefix$spec"
done
