# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The calls of the socket layer with right and wrong arguments, for as long as one likes.

# Of the lines of the option and message code so many percent have to be run
COVERAGE_GOAL=85

# Where these lines are: coverage.jq knows them too. Of a header only what sockets, requests for a
# connection and segments that wait call: functions whose names match.
COVERAGE_SOURCES=(net/traits/sock.c net/traits/stream.c include/net/traits.h)
COVERAGE_INLINES='^(sock|reqsk|tcp)_|^traits_(queued|share|shift|include|can_join|saved_free)$'

# report_calls CALLS: how many there were of each kind of call, how many did what was asked,
# and which errors the others got
report_calls() {
	awk -F '\t' '
		{ all[$1] += $3; total += $3 }
		$2 == "0" { done[$1] = $3; next }
		{ errors[$1] = errors[$1] " " $2 " " $3 }
		END {
			for (call in all)
				printf "%-17s %9d calls, %9d succeeded, %3d %%; failed:%s\n", call, all[call], done[call],
					100 * done[call] / all[call], errors[call] == "" ? " none" : errors[call] | "sort"
		}' "$1"
}

# report_coverage DIRECTORY: which lines of the option and message code were run, as counts of
# DIRECTORY/counts tell. Status 1 if they are too few.
report_coverage() {
	local directory=$1 counts notes source tree=$TREES/patched log=$1/gcov.log
	local -a sources=()
	: >"$directory/lines.tsv"
	: >"$log"
	while IFS= read -r counts; do
		# What the compiler noted of the object's lines lies beside the object
		notes=${counts#"$directory/counts"}
		notes=${notes%.gcda}.gcno
		cp "$notes" "$(dirname "$counts")/" 2>>"$log" || fail "the lines of ${counts#"$directory/counts"} are not known: $notes is missing"
		(cd "$(dirname "$counts")" && gcov --json-format --stdout "$(basename "$counts")") 2>>"$log" |
			jq -r -f "$ROOT/qemu/steps/coverage.jq" >>"$directory/lines.tsv" 2>>"$log" ||
			fail "gcov cannot read $counts" "Log: $log"
	done < <(find "$directory/counts" -name '*.gcda' 2>/dev/null | sort)
	[ -s "$directory/lines.tsv" ] || fail "the kernel counted no lines: $directory/counts has none of the option and message code"
	for source in "${COVERAGE_SOURCES[@]}"; do
		# A series may end before all of them
		[ ! -e "$tree/$source" ] || sources+=("$tree/$source")
	done
	awk -v goal=$COVERAGE_GOAL -v tsv="$directory/functions.tsv" -v inlines="$COVERAGE_INLINES" \
		-f "$ROOT/qemu/steps/coverage.awk" "$directory/lines.tsv" "${sources[@]}"
}

help_fuzz() {
	cat <<-E
	Usage: qemu/vm fuzz [--profile plain|debug|coverage] [--minutes N] [--seed N]

	Boots the patched kernel and calls setsockopt(), getsockopt(), sendmsg() and recvmsg() with traits
	and with lengths, addresses and contents that are right or wrong, on sockets of each kind, and makes
	TCP connections with traits: first one call after the other, each compared with what it has to do,
	then threads against each other.
	Status 0 if all did what they have to, and the kernel reported nothing.

	  --profile NAME   the patched kernel's configuration:
	                     plain      this is the default
	                     debug      under KASAN, lockdep and other checks
	                     coverage   the kernel counts the lines of the option and message code that
	                                are run: a table is printed, and fewer than $COVERAGE_GOAL % are a failure
	                   What a profile runs on is built once, in addition.
	  --minutes N      how long (default 60; at least one round of a minute or two)
	  --seed N         that of the first round, each other has the next: it repeats what is called one
	                   after the other. PACKET_TRAITS_SEED=N does the same. A run prints its seed.

	Prints how many calls of each kind there were, and which outcomes they had. The rounds' output and
	the tables' figures are kept in .build-vm/results/fuzz, or fuzz-PROFILE.
	E
}

command_fuzz() {
	local minutes=60 profile=plain seed directory status=0 covered=0
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
			case ${2:-} in
			plain | debug | coverage) ;;
			*) usage_error "fuzz --profile: plain, debug or coverage, not '${2:-}'" fuzz ;;
			esac
			profile=$2
			shift 2 ;;
		--seed)
			[[ ${2:-} =~ ^[0-9]{1,18}$ ]] || usage_error "--seed needs a number of 18 digits at most, not '${2:-}'" fuzz
			seed=$2
			shift 2 ;;
		*) usage_error "fuzz: what is '$1'?" fuzz ;;
		esac
	done
	use_profile "$profile"
	open_cache
	need_series
	check_machine source swift guest
	install_packages
	lock_clone
	directory=$RESULTS/fuzz$SUFFIX
	rm -rf "$directory"
	mkdir -p "$directory"
	prepare_guest "patched$SUFFIX"
	swift_build "traits-fuzz" --product traits-fuzz
	step "fuzz: $minutes minutes, PACKET_TRAITS_SEED=$seed (log: $directory/rounds.log)"
	# The last round is not cut off
	boot_guest "$directory" $((minutes * 60 + 1200)) qemu/guest/fuzz .build/debug/traits-fuzz $((minutes * 60)) "$seed" \
		"$directory" || status=$?
	[ ! -s "$directory/calls.tsv" ] || report_calls "$directory/calls.tsv"
	[ $status -eq 0 ] || fail "the guest ended with status $status: a call did not do what it has to, or the kernel reported something" \
		"The last round's seed: $(sed -n 's/^seed //p' "$directory/rounds.log" 2>/dev/null | tail -n 1); the kernel's log: $directory/console.log"
	[ -s "$directory/calls.tsv" ] || fail "the guest ended without having called anything (log: $directory/rounds.log)"
	[ "$PROFILE" != coverage ] || report_coverage "$directory" || covered=1
	step "fuzz: done, $(grep -c '^seed ' "$directory/rounds.log") rounds, $(awk '{ sum += $3 } END { print sum }' "$directory/calls.tsv") calls ($directory)"
	[ $covered -eq 0 ] || fail "fewer than $COVERAGE_GOAL % of the lines were run" \
		"Those that were not stand in the table above. A short run reaches fewer than a long one: --minutes"
}
