#!/usr/bin/env bash
# Installs what a build with RDMA and its tests need: the headers and the providers of libibverbs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/rig/common.sh
. "$here/common.sh"
need gcc:gcc pkg-config:pkg-config
pkg-config --exists libibverbs || need no-such-command:libibverbs-dev
compgen -G '/usr/lib*/*/libibverbs/librxe*' >/dev/null || compgen -G '/usr/lib64/libibverbs/librxe*' >/dev/null ||
	need no-such-command:ibverbs-providers
