# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced inside the guest: how often the kernel ran which of its lines.

GCOV=/sys/kernel/debug/gcov

# begin_counts: from nothing on, what was run while booting does not count
begin_counts() {
	mountpoint -q "$(dirname "$GCOV")" || mount -t debugfs debugfs "$(dirname "$GCOV")"
	[ -w "$GCOV/reset" ] || {
		echo "$GCOV/reset is missing: this kernel does not count lines" >&2
		return 1
	}
	echo 0 >"$GCOV/reset"
}

# take_counts DIRECTORY: a file for each object, under the object's own path
take_counts() {
	local counts
	find "$GCOV" -name '*.gcda' | while IFS= read -r counts; do
		mkdir -p "$(dirname "$1${counts#"$GCOV"}")"
		# Their size is not known before they are read: cp would copy nothing
		cat "$counts" >"$1${counts#"$GCOV"}"
	done
}
