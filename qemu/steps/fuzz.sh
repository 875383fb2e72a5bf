# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The calls of the socket layer with right and wrong arguments, for as long as one likes.

help_fuzz() {
	cat <<-E
	Usage: qemu/vm fuzz [--profile plain|debug] [--minutes N]

	Boots the patched kernel and calls setsockopt(), getsockopt(), sendmsg() and recvmsg() with traits
	and with lengths, addresses and contents that are right or wrong, on sockets of each kind: first
	one call after the other, each compared with what it has to do, then threads against each other.
	Status 0 if all did what they have to, and the kernel reported nothing.

	  --profile NAME   debug: under KASAN, lockdep and other checks (default plain)
	  --minutes N      how long (default 60; at least one round of a minute or two)

	A run prints the seed of its first round, each other has the next; PACKET_TRAITS_SEED=NUMBER begins
	with that one, and repeats what is called one after the other.

	Prints how often each call had which outcome, an errno value or 0. The rounds' output is kept in
	.build-vm/results/fuzz, or fuzz-debug.
	E
}

command_fuzz() {
	local minutes=60 profile=plain seed directory status=0
	seed=${PACKET_TRAITS_SEED:-$(date +%s)}
	[[ $seed =~ ^[0-9]{1,18}$ ]] ||
		usage_error "PACKET_TRAITS_SEED is a number of 18 digits at most, not '$seed'" fuzz
	while [ $# -gt 0 ]; do
		case $1 in
		--minutes)
			[[ ${2:-} =~ ^[1-9][0-9]{0,4}$ ]] || usage_error "--minutes needs a number from 1 to 99999, not '${2:-}'" fuzz
			minutes=$2
			shift 2 ;;
		--profile)
			[[ ${2:-} = plain || ${2:-} = debug ]] || usage_error "fuzz: the profiles are plain and debug, not '${2:-}'" fuzz
			profile=$2
			shift 2 ;;
		*) usage_error "fuzz: what is '$1'?" fuzz ;;
		esac
	done
	use_profile "$profile"
	open_cache
	need_series
	find_toolchain
	install_packages
	lock_cache
	directory=$RESULTS/fuzz$SUFFIX
	rm -rf "$directory"
	mkdir -p "$directory"
	prepare_guest "patched$SUFFIX"
	swift_build "traits-fuzz" --product traits-fuzz
	step "fuzz: $minutes minutes, PACKET_TRAITS_SEED=$seed (log: $directory/rounds.log)"
	# The last round is not cut off
	boot_guest "$directory" $((minutes * 60 + 1200)) qemu/guest/fuzz .build/debug/traits-fuzz $((minutes * 60)) "$seed" \
		"$directory" || status=$?
	[ ! -s "$directory/calls.tsv" ] || cat "$directory/calls.tsv"
	[ $status -eq 0 ] || fail "the guest ended with status $status: a call did not do what it has to, or the kernel reported something" \
		"The last round's seed: $(sed -n 's/^seed //p' "$directory/rounds.log" 2>/dev/null | tail -n 1); the kernel's log: $directory/console.log"
	step "fuzz: done, $(grep -c '^seed ' "$directory/rounds.log") rounds, $(awk '{ sum += $3 } END { print sum }' "$directory/calls.tsv") calls ($directory)"
}
