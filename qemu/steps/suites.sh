# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The suites. Each leaves DIRECTORY/tests.tsv, "outcome TAB name TAB reason", made
# from what its runner reports as data; the counts are counts of these lines.

HARNESS_LIMIT=1800
HOST_LIMIT=600
GUEST_LIMIT=3600
KUNIT_LIMIT=1800

# How the kernel is configured that the suites run on: plain, debug, faults or modules. A suite's
# results under a profile are results of their own: SUITE-PROFILE.
PROFILE=plain
SUFFIX=

# use_profile PROFILE: sets PROFILE, SUFFIX (of flavours and results) and what a guest
# needs with it
use_profile() {
	PROFILE=$1
	[ "$1" = plain ] || SUFFIX=-$1
	case $1 in
	debug)
		# KASAN's shadow and quarantine; each access and each lock costs more, so that what
		# takes long under emulation is no hang
		GUEST_MEMORY=4G
		GUEST_LIMIT=7200
		KUNIT_LIMIT=3600
		GUEST_ARGUMENTS=(--append watchdog_thresh=60 --append rcupdate.rcu_cpu_stall_timeout=180
			--append sysctl.kernel.hung_task_timeout_secs=480) ;;
	# A datagram that fails to come is waited for
	faults) GUEST_LIMIT=5400 ;;
	modules) GUEST_LIMIT=900 ;;
	esac
}

# What "test --long" adds: this many operations of KUnit's random test, a million packets
# with traits in the guest's test of memory
LONG=
LONG_OPERATIONS=10000000

# use_long: sets LONG, and the limits that go with it
use_long() {
	LONG=1
	GUEST_LIMIT=$((GUEST_LIMIT * 3))
	KUNIT_LIMIT=$((KUNIT_LIMIT * 2))
}

TEST_BUNDLE=$ROOT/.build/debug/packet-traitsPackageTests.xctest

# fail_suite SUITE REASON: a failure that no single test stands for
fail_suite() {
	printf 'failed\t%s\t%s\n' "($1)" "$2" >>"$RESULTS/$1/tests.tsv"
}

# count OUTCOME FILES...
count() {
	local outcome=$1
	shift
	cat "$@" 2>/dev/null | awk -F '\t' -v outcome="$outcome" '$1 == outcome { n++ } END { print n + 0 }'
}

# summarize SUITE: one line, and the names of what failed
summarize() {
	local tests=$RESULTS/$1/tests.tsv
	step "$1: $(count passed "$tests") passed, $(count failed "$tests") failed, $(count skipped "$tests") skipped ($RESULTS/$1)"
	awk -F '\t' '$1 == "failed" { print "        FAILED " $2 (($3 != "") ? ": " $3 : "") }
		$1 == "skipped" { print "        skipped " $2 (($3 != "") ? ": " $3 : "") }' "$tests" >&2
}

# begin_suite SUITE
begin_suite() {
	rm -rf "${RESULTS:?}/$1"
	mkdir -p "$RESULTS/$1"
	: >"$RESULTS/$1/tests.tsv"
}

# read_events SUITE STATUS: Swift Testing's stream to tests.tsv
read_events() {
	local directory=$RESULTS/$1 failed
	if [ -s "$directory/events.json" ]; then
		jq -rRs -f "$ROOT/qemu/steps/swift-testing.jq" "$directory/events.json" >>"$directory/tests.tsv" ||
			fail_suite "$1" "the event stream $directory/events.json cannot be read"
	fi
	[ -s "$directory/tests.tsv" ] || fail_suite "$1" "no test ran, the bundle ended with status $2"
	failed=$(count failed "$directory/tests.tsv")
	[ "$2" -eq 0 ] || [ "$failed" -gt 0 ] ||
		fail_suite "$1" "every test passed, but the run ended with status $2 (output: $directory/output.log)"
}

suite_host() {
	local directory=$RESULTS/host status=0
	step "host: the package's suites on this kernel"
	# In the background, so that Control-C ends it
	(without_locks setsid env PACKET_TRAITS_BPF="$BPF_DIRECTORY" PACKET_TRAITS_HEADERS="$KERNEL_HEADERS" \
		timeout --kill-after=5 $HOST_LIMIT "$TEST_BUNDLE" --testing-library swift-testing \
		--skip '^GuestTests\.' --event-stream-output-path "$directory/events.json") \
		>"$directory/output.log" 2>&1 </dev/null &
	await_group || status=$?
	[ $status -ne 124 ] || fail_suite host "did not end within $HOST_LIMIT s; begun: $(running_tests "$directory/events.json" | paste -sd ' ')"
	read_events host $status
}

# end_of_guest SUITE STATUS: a guest that did not end as it should fails the suite
end_of_guest() {
	local console=$RESULTS/$1/console.log
	case $2 in
	124) fail_suite "$1" "the guest did not end within $GUEST_LIMIT s" ;;
	125) fail_suite "$1" "the guest ended without a status ($console)" ;;
	126) fail_suite "$1" "the kernel's log has a report: $(kernel_reports "$console" | head -n 1 | cut -c 1-160)" ;;
	esac
}

# The seconds that each guest test took in an earlier run, "seconds TAB test": see docs/testing.md
DURATIONS=$ROOT/qemu/guest/durations.tsv

# How many guests share the guest suites: "test --guests". Not set: what default_guests says.
GUESTS=
# By default no more than this
MOST_GUESTS=8

# default_guests: how many guests keep this machine's processors busy, as far as it has the
# memory. Most tests do one thing after the other, so an emulated guest keeps one processor busy, however
# many QEMU gives it.
default_guests() {
	local guests memory available
	guests=$(nproc)
	[[ ${ACCELERATION[*]} == *--disable-kvm* ]] || guests=$((guests / GUEST_CPUS))
	[ "$guests" -le $MOST_GUESTS ] || guests=$MOST_GUESTS
	# QEMU itself takes half a gigabyte for what it translates
	memory=$((${GUEST_MEMORY%G} * 1024 + GUEST_OVERHEAD_MB))
	available=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' "$MACHINE/proc/meminfo")
	if [ $((guests * memory)) -gt "$available" ]; then
		guests=$((available / memory))
		detail "guest: $available MB of memory are free, and each guest takes $memory MB"
	fi
	echo $((guests > 1 ? guests : 1))
}

# list_guest_tests: the names of the bundle's guest tests, one per line
list_guest_tests() {
	timeout --kill-after=5 60 "$TEST_BUNDLE" --testing-library swift-testing --list-tests </dev/null |
		grep '^GuestTests\.'
}

# run_guest SUITE NUMBER GUESTS: boots the guest NUMBER of GUESTS for its share of the tests in
# plan.tsv, and judges it as a suite of its own. For a subshell in the background.
run_guest() {
	local name=$1/$2 directory=$RESULTS/$1/$2 status=0
	CHILDREN=()
	trap end_children EXIT
	trap 'exit 143' TERM
	begin_suite "$name"
	boot_guest "$directory" "$GUEST_LIMIT" qemu/guest/suites "$TEST_BUNDLE" "$directory" \
		"$(awk -v guest="$2" -f "$ROOT/qemu/steps/filter.awk" "$RESULTS/$1/plan.tsv")" \
		>/dev/null 2>"$directory/report.log" || status=$?
	end_of_guest "$name" $status
	read_events "$name" $status
	jq -rRs -f "$ROOT/qemu/steps/durations.jq" "$directory/events.json" >"$directory/ran.tsv" 2>/dev/null || true
	# All at once, as other guests may have a report as well
	step "$1: guest $2 of $3 ended with status $status after $GUEST_SECONDS s: $(count passed "$directory/tests.tsv") passed, $(count failed "$directory/tests.tsv") failed (log: $directory/output.log)"
	cat "$directory/report.log" >&2
}

# merge_guests SUITE GUESTS: makes one result of those of the guests
merge_guests() {
	local directory=$RESULTS/$1 number
	for ((number = 1; number <= $2; number++)); do
		cat "$directory/$number/tests.tsv" >>"$directory/tests.tsv" 2>/dev/null ||
			fail_suite "$1" "guest $number left no result"
		awk -v guest="$number" '{ print guest "\t" $0 }' "$directory/$number/ran.tsv" 2>/dev/null || true
	done >"$directory/ran.tsv"
	awk -F '\t' '$2 != "-" { print $2 "\t" $3 }' "$directory/ran.tsv" | sort -t $'\t' -k 2 >"$directory/durations.tsv"
	cut -f 1,3 "$directory/ran.tsv" | awk -f "$ROOT/qemu/steps/plan.awk" "$directory/plan.tsv" - >>"$directory/tests.tsv"
	[ "$PROFILE" != faults ] || merge_conditions "$1" "$2"
	# The very feature is there: a skip would hide that it is not. Only what needs a card that this
	# QEMU lacks may be skipped.
	awk -F '\t' -v OFS='\t' -v missing="${GUEST_MISSING:-}" '
		BEGIN {
			split(missing, names, " ")
			for (i in names)
				absent["no " names[i]]
		}
		$1 == "skipped" {
			begin = $3
			sub(/:.*/, "", begin)
			if (!(begin in absent)) {
				$1 = "failed"
				$3 = "was skipped in the guest: " $3
			}
		}
		{ print }' "$directory/tests.tsv" >"$directory/tests.tsv.new"
	mv "$directory/tests.tsv.new" "$directory/tests.tsv"
}

# merge_conditions SUITE GUESTS: merges the guests' conditions.tsv under the profile faults. Each
# guest has a line left-behind of its own. One guest with failed allocations is enough, because a
# share of the tests may need no memory.
merge_conditions() {
	local directory=$RESULTS/$1 number
	for ((number = 1; number <= $2; number++)); do
		[ -s "$directory/$number/conditions.tsv" ] || {
			fail_suite "$1" "guest $number did not come to tell whether allocations failed ($directory/$number/output.log)"
			continue
		}
		sed "s|\tguest/left-behind\t|\tguest/$number/left-behind\t|" "$directory/$number/conditions.tsv"
	done | awk -F '\t' -v OFS='\t' '
		$2 != "guest/allocations-failed" { print; next }
		line == "" || $1 == "passed" { line = $0 }
		END { if (line != "") print line }' >>"$directory/tests.tsv"
}

suite_guest() {
	local name=guest$SUFFIX directory=$RESULTS/guest$SUFFIX guests number
	if ! list_guest_tests >"$directory/list" 2>"$directory/list.log"; then
		fail_suite "$name" "the bundle lists no guest test ($directory/list.log)"
		return
	fi
	guests=${GUESTS:-$(default_guests)}
	awk -v guests="$guests" -f "$ROOT/qemu/steps/split.awk" "$DURATIONS" "$directory/list" >"$directory/plan.tsv"
	# No guest without a test
	guests=$(cut -f 1 "$directory/plan.tsv" | sort -n | tail -n 1)
	step "$name: the guest suites on the $FLAVOUR kernel, in $guests guest(s) (logs: $directory/*/output.log)"
	for ((number = 1; number <= guests; number++)); do
		run_guest "$name" $number "$guests" &
		CHILDREN+=($!)
	done
	for number in "${CHILDREN[@]}"; do
		wait "$number" || true
	done
	CHILDREN=()
	merge_guests "$name" "$guests"
}

# suite_in_guest SUITE LAST COMMAND...: a suite whose lines of tests.tsv COMMAND writes in the guest.
# LAST is the check that it ends with.
suite_in_guest() {
	local name=$1 last=$2 directory=$RESULTS/$1 status=0
	shift 2
	boot_guest "$directory" "$GUEST_LIMIT" "$@" >/dev/null || status=$?
	end_of_guest "$name" $status
	[ $status -ne 0 ] || grep -q "$last" "$directory/tests.tsv" || status=1
	[ $status -eq 0 ] || [ "$(count failed "$directory/tests.tsv")" -gt 0 ] ||
		fail_suite "$name" "it did not come to its end: status $status, last step '$(cat "$directory/step" 2>/dev/null)' ($directory/output.log)"
}

suite_traffic() {
	local name=traffic$SUFFIX
	step "$name: tagged datagrams while allocations fail (log: $RESULTS/$name/output.log)"
	suite_in_guest "$name" 'traffic/left-behind' qemu/guest/traffic "$GUEST_PROGRAMS/datagrams" "$RESULTS/$name"
}

suite_modules() {
	local name=modules$SUFFIX
	step "$name: the demo and each module of the $FLAVOUR kernel (log: $RESULTS/$name/output.log)"
	suite_in_guest "$name" 'modules/traits-symbols' qemu/guest/modules "$RESULTS/$name"
}

suite_kunit() {
	local name=kunit$SUFFIX directory=$RESULTS/kunit$SUFFIX build=$BUILDS/kunit$SUFFIX status=0
	local -a configs=(--kunitconfig "$CONFIG_DIRECTORY/kunit.config")
	[ "$PROFILE" = plain ] || configs+=(--kunitconfig "$CONFIG_DIRECTORY/kunit$SUFFIX.config")
	[ -e "$build/vmlinux" ] || need_space "$CACHE" 1200 "the build of User Mode Linux"
	step "$name: building User Mode Linux and running its suites (log: $directory/output.log)"
	if [ -n "$LONG" ]; then
		# Another sequence each time; the same again with PACKET_TRAITS_SEED
		local seed=${PACKET_TRAITS_SEED:-$(date +%s)}
		detail "$name: $LONG_OPERATIONS random operations, PACKET_TRAITS_SEED=$seed"
		configs+=(--kernel_args "skb_test.operations=$LONG_OPERATIONS" --kernel_args "skb_test.seed=$seed"
			--timeout "$KUNIT_LIMIT")
	fi
	mkdir -p "$build"
	lock_exclusive "$build.lock"
	# What an earlier run reported is not this one's
	rm -f "$build/test.log"
	(cd "$TREES/patched" && exec setsid timeout --kill-after=5 "$KUNIT_LIMIT" \
		tools/testing/kunit/kunit.py run --arch um --build_dir "$build" --jobs "$(nproc)" \
		"${configs[@]}" --json="$directory/kunit.json" 'traits*') \
		>"$directory/output.log" 2>&1 </dev/null &
	await_group || status=$?
	if [ ! -s "$directory/kunit.json" ]; then
		explain_full_disk "$directory/output.log"
		tail -n 15 "$directory/output.log" | quoted
		fail_suite "$name" "kunit.py ended with status $status and no result ($directory/output.log)"
		unlock "$build.lock"
		return
	fi
	jq -r -f "$ROOT/qemu/steps/kunit.jq" "$directory/kunit.json" >>"$directory/tests.tsv" ||
		fail_suite "$name" "kunit.py's result $directory/kunit.json cannot be read"
	[ -s "$directory/tests.tsv" ] || fail_suite "$name" "no suite whose name begins with 'traits' ran"
	[ $status -eq 0 ] || [ "$(count failed "$directory/tests.tsv")" -gt 0 ] ||
		fail_suite "$name" "every case passed, but kunit.py ended with status $status"
	[ "$PROFILE" = plain ] || reports_of_kunit "$name" "$build/test.log"
	unlock "$build.lock"
}

# reports_of_kunit SUITE LOG: what KASAN, lockdep and the others wrote to the kernel's
# log, where no case fails by it
reports_of_kunit() {
	local directory=$RESULTS/$1 reports
	cp "$2" "$directory/console.log" 2>/dev/null || {
		fail_suite "$1" "kunit.py left no log of the kernel ($2)"
		return
	}
	reports=$(kernel_reports "$directory/console.log") || return 0
	detail "the kernel reported (from line ${reports%%:*} of $directory/console.log):"
	tail -n "+${reports%%:*}" "$directory/console.log" | head -n 60 | quoted || true
	fail_suite "$1" "the kernel's log has a report: $(head -n 1 <<<"$reports" | cut -c 1-160)"
}

suite_harness() {
	local status=0
	step "harness: qemu/tests"
	(without_locks setsid timeout --kill-after=5 $HARNESS_LIMIT "$ROOT/qemu/tests/run" "$RESULTS/harness") \
		>"$RESULTS/harness/output.log" 2>&1 </dev/null &
	await_group || status=$?
	[ -s "$RESULTS/harness/tests.tsv" ] || fail_suite harness "no test ran, qemu/tests/run ended with status $status"
	[ $status -eq 0 ] || [ "$(count failed "$RESULTS/harness/tests.tsv")" -gt 0 ] ||
		fail_suite harness "qemu/tests/run ended with status $status ($RESULTS/harness/output.log)"
}

help_test() {
	cat <<-E
	Usage: qemu/vm test [--profile plain|debug|faults|modules] [--only SUITE] [--long] [--guests N]

	Runs the suites and prints, as its last line, 'N passed, N failed, N skipped'. Names each test
	that failed or was skipped. Status 0 if none failed.

	  harness   this program's own tests
	  host      the Swift package's suites, on the machine's kernel
	  kunit     the kernel's suites, under User Mode Linux
	  guest     the suites that need the patched kernel, in QEMU; a skip there is a failure, unless
	            QEMU lacks the network card that the test needs
	  traffic   tagged datagrams through the patched kernel while allocations fail, in QEMU
	  modules   run the demo and load each module, in QEMU

	  --only SUITE     just that one, with what it needs; may be given more than once
	  --profile NAME   the patched kernel's configuration, and with it the suites that run:
	                     plain    harness, host, kunit, guest; this is the default
	                     debug    kunit and guest, under KASAN, lockdep and other checks; takes
	                              several times as long
	                     faults   guest and traffic, while allocations fail
	                     modules  modules: drivers and protocols are modules, as in Debian's kernel
	                   What a profile runs on is built once, in addition.
	  --long           ten million random operations, not a hundred thousand, with a seed of their
	                   own each time (kunit); a million packets with traits, not 20,000, and
	                   60,000 changes of keys under way, not 600 (guest); a million datagrams, not
	                   9,600 (traffic)
	  --guests N       divide the guest suites among N guests that run at the same time, 1 to 64;
	                   by default as many as processors and free memory suffice for, at most 8

	A run with --long prints its seed; PACKET_TRAITS_SEED=NUMBER repeats its operations.

	Outputs and results are kept in .build-vm/results/SUITE, or SUITE-PROFILE.
	E
}

# suites_of PROFILE
suites_of() {
	case $1 in
	plain) echo harness host kunit guest ;;
	debug) echo kunit guest ;;
	faults) echo guest traffic ;;
	modules) echo modules ;;
	esac
}

command_test() {
	local suite failed profile='' long='' offered
	local -a suites=() files=()
	while [ $# -gt 0 ]; do
		case $1 in
		--only)
			case ${2:-} in
			host | kunit | guest | harness | traffic | modules) suites+=("$2") ;;
			*) usage_error "test --only: host, kunit, guest, harness, traffic or modules, not '${2:-}'" test ;;
			esac
			shift 2 ;;
		--profile)
			case ${2:-} in
			plain | debug | faults | modules) ;;
			*) usage_error "test --profile: plain, debug, faults or modules, not '${2:-}'" test ;;
			esac
			[ -z "$profile" ] || usage_error "test: one profile at a time, not '$profile' and '$2'" test
			profile=$2
			shift 2 ;;
		--long) long=1 ; shift ;;
		--guests)
			[[ ${2:-} =~ ^[1-9][0-9]?$ ]] && [ "$2" -le 64 ] ||
				usage_error "test --guests: a number from 1 to 64, not '${2:-}'" test
			GUESTS=$2
			shift 2 ;;
		*) usage_error "test: what is '$1'?" test ;;
		esac
	done
	use_profile "${profile:-plain}"
	[[ -z ${PACKET_TRAITS_SEED:-} || $PACKET_TRAITS_SEED =~ ^[0-9]{1,18}$ ]] ||
		usage_error "PACKET_TRAITS_SEED is a number of 18 digits at most, as a run prints it, not '$PACKET_TRAITS_SEED'" test
	[ -z "$long" ] || use_long
	offered=$(suites_of "$PROFILE")
	for suite in "${suites[@]}"; do
		[[ " $offered " == *" $suite "* ]] ||
			usage_error "test: the profile $PROFILE has the suites ${offered// /, }, not '$suite'" test
	done
	[ ${#suites[@]} -gt 0 ] || read -ra suites <<<"$offered"
	local wanted=" ${suites[*]} "
	open_cache
	[ "$wanted" = ' harness ' ] || need_series
	local -a wants=()
	[ "$wanted" = ' harness ' ] || wants+=(source)
	[[ $wanted != *' host '* && $wanted != *' guest '* && $wanted != *' traffic '* && $wanted != *' modules '* ]] || wants+=(swift)
	[[ $wanted != *' guest '* && $wanted != *' traffic '* && $wanted != *' modules '* ]] || wants+=(guest)
	check_machine "${wants[@]}"
	install_packages
	lock_clone
	for suite in "${suites[@]}"; do
		begin_suite "$suite$SUFFIX"
		files+=("$RESULTS/$suite$SUFFIX/tests.tsv")
	done

	# The quick ones first: what they find is known before the long builds
	if [[ $wanted == *' harness '* ]]; then
		suite_harness
		summarize harness
	fi
	if [[ $wanted == *' guest '* || $wanted == *' traffic '* || $wanted == *' modules '* ]]; then
		prepare_guest "patched$SUFFIX"
	elif [[ $wanted == *' host '* ]]; then
		# The host's suites compare the header copies with the kernel's
		prepare_kernel patched
	elif [[ $wanted == *' kunit '* ]]; then
		ensure_source
		ensure_patched
	fi
	if [[ $wanted == *' host '* || $wanted == *' guest '* ]]; then
		swift_build "the package and its tests" --build-tests
		[ -e "$TEST_BUNDLE" ] || fail "swift build made no $TEST_BUNDLE"
	fi
	if [[ $wanted == *' traffic '* ]]; then
		swift_build "traitctl" --product traitctl
		build_guest_program "$ROOT/qemu/guest/datagrams.c" -lbpf
	fi
	[[ $wanted != *' modules '* ]] || swift_build "the demo" --product traits-demo
	[[ $wanted != *' host '* && $wanted != *' guest '* && $wanted != *' traffic '* && $wanted != *' modules '* ]] || build_bpf
	for suite in host kunit guest traffic modules; do
		[[ $wanted == *" $suite "* ]] || continue
		"suite_$suite"
		summarize "$suite$SUFFIX"
	done

	failed=$(count failed "${files[@]}")
	step "all suites are through"
	printf '%d passed, %d failed, %d skipped\n' "$(count passed "${files[@]}")" "$failed" "$(count skipped "${files[@]}")"
	[ "$failed" -eq 0 ]
}
