# SPDX-License-Identifier: Apache-2.0
# Swift Testing's event stream, slurped as raw text, to "seconds TAB test" for each test that was
# planned; "-" instead of seconds if it did not run to its end.

[split("\n")[] | fromjson?] as $records
| [$records[] | select(.kind == "event") | .payload] as $events
| def instants($kind): $events | map(select(.kind == $kind and .testID) | { key: .testID, value: .instant.absolute }) | from_entries;
instants("testStarted") as $started
| instants("testEnded") as $ended
| $records[] | select(.kind == "test" and .payload.kind == "function") | .payload.id
| (split("/") | if length > 2 then .[:-1] else . end | join("/")) as $name
| "\(if $started[.] and $ended[.] then ($ended[.] - $started[.]) * 100 | round / 100 else "-" end)\t\($name)"
