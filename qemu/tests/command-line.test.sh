# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0

test_every_command_explains_itself() {
	local command
	for command in demo test shell fetch patch build boot mutate bench; do
		vm $command --help
		ends 0
		says "Usage: qemu/vm $command"
	done
	vm --help
	ends 0
	says 'Usage: qemu/vm COMMAND' 'PACKET_TRAITS_CACHE'
}

test_no_command_is_a_usage_error() {
	vm
	ends 64
	says 'Usage: qemu/vm COMMAND'
}

test_unknown_words_are_usage_errors_and_are_named() {
	local command
	vm dance
	ends 64
	says "'dance'"
	for command in demo test shell fetch build boot bench 'bench store' 'bench unused' 'patch apply' 'patch export' 'patch check' patch; do
		# shellcheck disable=SC2086
		vm $command --wrong
		ends 64
		says '--help'
	done
	vm test --only everything
	ends 64
	says 'host, kunit, guest, harness or traffic' "'everything'"
	vm boot --limit soon -- true
	ends 64
	says "'soon'"
	vm boot --
	ends 64
}

test_help_after_the_double_dash_belongs_to_the_guest() {
	vm boot -- true --help
	says_not 'Usage:'
}

test_shell_needs_a_terminal() {
	vm shell
	ends 1
	says 'needs a terminal' 'qemu/vm boot --'
}
