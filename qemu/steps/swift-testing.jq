# SPDX-License-Identifier: Apache-2.0
# Swift Testing's event stream (one JSON object a line, slurped as raw text, since a
# crash may cut the last line off) to lines "outcome TAB name TAB reason".
# The stream begins with every test of the plan: what never ended has failed.

def words: [.messages[]?.text] | join("; ") | gsub("[\t\n]"; " ");

# Of a skipped or cancelled test only what the test itself gave as its reason
def reason: words
	| sub("^(Test|Suite) .* (skipped|was cancelled after [0-9.]+ seconds): \"(?<own>.*)\"$"; .own);

def place: .issue.sourceLocation | if .fileID then "\(.fileID):\(.line): " else "" end;

# The first three of a test's issues. Of an expectation that fails in a process of its own
# (an exit test) the runner says no more than "Issue recorded" and where. The test then
# records another issue, with what that process said.
def reasons:
	map(select(.messages != [] and [.messages[]?.text] != ["Issue recorded"])) as $telling
	| (if $telling == [] then . else $telling end)
	| map(place + reason) | reduce .[] as $each ([]; if index($each) then . else . + [$each] end)
	| .[:3] | join(" | ") | .[:600];

[split("\n")[] | fromjson?] as $records
| [$records[] | select(.kind == "event") | .payload] as $events
| [$records[] | select(.kind == "test" and .payload.kind == "function") | .payload.id] as $plan
| ($events | map(select(.kind == "issueRecorded" and (.issue.isKnown | not)
	and (if .issue | has("isFailure") then .issue.isFailure else true end)))) as $issues
| ($issues | group_by(.testID) | map({ key: (.[0].testID // ""), value: reasons }) | from_entries) as $failed
| ($events | map(select(.kind == "testSkipped") | { key: .testID, value: . }) | from_entries) as $skipped
| ($events | map(select(.kind == "testEnded") | { key: .testID, value: . }) | from_entries) as $ended
| ($events | map(select(.kind == "testCancelled") | { key: .testID, value: true }) | from_entries) as $cancelled
# Cases that were cancelled, of tests that were not. That event has no text, so the case's name is
# taken from the one that says that it started.
| (reduce ($events[] | select(.testID)) as $event ({ begun: {}, list: [] };
	if $event.kind == "testCaseStarted" then .begun[$event.testID] = ($event | words)
	elif $event.kind == "testCaseCancelled" and ($cancelled[$event.testID] | not) then
		.list += [{ id: $event.testID, case: .begun[$event.testID] }]
	else . end) | .list) as $cases
| (
	($plan[] | . as $id
	| (split("/") | if length > 2 then .[:-1] else . end | join("/")) as $name
	| if $failed[$id] then "failed\t\($name)\t\($failed[$id])"
	  elif $skipped[$id] then "skipped\t\($name)\t\($skipped[$id] | reason)"
	  elif $cancelled[$id] and $ended[$id] then "skipped\t\($name)\t\($ended[$id] | reason)"
	  elif $ended[$id] then "passed\t\($name)\t"
	  else "failed\t\($name)\tbegan or was planned, but never ended" end,
	  ($cases[] | select(.id == $id)
	  | "skipped\t\($name)\tone of its cases was cancelled: \(.case // "")")),
	# Issues of a suite, or of no test at all
	($failed | to_entries[] | select(.key | IN($plan[]) | not)
	| "failed\t\(if .key == "" then "(no test)" else .key end)\t\(.value)")
)
