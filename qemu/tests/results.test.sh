# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Counts come from what the runners report as data.

# event KIND TEST [ISSUE]: a line of Swift Testing's event stream
event() {
	printf '{"kind":"event","payload":{"kind":"%s","testID":"%s"%s,"messages":[{"symbol":"x","text":"said\\tso"}]},"version":0}\n' \
		"$1" "$2" "${3:+,\"issue\":$3}"
}

# planned TEST [KIND]
planned() {
	printf '{"kind":"test","payload":{"id":"%s","kind":"%s","name":"x"},"version":0}\n' "$1" "${2:-function}"
}

outcomes() {
	jq -rRs -f "$CLONE/qemu/steps/swift-testing.jq" "$WORK/events"
}

test_swift_outcomes() {
	{
		planned T.S suite
		planned 'T.S/good()/a.swift:1:2'
		planned 'T.S/bad()/a.swift:2:2'
		planned 'T.S/off()/a.swift:3:2'
		planned 'T.S/known()/a.swift:4:2'
		planned 'T.S/warned()/a.swift:5:2'
		planned 'T.S/crashed()/a.swift:6:2'
		planned 'T.S/never()/a.swift:7:2'
		event testStarted 'T.S/good()/a.swift:1:2'
		event testEnded 'T.S/good()/a.swift:1:2'
		event issueRecorded 'T.S/bad()/a.swift:2:2' '{"isKnown":false,"isFailure":true}'
		event testEnded 'T.S/bad()/a.swift:2:2'
		event testSkipped 'T.S/off()/a.swift:3:2'
		event issueRecorded 'T.S/known()/a.swift:4:2' '{"isKnown":true,"isFailure":false}'
		event testEnded 'T.S/known()/a.swift:4:2'
		event issueRecorded 'T.S/warned()/a.swift:5:2' '{"isKnown":false,"isFailure":false}'
		event testEnded 'T.S/warned()/a.swift:5:2'
		event testStarted 'T.S/crashed()/a.swift:6:2'
		printf '{"kind":"event","payload":{"kind":"testEn'
	} >"$WORK/events"
	same "$(printf '%s\t%s\t%s\n' \
		passed 'T.S/good()' '' \
		failed 'T.S/bad()' 'said so' \
		skipped 'T.S/off()' 'said so' \
		passed 'T.S/known()' '' \
		passed 'T.S/warned()' '' \
		failed 'T.S/crashed()' 'began or was planned, but never ended' \
		failed 'T.S/never()' 'began or was planned, but never ended')" "$(outcomes)"
}

# said KIND TEST TEXT: an event with these words
said() {
	jq -nc --arg kind "$1" --arg test "$2" --arg text "$3" \
		'{ kind: "event", payload: { $kind, testID: $test, messages: [{ $text }] } }'
}

test_what_was_skipped_or_cancelled_is_named_with_its_own_reason() {
	{
		planned 'T.S/off()/a.swift:1:2'
		planned 'T.S/whole()/a.swift:2:2'
		planned 'T.S/card(name:)/a.swift:3:2'
		planned 'T.S/bad(name:)/a.swift:4:2'
		said testSkipped 'T.S/off()/a.swift:1:2' 'Test "off, or on" skipped: "no igb: this QEMU lacks it"'
		event testCancelled 'T.S/whole()/a.swift:2:2'
		event testCaseCancelled 'T.S/whole()/a.swift:2:2'
		said testEnded 'T.S/whole()/a.swift:2:2' 'Test whole() was cancelled after 0.001 seconds: "no igb: it says so"'
		said testCaseStarted 'T.S/card(name:)/a.swift:3:2' 'passing name → "virtio"'
		event testCaseEnded 'T.S/card(name:)/a.swift:3:2'
		said testCaseStarted 'T.S/card(name:)/a.swift:3:2' 'passing name → "igb"'
		event testCaseCancelled 'T.S/card(name:)/a.swift:3:2'
		said testEnded 'T.S/card(name:)/a.swift:3:2' 'Test card(name:) with 2 test cases passed after 0.001 seconds.'
		event issueRecorded 'T.S/bad(name:)/a.swift:4:2' '{"isKnown":false}'
		event testCaseCancelled 'T.S/bad(name:)/a.swift:4:2'
		event testEnded 'T.S/bad(name:)/a.swift:4:2'
	} >"$WORK/events"
	same "$(printf '%s\t%s\t%s\n' \
		skipped 'T.S/off()' 'no igb: this QEMU lacks it' \
		skipped 'T.S/whole()' 'no igb: it says so' \
		passed 'T.S/card(name:)' '' \
		skipped 'T.S/card(name:)' 'one of its cases was cancelled: passing name → "igb"' \
		failed 'T.S/bad(name:)' 'said so' \
		skipped 'T.S/bad(name:)' 'one of its cases was cancelled: ')" "$(outcomes)"
}

# issue TEST PLACE LINE MESSAGES: as the runner writes it, since Swift 6.3
issue() {
	jq -nc --arg test "$1" --arg file "$2" --argjson line "$3" --argjson messages "$4" '{ kind: "event",
		payload: { instant: { absolute: 2324.29, since1970: 1796073028.31 }, issue: { isFailure: true,
			isKnown: false, severity: "error", sourceLocation: { _filePath: "/a/Tests/\($file)", column: 11,
			fileID: $file, filePath: "/a/Tests/\($file)", line: $line } },
			kind: "issueRecorded", messages: $messages, testID: $test }, version: "6.3.0" }'
}

# message TEXT [DETAILS]: those of one issue
message() {
	jq -nc --arg text "$1" --arg details "${2:-}" '[{ symbol: "fail", text: $text }]
		+ if $details == "" then [] else [{ symbol: "details", text: $details }] end'
}

test_a_reason_says_where_and_what_also_of_a_process_of_its_own() {
	local process='its own process said: issue: T/a.swift:16: Expectation failed: (a → 1) == 2'
	{
		planned 'T.S/plain()/a.swift:1:2'
		planned 'T.S/own()/a.swift:2:2'
		planned 'T.S/crash()/a.swift:3:2'
		planned 'T.S/silent()/a.swift:4:2'
		planned 'T.S/many()/a.swift:5:2'
		issue 'T.S/plain()/a.swift:1:2' T/a.swift 27 "$(message 'Expectation failed: (a → 1) == 2' plain)"
		# Of an expectation in an exit test there are neither values nor, without a comment, a word
		issue 'T.S/own()/a.swift:2:2' T/a.swift 16 "$(message 'Issue recorded')"
		issue 'T.S/own()/a.swift:2:2' T/a.swift 20 "$(message 'Issue recorded' "$process")"
		issue 'T.S/crash()/a.swift:3:2' T/a.swift 30 "$(message 'Expectation failed: .success → .signal(SIGILL → 4)')"
		issue 'T.S/crash()/a.swift:3:2' T/a.swift 31 "$(message 'Issue recorded' $'its own process said: Fatal error\nStack')"
		issue 'T.S/silent()/a.swift:4:2' T/a.swift 40 "$(message 'Issue recorded')"
		for line in 1 1 2 3 4; do issue 'T.S/many()/a.swift:5:2' T/a.swift $line "$(message "no $line")"; done
	} >"$WORK/events"
	same "$(printf 'failed\tT.S/%s()\t%s\n' \
		plain 'T/a.swift:27: Expectation failed: (a → 1) == 2; plain' \
		own "T/a.swift:20: Issue recorded; $process" \
		crash 'T/a.swift:30: Expectation failed: .success → .signal(SIGILL → 4) | T/a.swift:31: Issue recorded; its own process said: Fatal error Stack' \
		silent 'T/a.swift:40: Issue recorded' \
		many 'T/a.swift:1: no 1 | T/a.swift:2: no 2 | T/a.swift:3: no 3')" "$(outcomes)"
	suite_results
	read_events host 1
	OUTPUT=$(summarize host 2>&1)
	says 'FAILED T.S/own(): T/a.swift:20: Issue recorded; its own process said: issue: T/a.swift:16: Expectation failed: (a → 1) == 2'
}

test_a_long_reason_is_cut() {
	{
		planned 'T.S/long()/a.swift:1:2'
		issue 'T.S/long()/a.swift:1:2' T/a.swift 1 "$(message "$(printf '%02000d' 0)")"
	} >"$WORK/events"
	same 600 "$(outcomes | cut -f 3 | tr -d '\n' | wc -c)"
}

test_an_issue_outside_of_any_test_is_a_failure() {
	{
		planned T.S suite
		planned 'T.S/good()/a.swift:1:2'
		event testEnded 'T.S/good()/a.swift:1:2'
		event issueRecorded T.S '{"isKnown":false}'
		echo '{"kind":"event","payload":{"kind":"issueRecorded","issue":{"isKnown":false},"messages":[]},"version":0}'
	} >"$WORK/events"
	same "$(printf '%s\t%s\t%s\n' failed '(no test)' '' failed T.S 'said so' passed 'T.S/good()' '')" "$(outcomes | sort)"
}

test_kunit_outcomes() {
	cat >"$WORK/kunit.json" <<-'JSON'
	{"name": "KUnit Test Group", "test_cases": [], "sub_groups": [
		{"name": "traits_store", "sub_groups": [
			{"name": "sizes", "sub_groups": [], "test_cases": [{"name": "4 bytes", "status": "PASS"}, {"name": "8 bytes", "status": "FAIL"}]}],
		 "test_cases": [{"name": "empty", "status": "PASS"}, {"name": "crash", "status": "ERROR"}, {"name": "later", "status": "SKIP"}]}]}
	JSON
	same "$(printf '%s\t%s\t%s\n' \
		passed traits_store/empty '' \
		failed traits_store/crash 'status ERROR' \
		skipped traits_store/later 'skipped by the test' \
		passed 'traits_store/sizes/4 bytes' '' \
		failed 'traits_store/sizes/8 bytes' 'status FAIL')" "$(jq -r -f "$CLONE/qemu/steps/kunit.jq" "$WORK/kunit.json")"
}

# suite_results: what the steps need to judge a suite, without the rest of vm
suite_results() {
	ROOT=$CLONE
	RESULTS=$WORK/results
	CACHE=$WORK/cache
	source "$CLONE/qemu/steps/progress.sh"
	source "$CLONE/qemu/steps/suites.sh"
	begin_suite host
	cp "$WORK/events" "$RESULTS/host/events.json" 2>/dev/null || true
}

test_a_suite_without_tests_has_failed() {
	suite_results
	read_events host 0
	same "$(printf 'failed\t(host)\tno test ran, the bundle ended with status 0')" "$(cat "$RESULTS/host/tests.tsv")"
}

test_a_bad_status_is_a_failure_though_every_test_passed() {
	planned T.good >"$WORK/events"
	event testEnded T.good >>"$WORK/events"
	suite_results
	read_events host 139
	grep -q $'^failed\t(host)\tevery test passed, but the run ended with status 139' "$RESULTS/host/tests.tsv"
	same 1 "$(count passed "$RESULTS/host/tests.tsv")"
}

test_the_counts_are_counts_of_tests_over_all_files() {
	suite_results
	printf 'passed\ta\t\nfailed\tb\tx\nskipped\tc\tpassed\n' >"$WORK/one"
	printf 'passed\td\tfailed\n' >"$WORK/two"
	same '2 1 1 0' "$(count passed "$WORK/one" "$WORK/two") $(count failed "$WORK/one" "$WORK/two") $(count skipped "$WORK/one" "$WORK/two") $(count passed "$WORK/none")"
}

test_failures_are_listed_by_name() {
	suite_results
	printf 'passed\ta\t\nfailed\tT.S/bad()\t1 is not 2\n' >"$RESULTS/host/tests.tsv"
	OUTPUT=$(summarize host 2>&1)
	says '1 passed, 1 failed, 0 skipped' 'FAILED T.S/bad(): 1 is not 2'
	says_not 'FAILED a'
}

test_a_pattern_is_not_taken_for_the_directory_of_results() {
	cd "$WORK" || return 1
	local pattern
	for pattern in man/ man; do
		STATUS=0
		OUTPUT=$("$CLONE/qemu/tests/run" $pattern 2>&1) || STATUS=$?
		same 64 "$STATUS"
		says "'$pattern' is a pattern, and comes second" 'Usage: qemu/tests/run [DIRECTORY [PATTERN]]'
		[ ! -e man ]
	done
	# Where no test has such a name nothing runs
	"$CLONE/qemu/tests/run" ./man/ no-such-test
	[ -e man/tests.tsv ]
}
