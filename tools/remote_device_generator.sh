#!/usr/bin/env bash
# Writes the device database of each node to DIR/<node>.json: runs tools/device_generator.sh there.
set -uo pipefail

usage() {
    cat <<'END'
Usage: remote_device_generator.sh [-e ssh|srun] [-o DIR] [-p PATH] [-t ARGS] [-v] NODE...

Runs the device generator on every NODE and writes what it prints to DIR/NODE.json.

  -e ssh|srun  how to reach the nodes (default ssh, which must not ask for a password)
  -o DIR       where the databases go (default devices)
  -p PATH      the generator on the nodes (default the path of this one: a shared file system)
  -t ARGS      flags for the generator, separated by blanks, e.g. -t "-p 10005"
  -v           say which node is asked
  -h           this help

A node that fails is named on standard error and leaves no file; the others are written. Exit status:
0 all written, 1 a node failed, 2 wrong usage.
END
}

die() {
    echo "error: $*" >&2
    exit 2
}

# The longest that one node may take, in seconds: it may have to build the generator first.
readonly DEADLINE=600

via=ssh
directory=devices
generator=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/device_generator.sh
arguments=()
verbose=false
while getopts ':e:o:p:t:vh' option; do
    case $option in
        e) via=$OPTARG ;;
        o) directory=$OPTARG ;;
        p) generator=$OPTARG ;;
        t) read -r -a arguments <<<"$OPTARG" ;;
        v) verbose=true ;;
        h) usage; exit 0 ;;
        :) die "-$OPTARG needs a value; -h explains it" ;;
        *) die "unknown flag -$OPTARG; -h lists them" ;;
    esac
done
shift $((OPTIND - 1))

[[ $via == ssh || $via == srun ]] || die "-e $via: only ssh and srun are known"
command -v "$via" >/dev/null || die "$via is not installed here"
(($# > 0)) || die "no node given; -h explains the usage"
for node in "$@"; do
    # A name becomes part of a path and of a command line.
    [[ $node =~ ^[A-Za-z0-9_][A-Za-z0-9_.:@-]*$ ]] || die "\"$node\" is not the name of a node"
done
mkdir -p -- "$directory" || die "cannot make the directory $directory"

# Standard input stays out: it may be a list of nodes that a caller is still reading.
ask() {
    local node=$1
    if [[ $via == ssh ]]; then
        # The node's shell takes the command apart again, so it is quoted for that.
        timeout "$DEADLINE" ssh -o BatchMode=yes -o ConnectTimeout=10 "$node" \
            "$(printf '%q ' "$generator" "${arguments[@]}")" </dev/null
    else
        timeout "$DEADLINE" srun --nodes=1 --ntasks=1 --nodelist="$node" \
            "$generator" "${arguments[@]}" </dev/null
    fi
}

unfinished=
trap 'rm -f -- "$unfinished"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

failed=0
for node in "$@"; do
    if $verbose; then echo "asking $node" >&2; fi
    unfinished=$(mktemp -- "$directory/.$node.XXXXXX") || exit 1
    status=0
    ask "$node" >"$unfinished" || status=$?
    if ((status != 0)); then
        echo "error: $node: the device generator ended with exit status $status" >&2
    elif ! grep -q '"devices"' "$unfinished"; then
        echo "error: $node: what the device generator printed is no device database" >&2
        status=1
    elif ! { chmod 644 -- "$unfinished" && mv -- "$unfinished" "$directory/$node.json"; }; then
        status=1
    fi
    if ((status != 0)); then
        rm -f -- "$unfinished"
        failed=1
    fi
done
exit "$failed"
