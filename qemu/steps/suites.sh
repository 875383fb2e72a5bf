# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The suites. Each leaves DIRECTORY/tests.tsv, "outcome TAB name TAB reason", made
# from what its runner reports as data; the counts are counts of these lines.

HOST_LIMIT=600
GUEST_LIMIT=1800
KUNIT_LIMIT=1800

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
	PACKET_TRAITS_BPF=$BPF_DIRECTORY PACKET_TRAITS_HEADERS=$KERNEL_HEADERS \
		timeout --kill-after=5 $HOST_LIMIT "$TEST_BUNDLE" --testing-library swift-testing \
		--skip '^GuestTests\.' --event-stream-output-path "$directory/events.json" \
		>"$directory/output.log" 2>&1 </dev/null 9>&- || status=$?
	[ $status -ne 124 ] || fail_suite host "did not end within $HOST_LIMIT s; begun: $(running_tests "$directory/events.json" | paste -sd ' ')"
	read_events host $status
}

suite_guest() {
	local directory=$RESULTS/guest status=0
	step "guest: the guest suites on the patched kernel (log: $directory/output.log)"
	boot_guest "$directory" $GUEST_LIMIT qemu/guest/suites "$TEST_BUNDLE" "$directory" >/dev/null || status=$?
	case $status in
	124) fail_suite guest "the guest did not end within $GUEST_LIMIT s" ;;
	125) fail_suite guest "the guest ended without a status ($directory/console.log)" ;;
	126) fail_suite guest "the kernel's log has a report: $(kernel_reports "$directory/console.log" | head -n 1 | cut -c 1-160)" ;;
	esac
	# The very feature is there: a skip would hide that it is not
	read_events guest $status
	sed -i -E 's/^skipped\t([^\t]*)\t(.*)$/failed\t\1\twas skipped in the guest: \2/' "$directory/tests.tsv"
}

suite_kunit() {
	local directory=$RESULTS/kunit build=$CACHE/build/kunit status=0
	[ -e "$build/vmlinux" ] || need_space "$CACHE" 1200 "the build of User Mode Linux"
	step "kunit: building User Mode Linux and running its suites (log: $directory/output.log)"
	mkdir -p "$build"
	(cd "$CACHE/tree/patched" && exec setsid timeout --kill-after=5 $KUNIT_LIMIT \
		tools/testing/kunit/kunit.py run --arch um --build_dir "$build" --jobs "$(nproc)" \
		--kunitconfig "$CONFIG_DIRECTORY/kunit.config" --json="$directory/kunit.json" 'traits*') \
		>"$directory/output.log" 2>&1 </dev/null 9>&- &
	CHILD_GROUP=$!
	wait $CHILD_GROUP || status=$?
	CHILD_GROUP=
	if [ ! -s "$directory/kunit.json" ]; then
		explain_full_disk "$directory/output.log"
		tail -n 15 "$directory/output.log" | quoted
		fail_suite kunit "kunit.py ended with status $status and no result ($directory/output.log)"
		return
	fi
	jq -r -f "$ROOT/qemu/steps/kunit.jq" "$directory/kunit.json" >>"$directory/tests.tsv" ||
		fail_suite kunit "kunit.py's result $directory/kunit.json cannot be read"
	[ -s "$directory/tests.tsv" ] || fail_suite kunit "no suite whose name begins with 'traits' ran"
	[ $status -eq 0 ] || [ "$(count failed "$directory/tests.tsv")" -gt 0 ] ||
		fail_suite kunit "every case passed, but kunit.py ended with status $status"
}

suite_harness() {
	local status=0
	step "harness: qemu/tests"
	timeout --kill-after=5 300 "$ROOT/qemu/tests/run" "$RESULTS/harness" \
		>"$RESULTS/harness/output.log" 2>&1 </dev/null 9>&- || status=$?
	[ -s "$RESULTS/harness/tests.tsv" ] || fail_suite harness "no test ran, qemu/tests/run ended with status $status"
	[ $status -eq 0 ] || [ "$(count failed "$RESULTS/harness/tests.tsv")" -gt 0 ] ||
		fail_suite harness "qemu/tests/run ended with status $status ($RESULTS/harness/output.log)"
}

help_test() {
	cat <<-E
	Usage: qemu/vm test [--only host|kunit|guest|harness]

	Runs the suites and prints, as its last line, 'N passed, N failed, N skipped'. Names each test
	that failed or was skipped. Status 0 if none failed.

	  harness   this program's own tests
	  host      the Swift package's suites, on the machine's kernel
	  kunit     the kernel's suites, under User Mode Linux
	  guest     the suites that need the patched kernel, in QEMU; a skip there is a failure

	  --only SUITE   just that one, with what it needs; may be given more than once

	Outputs and results are kept in .build-vm/results/SUITE.
	E
}

command_test() {
	local suite failed
	local -a suites=() files=()
	while [ $# -gt 0 ]; do
		case $1 in
		--only)
			case ${2:-} in
			host | kunit | guest | harness) suites+=("$2") ;;
			*) usage_error "test --only: host, kunit, guest or harness, not '${2:-}'" test ;;
			esac
			shift 2 ;;
		*) usage_error "test: what is '$1'?" test ;;
		esac
	done
	[ ${#suites[@]} -gt 0 ] || suites=(harness host kunit guest)
	local wanted=" ${suites[*]} "
	open_cache
	[ "$wanted" = ' harness ' ] || need_series
	[[ $wanted != *' host '* && $wanted != *' guest '* ]] || find_toolchain
	install_packages
	lock_cache
	for suite in "${suites[@]}"; do
		begin_suite "$suite"
		files+=("$RESULTS/$suite/tests.tsv")
	done

	# The quick ones first: what they find is known before the long builds
	if [[ $wanted == *' harness '* ]]; then
		suite_harness
		summarize harness
	fi
	if [[ $wanted == *' guest '* ]]; then
		prepare_guest patched
	elif [[ $wanted == *' host '* ]]; then
		# The host's suites compare the header copies with the kernel's
		prepare_kernel patched
	elif [[ $wanted == *' kunit '* ]]; then
		ensure_source
		ensure_patched
	fi
	if [[ $wanted == *' host '* || $wanted == *' guest '* ]]; then
		swift_build "the package and its tests" --build-tests
		build_bpf
		[ -e "$TEST_BUNDLE" ] || fail "swift build made no $TEST_BUNDLE"
	fi
	for suite in host kunit guest; do
		[[ $wanted == *" $suite "* ]] || continue
		"suite_$suite"
		summarize "$suite"
	done

	failed=$(count failed "${files[@]}")
	step "all suites are through"
	printf '%d passed, %d failed, %d skipped\n' "$(count passed "${files[@]}")" "$failed" "$(count skipped "${files[@]}")"
	[ "$failed" -eq 0 ]
}
