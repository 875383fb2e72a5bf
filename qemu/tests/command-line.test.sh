# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0

test_every_command_explains_itself() {
	local command
	for command in demo test shell fetch patch build boot mutate bench fuzz; do
		vm $command --help
		ends 0
		says "Usage: qemu/vm $command"
	done
	vm --help
	ends 0
	says 'Usage: qemu/vm COMMAND' 'PACKET_TRAITS_CACHE' 'XDG_CACHE_HOME' 'PACKET_TRAITS_SEED'
}

test_help_of_a_command_is_the_same_either_way() {
	local command first
	for command in demo test shell fetch patch build boot mutate bench fuzz; do
		vm $command --help
		first=$OUTPUT
		vm help $command
		ends 0
		same "$first" "$OUTPUT"
	done
	vm help
	ends 0
	says 'Usage: qemu/vm COMMAND'
	vm help dance
	ends 64
	says "'dance'"
	vm help test boot
	ends 64
	says "one command at most, not 'test boot'"
}

test_boot_shell_and_the_documentation_tell_the_same_of_the_guest_s_files() {
	local command text directories
	for command in boot shell; do
		vm $command --help
		text=$(paste -sd ' ' <<<"$OUTPUT")
		directories=$(grep -oE 'below /etc[^.]*\.' <<<"$text")
		[[ $text == *'All else is read-only, except for '*".build-vm/results/$command"* ]] || return 1
		grep -qF "$directories" <<<"$(paste -sd ' ' "$SOURCE_ROOT/docs/testing.md")" ||
			{ echo "docs/testing.md does not say: $directories" && return 1; }
	done
}

test_a_seed_is_a_number() {
	PACKET_TRAITS_SEED=lucky vm test --long --only kunit
	ends 64
	says "PACKET_TRAITS_SEED is a number" "not 'lucky'"
	PACKET_TRAITS_SEED=-1 vm fuzz
	ends 64
	says "PACKET_TRAITS_SEED is a number" "not '-1'"
}

# Refused for its value, an option was read
test_a_value_follows_an_option_or_its_equals_sign() {
	local option
	for option in 'test --only' 'test --profile' 'test --guests' 'boot --limit' 'bench unused --boots' 'fuzz --minutes' 'fuzz --profile' 'fuzz --seed'; do
		# shellcheck disable=SC2086
		vm $option wrong
		ends 64
		says "not 'wrong'"
		# shellcheck disable=SC2086
		vm $option=wrong
		ends 64
		says "not 'wrong'"
	done
	for option in '--source' '--source='; do
		vm fetch $option
		ends 64
		says '--source needs a path'
	done
	vm patch export --from="$WORK/nowhere"
	ends 1
	says "--from $WORK/nowhere needs --base REF"
	vm patch export --from="$WORK/nowhere" --base=one=two --branch=b
	ends 1
	says "has no commit 'one=two'"
	vm patch export --branch=
	ends 64
	says '--branch needs a value'
	# Not one that takes a value
	vm test --long=1
	ends 64
	says "what is '--long=1'"
	# The guest's words are left as they are
	vm boot --limit=wrong -- true --only=x
	ends 64
	vm boot true --limit=1
	ends 64
	says "what is 'true'? The command follows '--'"
}

test_a_kernel_is_named_by_its_version() {
	local command
	for command in test demo build 'boot -- true' shell 'patch apply' 'bench store' mutate fuzz; do
		# shellcheck disable=SC2086
		vm ${command%% *} --kernel 6.12 ${command#* }
		ends 64
		says "--kernel needs a version of Linux 6.12 such as 6.12.117, not '6.12'"
	done
	for command in 7.1.2 6.120.3 v6.12.117 6.12.117-1 ''; do
		vm build "--kernel=$command"
		ends 64
		says "not '$command'"
	done
	vm build --kernel
	ends 64
	says "not ''"
	vm fetch --version 6.12
	ends 64
	says "--version needs a version of Linux 6.12 such as 6.12.117, not '6.12'"
	vm fetch --kernel 6.12.117
	ends 64
	says "here it is '--version'"
	vm fetch --version 6.12.117 --source x
	ends 64
	says 'either --source or --version'
	# The guest's words are left as they are
	vm boot --limit 5 -- true --kernel wrong
	says_not "'wrong'"
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
	for command in demo test shell fetch build boot mutate bench fuzz 'bench store' 'bench unused' 'patch apply' 'patch export' 'patch check' patch; do
		# shellcheck disable=SC2086
		vm $command --wrong
		ends 64
		says '--help'
	done
	vm test --only everything
	ends 64
	says 'host, kunit, guest, harness, traffic or modules' "'everything'"
	vm boot --limit soon -- true
	ends 64
	says "'soon'"
	vm boot --
	ends 64
	says 'there is no command' 'qemu/vm boot -- uname -r'
	vm boot
	ends 64
	says 'there is no command' 'qemu/vm boot -- uname -r'
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
