# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Does this machine have what a run needs? All that it lacks is told at once, before anything
# is installed or downloaded.

# The harness's own tests put files of other machines there
MACHINE=${PACKET_TRAITS_MACHINE:-}

# os_release FIELD: of /etc/os-release
os_release() {
	(
		# shellcheck source=/dev/null
		source "$MACHINE/etc/os-release" 2>/dev/null || source "$MACHINE/usr/lib/os-release" 2>/dev/null || true
		field=${!1:-}
		[ "$1:$field" != PRETTY_NAME: ] || field='this system'
		echo "$field"
	)
}
