# SPDX-License-Identifier: Apache-2.0
# awk -v guest=N -f filter.awk PLAN: the regular expression for Swift Testing's --filter that matches
# the tests of a guest and no others. PLAN has "guest TAB test". Swift Testing compares it with the
# test's name, a slash and the place of its source.

BEGIN {
	FS = "\t"
}

$1 == guest {
	suite = test = $2
	sub(/\/[^\/]*$/, "", suite)
	test = substr(test, length(suite) + 2)
	if (!(suite in tests))
		order[++suites] = suite
	tests[suite] = tests[suite] (tests[suite] != "" ? "|" : "") escaped(test)
}

function escaped(text) {
	gsub(/[^A-Za-z0-9_:\/]/, "\\\\&", text)
	return text
}

END {
	for (i = 1; i <= suites; i++)
		all = all (i > 1 ? "|" : "") escaped(order[i]) "/(?:" tests[order[i]] ")"
	print "^(?:" all ")/[^/]+$"
}
