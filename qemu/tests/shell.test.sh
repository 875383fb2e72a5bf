# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0

test_the_shell_files_are_clean_for_shellcheck() {
	cd "$CLONE/qemu" || return 1
	shellcheck -x vm guest/enter guest/demo guest/suites guest/bench guest/mutants guest/traffic guest/fuzz \
		guest/merge guest/stream guest/modules tests/run tests/sandbox.sh
	# Variables and functions of the sandbox are the tests' language
	shellcheck -e SC1091,SC2016,SC2030,SC2031,SC2034,SC2154 tests/*.test.sh
}
