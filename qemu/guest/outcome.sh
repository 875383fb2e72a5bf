# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced inside the guest: lines of tests.tsv.

# outcome NAME PROBLEM: prints a line of tests.tsv. Without a problem the test has passed.
outcome() {
	if [ -z "$2" ]; then
		printf 'passed\t%s\t\n' "$1"
	else
		printf 'failed\t%s\t%s\n' "$1" "$(tr '\t\n' '  ' <<<"$2" | sed 's/ *$//')"
	fi
}
