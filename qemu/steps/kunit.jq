# SPDX-License-Identifier: Apache-2.0
# kunit.py's JSON to lines "outcome TAB name TAB reason".

def cases($path): (.test_cases[]? | { name: ($path + [.name] | join("/")), status }),
	(.sub_groups[]? | cases($path + [.name]));

cases([])
| if .status == "PASS" then "passed\t\(.name)\t"
  elif .status == "SKIP" then "skipped\t\(.name)\tskipped by the test"
  else "failed\t\(.name)\tstatus \(.status)" end
